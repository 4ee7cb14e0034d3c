"""The picture of a faithfulness curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnsight_vae._canvas import means_of, new_figure, quiet, title
from nnsight_vae.dose_plot import COLOURS, MARKERS
from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Design
from nnsight_vae.style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_vae.circuits.evaluation.faithfulness_result import Faithfulness

_DASHES = {"weight": (0, (5, 2)), "correlation": (0, (5, 2, 1, 2)), "random": (0, (1, 1.5))}


def plot_curve(result: Faithfulness) -> tuple[Figure, Axes]:
    """Faithfulness over the number of edges, which grow by factors, with 95 % intervals; 0 and 1 are marked, baselines dashed.

    Args:
        result: from `faithfulness`.

    Returns: the figure and its axes.

    Raises:
        DataError: there is no curve, or it is not defined for any target.
    """
    frame = result.curve_frame().dropna(subset="f")
    if frame.empty:
        raise DataError("Nothing to draw: the curve has no size, or no target has a total effect clear of 0.")
    n_targets = frame.readout.nunique()
    figure = new_figure(5.5, 3.4)
    axes = figure.add_subplot()
    for level in (0.0, 1.0):
        axes.axhline(level, color=FAINT, linewidth=0.6, zorder=1)
    for i, (name, of_target) in enumerate(frame.groupby("readout", sort=False)):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        for ranking, points in of_target.groupby("ranking", sort=False):
            own = ranking == "circuit"
            look: dict[str, Any] = {"marker": marker, "markersize": 4, "linewidth": 1.4, "zorder": 3}
            if not own:
                look = {"linewidth": 1.1, "linestyle": _DASHES[str(ranking)], "zorder": 2}
            shade = colour if own or n_targets > 1 else FAINT
            axes.fill_between(
                points.n_edges,
                points.ci_low,
                points.ci_high,
                color=shade,
                alpha=0.2 if own else 0.1,
                linewidth=0,
                zorder=1.5,
            )
            label = str(name) if own else str(ranking) if n_targets == 1 else f"{name}, {ranking}"
            axes.plot(points.n_edges, points.f, color=shade, label=label, **look)
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
