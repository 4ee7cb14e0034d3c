"""A circuit as one interactive page: inline SVG and script, nothing fetched, opens from disk years later."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import networkx as nx

from nnsight_vae.circuits.drawing.heading import heading, unit
from nnsight_vae.circuits.drawing.layout import Placement, column_labels, column_title, layered
from nnsight_vae.circuits.drawing.png import data_uri
from nnsight_vae.circuits.drawing.prominence import on_paths, prominence, strength
from nnsight_vae.circuits.drawing.scene import THICKEST, THINNEST, covers_zero, edge_parts, shorten
from nnsight_vae.circuits.graph.records import Records, attribute_names
from nnsight_vae.style import FACTORS, factor_colours, node_look

_MOST_NODES, _MOST_EDGES = 60, 200  # shown at first; the slider shows the rest
_HEIGHT, _HEIGHT_WITH_PICTURE = 26, 60  # pixels of a box
_TALLEST_PICTURE, _WIDEST_PICTURE = 38.0, 110.0  # above the label: many narrow columns fit on a screen
_LETTER = 7.0  # width of one, at the page's 12 pixels
_ABSENT = {"$absent": True}  # an edge without an attribute that others have; null is a value
_SCRIPTS = ("graph.js", "panel.js")


def page(records: Records, graph: nx.DiGraph, thumbnails: Mapping[str, Any]) -> str:
    """The page: nodes by layer with their pictures, focus on click, a slider that hides weak edges, search, keyboard.

    Args:
        records: the attributes shown, as JSON data.
        graph: the same graph, laid out as `plots.plot_circuit` does but whole; the page packs what it shows of it.
        thumbnails: node id, or `factor` and `readout` for the nodes of these kinds, -> image, as in `export`.

    Raises:
        CircuitError: a thumbnail that is no image.
    """
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in _SCRIPTS)
    title, source = heading(graph)
    parts = {
        "title": escape(title or "Graph"),
        "source": escape(source),
        "style": style,
        "script": script,
        "style-hash": _hash(style),
        "script-hash": _hash(script),
        # "<" could end the script element, or begin a comment in it, wherever it stands in a string
        "data": json.dumps(_data(records, graph, thumbnails), allow_nan=False).replace("<", "\\u003c"),
    }
    text = _asset("page.html")
    pieces = [part for piece in text.split("{{") for part in piece.split("}}")]  # text and names by turns
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _data(records: Records, graph: nx.DiGraph, thumbnails: Mapping[str, Any]) -> dict[str, Any]:
    """What the script draws from; edges from those on the most prominent paths to the least."""
    layout = layered(graph)
    place = {node: i for i, (node, _) in enumerate(records.nodes)}
    attributes = {(source, target): each for source, target, each in records.edges}
    size, on_path = prominence(graph), on_paths(graph)
    ranked = sorted(graph.edges, key=lambda edge: (-on_path[edge], -size[edge]))
    rank = {edge: i for i, edge in enumerate(ranked)}
    colours = factor_colours(graph.graph)
    places: dict[str | None, int | None] = {None: None, **{factor: i for i, factor in enumerate(colours)}}
    edges = [
        (
            place[edge[0]],
            place[edge[1]],
            _rounded(size[edge]),
            _rounded(on_path[edge]),
            _rounded(strength(graph.edges[edge])),
            int(covers_zero(graph.edges[edge])),
            [(places[factor], _rounded(value)) for factor, value in edge_parts(graph.edges[edge], colours)],
        )
        for edge in ranked
    ]
    pictures = _Pictures(thumbnails)
    drawn = [abs(value or 0.0) for edge in edges for _, value in edge[-1]]
    return {
        "about": records.graph,
        "nodes": _nodes(records, graph, layout, pictures),
        "pictures": pictures.uris,
        "titles": [shorten(column_title(graph, column)) for column in layout.columns],
        "stacks": [
            [place[item] if item in place else [rank[item.source, item.target]] for item in stack]
            for stack in layout.stacks
        ],
        "edges": edges,
        **_edge_attributes([attributes[edge] for edge in ranked]),
        "factors": [{"name": name, "colour": FACTORS.index(colour)} for name, colour in colours.items()],
        "curve": _curve(graph.graph.get("curve")),
        "unit": unit(graph),
        "largest": max(drawn, default=0.0) or 1.0,
        "start": _first_shown(ranked),
        "thinnest": THINNEST,
        "thickest": THICKEST,
        "height": _HEIGHT_WITH_PICTURE if pictures.uris else _HEIGHT,
        "tallest": _TALLEST_PICTURE,
    }


class _Pictures:
    """The pictures of the nodes, each stored once."""

    def __init__(self, thumbnails: Mapping[str, Any]) -> None:
        self._thumbnails = thumbnails
        self.uris: list[str] = []
        self._places: dict[str, int] = {}

    def of(self, node: str, kind: Any) -> dict[str, Any] | None:
        name = node if node in self._thumbnails else kind
        if (
            not isinstance(name, str)
            or name not in self._thumbnails
            or (name == kind and kind not in ("factor", "readout"))
        ):
            return None
        uri, aspect = data_uri(self._thumbnails[name], name)
        if uri not in self._places:
            self._places[uri] = len(self.uris)
            self.uris.append(uri)
        height = min(_TALLEST_PICTURE, _WIDEST_PICTURE / aspect)
        return {"index": self._places[uri], "width": round(height * aspect, 1), "height": round(height, 1)}


def _nodes(records: Records, graph: nx.DiGraph, layout: Placement, pictures: _Pictures) -> list[dict[str, Any]]:
    labels = {
        node: shorten(label)
        for column in layout.columns
        for node, label in zip(column, column_labels(graph, column), strict=True)
    }
    nodes = []
    for i, (node, attributes) in enumerate(records.nodes):
        picture = pictures.of(node, attributes.get("kind"))
        nodes.append(
            {
                "index": i,
                "name": node,
                "label": labels[node],
                "look": node_look(graph.nodes[node]),
                "column": int(layout.positions[node][0]),
                "degree": graph.degree(node),
                "width": max(_LETTER * len(labels[node]) + 18, picture["width"] + 8 if picture else 0.0),
                "picture": picture,
                "of": attributes,
            }
        )
    for column in range(len(layout.columns)):  # boxes of a column are of one width
        members = [each for each in nodes if each["column"] == column]
        widest = max(each["width"] for each in members)
        for each in members:
            each["width"] = round(max(widest, 40.0), 1)
    return nodes


def _edge_attributes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Attributes of edges as a table, those that are the same for all of them once: 5,000 edges are a page of 1 MB, not of 3."""
    names = attribute_names(rows)
    same = {name: rows[0][name] for name in names if all(name in row and row[name] == rows[0][name] for row in rows)}
    varying = [name for name in names if name not in same]
    return {
        "edgeSame": same,
        "edgeNames": varying,
        "edgeRows": [[_rounded(row[name]) if name in row else _ABSENT for name in varying] for row in rows],
    }


def _rounded(value: Any) -> Any:
    """Numbers to six digits, which is more than a page shows."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value


def _curve(curve: Any) -> list[Any]:
    """`graph["curve"]` where it is what `Faithfulness.curve` holds: (number of edges, target -> f or None), rising."""
    if not isinstance(curve, (list, tuple)):
        return []
    rows = [row for row in curve if isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[1], Mapping)]
    return [[int(size), {str(t): None if f is None else float(f) for t, f in scores.items()}] for size, scores in rows]


def _first_shown(ranked: list[tuple[Any, Any]]) -> int:
    """How many of the most prominent edges lie between few enough nodes."""
    nodes: set[Any] = set()
    for count, edge in enumerate(ranked):
        nodes |= set(edge)
        if len(nodes) > _MOST_NODES or count >= _MOST_EDGES:
            return count
    return len(ranked)


def _asset(name: str) -> str:
    return resources.files("nnsight_vae.circuits.drawing").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """For the content security policy: no other script or style can run, whatever a node is called."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
