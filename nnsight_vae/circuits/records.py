"""A graph as lists of JSON data: the form between `networkx` and every file format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from nnsight_vae.circuits.attributes import encode
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
        if schema == CIRCUIT_SCHEMA and not nx.is_directed_acyclic_graph(graph):
            raise CircuitError(f"A circuit is acyclic, and this one has the cycle {nx.find_cycle(graph)}.")
        return cls(
            graph=_encoded({**graph.graph, "schema": schema}, "graph", "the graph"),
            nodes=[(str(node), _encoded(data, "node", f"node {node!r}")) for node, data in graph.nodes(data=True)],
            edges=[
                (str(a), str(b), _encoded(data, "edge", f"edge {a!r} -> {b!r}"))
                for a, b, data in graph.edges(data=True)
            ],
        )

    def to_graph(self, decode: Callable[[Any], Any]) -> nx.DiGraph:
        """The graph again.

        Raises:
            ValueError: an id twice, or an edge between nodes that are not there.
        """
        graph = nx.DiGraph(**{name: decode(value) for name, value in self.graph.items()})
        for node, attributes in self.nodes:
            if not isinstance(node, str) or node in graph:
                raise ValueError(f"node id {node!r} is repeated or not text")
            graph.add_node(node)
            graph.nodes[node].update({name: decode(value) for name, value in attributes.items()})
        for source, target, attributes in self.edges:
            if source not in graph or target not in graph or graph.has_edge(source, target):
                raise ValueError(f"edge {source!r} -> {target!r} is repeated or has an end that is no node")
            graph.add_edge(source, target)
            graph.edges[source, target].update({name: decode(value) for name, value in attributes.items()})
        return graph


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
    return {str(name): encode(value, f"attribute {name!r} of {where}") for name, value in attributes.items()}
