"""Cluster-robust standard errors of means over pairs, clustered by base or by base and source, with Student's t on them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Design, checked_design, slabs

_Ids = Shaped[np.ndarray, " pair"] | None


def mean_and_variance(
    sums: Float[np.ndarray, "cell atom"], design: Design
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, "cell atom"], Float[np.ndarray, " cell"]]:
    """Mean over pairs, deviations of the atoms' sums from it, and the variance of the mean.

    With e_c the deviations summed over cluster c, C clusters and n pairs in all,

        V = C / (C - 1) sum_c e_c^2 / n^2

    Clustered both ways it is max(V_base + V_source - V_atom, V_base, V_source). The difference is unbiased when both
    matter but has a large error of its own, and falls short, when one does not; the maximum is then conservative.

    Source: Cameron, Gelbach & Miller 2011, J. Bus. Econ. Stat. 29, 238-249, eq. 2.11; the maximum as in MacKinnon, Nielsen
        & Webb 2024, arXiv 2406.08880.
    """
    n_pairs = int(design.atoms.sizes.sum())
    mean = sums.sum(axis=1) / n_pairs
    deviations = sums - mean[:, None] * design.atoms.sizes
    bases, *sources = (_variance(way.sums(deviations), n_pairs) for way in design.ways)
    if not sources:
        return mean, deviations, bases
    return mean, deviations, both_ways(bases, sources[0], _variance(deviations, n_pairs))


def both_ways(base: np.ndarray, source: np.ndarray, atom: np.ndarray) -> np.ndarray:
    """The variance clustered both ways from the three that are clustered one way."""
    return np.maximum(base + source - atom, np.maximum(base, source))


def _variance(sums: Float[np.ndarray, "cell cluster"], n_pairs: int) -> Float[np.ndarray, " cell"]:
    n = sums.shape[1]
    return n / (n - 1) * np.einsum("ij,ij->i", sums, sums) / float(n_pairs) ** 2


def t_interval(
    values: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Student's t interval, mean -+ t_{C-1} sqrt(V), V as in `mean_and_variance`.

    C is the number of clusters, the smaller of the two clustered both ways.

    Raises:
        DataError: fewer than two clusters, or `level` outside (0, 1).

    Example:
        >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]))
        >>> round(float(low), 3), round(float(high), 3)
        (-0.484, 4.484)
    """
    mean, error, freedom = _summary(values, groups, source_groups)
    reach = t_quantile(freedom, level) * error
    return mean - reach, mean + reach


def t_quantile(freedom: int, level: float) -> float:
    """Two-sided Student quantile.

    Raises:
        DataError: `level` is outside (0, 1).
    """
    from scipy.special import stdtrit

    check_level(level)
    return float(stdtrit(freedom, (1 + level) / 2))


def check_level(level: float) -> None:
    """Refuse what is no coverage with a DataError."""
    if not 0 < level < 1:
        raise DataError(f"level={level} is not a coverage; expected a number in (0, 1), e.g. 0.95.")


def t_pvalues(
    values: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    min_effect: float = 0.0,
) -> Float[np.ndarray, "*cells"]:
    """Two-sided p-values of "|mean| <= min_effect" by Student's t, clustered by base or both ways.

    t = (|mean| - min_effect) / sqrt(V) on C - 1 degrees of freedom. Simulated error at .05 with 5 to 20 bases crossed with as
    many sources is .01 to .06 for Gaussian effects (the low end where images have no effect of their own) and .07 to .08 for
    exponential ones. Products of exponentials are beyond it: .20, .15 and .11 with 5, 12 and 20 of each.

    Args:
        values: one number per cell and pair.
        groups: id of the base of each pair.
        source_groups: id of the source of each pair.
        min_effect: the largest |mean| of the null hypothesis.

    Returns:
        One p-value per cell; 1 where |mean| <= min_effect, and so for a cell that is 0 for every pair.

    Raises:
        DataError: fewer than two clusters.

    Example:
        >>> t_pvalues(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])).round(4)
        array([0.0742, 1.    ])
    """
    from scipy.special import stdtr

    mean, error, freedom = _summary(values, groups, source_groups)
    beyond = np.abs(mean) - min_effect
    with np.errstate(divide="ignore", invalid="ignore"):  # equal values for every pair: no error at all
        p = 2 * stdtr(freedom, -beyond / error)
    return np.where(beyond > 0, p, 1.0)


def _summary(
    values: Float[np.ndarray, "*cells pair"], groups: _Ids, source_groups: _Ids
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"], int]:
    design = checked_design(values, groups, source_groups)
    parts = [mean_and_variance(sums, design) for sums in slabs(values, design.atoms, columns=len(design.atoms))]
    mean, variance = (np.concatenate([part[i] for part in parts] or [np.zeros(0)]) for i in (0, 2))
    shape = values.shape[:-1]
    return mean.reshape(shape), np.sqrt(variance).reshape(shape), design.n_clusters - 1
