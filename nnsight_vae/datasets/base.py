"""`Dataset` and `Batch`: what every data set of images with ground-truth factors offers."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .._regressor import Progress
from ..doses import Doses
from ..errors import DataError, NnsightVaeWarning, ReadoutError
from ..pairs import Pairs
from ..wording import shapes
from .kept_readout import kept_readout

if TYPE_CHECKING:
    import networkx as nx

    from ..readouts import Factors


REFERENCE = 256  # images that a unit's standard deviation is over in `doses`: it is then known to about 5 %
_DOSES = 7  # values of a factor in `doses`: enough to tell a peak from a line, few enough to render
_ADVICE = (
    "Give more or larger images, ask for other factors, or, where you want to read them all the same, make a readout with "
    "nv.readouts.Factors.fit(images, factors, names, allow_unreliable=True)."
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with their factors, and the exogenous noise that made them.

    Args:
        images: in [0, 1].
        factors: one column per factor of the dataset, in the factors' own units.
        noise: exogenous noise of each unit, for counterfactuals; None where the world's noise is not known.
    """

    images: Float[Tensor, "n c h w"]
    factors: Float[Tensor, "n f"]
    noise: Float[np.ndarray, "n f"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Batch({shapes(vars(self))})"


class Dataset(ABC):
    """Images with ground-truth factors, and, where it is known, the causal graph among the factors.

    Attributes:
        name: what the dataset is called in reports.
        factors: names of the factors, in column order.
        image_shape: (channels, height, width).
        n_images: how many images there are; None where they are rendered on demand.
        discrete: factors that are kinds and not amounts, such as a shape: classes to a readout.
        hidden: factors that no image shows: they cause others, and are left out wherever images are read.
    """

    name: str
    factors: tuple[str, ...]
    image_shape: tuple[int, int, int]
    n_images: int | None = None
    discrete: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    @abstractmethod
    def graph(self) -> nx.DiGraph | None:
        """The true causal graph over the factors, or None where it is not known."""

    @abstractmethod
    def sample(self, n: int, seed: int = 0) -> Batch:
        """n images with their factors; the same seed gives the same images."""

    @abstractmethod
    def images_u8(self, n: int, seed: int = 0) -> UInt8[Tensor, "n c h w"]:
        """The images of `sample(n, seed)` as uint8: a quarter of the memory, for training."""

    @abstractmethod
    def pairs(self, factor: str, n: int, seed: int = 0, propagate: bool = True) -> Pairs:
        """n pairs of images that differ by an intervention on one factor, oriented low -> high."""

    def pairs_by_factor(self, n: int, seed: int = 0, propagate: bool = False) -> dict[str, Pairs]:
        """Pairs in every factor of the same n units of the world: what asks which units respond to which factor.

        Args:
            n: number of pairs in each factor.
            seed: fixes the pairs.
            propagate: as in `pairs`, but False here unless asked for: a unit that responds to a factor through the factor's
                effects is then no unit of that factor. Hidden factors are then left out: no pair would differ.

        Raises:
            DataError: as `pairs`.

        Example:
            >>> import nnsight_vae as nv
            >>> by_factor = nv.datasets.load("pendulum").pairs_by_factor(n=4)
            >>> list(by_factor)
            ['angle', 'light', 'shadow_length', 'shadow_position']
        """
        shown = [factor for factor in self.factors if propagate or factor not in self.hidden]
        return {factor: self.pairs(factor, n, seed, propagate) for factor in shown}

    def doses(
        self,
        factor: str,
        n: int = 64,
        values: Sequence[float] | None = None,
        seed: int = 0,
        propagate: bool = True,
    ) -> Doses:
        """The units of `sample(n, seed)`, each under `do(factor = v)` for every one of some values, with all noise shared.

        Args:
            factor: the factor that is set.
            n: number of units of the world.
            values: what it is set to; None: seven quantiles of its marginal, from 1/14 to 13/14 (fewer where it takes fewer
                values).
            seed: fixes the units.
            propagate: True: descendants of the factor follow the SCM. False: all other factors keep the values of the sampled
                image.

        Returns: doses with the factor's standard deviation, and 256 sampled images (n where that is more) as their reference.

        Raises:
            DataError: an unknown factor, one that takes one value only, values that cannot be drawn or are fewer than two, or
                a data set without an SCM whose images do not show each value for the same other factors.
        """
        column = self._check_factor(factor)
        self._check_shown("doses", factor, propagate)
        marginal = self._marginal(column)
        levels = dose_values(f"{self.name}.doses", factor, marginal, values)
        batch = self.sample(n, seed)
        held = {} if propagate else {name: batch.factors[:, j] for j, name in enumerate(self.factors)}
        shown = [self.counterfactual(batch, **(held | {factor: float(level)})).images for level in levels]
        return Doses(
            torch.stack(shown),
            levels,
            factor,
            factor_sd=float(marginal.std()) or None,
            reference=self.sample(min(max(n, REFERENCE), self.n_images or REFERENCE + n), seed).images,
            propagate=propagate,
            record=self._record(n, seed),
        )

    def _marginal(self, column: int) -> Float[np.ndarray, " m"]:
        """Draws of one factor from its observational marginal."""
        return self.sample(1024).factors[:, column].numpy()

    @abstractmethod
    def _fit_readout(self, progress: Progress | None) -> Factors:
        """A readout of all factors, reliable or not."""

    def do(self, n: int = 256, seed: int = 0, **values: float | np.ndarray | Tensor) -> Batch:
        """n images under an intervention on factors, e.g. `do(n=100, angle=0.4)`.

        Raises:
            DataError: always here: without a structural causal model nothing can be intervened on.
        """
        raise self._no_scm("do")

    def counterfactual(self, batch: Batch, **values: float | np.ndarray | Tensor) -> Batch:
        """The same units as in `batch`, had the named factors been set to these values.

        Raises:
            DataError: always here: without a structural causal model there are no counterfactuals.
        """
        raise self._no_scm("counterfactual")

    def readout(
        self,
        names: str | Sequence[str] | None = None,
        progress: Progress | None = None,
        file: str | os.PathLike[str] | None = None,
    ) -> Factors:
        """The learned readout of this dataset's factors, in factor standard deviations.

        It is fitted (seeded) the first time it is asked for and then kept, or comes with the package.

        Args:
            names: factors to read; None: every factor that can be read reliably (reliability of at least .8).
            progress: called with (steps done, steps in all) while it is fitted, which can take minutes for big images; None: a bar
                on an interactive terminal.
            file: where it is kept between runs: read if the file is there, else written when the readout is fitted.

        Raises:
            DataError: `file` holds something else, or cannot be written.
            ReadoutError: if a factor is unknown, or asked for by name and not reliable; if none is reliable.

        Warns:
            NnsightVaeWarning: if names is None and a factor had to be left out.
        """
        unseen = [name for name in ([names] if isinstance(names, str) else names or ()) if name in self.hidden]
        if unseen:
            raise ReadoutError(
                f"{self.name}: {', '.join(unseen)} is hidden: it causes other factors, and no image shows it."
            )
        whole = self._readout = kept_readout(self, progress, file)
        if names is not None:
            part = whole[names]
            if part.unreliable:
                raise ReadoutError(f"{self.name}: {_scores(part)} cannot be read reliably. {_ADVICE}")
            return part
        reliable = [name for name in whole.names if name not in whole.unreliable]
        if not reliable:
            raise ReadoutError(f"{self.name}: no factor can be read from its images: {_scores(whole)}. {_ADVICE}")
        if whole.unreliable:
            message = (
                f"{self.name}: the readout leaves out {_scores(whole[whole.unreliable])}: not readable from the images."
            )
            warnings.warn(message, NnsightVaeWarning, stacklevel=2)
        return whole[reliable]

    _readout: Factors | None = None

    def _record(self, n: int, seed: int) -> dict[str, Any]:
        """Where pairs or doses are from, for results."""
        return {"dataset": self.name, "drawn": n, "seed": seed}

    def _no_scm(self, what: str) -> DataError:
        return DataError(
            f"{self.name}.{what}: this dataset has images and factors but no structural causal model to intervene on. "
            "Use pairs(), which matches images, or a dataset with an SCM such as 'pendulum'."
        )

    def _check_factor(self, factor: str) -> int:
        if factor not in self.factors:
            raise DataError(f"{self.name} has no factor {factor!r}. Its factors: {', '.join(self.factors)}.")
        return self.factors.index(factor)

    def _check_shown(self, what: str, factor: str, propagate: bool) -> None:
        if factor in self.hidden and not propagate:
            raise DataError(
                f"{self.name}.{what}: {factor!r} is hidden, so images that differ in it alone are the same; propagate=True shows its "
                "effects."
            )

    def __repr__(self) -> str:
        size = "rendered on demand" if self.n_images is None else f"{self.n_images} images"
        return f"<{self.name}: {size}, shape {self.image_shape}, factors {', '.join(self.factors)}>"


def check_count(what: str, n: int, most: int | None = None) -> None:
    """Refuse a number of images or pairs that cannot be served.

    Raises:
        DataError: if n is not a positive integer, or above `most`.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"{what}: n is {n!r}, expected a positive integer.")
    if most is not None and n > most:
        raise DataError(f"{what}: asked for n = {n}, but there are only {most}.")


def dose_values(
    what: str, factor: str, marginal: Float[np.ndarray, " m"], values: Sequence[float] | None
) -> Float[np.ndarray, " dose"]:
    """The values a factor is set to, rising: those asked for, or observed ones at evenly spaced quantiles.

    Raises:
        DataError: values that are not finite numbers, or fewer than two different ones.
    """
    if values is None:
        levels = np.unique(marginal)
        if len(levels) < 2:
            raise DataError(f"{what}: {factor!r} takes one value only, so nothing can respond to it.")
        if len(levels) > _DOSES:
            quantiles = (np.arange(_DOSES) + 0.5) / _DOSES
            found = np.unique(np.quantile(marginal, quantiles, method="inverted_cdf"))
            levels = found if len(found) > 1 else levels[[0, -1]]  # one value may fill all quantiles
        return levels
    try:
        levels = np.unique(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: values of {factor!r} are not numbers: {error}.") from error
    if len(levels) < 2 or not np.isfinite(levels).all():
        raise DataError(f"{what}: values of {factor!r} are {values!r}, expected two or more different finite numbers.")
    return levels


def as_images(u8: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """uint8 images as float32 in [0, 1]."""
    return u8.to(torch.float32).div_(255)


def _scores(readout: Factors) -> str:
    return ", ".join(
        f"{name} (held-out {'skill' if name in readout.accuracy else 'R2'} {readout.reliability[name]:.2f})"
        for name in readout.names
    )
