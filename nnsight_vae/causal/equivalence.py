"""CPDAGs: what of a DAG can be told from observation alone."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
from jaxtyping import Bool

from nnsight_vae.causal.graph_checks import require_dag


def cpdag(dag: nx.DiGraph) -> nx.DiGraph:
    """The CPDAG of a DAG: the edges that all DAGs with the same conditional independences share.

    It is the best that causal discovery from observations alone can find. An edge whose direction they do not share is
    undirected, and here an undirected edge i - j is the two arcs i -> j and j -> i.

    Args:
        dag: a DAG; its attributes are not kept.

    Returns: a new graph over the same nodes, in the same order.

    Raises:
        CircuitError: not a DAG.

    Source: Meek 1995, UAI, arXiv 1302.4972: v-structures, then rules R1-R3.

    Example:
        >>> sorted(cpdag(nx.DiGraph([("a", "b"), ("b", "c")])).edges)
        [('a', 'b'), ('b', 'a'), ('b', 'c'), ('c', 'b')]
        >>> sorted(cpdag(nx.DiGraph([("a", "b"), ("c", "b")])).edges)
        [('a', 'b'), ('c', 'b')]
    """
    require_dag(dag, "dag")
    nodes = list(dag)
    completed = complete(nx.to_numpy_array(dag, nodelist=nodes, weight=None, dtype=bool))
    graph = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((nodes[i], nodes[j]) for i, j in np.argwhere(completed))
    return graph


def complete(dag: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "n n"]:
    """The CPDAG of a DAG `A[source, target]`; an undirected edge has both entries."""
    adjacent = dag | dag.T
    directed = np.zeros_like(dag)
    for child, parents in enumerate(dag.T):
        for a, b in itertools.combinations(np.flatnonzero(parents), 2):
            if not adjacent[a, b]:
                directed[[a, b], child] = True
    while True:
        undirected = adjacent & ~directed & ~directed.T
        new = undirected & _meek(adjacent, directed, undirected)
        if not new.any():
            return directed | undirected
        directed |= new


def _meek(
    adjacent: Bool[np.ndarray, "n n"], directed: Bool[np.ndarray, "n n"], undirected: Bool[np.ndarray, "n n"]
) -> Bool[np.ndarray, "n n"]:
    """Directions that avoid a new v-structure (R1, R3) or a cycle (R2)."""
    into = directed.T.astype(int)
    implied = (into @ ~adjacent) > 0  # R1: c -> a - b, c and b not adjacent
    implied |= (directed.astype(int) @ directed) > 0  # R2: a -> c -> b
    for a, b in np.argwhere(undirected & ~implied):  # R3: a - c -> b, a - d -> b, c and d not adjacent
        between = np.flatnonzero(undirected[a] & directed[:, b])
        implied[a, b] = any(not adjacent[c, d] for c, d in itertools.combinations(between, 2))
    return implied


def is_cpdag(graph: Bool[np.ndarray, "n n"]) -> bool:
    """Whether some DAG has this CPDAG: one that extends it exists, and its CPDAG is the graph."""
    dag = _extension(graph)
    return dag is not None and bool((complete(dag) == graph).all())


def _extension(graph: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "n n"] | None:
    """A DAG with the graph's arcs, its undirected edges directed without a new v-structure; None if there is none.

    Source: Dor and Tarsi 1992, technical report R-185, UCLA: take away sinks, one after the other.
    """
    dag, adjacent = graph & ~graph.T, graph | graph.T
    left = np.ones(len(graph), dtype=bool)
    while left.any():
        for x in np.flatnonzero(left):
            neighbours = np.flatnonzero(graph[x] & graph[:, x] & left)
            around = np.flatnonzero(adjacent[x] & left)
            leaves = (graph[x] & ~graph[:, x] & left).any()
            if not leaves and all(adjacent[y, z] for y in neighbours for z in around if y != z):
                dag[neighbours, x] = True
                left[x] = False
                break
        else:
            return None
    return dag
