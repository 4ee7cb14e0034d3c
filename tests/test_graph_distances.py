"""SHD, SID and adjustment distances: literal definitions, published values, and graphs that gadjid would panic at."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
from dags import all_dags, graph, random_dag

from nnsight_vae import CircuitError
from nnsight_vae.causal import ancestor_aid, cpdag, parent_aid, shd, sid


def valid_adjustment(true, x, y, adjusted):
    """The generalised adjustment criterion word for word, with networkx's d-separation."""
    descendants = nx.descendants(true, x)
    causal = {v for v in descendants if y in descendants and (v == y or y in nx.descendants(true, v))}
    forbidden = causal.union(*(nx.descendants(true, v) for v in causal))
    backdoor = true.copy()
    backdoor.remove_edges_from([(x, v) for v in causal])
    return not forbidden & adjusted and nx.is_d_separator(backdoor, {x}, {y}, adjusted)


def literal_sid(true, guess):
    wrong = 0
    for x, y in itertools.permutations(true, 2):
        adjusted = set(guess.predecessors(x))
        no_effect = y in adjusted
        wrong += y in nx.descendants(true, x) if no_effect else not valid_adjustment(true, x, y, adjusted)
    return wrong


def literal_ancestor_aid(true, guess):
    wrong = 0
    for x, y in itertools.permutations(true, 2):
        no_effect = y not in nx.descendants(guess, x)
        valid = no_effect or valid_adjustment(true, x, y, nx.ancestors(guess, x))
        wrong += y in nx.descendants(true, x) if no_effect else not valid
    return wrong


def literal_shd(a, b):
    """A pair of nodes is right where it has the same of the four: nothing, either arc, both."""
    kinds = lambda g, i, j: (g.has_edge(i, j), g.has_edge(j, i))
    return sum(kinds(a, i, j) != kinds(b, i, j) for i, j in itertools.combinations(a, 2))


def assert_distances_are_literal(guess, true):
    assert sid(estimated=guess, truth=true) == parent_aid(estimated=guess, truth=true) == literal_sid(true, guess)
    assert ancestor_aid(estimated=guess, truth=true) == literal_ancestor_aid(true, guess)
    assert shd(guess, true) == shd(true, guess) == literal_shd(true, guess)


def test_all_pairs_of_3_node_dags_have_their_literal_distances():
    dags = [graph(a) for a in all_dags(3)]
    assert len(dags) == 25
    for true, guess in itertools.product(dags, dags):
        assert_distances_are_literal(guess, true)


@pytest.mark.parametrize("n", [4, 5, 6, 8])
def test_random_pairs_of_dags_have_their_literal_distances(n):
    rng = np.random.default_rng(n)
    for _ in range(25):
        assert_distances_are_literal(*(graph(random_dag(n, rng.uniform(0.1, 0.9), rng)) for _ in range(2)))


@pytest.mark.parametrize(
    ("added", "dropped", "expected"),
    [([("Y1", "Y2")], [], (1, 0)), ([("X2", "X1")], [("X1", "X2")], (1, 8))],
)
def test_worked_example_of_peters_and_buehlmann(added, dropped, expected):
    truth = nx.DiGraph([("X1", "X2"), *itertools.product(("X1", "X2"), ("Y1", "Y2", "Y3"))])
    guess = truth.copy()
    guess.remove_edges_from(dropped)
    guess.add_edges_from(added)
    assert (shd(guess, truth), sid(estimated=guess, truth=truth)) == expected


@pytest.mark.parametrize(
    ("true", "guess", "distances"),
    [
        ([(0, 1)], [(0, 1)], (0, 0, 0)),
        ([(0, 1)], [(1, 0)], (1, 2, 2)),
        ([(0, 1)], [], (1, 1, 1)),
        ([], [(0, 1)], (1, 0, 0)),
    ],
)
def test_two_node_golden_values(true, guess, distances):
    truth, estimated = nx.empty_graph(2, nx.DiGraph), nx.empty_graph(2, nx.DiGraph)
    truth.add_edges_from(true)
    estimated.add_edges_from(guess)
    found = (sid(estimated=estimated, truth=truth), ancestor_aid(estimated=estimated, truth=truth))
    assert (shd(estimated, truth), *found) == distances


def test_adjustment_distances_read_two_arcs_as_an_undirected_edge():
    chain = nx.path_graph(3, nx.DiGraph)
    observed = cpdag(chain)
    assert shd(observed, chain) == 2
    assert parent_aid(estimated=observed, truth=chain) == 6  # nothing is identified, all ordered pairs are wrong
    assert parent_aid(estimated=observed, truth=observed) == ancestor_aid(estimated=observed, truth=observed) == 0
    assert parent_aid(estimated=chain, truth=observed) > 0


def test_every_cpdag_is_at_no_distance_from_itself_and_identifies_at_most_what_its_dag_does():
    for a in all_dags(4):
        dag, observed = graph(a), cpdag(graph(a))
        assert parent_aid(estimated=observed, truth=observed) == ancestor_aid(estimated=observed, truth=observed) == 0
        directed = not any(observed.has_edge(j, i) for i, j in observed.edges)
        assert (parent_aid(estimated=observed, truth=dag) == 0) == directed


def test_shd_counts_insertions_deletions_and_flips_of_cyclic_graphs_too():
    both_ways, none, one_way = nx.DiGraph([(0, 1), (1, 0)]), nx.empty_graph(2, nx.DiGraph), nx.DiGraph([(0, 1)])
    assert shd(both_ways, none) == shd(none, both_ways) == 2
    assert shd(both_ways, one_way) == shd(one_way, both_ways, reversal_cost=2) == 1
    assert shd(nx.DiGraph([(1, 0)]), one_way, reversal_cost=2) == 2
    with pytest.raises(CircuitError, match="reversal_cost=3"):
        shd(none, none, reversal_cost=3)


def test_one_node_has_no_pair_to_be_wrong_about():
    alone = nx.empty_graph(1, nx.DiGraph)
    assert shd(alone, alone) == sid(estimated=alone, truth=alone) == ancestor_aid(estimated=alone, truth=alone) == 0


CYCLE = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
HALF = nx.DiGraph([(0, 1), (1, 2), (2, 1)])  # 0 -> 1 - 2: no CPDAG, Meek's first rule directs 1 -> 2
CHAIN = nx.path_graph(3, nx.DiGraph)


@pytest.mark.parametrize("distance", [parent_aid, ancestor_aid, sid])
@pytest.mark.parametrize(
    ("estimated", "truth", "message"),
    [
        (CYCLE, CHAIN, "estimated must be a DAG.*cycle"),
        (CHAIN, CYCLE, "truth must be a DAG.*cycle"),
        (HALF, CHAIN, "estimated must be a DAG"),
        (nx.DiGraph([(0, 0), (1, 2)]), CHAIN, "self-loops"),
        (nx.Graph(CHAIN), CHAIN, "DiGraph, got Graph.*two arcs"),
        (nx.DiGraph(), CHAIN, "no nodes"),
        (nx.DiGraph([(0, 1), (1, 3)]), CHAIN, "same nodes"),
    ],
)
def test_what_gadjid_would_panic_at_is_refused_before(distance, estimated, truth, message):
    with pytest.raises(CircuitError, match=message):
        distance(estimated=estimated, truth=truth)


def test_sid_is_of_dags_and_sends_no_cpdag_to_gadjid():
    with pytest.raises(CircuitError, match="estimated must be a DAG"):
        sid(estimated=cpdag(CHAIN), truth=CHAIN)


def test_weights_of_edges_do_not_matter():
    weighted = CHAIN.copy()
    nx.set_edge_attributes(weighted, 0.25, "weight")
    assert shd(weighted, CHAIN) == sid(estimated=weighted, truth=CHAIN) == 0
