"""The picture of a faithfulness curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_vae._canvas import means_of, new_figure, quiet, title
from nnsight_vae.dose_plot import COLOURS, MARKERS
from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Design
from nnsight_vae.style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_vae.circuits.evaluation.faithfulness_result import Faithfulness


def plot_curve(result: Faithfulness) -> tuple[Figure, Axes]:
    """Faithfulness over the number of edges, which grow by factors, with 95 % intervals; 0 and 1 are marked.

    Args:
        result: from `faithfulness`.

    Returns: the figure and its axes.

    Raises:
        DataError: there is no curve, or it is not defined for any target.
    """
    frame = result.curve_frame().dropna(subset="f")
    if frame.empty:
        raise DataError("Nothing to draw: the curve has no size, or no target has a total effect clear of 0.")
    figure = new_figure(5.5, 3.4)
    axes = figure.add_subplot()
    for level in (0.0, 1.0):
        axes.axhline(level, color=FAINT, linewidth=0.6, zorder=1)
    for i, (name, points) in enumerate(frame.groupby("readout", sort=False)):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.fill_between(points.n_edges, points.ci_low, points.ci_high, color=colour, alpha=0.2, linewidth=0, zorder=2)
        axes.plot(
            points.n_edges, points.f, color=colour, marker=marker, markersize=4, linewidth=1.4, label=name, zorder=3
        )
    axes.axvline(result.n_edges, color=FAINT, linewidth=0.6, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xscale("log")
    quiet(axes)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel(f"strongest edges kept (dashes: the circuit's {result.n_edges:,})", fontsize=8, color=FAINT)
    axes.set_ylabel("faithfulness", fontsize=8, color=FAINT)
    legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    n_clusters = Design.of(result.n_pairs, result.groups, result.source_groups).n_clusters
    title(axes, f"faithfulness by size, {means_of(n_clusters)}")
    return figure, axes
