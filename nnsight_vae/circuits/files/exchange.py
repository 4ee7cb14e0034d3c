"""Cytoscape JSON and spreadsheets: plain values where those tools look for them, and nothing lost on the way back."""

from __future__ import annotations

import csv as csv_module
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import networkx as nx

from nnsight_vae.circuits.drawing.layout import layered
from nnsight_vae.circuits.files.typed_columns import EXACT, is_clean, joined, require_clean_names
from nnsight_vae.circuits.graph.records import Records, attribute_names, object_of

# What Cytoscape and cytoscape.js take for their own
_TAKEN = {"id", "name", "source", "target", "parent", "interaction", "selected", "shared name", "SUID", EXACT}
_PLAIN = (bool, int, float, str)


def cyjs(records: Records, graph: nx.DiGraph) -> bytes:
    """Cytoscape JSON (desktop and cytoscape.js), nodes in place."""
    positions = layered(graph).positions
    nodes = [
        {
            "data": {**_cytoscape(attributes), "id": node, "name": node},
            "position": {"x": 160.0 * positions[node][0], "y": 50.0 * positions[node][1]},
        }
        for node, attributes in records.nodes
    ]
    edges = [
        {"data": {**_cytoscape(attributes), "id": f"edge {i}", "source": source, "target": target}}
        for i, (source, target, attributes) in enumerate(records.edges)
    ]
    data = {"data": _cytoscape(records.graph), "elements": {"nodes": nodes, "edges": edges}}
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def read_cyjs(text: str) -> Records:
    """The records of a text that `cyjs` made.

    Raises:
        ValueError: another text, and where it differs.
    """
    document = object_of(json.loads(text), "the file")
    elements = object_of(document.get("elements"), "'elements'")
    nodes: list[tuple[Any, dict[str, Any]]] = [
        (data.get("id"), _from_cytoscape(data)) for data in _data(elements, "nodes")
    ]
    edges: list[tuple[Any, Any, dict[str, Any]]] = [
        (data.get("source"), data.get("target"), _from_cytoscape(data)) for data in _data(elements, "edges")
    ]
    return Records(_from_cytoscape(object_of(document.get("data"), "'data'")), nodes, edges)


def csv(records: Records) -> bytes:
    """The edge list: source, target and a column per edge attribute, empty where an edge has no such attribute.

    A cell holds a number, `true`, `false`, `null`, `NaN` or `Infinity`, a list or object as JSON, and else text as it is; text that
    would read as one of those is quoted as JSON.

    Raises:
        CircuitError: a node id or attribute name with a control character.
    """
    require_clean_names(records)
    names = attribute_names(attributes for *_, attributes in records.edges)
    text = io.StringIO(newline="")
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(["source", "target", *map(_cell, names)])
    for source, target, attributes in records.edges:
        cells = [_cell(attributes[name]) if name in attributes else "" for name in names]
        writer.writerow([source, target, *cells])
    return text.getvalue().encode()


def read_csv(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """The edges of a text that `csv` made.

    Raises:
        ValueError: another text, and where it differs.
    """
    limit = csv_module.field_size_limit(
        len(text) + 1
    )  # of the interpreter, so it is put back: a cell may hold a long array
    try:
        return _edges(csv_module.reader(io.StringIO(text, newline=""), strict=True))
    finally:
        csv_module.field_size_limit(limit)


def _edges(reader: Any) -> list[tuple[str, str, dict[str, Any]]]:
    header: list[str] = next(reader, [])
    if header[:2] != ["source", "target"]:
        raise ValueError(f"line 1 begins with {header[:2]}; an edge list begins with the columns source, target")
    names = [str(_value(name)) if name.startswith('"') else name for name in header[2:]]
    edges = []
    for row in reader:
        if len(row) != len(header):
            raise ValueError(f"line {reader.line_num} has {len(row)} cells and the header {len(header)}")
        attributes = {name: _value(cell) for name, cell in zip(names, row[2:], strict=True) if cell}
        edges.append((row[0], row[1], attributes))
    return edges


def _cytoscape(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values by name, and what Cytoscape has no column for under `nnsight_vae`."""
    shown = {name: value for name, value in attributes.items() if type(value) in _PLAIN and name not in _TAKEN}
    if len(shown) == len(attributes):
        return shown
    exact = {name: value for name, value in attributes.items() if name not in shown}
    return {**shown, EXACT: {"order": list(attributes), "values": exact}}


def _from_cytoscape(data: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in data.items() if name not in _TAKEN}
    return joined(shown, object_of(data.get(EXACT, {}), f"{EXACT!r}"))


def _data(elements: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    listed = elements.get(kind)
    if not isinstance(listed, list):
        raise ValueError(f"'elements' has no list of {kind}")
    return [
        object_of(object_of(each, f"{kind}[{i}]").get("data"), f"'data' of {kind}[{i}]")
        for i, each in enumerate(listed)
    ]


def _cell(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"$float"}:
        value = float(value["$float"])
    if not isinstance(value, str):
        return json.dumps(value)
    return value if value and is_clean(value) and _value(value) is value else json.dumps(value)


def _value(cell: str) -> Any:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    return value
