"""Figures for a notebook or a paper: blue raises, orange lowers; nothing global is touched, nothing is shown.

Every function returns `(figure, axes)`. The figures are plain `matplotlib.figure.Figure` objects, made without pyplot,
so they neither need nor change a backend, and are freed like any object. `save_figure` writes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from nnsight_vae._canvas import (
    bare,
    channels_last,
    diverging,
    figure_bytes,
    means_of,
    name_ticks,
    new_figure,
    power_of_ten,
    quiet,
    scaled_ticks,
    show,
    signed,
    title,
)
from nnsight_vae._files import write_atomically
from nnsight_vae.circuits.drawing.draw import plot_circuit, plot_factor_graph
from nnsight_vae.dose_plot import plot_dose_response
from nnsight_vae.errors import DataError
from nnsight_vae.stats.intervals import mean_interval
from nnsight_vae.style import FAINT, INK, LOWERS, NEUTRAL, RAISES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from nnsight_vae.results.effects import Effects
    from nnsight_vae.results.mediation import Mediation

__all__ = [
    "plot_circuit",
    "plot_dose_response",
    "plot_effects",
    "plot_factor_graph",
    "plot_image_grid",
    "plot_mediation",
    "plot_traversals",
    "save_figure",
]

FORMATS = ("png", "svg", "pdf")
MOST_PANELS = 8
DEAD_KL = 0.01  # nats: a latent below carries next to nothing


def plot_effects(effects: Effects, top: int = 30) -> tuple[Figure, Axes]:
    """Heat map of mean effects: units down, targets across, one symmetric colour scale; for one target, dots and intervals.

    Cells that passed `Effects.significant` carry a dot. With few targets every cell shows its number, in the unit that the
    colour bar names. Of one target, blue raises and orange lowers, clear of 0; grey is neither.

    Args:
        effects: what interventions did, from any of the four levels.
        top: the units with the largest |mean effect| that are shown, in their own order; the title says "30 of 512".

    Raises:
        DataError: there is no unit to draw, or `top` is not positive.
    """
    if top < 1 or not effects.units:
        raise DataError(f"Nothing to draw: {len(effects.units)} units, top={top}. Plot effects before `significant`.")
    mean = effects.mean()
    rows = np.sort(np.argsort(-np.abs(mean).max(axis=1), kind="stable")[:top])
    if len(effects.targets) == 1:
        return _plot_one_target(effects, rows)
    values, n_targets = mean[rows], mean.shape[1]
    limit = float(np.abs(values).max()) or 1.0
    longest, longest_target = max(len(effects.units[i]) for i in rows), max(map(len, effects.targets))
    cell = min(max(0.6, 0.08 * longest_target), 1.2)  # inches
    width = max(3.5, min(cell * n_targets, 9.0))  # room for the title above a single column
    figure = new_figure(1.5 + 0.075 * longest + width, 1.2 + 0.24 * max(len(rows), 5))
    axes = figure.add_subplot()
    unit, unit_name = power_of_ten(limit)
    image = axes.imshow(values, cmap=diverging(), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    name_ticks(axes.yaxis, [effects.units[i] for i in rows])
    if n_targets <= 24:
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
    if n_targets <= 24:
        axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    if n_targets <= 8:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.5 * limit else INK
            axes.text(j, i, signed(value / unit) if value else "0", ha="center", va="center", fontsize=7, color=colour)
    if effects.test:
        passed_rows, passed_columns = np.nonzero(effects.test.passed[rows])
        axes.scatter(passed_columns + 0.42, passed_rows - 0.3, s=9, color=INK, edgecolors="white", linewidths=0.5)
    shown = f"showing {len(rows)} of {len(effects.units)} units" if len(rows) < len(effects.units) else ""
    title(axes, effects.estimand, shown, width=1.2 + width)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / len(rows)), pad=0.02)
    bar.formatter = scaled_ticks(unit)
    bar.set_label(f"mean effect{unit_name} (lowers | raises)", fontsize=8, color=FAINT)
    quiet(bar.ax)
    return figure, axes


def _plot_one_target(effects: Effects, rows: np.ndarray) -> tuple[Figure, Axes]:
    """Means with 95 % intervals, one unit a line; filled where the effect passed `significant`, or none was tested."""
    mean, shown = effects.mean()[rows, 0], effects.values[rows, 0]
    width, longest = 4.2, max(len(effects.units[i]) for i in rows)
    figure = new_figure(0.8 + 0.075 * longest + width, 1.0 + 0.2 * len(rows))
    axes = figure.add_subplot()
    passed = effects.test.passed[rows, 0] if effects.test else np.ones(len(rows), dtype=bool)
    places = np.arange(len(rows))
    low = high = np.zeros(len(rows))
    if effects.n_clusters > 1:
        low, high = mean_interval(shown, effects.groups, effects.source_groups)
        axes.hlines(places, low, high, color=FAINT, linewidth=1.4, zorder=2)
    axes.axvline(0.0, color=FAINT, linewidth=0.6, zorder=1)
    colours = [_colour(*interval) for interval in zip(low, high, strict=True)]
    axes.scatter(mean, places, s=22, c=colours, zorder=3, linewidths=1.2)
    axes.scatter(mean[~passed], places[~passed], s=8, color="white", zorder=4)
    name_ticks(axes.yaxis, [effects.units[i] for i in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    quiet(axes)
    axes.set_xlabel(
        f"effect on {effects.targets[0]}, {means_of(effects.n_clusters)}", fontsize=8, color=FAINT, parse_math=False
    )
    note = f"showing {len(rows)} of {len(effects.units)} units" if len(rows) < len(effects.units) else ""
    title(axes, effects.estimand, note, width=width)
    return figure, axes


def _colour(low: float, high: float) -> str:
    """Of an effect with this interval: clear of 0 on one side, or neither."""
    return RAISES if low > 0 else LOWERS if high < 0 else NEUTRAL


def plot_mediation(mediation: Mediation) -> tuple[Figure, np.ndarray]:
    """Forest plot of a mediation: mean and 95 % interval of every quantity, one panel a target; the proportion below it.

    Blue raises and orange lowers, clear of 0; grey is neither.

    Args:
        mediation: what `nv.mediate` returned. Of more than eight targets the first eight are shown, and the title says so.

    Returns: the figure and its axes, [target].
    """
    from nnsight_vae.results.mediation_table import rows

    targets = mediation.targets[:MOST_PANELS]
    names = list(mediation.quantities)
    figure = new_figure(1.2 + 2.6 * len(targets), 1.3 + 0.26 * len(names))
    panels = figure.subplots(1, len(targets), squeeze=False, sharey=True)[0]
    found = rows(mediation.select(targets))
    for axes, target in zip(panels, targets, strict=True):
        mine = {row.quantity: row for row in found if row.target == target}
        axes.axvline(0.0, color=FAINT, linewidth=0.6, zorder=1)
        for place, name in enumerate(names):
            row = mine[name]
            if row.ci_low is not None and row.ci_high is not None:
                axes.hlines(place, row.ci_low, row.ci_high, color=FAINT, linewidth=1.4, zorder=2)
            axes.scatter(row.value, place, s=26, color=_colour(row.ci_low or 0.0, row.ci_high or 0.0), zorder=3)
        name_ticks(axes.yaxis, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        quiet(axes)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(target, loc="left", fontsize=9, color=INK, parse_math=False)
        share = mine["TNIE/TE"]
        said = "none" if share.value is None else f"{share.value:.2f} [{share.ci_low:.2f}, {share.ci_high:.2f}]"
        axes.set_xlabel(f"TNIE/TE: {said}", fontsize=8, color=FAINT)
    shown = (
        f" (showing {len(targets)} of {len(mediation.targets)} targets)"
        if len(targets) < len(mediation.targets)
        else ""
    )
    unit = ", relative to Y(base)" if mediation.scale == "relative" else ""
    text = f"Through {mediation.mediator}{unit}: {means_of(mediation.te.n_clusters)}{shown}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)
    return figure, panels


def plot_traversals(
    images: Float[Tensor, "k steps c h w"] | Float[np.ndarray, "k steps c h w"],
    labels: Sequence[str],
    kl: Sequence[float] | Float[np.ndarray, " k"],
    values: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """Latent traversals, one row a latent, most informative (largest KL) on top; dead rows are pale.

    The last column shows where a row changes: the standard deviation over its steps, on one scale for all rows.

    Args:
        images: decoded images in [0, 1], one traversal per latent; 1 or 3 channels.
        labels: a name per latent.
        kl: mean KL(q(z_k|x) || p(z_k)) per latent, in nats; below 0.01 a row is called dead.
        values: what the latent was set to at each step, written above the columns.

    Returns: the figure and its axes, [k, steps + 1], in the order drawn.

    Raises:
        DataError: shapes, names or numbers that disagree, or images that are not finite.
    """
    array, kl = channels_last(images, 5), np.asarray(kl, dtype=float)
    k, steps = array.shape[:2]
    if len(labels) != k or kl.shape != (k,) or (values is not None and len(values) != steps):
        raise DataError(
            f"images hold {k} traversals of {steps} steps; got {len(labels)} labels, KL of shape {kl.shape} and "
            f"{'no' if values is None else len(values)} values. There must be one label and KL per traversal."
        )
    change = array.std(axis=1).mean(axis=-1)
    figure = new_figure(1.5 + 0.62 * (steps + 1), 0.5 + 0.62 * k)
    axes = figure.subplots(k, steps + 1, squeeze=False)
    for row, latent in enumerate(np.argsort(-kl, kind="stable")):
        dead = kl[latent] < DEAD_KL
        for step in range(steps):
            show(axes[row, step], array[latent, step], alpha=0.35 if dead else 1.0)
        axes[row, -1].imshow(change[latent], cmap="cividis", vmin=0.0, vmax=float(change.max()) or 1.0)
        bare(axes[row, -1])
        note = f"{labels[latent]}\n{'dead, ' if dead else ''}KL {kl[latent]:.2f}"
        axes[row, 0].set_ylabel(note, rotation=0, ha="right", va="center", fontsize=8, color=FAINT if dead else INK)
        axes[row, 0].yaxis.label.set_parse_math(False)
    for step, value in enumerate(values if values is not None else ()):
        axes[0, step].set_title(f"{value:+.1f}".replace("-", "\N{MINUS SIGN}"), fontsize=8, color=FAINT)
    axes[0, -1].set_title("change", fontsize=8, color=FAINT)
    return figure, axes


def plot_image_grid(
    images: Float[Tensor, "n c h w"] | Float[np.ndarray, "n c h w"],
    titles: Sequence[str] | None = None,
    columns: int = 8,
) -> tuple[Figure, np.ndarray]:
    """Images in rows, each with its title.

    Args:
        images: in [0, 1]; 1 or 3 channels.
        titles: one per image.
        columns: images a row.

    Returns: the figure and its axes, [rows, columns]; those beyond the last image are invisible.

    Raises:
        DataError: no image, images that are not finite, or another number of titles.
    """
    array = channels_last(images, 4)
    if (titles is not None and len(titles) != len(array)) or columns < 1:
        raise DataError(f"{len(array)} images, {len(titles or ())} titles, {columns} columns: one title per image.")
    columns = min(columns, len(array))
    rows = -(-len(array) // columns)
    figure = new_figure(0.3 + 0.95 * columns, 0.3 + (1.15 if titles else 0.95) * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, each in enumerate(axes.flat):
        if i >= len(array):
            each.set_visible(False)
            continue
        show(each, array[i])
        if titles is not None:
            each.set_title(titles[i], fontsize=8, color=INK, parse_math=False)
    return figure, axes


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as .png, .svg or .pdf (200 dots an inch); the same figure gives the same bytes.

    The file appears whole or not at all.

    Raises:
        DataError: another suffix, or a folder that cannot be written to.
    """
    path = Path(path)
    file_format = path.suffix.lower().lstrip(".")
    if file_format not in FORMATS:
        raise DataError(f"{path.name!r}: figures are written as {', '.join('.' + name for name in FORMATS)}.")
    write_atomically(path, figure_bytes(figure, file_format))
    return path
