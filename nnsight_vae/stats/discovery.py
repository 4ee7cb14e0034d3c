"""Which of many effects are there: one p-value for each, and control of the error over all of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Shaped

from nnsight_vae.errors import DataError, NnsightVaeWarning
from nnsight_vae.stats import significance
from nnsight_vae.stats.clusters import two_or_more
from nnsight_vae.stats.standard_errors import t_pvalues

DiscoveryMethod = Literal["bh", "by"]

_ADJUST = {"bh": significance.benjamini_hochberg, "by": significance.benjamini_yekutieli}
_FLIPS_AT_LEAST, _FLIPS_AT_MOST = 1_999, 9_999

_Ids = Shaped[np.ndarray, " pair"] | None


@dataclass(frozen=True)
class TestResult:
    """The outcome of `Effects.significant`, kept with the units that passed.

    The q-values belong to the whole family that was tested; they are not recomputed for a selection of it, which would
    understate them.

    Attributes:
        p: p-value of each remaining unit and target, for the null hypothesis |mean effect| <= min_effect.
        q: its adjusted value within the family.
        passed: q-value <= level.
        level: the false discovery rate asked for.
        min_effect: the largest |mean effect| of the null hypothesis.
        n_tests: size of the family.
        method: `"bh"` (Benjamini-Hochberg) or `"by"` (Benjamini-Yekutieli).
    """

    __test__ = False  # not a pytest class

    p: Float[np.ndarray, "unit target"]
    q: Float[np.ndarray, "unit target"]
    passed: Bool[np.ndarray, "unit target"]
    level: float
    min_effect: float
    n_tests: int
    method: DiscoveryMethod = "bh"


def effect_pvalues(
    values: Float[np.ndarray, "*cells pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    min_effect: float = 0.0,
    n_perm: int | None = None,
    seed: int = 0,
    family_wise: bool = False,
) -> Float[np.ndarray, "*cells"]:
    """A p-value of "|mean| <= min_effect" for each cell: sign flips of clusters, or Student's t where sources are reused.

    No flip of signs keeps the dependence of pairs that share bases and of pairs that share sources, so pairs clustered both
    ways are tested by t on the standard error clustered both ways.

    Args:
        values: one number per cell and pair.
        groups: id of the base of each pair.
        source_groups: id of the source of each pair, where sources are reused.
        min_effect: the largest |mean| of the null hypothesis.
        n_perm: sign patterns; None: `enough_flips` at .05. Not used with `source_groups`.
        seed: of the drawing of patterns.
        family_wise: adjust for all cells: by the maximum statistic, or by Holm's procedure where sources are reused.

    Raises:
        DataError: fewer than two clusters, a negative `min_effect`, or `n_perm` below 1.
    """
    if not 0 <= min_effect < np.inf:
        raise DataError(f"min_effect={min_effect}: expected a size >= 0 in units of the readout.")
    if source_groups is not None:
        p = t_pvalues(values, groups, source_groups, min_effect=min_effect)
        return significance.holm(p) if family_wise else p
    flips = significance.max_t_pvalues if family_wise else significance.sign_flip_pvalues
    n_perm = _flips(n_perm, values[..., 0].size, 0.05)
    return flips(values, groups, min_effect=min_effect, n_perm=n_perm, seed=seed)


def enough_flips(n_tests: int, q: float) -> int:
    """Sign patterns enough to reject a lone true effect among `n_tests`; at least 1,999 and at most 9,999."""
    return min(max(significance.permutations_needed(n_tests, q), _FLIPS_AT_LEAST), _FLIPS_AT_MOST)


def _flips(n_perm: int | None, n_tests: int, q: float) -> int:
    if n_perm is not None and n_perm < 1:
        raise DataError(
            f"n_perm={n_perm}: expected a number of sign patterns of at least 1, or None for enough of them."
        )
    return enough_flips(n_tests, q) if n_perm is None else n_perm


def discover(
    values: Float[np.ndarray, "unit target pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    q: float = 0.05,
    min_effect: float = 0.0,
    method: DiscoveryMethod = "bh",
    n_perm: int | None = None,
    seed: int = 0,
) -> TestResult:
    """Test every cell at false discovery rate `q` over all of them; see `Effects.significant`.

    Raises:
        DataError: fewer than two clusters, `q` outside (0, 1), a negative `min_effect`, `n_perm` below 1, or an unknown method.

    Warns:
        NnsightVaeWarning: effects as extreme as the p-values can show were not rejected, so a finer test might.
    """
    if not 0 < q < 1 or min_effect < 0:
        raise DataError(f"q={q}, min_effect={min_effect}: expected a rate q in (0, 1) and min_effect >= 0.")
    if method not in get_args(DiscoveryMethod):
        raise DataError(f"method={method!r}: expected 'bh' (Benjamini-Hochberg) or 'by' (Benjamini-Yekutieli).")
    n_tests = values.shape[0] * values.shape[1]
    rate = q if method == "bh" else q / np.sum(1 / np.arange(1, n_tests + 1))  # "by" at q is "bh" at this rate
    n_perm = _flips(n_perm, n_tests, rate)
    p = effect_pvalues(values, groups, source_groups, min_effect=min_effect, n_perm=n_perm, seed=seed)
    adjusted = _ADJUST[method](p)
    if source_groups is None:
        _warn_if_too_coarse(p, adjusted, q, rate, len(two_or_more(values, groups)), n_perm)
    return TestResult(p, adjusted, adjusted <= q, q, min_effect, n_tests, method)


def _warn_if_too_coarse(
    p: np.ndarray, adjusted: np.ndarray, q: float, rate: float, n_clusters: int, n_perm: int
) -> None:
    least = significance.smallest_pvalue(n_clusters, n_perm)
    stuck = int(((p <= least) & (adjusted > q)).sum())
    if not stuck:
        return
    remedy = "use more base images"
    if least > 2.0 ** (1 - n_clusters):
        remedy = f"use n_perm >= {significance.permutations_needed(p.size, rate)}, or pvalues(family_wise=True)"
    warnings.warn(
        f"{stuck} of {p.size} effects have the smallest p-value possible here, {least:.2g}, which is too coarse to "
        f"be rejected at q={q} among {p.size} tests: {remedy}.",
        NnsightVaeWarning,
        stacklevel=4,
    )
