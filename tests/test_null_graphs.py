"""Null graphs: uniform over graphs of the same degrees, by enumeration, and never an edge the model lacks."""

from __future__ import annotations

from itertools import product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from layered import circuit_of, join, layered
from scipy.stats import chisquare

from nnsight_vae.circuits.graph.columns import Columns
from nnsight_vae.circuits.structure import nulls
from nnsight_vae.circuits.structure.nulls import degree_null, density_null, draw_subsets, sign_null
from nnsight_vae.errors import CircuitError


def enumerated(rows: list[int], columns: list[int], allowed: np.ndarray) -> list[bytes]:
    """All 0/1 matrices with these margins and nothing outside `allowed`."""
    found = []
    for cells in product((False, True), repeat=allowed.size):
        matrix = np.array(cells).reshape(allowed.shape)
        if (matrix.sum(1) == rows).all() and (matrix.sum(0) == columns).all() and not (matrix & ~allowed).any():
            found.append(matrix.tobytes())
    return found


def blocks_of(drawn: list, pair: tuple[int, int] = (0, 1)) -> np.ndarray:
    return np.concatenate([each[pair] for each in drawn])


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]],  # three traders: one sits out each round
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]],
        [[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]],
    ],
)
def test_every_graph_with_the_same_degrees_is_equally_likely(matrix):
    matrix = np.array(matrix, dtype=bool)
    every = enumerated(matrix.sum(1), matrix.sum(0), np.ones_like(matrix))
    drawn = blocks_of(list(degree_null(Columns.of(circuit_of(matrix)), 60 * len(every), seed=3)))
    counts = dict.fromkeys(every, 0)
    for each in drawn:
        counts[np.ascontiguousarray(each).tobytes()] += 1
    assert len(every) > 5
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_null_graphs_never_use_an_edge_the_model_does_not_have():
    matrix = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    allowed = np.ones_like(matrix)
    allowed[0, 3] = allowed[1, 3] = allowed[3, 0] = False
    columns = Columns.of(circuit_of(matrix))
    block = columns.blocks[0, 1]
    masked = Columns(columns.names, columns.nodes, {(0, 1): type(block)(block.edges, allowed, block.effects)})
    every = enumerated(matrix.sum(1), matrix.sum(0), allowed)
    drawn = blocks_of(list(degree_null(masked, 3000, seed=0)))
    counts = dict.fromkeys(every, 0)
    for each in drawn:
        counts[np.ascontiguousarray(each).tobytes()] += 1
    assert 1 < len(every) < len(enumerated(matrix.sum(1), matrix.sum(0), np.ones_like(matrix)))
    assert chisquare(list(counts.values())).pvalue > 0.01
    free = blocks_of(list(density_null(masked, 500, seed=0)))
    assert (free.sum((1, 2)) == matrix.sum()).all()
    assert not (free & ~allowed).any()
    assert (free.any(0) == allowed).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_null_graphs_keep_what_they_promise(sizes, share, seed):
    columns = Columns.of(layered(sizes, share, np.random.default_rng(seed)))
    for pair, block in columns.blocks.items():
        degree = blocks_of(list(degree_null(columns, 7, seed)), pair)
        assert (degree.sum(1) == block.edges.sum(0)).all()
        assert (degree.sum(2) == block.edges.sum(1)).all()
        assert (blocks_of(list(density_null(columns, 7, seed)), pair).sum((1, 2)) == block.edges.sum()).all()
        up, down = (blocks_of([each[i] for each in sign_null(columns, 7, seed)], pair) for i in (0, 1))
        assert ((up | down) == block.edges).all()
        assert not (up & down).any()
        assert (up.sum((1, 2)) == (block.effects > 0).sum()).all()


def test_batches_bound_memory_and_leave_the_number_of_graphs(monkeypatch):
    columns = Columns.of(layered([5, 6, 4], 0.5, np.random.default_rng(0)))
    monkeypatch.setattr(nulls, "_CELLS", 100)
    batches = list(degree_null(columns, 10, seed=0))
    assert [len(each[0, 1]) for each in batches] == [3, 3, 3, 1]
    assert len({blocks_of(batches)[i].tobytes() for i in range(10)}) > 5  # batches do not repeat each other


def test_subsets_are_uniform_and_of_the_size_asked_for():
    allowed = np.tile([True, True, False, True, True], (60_000, 1))
    drawn = draw_subsets(np.random.default_rng(0), allowed, np.full(60_000, 2))
    assert (drawn.sum(1) == 2).all()
    assert not drawn[:, 2].any()
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 6
    assert chisquare(counts).pvalue > 0.01
    assert not draw_subsets(np.random.default_rng(0), allowed, np.zeros(60_000, dtype=int)).any()


def test_an_incomplete_layer_pair_is_held_fixed_unless_the_models_edges_are_given():
    graph = nx.DiGraph(candidates={"nodes": {"latent.mu": 4, "latent.z": 4}, "edges": {"latent.mu -> latent.z": 4}})
    for i in range(3):
        graph.add_node(f"latent.mu[{i}]", layer=0, site="latent.mu")
        graph.add_node(f"latent.z[{i}]", layer=1, site="latent.z")
        join(graph, f"latent.mu[{i}]", f"latent.z[{i}]", 1.0)
    for null in (degree_null, density_null):
        assert (blocks_of(list(null(Columns.of(graph), 20, 0))) == np.eye(3, dtype=bool)).all()
    del graph.graph["candidates"]
    assert not (blocks_of(list(degree_null(Columns.of(graph), 20, 0))) == np.eye(3, dtype=bool)).all()

    class Scores:
        sources = ("latent.mu[0]", "latent.mu[1]", "latent.mu[2]", "latent.mu[0]", "latent.mu[1]")
        targets = ("latent.z[0]", "latent.z[1]", "latent.z[2]", "latent.z[1]", "latent.z[0]")

    drawn = blocks_of(list(degree_null(Columns.of(graph, Scores), 50, 0)))
    assert {each.tobytes() for each in drawn} == {
        np.eye(3, dtype=bool)[list(o)].tobytes() for o in ((0, 1, 2), (1, 0, 2))
    }
    Scores.sources, Scores.targets = Scores.sources[1:], Scores.targets[1:]
    with pytest.raises(CircuitError, match="not among the edges of within="):
        Columns.of(graph, Scores)
