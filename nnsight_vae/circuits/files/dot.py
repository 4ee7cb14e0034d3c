"""Graphviz text, and from it the graph again: every statement carries its attributes as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx

from nnsight_vae.circuits.drawing.layout import layered
from nnsight_vae.circuits.drawing.prominence import strength, strongest_effect
from nnsight_vae.circuits.files.typed_columns import EXACT, clean, require_clean_names
from nnsight_vae.circuits.graph.records import Records
from nnsight_vae.style import edge_colour, node_fill

_TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|/\*.*?\*/)
    |"(?P<quoted>(?:[^"\\]|\\.)*)"
    |(?P<mark>->|[{}\[\];,=])
    |(?P<bare>[\w.-]+)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def write(records: Records, graph: nx.DiGraph) -> bytes:
    """One rank per layer, attributes as tooltips; `dot -Tsvg` draws it, and ignores the attribute `nnsight_vae`.

    Raises:
        CircuitError: a node id or attribute name with a control character.
    """
    require_clean_names(records)
    largest = strongest_effect(graph)
    lines = [
        "digraph circuit {",
        f"  {EXACT}={_json(records.graph)};",
        "  rankdir=LR; ranksep=1.2;",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", color="#6b7280"];',
    ]
    for node, attributes in records.nodes:
        lines.append(
            f"  {_quoted(node)} [label={_quoted(node)}, fillcolor={_quoted(node_fill(graph.nodes[node]))}, "
            f"tooltip={_quoted(_lines(attributes))}, {EXACT}={_json(attributes)}];"
        )
    for column in layered(graph).columns:
        lines.append(f"  {{ rank=same; {'; '.join(map(_quoted, column))}; }}")
    for source, target, attributes in records.edges:
        value = strength(graph.edges[source, target]) or 0.0
        lines.append(
            f"  {_quoted(source)} -> {_quoted(target)} "
            f"[color={_quoted(edge_colour(value))}, penwidth={0.5 + 4 * abs(value) / largest:.2f}, "
            f"tooltip={_quoted(_lines(attributes))}, {EXACT}={_json(attributes)}];"
        )
    return "\n".join([*lines, "}", ""]).encode()


def read(text: str) -> Records:
    """The records of a text that `write` made, or that `dot -Tdot` made of one.

    Raises:
        ValueError: another text, and where it differs.
    """
    statements = list(_statements(text))
    if not statements or statements[0][0] != "digraph":
        raise ValueError("it does not begin with 'digraph'")
    records = Records({}, [], [])
    for words in statements[1:]:
        attributes = _exact(words)
        if attributes is None or words[0] in ("node", "edge"):
            continue
        if words[0] in ("graph", EXACT):
            records.graph.update(attributes)
        elif words[1:2] == ["->"]:
            records.edges.append((_name(words[0]), _name(words[2]), attributes))
        else:
            records.nodes.append((_name(words[0]), attributes))
    return records


def _statements(text: str) -> Iterator[list[str]]:
    """The words of each statement; a quoted word keeps its opening quote."""
    words: list[str] = []
    place = depth = braces = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(
                f"line {text.count(chr(10), 0, place) + 1} holds {text[place : place + 20]!r}, which is no DOT"
            )
        place = match.end()
        if match["quoted"] is not None:
            words.append('"' + _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], match["quoted"]))
        elif match["bare"] is not None:
            words.append(match["bare"])
        elif match["mark"]:
            depth += {"[": 1, "]": -1}.get(match["mark"], 0)
            braces += {"{": 1, "}": -1}.get(match["mark"], 0)
            if depth == 0 and match["mark"] in "{};":
                if words:
                    yield words
                words = []
            else:
                words.append(match["mark"])
    if braces or words:
        raise ValueError("it ends within a statement")


def _exact(words: list[str]) -> dict[str, Any] | None:
    """The attributes a statement carries as JSON."""
    for name, mark, value in zip(words, words[1:], words[2:], strict=False):
        if name == EXACT and mark == "=":
            return dict(json.loads(_name(value)))
    return None


def _name(word: str) -> str:
    return word.removeprefix('"')


def _lines(attributes: Mapping[str, Any]) -> str:
    shown = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in attributes.items()
        if value is not None and not (isinstance(value, dict) and "$float" in value)
    }
    return "\n".join(f"{name}: {clean(text)}" for name, text in shown.items())


def _json(attributes: Mapping[str, Any]) -> str:
    return _quoted(json.dumps(attributes))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
