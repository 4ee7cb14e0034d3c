"""The bootstrap-t interval of means over pairs, clustered by base or by base and source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.stats.clusters import Clusters, Design, checked_design, slabs
from nnsight_vae.stats.resampling import design_weights
from nnsight_vae.stats.standard_errors import both_ways, check_level, mean_and_variance, t_interval

_FEWEST = 5  # clusters; with fewer, too few different resamples exist to tell a 95 % quantile
_NONE = 1e-10  # a resample whose variance is this small beside the sample's has drawn the same cluster only

_Ids = Shaped[np.ndarray, " pair"] | None
_Variance = Callable[[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, ...]], np.ndarray]


def bootstrap_t_interval(
    values: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Bootstrap-t interval of the mean over pairs: Student's t with quantiles taken from resamples instead of a table.

    In each resample t* = (mean* - mean) / sqrt(V*), V the cluster-robust variance of `standard_errors`; the interval is
    [mean - t*_{1-a/2} sqrt(V), mean - t*_{a/2} sqrt(V)]. It follows the skewness that the t interval ignores. A resample
    without variance counts as the most extreme of the others; with fewer than 5 clusters it is the t interval.

    Args:
        values: one number per cell and pair; any leading shape.
        groups: id of the base of each pair; None: pairs are independent.
        source_groups: id of the source of each pair, where sources are reused: both are resampled.
        level: coverage aimed at, in (0, 1).
        n_boot: resamples.
        seed: of the resampling.

    Returns:
        Lower and upper bounds, each of the cells' shape. A cell that is 0 for every pair gets [0, 0].

    Raises:
        DataError: fewer than two clusters, or `level` outside (0, 1).

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 12.5; clustered as in Cameron, Gelbach &
        Miller 2008, Rev. Econ. Stat. 90, 414-427; resampled both ways as in Owen 2007.

    Example:
        >>> low, high = bootstrap_t_interval(np.random.default_rng(0).exponential(1.0, (3, 30)))
        >>> bool((low < 1.0).all() and (high > 1.0).all())
        True
    """
    check_level(level)
    design = checked_design(values, groups, source_groups)
    if design.n_clusters < _FEWEST:
        return t_interval(values, groups, source_groups, level=level)
    one_way = len(design.ways) == 1
    variance = _one_way(design) if one_way else _two_ways(design)
    bounds = []
    arrays = 4 if one_way else 2 * max(map(len, design.ways))  # of [cell, boot] that are alive at a time, about
    for sums in slabs(values, design.atoms, columns=n_boot * arrays):
        mean, deviations, sampled = mean_and_variance(sums, design)
        roots = np.empty((len(sums), n_boot))
        done = 0
        for atoms, drawn in design_weights(design, n_boot, seed):
            n_pairs = atoms @ design.atoms.sizes
            shift = deviations @ atoms.T / n_pairs
            resampled = variance(deviations, shift, atoms, drawn) / n_pairs**2
            roots[:, done : done + len(atoms)] = _roots(shift, resampled, _NONE * sampled[:, None])
            done += len(atoms)
        low, high = _quantiles(roots, level) * np.sqrt(sampled)
        bounds.append(np.stack([mean - high, mean - low]))
    low, high = np.concatenate(bounds, axis=1) if bounds else np.zeros((2, 0))
    return low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1])


def _roots(shift: np.ndarray, resampled: np.ndarray, least: np.ndarray) -> Float[np.ndarray, "cell boot"]:
    """t* of each resample; infinite where it has no variance."""
    varies = resampled > least
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.where(varies, shift / np.sqrt(resampled), np.copysign(np.inf, shift))
    roots[~varies & (shift == 0)] = 0.0
    return roots


def _quantiles(roots: Float[np.ndarray, "cell boot"], level: float) -> Float[np.ndarray, "2 cell"]:
    """Of the roots, with the infinite ones as large as the largest finite one."""
    sizes = np.abs(roots)
    largest = np.where(np.isfinite(sizes), sizes, 0.0).max(axis=1, keepdims=True)
    tail = (1 - level) / 2
    return np.quantile(np.clip(roots, -largest, largest), [tail, 1 - tail], axis=1)


def _squares(
    deviations: np.ndarray, shift: np.ndarray, atoms: np.ndarray, sizes: np.ndarray
) -> Float[np.ndarray, "cell boot"]:
    """Sum over drawn atoms of (deviation from the resample's mean)^2, expanded into three matrix products."""
    square, cross = deviations**2 @ atoms.T, (deviations * sizes) @ atoms.T
    return square - 2 * shift * cross + shift**2 * (atoms @ sizes**2)


def _one_way(design: Design) -> _Variance:
    sizes, n = design.atoms.sizes.astype(np.float64), len(design.atoms)

    def variance(
        deviations: np.ndarray, shift: np.ndarray, atoms: np.ndarray, drawn: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        return n / (n - 1) * _squares(deviations, shift, atoms, sizes)

    return variance


def _two_ways(design: Design) -> _Variance:
    """Clustered both ways: a base drawn w times is w clusters, whose pairs are those of the drawn sources."""
    from scipy.sparse import csr_array

    sizes = design.atoms.sizes.astype(np.float64)

    def gathered(cells: np.ndarray, way: Clusters, other: Clusters, drawn: np.ndarray) -> np.ndarray:
        """Sums over each cluster of one way, its atoms weighted by the draws of the other, [cell, cluster, boot]."""
        starts = np.arange(len(cells))[:, None] * len(way.order) + way.starts
        table = csr_array(
            (
                cells[:, way.order].ravel(),
                np.tile(other.labels[way.order], len(cells)),
                np.append(starts.ravel(), cells.size),
            ),
            shape=(len(cells) * len(way), len(other)),
        )
        return (table @ drawn.T).reshape(len(cells), len(way), len(drawn))

    def one(deviations: np.ndarray, shift: np.ndarray, drawn: tuple[np.ndarray, ...], i: int) -> np.ndarray:
        way, other, weights = design.ways[i], design.ways[1 - i], drawn[1 - i]
        sums = gathered(deviations, way, other, weights)
        sums -= shift[:, None] * gathered(sizes[None], way, other, weights)
        np.square(sums, out=sums)
        sums *= drawn[i].T
        return len(way) / (len(way) - 1) * sums.sum(axis=1)

    def variance(
        deviations: np.ndarray, shift: np.ndarray, atoms: np.ndarray, drawn: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        n = np.maximum(atoms.sum(axis=1), 2.0)
        atom = n / (n - 1) * _squares(deviations, shift, atoms, sizes)
        return both_ways(one(deviations, shift, drawn, 0), one(deviations, shift, drawn, 1), atom)

    return variance
