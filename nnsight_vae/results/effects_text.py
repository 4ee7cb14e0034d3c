"""Effects as text: in a line, and the largest with their intervals."""

from __future__ import annotations

import math

import numpy as np

from nnsight_vae.guards import FEW_CLUSTERS
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats import intervals
from nnsight_vae.stats.clusters import Design
from nnsight_vae.wording import count

_SHOWN = 10


def line(effects: Effects) -> str:
    """What `repr(effects)` is: of what, over how much, and the largest."""
    sizes = count(len(effects.units), "unit"), count(len(effects.targets), "target"), count(effects.n_pairs, "pair")
    text = f"Effects({effects.estimand}: {' x '.join(sizes)}{_clusters(effects)}"
    if effects.units:
        mean = effects.mean()
        unit, target = np.unravel_index(np.abs(mean).argmax(), mean.shape)
        text += f"; largest mean {effects.units[unit]} -> {effects.targets[target]} {mean[unit, target]:+.3g}"
    return text + ")"


def _clusters(effects: Effects) -> str:
    if effects.groups is None:
        return ""
    if effects.source_groups is None:
        return f" ({effects.n_clusters} clusters)"
    ways = Design.of(effects.n_pairs, effects.groups, effects.source_groups).ways
    return " ({} bases x {} sources)".format(*map(len, ways))


def table(effects: Effects) -> str:
    """What `print(effects)` shows: the largest mean effects with 95 % intervals, after `significant` of those that passed."""
    mean, test = effects.mean(), effects.test
    listed = test.passed if test else np.ones(mean.shape, dtype=bool)
    places = sorted(zip(*np.nonzero(listed), strict=True), key=lambda place: -abs(mean[place]))
    shown = places[:_SHOWN]
    lines = [_head(effects)]
    if test:
        lines.append(
            f"{len(places):,} of {test.n_tests:,} larger than {test.min_effect:g} at false discovery rate {test.level:g}"
        )
    lines += _rows(effects, shown) if shown else []
    if len(places) > len(shown):
        lines.append(f"... and {len(places) - len(shown):,} smaller: see to_frame()")
    return "\n".join(lines)


def _head(effects: Effects) -> str:
    clusters = effects.n_clusters
    few = ", indicative with so few" if clusters < FEW_CLUSTERS else ""
    how = f"with 95 % intervals over {clusters:,} clusters{few}" if clusters > 1 else "without intervals"
    unit = effects.provenance.get("unit")
    return f"{effects.estimand}{f', in {unit}' if unit else ''}: means of {count(effects.n_pairs, 'pair')} {how}"


def _rows(effects: Effects, places: list[tuple[int, int]]) -> list[str]:
    at = tuple(np.array(places).T)
    values = effects.values[at]
    mean = values.mean(axis=1, dtype=np.float64)
    decimals = _decimals(float(np.abs(mean).max()))
    header = ["unit", "target", "effect"]
    cells = [
        [effects.units[u], effects.targets[t], _signed(m, decimals)] for (u, t), m in zip(places, mean, strict=True)
    ]
    if effects.n_clusters > 1:
        header.append("95 % interval")
        low, high = intervals.mean_interval(values, effects.groups, effects.source_groups)
        for row, a, b in zip(cells, low, high, strict=True):
            row.append(f"[{_signed(a, decimals)}, {_signed(b, decimals)}]")
    if effects.test:
        header.append("q")
        for row, q in zip(cells, effects.test.q[at], strict=True):
            row.append(f"{q:.2g}")
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *cells)
    ]


def _signed(value: float, decimals: int) -> str:
    """With a sign, but for what rounds to 0."""
    text = f"{value:+.{decimals}f}"
    return text if text.strip("+-0.") else f" {text[1:]}"


def _decimals(largest: float) -> int:
    """As many as show three digits of the largest."""
    return 3 if largest == 0 else min(max(2 - math.floor(math.log10(largest)), 0), 12)
