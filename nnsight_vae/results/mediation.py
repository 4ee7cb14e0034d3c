"""Mediation: how much of an effect passes through a set of units, and how much passes it by."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.directions import ESTIMANDS
from nnsight_vae.errors import DataError
from nnsight_vae.guards import warn_if_few
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.mediation_quantities import Runs, Scale, divisor, quantities
from nnsight_vae.results.proportion import Interval, Proportion, proportions
from nnsight_vae.stats.clusters import Design
from nnsight_vae.wording import count

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False, eq=False)
class Mediation:
    """The effect of the source on a readout, split by whether it passes through the mediators.

    With Y(a, b) the readout of a run on input a whose mediators hold the activations of a run on b, and every noise
    shared (pair by pair, so these are unit-level counterfactuals, observed exactly):

        TE   = Y(s, s)   - Y(b, b)      total effect
        PNIE = Y(b, M_s) - Y(b, b)      pure natural indirect effect   (noising)
        TNIE = Y(s, s)   - Y(s, M_b)    total natural indirect effect  (denoising)
        NDE  = TE - TNIE                natural direct effect, Y(s, M_b) - Y(b, b)
        TDE  = TE - PNIE                total direct effect, Y(s, s) - Y(b, M_s)
        INT  = TNIE - PNIE              mediated interaction

    so that TE = NDE + TNIE = PNIE + NDE + INT for every pair. With mediators that were also held at a value m,

        CDE(m)    = Y(s, m) - Y(b, m)   controlled direct effect
        INTref(m) = NDE - CDE(m)        reference interaction

    and TE = CDE + INTref + INT + PNIE (four-way decomposition). Each quantity is an `Effects` with one unit, the mediators.

    On the relative scale every quantity is divided by its pair's Y(b, b), so TE = Y(s, s) / Y(b, b) - 1. Sums within a pair
    still hold, but what links a pair to its reverse does not: TE(b -> s) is no longer -TE(s -> b), nor is INT the same both
    ways, for the two are divided by different numbers.

    Attributes:
        te: total effect.
        nde: natural direct effect.
        pnie: pure natural indirect effect.
        tnie: total natural indirect effect.
        interaction: mediated interaction.
        cde: controlled direct effect; None unless the mediators were held at a value.
        intref: reference interaction; None unless the mediators were held at a value.

    Source: Pearl 2001, Direct and indirect effects; Robins & Greenland 1992; VanderWeele 2014, doi
        10.1097/EDE.0000000000000121, for the decompositions (excess relative scale: its section on the ratio scale); Vig et
        al. 2020, arXiv 2004.12265, for y_set / y_null - 1 in networks.

    Example:
        >>> angle = np.arange(1.0, 21.0)[None]                     # one target, 20 pairs
        >>> m = Mediation.from_runs(0 * angle, angle, noised=0.5 * angle, denoised=0.25 * angle,
        ...                         targets=["angle"], mediator="encoder.4[0:8]")
        >>> m.proportion["angle"].value
        0.75
        >>> print(m)
        Mediation through encoder.4[0:8]: 20 pairs, means with 95 % intervals
        angle  TE        10.5  [7.89, 13.4]
               NDE       2.62  [1.97, 3.35]
               PNIE      5.25  [3.94, 6.7]
               TNIE      7.88  [5.92, 10.1]
               INT       2.62  [1.97, 3.35]
               TNIE/TE   0.75  [0.75, 0.75]
        TE = NDE (past the mediators) + TNIE (through them); TNIE = PNIE (through them alone) + INT (with the rest)
    """

    te: Effects
    nde: Effects
    pnie: Effects
    tnie: Effects
    interaction: Effects
    cde: Effects | None = None
    intref: Effects | None = None

    @classmethod
    def from_runs(
        cls,
        base: Runs,
        source: Runs,
        noised: Runs,
        denoised: Runs,
        *,
        base_held: Runs | None = None,
        source_held: Runs | None = None,
        resolution: Float[np.ndarray, " target"] | None = None,
        scale: Scale = "difference",
        targets: Sequence[str],
        mediator: str,
        groups: Shaped[np.ndarray, " pair"] | None = None,
        source_groups: Shaped[np.ndarray, " pair"] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Mediation:
        """Mediation from the readouts of the four runs, which must share input pairs and noise.

        Args:
            base: Y(b, b), the base run, [target, pair].
            source: Y(s, s), the source run.
            noised: Y(b, M_s), the base run with the source's mediators.
            denoised: Y(s, M_b), the source run with the base's mediators.
            base_held: Y(b, m), the base run with the mediators held at a value; needs `source_held`.
            source_held: Y(s, m), the source run with the mediators held at the same value.
            resolution: the largest difference between runs that rounding can make, for each target. Quantities that differ by no
                more from 0, or from one another, are 0, or the same; all sums still hold exactly. None: nothing is rounding.
            scale: `"difference"`, in units of the readout, or `"relative"`, each quantity / Y(b, b) of its pair.
            targets: names of the readout's targets.
            mediator: what the mediators are called, e.g. `"encoder.4[0:8]"`.
            groups: id of the base image of each pair.
            source_groups: id of the source image of each pair, where sources are reused.
            provenance: kept with every quantity.

        Returns:
            The quantities, in float64.

        Raises:
            DataError: the runs differ in shape, or do not fit the names, or are not finite; or the scale is relative and
                Y(b, b) changes sign or is near 0 (below 1 % of its mean size) in some pair.
        """
        held = {"base_held": base_held, "source_held": source_held}
        runs = {"base": base, "source": source, "noised": noised, "denoised": denoised} | held
        found = quantities(runs, resolution)
        unit = divisor(base, scale, targets)
        record = (provenance or {}) | {"scale": scale} | ({"unit": "shares of Y(base)"} if scale == "relative" else {})
        names = (mediator,), tuple(targets)

        def effects(name: str, values: np.ndarray) -> Effects:
            estimand = {"PNIE": ESTIMANDS["noising"], "TNIE": ESTIMANDS["denoising"]}.get(name, name)
            return Effects((values / unit)[None], *names, estimand, groups, record, source_groups=source_groups)

        return cls._named({name: effects(name, values) for name, values in found.items()})

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the readout's targets."""
        return self.te.targets

    @property
    def mediator(self) -> str:
        """What the mediators are called."""
        return self.te.units[0]

    @property
    def scale(self) -> str:
        """`"difference"` or `"relative"`."""
        return self.te.provenance.get("scale", "difference")

    @property
    def tde(self) -> Effects:
        """Total direct effect, TE - PNIE."""
        return replace(self.te, values=self.te.values - self.pnie.values, estimand="TDE")

    @property
    def quantities(self) -> dict[str, Effects]:
        """The quantities by their short names: TE, NDE, PNIE, TNIE, INT and, where there are any, CDE and INTref."""
        named = {"TE": self.te, "NDE": self.nde, "PNIE": self.pnie, "TNIE": self.tnie, "INT": self.interaction}
        held = {"CDE": self.cde, "INTref": self.intref}
        return named | {name: effects for name, effects in held.items() if effects is not None}

    @cached_property
    def proportion(self) -> dict[str, Proportion]:
        """TNIE / TE for each target, with its percentile interval; none unless the 95 % interval of TE excludes 0."""
        return self.proportion_of("TNIE")

    def proportion_of(
        self, quantity: str, *, interval: Interval = "percentile", level: float = 0.95
    ) -> dict[str, Proportion]:
        """Another quantity's share of the total effect, or another interval of it; see `proportions`.

        Args:
            quantity: one of `quantities`, such as `"PNIE"` or `"NDE"`.
            interval: `"percentile"` or `"fieller"`.
            level: coverage aimed at.

        Returns: target -> `Proportion`.

        Raises:
            DataError: no such quantity or interval.
        """
        if quantity not in self.quantities:
            raise DataError(f"no quantity {quantity!r} here; there are {', '.join(self.quantities)}.")
        return proportions(self.quantities[quantity], self.te, interval=interval, level=level)

    def to_frame(self) -> pd.DataFrame:
        """One row per target and quantity: target, quantity, value, ci_low, ci_high, note.

        The quantities are those of `quantities` and the proportion TNIE/TE, whose value is missing, with the reason in
        `note`, where it is undefined. Intervals are missing when there is a single independent pair.

        Warns:
            NnsightVaeWarning: intervals from fewer than 10 clusters.
        """
        import pandas as pd

        from nnsight_vae.results.mediation_table import rows

        if self.te.n_clusters > 1:
            warn_if_few(Design.of(self.te.n_pairs, self.te.groups, self.te.source_groups))
        return pd.DataFrame(rows(self), columns=["target", "quantity", "value", "ci_low", "ci_high", "note"])

    def plot(self) -> tuple[Figure, np.ndarray]:
        """Forest plot: the mean of every quantity with its 95 % interval, one panel a target (the first eight).

        Returns:
            The figure and its axes, one per panel.
        """
        from nnsight_vae.plots import plot_mediation

        return plot_mediation(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file (plain arrays and a JSON header, nothing pickled).

        It is also a file of `Effects`: TE, with the other quantities as its parts.

        Raises:
            DataError: the folder does not exist or cannot be written to.
        """
        rest = {name: effects for name, effects in self.quantities.items() if name != "TE"}
        replace(self.te, parts=rest).save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mediation:
        """Read a mediation written by `save`.

        Raises:
            DataError: the file is missing, unreadable, or holds no mediation.
        """
        te = Effects.load(path)
        try:
            return cls._named({"TE": replace(te, parts={})} | te.parts)
        except KeyError as missing:
            raise DataError(f"{Path(path)} holds {te!r}, no mediation ({missing} is missing).") from None

    def select(self, targets: str | Sequence[str]) -> Mediation:
        """The same mediation on some targets, in the order asked for.

        Raises:
            ReadoutError: no such target here.
        """
        return self._named({name: effects.select(targets=targets) for name, effects in self.quantities.items()})

    @classmethod
    def _named(cls, q: Mapping[str, Effects]) -> Mediation:
        return cls(q["TE"], q["NDE"], q["PNIE"], q["TNIE"], q["INT"], q.get("CDE"), q.get("INTref"))

    def __repr__(self) -> str:
        return f"Mediation(through {self.mediator}: {count(len(self.targets), 'target')} x {count(self.te.n_pairs, 'pair')})"

    def __str__(self) -> str:
        from nnsight_vae.results.mediation_table import text

        return text(self)
