"""Tests of what a circuit should be, on arrays: no model in sight.

Pairs that share an image are not independent, and none of these tests is valid for them; `independent` first makes one number
of all pairs that hang together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Clusters

_PERMUTED = 4_000_000  # elements of one work array of `hsic_pvalue`

_Ids = Shaped[np.ndarray, " pair"] | None


class Sign(NamedTuple):
    """Outcome of `equivalence`.

    Attributes:
        share: of the independent pairs that differ, those in which the circuit is above the model; None where none differs.
        low, high: exact (Clopper-Pearson) interval of the probability it estimates.
        p: of the null hypothesis |P - 1/2| < epsilon.
        n: how many differ.
    """

    share: float | None
    low: float
    high: float
    p: float
    n: int


def independent(
    values: Float[np.ndarray, "*cells pair"], groups: _Ids = None, source_groups: _Ids = None
) -> Float[np.ndarray, "*cells cluster"]:
    """Means over pairs that hang together through shared bases or sources; those of different clusters share nothing.

    Example:
        >>> independent(np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])).tolist()
        [3.0, 9.0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = values.shape[-1]
    ids = [np.arange(n)] + [np.unique(g, return_inverse=True)[1] for g in (groups, source_groups) if g is not None]
    starts = np.cumsum([0, *(int(g.max()) + 1 for g in ids)])
    ends = [(ids[0], g + starts[i]) for i, g in enumerate(ids) if i]
    rows, columns = (np.concatenate(side) for side in zip(*ends, strict=True)) if ends else (ids[0], ids[0])
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(starts[-1], starts[-1]))
    labels = np.unique(connected_components(links, directed=False)[1][:n], return_inverse=True)[1]
    clusters = Clusters.of(n, labels)
    sums = clusters.sums(values.reshape(-1, n)).reshape(*values.shape[:-1], len(clusters))
    return sums / clusters.sizes


def equivalence(differences: Float[np.ndarray, " n"], epsilon: float = 0.1, level: float = 0.95) -> Sign:
    """Are circuit and model equally often above each other? Exact test of H0: |P(difference > 0) - 1/2| < epsilon.

    p = P(|K/n - 1/2| >= |k/n - 1/2|), K ~ Binomial(n, 1/2 + epsilon), k of n differences being positive: the largest over the
    null hypothesis. Differences of 0 say nothing about which is above and are left out (P is given that they differ).
    Not to reject is no proof of equivalence; an interval of P within 1/2 +- epsilon is.

    Args:
        differences: m(C) - m(M) of independent pairs; 0 where it may be rounding.
        epsilon: in [0, 1/2).
        level: of the interval.

    Raises:
        DataError: epsilon out of range.

    Source: Shi et al. 2024 (arXiv 2410.13032), equivalence test. Their code puts the mean difference where the fraction of
        positive differences belongs; this does not.

    Example:
        >>> found = equivalence(np.array([0.1, -0.2, 0.3, -0.1, 0.2, -0.3]))
        >>> found.share, round(found.p, 3)
        (0.5, 1.0)
    """
    from scipy.stats import binom, binomtest

    if not 0 <= epsilon < 0.5:
        raise DataError(f"epsilon={epsilon}: expected a distance from 1/2 in [0, 1/2).")
    n, k = int((differences != 0).sum()), int((differences > 0).sum())
    if n == 0:
        return Sign(None, 0.0, 1.0, 1.0, 0)
    counts = np.arange(n + 1)
    extreme = np.abs(2 * counts - n) >= abs(2 * k - n)
    interval = binomtest(k, n).proportion_ci(level)
    p = float(binom.pmf(counts[extreme], n, 0.5 + epsilon).sum())
    return Sign(k / n, float(interval.low), float(interval.high), min(p, 1.0), n)


def hsic_pvalue(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], *, n_perm: int = 999, seed: int = 0
) -> tuple[float, float]:
    """Hilbert-Schmidt independence criterion of two samples, and its permutation p-value of "x and y are independent".

    HSIC = tr(K H L H) / n^2 with Gaussian kernels K of x and L of y, each as wide as the median distance between its own
    points, and H = I - 1/n. p = (1 + #{HSIC of permuted y >= HSIC}) / (1 + n_perm), valid at any n.

    Args:
        x: one number per independent pair.
        y: the same.
        n_perm: permutations.
        seed: of the permutations.

    Returns: the statistic, and p: 1 where either is constant.

    Raises:
        DataError: x and y of different length.

    Source: Gretton et al. 2007, A kernel statistical test of independence; the +1: Phipson & Smyth 2010. Shi et al. 2024
        share one width between x and y and leave out the +1.

    Example:
        >>> x = np.linspace(-1, 1, 60)
        >>> hsic_pvalue(x, x**2)[1], hsic_pvalue(x, np.ones(60))[1]
        (0.001, 1.0)
    """
    if x.shape != y.shape or x.ndim != 1:
        raise DataError(f"x {x.shape} and y {y.shape}: expected one number of each per pair.")
    n, (kernel, other) = len(x), (_kernel(x), _kernel(y))
    if kernel is None or other is None:
        return 0.0, 1.0
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    observed = float((centred * other).sum())
    rng, as_extreme = np.random.default_rng(seed), 0
    step = max(1, _PERMUTED // n**2)
    for start in range(0, n_perm, step):
        orders = rng.permuted(np.tile(np.arange(n), (min(step, n_perm - start), 1)), axis=1)
        permuted = other[orders[:, :, None], orders[:, None, :]]
        as_extreme += int((np.einsum("ij,pij->p", centred, permuted) >= observed * (1 - 1e-12)).sum())
    return observed / n**2, (1 + as_extreme) / (1 + n_perm)


def _kernel(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"] | None:
    distances = np.abs(x[:, None] - x[None])
    apart = distances[np.triu_indices(len(x), 1)]
    if not apart.any():
        return None
    width = np.median(apart) or np.median(apart[apart > 0])
    return np.exp(-(distances**2) / (2 * width**2))


def wins_pvalue(wins: int, n: int, quantile: float, *, more: bool) -> float:
    """Exact p-value of "the chance of winning is at most `quantile`", or with more=False "... at least `quantile`".

    Args:
        wins: how many of n independent random rivals are beaten, ties not counted.
        n: rivals.
        quantile: in (0, 1).
        more: the alternative: winning more often than that, or less.

    Source: Shi et al. 2024 (arXiv 2410.13032), sufficiency, partial necessity and minimality tests.

    Example:
        >>> round(wins_pvalue(100, 100, 0.9, more=True), 6), round(wins_pvalue(50, 100, 0.9, more=True), 6)
        (2.7e-05, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, n, quantile, alternative="greater" if more else "less").pvalue)
