"""Intervals of means over pairs that share base images: arrays in, arrays out, no model in sight.

Every function takes `values` of shape [..., pair], `groups`, one id per pair (None: every pair is its own cluster), and
`source_groups` where sources are reused too. Pairs that share an image are not independent: clusters are resampled whole. The
statistic is always the plain mean over pairs, i.e. (sum of cluster sums) / (sum of cluster sizes).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Clusters, Design, checked_design, slabs, two_or_more
from nnsight_vae.stats.resampling import design_weights, resample_weights
from nnsight_vae.stats.standard_errors import check_level, t_interval
from nnsight_vae.stats.studentised import bootstrap_t_interval

__all__ = [
    "Clusters",
    "IntervalMethod",
    "bootstrap_interval",
    "bootstrap_ratio_interval",
    "mean_interval",
    "resample_weights",
    "two_or_more",
]

IntervalMethod = Literal["bootstrap-t", "t", "percentile", "bca"]

_Ids = Shaped[np.ndarray, " pair"] | None


def mean_interval(
    values: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    method: IntervalMethod = "bootstrap-t",
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Interval of the mean over pairs, clustered by base, or by base and source.

    Simulated coverage of the 95 % interval: C equal clusters of Gaussian | exponential effects; C bases crossed with C sources,
    effects being sums of Gaussians | products of exponentials of the base, the source and the pair:

    ```
                     C = 5        10          20          40       5 x 5      12 x 12     20 x 20
    bootstrap-t    .95 | .93   .95 | .94   .94 | .94   .95 | .94  .95 | .93  .95 | .94   .95 | .94
    t              .95 | .88   .95 | .90   .95 | .92   .95 | .93  .97 | .79  .95 | .85   .95 | .89
    percentile     .84 | .79   .90 | .86   .92 | .90   .94 | .92  .91 | .79  .93 | .88   .94 | .90
    bca            .84 | .80   .90 | .87   .92 | .91   .94 | .92       -           -           -
    ```

    Where neither base nor source has an effect of its own, the intervals of crossed pairs are too wide (.96 and .97 with 12 x 12
    for the first two). Taken as 144 independent pairs, the sums would be covered at .50.

    Args:
        values: one number per cell and pair; any leading shape.
        groups: id of the base of each pair; None: pairs are independent.
        source_groups: id of the source of each pair, where sources are reused.
        method: `"bootstrap-t"` (see `studentised`), the one whose coverage holds for skewed effects; `"t"`, Student's on the
            same standard errors; `"percentile"`, `bootstrap_interval`; `"bca"`, bias-corrected and accelerated, which is not
            defined for pairs clustered both ways.
        level: coverage aimed at, in (0, 1).
        n_boot: resamples.
        seed: of the resampling.

    Returns:
        Lower and upper bounds, each of the cells' shape. A cell that is 0 for every pair gets [0, 0].

    Raises:
        DataError: fewer than two clusters (one cluster says nothing about spread), `level` outside (0, 1), an unknown
            method, or `"bca"` with `source_groups`.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 12 to 14.

    Example:
        >>> x = np.random.default_rng(0).exponential(1.0, 30)
        >>> low, high = mean_interval(x)
        >>> bool(low < 1.0 < high)
        True
    """
    if method not in get_args(IntervalMethod):
        raise DataError(
            f"method={method!r} is unknown; intervals are {', '.join(map(repr, get_args(IntervalMethod)))}."
        )
    if method == "t":
        return t_interval(values, groups, source_groups, level=level)
    if method == "bootstrap-t":
        return bootstrap_t_interval(values, groups, source_groups, level=level, n_boot=n_boot, seed=seed)
    if method == "percentile":
        return bootstrap_interval(values, groups, source_groups, level=level, n_boot=n_boot, seed=seed)
    if source_groups is not None:
        raise DataError("method='bca' is not defined for pairs clustered by base and source; use 'bootstrap-t' or 't'.")
    return _bca_interval(values, groups, level, n_boot, seed)


def bootstrap_interval(
    values: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Percentile bootstrap interval of the mean over pairs, resampling whole clusters.

    A percentile interval is too narrow when clusters are few: simulated coverage of the 95 % interval of a Gaussian mean
    is .84 with 5 clusters, .90 with 10, .92 with 20, .935 with 40 and .945 with 100.

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
        DataError: fewer than two clusters (one cluster says nothing about spread), or `level` outside (0, 1).

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; clusters as in Cameron, Gelbach &
        Miller 2008; both ways as in Owen 2007, The pigeonhole bootstrap.

    Example:
        >>> low, high = bootstrap_interval(np.random.default_rng(0).normal(1.0, 1.0, (3, 100)))
        >>> bool((low < 1.0).all() and (high > 1.0).all())
        True
    """
    check_level(level)
    design = checked_design(values, groups, source_groups)
    bounds = [_percentiles(means, level) for means, _ in _resampled_means(values, design, n_boot, seed)]
    return _gather(bounds, values.shape[:-1])


def bootstrap_ratio_interval(
    numerator: Float[np.ndarray, "*cells pair"],
    denominator: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Percentile bootstrap interval of mean(numerator) / mean(denominator), both from the same resamples.

    Never BCa: its coverage of a ratio falls to about one half when the denominator is near 0.

    Args:
        numerator: one number per cell and pair.
        denominator: the same pairs' denominators.
        groups: id of the base of each pair.
        source_groups: id of the source of each pair, where sources are reused.
        level: coverage aimed at.
        n_boot: resamples.
        seed: of the resampling.

    Returns:
        Lower and upper bounds; not finite where a resampled denominator is exactly 0, be it once.

    Raises:
        DataError: the two arrays differ in shape; or as `bootstrap_interval`.

    Example:
        >>> x = np.array([1.0, 2.0, 3.0, 4.0])
        >>> low, high = bootstrap_ratio_interval(2 * x, x)
        >>> float(low), float(high)
        (2.0, 2.0)
    """
    if numerator.shape != denominator.shape:
        raise DataError(
            f"numerator {numerator.shape} and denominator {denominator.shape} must have the same shape [..., pair]."
        )
    check_level(level)
    design = checked_design(numerator, groups, source_groups)
    tops, bottoms = (_resampled_means(each, design, n_boot, seed) for each in (numerator, denominator))
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = [_percentiles(top / bottom, level) for (top, _), (bottom, _) in zip(tops, bottoms, strict=True)]
    return _gather(bounds, numerator.shape[:-1])


def _bca_interval(
    values: Float[np.ndarray, "*cells pair"], groups: _Ids, level: float, n_boot: int, seed: int
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Bias-corrected and accelerated: Efron & Tibshirani 1993, section 14.3, the jackknife leaving out whole clusters."""
    from scipy.special import ndtr, ndtri

    check_level(level)
    design = checked_design(values, groups)
    tails = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))[:, None]
    bounds = []
    for means, sums in _resampled_means(values, design, n_boot, seed):
        total, sizes = sums.sum(axis=1, keepdims=True), design.atoms.sizes
        mean = total / sizes.sum()
        below = ((means < mean).mean(axis=1) + (means <= mean).mean(axis=1)) / 2
        bias = ndtri(np.clip(below, 0.5 / n_boot, 1 - 0.5 / n_boot))
        left_out = (total - sums) / (sizes.sum() - sizes)
        skew = left_out.mean(axis=1, keepdims=True) - left_out
        spread = (skew**2).sum(axis=1)
        cube = (skew**3).sum(axis=1)
        pull = np.divide(cube, 6 * spread**1.5, out=np.zeros_like(cube), where=spread > 0)
        at = ndtr(bias + (bias + tails) / (1 - pull * (bias + tails)))
        ordered = np.sort(means, axis=1)
        bounds.append(np.stack([_quantile_of_each(ordered, share) for share in at]))
    return _gather(bounds, values.shape[:-1])


def _quantile_of_each(ordered: Float[np.ndarray, "cell boot"], share: Float[np.ndarray, " cell"]) -> np.ndarray:
    """A quantile of its own for each row, interpolated as `np.quantile` does."""
    at = share * (ordered.shape[1] - 1)
    below = np.floor(at).astype(np.intp)
    above, cells = np.minimum(below + 1, ordered.shape[1] - 1), np.arange(len(ordered))
    return ordered[cells, below] + (at - below) * (ordered[cells, above] - ordered[cells, below])


def _resampled_means(
    values: Float[np.ndarray, "*cells pair"], design: Design, n_boot: int, seed: int
) -> Iterator[tuple[Float[np.ndarray, "slab boot"], Float[np.ndarray, "slab atom"]]]:
    """The mean in every resample, and the sums it was made of, slab by slab."""
    for sums in slabs(values, design.atoms, columns=n_boot):
        means = np.empty((len(sums), n_boot))
        done = 0
        for weights, _ in design_weights(design, n_boot, seed):
            block = means[:, done : done + len(weights)]
            np.divide(sums @ weights.T, weights @ design.atoms.sizes, out=block)
            done += len(weights)
        yield means, sums


def _percentiles(means: Float[np.ndarray, "slab boot"], level: float) -> Float[np.ndarray, "2 slab"]:
    tail = (1 - level) / 2
    return np.quantile(means, [tail, 1 - tail], axis=1, overwrite_input=True)


def _gather(
    bounds: list[Float[np.ndarray, "2 slab"]], shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    low, high = np.concatenate(bounds, axis=1) if bounds else np.zeros((2, 0))
    return low.reshape(shape), high.reshape(shape)
