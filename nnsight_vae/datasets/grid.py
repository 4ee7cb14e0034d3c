"""`Grid`: a fixed set of images that shows every combination of its factors' values once, such as dSprites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..doses import Doses
from ..errors import DataError
from ..pairs import Pairs
from .arrays import Arrays
from .base import Batch, Dataset
from .matching import CONTRAST

_SAME = 1e-5  # relative to a factor's range: two values nearer than that are one


class Grid(Arrays):
    """Images of every combination of their factors' values, one each: factors are independent, and interventions are exact.

    With no noise and no factor that causes another, `do(factor = v)` on an image is the image of the grid that has v instead:
    a look-up, so pairs and counterfactuals are true ones, as those of a procedural dataset.

    Args:
        name: what it is called in reports.
        images: uint8 or float32 in [0, 1]; may be memory-mapped, since only the rows asked for are read.
        table: the factors in their own units, one row per image, in any order.
        factors: their names.
        discrete: those that are kinds and not amounts.

    Raises:
        DataError: if a combination is missing or shown twice.

    Example:
        >>> table = np.stack(np.meshgrid([0.0, 1.0], [5.0, 6.0, 7.0], indexing="ij"), axis=-1).reshape(-1, 2)
        >>> data = Grid("tiny", torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), table, ("shape", "size"))
        >>> data.sizes
        {'shape': 2, 'size': 3}
        >>> data.do(2, shape=1.0, size=6.0).images.flatten().mul(255).tolist()
        [4.0, 4.0]
    """

    def __init__(
        self,
        name: str,
        images: Shaped[Tensor, "n c h w"],
        table: Float[np.ndarray, "n f"],
        factors: Sequence[str],
        discrete: Sequence[str] = (),
    ) -> None:
        graph: nx.DiGraph = nx.DiGraph()
        graph.add_nodes_from(factors)
        super().__init__(name, images, table, tuple(factors), graph, discrete)
        found = [np.unique(column, return_inverse=True) for column in table.T]
        self._levels = [levels for levels, _ in found]
        self._codes: Int[np.ndarray, "n f"] = np.stack([codes for _, codes in found], axis=1)
        shape = tuple(map(len, self._levels))
        if np.prod(shape, dtype=np.float64) != len(table):
            raise DataError(
                f"{name}: {len(table)} images, but {' x '.join(map(str, shape))} combinations of {', '.join(factors)}: no grid. "
                "Images that do not show every combination are a dataset of from_arrays."
            )
        self._row_of = np.full(shape, -1)
        self._row_of[tuple(self._codes.T)] = np.arange(len(table))
        if (self._row_of < 0).any():
            missing = [levels[i] for levels, i in zip(self._levels, np.argwhere(self._row_of < 0)[0], strict=True)]
            raise DataError(
                f"{name}: no image shows {dict(zip(factors, map(float, missing), strict=True))}, and another combination comes twice."
            )

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each factor takes."""
        return dict(zip(self.factors, map(len, self._levels), strict=True))

    def do(self, n: int = 256, seed: int = 0, **values: float | np.ndarray | Tensor) -> Batch:
        """The images of `sample(n, seed)` with the named factors set to values of the grid.

        Args:
            n: number of images.
            seed: fixes the images.
            **values: factor -> one value for all images, or one per image.

        Raises:
            DataError: if a factor is unknown or does not take such a value.
        """
        return self._moved(self._codes[self._rows(n, seed)], values)

    def counterfactual(self, batch: Batch, **values: float | np.ndarray | Tensor) -> Batch:
        """The images that differ from those of `batch` in the named factors only.

        Raises:
            DataError: if the batch's factors are not on this grid, or a value is not.
        """
        if batch.factors.shape[1] != len(self.factors):
            raise DataError(
                f"{self.name}.counterfactual: the batch has {batch.factors.shape[1]} factors, expected {self.factors}."
            )
        given = [self._code(j, column) for j, column in enumerate(batch.factors.double().numpy().T)]
        return self._moved(np.stack(given, axis=1), values) if values else batch

    def pairs(self, factor: str, n: int, seed: int = 0, propagate: bool = True) -> Pairs:
        """n pairs of images that differ in one factor and agree exactly in all others, oriented low -> high.

        One image of each pair is one of `sample(n, seed)`; the other has another value of the factor, at least one standard
        deviation away. Pairs that agree in all other factors are one group.

        Args:
            factor: the factor that differs.
            n: number of pairs, at most the number of images.
            seed: fixes the pairs; the same seed gives pairs of the same images in every factor.
            propagate: recorded; it makes no difference, since no factor causes another.

        Raises:
            DataError: if the factor is unknown or takes one value only.
        """
        column = self._check_factor(factor)
        levels = self._levels[column]
        if len(levels) < 2:
            raise DataError(f"{self.name}.pairs: {factor!r} takes one value only, so no pair can differ in it.")
        one = self._codes[self._rows(n, seed)]
        other = one.copy()
        other[:, column] = self._far_from(one[:, column], column, np.random.default_rng([seed, 1]))
        low, high = np.where((one < other).any(1)[:, None], (one, other), (other, one))
        rest = np.delete(low, column, axis=1)
        base, source = self._batch(low), self._batch(high)
        return Pairs(
            base.images,
            source.images,
            factor=factor,
            groups=torch.from_numpy(np.unique(rest, axis=0, return_inverse=True)[1].ravel()),
            base_factors=base.factors,
            source_factors=source.factors,
            factor_names=self.factors,
            propagate=propagate,
            record=self._record(n, seed),
        )

    def pairs_by_factor(self, n: int, seed: int = 0, propagate: bool = False) -> dict[str, Pairs]:
        """Pairs in every factor that takes more than one value, of the same n images."""
        return {f: self.pairs(f, n, seed, propagate) for f, size in self.sizes.items() if size > 1}

    def doses(
        self,
        factor: str,
        n: int = 64,
        values: Sequence[float] | None = None,
        seed: int = 0,
        propagate: bool = True,
    ) -> Doses:
        """The images of `sample(n, seed)`, each with every one of some values of a factor (see `Dataset.doses`).

        Raises:
            DataError: an unknown factor, one that takes one value only, or values that are not on the grid.
        """
        return Dataset.doses(self, factor, n, values, seed, propagate)

    def _far_from(self, codes: np.ndarray, column: int, rng: np.random.Generator) -> np.ndarray:
        levels, sd = self._levels[column], self._sd[column]
        apart = np.abs(levels[codes][:, None] - levels[None])
        enough = apart >= np.minimum(CONTRAST * sd, apart.max(axis=1, keepdims=True))
        return np.where(enough, rng.random(enough.shape), -1.0).argmax(axis=1)

    def _moved(self, codes: np.ndarray, values: Mapping[str, float | np.ndarray | Tensor]) -> Batch:
        codes = codes.copy()
        for factor, value in values.items():
            column = self._check_factor(factor)
            array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
            if array.dtype.kind not in "fiub" or array.shape not in ((), (len(codes),)):
                raise DataError(
                    f"{self.name}: {factor} is set to {array.dtype} values of shape {array.shape}, expected one number, or {len(codes)}."
                )
            codes[:, column] = self._code(column, array.astype(np.float64))
        return self._batch(codes)

    def _code(self, column: int, values: np.ndarray) -> np.ndarray:
        """Which of a factor's values each number is."""
        levels = self._levels[column]
        nearest = np.abs(levels - values[..., None]).argmin(-1)
        off = ~(np.abs(levels[nearest] - values) <= _SAME * max(np.ptp(levels), np.abs(levels).max()))
        if off.any():
            raise DataError(
                f"{self.name}: {self.factors[column]} = {np.atleast_1d(values)[np.atleast_1d(off)][0]:.6g} is not on the grid; its "
                f"values are {', '.join(f'{level:.6g}' for level in levels[:8])}{', ...' if len(levels) > 8 else ''}."
            )
        return nearest

    def _batch(self, codes: np.ndarray) -> Batch:
        rows = self._row_of[tuple(codes.T)]
        return Batch(self._floats(rows), torch.from_numpy(self._table[rows].astype(np.float32)), None)


def product(values: Mapping[str, Sequence[float]]) -> Float[np.ndarray, "n f"]:
    """The table of a grid in row-major order, the last factor fastest.

    Example:
        >>> product({"a": [0, 1], "b": [5, 6]}).tolist()
        [[0.0, 5.0], [0.0, 6.0], [1.0, 5.0], [1.0, 6.0]]
    """
    axes = np.meshgrid(*(np.asarray(v, dtype=np.float64) for v in values.values()), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, len(values))
