"""Pictures of circuits and factor graphs with matplotlib, from the same scene as the interactive page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import networkx as nx

from nnsight_vae._canvas import faint_text, new_figure, signed
from nnsight_vae.causal.graph_scores import Kind
from nnsight_vae.causal.graphs import compare
from nnsight_vae.circuits.drawing.heading import heading, unit
from nnsight_vae.circuits.drawing.prominence import strength, strongest, without_weak_edges
from nnsight_vae.circuits.drawing.scene import BOX_HEIGHT, Box, Curve, Scene, line_width, scene
from nnsight_vae.errors import CircuitError
from nnsight_vae.style import FAINT, INK, LOWERS, NEUTRAL, RAISES, factor_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIXELS_PER_INCH = 100
_LEGEND = 34.0  # pixels below the drawing
_POINTS = 0.72  # a pixel of 1/100 inch
_DASHED = (0, (4, 2.5))

# found, missed, extra and reversed edges differ in dash as well as in colour: they can be told apart in print
_FOUND = {"edgecolor": INK, "linestyle": "-", "linewidth": 1.8}
_MISSED = {"edgecolor": NEUTRAL, "linestyle": (0, (5, 3)), "linewidth": 1.4}
_EXTRA = {"edgecolor": LOWERS, "linestyle": (0, (1, 1.4)), "linewidth": 2.0}
_REVERSED = {"edgecolor": LOWERS, "linestyle": (0, (7, 2, 1.2, 2)), "linewidth": 2.0}


def plot_circuit(circuit: nx.DiGraph, max_nodes: int = 60, max_edges: int = 200) -> tuple[Figure, Axes]:
    """A circuit drawn left to right by layer: blue edges raise, orange edges lower, width is the root of |effect|.

    An edge whose interval (`ci_low`, `ci_high`) covers 0 is dashed; one without a finite effect is grey. In the circuits of
    several factors (`circuits.union`) colour is the factor and width the root of the share of its total effect.

    Args:
        circuit: node attributes `layer`, `kind`, `site`, `stage`; edge attribute `effect` (or `weight`). Nodes without
            `layer` are placed by longest path.
        max_nodes: draw the nodes with the strongest edges of their layers only (factors and readouts first); the title says so.
        max_edges: likewise, but no node loses its strongest edges.

    Raises:
        CircuitError: no node, or not a directed graph.
    """
    if not isinstance(circuit, nx.DiGraph) or not circuit or max_nodes < 1 or max_edges < 0:
        raise CircuitError(
            f"Nothing to draw: {circuit!r}, max_nodes={max_nodes}, max_edges={max_edges}. Expected a DiGraph with nodes."
        )
    shown = without_weak_edges(strongest(circuit, max_nodes), max_edges)
    drawing = scene(shown)
    figure, axes = _page(drawing)
    for curve in drawing.curves:
        look = {"edgecolor": curve.colour, "linewidth": _POINTS * curve.width}
        look |= {"linestyle": _DASHED, "alpha": 0.55} if curve.uncertain else {"alpha": 0.8}
        _curve(axes, curve, arrow=False, **look)
    _boxes(axes, drawing.boxes)
    for x, text in drawing.titles:
        faint_text(axes, x, 16.0, text, ha="center", va="center", weight="bold")
    title, source = heading(circuit)
    counts = ""
    if (len(shown), shown.number_of_edges()) != (len(circuit), circuit.number_of_edges()):
        counts = (
            f"showing {len(shown)} of {len(circuit):,} nodes, "
            f"{shown.number_of_edges()} of {circuit.number_of_edges():,} edges"
        )
    lines = [title, " · ".join(filter(None, (source, counts)))]
    axes.set_title("\n".join(filter(None, lines)), loc="left", fontsize=9, color=INK, parse_math=False)
    _legend(axes, _circuit_legend(drawing, factor_colours(circuit.graph), unit(circuit)))
    return figure, axes


def plot_factor_graph(estimated: nx.DiGraph, truth: nx.DiGraph, *, kind: Kind | None = None) -> tuple[Figure, Axes]:
    """An estimated factor graph over the true one: found, missed, extra and reversed edges by dash and colour.

    As in `causal.compare`, a total-effect graph is drawn over the transitive closure of `truth`; the title says which.
    On an estimated edge stand its `size` with its interval, which is what its test is about; or its `effect` or `weight`.

    Args:
        estimated: the model's graph, over the same factors as `truth`.
        truth: the true DAG.
        kind: "total" or "direct"; overrides `estimated.graph["estimand"]`.

    Raises:
        CircuitError: graphs that `causal.compare` refuses.
    """
    result = compare(estimated, truth, kind=kind)
    wrong = dict.fromkeys(result.extra, _EXTRA) | dict.fromkeys(result.reversed, _REVERSED)
    looks = {edge: wrong.get(edge, _FOUND) for edge in estimated.edges} | dict.fromkeys(result.missed, _MISSED)
    union = nx.DiGraph()
    for column, generation in enumerate(nx.topological_generations(truth)):
        union.add_nodes_from(generation, layer=column)
    union.add_edges_from(looks)
    drawing = scene(union, row=84.0, gap=300.0, spread=24.0)
    figure, axes = _page(drawing)
    for curve in drawing.curves:
        edge = (curve.source, curve.target)
        _curve(axes, curve, arrow=True, **looks[edge])
        text = _size_of(estimated.edges[edge]) if edge in estimated.edges else None
        if text is not None:
            x, y = _near_source(curve)
            backing = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            faint_text(
                axes,
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color=looks[edge]["edgecolor"],
                bbox=backing,
                zorder=2.5,
            )
    _boxes(axes, drawing.boxes)
    axes.set_title(f"SHD {result.shd:.0f} against {result.compared_with}", loc="left", fontsize=9, color=INK)
    counts = {
        "found": (_FOUND, estimated.number_of_edges() - len(wrong)),
        "missed": (_MISSED, len(result.missed)),
        "extra": (_EXTRA, len(result.extra)),
        "reversed": (_REVERSED, len(result.reversed)),
    }
    _legend(axes, [(f"{name} ({count})", look) for name, (look, count) in counts.items()])
    return figure, axes


def _page(drawing: Scene) -> tuple[Figure, Axes]:
    """An empty page of the drawing's size, whose data coordinates are its pixels, y downwards."""
    width, height = max(drawing.width, 430.0), drawing.height + _LEGEND
    figure = new_figure(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def _boxes(axes: Axes, boxes: Iterable[Box]) -> None:
    from matplotlib.patches import FancyBboxPatch

    for box in boxes:
        corner = (box.x - box.width / 2, box.y - BOX_HEIGHT / 2)
        look: dict[str, Any] = {"facecolor": box.fill, "edgecolor": "#9aa1ab", "linewidth": 0.8, "zorder": 3}
        style = "round,pad=0,rounding_size=6"
        axes.add_patch(FancyBboxPatch(corner, box.width, BOX_HEIGHT, boxstyle=style, label=str(box.node), **look))
        faint_text(axes, box.x, box.y, box.label, ha="center", va="center", color=INK, zorder=4)


def _curve(axes: Axes, curve: Curve, *, arrow: bool, **look: Any) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points = [curve.segments[0][0]] + [point for segment in curve.segments for point in segment[1:]]
    path = Path(points, [Path.MOVETO] + [Path.CURVE4] * (len(points) - 1))
    patch = FancyArrowPatch(
        path=path,
        arrowstyle="-|>,head_length=5,head_width=2.6" if arrow else "-",
        mutation_scale=1,
        facecolor=look["edgecolor"] if arrow else "none",
        zorder=2,
        label=f"{curve.source} -> {curve.target}",
        **look,
    )
    axes.add_patch(patch)


def _near_source(curve: Curve) -> tuple[float, float]:
    """A point early on the edge, where edges have parted but not yet crossed; the middle of a bow within a column."""
    a, b, c, d = curve.segments[0]
    t = 0.5 if a[0] == d[0] else 0.32
    wa, wb, wc, wd = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    return (
        wa * a[0] + wb * b[0] + wc * c[0] + wd * d[0],
        wa * a[1] + wb * b[1] + wc * c[1] + wd * d[1],
    )


def _circuit_legend(drawing: Scene, factors: Mapping[str, str], measure: str) -> list[tuple[str, dict[str, Any]]]:
    strengths = [curve.strength for curve in drawing.curves if curve.strength]
    entries: list[tuple[str, dict[str, Any]]] = []
    for factor, colour in factors.items():
        entries.append((factor, {"edgecolor": colour, "linewidth": 2.5}))
    signed_strengths = [
        curve.strength for curve in drawing.curves if curve.strength and curve.colour in (RAISES, LOWERS)
    ]
    if any(s > 0 for s in signed_strengths):
        entries.append(("raises", {"edgecolor": RAISES, "linewidth": 2.5}))
    if any(s < 0 for s in signed_strengths):
        entries.append(("lowers", {"edgecolor": LOWERS, "linewidth": 2.5}))
    if any(curve.uncertain for curve in drawing.curves):
        entries.append(("interval covers 0", {"edgecolor": FAINT, "linewidth": 1.2, "linestyle": _DASHED}))
    if strengths:
        widest = max(map(abs, strengths))
        what = "|share of the total effect|" if factors else "|effect|"
        for part, name in (
            (1, f"{what} {widest:.2g}{'' if factors else measure}"),
            (10, f"{widest / 10:.2g}"),
            (100, f"{widest / 100:.2g}"),
        ):
            width = _POINTS * line_width(widest / part, widest)
            entries.append((name, {"edgecolor": FAINT, "linewidth": width, "alpha": 0.6}))
    return entries


def _legend(axes: Axes, entries: Iterable[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D

    lines = []
    for label, look in entries:
        style = {("color" if name == "edgecolor" else name): value for name, value in look.items()}
        lines.append(Line2D([], [], label=label, **style))
    if lines:
        axes.legend(
            handles=lines,
            loc="lower left",
            ncols=len(lines),
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            handlelength=3.4,
        )


def _size_of(edge: Mapping[str, Any]) -> str | None:
    """How large an edge of a factor graph is, in words; None where nothing says."""
    if all(isinstance(edge.get(name), float) for name in ("size", "ci_low", "ci_high")):
        return f"{edge['size']:.2f} [{edge['ci_low']:.2f}, {edge['ci_high']:.2f}]"
    value = strength(edge)
    return None if value is None else signed(value)
