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

from nnsight_vae._canvas import bare, channels_last, figure_bytes, means_of, name_ticks, new_figure, quiet, show
from nnsight_vae._files import write_atomically
from nnsight_vae.circuits.drawing.draw import plot_circuit, plot_factor_graph
from nnsight_vae.dose_plot import plot_dose_response
from nnsight_vae.effects_plot import plot_effects
from nnsight_vae.errors import DataError
from nnsight_vae.map_plot import plot_factor_map
from nnsight_vae.style import FAINT, INK, interval_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from nnsight_vae.results.mediation import Mediation

__all__ = [
    "plot_circuit",
    "plot_dose_response",
    "plot_effects",
    "plot_factor_graph",
    "plot_factor_map",
    "plot_image_grid",
    "plot_mediation",
    "plot_traversals",
    "save_figure",
]

FORMATS = ("png", "svg", "pdf")
MOST_PANELS = 8
DEAD_KL = 0.01  # nats: a latent below carries next to nothing


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
            axes.scatter(row.value, place, s=26, color=interval_colour(row.ci_low or 0.0, row.ci_high or 0.0), zorder=3)
        name_ticks(axes.yaxis, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        quiet(axes)
        axes.locator_params(axis="x", nbins=4, min_n_ticks=3)
        axes.set_title(target, loc="left", fontsize=9, color=INK, parse_math=False)
        share = mine["TNIE/TE"]
        said = "none" if share.value is None else f"{share.value:.2f} [{share.ci_low:.2f}, {share.ci_high:.2f}]"
        said = said.replace("-", "\N{MINUS SIGN}")
        axes.set_xlabel(f"TNIE/TE: {said}", fontsize=8, color=FAINT)
    shown = (
        f" (showing {len(targets)} of {len(mediation.targets)} targets)"
        if len(targets) < len(mediation.targets)
        else ""
    )
    unit = ", relative to Y(base)" if mediation.scale == "relative" else _in(mediation.te.provenance.get("unit"))
    text = f"Through {mediation.mediator}{unit}: {means_of(mediation.te.n_clusters)}{shown}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)
    return figure, panels


def _in(unit: str | None) -> str:
    return f", in {unit}" if unit else ""


def plot_traversals(
    images: Float[Tensor, "k steps c h w"] | Float[np.ndarray, "k steps c h w"],
    labels: Sequence[str],
    kl: Sequence[float] | Float[np.ndarray, " k"] | None,
    values: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """Latent traversals, one row a latent, most informative (largest KL) on top; dead rows are pale.

    The last column shows where a row changes: the standard deviation over its steps, on one scale for all rows.

    Args:
        images: decoded images in [0, 1], one traversal per latent; 1 or 3 channels.
        labels: a name per latent.
        kl: mean KL(q(z_k|x) || p(z_k)) per latent, in nats; below 0.01 a row is called dead. None where latents have none: rows
            are then in the order given.
        values: what the latent was set to at each step, written above the columns.

    Returns: the figure and its axes, [k, steps + 1], in the order drawn.

    Raises:
        DataError: shapes, names or numbers that disagree, or images that are not finite.
    """
    array = channels_last(images, 5)
    k, steps = array.shape[:2]
    nats = np.full(k, np.nan) if kl is None else np.asarray(kl, dtype=float)
    if len(labels) != k or nats.shape != (k,) or (values is not None and len(values) != steps):
        raise DataError(
            f"images hold {k} traversals of {steps} steps; got {len(labels)} labels, KL of shape {nats.shape} and "
            f"{'no' if values is None else len(values)} values. There must be one label and KL per traversal."
        )
    change = array.std(axis=1).mean(axis=-1)
    figure = new_figure(1.5 + 0.62 * (steps + 1), 0.5 + 0.62 * k)
    axes = figure.subplots(k, steps + 1, squeeze=False)
    for row, latent in enumerate(np.argsort(-nats, kind="stable")):
        dead = nats[latent] < DEAD_KL
        for step in range(steps):
            show(axes[row, step], array[latent, step], alpha=0.35 if dead else 1.0)
        axes[row, -1].imshow(change[latent], cmap="cividis", vmin=0.0, vmax=float(change.max()) or 1.0)
        bare(axes[row, -1])
        note = labels[latent] + ("" if kl is None else f"\n{'dead, ' if dead else ''}KL {nats[latent]:.2f} nats")
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
