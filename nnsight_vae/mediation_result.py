"""Mediation: how much of an effect passes through a set of units, and how much passes it by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae import statistics
from nnsight_vae.effects import FEW_CLUSTERS, Effects
from nnsight_vae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_LEVEL = 0.95
_PRINTED_TARGETS = 8
_Row = tuple[str, str, float | None, float | None, float | None, str]


@dataclass(frozen=True)
class Proportion:
    """The share of a total effect that passes through the mediators, TNIE / TE, or why there is none.

    It can lie outside [0, 1]: when the direct and the indirect path oppose each other, neither is a part of the other.

    Attributes:
        value: mean(TNIE) / mean(TE); None when undefined.
        low: lower end of the 95 % percentile bootstrap interval of that ratio, both means from the same resamples.
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


@dataclass(frozen=True, repr=False, eq=False)
class Mediation:
    """The effect of the source on a readout, split by whether it passes through the mediators.

    With Y(a, b) the readout of a run on input a whose mediators hold the activations of a run on b, and every noise
    shared (pair by pair, so these are unit-level counterfactuals, observed exactly):

        TE   = Y(s, s)   - Y(b, b)      total effect
        PNIE = Y(b, M_s) - Y(b, b)      pure natural indirect effect   (noising)
        TNIE = Y(s, s)   - Y(s, M_b)    total natural indirect effect  (denoising)
        NDE  = TE - TNIE                natural direct effect, Y(s, M_b) - Y(b, b)
        INT  = TNIE - PNIE              mediated interaction

    so that TE = NDE + TNIE = PNIE + NDE + INT for every pair. Each quantity is an `Effects` with one unit, the mediators.

    Attributes:
        te: total effect.
        nde: natural direct effect.
        pnie: pure natural indirect effect.
        tnie: total natural indirect effect.
        interaction: mediated interaction.

    Source: Pearl 2001, Direct and indirect effects; Robins & Greenland 1992; VanderWeele 2014 for the decomposition.

    Example:
        >>> angle = np.arange(1.0, 21.0)[None]                     # one target, 20 pairs
        >>> m = Mediation.from_runs(0 * angle, angle, noised=0.5 * angle, denoised=0.25 * angle,
        ...                         targets=["angle"], mediator="encoder.4[0:8]")
        >>> m.proportion["angle"].value
        0.75
        >>> print(m)
        Mediation through encoder.4[0:8]: 20 pairs, means with 95 % bootstrap intervals
        angle  TE        10.5  [7.9, 12.9]
               NDE       2.62  [1.98, 3.23]
               PNIE      5.25  [3.95, 6.45]
               TNIE      7.88  [5.92, 9.68]
               INT       2.62  [1.98, 3.23]
               TNIE/TE   0.75  [0.75, 0.75]
    """

    te: Effects
    nde: Effects
    pnie: Effects
    tnie: Effects
    interaction: Effects

    @classmethod
    def from_runs(
        cls,
        base: Float[np.ndarray, "target pair"],
        source: Float[np.ndarray, "target pair"],
        noised: Float[np.ndarray, "target pair"],
        denoised: Float[np.ndarray, "target pair"],
        *,
        targets: Sequence[str],
        mediator: str,
        groups: Shaped[np.ndarray, " pair"] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Mediation:
        """Mediation from the readouts of the four runs, which must share input pairs and noise.

        Args:
            base: Y(b, b), the base run.
            source: Y(s, s), the source run.
            noised: Y(b, M_s), the base run with the source's mediators.
            denoised: Y(s, M_b), the source run with the base's mediators.
            targets: names of the readout's targets.
            mediator: what the mediators are called, e.g. `"encoder.4[0:8]"`.
            groups: cluster id (base image) of each pair.
            provenance: kept with every quantity.

        Returns:
            The five quantities, in float64.

        Raises:
            DataError: the runs differ in shape, or do not fit the names, or are not finite.
        """
        runs = {"base": base, "source": source, "noised": noised, "denoised": denoised}
        shapes = {name: np.shape(run) for name, run in runs.items()}
        if len(set(shapes.values())) > 1 or len(shapes["base"]) != 2:
            raise DataError(f"The four runs have shapes {shapes}; expected one shape [target, pair] for all.")
        y_bb, y_ss, y_bs, y_sb = (np.asarray(run, dtype=np.float64) for run in runs.values())
        te, pnie, tnie = y_ss - y_bb, y_bs - y_bb, y_ss - y_sb
        quantities = {
            "TE": te,
            "NDE": te - tnie,
            "PNIE (noising)": pnie,
            "TNIE (denoising)": tnie,
            "INT": tnie - pnie,
        }
        return cls(
            *(
                Effects(values[None], (mediator,), tuple(targets), estimand, groups, provenance or {})
                for estimand, values in quantities.items()
            )
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the readout's targets."""
        return self.te.targets

    @property
    def mediator(self) -> str:
        """What the mediators are called."""
        return self.te.units[0]

    @cached_property
    def proportion(self) -> dict[str, Proportion]:
        """TNIE / TE for each target; none unless the 95 % interval of TE excludes 0.

        A ratio whose denominator may be 0 has no useful interval: it is refused with its reason rather than printed as
        a huge number.
        """
        if self.te.n_clusters < 2:
            reason = "one independent pair gives no interval for TE"
            return dict.fromkeys(self.targets, Proportion(None, None, None, reason))
        te, tnie, groups = self.te.values[0], self.tnie.values[0], self.te.groups
        te_low, te_high = statistics.bootstrap_interval(te, groups, level=_LEVEL)
        low, high = statistics.bootstrap_ratio_interval(tnie, te, groups, level=_LEVEL)
        proportions = {}
        for i, target in enumerate(self.targets):
            if te_low[i] <= 0 <= te_high[i]:
                reason = f"the interval of TE, [{te_low[i]:.3g}, {te_high[i]:.3g}], contains 0"
                proportions[target] = Proportion(None, None, None, reason)
            elif not np.isfinite([low[i], high[i]]).all():
                reason = "TE is exactly 0 in too many resamples"
                proportions[target] = Proportion(None, None, None, reason)
            else:
                value = tnie[i].mean() / te[i].mean()
                proportions[target] = Proportion(float(value), float(low[i]), float(high[i]))
        return proportions

    def to_frame(self) -> pd.DataFrame:
        """One row per target and quantity: target, quantity, value, ci_low, ci_high, note.

        The quantities are TE, NDE, PNIE, TNIE, INT and the proportion TNIE/TE, whose value is missing, with the reason in
        `note`, where it is undefined. Intervals are missing when there is a single independent pair.
        """
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=["target", "quantity", "value", "ci_low", "ci_high", "note"])

    def _rows(self) -> list[_Row]:
        quantities = {"TE": self.te, "NDE": self.nde, "PNIE": self.pnie, "TNIE": self.tnie, "INT": self.interaction}
        means = {name: effects.mean()[0] for name, effects in quantities.items()}
        bounds = {name: self._bounds(effects) for name, effects in quantities.items()}
        rows: list[_Row] = []
        for i, target in enumerate(self.targets):
            rows += [(target, name, float(means[name][i]), *bounds[name][i], "") for name in quantities]
            share = self.proportion[target]
            rows.append((target, "TNIE/TE", share.value, share.low, share.high, share.reason))
        return rows

    def _bounds(self, effects: Effects) -> list[tuple[float | None, float | None]]:
        if effects.n_clusters < 2:
            return [(None, None)] * len(self.targets)
        # the pure function: `Effects.ci` would warn five times about few pairs; the printed header says it once
        low, high = statistics.bootstrap_interval(effects.values[0], effects.groups, level=_LEVEL)
        return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]

    def __repr__(self) -> str:
        return f"Mediation(through {self.mediator}: {len(self.targets)} targets x {self.te.n_pairs} pairs)"

    def __str__(self) -> str:
        clusters = "" if self.te.groups is None else f" ({self.te.n_clusters} independent)"
        intervals = f"means with {_LEVEL:.0%} bootstrap intervals".replace("%", " %")
        if self.te.n_clusters < 2:
            intervals = "no intervals from a single independent pair"
        elif self.te.n_clusters < FEW_CLUSTERS:
            intervals += ", too narrow with so few pairs"
        lines = [f"Mediation through {self.mediator}: {self.te.n_pairs} pairs{clusters}, {intervals}"]
        parts = (self.te, self.nde, self.pnie, self.tnie, self.interaction)
        rows = Mediation(*(part.select(targets=self.targets[:_PRINTED_TARGETS]) for part in parts))._rows()
        width = max(len(row[0]) for row in rows)
        numbers = max(len(_number(row[2])) for row in rows)
        for target, name, value, low, high, note in rows:
            label = target if name == "TE" else ""
            interval = "" if low is None or high is None else f"[{_number(low)}, {_number(high)}]"
            text = note and f"none: {note}"
            lines.append(f"{label:<{width}}  {name:<8}  {text or f'{_number(value):<{numbers}}  {interval}'}".rstrip())
        if len(self.targets) > _PRINTED_TARGETS:
            lines.append(f"... and {len(self.targets) - _PRINTED_TARGETS} more targets: see to_frame()")
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
