"""Hypothesis tests of circuits: exact against enumeration, calibrated in simulation, and right about wired models."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from literal_edges import HALVES, pairs_for
from vaes import ConvVAE, seeded
from wired import TRUE_EDGES, wired

import nnsight_vae as nv
from nnsight_vae.circuits import hypothesis_tests
from nnsight_vae.circuits.evaluation.circuit_tests import _adjusted, _Found
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.evaluation.hypotheses import equivalence, hsic_pvalue, independent, wins_pvalue
from nnsight_vae.circuits.evaluation.random_circuits import Inflater, random_like
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.readouts import Pixels

__all__ = ["wired"]  # fixtures


# ---------------------------------------------------------------------------------- equivalence
@pytest.mark.parametrize(("n", "k", "epsilon"), [(7, 6, 0.1), (12, 6, 0.0), (20, 3, 0.2), (1, 1, 0.1)])
def test_equivalence_sums_the_binomial_over_all_counts_at_least_as_extreme(n: int, k: int, epsilon: float) -> None:
    differences = np.array([1.0] * k + [-1.0] * (n - k))
    literal = sum(
        math.comb(n, j) * (0.5 + epsilon) ** j * (0.5 - epsilon) ** (n - j)
        for j in range(n + 1)
        if abs(j / n - 0.5) >= abs(k / n - 0.5) - 1e-12
    )
    found = equivalence(differences, epsilon)
    assert found.p == pytest.approx(literal, rel=1e-9)
    assert (found.share, found.n) == (k / n, n)
    assert found.low <= k / n <= found.high


def test_equivalence_looks_at_signs_not_sizes_and_leaves_ties_out() -> None:
    even = np.array([1e6, -1.0, 2e6, -2.0, 3e6, -3.0])  # the mean difference is far from any probability
    assert equivalence(even).p == pytest.approx(1.0)
    always_worse = equivalence(-np.abs(np.random.default_rng(0).normal(size=40)))
    assert always_worse.p < 1e-8
    with_ties = np.concatenate([even, np.zeros(100)])
    assert equivalence(with_ties) == equivalence(even)
    assert equivalence(np.zeros(5))[::3] == (None, 1.0)
    with pytest.raises(DataError, match=r"epsilon=0.5"):
        equivalence(even, 0.5)


@pytest.mark.parametrize("chance", [0.4, 0.5, 0.6])
def test_equivalence_keeps_its_size_over_the_whole_null_hypothesis_and_has_power(chance: float) -> None:
    rng = np.random.default_rng(1)
    wins = rng.binomial(64, chance, 4000)
    p = {k: equivalence(np.where(np.arange(64) < k, 1.0, -1.0)).p for k in range(65)}
    rejected = np.mean([p[k] <= 0.05 for k in wins])
    assert rejected <= 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert np.mean([p[k] <= 0.05 for k in rng.binomial(64, 0.85, 1000)]) > 0.95


# ---------------------------------------------------------------------------------- independence
def test_hsic_equals_its_trace_with_a_width_of_its_own_for_each_variable() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=9), 1e4 * rng.normal(size=9)

    def kernel(v: np.ndarray) -> np.ndarray:
        width = np.median([abs(a - b) for a, b in itertools.combinations(v, 2)])
        return np.exp(-((v[:, None] - v[None]) ** 2) / (2 * width**2))

    h = np.eye(9) - 1 / 9
    literal = np.trace(kernel(x) @ h @ kernel(y) @ h) / 81
    statistic, p = hsic_pvalue(x, y, n_perm=50, seed=3)
    assert statistic == pytest.approx(literal, rel=1e-10)
    rng, count = np.random.default_rng(3), 0
    for order in rng.permuted(np.tile(np.arange(9), (50, 1)), axis=1):
        count += np.trace(kernel(x) @ h @ kernel(y[order]) @ h) / 81 >= literal
    assert p == pytest.approx((1 + count) / 51)


def test_hsic_keeps_its_size_and_sees_what_correlation_does_not() -> None:
    rng = np.random.default_rng(0)
    null = [hsic_pvalue(rng.normal(size=20), rng.exponential(size=20), n_perm=99, seed=i)[1] for i in range(400)]
    assert np.mean(np.array(null) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert min(null) >= 0.01
    x = rng.normal(size=(50, 40))
    power = [hsic_pvalue(a, a**2 + 0.3 * rng.normal(size=40), n_perm=99, seed=i)[1] for i, a in enumerate(x)]
    assert np.mean(np.array(power) <= 0.05) > 0.9


def test_hsic_of_a_constant_or_mostly_equal_sample_is_defined() -> None:
    x = np.arange(10.0)
    assert hsic_pvalue(x, np.zeros(10)) == (0.0, 1.0)
    spike = np.where(np.arange(10) == 9, 1.0, 0.0)  # the median distance is 0
    statistic, p = hsic_pvalue(spike, spike, n_perm=99)
    assert np.isfinite(statistic)
    assert p < 0.3
    with pytest.raises(DataError, match="one number of each"):
        hsic_pvalue(x, x[:-1])


# ---------------------------------------------------------------------------------- rivals
@pytest.mark.parametrize("more", [True, False])
def test_wins_against_rivals_keep_their_size_at_the_quantile(more: bool) -> None:
    p = [wins_pvalue(k, 100, 0.9, more=more) for k in range(101)]
    literal = [
        sum(math.comb(100, j) * 0.9**j * 0.1 ** (100 - j) for j in (range(k, 101) if more else range(k + 1)))
        for k in range(101)
    ]
    np.testing.assert_allclose(p, literal, rtol=1e-6)
    wins = np.random.default_rng(0).binomial(100, 0.9, 4000)
    assert np.mean([p[k] <= 0.05 for k in wins]) <= 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5


def test_pairs_that_hang_together_count_once() -> None:
    values = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(independent(values), values)
    by_base = independent(values, np.array([5, 5, 3, 3, 3, 9]))
    np.testing.assert_allclose(sorted(by_base[0]), [0.5, 3.0, 5.0])
    chained = independent(values, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 7, 8]))
    np.testing.assert_allclose(np.sort(chained[0]), [1.5, 4.5])
    crossed = independent(values, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2]))
    np.testing.assert_allclose(crossed, [[2.5], [8.5]])


def test_holm_covers_all_targets_and_edges_of_a_test_and_passes_over_what_was_not_tested() -> None:
    found = [
        _Found(0, "a", 1.0, 0.01, "yes", "no"),
        _Found(1, "b", None, None, "yes", "untested"),
        _Found(2, "c", 0.5, 0.04, "yes", "no"),
    ]
    outcomes = _adjusted("minimality", found, ("x", "y", "z"), 0.03)
    assert [o.adjusted for o in outcomes] == [0.02, None, 0.04]
    assert [o.rejected for o in outcomes] == [True, False, False]
    assert [(o.readout, o.verdict) for o in outcomes] == [("x", "yes"), ("y", "untested"), ("z", "no")]


@pytest.fixture(scope="module")
def conv_sets() -> EdgeSets:
    model = seeded(ConvVAE(), 6)
    return EdgeSets.of(nv.VAE(model), pairs_for(model, 4), HALVES)


@pytest.mark.parametrize("seed", range(4))
def test_a_rival_has_the_circuits_edges_per_cut_and_starts_every_edge_where_it_has_arrived(
    conv_sets, seed: int
) -> None:
    sets = conv_sets
    rng = np.random.default_rng(seed)
    circuit = rng.random(len(sets.edges)) < 0.3
    rival = random_like(sets, circuit, rng)
    counts = [np.bincount(sets.cut_of[which], minlength=len(sets.cuts)) for which in (circuit, rival)]
    np.testing.assert_array_equal(*counts)
    assert (rival != circuit).any()
    arrived = {"factor:f"}
    for cut in range(len(sets.cuts)):
        theirs = np.flatnonzero(rival & (sets.cut_of == cut))
        open_ = {i for i in np.flatnonzero(sets.cut_of == cut) if sets.edges[i][0] in arrived}
        assert set(theirs) <= open_ or open_ <= set(theirs)  # edges from elsewhere only once these are used up
        arrived |= {sets.edges[i][1] for i in theirs}


def test_a_rival_goes_into_no_more_nodes_than_the_circuit(conv_sets) -> None:
    sets = conv_sets
    fan = [(f"input[{c}]", f"encoder.0[{v}]") for c in range(3) for v in (1, 3)]
    circuit = sets.set_of([("factor:f", f"input[{c}]") for c in range(3)] + fan)
    into = set()
    for seed in range(10):
        rival = random_like(sets, circuit, np.random.default_rng(seed))
        targets = {sets.edges[i][1] for i in np.flatnonzero(rival & (sets.cut_of == 1))}
        assert len(targets) == 2
        into |= targets
    assert into == {f"encoder.0[{v}]" for v in range(4)}


def test_a_rival_of_a_path_is_a_path(conv_sets) -> None:
    sets = conv_sets
    inflated, _ = Inflater(sets, np.zeros(len(sets.edges), dtype=bool)).draw(np.random.default_rng(1))
    rivals = [random_like(sets, inflated, np.random.default_rng(seed)) for seed in range(20)]
    assert len({rival.tobytes() for rival in rivals}) > 15
    for rival in rivals:
        graph = nx.DiGraph([sets.edges[i] for i in np.flatnonzero(rival)])
        assert rival.sum() == inflated.sum()
        assert nx.has_path(graph, "factor:f", "readout:top")


def test_an_inflated_circuit_has_one_whole_path_more_and_loses_one_step_that_is_new(conv_sets) -> None:
    sets = conv_sets
    rng = np.random.default_rng(0)
    circuit = rng.random(len(sets.edges)) < 0.3
    inflater, lost = Inflater(sets, circuit), set()
    for _ in range(60):
        inflated, without = inflater.draw(rng)
        assert (inflated & circuit).sum() == circuit.sum()
        assert (without & circuit).sum() == circuit.sum()
        out = np.flatnonzero(inflated & ~without)
        lost |= set(sets.cut_of[out].tolist())
        assert len(out) >= 1
        assert len(set(sets.cut_of[out].tolist())) == 1
        added = nx.DiGraph([sets.edges[i] for i in np.flatnonzero(inflated)])
        assert nx.has_path(added, "factor:f", "readout:top")
        assert (inflated & ~circuit).sum() <= len(sets.cuts) + 1  # one edge a cut, and one into every readout
    assert lost == set(range(len(sets.cuts)))
    assert Inflater(sets, np.ones_like(circuit)).draw(rng) is None


# ---------------------------------------------------------------------------------- the wired model
def outcome(result, test: str, readout: str = "pixel[0]"):
    return next(o for o in result.outcomes if (o.test, o.readout) == (test, readout))


def test_the_true_circuit_passes_every_test(wired) -> None:
    vae, pairs, readout = wired
    result = hypothesis_tests(vae, nx.DiGraph(list(TRUE_EDGES)), pairs, readout, n_random=50)
    assert not outcome(result, "equivalence").rejected
    assert outcome(result, "equivalence").verdict == "equivalent: equal to the model in every pair"
    assert outcome(result, "independence").p == 1.0
    assert outcome(result, "sufficiency").rejected
    assert result.superfluous("pixel[0]") == ()
    assert len([o for o in result.outcomes if o.test == "minimality"]) == 10
    assert "0 of 10 edges tested are superfluous" in str(result)
    one, two = (hypothesis_tests(vae, nx.DiGraph(list(TRUE_EDGES)), pairs, readout, n_random=5) for _ in range(2))
    assert one == two
    assert result.to_frame().adjusted.notna().all()


def test_a_decoy_edge_is_superfluous_and_a_missing_route_is_not_equivalent(wired) -> None:
    vae, pairs, readout = wired
    wrong = nx.DiGraph([*TRUE_EDGES - {("enc[1]", "latent.z[0]")}, ("input[2]", "enc[4]")])
    result = hypothesis_tests(vae, wrong, pairs, readout, n_random=100)
    assert set(result.superfluous("pixel[0]")) == {"input[2] -> enc[4]", "input[0] -> enc[1]"}
    assert outcome(result, "equivalence").rejected
    assert outcome(result, "equivalence").statistic == 0.0


def test_what_is_left_out_tells_the_effect_where_the_circuit_misses_a_route(wired) -> None:
    vae, pairs, readout = wired
    strong = nx.DiGraph([("enc[0]", "latent.z[0]")])  # the rest still has the way through enc[1]
    result = hypothesis_tests(vae, strong, pairs, readout, tests=("independence", "necessity"), n_random=60)
    assert outcome(result, "independence").rejected
    assert "still tells" in outcome(result, "independence").verdict
    assert outcome(result, "necessity").statistic > 0.85  # 11 in 12 rivals are another edge, and none carries as much
    ends = nx.DiGraph([("enc[3]", "latent.z[0]")])
    shut = hypothesis_tests(vae, ends, pairs, readout, tests=("sufficiency", "necessity"), n_random=60)
    assert not outcome(shut, "sufficiency").rejected
    assert not outcome(shut, "necessity").rejected
    assert outcome(shut, "necessity").statistic == 0.0  # it is missed by nothing, and rivals of which that holds tie
    assert outcome(shut, "necessity").verdict.startswith("not shown to be missed more")


def test_the_ends_stay_when_a_circuit_is_taken_out_of_the_model(wired) -> None:
    sets = EdgeSets.of(*wired)
    own = sets.set_of(TRUE_EDGES)
    rest = sets.rest_of(own)
    assert rest[sets.set_of([("factor:f", "input[0]"), ("output[0]", "readout:pixel[0]")])].all()
    assert (~rest).sum() == len(TRUE_EDGES) - 2
    no_part = nx.DiGraph([("enc[0]", "latent.z[0]"), ("factor:f", "input[0]"), ("output[0]", "readout:pixel[0]")])
    found = hypothesis_tests(wired[0], no_part, *wired[1:], tests=("necessity",), n_random=80)
    assert outcome(found, "necessity").statistic > 0.8  # were the ends taken too, all rivals would tie


def test_repeating_pairs_adds_no_evidence(wired) -> None:
    vae, pairs, readout = wired
    part = nx.DiGraph([*TRUE_EDGES - {("enc[1]", "latent.z[0]")}])
    few = pairs[:6]
    index = torch.arange(6).repeat_interleave(10)
    many = replace(few[index], groups=index)
    once, repeated = (
        hypothesis_tests(vae, part, p, readout, tests=("equivalence", "independence")) for p in (few, many)
    )
    assert (once.n_pairs, repeated.n_pairs) == (6, 6)
    assert outcome(once, "equivalence").p == pytest.approx(outcome(repeated, "equivalence").p)
    crossed = replace(many, source_groups=torch.zeros(60, dtype=torch.long))
    assert hypothesis_tests(vae, part, crossed, readout, tests=("equivalence",)).n_pairs == 1


def test_a_target_that_nothing_changes_and_a_circuit_that_is_all_are_not_tested(wired) -> None:
    vae, pairs, _ = wired
    readout = Pixels((4,))[["pixel[0]", "pixel[3]"]]
    everything = nx.DiGraph(list(EdgeSets.of(vae, pairs, readout).edges))
    result = hypothesis_tests(vae, everything, pairs, readout, n_random=20, n_edges=3)
    assert outcome(result, "equivalence", "pixel[3]").p is None
    assert "more than rounding" in outcome(result, "sufficiency", "pixel[3]").verdict
    assert "no path lies outside" in outcome(result, "minimality").verdict
    assert "no path lies outside" in str(result)
    some = nx.DiGraph([*TRUE_EDGES, ("output[0]", "readout:pixel[3]")])
    found = hypothesis_tests(vae, some, pairs, readout, tests=("minimality",), n_random=20, n_edges=3)
    assert len([o for o in found.outcomes if o.readout == "pixel[0]"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tests": ("magic",)}, "tests="),
        ({"tests": ()}, "tests="),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"quantile": 1.0}, "quantile=1.0"),
        ({"n_random": 0}, "n_random=0"),
        ({"n_edges": 0}, "n_edges=0"),
        ({"n_perm": True}, "n_perm=True"),
    ],
)
def test_bad_options_are_refused_before_any_run(wired, options: dict, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        hypothesis_tests(wired[0], nx.DiGraph(list(TRUE_EDGES)), *wired[1:], **options)


def test_an_empty_circuit_cannot_be_tested(wired) -> None:
    with pytest.raises(CircuitError, match="no edges"):
        hypothesis_tests(wired[0], nx.DiGraph(), *wired[1:])
