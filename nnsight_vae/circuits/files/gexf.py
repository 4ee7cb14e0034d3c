"""GEXF that Gephi opens drawn (positions, colours, thickness), and from which nothing is lost.

What the graph says of itself is JSON in `<meta><description>`: GEXF has no attributes of a graph.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import networkx as nx

from nnsight_vae.circuits.drawing.layout import layered
from nnsight_vae.circuits.drawing.prominence import strength, strongest_effect
from nnsight_vae.circuits.files.graphml import parsed_xml, records_of, required
from nnsight_vae.circuits.files.typed_columns import EXACT, TYPES, Table, joined, read_cell, require_clean_names
from nnsight_vae.circuits.graph.records import Records
from nnsight_vae.style import edge_colour, node_fill

_NAMESPACE = "http://www.gexf.net/1.2draft"
# Columns that Gephi and networkx have already: ours are shown under "label_" and so on, and read from the exact column
_TAKEN = {"label", "type", "weight", "viz", "start", "end", "pid", "parents", "slices", "spells", "id", "color"}
_SHOWN_ONLY = "x"


def write(records: Records, graph: nx.DiGraph) -> bytes:
    """The GEXF document.

    Raises:
        CircuitError: a node id or attribute name with characters that XML cannot hold.
    """
    require_clean_names(records)
    root = ET.Element("gexf", {"xmlns": _NAMESPACE, "xmlns:viz": f"{_NAMESPACE}/viz", "version": "1.2"})
    meta = ET.SubElement(root, "meta")
    ET.SubElement(meta, "creator").text = "nnsight_vae"
    ET.SubElement(meta, "description").text = json.dumps(records.graph)
    body = ET.SubElement(root, "graph", defaultedgetype="directed", mode="static")
    node_columns = _Columns(body, "node", Table(attributes for _, attributes in records.nodes))
    edge_columns = _Columns(body, "edge", Table(attributes for _, _, attributes in records.edges))
    positions = layered(graph).positions
    nodes, edges = ET.SubElement(body, "nodes"), ET.SubElement(body, "edges")
    for node, attributes in records.nodes:
        element = ET.SubElement(nodes, "node", id=node, label=node)
        node_columns.fill(element, attributes)
        column, row = positions[node]
        ET.SubElement(element, "viz:color", _rgb(node_fill(graph.nodes[node])))
        ET.SubElement(element, "viz:position", x=f"{120 * column:.1f}", y=f"{-40 * row:.1f}", z="0")
    largest = strongest_effect(graph)
    for i, (source, target, attributes) in enumerate(records.edges):
        value = strength(graph.edges[source, target]) or 0.0
        weight = {"weight": repr(abs(value))} if value else {}  # Gephi takes positive weights only
        element = ET.SubElement(edges, "edge", {"id": f"e{i}", "source": source, "target": target, **weight})
        edge_columns.fill(element, attributes)
        ET.SubElement(element, "viz:color", _rgb(edge_colour(value)))
        ET.SubElement(element, "viz:thickness", value=f"{0.5 + 4 * abs(value) / largest:.3f}")
    ET.indent(root, " ")
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def read(text: str) -> Records:
    """The records of a document that `write` made.

    Raises:
        ValueError, SyntaxError: another document, and where it differs.
    """
    root = parsed_xml(text)
    space = f"{{{_NAMESPACE}}}"
    graph = root.find(f"{space}graph")
    if graph is None or graph.get("defaultedgetype") != "directed":
        raise ValueError("it holds no <graph defaultedgetype='directed'>")
    columns = {each.get("id"): (each.get("title"), each.get("type")) for each in graph.iter(f"{space}attribute")}

    def attributes(element: ET.Element, place: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for cell in element.iter(f"{space}attvalue"):
            column = required(cell, "for", f"a value of {place}")
            name, kind = columns.get(column, (None, None))
            if name is None or kind is None:
                raise ValueError(f"{place} has a value for {column!r}, which no <attribute> declares")
            if not column.startswith(_SHOWN_ONLY):
                try:
                    values[name] = read_cell(required(cell, "value", place), kind)
                except ValueError as error:
                    raise ValueError(f"{place}, attribute {name!r}: {error}") from error
        return joined(values, json.loads(values.pop(EXACT, "{}")))

    return records_of(
        json.loads(root.findtext(f"{space}meta/{space}description") or "{}"),
        graph.iterfind(f"{space}nodes/{space}node"),
        graph.iterfind(f"{space}edges/{space}edge"),
        attributes,
    )


class _Columns:
    """The columns of nodes or edges: declared once, then filled row by row."""

    def __init__(self, body: ET.Element, domain: str, table: Table) -> None:
        self._table, self._ids = table, {}
        declared = ET.SubElement(body, "attributes", {"class": domain, "mode": "static"})
        for i, (name, kind) in enumerate(table.columns.items()):
            taken = name in _TAKEN
            self._ids[name] = column = f"{_SHOWN_ONLY if taken else domain[0]}{i}"
            title = f"{name}_" if taken else name
            ET.SubElement(declared, "attribute", id=column, title=title, type=TYPES[kind])

    def fill(self, element: ET.Element, attributes: dict[str, Any]) -> None:
        values = ET.SubElement(element, "attvalues")
        for name, text in self._table.cells(attributes, also_exact=_TAKEN).items():
            ET.SubElement(values, "attvalue", {"for": self._ids[name], "value": text})


def _rgb(colour: str) -> dict[str, str]:
    return {name: str(int(colour[i : i + 2], 16)) for name, i in (("r", 1), ("g", 3), ("b", 5))}
