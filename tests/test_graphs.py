"""Graph distances: published values, gadjid, a literal brute force, closed forms of the baselines."""

import itertools
import json
import math
from dataclasses import asdict

import gadjid
import networkx as nx
import numpy as np
import pytest

from nnsight_vae import CircuitError
from nnsight_vae.causal import ancestor_aid, compare, parent_aid, shd, sid
from nnsight_vae.causal.graphs import compared_truth

PENDULUM = nx.DiGraph(
    [("angle", "length"), ("angle", "position"), ("light", "length"), ("light", "position")],
)
SIX = nx.DiGraph([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (2, 5)])  # no automorphism


def all_dags(n):
    """Every labelled DAG on n nodes, as an adjacency matrix."""
    pairs = list(itertools.combinations(range(n), 2))
    for states in itertools.product((0, 1, 2), repeat=len(pairs)):
        a = np.zeros((n, n), dtype=np.int8)
        for (i, j), state in zip(pairs, states, strict=True):
            if state:
                a[(i, j) if state == 1 else (j, i)] = 1
        if nx.is_directed_acyclic_graph(graph(a)):
            yield a


def graph(a):
    return nx.from_numpy_array(a, create_using=nx.DiGraph)


def random_dag(n, density, rng):
    upper = np.triu(rng.random((n, n)) < density, 1)
    order = rng.permutation(n)
    return upper[np.ix_(order, order)].astype(np.int8)


def agrees_with_gadjid(true, guess):
    edges = {"edge_direction": "from row to column"}
    ours = (
        sid(estimated=graph(guess), truth=graph(true)),
        ancestor_aid(estimated=graph(guess), truth=graph(true)),
        shd(graph(guess), graph(true)),
    )
    theirs = (
        gadjid.parent_aid(true, guess, **edges)[1],
        gadjid.ancestor_aid(true, guess, **edges)[1],
        gadjid.shd(true, guess)[1],
    )
    return ours == theirs


def test_every_pair_of_3_node_dags_agrees_with_gadjid():
    dags = list(all_dags(3))
    assert len(dags) == 25
    assert all(agrees_with_gadjid(true, guess) for true in dags for guess in dags)


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_random_pairs_of_dags_agree_with_gadjid(n):
    rng = np.random.default_rng(n)
    pairs = [[random_dag(n, rng.uniform(0.1, 0.9), rng) for _ in range(2)] for _ in range(150)]
    assert all(agrees_with_gadjid(true, guess) for true, guess in pairs)


def literal_sid(true, guess):
    """The definition word for word, with networkx's d-separation."""
    wrong = 0
    for x, y in itertools.permutations(true, 2):
        adjusted, descendants = set(guess.predecessors(x)), nx.descendants(true, x)
        if y in adjusted:
            wrong += y in descendants
            continue
        causal = {v for v in descendants if y in descendants and (v == y or y in nx.descendants(true, v))}
        forbidden = causal.union(*(nx.descendants(true, v) for v in causal))
        backdoor = true.copy()
        backdoor.remove_edges_from([(x, v) for v in causal])
        wrong += bool(forbidden & adjusted) or not nx.is_d_separator(backdoor, {x}, {y}, adjusted)
    return wrong


def test_sid_equals_its_literal_definition():
    rng = np.random.default_rng(0)
    for _ in range(40):
        true, guess = (graph(random_dag(6, rng.uniform(0.2, 0.8), rng)) for _ in range(2))
        assert sid(estimated=guess, truth=true) == literal_sid(true, guess)


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
        ([(0, 1)], [(0, 1)], (0, 0)),
        ([(0, 1)], [(1, 0)], (1, 2)),
        ([(0, 1)], [], (1, 1)),
        ([], [(0, 1)], (1, 0)),
    ],
)
def test_two_node_golden_values(true, guess, distances):
    truth, estimated = nx.empty_graph(2, nx.DiGraph), nx.empty_graph(2, nx.DiGraph)
    truth.add_edges_from(true)
    estimated.add_edges_from(guess)
    result = compare(estimated, truth)
    assert (result.shd, result.sid) == distances
    assert result.parent_aid == result.sid == result.ancestor_aid


def test_shd_counts_insertions_deletions_and_flips_of_cyclic_graphs_too():
    both_ways, none, one_way = nx.DiGraph([(0, 1), (1, 0)]), nx.empty_graph(2, nx.DiGraph), nx.DiGraph([(0, 1)])
    assert shd(both_ways, none) == shd(none, both_ways) == 2
    assert shd(both_ways, one_way) == shd(one_way, both_ways, reversal_cost=2) == 1
    with pytest.raises(CircuitError, match="reversal_cost=3"):
        shd(none, none, reversal_cost=3)


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
    assert result.skeleton_f1 == pytest.approx(4 / 7)
    assert result.reversed == (("position", "angle"),)
    assert result.extra == (("light", "angle"),)
    assert set(result.missed) == {("light", "length"), ("light", "position")}
    assert result.shd == len(result.missed) + len(result.extra) + len(result.reversed) == 4


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
        (nx.Graph([("a", "b")]), PENDULUM, None, "networkx.DiGraph, got Graph"),
        (nx.DiGraph(), PENDULUM, None, "no nodes"),
        (nx.DiGraph([("a", "a")]), PENDULUM, None, "self-loops at \\['a'\\]"),
        (nx.DiGraph([("angle", "glare")]), PENDULUM, None, "only the first has \\['glare'\\]"),
        (PENDULUM, nx.DiGraph([("a", "b"), ("b", "a")]), None, "truth must be a DAG"),
        (PENDULUM, PENDULUM, "causal", "kind is 'causal'"),
        (nx.DiGraph(PENDULUM.edges, estimand="TE"), PENDULUM, None, "estimand.* is 'TE'"),
    ],
)
def test_graphs_that_cannot_be_compared_are_refused(estimated, truth, kind, message):
    with pytest.raises(CircuitError, match=message):
        compare(estimated, truth, kind=kind)


def test_comparing_changes_neither_graph():
    estimated, truth = PENDULUM.copy(), PENDULUM.copy()
    compare(estimated, truth, kind="total")
    assert nx.utils.graphs_equal(estimated, PENDULUM)
    assert nx.utils.graphs_equal(truth, PENDULUM)
