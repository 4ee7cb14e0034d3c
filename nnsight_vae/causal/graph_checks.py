"""What graphs over factors have to be before they are compared, and their matrices."""

from __future__ import annotations

import networkx as nx
import numpy as np
from jaxtyping import Bool

from nnsight_vae.errors import CircuitError


def require_simple(graph: nx.DiGraph, role: str) -> None:
    """Refuse what is not a directed graph with nodes, without multiple edges and self-loops.

    Raises:
        CircuitError: naming the graph by its `role`.
    """
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        instead = "; pass its .graph" if isinstance(getattr(graph, "graph", None), nx.DiGraph) else ""
        raise CircuitError(
            f"{role} must be a networkx.DiGraph, got {type(graph).__name__}{instead}. Code an undirected edge as its two arcs."
        )
    if not graph:
        raise CircuitError(f"{role} has no nodes; add one node per factor.")
    loops = [node for node in graph if graph.has_edge(node, node)]
    if loops:
        raise CircuitError(f"{role} has self-loops at {loops}; remove them, a factor's effect on itself is no edge.")


def require_dag(graph: nx.DiGraph, role: str) -> None:
    """Refuse what is not a DAG.

    Raises:
        CircuitError: naming the graph by its `role`, and a cycle.
    """
    require_simple(graph, role)
    if not nx.is_directed_acyclic_graph(graph):
        raise CircuitError(f"{role} must be a DAG; it has the cycle {nx.find_cycle(graph)}. Remove an edge of it.")


def matrices(a: nx.DiGraph, b: nx.DiGraph) -> tuple[Bool[np.ndarray, "n n"], Bool[np.ndarray, "n n"]]:
    """Adjacency matrices [source, target] of both graphs, in the node order of `b`.

    Raises:
        CircuitError: graphs that are not simple, or over different nodes.
    """
    require_simple(a, "the first graph")
    require_simple(b, "the second graph")
    if set(a) != set(b):
        only_a, only_b = sorted(map(str, set(a) - set(b))), sorted(map(str, set(b) - set(a)))
        raise CircuitError(
            f"both graphs must have the same nodes: only the first has {only_a}, only the second has {only_b}. "
            "Rename with networkx.relabel_nodes, and add factors without edges as nodes."
        )
    first, second = (nx.to_numpy_array(graph, nodelist=list(b), weight=None, dtype=bool) for graph in (a, b))
    return first, second
