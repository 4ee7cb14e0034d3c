"""`Arrays`: a fixed set of images with measured or annotated factors; pairs are found by matching."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from .._regressor import Progress
from ..errors import DataError, NnsightVaeWarning
from ..pairs import Pairs
from .base import Batch, Dataset, as_images, check_count

if TYPE_CHECKING:
    import networkx as nx

    from ..readouts import Factors

_CONTRAST = 1.0  # least difference of a pair in its factor, in standard deviations
_POOR_MATCH = 0.5  # a pair set is cautioned about when another factor moves by more than this share of its own
_CHANNELS = (1, 3)
_PASSES = 50  # over the images when a readout is fitted, within 500 to 3000 steps of 64 images


def from_arrays(
    images: np.ndarray | Tensor,
    factors: np.ndarray | Tensor,
    graph: nx.DiGraph | None = None,
    names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
) -> Arrays:
    """A dataset from your own images and factors.

    Args:
        images: uint8, or float in [0, 1]; shape (n, c, h, w), (n, h, w, c) or (n, h, w), with 1 or 3 channels.
        factors: one row per image, one column per factor, in any units.
        graph: the true causal graph over the factors, if it is known; its nodes are the names.
        names: names of the factors; None: "factor_0", "factor_1", ...
        name: what the dataset is called in reports.

    Raises:
        DataError: if shapes, types or values are not as above, the names do not fit, or the graph is not a DAG over them.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> data = from_arrays(rng.random((60, 8, 8)), rng.normal(size=(60, 2)), names=["size", "tilt"])
        >>> data
        <arrays: 60 images, shape (1, 8, 8), factors size, tilt>
    """
    pixels = _as_pixels(images)
    table = _as_table(factors, len(pixels))
    names = tuple(f"factor_{j}" for j in range(table.shape[1])) if names is None else tuple(map(str, names))
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise DataError(
            f"from_arrays: names {names} must be {table.shape[1]} different names, one per column of factors."
        )
    if graph is not None:
        _check_graph(graph, names)
    return Arrays(name, pixels, table, names, graph)


class Arrays(Dataset):
    """Images kept in memory, with factors; made by `from_arrays`, `from_path` and `load("digits")`.

    There is no SCM behind them, so `do` and `counterfactual` are refused and pairs are matched from real images.

    Args:
        name: what it is called in reports.
        images: uint8, or float32 in [0, 1], as `from_arrays` prepares them.
        table: the factors in their own units, one row per image.
        factors: their names.
        graph: the causal graph over them, or None.
    """

    def __init__(
        self,
        name: str,
        images: Shaped[Tensor, "n c h w"],
        table: Float[np.ndarray, "n f"],
        factors: tuple[str, ...],
        graph: nx.DiGraph | None,
    ) -> None:
        self.name, self.factors = name, factors
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

        A matched pair is not a counterfactual: noise is not shared, and the other factors only nearly agree
        (`match_quality` says how nearly). Partners differ by at least one standard deviation of the factor and are
        nearest in the matched factors, in standard deviations. No image is used twice, so pairs are independent.

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
        matched = self._matched_columns(factor, propagate)
        low, high = _match(self._table / self._sd, column, matched, n, np.random.default_rng(seed))
        if len(low) < n:
            raise DataError(
                f"{self.name}.pairs: only {len(low)} pairs differ by at least {_CONTRAST:g} standard deviation in "
                f"{factor!r} without using an image twice; asked for n = {n}."
            )
        pairs = Pairs(
            self._floats(low),
            self._floats(high),
            factor=factor,
            groups=torch.from_numpy(low),
            base_factors=torch.from_numpy(self._table[low].astype(np.float32)),
            source_factors=torch.from_numpy(self._table[high].astype(np.float32)),
            factor_names=self.factors,
            propagate=None if self._graph is None else propagate,
        )
        self._caution(pairs, matched)
        return pairs

    def match_quality(self, pairs: Pairs) -> dict[str, float]:
        """How far base and source are apart in each factor: root mean square, in standard deviations of the factor.

        Two random images are 1.41 apart; a perfect match is 0 apart in every factor but its own.

        Args:
            pairs: pairs of this dataset.

        Raises:
            DataError: if the pairs do not carry this dataset's factors.
        """
        if pairs.factor_names != self.factors or pairs.base_factors is None or pairs.source_factors is None:
            raise DataError(
                f"{self.name}.match_quality: the pairs carry factors {pairs.factor_names}, not {self.factors}."
            )
        apart = (pairs.source_factors - pairs.base_factors).double().numpy() / self._sd
        return dict(zip(self.factors, np.sqrt((apart**2).mean(0)).tolist(), strict=True))

    def _caution(self, pairs: Pairs, matched: list[int]) -> None:
        quality = self.match_quality(pairs)
        own = quality[str(pairs.factor)]
        poor = [self.factors[j] for j in matched if quality[self.factors[j]] > _POOR_MATCH * own]
        if poor:
            moved = ", ".join(f"{name} {quality[name]:.2f}" for name in poor)
            message = (
                f"{self.name}: pairs in {pairs.factor!r} differ by {own:.2f} sd in it, but also in {moved} sd; "
                "their effects are not this factor's alone. Ask for fewer pairs or more images."
            )
            warnings.warn(message, NnsightVaeWarning, stacklevel=3)

    def _matched_columns(self, factor: str, propagate: bool) -> list[int]:
        import networkx as nx

        follows = nx.descendants(self._graph, factor) if self._graph is not None and propagate else set()
        return [j for j, name in enumerate(self.factors) if name != factor and name not in follows]

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
        return Factors.fit(self._images, table, names, steps=steps, allow_unreliable=True, progress=progress)


def _match(
    scaled: np.ndarray, column: int, matched: list[int], n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Up to n pairs of rows, (low, high) in `column`: greedy nearest neighbours without reuse, in random order."""
    value, rest = scaled[:, column], scaled[:, matched]
    free = np.ones(len(scaled), bool)
    low: list[int] = []
    high: list[int] = []
    for row in rng.permutation(len(scaled)):
        if len(low) == n:
            break
        candidates = np.flatnonzero(free & (np.abs(value - value[row]) >= _CONTRAST))
        if not free[row] or not len(candidates):
            continue
        partner = candidates[((rest[candidates] - rest[row]) ** 2).sum(1).argmin()]
        free[[row, partner]] = False
        first, second = (row, partner) if value[row] < value[partner] else (partner, row)
        low.append(first)
        high.append(second)
    return np.array(low, dtype=np.int64), np.array(high, dtype=np.int64)


def _as_pixels(images: np.ndarray | Tensor) -> Tensor:
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"from_arrays: images are {array.dtype}, expected uint8, or float in [0, 1].")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        array = _channels_first(array)
    else:
        raise DataError(
            f"from_arrays: images have shape {array.shape}, expected (n, c, h, w), (n, h, w, c) or (n, h, w)."
        )
    if 0 in array.shape:
        raise DataError(f"from_arrays: images have shape {array.shape}: there is nothing in them.")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError("from_arrays: images hold NaN or infinite values.")
        if array.min() < 0 or array.max() > 1:
            raise DataError(
                f"from_arrays: float images span [{array.min():.3g}, {array.max():.3g}], expected [0, 1]. "
                "Rescale them, or give uint8."
            )
    return torch.from_numpy(np.ascontiguousarray(array))


def _channels_first(array: np.ndarray) -> np.ndarray:
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first == last:
        why = "both ends could be the channels" if first else "neither end is 1 or 3 channels"
        raise DataError(f"from_arrays: images have shape {array.shape}: {why}; expected (n, c, h, w) or (n, h, w, c).")
    return array if first else array.transpose(0, 3, 1, 2)


def _as_table(factors: np.ndarray | Tensor, n: int) -> np.ndarray:
    array = factors.detach().cpu().numpy() if isinstance(factors, Tensor) else np.asarray(factors)
    if array.dtype.kind not in "fiub":
        raise DataError(f"from_arrays: factors are {array.dtype}, expected numbers. Code categories as integers.")
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] == 0:
        raise DataError(f"from_arrays: factors have shape {array.shape}, expected ({n}, f): one row per image.")
    if not np.isfinite(array).all():
        raise DataError("from_arrays: factors hold NaN or infinite values; drop those images.")
    return array.astype(np.float64)


def _check_graph(graph: nx.DiGraph, names: tuple[str, ...]) -> None:
    import networkx as nx

    if set(graph.nodes) != set(names):
        raise DataError(
            f"from_arrays: the graph's nodes are {sorted(map(str, graph.nodes))}, expected the names {names}."
        )
    if not graph.is_directed() or not nx.is_directed_acyclic_graph(graph):
        raise DataError("from_arrays: the graph must be a directed acyclic networkx.DiGraph.")
