"""The share of a total effect that one part of it makes up, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nnsight_vae.errors import DataError
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats import intervals
from nnsight_vae.stats.fieller import fieller_interval

Interval = Literal["percentile", "fieller"]


@dataclass(frozen=True)
class Proportion:
    """The share of a total effect that passes through the mediators, TNIE / TE, or why there is none.

    It can lie outside [0, 1]: when the direct and the indirect path oppose each other, neither is a part of the other.

    Attributes:
        value: mean(TNIE) / mean(TE); None when undefined.
        low: lower end of its interval; None when undefined.
        high: upper end.
        reason: why there is no value; empty when there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"none: {self.reason}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def proportions(
    part: Effects, whole: Effects, *, interval: Interval = "percentile", level: float = 0.95
) -> dict[str, Proportion]:
    """mean(part) / mean(whole) for each target of the first unit; none unless the interval of the whole excludes 0.

    A ratio whose denominator may be 0 has no useful interval: it is refused with its reason rather than printed as a huge
    number. Never BCa: its coverage falls to about one half when the whole is near 0.

    The guard is a filter, and what passes it by luck is off: with 100 Gaussian pairs and a true total effect of 2, .3 and
    .05 standard deviations it refuses none, 16 % and 92 % of the samples, and Fieller's 95 % interval covers the true
    proportion in .95, .97 and .60 of those that pass. A proportion whose total effect is barely clear of 0 proves little.

    Args:
        part: effects of one unit, e.g. `mediation.tnie`.
        whole: effects over the same targets and pairs, e.g. `mediation.te`.
        interval: `"percentile"`: bootstrap, both means from the same resamples; `"fieller"`: Fieller's set, which leans on
            Gaussian means instead of resamples.
        level: coverage aimed at, of this interval and of the one of the whole.

    Returns: target -> `Proportion`.

    Raises:
        DataError: an unknown interval, or effects over other targets or pairs.

    Source: Fieller 1954; Efron & Tibshirani 1993, section 13.3; the guard is ours.

    Example:
        >>> te = Effects(np.random.default_rng(0).normal(2, 1, (1, 1, 50)), ("fc[0]",), ("angle",), "TE")
        >>> tnie = Effects(0.25 * te.values, ("fc[0]",), ("angle",), "TNIE")
        >>> print(proportions(tnie, te, interval="fieller")["angle"])
        0.25 [0.25, 0.25]
    """
    if interval not in get_args(Interval):
        raise DataError(f"interval must be 'percentile' or 'fieller', got {interval!r}.")
    if part.targets != whole.targets or part.values.shape != whole.values.shape or len(whole.units) != 1:
        raise DataError(f"a proportion needs one unit, the same targets and the same pairs; got {part} and {whole}.")
    name = whole.estimand
    if whole.n_clusters < 2:
        reason = f"one independent pair gives no interval for {name}"
        return dict.fromkeys(whole.targets, Proportion(None, None, None, reason))
    top, bottom = part.values[0], whole.values[0]
    ratio = intervals.bootstrap_ratio_interval if interval == "percentile" else fieller_interval
    low, high = ratio(top, bottom, whole.groups, whole.source_groups, level=level)
    whole_low, whole_high = intervals.mean_interval(bottom, whole.groups, whole.source_groups, level=level)
    found = {}
    for i, target in enumerate(whole.targets):
        if whole_low[i] <= 0 <= whole_high[i]:
            reason = f"the interval of {name}, [{whole_low[i]:.3g}, {whole_high[i]:.3g}], contains 0"
            found[target] = Proportion(None, None, None, reason)
        elif not np.isfinite([low[i], high[i]]).all():
            unclear = {
                "percentile": f"{name} is exactly 0 in some resample",
                "fieller": "Fieller's set is unbounded",
            }
            found[target] = Proportion(None, None, None, unclear[interval])
        else:
            found[target] = Proportion(float(top[i].mean() / bottom[i].mean()), float(low[i]), float(high[i]))
    return found
