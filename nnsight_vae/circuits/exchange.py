"""Views of a graph for Gephi, Graphviz, Cytoscape and spreadsheets: readable there, not read back here."""

from __future__ import annotations

import csv as csv_module
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import networkx as nx

from nnsight_vae.circuits.layout import layered, strength
from nnsight_vae.circuits.records import Records, attribute_names
from nnsight_vae.circuits.style import edge_colour, node_fill

_CONTROL = re.compile("[^\t\n\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GEXF_NAMES = {"label", "type", "weight", "viz", "start", "end", "pid", "parents", "slices", "spells", "id", "color"}


def gexf(records: Records, graph: nx.DiGraph) -> bytes:
    """GEXF with positions, colours and edge thickness, so that Gephi opens it drawn."""
    layout = layered(graph)
    thickest = max((abs(strength(data) or 0.0) for *_, data in graph.edges(data=True)), default=0.0) or 1.0
    view = nx.DiGraph()
    for node, attributes in records.nodes:
        column, row = layout.positions[node]
        look: dict[str, Any] = {
            "position": {"x": 120.0 * column, "y": -40.0 * row, "z": 0.0},
            "color": _rgb(node_fill(graph.nodes[node])),
        }
        view.add_node(_clean(node), label=_clean(node), viz=look, **_columns(attributes))
    for source, target, attributes in records.edges:
        value = strength(graph.edges[source, target])
        look = {"color": _rgb(edge_colour(value)), "thickness": 0.5 + 4 * abs(value or 0.0) / thickest}
        view.add_edge(_clean(source), _clean(target), viz=look, **_columns(attributes))
    document = "\n".join(nx.generate_gexf(view)) + "\n"
    return re.sub(r' lastmodifieddate="[^"]*"', "", document).encode()  # the same graph, the same bytes


def dot(records: Records, graph: nx.DiGraph) -> bytes:
    """Graphviz text: one rank per layer, attributes as tooltips; `dot -Tsvg` draws it."""
    layout = layered(graph)
    thickest = max((abs(strength(data) or 0.0) for *_, data in graph.edges(data=True)), default=0.0) or 1.0
    lines = [
        "digraph circuit {",
        "  rankdir=LR; ranksep=1.2;",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", color="#6b7280"];',
    ]
    attributes_of = dict(records.nodes)
    for column in layout.columns:
        lines.append("  {")
        lines.append("    rank=same;")
        for node in column:
            fill, tip = node_fill(graph.nodes[node]), _lines(attributes_of[node])
            lines.append(
                f"    {_quoted(node)} [label={_quoted(node)}, fillcolor={_quoted(fill)}, tooltip={_quoted(tip)}];"
            )
        lines.append("  }")
    for source, target, attributes in records.edges:
        value = strength(graph.edges[source, target])
        width = 0.5 + 4 * abs(value or 0.0) / thickest
        lines.append(
            f"  {_quoted(source)} -> {_quoted(target)} "
            f"[color={_quoted(edge_colour(value))}, penwidth={width:.2f}, tooltip={_quoted(_lines(attributes))}];"
        )
    return ("\n".join([*lines, "}"]) + "\n").encode("utf-8", "backslashreplace")


def csv(records: Records, graph: nx.DiGraph) -> bytes:
    """The edge list: source, target and a column per edge attribute; empty where there is no value."""
    names = attribute_names(attributes for *_, attributes in records.edges)
    text = io.StringIO(newline="")
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(["source", "target", *names])
    for source, target, attributes in records.edges:
        cells = _columns(attributes, rename=False)
        writer.writerow([source, target, *(cells.get(name, "") for name in names)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def cyjs(records: Records, graph: nx.DiGraph) -> bytes:
    """Cytoscape JSON (desktop and cytoscape.js), nodes in place."""
    layout = layered(graph)
    nodes = [
        {
            "data": {**attributes, "id": node, "name": attributes.get("name", node)},
            "position": {"x": 160.0 * layout.positions[node][0], "y": 50.0 * layout.positions[node][1]},
        }
        for node, attributes in records.nodes
    ]
    edges = [
        {"data": {**attributes, "id": f"edge {i}", "source": source, "target": target}}
        for i, (source, target, attributes) in enumerate(records.edges)
    ]
    data = {"data": records.graph, "elements": {"nodes": nodes, "edges": edges}}
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def _columns(attributes: Mapping[str, Any], rename: bool = True) -> dict[str, Any]:
    """Attributes as numbers, booleans and clean text; None and NaN left out, the rest as JSON text."""
    columns = {}
    for name, value in attributes.items():
        if value is None or (isinstance(value, dict) and "$float" in value):
            continue
        if isinstance(value, (list, dict)):
            value = json.dumps(value, ensure_ascii=False)
        if isinstance(value, str):
            value = _clean(value)
        columns[f"{name}_" if rename and name in _GEXF_NAMES else name] = value
    return columns


def _clean(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)


def _lines(attributes: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in _columns(attributes, rename=False).items())


def _quoted(text: str) -> str:
    escaped = _clean(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _rgb(colour: str) -> dict[str, Any]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return {"r": red, "g": green, "b": blue, "a": 1.0}
