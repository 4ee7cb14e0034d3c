"""Pictures of effects: a heat map of several targets, dots with intervals of one, a map of positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nnsight_vae._canvas import (
    diverging,
    means_of,
    name_ticks,
    new_figure,
    power_of_ten,
    quiet,
    scaled_ticks,
    title,
    write_numbers,
)
from nnsight_vae.errors import DataError
from nnsight_vae.position_plot import Positions, plot_positions
from nnsight_vae.stats.intervals import mean_interval
from nnsight_vae.style import FAINT, INK, interval_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_vae.results.effects import Effects

_WRITTEN = 8  # targets up to which cells show their numbers
_NAMED = 24  # targets up to which columns are named


def plot_effects(effects: Effects, top: int = 30) -> tuple[Figure, Axes]:
    """Mean effects: a heat map of units and targets; for one target, dots and intervals; of every position of a site, a map.

    Heat map: units down, targets across, one symmetric colour scale. Cells that passed `Effects.significant` carry a dot. With
    few targets every cell shows its number, in the unit that the colour bar names; pale where its 95 % interval covers 0.
    Of one target, blue raises and orange lowers, clear of 0; grey is neither.

    Args:
        effects: what interventions did, from any of the four levels.
        top: the units with the largest |mean effect| that are shown, in their own order; the title says "30 of 512". A map
            shows every position.

    Returns: the figure and its axes.

    Raises:
        DataError: there is no unit to draw, or `top` is not positive.
    """
    if top < 1 or not effects.units:
        raise DataError(f"Nothing to draw: {len(effects.units)} units, top={top}. Plot effects before `significant`.")
    mean = effects.mean()
    if len(effects.targets) == 1 and (positions := Positions.of(effects.units)):
        return plot_positions(effects, positions)
    rows = np.sort(np.argsort(-np.abs(mean).max(axis=1), kind="stable")[:top])
    if len(effects.targets) == 1:
        return _plot_one_target(effects, rows)
    return _plot_heat_map(effects, mean, rows)


def _plot_heat_map(effects: Effects, mean: np.ndarray, rows: np.ndarray) -> tuple[Figure, Axes]:
    values, n_targets = mean[rows], mean.shape[1]
    limit = float(np.abs(values).max()) or 1.0
    longest, longest_target = max(len(effects.units[i]) for i in rows), max(map(len, effects.targets))
    cell = min(max(0.6, 0.08 * longest_target), 1.2)  # inches
    width = max(3.5, min(cell * n_targets, 9.0))  # room for the title above a single column
    figure = new_figure(1.5 + 0.075 * longest + width, 1.2 + 0.24 * max(len(rows), 5))
    axes = figure.add_subplot()
    scale, named = power_of_ten(limit, effects.provenance.get("unit"))
    image = axes.imshow(values, cmap=diverging(), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    name_ticks(axes.yaxis, [effects.units[i] for i in rows])
    if n_targets <= _NAMED:
        name_ticks(axes.xaxis, effects.targets)
        if n_targets * max(cell, 0.08 * longest_target) > 9.0 or 0.08 * longest_target > cell:
            axes.tick_params(axis="x", rotation=35)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    else:
        axes.set_xlabel(f"{n_targets} targets", fontsize=8, color=FAINT)
    quiet(axes)
    axes.set_xticks(np.arange(n_targets + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    if n_targets <= _NAMED:
        axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    notes = [f"showing {len(rows)} of {len(effects.units)} units"] if len(rows) < len(effects.units) else []
    if n_targets <= _WRITTEN:
        clear = _intervals(effects, rows).clear
        write_numbers(axes, values, clear, limit, scale)
        notes += [] if clear.all() else ["pale: 95 % interval covers 0"]
    notes += [f"{effects.n_clusters:,} clusters"] if effects.n_clusters > 1 else []
    if effects.test:
        passed_rows, passed_columns = np.nonzero(effects.test.passed[rows])
        axes.scatter(passed_columns + 0.42, passed_rows - 0.3, s=9, color=INK, edgecolors="white", linewidths=0.5)
        notes.append(f"dot: larger than {effects.test.min_effect:g}, FDR {effects.test.level:g}")
    title(axes, effects.estimand, "; ".join(notes), width=1.2 + width)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / len(rows)), pad=0.02)
    bar.formatter = scaled_ticks(scale)
    bar.set_label(f"mean effect{named}\n(lowers | raises)", fontsize=8, color=FAINT)
    quiet(bar.ax)
    return figure, axes


class _Bounds(NamedTuple):
    low: np.ndarray
    high: np.ndarray
    clear: np.ndarray


def _intervals(effects: Effects, rows: np.ndarray) -> _Bounds:
    """95 % intervals of these units, [unit, target], and which are clear of 0; of a single cluster, every one counts as clear."""
    shown = effects.values[rows]
    if effects.n_clusters < 2:
        none = np.zeros(shown.shape[:2])
        return _Bounds(none, none, np.ones(none.shape, dtype=bool))
    low, high = mean_interval(shown, effects.groups, effects.source_groups)
    return _Bounds(low, high, (low > 0) | (high < 0))


def _plot_one_target(effects: Effects, rows: np.ndarray) -> tuple[Figure, Axes]:
    """Means with 95 % intervals, one unit a line; filled where the effect passed `significant`, or none was tested."""
    mean = effects.mean()[rows, 0]
    width, longest = 4.2, max(len(effects.units[i]) for i in rows)
    figure = new_figure(0.8 + 0.075 * longest + width, 1.0 + 0.2 * len(rows))
    axes = figure.add_subplot()
    passed = effects.test.passed[rows, 0] if effects.test else np.ones(len(rows), dtype=bool)
    places = np.arange(len(rows))
    bounds = _intervals(effects, rows)
    low, high = bounds.low[:, 0], bounds.high[:, 0]
    if effects.n_clusters > 1:
        axes.hlines(places, low, high, color=FAINT, linewidth=1.4, zorder=2)
    axes.axvline(0.0, color=FAINT, linewidth=0.6, zorder=1)
    colours = [interval_colour(*interval) for interval in zip(low, high, strict=True)]
    axes.scatter(mean, places, s=22, c=colours, zorder=3, linewidths=1.2)
    axes.scatter(mean[~passed], places[~passed], s=8, color="white", zorder=4)
    name_ticks(axes.yaxis, [effects.units[i] for i in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    quiet(axes)
    unit = effects.provenance.get("unit")
    what = f"effect on {effects.targets[0]}{f', {unit}' if unit else ''}"
    axes.set_xlabel(f"{what}\n{means_of(effects.n_clusters)}", fontsize=8, color=FAINT, parse_math=False)
    note = f"showing {len(rows)} of {len(effects.units)} units" if len(rows) < len(effects.units) else ""
    title(axes, effects.estimand, note, width=width)
    return figure, axes
