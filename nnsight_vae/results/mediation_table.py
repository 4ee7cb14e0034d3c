"""A mediation as rows and as text: every quantity of every target with its interval, and what the quantities are."""

from __future__ import annotations

from typing import NamedTuple

from nnsight_vae.guards import FEW_CLUSTERS
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.mediation import Mediation
from nnsight_vae.stats import intervals
from nnsight_vae.wording import count

_LEVEL = 0.95
_PRINTED_TARGETS = 8


class Row(NamedTuple):
    """One quantity of one target; None where there is no number, with the reason in `note`."""

    target: str
    quantity: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    note: str


def rows(mediation: Mediation) -> list[Row]:
    """The mean of every quantity of every target with its 95 % interval, and the proportion TNIE/TE after them."""
    quantities = mediation.quantities
    means = {name: effects.mean()[0] for name, effects in quantities.items()}
    bounds = {name: _bounds(effects) for name, effects in quantities.items()}
    found: list[Row] = []
    for i, target in enumerate(mediation.targets):
        found += [Row(target, name, float(means[name][i]), *bounds[name][i], "") for name in quantities]
        share = mediation.proportion[target]
        found.append(Row(target, "TNIE/TE", share.value, share.low, share.high, share.reason))
    return found


def text(mediation: Mediation) -> str:
    """What `print(mediation)` shows: the first eight targets, then what the quantities are."""
    te = mediation.te
    clusters = "" if te.groups is None else f" ({te.n_clusters} independent)"
    intervals = "means with 95 % intervals"
    if te.n_clusters < 2:
        intervals = "no intervals from a single independent pair"
    elif te.n_clusters < FEW_CLUSTERS:
        intervals += ", indicative with so few pairs"
    relative = ", relative to Y(base)" if mediation.scale == "relative" else ""
    lines = [f"Mediation through {mediation.mediator}: {count(te.n_pairs, 'pair')}{clusters}, {intervals}{relative}"]
    shown = rows(mediation.select(mediation.targets[:_PRINTED_TARGETS]))
    width = max(len(row.target) for row in shown)
    numbers = max(len(_number(row.value)) for row in shown)
    for row in shown:
        label = row.target if row.quantity == "TE" else ""
        interval = "" if row.ci_low is None else f"[{_number(row.ci_low)}, {_number(row.ci_high)}]"
        cells = f"none: {row.note}" if row.note else f"{_number(row.value):<{numbers}}  {interval}"
        lines.append(f"{label:<{width}}  {row.quantity:<8}  {cells}".rstrip())
    if len(mediation.targets) > _PRINTED_TARGETS:
        lines.append(f"... and {len(mediation.targets) - _PRINTED_TARGETS} more targets: see to_frame()")
    lines.append(
        "TE = NDE (past the mediators) + TNIE (through them); TNIE = PNIE (through them alone) + INT (with the rest)"
    )
    if mediation.cde is not None:
        lines.append(f"NDE = CDE (mediators at {te.provenance.get('hold', 'a value')}) + INTref")
    return "\n".join(lines)


def _bounds(effects: Effects) -> list[tuple[float | None, float | None]]:
    if effects.n_clusters < 2:
        return [(None, None)] * len(effects.targets)
    low, high = intervals.mean_interval(effects.values[0], effects.groups, effects.source_groups, level=_LEVEL)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
