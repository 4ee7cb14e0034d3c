"""Comparing graphs: which truth, scores by hand, closed forms of the baselines, what is undefined, what is refused."""

import itertools
import json
import math
from dataclasses import asdict

import networkx as nx
import numpy as np
import pytest
from dags import graph, random_dag
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from nnsight_vae import CircuitError
from nnsight_vae.causal import compare, cpdag, parent_aid, shd, sid
from nnsight_vae.causal.graphs import compared_truth

PENDULUM = nx.DiGraph(
    [("angle", "length"), ("angle", "position"), ("light", "length"), ("light", "position")],
)
SIX = nx.DiGraph([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (2, 5)])  # no automorphism


def test_a_total_effect_graph_is_held_against_the_closure_and_a_direct_one_against_the_dag():
    chain = nx.DiGraph([("a", "b"), ("b", "c")])
    total = nx.transitive_closure(chain)
    total.graph["estimand"] = "total"
    result = compare(total, chain)
    assert (result.kind, result.shd, result.n_true) == ("total", 0, 3)
    assert "transitive closure" in result.compared_with
    as_direct = compare(total, chain, kind="direct")
    assert (as_direct.shd, as_direct.extra) == (1, (("a", "c"),))
    assert set(compared_truth(total, chain).edges) == set(total.edges)
    assert compared_truth(total, chain, kind="direct") is chain


def test_a_graph_without_estimand_is_read_as_direct_and_says_so():
    result = compare(PENDULUM, PENDULUM)
    assert result.kind == "direct"
    assert "assumed" in result.compared_with
    assert "assumed" not in compare(PENDULUM, PENDULUM, kind="direct").compared_with


def test_edge_scores_by_hand():
    guess = nx.DiGraph([("angle", "length"), ("position", "angle"), ("light", "angle")])
    result = compare(guess, PENDULUM, kind="direct")
    assert (result.precision, result.recall) == (1 / 3, 1 / 4)
    assert result.f1 == pytest.approx(2 / 7)
    assert (result.skeleton_precision, result.skeleton_recall) == (2 / 3, 2 / 4)
    assert result.skeleton_f1 == pytest.approx(4 / 7)
    assert result.orientation == 1 / 2  # of the two adjacencies found, one is the right way round
    assert result.reversed == (("position", "angle"),)
    assert result.extra == (("light", "angle"),)
    assert set(result.missed) == {("light", "length"), ("light", "position")}
    assert result.shd == len(result.missed) + len(result.extra) + len(result.reversed) == 4


def test_both_ways_is_the_wrong_orientation_of_a_one_way_edge():
    guess = nx.DiGraph([("angle", "length"), ("length", "angle"), ("light", "length")])
    guess.add_node("position")
    assert compare(guess, PENDULUM, kind="total").orientation == 1 / 2


def test_a_reversed_edge_may_cost_two():
    guess = nx.DiGraph([("position", "angle"), ("angle", "length"), ("light", "length"), ("light", "position")])
    once, twice = (compare(guess, PENDULUM, kind="direct", reversal_cost=cost) for cost in (1, 2))
    assert (once.shd, twice.shd, twice.reversal_cost) == (1, 2, 2)
    assert once.sid == twice.sid
    names = list(PENDULUM)
    swapped = [nx.relabel_nodes(guess, dict(zip(names, order, strict=True))) for order in itertools.permutations(names)]
    costs = [shd(each, PENDULUM, reversal_cost=2) for each in swapped]
    assert twice.permuted.shd == pytest.approx(np.mean(costs))
    assert twice.p_value == pytest.approx(np.mean([cost <= 2 for cost in costs]))
    m, pairs = 4, 6  # each wrong direction now costs 2: E[SHD] = m (1 - p) + 2 m p / 2 + (C - m) p
    p = m / pairs
    assert twice.random.shd == pytest.approx(m * (1 - p) + m * p + (pairs - m) * p, abs=0.15)


def test_the_cost_of_a_reversal_counts_in_relabellings_too():
    flipped = nx.DiGraph([(1, 0), (2, 0), (1, 3), (2, 3), (3, 4), (2, 5)])
    p = {cost: compare(flipped, SIX, kind="direct", reversal_cost=cost).p_value for cost in (1, 2)}
    by_hand = {}
    for cost in p:
        relabelled = (
            nx.relabel_nodes(flipped, dict(zip(range(6), order, strict=True)))
            for order in itertools.permutations(range(6))
        )
        distances = [shd(each, SIX, reversal_cost=cost) for each in relabelled]
        by_hand[cost] = np.mean([each <= shd(flipped, SIX, reversal_cost=cost) for each in distances])
    assert p == pytest.approx(by_hand)
    assert p[1] != p[2]


def test_sizes_of_all_effects_are_ranked_whatever_edges_are_drawn():
    sizes = {"angle": {"length": 0.9, "position": 0.4, "light": 0.5}, "light": {"length": 0.8, "position": 0.1}}
    guess = nx.create_empty_copy(PENDULUM)
    guess.graph.update(estimand="direct", sizes=sizes)
    result = compare(guess, PENDULUM)
    pairs = list(itertools.permutations(PENDULUM, 2))
    true = [PENDULUM.has_edge(*pair) for pair in pairs]
    given_sizes = [sizes.get(a, {}).get(b, 0.0) for a, b in pairs]
    assert result.auroc == pytest.approx(roc_auc_score(true, given_sizes)) == pytest.approx(30 / 32)
    assert result.auprc == pytest.approx(average_precision_score(true, given_sizes))
    assert result.base_rate == 4 / 12
    assert result.f1 == 0
    assert "AUROC 0.94 (guessing .50)" in str(result)
    all_linked = nx.transitive_closure(nx.DiGraph([("a", "b")]))
    all_linked.graph["sizes"] = {"a": {"b": 1.0}}
    none = nx.empty_graph(["a", "b"], nx.DiGraph)
    assert "all pairs or none" in compare(all_linked, none, kind="direct").reasons["auroc"]


def test_a_discovered_graph_is_held_against_the_cpdag():
    perfect = cpdag(SIX)
    perfect.graph["estimand"] = "discovery"
    result = compare(perfect, SIX)
    assert (result.shd, result.parent_aid, result.ancestor_aid, result.f1, result.orientation) == (0, 0, 0, 1.0, 1.0)
    assert "CPDAG" in result.compared_with
    assert result.sid is None
    assert "parent AID extends it" in result.reasons["sid"]
    assert (result.n_true, result.n_estimated) == (perfect.number_of_edges(),) * 2
    automorphisms = sum(
        set(nx.relabel_nodes(perfect, dict(enumerate(order))).edges) == set(perfect.edges)
        for order in itertools.permutations(range(6))
    )
    assert result.p_value == result.p_floor == automorphisms / math.factorial(6)
    as_dag = compare(SIX, SIX, kind="discovery")  # more than observation can tell
    undirected = sum(perfect.has_edge(j, i) for i, j in perfect.edges) // 2
    assert undirected > 0
    assert (as_dag.shd, len(as_dag.missed), as_dag.extra, as_dag.reversed) == (undirected, undirected, (), ())
    assert as_dag.orientation == 1 - undirected / 6
    assert as_dag.parent_aid == parent_aid(estimated=SIX, truth=perfect) > 0


def test_the_random_baseline_of_a_discovered_graph_is_of_cpdags_with_as_many_edges():
    result = compare(cpdag(SIX), SIX, kind="discovery")
    pairs, m = 15, 6
    assert result.random.skeleton_recall == pytest.approx(m / pairs, abs=0.02)
    assert result.random.skeleton_precision == pytest.approx(m / pairs, abs=0.02)
    assert result.random.sid is None
    assert result.random.parent_aid is not None


def test_a_discovered_graph_that_is_no_cpdag_has_no_adjustment_distance_and_says_why():
    half = nx.DiGraph([(0, 1), (1, 2), (2, 1)])
    result = compare(half, nx.path_graph(3, nx.DiGraph), kind="discovery")
    assert (result.parent_aid, result.ancestor_aid, result.shd) == (None, None, 1)
    assert "no DAG has the estimated graph as its CPDAG" in result.reasons["parent_aid"]


def test_both_ways_is_a_cycle_in_an_effect_graph_though_an_edge_in_a_discovered_one():
    both = nx.DiGraph([(0, 1), (1, 0)])
    truth = nx.DiGraph([(0, 1)])
    assert compare(both, truth, kind="total").parent_aid is None
    assert compare(both, truth, kind="discovery").parent_aid == 0


def test_the_ceiling_is_scored_against_the_same_graph():
    guess, best = nx.create_empty_copy(SIX), cpdag(SIX)
    guess.graph.update(estimand="discovery", ceiling=[list(edge) for edge in best.edges if edge != (3, 4)])
    result = compare(guess, SIX)
    assert (result.f1, result.ceiling.shd) == (0.0, 1)
    assert "the same algorithm on the true factors" in str(result)
    assert result.to_dict()["ceiling"]["shd"] == 1
    assert compare(best, SIX, kind="discovery").ceiling is None


def test_one_node_graphs_agree_and_everything_else_is_undefined():
    alone = nx.empty_graph(["angle"], nx.DiGraph)
    for kind in ("total", "direct", "discovery"):
        result = compare(alone, alone, kind=kind)
        assert (result.shd, result.parent_aid, result.p_value, result.base_rate) == (0, 0, 1.0, None)
        assert (result.f1, result.orientation, result.auroc) == (None, None, None)
        assert json.dumps(result.to_dict(), allow_nan=False)


@settings(derandomize=True, deadline=None, max_examples=8)
@given(st.integers(2, 5), st.integers(0, 10_000), st.sampled_from(["total", "direct", "discovery"]))
def test_the_graph_compared_with_scores_perfectly_and_every_score_is_in_its_range(n, seed, kind):
    rng = np.random.default_rng(seed)
    truth, guess = (graph(random_dag(n, 0.6, rng)) for _ in range(2))
    perfect = compare(compared_truth(guess, truth, kind=kind), truth, kind=kind)
    assert (perfect.shd, perfect.parent_aid, perfect.ancestor_aid) == (0, 0, 0)
    assert perfect.p_value == perfect.p_floor
    assert {perfect.f1, perfect.skeleton_f1, perfect.orientation} <= {1.0, None}
    result = compare(guess, truth, kind=kind)
    for scores in (result, result.empty, result.random, result.permuted):
        distances = (scores.parent_aid, scores.ancestor_aid)
        assert all(d is None or 0 <= d <= n * (n - 1) for d in distances)
        shares = (scores.precision, scores.recall, scores.f1, scores.skeleton_f1, scores.orientation)
        assert all(share is None or 0 <= share <= 1 for share in shares)


def test_a_cyclic_estimate_has_shd_and_f1_but_no_sid_and_says_why():
    guess = PENDULUM.copy()
    guess.add_edge("length", "angle")
    result = compare(guess, PENDULUM)
    assert (result.sid, result.parent_aid, result.ancestor_aid) == (None, None, None)
    assert set(result.reasons) == {"sid", "parent_aid", "ancestor_aid", "auroc", "auprc"}
    assert (result.shd, result.recall) == (1, 1.0)
    assert result.permuted.sid is None
    assert result.random.sid is not None
    with pytest.raises(CircuitError, match="cycle"):
        sid(estimated=guess, truth=PENDULUM)


def test_undefined_shares_are_none_with_a_reason():
    empty = nx.create_empty_copy(PENDULUM)
    no_guess, no_truth, neither = compare(empty, PENDULUM), compare(PENDULUM, empty), compare(empty, empty)
    assert (no_guess.precision, no_guess.recall, no_guess.f1) == (None, 0.0, 0.0)
    unranked = {"auroc", "auprc", "orientation"}
    assert set(no_guess.reasons) == {"precision", "skeleton_precision"} | unranked
    assert (no_truth.precision, no_truth.recall) == (0.0, None)
    assert set(no_truth.reasons) == {"recall", "skeleton_recall"} | unranked
    shares = {f"{part}{name}" for part in ("", "skeleton_") for name in ("precision", "recall", "f1")}
    assert set(neither.reasons) == shares | unranked
    for result in (no_guess, no_truth, neither):
        assert all(getattr(result, name) is None for name in result.reasons)
    assert (neither.shd, neither.sid, neither.p_value) == (0, 0, 1.0)


def test_a_graph_denser_than_any_dag_has_no_random_baseline():
    complete = nx.complete_graph(3, nx.DiGraph)
    result = compare(complete, nx.DiGraph([(0, 1), (1, 2)]))
    assert result.random is None
    assert result.n_estimated == 6
    assert "-" in str(result)


@pytest.mark.parametrize(("truth", "automorphisms"), [(PENDULUM, 4), (SIX, 1)])
def test_permutation_p_of_a_perfect_match_is_automorphisms_over_n_factorial(truth, automorphisms):
    result = compare(truth, truth)
    assert result.p_exact
    assert result.p_value == result.p_floor == pytest.approx(automorphisms / math.factorial(len(truth)))


def test_permutation_p_equals_a_literal_enumeration():
    guess = nx.relabel_nodes(PENDULUM, {"angle": "length", "length": "angle"})
    names = list(PENDULUM)
    own = shd(guess, PENDULUM)
    relabelled = [
        nx.relabel_nodes(guess, dict(zip(names, order, strict=True))) for order in itertools.permutations(names)
    ]
    distances = [shd(each, PENDULUM) for each in relabelled]
    result = compare(guess, PENDULUM)
    assert result.p_value == sum(d <= own for d in distances) / 24
    assert result.permuted.shd == pytest.approx(np.mean(distances))
    assert result.permuted.sid == pytest.approx(np.mean([sid(estimated=g, truth=PENDULUM) for g in relabelled]))


@pytest.mark.parametrize("truth", [PENDULUM, SIX])
def test_mean_shd_of_random_dags_has_its_closed_form(truth):
    # Each of the C pairs is linked with probability m / C, either way equally often: E[SHD] = m (1 - p/2) + (C - m) p.
    result = compare(truth, truth)
    m, pairs = truth.number_of_edges(), math.comb(len(truth), 2)
    p = m / pairs
    assert result.random.shd == pytest.approx(m * (1 - p / 2) + (pairs - m) * p, abs=0.15)
    assert result.random.precision == pytest.approx(m / pairs / 2, abs=0.02)
    assert result.empty.shd == m


def test_beyond_8_nodes_relabellings_are_drawn_and_p_never_is_zero():
    chain = nx.path_graph(9, nx.DiGraph)
    result = compare(chain, chain, seed=3)
    assert not result.p_exact
    assert result.p_value == result.p_floor == pytest.approx(1 / 10_001)
    assert result == compare(chain, chain, seed=3)


def test_renaming_the_nodes_changes_no_score():
    rng = np.random.default_rng(1)
    true, guess = (graph(random_dag(5, 0.5, rng)) for _ in range(2))
    names = dict(zip(range(5), "dbeac", strict=True))
    renamed = compare(nx.relabel_nodes(guess, names), nx.relabel_nodes(true, names))
    plain = compare(guess, true)
    for name in ("shd", "sid", "ancestor_aid", "f1", "skeleton_f1", "p_value", "p_floor"):
        assert getattr(renamed, name) == pytest.approx(getattr(plain, name))
    assert asdict(renamed.permuted) == pytest.approx(asdict(plain.permuted))


def test_the_printed_table_names_the_graph_compared_the_baselines_and_the_errors():
    guess = PENDULUM.copy()
    guess.remove_edge("angle", "length")
    guess.graph["estimand"] = "total"
    text = str(compare(guess, PENDULUM))
    for part in ("transitive closure", "empty", "random", "permuted", "permutation p", "missed: angle -> length"):
        assert part in text


def test_a_comparison_is_plain_json():
    result = compare(PENDULUM, PENDULUM)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (read["shd"], read["empty"]["shd"], read["kind"]) == (0, 4, "direct")


@pytest.mark.parametrize(
    ("estimated", "truth", "kind", "message"),
    [
        (nx.Graph([("a", "b")]), PENDULUM, None, "networkx.DiGraph, got Graph.*undirected edge as its two arcs"),
        (nx.MultiDiGraph([("a", "b")]), PENDULUM, None, "got MultiDiGraph"),
        (nx.DiGraph(), PENDULUM, None, "no nodes"),
        (nx.DiGraph([("a", "a")]), PENDULUM, None, "self-loops at \\['a'\\]"),
        (nx.DiGraph([("angle", "glare")]), PENDULUM, None, "only the first has \\['glare'\\]"),
        (PENDULUM, nx.DiGraph([("a", "b"), ("b", "a")]), None, "truth must be a DAG"),
        (PENDULUM, PENDULUM, "causal", "kind is 'causal'"),
        (nx.DiGraph(PENDULUM.edges, estimand="TE"), PENDULUM, None, "estimand.* is 'TE'.*discovery"),
    ],
)
def test_graphs_that_cannot_be_compared_are_refused(estimated, truth, kind, message):
    with pytest.raises(CircuitError, match=message):
        compare(estimated, truth, kind=kind)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"sizes": {"angle": {"glare": 1.0}}}, "sizes.*glare"),
        ({"ceiling": [["glare", "angle"]]}, "ceiling.*glare"),
    ],
)
def test_attributes_of_other_nodes_are_refused(attributes, message):
    guess = PENDULUM.copy()
    guess.graph.update(attributes)
    with pytest.raises(CircuitError, match=message):
        compare(guess, PENDULUM)


def test_another_cost_of_a_reversal_is_refused():
    with pytest.raises(CircuitError, match="reversal_cost=0"):
        compare(PENDULUM, PENDULUM, reversal_cost=0)


def test_comparing_changes_neither_graph():
    estimated, truth = PENDULUM.copy(), PENDULUM.copy()
    compare(estimated, truth, kind="total")
    assert nx.utils.graphs_equal(estimated, PENDULUM)
    assert nx.utils.graphs_equal(truth, PENDULUM)
