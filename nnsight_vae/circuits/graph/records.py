"""A graph as lists of JSON data: the form between `networkx` and every file format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from nnsight_vae.circuits.graph.attributes import decode, encode
from nnsight_vae.errors import CircuitError

CIRCUIT_SCHEMA = "nnsight-vae/circuit@1"
PLAIN_SCHEMA = "nnsight-vae/graph@1"  # written for a graph that names none, e.g. a factor graph; may be cyclic
SCHEMAS = (CIRCUIT_SCHEMA, PLAIN_SCHEMA)
_RESERVED = {"node": ("id",), "edge": ("source", "target")}  # the keys of node-link JSON


@dataclass(frozen=True)
class Records:
    """A directed graph as JSON data.

    Attributes:
        graph: encoded graph attributes, `schema` among them.
        nodes: (id, encoded attributes), in order.
        edges: (source, target, encoded attributes), in order.
    """

    graph: dict[str, Any]
    nodes: list[tuple[str, dict[str, Any]]]
    edges: list[tuple[str, str, dict[str, Any]]]

    @classmethod
    def of(cls, graph: nx.DiGraph) -> Records:
        """Check a graph and encode it.

        Raises:
            CircuitError: not a simple directed graph with string ids, an unknown schema, a cyclic circuit, or an
                attribute that no file can hold.
        """
        if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
            raise CircuitError(f"Expected a networkx.DiGraph, as extract_circuit returns; got {type(graph).__name__}.")
        for node in graph:
            if not isinstance(node, str):
                raise CircuitError(
                    f"Node {node!r} is a {type(node).__name__}; files need string ids. "
                    "networkx.relabel_nodes(graph, str) makes them."
                )
        schema = graph.graph.get("schema", PLAIN_SCHEMA)
        if schema not in SCHEMAS:
            raise CircuitError(f'graph.graph["schema"] is {schema!r}; this version writes {", ".join(SCHEMAS)}.')
        if schema == CIRCUIT_SCHEMA:
            require_circuit(graph, "This graph")
        return cls(
            graph=_encoded({**graph.graph, "schema": schema}, "graph", "the graph"),
            nodes=[
                (str.__str__(node), _encoded(data, "node", f"node {node!r}")) for node, data in graph.nodes(data=True)
            ],
            edges=[
                (str.__str__(a), str.__str__(b), _encoded(data, "edge", f"edge {a!r} -> {b!r}"))
                for a, b, data in graph.edges(data=True)
            ],
        )

    @classmethod
    def of_node_link(cls, data: Any) -> Records:
        """The records of node-link JSON data.

        Raises:
            ValueError: data of another form, and where it differs.
        """
        data = object_of(data, "the file")
        if data.get("directed") is not True or data.get("multigraph") is not False:
            raise ValueError("it is not a simple directed graph ('directed': true, 'multigraph': false)")
        for name in ("nodes", "edges"):
            if not isinstance(data.get(name), list):
                raise ValueError(f"it has no list {name!r}")
        nodes = [dict(object_of(node, f"nodes[{i}]")) for i, node in enumerate(data["nodes"])]
        edges = [dict(object_of(edge, f"edges[{i}]")) for i, edge in enumerate(data["edges"])]
        return cls(
            graph=dict(object_of(data.get("graph"), "'graph'")),
            nodes=[(node.pop("id", None), node) for node in nodes],
            edges=[(edge.pop("source", None), edge.pop("target", None), edge) for edge in edges],
        )

    def to_node_link(self) -> dict[str, Any]:
        """Node-link data, as `networkx.node_link_graph(data, edges="edges")` reads it."""
        return {
            "directed": True,
            "multigraph": False,
            "graph": self.graph,
            "nodes": [{"id": node, **attributes} for node, attributes in self.nodes],
            "edges": [{"source": a, "target": b, **attributes} for a, b, attributes in self.edges],
        }

    def to_graph(self) -> nx.DiGraph:
        """The graph again.

        Raises:
            ValueError: an id that is missing, not text or there twice, an edge twice or between nodes that are not there,
                or a value that `encode` never makes.
        """
        graph = nx.DiGraph()
        graph.graph.update(_decoded(self.graph, "the graph"))
        for i, (node, attributes) in enumerate(self.nodes):
            if not isinstance(node, str):
                raise ValueError(f"node {i} has the id {node!r}; ids are text")
            if node in graph:
                raise ValueError(f"the node id {node!r} is repeated")
            graph.add_node(node)
            graph.nodes[node].update(_decoded(attributes, f"node {node!r}"))
        for i, (source, target, attributes) in enumerate(self.edges):
            for end in (source, target):
                if not isinstance(end, str) or end not in graph:
                    raise ValueError(f"edge {i}, {source!r} -> {target!r}, has the end {end!r}, which is no node")
            if graph.has_edge(source, target):
                raise ValueError(f"the edge {source!r} -> {target!r} is repeated")
            graph.add_edge(source, target)
            graph.edges[source, target].update(_decoded(attributes, f"edge {source!r} -> {target!r}"))
        return graph


def require_circuit(graph: nx.DiGraph, what: str) -> None:
    """Refuse a graph that says it is a circuit and is none.

    Args:
        graph: any directed graph.
        what: names the graph in the error.

    Raises:
        CircuitError: it has a cycle, or an attribute that circuits use is of another type.
    """
    if not nx.is_directed_acyclic_graph(graph):
        raise CircuitError(
            f"{what} is called a circuit and has the cycle {nx.find_cycle(graph)}. Circuits are acyclic; a graph with cycles "
            f"is exported without the schema {CIRCUIT_SCHEMA!r}."
        )
    places = [(f"node {node!r}", data) for node, data in graph.nodes(data=True)]
    places += [(f"edge {a!r} -> {b!r}", data) for a, b, data in graph.edges(data=True)]
    for place, data in places:
        for name, (right, expected) in _CIRCUIT_TYPES.items():
            value = data.get(name)
            if value is not None and not right(value):
                raise CircuitError(
                    f"{what}: {name!r} of {place} is {value!r}; in a circuit it is {expected} or None. Correct it, or call the "
                    "attribute something else."
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(each is None or _is_number(each) for each in value.values())


_CIRCUIT_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("layer", "effect", "weight", "ci_low", "ci_high", "p", "q", "share"), (_is_number, "a number")),
    **dict.fromkeys(("kind", "site", "stage", "readout"), (_is_text, "text")),
    **dict.fromkeys(("effects", "factors"), (_are_numbers, "a dict of numbers")),
}


def object_of(data: Any, place: str) -> dict[str, Any]:
    """JSON data that must be an object.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{place} is {'missing' if data is None else 'no object: ' + repr(data)[:40]}")
    return data


def attribute_names(attributes: Iterable[Mapping[str, Any]]) -> list[str]:
    """All names, in order of first appearance."""
    return list(dict.fromkeys(name for each in attributes for name in each))


def _encoded(attributes: Mapping[Any, Any], kind: str, where: str) -> dict[str, Any]:
    for name in attributes:
        if not isinstance(name, str) or name in _RESERVED.get(kind, ()):
            raise CircuitError(
                f"{where} has an attribute called {name!r}; names must be strings other than "
                f"{', '.join(_RESERVED.get(kind, ())) or 'those of other types'}. Rename it."
            )
    return {str.__str__(name): encode(value, f"attribute {name!r} of {where}") for name, value in attributes.items()}


def _decoded(attributes: Mapping[str, Any], where: str) -> dict[str, Any]:
    decoded = {}
    for name, value in attributes.items():
        try:
            decoded[name] = decode(value)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"attribute {name!r} of {where} is damaged ({error})") from error
    return decoded
