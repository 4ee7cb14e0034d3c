"""Circuits in layers: drawn at random, or of a given matrix."""

from __future__ import annotations

from itertools import combinations, product

import networkx as nx
import numpy as np


def layered(sizes: list[int], share: float, rng: np.random.Generator, *, skips: bool = True) -> nx.DiGraph:
    """A random circuit: `share` of all possible edges, with effects of either sign on one readout."""
    graph = nx.DiGraph()
    nodes = [[f"s{k}[{i}]" for i in range(size)] for k, size in enumerate(sizes)]
    for k, column in enumerate(nodes):
        graph.add_nodes_from(column, layer=k, site=f"s{k}", kind="neuron", stage="encoder")
    for k, m in combinations(range(len(sizes)), 2):
        if skips or m == k + 1:
            for u, v in product(nodes[k], nodes[m]):
                if rng.random() < share:
                    join(graph, u, v, float(rng.normal()))
    return graph


def join(graph: nx.DiGraph, u: str, v: str, effect: float, readout: str = "y") -> None:
    graph.add_edge(u, v, effect=effect, readout=readout, effects={readout: effect})


def circuit_of(matrix: np.ndarray) -> nx.DiGraph:
    graph = nx.DiGraph()
    for k, size in enumerate(matrix.shape):
        graph.add_nodes_from((f"s{k}[{i}]" for i in range(size)), layer=k, site=f"s{k}")
    for i, j in np.argwhere(matrix):
        join(graph, f"s0[{i}]", f"s1[{j}]", 1.0)
    return graph


def planted(seed: int) -> nx.DiGraph:
    """Two groups of sources with targets of their own, and some noise: many bi-fans at ordinary degrees."""
    matrix = np.zeros((10, 12), dtype=bool)
    matrix[:5, :6] = matrix[5:, 6:] = True
    flips = np.random.default_rng(seed).random(matrix.shape) < 0.15
    return circuit_of(matrix ^ flips)
