"""A circuit as boxes and curves on a page, in pixels of 1/100 inch: what every renderer draws."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import networkx as nx

from nnsight_vae.circuits.layout import Point, column_title, layered, short_label, strength
from nnsight_vae.circuits.style import node_fill

BOX_HEIGHT, MARGIN, HEADER = 24.0, 14.0, 30.0
_CHARACTER, _MOST_CHARACTERS = 6.6, 26  # width of a character at 8 points; longer labels are shortened
THINNEST, THICKEST = 0.7, 5.0

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
    """An edge: cubic Bézier segments from its source to its target, and how strong it is."""

    source: Any
    target: Any
    segments: list[Segment]
    strength: float | None
    uncertain: bool
    width: float


@dataclass(frozen=True)
class Scene:
    """Everything to draw: curves weakest first, so that the strong ones lie on top."""

    boxes: list[Box]
    curves: list[Curve]
    titles: list[tuple[float, str]]
    width: float
    height: float


def scene(graph: nx.DiGraph, *, row: float = 34.0, gap: float = 110.0, spread: float = 0.0) -> Scene:
    """Place a graph on the page, as wide and high as it needs.

    Args:
        graph: a circuit or factor graph; `layered` lays it out.
        row: pixels between neighbours of a column.
        gap: pixels between columns.
        spread: height of the part of a box's side over which its edges are spread; 0 joins them in one point.
    """
    layout = layered(graph)
    labels = {node: shorten(short_label(node, data)) for node, data in graph.nodes(data=True)}
    titles = [column_title(graph, column) for column in layout.columns]
    widths = [max(_CHARACTER * max(len(labels[n]) for n in column) + 18, 40.0) for column in layout.columns]
    centres, left = [], MARGIN
    for width, title in zip(widths, titles, strict=True):
        taken = max(width, _CHARACTER * len(title))
        centres.append(left + taken / 2)
        left += taken + gap
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
    ports = _ports(boxes, paths, spread)
    largest = max((abs(strength(data) or 0.0) for *_, data in graph.edges(data=True)), default=0.0) or 1.0
    curves = []
    for source, target, data in graph.edges(data=True):
        value = strength(data)
        ends = ports[source, target, source], ports[source, target, target]
        stops = [ends[0], *paths[source, target][1:-1], ends[1]]
        within = boxes[source].x == boxes[target].x
        segments = _loop(*ends, 0.3 * gap) if within else _curved(stops)
        width = THINNEST + (THICKEST - THINNEST) * abs(value or 0.0) / largest
        curves.append(Curve(source, target, segments, value, _covers_zero(data), width))
    furthest = max(point[0] for curve in curves for segment in curve.segments for point in segment) if curves else 0.0
    return Scene(
        boxes=list(boxes.values()),
        curves=sorted(curves, key=lambda curve: abs(curve.strength or 0.0)),
        titles=list(zip(centres, titles, strict=True)),
        width=max(left - gap, furthest) + MARGIN,
        height=top + (lowest - highest) * row + row / 2 + MARGIN,
    )


def shorten(label: str) -> str:
    """The label, its middle left out where it is too long for a box.

    Example:
        >>> shorten("decoder.up_blocks.1.resnets.0.conv1[12]")
        'decoder.up_b….0.conv1[12]'
    """
    if len(label) <= _MOST_CHARACTERS:
        return label
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


def _loop(start: Point, end: Point, out: float) -> list[Segment]:
    """Between two boxes of one column: a bow on the right."""
    return [(start, (start[0] + out, start[1]), (end[0] + out, end[1]), end)]


def _covers_zero(data: dict[str, Any]) -> bool:
    low, high = data.get("ci_low"), data.get("ci_high")
    return low is not None and high is not None and bool(low <= 0 <= high)
