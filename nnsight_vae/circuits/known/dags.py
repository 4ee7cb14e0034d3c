"""Random factor graphs, by seed."""

from __future__ import annotations

import networkx as nx
import numpy as np

from nnsight_vae.errors import DataError


def random_dag(factors: int = 4, edge_probability: float = 0.5, depth: int = 2, seed: int = 0) -> nx.DiGraph:
    """A directed acyclic graph over `f0`, `f1`, ... drawn level by level.

    Every factor is put on one of the levels 0 ... depth, uniformly and independently; then every pair of factors on
    different levels is joined, from the lower to the higher, with probability `edge_probability`, independently. So no
    path has more than `depth` edges, and the expected number of edges is p K (K - 1) / 2 * depth / (depth + 1).

    Args:
        factors: number of factors, K.
        edge_probability: p, in [0, 1].
        depth: the most edges that a path may have.
        seed: the same seed gives the same graph.

    Raises:
        DataError: a number is out of its range.

    Example:
        >>> sorted(random_dag(3, edge_probability=1.0, depth=2, seed=3).edges)
        [('f1', 'f0'), ('f2', 'f0')]
    """
    if isinstance(factors, bool) or factors < 1 or depth < 0 or not 0 <= edge_probability <= 1:
        raise DataError(
            f"got factors={factors}, edge_probability={edge_probability}, depth={depth}; "
            "expected at least one factor, a probability in [0, 1] and a depth of at least 0."
        )
    rng = np.random.default_rng(seed)
    level, joined = rng.integers(0, depth + 1, factors), rng.random((factors, factors)) < edge_probability
    dag: nx.DiGraph = nx.DiGraph()
    dag.add_nodes_from(f"f{k}" for k in range(factors))
    dag.add_edges_from((f"f{a}", f"f{b}") for a, b in np.argwhere(joined & (level[:, None] < level)).tolist())
    return dag


def one_edge(factors: int = 4) -> nx.DiGraph:
    """Factors `f0`, `f1`, ... of which f0 causes f1 and that is all."""
    dag: nx.DiGraph = nx.DiGraph()
    dag.add_nodes_from(f"f{k}" for k in range(factors))
    dag.add_edge("f0", "f1")
    return dag


def levels(dag: nx.DiGraph) -> dict[str, int]:
    """The length of the longest path to each factor."""
    return {name: i for i, names in enumerate(nx.topological_generations(dag)) for name in names}


def reached(dag: nx.DiGraph) -> dict[str, tuple[str, ...]]:
    """For each factor, itself and the factors that it causes, in the order of the graph."""
    return {name: tuple(g for g in dag if g == name or g in nx.descendants(dag, name)) for name in dag}
