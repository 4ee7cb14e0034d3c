"""DAGs for tests of distances and equivalence classes: all of a size, or random ones."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np


def graph(a):
    return nx.from_numpy_array(np.asarray(a, dtype=int), create_using=nx.DiGraph)


def all_dags(n):
    """Every labelled DAG on n nodes, as an adjacency matrix [source, target]."""
    pairs = list(itertools.combinations(range(n), 2))
    for states in itertools.product((0, 1, 2), repeat=len(pairs)):
        a = np.zeros((n, n), dtype=bool)
        for (i, j), state in zip(pairs, states, strict=True):
            if state:
                a[(i, j) if state == 1 else (j, i)] = True
        if nx.is_directed_acyclic_graph(graph(a)):
            yield a


def random_dag(n, density, rng):
    upper = np.triu(rng.random((n, n)) < density, 1)
    order = rng.permutation(n)
    return upper[np.ix_(order, order)]
