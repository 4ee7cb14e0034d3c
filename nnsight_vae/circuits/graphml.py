"""GraphML that other tools read as typed columns, and from which nothing is lost.

GraphML carries numbers, booleans and clean text only. What does not fit its column (None, tuples, NaN, control
characters, an integer among floats) is kept in one extra text column of JSON, `nnsight_vae`, which wins on reading.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nnsight_vae.circuits.records import Records, attribute_names
from nnsight_vae.errors import CircuitError

_EXACT = "nnsight_vae"
_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}
_READ: dict[str, Callable[[str], Any]] = {
    "boolean": lambda text: text == "true",
    "long": int,
    "double": float,
    "string": str,
}
# XML 1.0 has no control characters, surrogates or U+FFFE/F, and its parsers turn carriage returns into line feeds
_UNCLEAN = re.compile("[^\t\n\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(records: Records) -> bytes:
    """The GraphML document.

    Raises:
        CircuitError: a node id or attribute name with characters that XML cannot hold.
    """
    for name in [node for node, _ in records.nodes] + _all_names(records):
        if _UNCLEAN.search(name):
            raise CircuitError(f"{name!r} holds a character that XML cannot: rename it, or write .json instead.")
    root = ET.Element("graphml", xmlns=_NAMESPACE)
    tables = {
        "graph": _Table(root, "graph", [records.graph]),
        "node": _Table(root, "node", [attributes for _, attributes in records.nodes]),
        "edge": _Table(root, "edge", [attributes for _, _, attributes in records.edges]),
    }
    graph = ET.SubElement(root, "graph", edgedefault="directed")
    tables["graph"].fill(graph, records.graph)
    for node, attributes in records.nodes:
        tables["node"].fill(ET.SubElement(graph, "node", id=node), attributes)
    for source, target, attributes in records.edges:
        tables["edge"].fill(ET.SubElement(graph, "edge", source=source, target=target), attributes)
    ET.indent(root, " ")
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def read(text: str) -> Records:
    """The records of a document that `write` made.

    Raises:
        ValueError, KeyError, AttributeError, SyntaxError: another document.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type, which is refused: entities can exhaust memory")
    root = ET.fromstring(text.encode())  # noqa: S314 - no DTD, see above
    space = f"{{{_NAMESPACE}}}"
    keys = {key.attrib["id"]: (key.attrib["attr.name"], key.attrib["attr.type"]) for key in root.iter(f"{space}key")}
    graph = root.find(f"{space}graph")
    if graph is None or graph.get("edgedefault") != "directed":
        raise ValueError("it holds no directed graph")

    def attributes(element: ET.Element) -> dict[str, Any]:
        columns = {}
        for data in element.findall(f"{space}data"):
            name, kind = keys[data.attrib["key"]]
            columns[name] = _READ[kind](data.text or "")
        exact = json.loads(columns.pop(_EXACT, "{}"))
        columns.update(exact.get("values", {}))
        return {name: columns[name] for name in exact.get("order", columns)}

    return Records(
        graph=attributes(graph),
        nodes=[(node.attrib["id"], attributes(node)) for node in graph.findall(f"{space}node")],
        edges=[(e.attrib["source"], e.attrib["target"], attributes(e)) for e in graph.findall(f"{space}edge")],
    )


class _Table:
    """The typed columns of one kind of element."""

    def __init__(self, root: ET.Element, domain: str, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        self._columns: dict[str, tuple[str, type]] = {}
        for name in attribute_names(rows):
            kind = _column_type(row[name] for row in rows if name in row)
            if kind is not None and name != _EXACT:
                self._columns[name] = (self._declare(root, domain, name, kind), kind)
        self._exact = self._declare(root, domain, _EXACT, str)

    @staticmethod
    def _declare(root: ET.Element, domain: str, name: str, kind: type) -> str:
        key = f"{domain[0]}{len(root)}"
        ET.SubElement(root, "key", {"id": key, "for": domain, "attr.name": name, "attr.type": _TYPES[kind]})
        return key

    def fill(self, element: ET.Element, attributes: Mapping[str, Any]) -> None:
        exact = {}
        for name, value in attributes.items():
            key, kind = self._columns.get(name, ("", None))
            if kind is None or type(value) is not kind or not _fits(value):
                exact[name] = value
            text = None if kind is None else _column_text(value, kind)
            if text is not None:
                ET.SubElement(element, "data", key=key).text = text
        if exact:
            text = json.dumps({"order": list(attributes), "values": exact})
            ET.SubElement(element, "data", key=self._exact).text = text


def _all_names(records: Records) -> list[str]:
    rows = [records.graph, *(a for _, a in records.nodes), *(a for _, _, a in records.edges)]
    return attribute_names(rows)


def _column_type(values: Iterable[Any]) -> type | None:
    """The type of the column for these values: float for both kinds of number, else the most frequent."""
    kinds = Counter(type(value) for value in values if type(value) in _TYPES)
    if not kinds:
        return None
    if set(kinds) == {int, float}:
        return float
    return kinds.most_common(1)[0][0]


def _fits(value: Any) -> bool:
    """Does the value survive GraphML as it is?"""
    if isinstance(value, str):
        return value != "" and not _UNCLEAN.search(value)
    return not isinstance(value, int) or abs(value) < 2**63  # a long of other tools


def _column_text(value: Any, kind: type) -> str | None:
    """What the column shows for the value; None: nothing."""
    if type(value) is int and kind is float:
        return repr(float(value)) if abs(value) < 2**63 else None
    if type(value) is not kind:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _UNCLEAN.sub("\ufffd", value) or None
    return repr(value) if _fits(value) else None
