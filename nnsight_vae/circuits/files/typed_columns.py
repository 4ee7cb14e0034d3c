"""Attributes as columns of plain values that other tools read, beside one column that loses nothing.

Most file formats carry numbers, booleans and clean text only. What does not fit (None, tuples, NaN, control characters, an
integer among floats) goes as JSON into one extra column, `nnsight_vae`, which wins on reading.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nnsight_vae.circuits.graph.records import Records, attribute_names
from nnsight_vae.errors import CircuitError

EXACT = "nnsight_vae"
TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}  # in GraphML and GEXF
_READ: dict[str, Callable[[str], Any]] = {
    "boolean": lambda text: text == "true",
    "long": int,
    "double": float,
    "string": str,
}
# XML 1.0 has no control characters, surrogates or U+FFFE/F, and its parsers turn carriage returns into line feeds
_UNCLEAN = re.compile("[^\t\n\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Table:
    """The typed columns of one kind of element: each attribute name has one type.

    Attributes:
        columns: attribute name -> type of its column; the extra column last.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        self.columns: dict[str, type] = {}
        for name in attribute_names(rows):
            kind = _column_type(row[name] for row in rows if name in row)
            if kind is not None and name != EXACT:
                self.columns[name] = kind
        self.columns[EXACT] = str

    def cells(self, attributes: Mapping[str, Any], also_exact: Iterable[str] = ()) -> dict[str, str]:
        """Column -> text of one row. What its column cannot hold, and the names in `also_exact`, are in the extra column."""
        cells, exact = {}, {}
        for name, value in attributes.items():
            kind = self.columns.get(name) if name != EXACT else None
            if kind is None or type(value) is not kind or not _fits(value) or name in also_exact:
                exact[name] = value
            text = None if kind is None else _cell(value, kind)
            if text is not None:
                cells[name] = text
        if exact:
            cells[EXACT] = json.dumps({"order": list(attributes), "values": exact})
        return cells


def joined(columns: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, Any]:
    """A row's attributes from its columns and the content of its extra column, in their first order."""
    values = {**columns, **exact.get("values", {})}
    order = [name for name in exact.get("order", ()) if name in values]
    return {name: values[name] for name in dict.fromkeys([*order, *values])}


def read_cell(text: str, kind: str) -> Any:
    """The value of a cell of a GraphML or GEXF column.

    Raises:
        ValueError: text of another type, or an unknown type.
    """
    if kind not in _READ:
        raise ValueError(f"columns of type {kind!r} are not read")
    return _READ[kind](text)


def clean(text: str) -> str:
    """The text, with what XML cannot hold replaced."""
    return _UNCLEAN.sub("\ufffd", text)


def is_clean(text: str) -> bool:
    """Can XML hold the text as it is?"""
    return not _UNCLEAN.search(text)


def require_clean_names(records: Records) -> None:
    """Refuse a graph whose names a text format would have to change.

    Raises:
        CircuitError: a node id or attribute name with a control character, a surrogate or a carriage return.
    """
    rows = [records.graph, *(a for _, a in records.nodes), *(a for _, _, a in records.edges)]
    for name in [node for node, _ in records.nodes] + attribute_names(rows):
        if not is_clean(name):
            raise CircuitError(
                f"{name!r} holds a character that this format cannot: rename it, or write .json instead."
            )


def _column_type(values: Iterable[Any]) -> type | None:
    """The type of the column for these values: float for both kinds of number, else the most frequent."""
    kinds = Counter(type(value) for value in values if type(value) in TYPES)
    if not kinds:
        return None
    if set(kinds) == {int, float}:
        return float
    return kinds.most_common(1)[0][0]


def _fits(value: Any) -> bool:
    """Does the value survive such a column as it is?"""
    if isinstance(value, str):
        return value != "" and is_clean(value)
    return not isinstance(value, int) or abs(value) < 2**63  # a long of other tools


def _cell(value: Any, kind: type) -> str | None:
    """What the column shows for the value; None: nothing."""
    if type(value) is int and kind is float:
        return repr(float(value)) if abs(value) < 2**63 else None
    if type(value) is not kind:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return clean(value) or None
    return repr(value) if _fits(value) else None
