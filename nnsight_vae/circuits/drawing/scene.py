"""A circuit as boxes and curves on a page, in pixels of 1/100 inch: what every renderer draws."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from nnsight_vae.circuits.drawing.layout import Point, column_labels, column_title, layered
from nnsight_vae.circuits.drawing.prominence import strength
from nnsight_vae.style import edge_colour, factor_colours, node_fill

BOX_HEIGHT, MARGIN, HEADER = 24.0, 14.0, 30.0
_CHARACTER, _MOST_CHARACTERS = 6.6, 26  # width of a character at 8 points; longer labels are shortened
THINNEST, THICKEST = 0.6, 6.0
_PAGE, _NARROWEST, _WIDEST = 1240.0, 46.0, 110.0  # a page's width, and the gaps between columns that fill it

Segment = tuple[Point, Point, Point, Point]


@dataclass(frozen=True)
class Box:
    """A node: its label in a rounded box centred at (x, y)."""

    node: Any
    label: str
    x: float
    y: float
    width: float
    fill: str


@dataclass(frozen=True)
class Curve:
    """An edge, or one factor's part of it: cubic Bézier segments from its source to its target, and how strong it is."""

    source: Any
    target: Any
    segments: list[Segment]
    strength: float | None
    uncertain: bool
    width: float
    colour: str
    factor: str | None = None


@dataclass(frozen=True)
class Scene:
    """Everything to draw: curves weakest first, so that the strong ones lie on top."""

    boxes: list[Box]
    curves: list[Curve]
    titles: list[tuple[float, str]]
    width: float
    height: float


def scene(graph: nx.DiGraph, *, row: float = 34.0, gap: float | None = None, spread: float = 0.0) -> Scene:
    """Place a graph on the page, as wide and high as it needs.

    An edge of the circuits of several factors is drawn once for each, side by side.

    Args:
        graph: a circuit or factor graph; `layered` lays it out.
        row: pixels between neighbours of a column.
        gap: pixels between columns; None: what fills a page's width.
        spread: height of the part of a box's side over which its edges are spread; 0 joins them in one point.
    """
    layout = layered(graph)
    labels = {
        node: shorten(label)
        for column in layout.columns
        for node, label in zip(column, column_labels(graph, column), strict=True)
    }
    titles = [shorten(column_title(graph, column)) for column in layout.columns]
    widths = [max(_CHARACTER * max(len(labels[n]) for n in column) + 18, 40.0) for column in layout.columns]
    taken = [max(width, _CHARACTER * len(title)) for width, title in zip(widths, titles, strict=True)]
    if gap is None:
        gap = min(max((_PAGE - sum(taken)) / max(len(taken) - 1, 1), _NARROWEST), _WIDEST)
    lefts = list(itertools.accumulate((width + gap for width in taken), initial=MARGIN))
    centres = [left + width / 2 for left, width in zip(lefts, taken, strict=False)]
    places = [*layout.positions.values(), *(place for route in layout.routes.values() for place in route)]
    highest, lowest = min(y for _, y in places), max(y for _, y in places)
    top = MARGIN + (HEADER if any(titles) else 0.0) + row / 2

    def on_page(place: Point) -> Point:
        return centres[int(place[0])], top + (place[1] - highest) * row

    boxes = {}
    for node, place in layout.positions.items():
        x, y = on_page(place)
        boxes[node] = Box(node, labels[node], x, y, widths[int(place[0])], node_fill(graph.nodes[node]))
    paths = {
        (a, b): [(boxes[a].x, boxes[a].y), *map(on_page, layout.routes[a, b]), (boxes[b].x, boxes[b].y)]
        for a, b in graph.edges
    }
    curves = _curves(graph, boxes, paths, _ports(boxes, paths, spread), out=0.3 * gap)
    furthest = max(point[0] for curve in curves for segment in curve.segments for point in segment) if curves else 0.0
    return Scene(
        boxes=list(boxes.values()),
        curves=sorted(curves, key=lambda curve: abs(curve.strength or 0.0)),
        titles=list(zip(centres, titles, strict=True)),
        width=max(lefts[-1] - gap, furthest) + MARGIN,
        height=top + (lowest - highest) * row + row / 2 + MARGIN,
    )


def line_width(strength: float | None, largest: float) -> float:
    """The width of an edge: the square root tells strong from weak and lets weak ones be seen."""
    return THINNEST + (THICKEST - THINNEST) * math.sqrt(abs(strength or 0.0) / largest)


def edge_parts(data: Mapping[str, Any], factors: Iterable[str]) -> list[tuple[str | None, float | None]]:
    """What is drawn of an edge, (factor, value): one line, or one for each factor whose circuit it is in."""
    of = data.get("factors")
    if isinstance(of, Mapping):
        parts: list[tuple[str | None, float | None]] = [(f, strength({"effect": of[f]})) for f in factors if f in of]
        if parts:
            return parts
    return [(None, strength(data))]


def _curves(
    graph: nx.DiGraph,
    boxes: dict[Any, Box],
    paths: dict[tuple[Any, Any], list[Point]],
    ports: dict[tuple[Any, Any, Any], Point],
    out: float,
) -> list[Curve]:
    colours = factor_colours(graph.graph)
    parts = [(source, target, edge_parts(data, colours)) for source, target, data in graph.edges(data=True)]
    largest = max((abs(value or 0.0) for *_, own in parts for _, value in own), default=0.0) or 1.0
    curves = []
    for source, target, own in parts:
        ends = ports[source, target, source], ports[source, target, target]
        within = boxes[source].x == boxes[target].x
        segments = _loop(*ends, out) if within else _curved([ends[0], *paths[source, target][1:-1], ends[1]])
        widths = [line_width(value, largest) for _, value in own]
        uncertain = covers_zero(graph.edges[source, target])
        beside = -sum(widths) / 2
        for (factor, value), width in zip(own, widths, strict=True):
            shift = beside + width / 2
            beside += width
            moved = _shifted(segments, shift) if len(own) > 1 else segments
            colour = edge_colour(value) if factor is None else colours[factor]
            curves.append(Curve(source, target, moved, value, uncertain, width, colour, factor))
    return curves


def shorten(label: str) -> str:
    """The label where it fits into a box; else without the words within a path, whose numbers tell blocks apart; else without its middle.

    Example:
        >>> shorten("decoder.up_blocks.1.resnets.0.conv1[12]")
        'decoder…1…0.conv1[12]'
        >>> shorten("a_module_of_a_very_long_name_indeed")
        'a_module_of_…_name_indeed'
    """
    if len(label) <= _MOST_CHARACTERS:
        return label
    first, *within, last = label.split(".") if "." in label else (label, label)
    kept = [part if part.isdigit() else "…" for part in within]
    short = re.sub(r"\.?…[.…]*", "…", ".".join([first, *kept, last])) if within else label
    if len(short) <= _MOST_CHARACTERS:
        return short
    half = (_MOST_CHARACTERS - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


def _ports(
    boxes: dict[Any, Box], paths: dict[tuple[Any, Any], list[Point]], spread: float
) -> dict[tuple[Any, Any, Any], Point]:
    """Where each edge (source, target) touches each of its two boxes: edges of one side in the order they leave it."""
    sides: dict[tuple[Any, int], list[tuple[float, tuple[Any, Any]]]] = defaultdict(list)
    for (source, target), path in paths.items():
        for node, beside in ((source, path[1]), (target, path[-2])):
            side = -1 if beside[0] < boxes[node].x else 1
            sides[node, side].append((beside[1], (source, target)))
    ports = {}
    for (node, side), edges in sides.items():
        box = boxes[node]
        edges.sort(key=lambda each: each[0])
        for i, (_, (source, target)) in enumerate(edges):
            offset = spread * ((i + 0.5) / len(edges) - 0.5)
            ports[source, target, node] = (box.x + side * box.width / 2, box.y + offset)
    return ports


def _curved(points: list[Point]) -> list[Segment]:
    segments = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (x0 + x1) / 2
        segments.append(((x0, y0), (middle, y0), (middle, y1), (x1, y1)))
    return segments


def _shifted(segments: list[Segment], down: float) -> list[Segment]:
    def moved(point: Point) -> Point:
        return point[0], point[1] + down

    return [(moved(a), moved(b), moved(c), moved(d)) for a, b, c, d in segments]


def _loop(start: Point, end: Point, out: float) -> list[Segment]:
    """Between two boxes of one column: a bow on the right."""
    return [(start, (start[0] + out, start[1]), (end[0] + out, end[1]), end)]


def covers_zero(data: Mapping[str, Any]) -> bool:
    """Does the interval of an edge cover 0? Not where it has none."""
    low, high = data.get("ci_low"), data.get("ci_high")
    return low is not None and high is not None and bool(low <= 0 <= high)
