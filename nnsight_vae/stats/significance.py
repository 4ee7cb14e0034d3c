"""Tests of means over pairs that share base images: sign flips of whole clusters, and control of many tests at once.

Arrays in, arrays out, shaped as in `statistics`: `values` [..., pair], one cluster id per pair in `groups`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from nnsight_vae.stats.clusters import Clusters, slabs, two_or_more

_FLIPS = 256  # sign patterns per block: fixed, so that every slab of cells sees the very same patterns
_JOINT = 4_000_000  # elements of one work array of `joint_pvalues` (32 MB as float64)
_TIE = 1e-12  # relative slack for "at least as extreme", so that rounding cannot make an equal sum look smaller


def permutations_needed(n_tests: int, q: float) -> int:
    """Sign flips without which Benjamini-Hochberg cannot reject a lone true effect among `n_tests`.

    A Monte-Carlo p-value is at least 1 / (R + 1) and the smallest of m p-values is held against q / m: R >= m / q - 1.

    Example:
        >>> permutations_needed(180, 0.05)
        3599
    """
    return int(np.ceil(n_tests / q - 1e-9)) - 1


def smallest_pvalue(n_clusters: int, n_perm: int) -> float:
    """The least p-value that `sign_flip_pvalues` can return with these numbers.

    Example:
        >>> smallest_pvalue(5, 1999), smallest_pvalue(100, 1999)
        (0.0625, 0.0005)
    """
    return 2.0 ** (1 - n_clusters) if _enumerable(n_clusters, n_perm) else 1 / (n_perm + 1)


def sign_flip_pvalues(
    values: Float[np.ndarray, "*cells pair"],
    groups: Shaped[np.ndarray, " pair"] | None = None,
    *,
    min_effect: float = 0.0,
    n_perm: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, "*cells"]:
    """Two-sided p-values of "this effect is symmetric about 0", by flipping the sign of whole clusters.

    The statistic is |mean over pairs|. For the null hypothesis |mean| <= d, every pair's effect is first moved towards 0 by
    d, to the nearest mean that the hypothesis allows; p is 1 where the mean is within it. With few clusters, 2^(C-1) <= n_perm + 1, all sign patterns are enumerated and
    p is exact, at least 2^(1-C); otherwise `n_perm` patterns are drawn and p = (1 + #as extreme) / (1 + n_perm), which
    is valid and at least 1 / (1 + n_perm). The same flips serve every cell.

    Args:
        values: one number per cell and pair; any leading shape.
        groups: cluster id of each pair.
        min_effect: d, the largest |mean| of the null hypothesis.
        n_perm: sign patterns drawn.
        seed: of the drawing.

    Returns:
        One p-value per cell; 1 for a cell that is 0 for every pair.

    Raises:
        DataError: fewer than two clusters.

    Source: Phipson & Smyth 2010 (the +1); Winkler et al. 2014 (sign flips of exchangeability blocks).

    Example:
        >>> sign_flip_pvalues(np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
        array([0.125, 1.   ])
    """
    clusters = two_or_more(values, groups)
    counts = []
    for all_sums in slabs(values, clusters, columns=_FLIPS):
        sums, within = _shifted(all_sums, clusters, min_effect)
        sums[within] = 0.0  # as extreme under every flip: p = 1
        observed = np.abs(sums.sum(axis=1)) - _TIE * np.abs(sums).sum(axis=1)
        as_extreme = np.zeros(len(sums), dtype=np.int64)
        for signs in _sign_blocks(len(clusters), n_perm, seed):
            as_extreme += (np.abs(signs @ sums.T) >= observed).sum(axis=0)
        counts.append(as_extreme)
    exceedances = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
    return _as_pvalue(exceedances, len(clusters), n_perm).reshape(values.shape[:-1])


def max_t_pvalues(
    values: Float[np.ndarray, "*cells pair"],
    groups: Shaped[np.ndarray, " pair"] | None = None,
    *,
    min_effect: float = 0.0,
    n_perm: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, "*cells"]:
    """Family-wise p-values: each effect against the largest of all effects under the same sign flips (Westfall-Young).

    The statistic |sum| / sqrt(sum of squares) over cluster sums is a monotone function of |t| whose denominator no flip
    changes, so cells of different scale share one maximum. One pass of flips suffices however many cells there are.

    Args:
        values: one number per cell and pair.
        groups: cluster id of each pair.
        min_effect: the largest |mean| of the null hypothesis, as in `sign_flip_pvalues`.
        n_perm: sign patterns drawn; all are enumerated when clusters are few.
        seed: of the drawing.

    Returns:
        One p-value per cell, already adjusted for all cells.

    Raises:
        DataError: fewer than two clusters.

    Source: Westfall & Young 1993, single-step max-T.

    Example:
        >>> values = np.vstack([np.linspace(1, 2, 12), np.tile([1.0, -1.0], 6)])
        >>> max_t_pvalues(values).round(4)
        array([0.001, 1.   ])
    """
    clusters = two_or_more(values, groups)
    observed, maxima = [], None
    for all_sums in slabs(values, clusters, columns=_FLIPS):
        sums, within = _shifted(all_sums, clusters, min_effect)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        scaled = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
        # What is within the hypothesis gets p = 1 but keeps its place in the maximum, which is over the whole family.
        observed.append(np.where(within, 0.0, np.abs(scaled.sum(axis=1))))
        largest = [np.abs(signs @ scaled.T).max(axis=1) for signs in _sign_blocks(len(clusters), n_perm, seed)]
        stacked = np.concatenate(largest)
        maxima = stacked if maxima is None else np.maximum(maxima, stacked)
    if maxima is None:
        return np.zeros(values.shape[:-1])
    ranked = np.sort(maxima)
    exceedances = len(ranked) - np.searchsorted(ranked, np.concatenate(observed) * (1 - _TIE) - _TIE)
    return _as_pvalue(exceedances, len(clusters), n_perm).reshape(values.shape[:-1])


def joint_pvalues(
    values: Float[np.ndarray, "unit cell pair"],
    groups: Shaped[np.ndarray, " pair"] | None = None,
    *,
    min_effect: float = 0.0,
    n_perm: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, " unit"]:
    """For each unit, the p-value of "none of its cells has an effect": its largest statistic against that under sign flips.

    The statistic is that of `max_t_pvalues`, whose smallest p-value over a unit's cells this is; the flips serve all units.

    Args:
        values: one number per unit, cell and pair.
        groups: cluster id of each pair.
        min_effect: the largest |mean| of the null hypothesis, as in `sign_flip_pvalues`.
        n_perm: sign patterns drawn; all are enumerated when clusters are few.
        seed: of the drawing.

    Returns:
        One p-value per unit; 1 for a unit that is 0 in every cell and pair.

    Raises:
        DataError: fewer than two clusters.

    Source: Westfall & Young 1993, the global hypothesis of single-step max-T.

    Example:
        >>> values = np.stack([np.stack([np.linspace(1, 2, 12), np.tile([1.0, -1.0], 6)]), np.zeros((2, 12))])
        >>> joint_pvalues(values).round(4)
        array([0.001, 1.   ])
    """
    clusters = two_or_more(values, groups)
    n_units, n_cells, n_pairs = values.shape
    step = max(1, _JOINT // (n_cells * max(n_pairs, _FLIPS)))
    counts = []
    for start in range(0, n_units, step):
        all_sums = clusters.sums(values[start : start + step].reshape(-1, n_pairs))
        sums, within = _shifted(all_sums, clusters, min_effect)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        scaled = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
        statistic = np.where(within, 0.0, np.abs(scaled.sum(axis=1)))
        observed = statistic.reshape(-1, n_cells).max(axis=1) * (1 - _TIE) - _TIE
        as_extreme = np.zeros(len(observed), dtype=np.int64)
        for signs in _sign_blocks(len(clusters), n_perm, seed):
            largest = np.abs(signs @ scaled.T).reshape(len(signs), -1, n_cells).max(axis=2)
            as_extreme += (largest >= observed).sum(axis=0)
        counts.append(as_extreme)
    exceedances = np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
    return _as_pvalue(exceedances, len(clusters), n_perm)


def benjamini_hochberg(pvalues: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """Adjusted p-values (q-values): rejecting q-value <= q keeps the expected share of false discoveries at or below q.

    The family is every cell of the array.

    Source: Benjamini & Hochberg 1995, by `scipy.stats.false_discovery_control`.

    Example:
        >>> benjamini_hochberg(np.array([[0.01, 0.5], [0.02, 0.9]]))
        array([[0.04      , 0.66666667],
               [0.04      , 0.9       ]])
    """
    return _false_discovery(pvalues, "bh")


def benjamini_yekutieli(pvalues: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """As `benjamini_hochberg`, whatever the dependence between tests: every value times 1 + 1/2 + ... + 1/m, m tests.

    Benjamini-Hochberg is proved for independent or positively dependent tests; effects of one network's units on one set of
    pairs can be dependent in any way, though in simulations it holds there too.

    Source: Benjamini & Yekutieli 2001, by `scipy.stats.false_discovery_control`.

    Example:
        >>> benjamini_yekutieli(np.array([0.01, 0.5])).tolist()
        [0.03, 0.75]
    """
    return _false_discovery(pvalues, "by")


def holm(pvalues: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """Family-wise adjusted p-values whatever the dependence: the i-th smallest of m times m - i + 1, made monotone.

    Source: Holm 1979, Scand. J. Stat. 6, 65-70.

    Example:
        >>> holm(np.array([0.02, 0.01, 0.9])).tolist()
        [0.04, 0.03, 0.9]
    """
    flat = pvalues.ravel()
    order = np.argsort(flat)
    adjusted = np.empty(flat.size)
    adjusted[order] = np.maximum.accumulate(flat[order] * np.arange(flat.size, 0, -1))
    return np.minimum(adjusted, 1.0).reshape(pvalues.shape)


def _false_discovery(pvalues: Float[np.ndarray, "*cells"], method: str) -> Float[np.ndarray, "*cells"]:
    if pvalues.size == 0:
        return pvalues.copy()
    from scipy.stats import false_discovery_control

    return false_discovery_control(pvalues, axis=None, method=method).reshape(pvalues.shape)


def _shifted(
    sums: Float[np.ndarray, "cell cluster"], clusters: Clusters, min_effect: float
) -> tuple[Float[np.ndarray, "cell cluster"], Bool[np.ndarray, " cell"]]:
    """Cluster sums of effects moved towards 0 by `min_effect`, and which means were within it."""
    mean = sums.sum(axis=1) / clusters.sizes.sum()
    return sums - min_effect * np.sign(mean)[:, None] * clusters.sizes, np.abs(mean) <= min_effect


def _enumerable(n_clusters: int, n_perm: int) -> bool:
    return 2 ** (n_clusters - 1) <= n_perm + 1


def _sign_blocks(n_clusters: int, n_perm: int, seed: int) -> Iterator[Float[np.ndarray, "rows cluster"]]:
    """Sign patterns, all of them (up to a global flip, which |mean| ignores) when they are few, else drawn."""
    if _enumerable(n_clusters, n_perm):
        codes = np.arange(2 ** (n_clusters - 1))[:, None]
        flipped: Bool[np.ndarray, "code cluster"] = (codes >> np.arange(n_clusters)) & 1 == 1
        for start in range(0, len(codes), _FLIPS):
            yield np.where(flipped[start : start + _FLIPS], -1.0, 1.0)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, n_perm, _FLIPS):
        n_rows = min(_FLIPS, n_perm - start)
        yield rng.integers(2, size=(n_rows, n_clusters), dtype=np.int8) * 2.0 - 1.0


def _as_pvalue(exceedances: Int[np.ndarray, " cell"], n_clusters: int, n_perm: int) -> Float[np.ndarray, " cell"]:
    if _enumerable(n_clusters, n_perm):  # the identity is among the patterns
        return exceedances / 2.0 ** (n_clusters - 1)
    return (1 + exceedances) / (1 + n_perm)
