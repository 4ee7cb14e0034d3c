"""GraphML that other tools read as typed columns, and from which nothing is lost."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

from nnsight_vae.circuits.files.typed_columns import EXACT, TYPES, Table, joined, read_cell, require_clean_names
from nnsight_vae.circuits.graph.records import Records

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"


def write(records: Records) -> bytes:
    """The GraphML document.

    Raises:
        CircuitError: a node id or attribute name with characters that XML cannot hold.
    """
    require_clean_names(records)
    root = ET.Element("graphml", xmlns=_NAMESPACE)
    tables = {
        "graph": Table([records.graph]),
        "node": Table(attributes for _, attributes in records.nodes),
        "edge": Table(attributes for _, _, attributes in records.edges),
    }
    keys: dict[tuple[str, str], str] = {}
    for domain, table in tables.items():
        for name, kind in table.columns.items():
            keys[domain, name] = key = f"{domain[0]}{len(keys)}"
            ET.SubElement(root, "key", {"id": key, "for": domain, "attr.name": name, "attr.type": TYPES[kind]})

    def fill(element: ET.Element, domain: str, attributes: dict[str, Any]) -> None:
        for name, text in tables[domain].cells(attributes).items():
            ET.SubElement(element, "data", key=keys[domain, name]).text = text

    graph = ET.SubElement(root, "graph", edgedefault="directed")
    fill(graph, "graph", records.graph)
    for node, attributes in records.nodes:
        fill(ET.SubElement(graph, "node", id=node), "node", attributes)
    for source, target, attributes in records.edges:
        fill(ET.SubElement(graph, "edge", source=source, target=target), "edge", attributes)
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
    if graph is None or graph.get("edgedefault") != "directed":
        raise ValueError("it holds no <graph edgedefault='directed'>")
    keys = {key.get("id"): (key.get("attr.name"), key.get("attr.type")) for key in root.iter(f"{space}key")}

    def attributes(element: ET.Element, place: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for data in element.findall(f"{space}data"):
            name, kind = keys.get(data.get("key"), (None, None))
            if name is None or kind is None:
                raise ValueError(f"{place} has data for the key {data.get('key')!r}, which no <key> declares")
            try:
                columns[name] = read_cell(data.text or "", kind)
            except ValueError as error:
                raise ValueError(f"{place}, attribute {name!r}: {error}") from error
        return joined(columns, json.loads(columns.pop(EXACT, "{}")))

    found = attributes(graph, "the graph")
    return records_of(found, graph.findall(f"{space}node"), graph.findall(f"{space}edge"), attributes)


def records_of(
    graph: dict[str, Any],
    nodes: Iterable[ET.Element],
    edges: Iterable[ET.Element],
    attributes: Callable[[ET.Element, str], dict[str, Any]],
) -> Records:
    """The records of an XML document.

    Args:
        graph: attributes of the graph.
        nodes: elements with an `id`.
        edges: elements with a `source` and a `target`.
        attributes: reads those of an element, given its place for messages.

    Raises:
        ValueError: an element lacks one of these, and where.
    """
    named = [(required(node, "id", f"node {i}"), node) for i, node in enumerate(nodes)]
    ends = [
        (required(edge, "source", f"edge {i}"), required(edge, "target", f"edge {i}"), edge)
        for i, edge in enumerate(edges)
    ]
    return Records(
        graph=graph,
        nodes=[(node, attributes(element, f"node {node!r}")) for node, element in named],
        edges=[(a, b, attributes(element, f"edge {a!r} -> {b!r}")) for a, b, element in ends],
    )


def parsed_xml(text: str) -> ET.Element:
    """The root of an XML document without a document type.

    Raises:
        ValueError: it declares one.
        SyntaxError: it is no XML; the message holds line and column.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type, which is refused: entities can exhaust memory")
    return ET.fromstring(text.encode())  # noqa: S314 - no DTD, see above


def required(element: ET.Element, name: str, place: str) -> str:
    """An XML attribute that must be there.

    Raises:
        ValueError: it is not.
    """
    value = element.get(name)
    if value is None:
        raise ValueError(f"{place} has no {name!r}")
    return value
