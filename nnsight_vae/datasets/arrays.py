"""`Arrays`: a fixed set of images with measured or annotated factors; pairs are found by matching."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from .._regressor import Progress
from ..doses import Doses
from ..errors import DataError, NnsightVaeWarning
from ..pairs import Pairs
from .base import REFERENCE, Batch, Dataset, as_images, check_count, dose_values
from .distances import contrasts, coordinates, distance
from .matching import CONTRAST, match_doses, match_pairs

if TYPE_CHECKING:
    import networkx as nx

    from ..readouts import Factors

_POOR_MATCH = 0.5  # a pair set is cautioned about when another factor moves by more than this share of its own
_PASSES = 50  # over the images when a readout is fitted, within 500 to 3000 steps of 64 images


class Arrays(Dataset):
    """Images kept in memory, with factors; made by `from_arrays`, `from_path` and `load("digits")`.

    There is no SCM behind them, so `do` and `counterfactual` are refused and pairs are matched from real images.

    Args:
        name: what it is called in reports.
        images: uint8, or float32 in [0, 1], as `from_arrays` prepares them.
        table: the factors in their own units, one row per image.
        factors: their names.
        graph: the causal graph over them, or None.
        discrete: those that are kinds and not amounts; None: not said.
    """

    def __init__(
        self,
        name: str,
        images: Shaped[Tensor, "n c h w"],
        table: Float[np.ndarray, "n f"],
        factors: tuple[str, ...],
        graph: nx.DiGraph | None,
        discrete: Sequence[str] | None = (),
    ) -> None:
        self.name, self.factors, self.discrete = name, factors, tuple(discrete or ())
        self._may_be_discrete = discrete is None
        self.n_images = len(images)
        _, channels, height, width = images.shape
        self.image_shape = (channels, height, width)
        self._images, self._table, self._graph = images, table, graph
        spread = table.std(0)
        self._sd = np.where(spread > 0, spread, 1.0)  # a constant factor never differs, whatever its unit

    @property
    def graph(self) -> nx.DiGraph | None:
        """The causal graph over the factors (a copy), or None where it is not known."""
        return None if self._graph is None else self._graph.copy()

    def sample(self, n: int, seed: int = 0) -> Batch:
        """n different images in random order; the same seed gives the same images.

        Raises:
            DataError: if n is not a positive integer, or more than there are.
        """
        rows = self._rows(n, seed)
        return Batch(self._floats(rows), torch.from_numpy(self._table[rows].astype(np.float32)), None)

    def images_u8(self, n: int, seed: int = 0) -> UInt8[Tensor, "n c h w"]:
        """The images of `sample(n, seed)` as uint8, rounded where they were given as floats.

        Raises:
            DataError: if n is not a positive integer, or more than there are.
        """
        images = self._images[torch.from_numpy(self._rows(n, seed))]
        return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)

    def pairs(self, factor: str, n: int, seed: int = 0, propagate: bool = True) -> Pairs:
        """n pairs of real images that differ in one factor and match in the others, as nearly as the images allow.

        A matched pair is not a counterfactual: noise is not shared, and the other factors may only nearly agree (the pairs'
        `match`, as `match_quality` computes it, says how nearly; results keep it). Partners differ by at least one standard
        deviation of the factor. Images with a partner that agrees exactly in the matched factors are paired first, as on a grid
        of factor values; others with the nearest image left, in standard deviations. No image is used twice, so pairs are
        independent. Of a discrete factor any two kinds are equally far apart, as far as two random images are on average.

        Args:
            factor: the factor that differs.
            n: number of pairs, at most half the number of images.
            seed: fixes the pairs.
            propagate: True: match the factors that `factor` does not cause, by the dataset's graph. False: match all
                other factors. Without a graph all others are matched, and the pairs say `propagate=None`.

        Returns:
            Pairs, oriented low -> high; groups are the row numbers of the base images.

        Raises:
            DataError: if the factor is unknown or n pairs cannot be found.

        Warns:
            NnsightVaeWarning: if another matched factor moves by more than half as much as the factor itself.
        """
        column = self._check_factor(factor)
        check_count(f"{self.name}.pairs", n, most=len(self._table) // 2)
        pairs = self._matched_pairs(column, n, np.random.default_rng(seed), propagate, None)
        self._caution(pairs, propagate)
        return replace(pairs, record=self._record(n, seed))

    def pairs_by_factor(self, n: int, seed: int = 0, propagate: bool = False) -> dict[str, Pairs]:
        """Pairs in every factor of the same n images: what asks which units respond to which factor.

        n images are drawn; each is matched, once a factor, with an image outside of them as `pairs` does. Groups are the row
        numbers of the n images, which are base or source, whichever is lower.

        Raises:
            DataError: if some of them cannot be matched; `pairs` is less strict.

        Warns:
            NnsightVaeWarning: as `pairs`, factor by factor.
        """
        check_count(f"{self.name}.pairs_by_factor", n, most=len(self._table) // 2)
        rng = np.random.default_rng(seed)
        anchors = rng.permutation(len(self._table))[:n]
        found = {f: self._matched_pairs(j, n, rng, propagate, anchors) for j, f in enumerate(self.factors)}
        for pairs in found.values():
            self._caution(pairs, propagate)
        return {factor: replace(pairs, record=self._record(n, seed)) for factor, pairs in found.items()}

    def doses(
        self,
        factor: str,
        n: int = 64,
        values: Sequence[float] | None = None,
        seed: int = 0,
        propagate: bool = True,
    ) -> Doses:
        """n sets of real images that agree in the other factors and show each of some values of one factor.

        They exist where the table of factors is a grid, or holds one; nothing is matched approximately here, for a response
        over many doses would mix in whatever differs between them.

        Args:
            factor: the factor that differs.
            n: number of sets.
            values: values that the table holds; None: all of them, or seven of them at evenly spaced quantiles.
            seed: fixes the sets.
            propagate: which other factors must agree, as in `pairs`.

        Raises:
            DataError: if there are fewer than n such sets.
        """
        column = self._check_factor(factor)
        check_count(f"{self.name}.doses", n, most=len(self._table) // 2)
        levels = dose_values(f"{self.name}.doses", factor, self._table[:, column], values)
        rest = self._table[:, self._matched_columns(factor, propagate)]
        rows = match_doses(self._table[:, column], rest, levels, n, np.random.default_rng(seed))
        if rows.shape[1] < n:
            raise DataError(
                f"{self.name}.doses: {rows.shape[1]} sets of images agree in the other factors and show {factor!r} = "
                f"{', '.join(f'{level:.6g}' for level in levels)}; asked for n = {n}. Ask for {'fewer or for ' if rows.size else ''}other values; where "
                f"the factors are no grid, use pairs({factor!r}, n) and manipulate_inputs, which match the nearest images."
            )
        return Doses(
            torch.stack([self._floats(at_dose) for at_dose in rows]),
            levels,
            factor,
            factor_sd=float(self._sd[column]),
            reference=self.sample(min(max(n, REFERENCE), len(self._table)), seed).images,
            propagate=None if self._graph is None else propagate,
            record=self._record(n, seed),
        )

    def match_quality(self, pairs: Pairs) -> dict[str, float]:
        """How far base and source are apart in each factor: root mean square, in standard deviations of the factor.

        Two random images are 1.41 apart, by the share of pairs of two kinds in a discrete factor; a perfect match is 0 apart in every
        factor but its own.

        Args:
            pairs: pairs of this dataset.

        Raises:
            DataError: if the pairs do not carry this dataset's factors.
        """
        if pairs.factor_names != self.factors or pairs.base_factors is None or pairs.source_factors is None:
            raise DataError(
                f"{self.name}.match_quality: the pairs carry factors {pairs.factor_names}, not {self.factors}."
            )
        columns = zip(*(array.double().numpy().T for array in (pairs.base_factors, pairs.source_factors)), strict=True)
        return {
            factor: distance(base, source, self._table[:, j], factor in self.discrete)
            for j, (factor, (base, source)) in enumerate(zip(self.factors, columns, strict=True))
        }

    def _matched_pairs(
        self, column: int, n: int, rng: np.random.Generator, propagate: bool, anchors: np.ndarray | None
    ) -> Pairs:
        factor, kind = self.factors[column], self.factors[column] in self.discrete
        columns = self._matched_columns(factor, propagate)
        matched = [coordinates(self._table[:, j], self.factors[j] in self.discrete) for j in columns]
        rest = np.concatenate([np.empty((len(self._table), 0)), *matched], axis=1)
        one, other = match_pairs(contrasts(self._table[:, column], kind), rest, n, rng, anchors)
        if len(one) < n:
            how = "in kind" if kind else f"by at least {CONTRAST:g} standard deviation"
            raise DataError(
                f"{self.name}.pairs: only {len(one)} pairs differ {how} in {factor!r} without using an image twice; asked for n = {n}."
            )
        swap = self._table[one, column] > self._table[other, column]
        low, high = np.where(swap, other, one), np.where(swap, one, other)
        pairs = Pairs(
            self._floats(low),
            self._floats(high),
            factor=factor,
            groups=torch.from_numpy(low if anchors is None else anchors),
            base_factors=torch.from_numpy(self._table[low].astype(np.float32)),
            source_factors=torch.from_numpy(self._table[high].astype(np.float32)),
            factor_names=self.factors,
            propagate=None if self._graph is None else propagate,
        )
        return replace(pairs, match=self.match_quality(pairs))

    def _caution(self, pairs: Pairs, propagate: bool) -> None:
        quality, factor = pairs.match or {}, str(pairs.factor)
        own = quality[factor]
        matched = [self.factors[j] for j in self._matched_columns(factor, propagate)]
        poor = [name for name in matched if quality[name] > _POOR_MATCH * own]
        if poor:
            moved = ", ".join(f"{name} {quality[name]:.2f}" for name in poor)
            message = (
                f"{self.name}: pairs in {factor!r} differ by {own:.2f} sd in it, but also in {moved} sd; "
                "their effects are not this factor's alone. Ask for fewer pairs or more images."
            )
            warnings.warn(message, NnsightVaeWarning, stacklevel=3)

    def _matched_columns(self, factor: str, propagate: bool) -> list[int]:
        import networkx as nx

        follows = nx.descendants(self._graph, factor) if self._graph is not None and propagate else set()
        return [j for j, name in enumerate(self.factors) if name != factor and name not in follows]

    def _marginal(self, column: int) -> np.ndarray:
        return self._table[:, column]

    def _rows(self, n: int, seed: int) -> np.ndarray:
        check_count(f"{self.name}.sample", n, most=len(self._table))
        return np.random.default_rng(seed).permutation(len(self._table))[:n]

    def _floats(self, rows: np.ndarray) -> Tensor:
        images = self._images[torch.from_numpy(rows)]
        return as_images(images) if images.dtype == torch.uint8 else images

    def _fit_readout(self, progress: Progress | None) -> Factors:
        from ..readouts import Factors

        varying = [j for j in range(len(self.factors)) if np.ptp(self._table[:, j]) > 0]
        table = torch.from_numpy(self._table[:, varying].astype(np.float32))
        names = [self.factors[j] for j in varying]
        steps = min(max(_PASSES * len(table) // 64, 500), 3000)
        kinds = None if self._may_be_discrete else [name for name in names if name in self.discrete]
        return Factors.fit(
            self._images, table, names, steps=steps, discrete=kinds, allow_unreliable=True, progress=progress
        )
