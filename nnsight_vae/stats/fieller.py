"""Fieller's confidence set of a ratio of two means over pairs, clustered by base or by base and source."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Clusters, Design, checked_design, slabs
from nnsight_vae.stats.standard_errors import t_quantile

_ROUNDING = 1e-9  # relative

_Ids = Shaped[np.ndarray, " pair"] | None


def fieller_interval(
    numerator: Float[np.ndarray, "*cells pair"],
    denominator: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """The ratios mean(numerator) / mean(denominator) that the pairs do not contradict.

    The set of all theta for which the t interval of numerator - theta * denominator contains 0: with a, b the two means and
    V their cluster-robust covariance,

        (a - theta b)^2 <= t^2 (V_aa - 2 theta V_ab + theta^2 V_bb)

    No ratio of estimates is linearised or resampled: the set keeps its coverage however near b is to 0, and pays for it by
    being unbounded exactly where the t interval of b contains 0.

    Simulated coverage of the 95 % set, 100 Gaussian pairs, is .95 whether the true mean of the denominator is 2, .3 or .05
    of its standard deviations; the set is unbounded for none, 16 % and 92 % of the samples.

    Args:
        numerator: one number per cell and pair.
        denominator: the same pairs' denominators.
        groups: id of the base of each pair; None: pairs are independent.
        source_groups: id of the source of each pair, where sources are reused.
        level: coverage aimed at, in (0, 1).

    Returns:
        Lower and upper end of each set; (-inf, inf) where it is unbounded.

    Raises:
        DataError: the two arrays differ in shape, fewer than two clusters, or `level` outside (0, 1).

    Source: Fieller 1954, J. R. Stat. Soc. B 16, 175-185; covariances as in `standard_errors`. The largest of several
        variances makes the set the union of the sets of each.

    Example:
        >>> x = np.random.default_rng(0).normal(2.0, 1.0, 50)
        >>> low, high = fieller_interval(0.5 * x + np.random.default_rng(1).normal(0, 0.1, 50), x)
        >>> bool(0.45 < low < 0.5 < high < 0.55)
        True
    """
    if numerator.shape != denominator.shape:
        raise DataError(
            f"numerator {numerator.shape} and denominator {denominator.shape} must have the same shape [..., pair]."
        )
    design = checked_design(numerator, groups, source_groups)
    t2 = t_quantile(design.n_clusters - 1, level) ** 2
    columns = len(design.atoms)
    bounds = [
        _hull(top, bottom, design, t2)
        for top, bottom in zip(*(slabs(v, design.atoms, columns) for v in (numerator, denominator)), strict=True)
    ]
    low, high = np.concatenate(bounds, axis=1) if bounds else np.zeros((2, 0))
    return low.reshape(numerator.shape[:-1]), high.reshape(numerator.shape[:-1])


class _Moments(NamedTuple):
    """Covariances of the two means."""

    aa: Float[np.ndarray, " cell"]
    ab: Float[np.ndarray, " cell"]
    bb: Float[np.ndarray, " cell"]


def _hull(
    top: Float[np.ndarray, "cell atom"], bottom: Float[np.ndarray, "cell atom"], design: Design, t2: float
) -> Float[np.ndarray, "2 cell"]:
    """The smallest interval around the union of the sets of each variance."""
    sizes = design.atoms.sizes
    n_pairs = int(sizes.sum())
    a, b = top.sum(axis=1) / n_pairs, bottom.sum(axis=1) / n_pairs
    off_a, off_b = top - a[:, None] * sizes, bottom - b[:, None] * sizes
    candidates = [_moments(off_a, off_b, way, n_pairs) for way in design.ways]
    if len(candidates) > 1:
        base, source = candidates
        atom = _moments(off_a, off_b, Clusters.of(len(design.atoms)), n_pairs)
        candidates.append(_Moments(*(p + q - r for p, q, r in zip(base, source, atom, strict=True))))
    ends = np.stack([_ends(a, b, moments, t2) for moments in candidates])
    return np.stack([ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)])


def _moments(off_a: np.ndarray, off_b: np.ndarray, way: Clusters, n_pairs: int) -> _Moments:
    sums_a, sums_b = way.sums(off_a), way.sums(off_b)
    factor = len(way) / (len(way) - 1) / float(n_pairs) ** 2
    return _Moments(*(factor * (x * y).sum(axis=1) for x, y in ((sums_a, sums_a), (sums_a, sums_b), (sums_b, sums_b))))


def _ends(
    a: Float[np.ndarray, " cell"], b: Float[np.ndarray, " cell"], v: _Moments, t2: float
) -> Float[np.ndarray, "2 cell"]:
    """Where  square theta^2 - 2 half theta + constant <= 0: between two roots where the parabola opens upwards."""
    square, half, constant = b * b - t2 * v.bb, a * b - t2 * v.ab, a * a - t2 * v.aa
    bounded = square > 0
    under_root = half * half - square * constant
    # Where v is a covariance, a / b is in the set, and less than 0 under the root is rounding. V_base + V_source - V_atom
    # need not be one: its set may be empty, and then adds nothing to the union.
    empty = bounded & (under_root < -_ROUNDING * half * half)
    root = np.sqrt(np.maximum(under_root, 0.0))
    divisor = np.where(bounded, square, 1.0)
    low, high = (np.where(bounded, (half + sign * root) / divisor, sign * np.inf) for sign in (-1.0, 1.0))
    return np.stack([np.where(empty, np.inf, low), np.where(empty, -np.inf, high)])
