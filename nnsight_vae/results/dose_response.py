"""`DoseResponse`: how every unit follows a factor, value by value, with intervals and tests over units of the world."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.errors import DataError
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.effects_checks import plain
from nnsight_vae.stats import significance, trends
from nnsight_vae.stats.discovery import enough_flips
from nnsight_vae.wording import count

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SLOPE = {"effect": "slope", "ci_low": "slope_low", "ci_high": "slope_high", "p": "slope_p", "q": "slope_q"}


@dataclass(frozen=True, repr=False, eq=False)
class DoseResponse:
    """The response of each unit to each value of a factor, for each unit of the world.

    Attributes:
        values: responses in standard deviations of the unit, relative to the mean over doses of the same unit of the world;
            [unit, dose, world].
        units: a name per unit, `"encoder.4[7]"`.
        doses: the values the factor was set to, rising, in its own units.
        factor: its name.
        factor_sd: its standard deviation in the world; None: slopes are per unit of the factor.
        groups: cluster id of each unit of the world; None: they are independent.
        rounding: per unit, differences up to which responses count as equal.
        provenance: where the numbers come from.

    Example:
        >>> dose, world = np.array([-1.0, 0.0, 1.0]), np.random.default_rng(0).normal(1.0, 0.2, 40)
        >>> values = np.stack([dose[:, None] * world, (dose**2)[:, None] * -world, 0 * dose[:, None] * world])
        >>> response = DoseResponse(values, ("fc[0]", "fc[1]", "fc[2]"), dose, "angle")
        >>> response
        DoseResponse(angle: 3 units x 3 doses x 40 units of the world; largest slope fc[0] +0.988 sd per unit of angle)
        >>> response.to_frame()[["unit", "monotonicity", "peak", "responds", "shape"]]
            unit  monotonicity  peak  responds   shape
        0  fc[0]           1.0   1.0      True  linear
        1  fc[1]           0.0   0.0      True    peak
        2  fc[2]           0.0  -1.0     False     NaN
    """

    values: Float[np.ndarray, "unit dose world"]
    units: tuple[str, ...]
    doses: Float[np.ndarray, " dose"]
    factor: str
    factor_sd: float | None = None
    groups: Shaped[np.ndarray, " world"] | None = None
    rounding: Float[np.ndarray, " unit"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", plain(self.provenance))
        expected = (len(self.units), len(self.doses))
        if self.values.ndim != 3 or self.values.shape[:2] != expected or expected[1] < 2 or expected[0] == 0:
            raise DataError(
                f"DoseResponse.values has shape {self.values.shape}; expected [unit, dose, world] = [{expected[0]}, "
                f"{expected[1]}, n] with at least one unit and two doses."
            )

    def change(self, reference: float | None = None) -> Effects:
        """The response at every dose as `Effects` with the doses as targets, for curves with intervals.

        Args:
            reference: the dose that the others are compared with; None: the mean over doses.

        Raises:
            DataError: no such dose.

        Example:
            >>> response = DoseResponse(np.ones((1, 2, 5)) * [[0.0], [2.0]], ("fc[0]",), np.array([0.1, 0.4]), "angle")
            >>> response.change(reference=0.1)
            Effects(change from angle = 0.1: 1 unit x 2 targets x 5 pairs; largest mean fc[0] -> 0.4 +2)
        """
        if reference is None:
            return self._effects(self.values, self._names, f"change from the mean over {self.factor}")
        at = np.flatnonzero(np.isclose(self.doses, reference, rtol=1e-6, atol=0.0))
        if len(at) != 1:
            raise DataError(f"{reference!r} is not one of the doses {', '.join(self._names)}.")
        return self._effects(
            self.values - self.values[:, at], self._names, f"change from {self.factor} = {self._names[at[0]]}"
        )

    @cached_property
    def trend(self) -> Effects:
        """How each unit follows the factor, as `Effects` with three targets.

        slope         least-squares slope, in sd of the unit per sd of the factor
        monotonicity  Kendall's tau-a of dose and response: +1 when every higher dose has a higher response
        curvature     coefficient of the squared dose (sd of the unit per squared sd of the factor): below 0 for a peak, above
                      0 for a dip; with three doses or more
        """
        x = self.doses / (self.factor_sd or 1.0)
        found = {"slope": trends.polynomial(self.values, x, 1)}
        found["monotonicity"] = trends.monotonicity(self.values, 0.0 if self.rounding is None else self.rounding)
        if len(x) > 2:
            found["curvature"] = trends.polynomial(self.values, x, 2)
        trend = self._effects(np.stack(list(found.values()), axis=1), tuple(found), f"trend with {self.factor}")
        # Each target is in a unit of its own.
        return replace(trend, provenance={key: value for key, value in self.provenance.items() if key != "unit"})

    @cached_property
    def steps(self) -> Effects:
        """The change from each dose to the next, as `Effects` with the steps as targets."""
        names = tuple(f"{low} -> {high}" for low, high in zip(self._names, self._names[1:], strict=False))
        return self._effects(np.diff(self.values, axis=1), names, f"step in {self.factor}")

    def to_frame(self, q: float = 0.05, min_effect: float = 0.0, *, seed: int = 0) -> pd.DataFrame:
        """One row per unit: does it respond, how strongly, and in what shape.

        Columns: unit, site, index; slope with its 95 % interval slope_low, slope_high, sign-flip slope_p and Benjamini-Hochberg
        slope_q; monotonicity, curvature (see `trend`); `range`, the largest minus the smallest mean response, in sd of the unit;
        `peak`, the dose of the largest mean response; `linear`, R2 of a straight line through the mean responses (missing for a
        constant); p of "the mean response is the same at every dose" (`pvalues`) and its q over all units; `responds`:
        q-value <= q; `shape` of the units that respond (`trends.shape`), from the steps between neighbouring doses that pass a
        sign-flip test at false discovery rate q over units x steps. "monotone" says that steps were found in one direction and
        none in the other.

        Args:
            q: false discovery rate.
            min_effect: least response of interest, in sd of the unit; a deterministic network makes almost every unit respond a
                little. It is part of the hypotheses: that the mean response is nowhere further than this from its mean over
                doses, and that a step is no larger than a share of 1 / (number of steps) of this.
            seed: of the sign flips and of the intervals.

        Raises:
            DataError: q or min_effect out of range; fewer than two clusters of units of the world.

        Warns:
            NnsightVaeWarning: fewer than 10 clusters.
        """
        if not (0 < q < 1 and 0 <= min_effect < np.inf):
            raise DataError(f"q={q}, min_effect={min_effect}: expected a rate q in (0, 1) and min_effect >= 0.")
        curve = self.values.mean(axis=2)
        linear = trends.linear_share(curve, self.doses)
        p = self.pvalues(min_effect, q=q, seed=seed)
        adjusted = significance.benjamini_hochberg(p)
        slope = self.trend.select(targets="slope").to_frame(seed=seed)
        others = {name: self.trend.mean()[:, i] for i, name in enumerate(self.trend.targets) if i}
        return (
            slope.drop(columns="target")
            .rename(columns=_SLOPE)
            .assign(
                **others,
                range=np.ptp(curve, axis=1),
                peak=self.doses[curve.argmax(axis=1)],
                linear=linear,
                p=p,
                q=adjusted,
                responds=adjusted <= q,
                shape=self._shapes(adjusted <= q, linear, q, min_effect, seed),
            )
        )

    def pvalues(self, min_effect: float = 0.0, *, q: float = 0.05, seed: int = 0) -> Float[np.ndarray, " unit"]:
        """Per unit, the p-value of "the mean response is the same at every dose" (`trends.flatness_pvalues`).

        Args:
            min_effect: with it, of "it is nowhere further than this from its mean over doses".
            q: false discovery rate at which sign flips shall be enough to find a lone unit (at least 1,999, at most 9,999).
            seed: of the sign flips.
        """
        n_perm = enough_flips(len(self.units), q)
        return trends.flatness_pvalues(self.values, self.groups, min_effect=min_effect, n_perm=n_perm, seed=seed)

    def plot(self, top: int = 6) -> tuple[Figure, Axes]:
        """The curves of the units with the largest range of mean responses, with 95 % intervals.

        Raises:
            DataError: `top` is not positive.
        """
        from nnsight_vae.dose_plot import plot_dose_response

        return plot_dose_response(self, top)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file (plain arrays and a JSON header, nothing pickled), whole or not at all.

        Raises:
            DataError: the folder does not exist or cannot be written to.
        """
        from nnsight_vae.results import dose_file

        dose_file.write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DoseResponse:
        """Read a dose response written by `save`.

        Raises:
            DataError: the file is missing, unreadable, or not a dose response of a known version.
        """
        from nnsight_vae.results import dose_file

        return dose_file.read(Path(path))

    def _shapes(
        self, responds: np.ndarray, linear: np.ndarray, q: float, min_effect: float, seed: int
    ) -> list[str | None]:
        n_tests = len(self.units) * len(self.steps.targets)
        flips, least = enough_flips(n_tests, q), min_effect / len(self.steps.targets)
        p = self.steps.pvalues(flips, seed, min_effect=least)
        passed, mean = significance.benjamini_hochberg(p) <= q, self.steps.mean()
        rises, falls = passed & (mean > 0), passed & (mean < 0)
        return [trends.shape(rises[u], falls[u], linear[u]) if responds[u] else None for u in range(len(self.units))]

    def _effects(self, values: np.ndarray, targets: tuple[str, ...], estimand: str) -> Effects:
        return Effects(values, self.units, targets, estimand, self.groups, self.provenance)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"{dose:.6g}" for dose in self.doses)

    def __repr__(self) -> str:
        slope = self.trend.mean()[:, 0]
        unit = int(np.abs(slope).argmax())
        per = f"sd of {self.factor}" if self.factor_sd else f"unit of {self.factor}"
        n_units, n_doses, n = self.values.shape
        return (
            f"DoseResponse({self.factor}: {count(n_units, 'unit')} x {n_doses} doses x {count(n, 'unit')} of the world; "
            f"largest slope {self.units[unit]} {slope[unit]:+.3g} sd per {per})"
        )
