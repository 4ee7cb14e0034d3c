"""How strong the edges and nodes of a graph are, and which of them a picture shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np


def strength(data: Mapping[str, Any]) -> float | None:
    """The signed strength of an edge or node: its `effect`, else its `weight`; None where neither is a finite number."""
    for name in ("effect", "weight"):
        if (value := _finite(data.get(name))) is not None:
            return value
    return None


def strongest_effect(graph: nx.DiGraph) -> float:
    """The largest |strength| of an edge; 1 where there is none."""
    return max((abs(strength(data) or 0.0) for *_, data in graph.edges(data=True)), default=0.0) or 1.0


def prominence(graph: nx.DiGraph) -> dict[tuple[Any, Any], float]:
    """Edge -> its size relative to the largest edge into the same layer, in [0, 1]; the order of a faithfulness curve.

    The size is |share of the total effect| where edges have one, else |strength|. A wide layer spreads the same effect over
    more edges than a narrow one: of absolute sizes, it would show none. Where circuits of several factors are in one graph, an
    edge is measured against those of its own factor, as the factor sees it most: one that is spread wide would show none either.

    Example:
        >>> graph = nx.DiGraph()
        >>> graph.add_nodes_from([("a", {"layer": 0}), ("b", {"layer": 1}), ("c", {"layer": 1}), ("d", {"layer": 2})])
        >>> graph.add_weighted_edges_from([("a", "b", -2.0), ("a", "c", 1.0), ("b", "d", 0.1)])
        >>> list(prominence(graph).values())
        [1.0, 0.5, 1.0]
    """
    sizes = {edge: _sizes(graph.edges[edge]) for edge in graph.edges}
    layer = {node: data.get("layer") for node, data in graph.nodes(data=True)}
    largest: dict[Any, float] = {}
    for (_, target), own in sizes.items():
        for factor, size in own.items():
            largest[layer[target], factor] = max(largest.get((layer[target], factor), 0.0), size)
    return {
        edge: max(size / (largest[layer[edge[1]], factor] or 1.0) for factor, size in own.items())
        for edge, own in sizes.items()
    }


def _sizes(data: Mapping[str, Any]) -> dict[Any, float]:
    """The size of an edge for each factor in whose circuit it is; for None where there are no factors."""
    shares = data.get("factors")
    if isinstance(shares, Mapping) and shares:
        return {factor: abs(_finite(share) or 0.0) for factor, share in shares.items()}
    share = _finite(data.get("share"))
    return {None: abs(strength(data) or 0.0 if share is None else share)}


def on_paths(graph: nx.DiGraph) -> dict[tuple[Any, Any], float]:
    """Edge -> the largest prominence t such that it lies on a whole path of edges of prominence t or more.

    The edges above any t are whole paths from a factor, or another source of the graph, to a sink: no loose ends. Dropping loose ends changes no
    effect of a circuit: what they carry arrives nowhere. In a graph with cycles it is the prominence itself.

    Example:
        >>> graph = nx.DiGraph()
        >>> graph.add_nodes_from([("a", {"layer": 0}), ("b", {"layer": 1}), ("c", {"layer": 1}), ("d", {"layer": 2})])
        >>> graph.add_weighted_edges_from([("a", "b", 1.0), ("a", "c", 0.5), ("b", "d", 0.2), ("c", "d", 0.8)])
        >>> on_paths(graph)
        {('a', 'b'): 0.25, ('a', 'c'): 0.5, ('b', 'd'): 0.25, ('c', 'd'): 0.5}
    """
    own = prominence(graph)
    if not nx.is_directed_acyclic_graph(graph):
        return own
    order = list(nx.topological_sort(graph))
    reached, reaching = dict.fromkeys(order, 1.0), dict.fromkeys(order, 1.0)
    for node in order:
        if (
            graph.nodes[node].get("kind") != "factor"
        ):  # one that other factors lead to, as in the world, begins its own circuit
            reached[node] = max((min(reached[a], own[a, node]) for a in graph.predecessors(node)), default=1.0)
    for node in reversed(order):
        reaching[node] = max((min(reaching[b], own[node, b]) for b in graph.successors(node)), default=1.0)
    return {(a, b): min(reached[a], value, reaching[b]) for (a, b), value in own.items()}


def strongest(graph: nx.DiGraph, max_nodes: int) -> nx.DiGraph:
    """The subgraph of the `max_nodes` most prominent nodes, factors and readouts first, no layer left out.

    A node is as prominent as the most prominent path through it, then as large as the largest of its edges; one without edges
    is as large as its own effect. Half of the nodes are shared out evenly among the layers.
    """
    if len(graph) <= max_nodes:
        return graph
    own = {
        node: (0.0, abs(strength(data) or 0.0) if graph.degree(node) == 0 else 0.0)
        for node, data in graph.nodes(data=True)
    }
    for edge, relative in on_paths(graph).items():
        size = abs(strength(graph.edges[edge]) or 0.0)
        for node in edge:
            own[node] = max(own[node], (relative, size))

    def importance(node: Any) -> tuple[bool, tuple[float, float]]:
        return graph.nodes[node].get("kind") in ("factor", "readout"), own[node]

    ranked = sorted(graph, key=importance, reverse=True)
    layers: dict[Any, list[Any]] = {}
    for node in ranked:
        layers.setdefault(graph.nodes[node].get("layer"), []).append(node)
    share = max_nodes // (2 * len(layers))
    first = [node for members in layers.values() for node in members[:share]]
    return graph.subgraph(list(dict.fromkeys([*first, *ranked]))[:max_nodes])


def without_weak_edges(graph: nx.DiGraph, max_edges: int) -> nx.DiGraph:
    """The graph with the `max_edges` edges on its most prominent paths, and of every node the first one on each side."""
    if graph.number_of_edges() <= max_edges:
        return graph
    ranked = sorted(on_paths(graph).items(), key=lambda item: -item[1])
    kept = {edge for edge, _ in ranked[:max_edges]}
    for side in (0, 1):
        seen: set[Any] = set()
        for edge, _ in ranked:
            if edge[side] not in seen:
                seen.add(edge[side])
                kept.add(edge)
    return graph.edge_subgraph(kept)


def _finite(value: Any) -> float | None:
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
