"""`Procedural`: images rendered on demand from a structural causal model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .._regressor import Progress
from ..causal.scm import SCM
from ..errors import DataError
from ..pairs import Pairs
from .base import Batch, Dataset, as_images, check_count
from .moments import Measure, measured
from .rendering import Renderer

if TYPE_CHECKING:
    import networkx as nx

    from ..readouts import Factors

Render = Callable[[Float[np.ndarray, "n f"]], UInt8[np.ndarray, "n c h w"]]
P = TypeVar("P", bound="Procedural")
Values = Mapping[str, "float | np.ndarray | Tensor"]

_REDRAWS = 20  # attempts to find a second value of a factor that differs from the first


class Procedural(Dataset):
    """A dataset whose images are drawn from the factors, and whose factors follow an SCM.

    Args:
        name: what it is called in reports.
        scm: the causal model of the factors.
        render: factors, in the order of `scm.names`, to uint8 images; kept as the attribute `render`.
        image_shape: (channels, height, width) of those images.
        limits: factor -> (lowest, highest) value that can be drawn; `do` and `counterfactual` refuse others.
        readout_file: a readout fitted before (see `build_readouts`); None: it is fitted on first use.
        integers: factors that take whole numbers only, such as a shape.
        hidden: factors that cause others and are not drawn themselves: hidden confounders. `graph` marks them (`hidden=True`), no
            readout or measure reads them, and no pair can show them apart from their effects.
        measures: factor -> what it is in an image, in closed form; see `measure`.

    Example:
        >>> from nnsight_vae.datasets.pendulum import pendulum
        >>> data = pendulum()
        >>> batch = data.sample(n=4, seed=0)
        >>> moved = data.counterfactual(batch, angle=0.4)
        >>> moved.images.shape, moved.factors[:, 0].unique().tolist()
        (torch.Size([4, 3, 64, 64]), [0.4000000059604645])
    """

    def __init__(
        self,
        name: str,
        scm: SCM,
        render: Render,
        image_shape: tuple[int, int, int],
        limits: Mapping[str, tuple[float, float]],
        readout_file: Path | None = None,
        integers: tuple[str, ...] = (),
        hidden: tuple[str, ...] = (),
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        self.name, self.scm, self.factors = name, scm, scm.names
        self.image_shape = image_shape
        self.limits, self.integers = dict(limits), integers
        self.render, self._readout_file = render, readout_file
        self.hidden, self._measures = hidden, dict(measures or {})
        self.discrete = tuple(v for v in scm.names if (v in integers or v in scm.discrete) and v not in hidden)

    @classmethod
    def drawn(cls: type[P], name: str, scm: SCM, renderer: Renderer, fixed: Mapping[str, float] | None = None) -> P:
        """Any causal model with any renderer: they meet at the names of the factors.

        Args:
            name: what it is called in reports.
            scm: its variables are the dataset's factors. One that the renderer does not draw is hidden: it has its place in the
                graph and causes what it causes, but no pixel depends on it directly.
            renderer: draws the factors.
            fixed: factors that keep one value in every image. One that is a variable too is hidden.

        Raises:
            DataError: a factor that the renderer draws is neither a variable nor fixed.

        Example:
            >>> from nnsight_vae.causal import Mechanism
            >>> from nnsight_vae.datasets.sprites import SPRITES
            >>> uniform = Mechanism((), lambda parents, noise: noise, lambda rng, n: rng.random(n))
            >>> same = Mechanism(("x",), lambda parents, noise: 1 - parents["x"], lambda rng, n: rng.random(n))
            >>> still = {"shape": 0, "scale": 1.0, "orientation": 0.0}
            >>> Procedural.drawn("anti-diagonal", SCM({"x": uniform, "y": same}), SPRITES, still)
            <anti-diagonal: rendered on demand, shape (1, 64, 64), factors x, y>
        """
        fixed = dict(fixed or {})
        anything = (-np.inf, np.inf)
        limits = {v: anything if v in fixed else renderer.limits.get(v, anything) for v in scm.names}
        shown = [v for v in scm.names if v in renderer.limits and v not in fixed]
        return cls(
            name,
            scm,
            renderer.of(scm.names, fixed),
            renderer.image_shape,
            limits,
            integers=tuple(v for v in renderer.integers if v in shown),
            hidden=tuple(v for v in scm.names if v not in shown),
            measures={v: renderer.measures[v] for v in shown if v in renderer.measures},
        )

    @property
    def graph(self) -> nx.DiGraph:
        """The true causal graph over the factors; a new graph per call. Hidden factors are marked `hidden=True`."""
        graph = self.scm.graph
        for name in self.hidden:
            graph.nodes[name]["hidden"] = True
        return graph

    def sample(self, n: int, seed: int = 0) -> Batch:
        """n images from the observational distribution; the same seed gives the same images.

        Raises:
            DataError: if n is not a positive integer.
        """
        return self.do(n, seed)

    def do(self, n: int = 256, seed: int = 0, **values: float | np.ndarray | Tensor) -> Batch:
        """n images under an intervention on factors, e.g. `do(n=100, angle=0.4)`; descendants follow the SCM.

        The units are those of `sample(n, seed)`: image i of both shares its exogenous noise.

        Args:
            n: number of images.
            seed: fixes the units.
            **values: factor -> one value for all images, or one per image.

        Raises:
            DataError: if a factor is unknown, or a value is not finite, not drawable or of the wrong length.
        """
        check_count(f"{self.name}.do", n)
        return self._batch(*self.scm.sample(n, np.random.default_rng(seed), do=self._check_values(values)))

    def counterfactual(self, batch: Batch, **values: float | np.ndarray | Tensor) -> Batch:
        """The same units as in `batch`, had the named factors been set to these values.

        Args:
            batch: a batch of this dataset. The noise that it does not carry is abducted from its factors, where the SCM's
                mechanisms can be inverted.
            **values: factor -> one value for all images, or one per image.

        Raises:
            DataError: if the batch carries no noise and it cannot be abducted, or the values are ill-formed (see `do`).
        """
        noise = self._abducted(batch) if batch.noise is None else batch.noise
        return self._batch(self.scm.counterfactual(noise, self._check_values(values)), noise)

    def measure(self, images: Tensor, names: str | Sequence[str] | None = None) -> dict[str, Float[Tensor, " n"]]:
        """Factors of images in closed form (areas, centres, colours), in their own units: what learned readouts are held against.

        Right to R2 of .999 on rendered images; on reconstructions as far as these are sharp.

        Args:
            images: `[n, *image_shape]`, float in [0, 1] or uint8.
            names: factors; None: all that can be measured.

        Returns: factor -> its value in each image; NaN where nothing of it is there.

        Raises:
            DataError: images of another shape, or a factor that cannot be measured.

        Example:
            >>> from nnsight_vae.datasets.pendulum import pendulum
            >>> batch = pendulum().sample(4)
            >>> bool(torch.allclose(pendulum().measure(batch.images)["angle"], batch.factors[:, 0].double(), atol=0.02))
            True
        """
        return measured(f"{self.name}.measure", self._measures, images, self.image_shape, names)

    def sample_independent(self, n: int, seed: int = 0) -> Batch:
        """n images whose factors are independent: every factor is set, `do(all)`, to a draw of its own marginal.

        Causally related factors are correlated in `sample`, and no readout or metric can then tell them apart; here it
        can. Each marginal is the observational one.

        Raises:
            DataError: if n is not a positive integer.
        """
        check_count(f"{self.name}.sample_independent", n)
        return self._batch(self._independent(n, seed), None)

    def images_u8(self, n: int, seed: int = 0) -> UInt8[Tensor, "n c h w"]:
        """The images of `sample(n, seed)` as uint8: a quarter of the memory, for training.

        Raises:
            DataError: if n is not a positive integer.
        """
        check_count(f"{self.name}.images_u8", n)
        values, _ = self.scm.sample(n, np.random.default_rng(seed))
        return torch.from_numpy(self.render(values))

    def pairs(self, factor: str, n: int, seed: int = 0, propagate: bool = True) -> Pairs:
        """n pairs that differ by an intervention on one factor, with all exogenous noise shared.

        One image of each pair is a draw of `sample`; the other is the same unit with the factor set to the value of
        another random unit. The image with the lower value is the base.

        Args:
            factor: the factor intervened on.
            n: number of pairs.
            seed: fixes the pairs. With equal seeds, `propagate` True and False give the same units and values.
            propagate: True: descendants of the factor follow the SCM. False: all other factors keep the values of the
                sampled image, so only this factor's own pixels change.

        Returns:
            Pairs with factors of both images; each base is its own bootstrap group.

        Raises:
            DataError: if the factor is unknown, n is not a positive integer, or the factor never varies.
        """
        column = self._check_factor(factor)
        check_count(f"{self.name}.pairs", n)
        self._check_shown("pairs", factor, propagate)
        factual, noise = self.scm.sample(n, np.random.default_rng([seed, 0]))
        other = self._other_values(factual[:, column], column, np.random.default_rng([seed, 1]))
        held = {} if propagate else {name: factual[:, j] for j, name in enumerate(self.factors)}
        low = self.scm.counterfactual(noise, held | {factor: np.minimum(factual[:, column], other)})
        high = self.scm.counterfactual(noise, held | {factor: np.maximum(factual[:, column], other)})
        base, source = self._batch(low, noise), self._batch(high, noise)
        return Pairs(
            base.images,
            source.images,
            factor=factor,
            groups=torch.arange(n),
            base_factors=base.factors,
            source_factors=source.factors,
            factor_names=self.factors,
            propagate=propagate,
            record=self._record(n, seed),
        )

    def _marginal(self, column: int) -> np.ndarray:
        return self.scm.sample(10_000, np.random.default_rng(0))[0][:, column]  # no image is drawn

    def _independent(self, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.stack([self.scm.sample(n, rng)[0][:, column] for column in range(len(self.factors))], axis=1)

    def _other_values(self, values: np.ndarray, column: int, rng: np.random.Generator) -> np.ndarray:
        other = values.copy()
        for _ in range(_REDRAWS):
            same = other == values
            if not same.any():
                return other
            other[same] = self.scm.sample(int(same.sum()), rng)[0][:, column]
        raise DataError(
            f"{self.name}.pairs: {self.factors[column]!r} takes one value only, so no pair can differ in it."
        )

    def _batch(self, values: np.ndarray, noise: np.ndarray | None) -> Batch:
        images = as_images(torch.from_numpy(self.render(values)))
        return Batch(images, torch.from_numpy(values.astype(np.float32)), noise)

    def _abducted(self, batch: Batch) -> np.ndarray:
        try:
            return self.scm.abduct(batch.factors.double().numpy())
        except DataError as error:
            raise DataError(
                f"{self.name}.counterfactual: the batch carries no noise, and none can be told from its factors ({error}) Use a "
                "batch that sample() or do() made."
            ) from error

    def _check_values(self, values: Values) -> dict[str, np.ndarray]:
        checked = {}
        for factor, value in values.items():
            self._check_factor(factor)
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            low, high = self.limits[factor]
            if array.dtype.kind not in "fiu" or not ((array >= low) & (array <= high)).all():
                raise DataError(
                    f"{self.name}: cannot draw {factor} = {value!r}; expected numbers in [{low:g}, {high:g}]."
                )
            if factor in self.integers and (array != np.round(array)).any():
                raise DataError(f"{self.name}: cannot draw {factor} = {value!r}; it takes whole numbers only.")
            checked[factor] = array
        return checked

    def _fit_readout(self, progress: Progress | None) -> Factors:
        from ..readouts import Factors
        from .procedural_readout import fit_procedural_readout

        if self._readout_file is not None:
            return Factors.load(self._readout_file)
        return fit_procedural_readout(self, progress=progress)
