"""CPDAGs against their definition, against causal-learn, and against the known numbers of classes."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
from dags import all_dags, graph, random_dag

from nnsight_vae import CircuitError
from nnsight_vae.causal import cpdag
from nnsight_vae.causal.equivalence import complete, is_cpdag


def v_structures(a):
    n = len(a)
    linked = a | a.T
    return {
        (i, c, j)
        for c in range(n)
        for i, j in itertools.combinations(range(n), 2)
        if a[i, c] and a[j, c] and not linked[i, j]
    }


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_cpdag_is_the_union_of_all_dags_of_its_class(n):
    """Verma and Pearl 1990: the class has the skeleton and the v-structures in common."""
    classes = {}
    for a in all_dags(n):
        classes.setdefault(((a | a.T).tobytes(), frozenset(v_structures(a))), []).append(a)
    assert len(classes) == {2: 2, 3: 11, 4: 185}[n]  # Gillispie and Perlman 2002, table 1
    for members in classes.values():
        union = np.logical_or.reduce(members)
        assert all((complete(a) == union).all() for a in members)
        assert is_cpdag(union)


@pytest.mark.parametrize("n", [6, 9])
def test_random_dags_have_the_cpdag_of_causal_learn(n):
    from causallearn.graph.Dag import Dag
    from causallearn.graph.GraphNode import GraphNode
    from causallearn.utils.DAG2CPDAG import dag2cpdag

    rng = np.random.default_rng(n)
    for _ in range(15):
        a = random_dag(n, rng.uniform(0.2, 0.8), rng)
        nodes = [GraphNode(str(i)) for i in range(n)]
        dag = Dag(nodes)
        for i, j in np.argwhere(a):
            dag.add_directed_edge(nodes[i], nodes[j])
        ends = dag2cpdag(dag).graph  # i -> j: ends[i, j] = -1, ends[j, i] = 1; i - j: both -1
        assert (complete(a) == (ends == -1)).all()


def test_of_all_mixed_graphs_on_three_nodes_eleven_are_cpdags():
    pairs = list(itertools.combinations(range(3), 2))
    found = 0
    for states in itertools.product((0, 1, 2, 3), repeat=3):
        a = np.zeros((3, 3), dtype=bool)
        for (i, j), state in zip(pairs, states, strict=True):
            a[i, j], a[j, i] = bool(state & 1), bool(state & 2)
        found += is_cpdag(a)
    assert found == 11


@pytest.mark.parametrize("edges", [[(0, 1), (1, 2), (2, 0)], [(0, 1), (1, 2), (2, 1)], [(0, 1), (1, 2)]])
def test_a_cycle_a_half_directed_chain_and_a_directed_chain_are_no_cpdags(edges):
    assert not is_cpdag(nx.to_numpy_array(nx.DiGraph(edges), dtype=bool))


def test_an_undirected_square_is_no_cpdag_though_its_arcs_are_all_paired():
    square = nx.cycle_graph(4, nx.Graph).to_directed()
    assert not is_cpdag(nx.to_numpy_array(square, dtype=bool))  # any direction of it makes a v-structure or a cycle


def test_names_and_order_of_nodes_are_kept_and_the_dag_is_left_alone():
    dag = nx.DiGraph()
    dag.add_nodes_from(["sun", "ball", "shadow", "wall"])
    dag.add_edges_from([("ball", "shadow"), ("sun", "shadow"), ("shadow", "wall")])
    before = dag.copy()
    found = cpdag(dag)
    assert list(found) == list(dag)
    assert set(found.edges) == set(dag.edges)  # a v-structure and what it implies
    assert nx.utils.graphs_equal(dag, before)


def test_what_is_no_dag_is_refused():
    with pytest.raises(CircuitError, match="cycle"):
        cpdag(nx.DiGraph([(0, 1), (1, 0)]))


def test_relabelling_commutes_with_completion():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, order = random_dag(6, 0.5, rng), rng.permutation(6)
        assert (complete(a[np.ix_(order, order)]) == complete(a)[np.ix_(order, order)]).all()
        assert set(cpdag(graph(a)).edges) == set(graph(complete(a)).edges)
