"""The picture of a dose-response: curves of a few units with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnsight_vae._canvas import means_of, new_figure, quiet, title
from nnsight_vae.errors import DataError
from nnsight_vae.stats.intervals import mean_interval
from nnsight_vae.style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_vae.results.dose_response import DoseResponse

# Okabe & Ito's palette, told apart with every common colour blindness; markers and end labels tell without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"


def plot_dose_response(response: DoseResponse, top: int = 6) -> tuple[Figure, Axes]:
    """Mean responses over the doses with 95 % intervals, for the units with the largest range.

    Args:
        response: from `dose_response`.
        top: how many units; the title says "6 of 512".

    Returns: the figure and its axes.

    Raises:
        DataError: `top` is not positive.
    """
    if top < 1:
        raise DataError(f"Nothing to draw: top={top}.")
    curves = response.values.mean(axis=2)
    rows = np.argsort(-np.ptp(curves, axis=1), kind="stable")[:top]
    figure = new_figure(5.5, 3.4)
    axes = figure.add_subplot()
    axes.axhline(0.0, color=FAINT, linewidth=0.6, zorder=1)
    shown = response.change().select([response.units[i] for i in rows])
    bands = mean_interval(shown.values, shown.groups) if shown.n_clusters > 1 else None
    for i, row in enumerate(rows):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        if bands is not None:
            axes.fill_between(response.doses, bands[0][i], bands[1][i], color=colour, alpha=0.2, linewidth=0, zorder=2)
        axes.plot(
            response.doses,
            curves[row],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            label=response.units[row],
            zorder=3,
        )
    quiet(axes)
    axes.set_xlabel(response.factor, fontsize=8, color=FAINT, parse_math=False)
    axes.set_ylabel("response, sd of the unit", fontsize=8, color=FAINT)
    legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    note = f"showing {len(rows)} of {len(response.units)} units" if len(rows) < len(response.units) else ""
    title(axes, f"response to do({response.factor}), {means_of(shown.n_clusters)}", note)
    return figure, axes
