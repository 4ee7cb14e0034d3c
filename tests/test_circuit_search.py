"""Searching circuits: known ones are found, errors are controlled in simulations, fast ways equal literal ones."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import beta, hypergeom
from torch import Tensor, nn
from vaes import ConvVAE, ResidualVAE, images, seeded
from wired import TRUE_EDGES, WiredVAE, wired_pairs

import nnsight_vae as nv
from nnsight_vae.circuits import (
    FDR,
    EdgeScores,
    Greedy,
    Mass,
    Prune,
    Screen,
    TopK,
    circuit_from,
    extract_circuit,
    extract_circuits,
    faithfulness,
    score_edges,
    union,
)
from nnsight_vae.circuits.edge_sets import EdgeSets
from nnsight_vae.circuits.edges import Node
from nnsight_vae.circuits.evidence import Evidence
from nnsight_vae.circuits.missed import missed_at_most
from nnsight_vae.circuits.paths import Paths
from nnsight_vae.circuits.rules import strongest
from nnsight_vae.circuits.trials import Trials
from nnsight_vae.errors import CircuitError, DataError, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels, Readout, Region
from nnsight_vae.stats import significance
from nnsight_vae.stats.standard_errors import t_pvalues

Edge = tuple[str, str]


@pytest.fixture(scope="module")
def wired() -> tuple[nv.VAE, Pairs, object]:
    pairs = wired_pairs()
    return nv.VAE(WiredVAE(), example=pairs.base), pairs, Pixels((4,))["pixel[0]"]


@pytest.fixture(scope="module")
def wired_scores(wired) -> EdgeScores:
    return score_edges(*wired)


def chosen(scores: EdgeScores, select: FDR | Mass | TopK) -> set[Edge]:
    return set(circuit_from(scores, select, resamples=0).edges)


def with_values(scores: EdgeScores, edge: Edge, values: np.ndarray | float) -> EdgeScores:
    changed = scores.values.copy()
    changed[list(zip(scores.sources, scores.targets, strict=True)).index(edge), 0] = values
    return replace(scores, values=changed)


def evidence_of(scores: EdgeScores, seed: int = 0) -> Evidence:
    return Evidence(scores, Paths.of(scores), len(scores), seed)


def side_by_side(
    effects: np.ndarray, total: np.ndarray, groups: np.ndarray | None = None, sources: np.ndarray | None = None
) -> EdgeScores:
    """Scores of edges a[i] -> b[i], each between edges that carry everything: any of them is on a path by itself."""
    m, n = effects.shape
    nodes = (
        Node("factor:f", "factor", None, None, "factor", 0),
        *(Node(f"a[{i}]", "linear", "a", i, "encoder", 1) for i in range(m)),
        *(Node(f"b[{i}]", "linear", "b", i, "encoder", 2) for i in range(m)),
        Node("readout:r", "readout", None, None, "readout", 3),
    )
    ends = [
        *(("factor:f", f"a[{i}]") for i in range(m)),
        *((f"a[{i}]", f"b[{i}]") for i in range(m)),
        *((f"b[{i}]", "readout:r") for i in range(m)),
    ]
    sure = np.tile(total, (m, 1))
    return EdgeScores(
        np.concatenate([sure, effects, sure])[:, None],
        tuple(a for a, _ in ends), tuple(b for _, b in ends), nodes, ("r",),
        np.repeat([0, 1, 2], m), ("factor -> a", "a -> b", "b -> readout"),
        total[None], np.zeros(1), np.zeros((3, 1, n)), "ig", "test", groups, sources,
    )  # fmt: skip


def middle(scores: EdgeScores) -> Evidence:
    """Of these, a[i] -> b[i] by themselves."""
    m = len(scores) // 3
    some = slice(m, 2 * m)
    return evidence_of(
        replace(
            scores,
            values=scores.values[some],
            sources=scores.sources[some],
            targets=scores.targets[some],
            cut_of=scores.cut_of[some],
        )
    )


# ---------------------------------------------------------------------------------- a circuit known by construction
STRATEGIES = [
    Prune(),
    Mass(1.0),
    Mass(1.0, level="nodes"),
    TopK(10),
    FDR(),
    FDR(control="by"),
    FDR(control="max-t"),
    Greedy(),
    Greedy(among=TopK(40)),
    Screen(0.2, sample=20),
    Screen(0.2, TopK(10), sample=5),
]


@pytest.mark.parametrize("select", STRATEGIES, ids=repr)
def test_every_strategy_finds_the_true_circuit(wired, select) -> None:
    circuit = extract_circuit(*wired, select=select, resamples=2)
    assert set(circuit.edges) == TRUE_EDGES
    assert circuit.edges["latent.z[0]", "dec[1]"]["effect"] < 0 < circuit.edges["latent.z[0]", "dec[0]"]["effect"]
    assert circuit.edges["enc[0]", "latent.z[0]"]["ci_low"] > 0
    assert min(data["stability"] for *_, data in circuit.edges(data=True)) == pytest.approx(1.0)
    assert circuit.graph["selection"]["strategy"] == repr(select)
    assert circuit.graph["selection"]["targets"]["pixel[0]"]["n_edges"] == len(TRUE_EDGES)


@pytest.mark.parametrize("method", ["exact", "ig", "eap"])
def test_the_default_finds_the_true_circuit_by_any_scores(wired, method: str) -> None:
    assert set(extract_circuit(*wired, method=method).edges) == TRUE_EDGES


def test_several_targets_give_the_union_of_their_circuits(wired) -> None:
    vae, pairs, _ = wired
    extra = {("latent.z[0]", "dec[4]"), ("dec[4]", "output[2]"), ("output[2]", "readout:pixel[2]")}
    for select in (Mass(1.0), Prune(), TopK(10)):
        both = extract_circuit(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[2]"]], select=select, resamples=0)
        assert set(both.edges) == TRUE_EDGES | extra
        assert set(both.edges["input[0]", "enc[0]"]["effects"]) == {"pixel[0]", "pixel[2]"}
        assert both.edges["latent.z[0]", "dec[4]"]["effects"].keys() == {"pixel[2]"}
        assert both.nodes["factor:f"]["layer"] == 0
        assert both.nodes["latent.z[0]"] | {"effect": 0, "readout": ""} == {
            "kind": "latent", "site": "latent.z", "index": 0, "stage": "latent", "layer": 3, "effect": 0, "readout": "",
        }  # fmt: skip


def test_a_cap_keeps_whole_paths(wired_scores) -> None:
    scores = wired_scores
    capped = circuit_from(scores, TopK(8), resamples=0)
    assert capped.number_of_edges() == 8
    assert all(
        nx.has_path(capped, "factor:f", node) and nx.has_path(capped, node, "readout:pixel[0]") for node in capped
    )
    assert {"enc[0]", "enc[1]", "dec[0]"} < set(capped)  # the route through enc[1] carries .4 of enc[0]'s ...
    assert "dec[1]" not in capped  # ... and that through dec[1] .28 of dec[0]'s
    assert chosen(scores, TopK(9)) == set(capped.edges)
    nothing = circuit_from(scores, TopK(3), resamples=0)
    assert len(nothing) == 0
    assert "form no path" in nothing.graph["selection"]["targets"]["pixel[0]"]["reason"]


def test_a_share_of_the_total_effect_drops_the_weaker_routes(wired_scores) -> None:
    scores = wired_scores
    circuit = chosen(scores, FDR(min_share=0.39))  # dec[1] has .28 / .72 = .3889, enc[1] .4 / 1.4 = .2857
    assert circuit == {edge for edge in TRUE_EDGES if not {"enc[1]", "dec[1]"} & set(edge)}
    assert ("latent.z[0]", "dec[1]") in chosen(scores, FDR(min_share=0.38))


def test_mass_keeps_the_strongest_edges_of_each_cut_or_nodes_of_each_layer(wired_scores) -> None:
    scores = wired_scores
    strong = {edge for edge in TRUE_EDGES if not {"enc[1]", "dec[1]"} & set(edge)}
    for level in ("edges", "nodes"):
        assert chosen(scores, Mass(0.5, level=level)) == strong
    assert ("input[0]", "enc[1]") not in chosen(scores, Mass(0.7142, level="nodes"))  # enc[0] has 1 / 1.4 = .7143
    assert ("input[0]", "enc[1]") in chosen(scores, Mass(0.7144, level="nodes"))


def test_a_node_is_as_strong_as_what_comes_into_it() -> None:
    scores = side_by_side(np.outer([0.5, 0.6], np.ones(8)), np.ones(8))
    scores = with_values(scores, ("factor:f", "a[1]"), 0.1)
    assert chosen(scores, Mass(0.6, level="nodes")) == {("factor:f", "a[0]"), ("a[0]", "b[0]"), ("b[0]", "readout:r")}


def test_an_edge_speaks_of_a_target_whose_circuit_it_is_in(wired) -> None:
    vae, pairs, _ = wired
    scores = score_edges(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[2]"]])
    edge = ("input[0]", "enc[1]")
    row = list(zip(scores.sources, scores.targets, strict=True)).index(edge)
    scores.values[row, 1] = 1e4 * np.where(np.arange(30) % 2, 5.0, -4.8)  # larger, but it could be chance
    data = circuit_from(scores, FDR(), resamples=0).edges[edge]
    assert (data["readout"], list(data["effects"])) == ("pixel[0]", ["pixel[0]"])


@pytest.mark.parametrize(
    ("edge", "also"),
    [(("input[0]", "enc[1]"), ("enc[1]", "latent.z[0]")), (("dec[1]", "output[0]"), ("latent.z[0]", "dec[1]"))],
)
def test_an_edge_whose_path_is_broken_goes_with_it(wired_scores, edge: Edge, also: Edge) -> None:
    scores = with_values(wired_scores, edge, 0.0)
    for select in (Mass(1.0), TopK(50), FDR()):
        assert chosen(scores, select) == TRUE_EDGES - {edge, also}


def test_an_edge_that_could_be_chance_is_not_selected_however_large(wired_scores) -> None:
    scores = wired_scores
    noise = np.where(np.arange(30) % 2, 5.0, -4.8)
    for select in (Mass(1.0), TopK(50), FDR()):
        noisy = chosen(with_values(scores, ("input[0]", "enc[1]"), noise), select)
        assert noisy == TRUE_EDGES - {("input[0]", "enc[1]"), ("enc[1]", "latent.z[0]")}
        same_mean = chosen(with_values(scores, ("input[0]", "enc[1]"), noise.mean()), select)
        assert same_mean == TRUE_EDGES


@pytest.mark.filterwarnings("ignore:The pairs change what is read")
def test_a_target_without_a_clear_effect_is_left_out_with_its_reason(wired) -> None:
    vae, pairs, readout = wired
    flipped = Pairs(
        torch.cat([pairs.base[:15], pairs.source[15:]]), torch.cat([pairs.source[:15], pairs.base[15:]]), factor="f"
    )
    for select in (Prune(), FDR(), Screen(0.2, sample=5)):
        circuit = extract_circuit(vae, flipped, readout, select=select, resamples=0)
        assert len(circuit) == 0
        assert "contains 0" in circuit.graph["left_out"]["pixel[0]"]
    assert "none: the interval" in str(faithfulness(vae, circuit, flipped, readout))


@pytest.mark.parametrize("select", [Prune(), TopK(8), Screen(0.2, sample=20)], ids=repr)
def test_a_circuit_says_where_it_comes_from_and_survives_its_files(wired, tmp_path, select) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=select)
    assert circuit.graph["schema"] == "nnsight-vae/circuit@1"
    assert (circuit.graph["model"], circuit.graph["fingerprint"]) == ("WiredVAE", vae.fingerprint)
    assert circuit.graph["pairs"]["n"] == 30
    assert circuit.graph["selection"]["n_tests"] == circuit.graph["n_candidates"] == 74
    assert circuit.graph["total_effect"]["pixel[0]"]["ci_low"] > 0
    assert max(circuit.graph["cut_error"].values()) < 1e-5
    json.dumps(circuit.graph["selection"], allow_nan=False)
    for suffix in ("json", "graphml"):
        again = nv.read_circuit(nv.export(circuit, tmp_path / f"c.{suffix}"))
        assert nx.utils.graphs_equal(again, circuit)
        assert again.graph == circuit.graph


@pytest.mark.parametrize("select", STRATEGIES, ids=repr)
def test_a_strategy_prints_as_written(select) -> None:
    assert eval(repr(select)) == select


@pytest.mark.parametrize("select", [Prune(), TopK(9), Screen(0.1, sample=9)], ids=repr)
def test_the_same_call_finds_the_same_circuit_and_leaves_no_trace(wired, select) -> None:
    one, two = (extract_circuit(*wired, select=select, resamples=3, seed=4) for _ in range(2))
    assert nx.utils.graphs_equal(one, two)
    assert one.graph == two.graph
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in wired[0].module.modules())
    assert all(p.grad is None and p.requires_grad for p in wired[0].module.parameters())


# ---------------------------------------------------------------------------------- paths
@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_paths_may_skip_layers_and_equal_ancestors_and_descendants(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = np.sort(rng.integers(1, 5, 8))
    layers = np.concatenate([[0], layers, [5, 5]])
    ends = [(a, b) for a in range(9) for b in range(1, 11) if layers[a] < layers[b] and rng.random() < 0.4]
    sources, targets = (np.array(side, dtype=np.intp) for side in zip(*ends, strict=True))
    order = rng.permutation(len(ends))  # edges come in any order
    readouts = np.arange(11)[:, None] == np.array([9, 10])
    paths = Paths(sources[order], targets[order], layers, np.arange(11) == 0, readouts)
    selected = rng.random((len(ends), 2)) < 0.6
    kept = paths.on_paths(selected)
    for t, end in enumerate((9, 10)):
        graph = nx.DiGraph([ends[order[e]] for e in np.flatnonzero(selected[:, t])])
        graph.add_nodes_from(range(11))
        on = (nx.descendants(graph, 0) | {0}) & (nx.ancestors(graph, end) | {end})
        expected = [selected[e, t] and set(ends[order[e]]) <= on for e in range(len(ends))]
        assert kept[:, t].tolist() == expected
        assert paths.on_paths_to(selected[:, t], t).tolist() == expected


def test_the_strongest_first_hold_the_share_and_ties_stay_together() -> None:
    size = np.array([[4.0], [3.0], [3.0], [1.0], [1.0], [9.0]])
    group = np.array([0, 0, 0, 1, 1, 1])
    held = [strongest(size, group, share).ravel().astype(int).tolist() for share in (0.3, 0.4, 0.41, 0.9, 1.0)]
    assert held == [
        [1, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 1],
        [1, 1, 1, 0, 0, 1],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


# ---------------------------------------------------------------------------------- tests of effects
def test_a_share_of_a_constant_total_effect_is_the_test_of_a_smallest_effect() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(0.3, 0.4, (6, 10)) * np.array([1, -1, 1, -1, 2, 0.1])[:, None]
    evidence = evidence_of(side_by_side(effects, np.full(10, -2.0)))
    expected = significance.sign_flip_pvalues(effects, min_effect=0.1 * 2.0)  # few pairs: all flips are enumerated
    np.testing.assert_allclose(evidence.pvalues(0.1)[6:12, 0], expected)
    assert set(expected) > {1.0}
    np.testing.assert_allclose(evidence.pvalues(0.0)[6:12, 0], significance.sign_flip_pvalues(effects))


def test_the_total_effect_s_own_uncertainty_is_part_of_the_test() -> None:
    rng = np.random.default_rng(1)
    total = rng.normal(1.0, 0.5, 40)
    proportional = (0.1 * total)[None]  # exactly a tenth in every pair
    evidence = evidence_of(side_by_side(proportional, total))
    assert evidence.pvalues(0.099)[1, 0] < 1e-3
    assert evidence.pvalues(0.101)[1, 0] == 1.0


@pytest.mark.parametrize("control", ["bh", "by", "max-t"])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_false_discoveries_stay_at_their_rate(control: str, share: float) -> None:
    """30 edges at the very edge of the null hypothesis beside 10 that exceed it, pairs correlated over edges."""
    rng, q, shares_false, any_false, found = np.random.default_rng(2), 0.1, [], [], 0
    worth = np.concatenate([np.full(30, share), np.full(10, share + 0.3)])
    for draw in range(100):
        total = rng.normal(1.0, 0.2, 14)
        noise = rng.normal(0, 0.3, (40, 14)) + rng.normal(0, 0.2, 14)
        evidence = replace(middle(side_by_side(worth[:, None] * total + noise, total)), seed=draw)
        passed = FDR(q, share, control).passed(evidence)[:, 0]
        shares_false.append(passed[:30].sum() / max(1, passed.sum()))
        any_false.append(passed[:30].any())
        found += passed[30:].sum()
    allowed = q + 2 * np.std(any_false if control == "max-t" else shares_false) / np.sqrt(100)
    assert np.mean(any_false if control == "max-t" else shares_false) <= allowed
    assert found > 50


def test_where_no_edge_does_anything_hardly_ever_is_one_found() -> None:
    """The scores of a real model with every pair's effects turned round at random: whatever they share, their mean is 0."""
    model = seeded(ConvVAE(), 5)
    pairs = Pairs(images(model, 16) / 2, images(model, 16) / 2 + 0.5, factor="f")
    scores = score_edges(nv.VAE(model), pairs, Region({"top": (slice(0, 8), slice(None))}), method="eap")
    rng, found = np.random.default_rng(0), 0
    for draw in range(60):
        signs = rng.choice([-1.0, 1.0], 16)
        null = replace(scores, values=scores.values * signs, total=np.full((1, 16), 1.0))
        found += FDR(0.1, 0.0).passed(evidence_of(null, draw)).any()
    assert found <= 60 * 0.1 + 2 * np.sqrt(60 * 0.1 * 0.9)


def test_a_lone_effect_among_many_is_found_though_few_flips_could_not_tell() -> None:
    rng = np.random.default_rng(3)
    effects = rng.normal(0, 1, (800, 40))
    effects[400] = rng.normal(3.0, 0.3, 40)
    scores = side_by_side(effects, np.full(40, 1.0))
    lone = replace(scores, values=np.where(np.arange(2400)[:, None, None] // 800 == 1, scores.values, 0.0))
    assert significance.permutations_needed(2400, 0.05) > 9999
    p, q = FDR(0.05, 0.0).adjusted(evidence_of(lone))
    assert p[1200, 0] == pytest.approx(1 / (1 + significance.permutations_needed(2400, 0.05)))
    assert np.flatnonzero(q[:, 0] <= 0.05).tolist() == [1200]


def test_edges_that_were_not_scored_count_as_tests() -> None:
    rng = np.random.default_rng(4)
    scores = side_by_side(rng.normal(0.5, 0.5, (5, 12)), np.full(12, 1.0))
    few = Evidence(scores, Paths.of(scores), 15, 0)
    many = Evidence(scores, Paths.of(scores), 1500, 0)
    assert (few.n_tests, many.n_tests) == (15, 1500)
    rule = FDR(0.05, 0.2)
    p = rule.adjusted(many)[0]
    padded = np.concatenate([p[:, 0], np.ones(1485)])
    np.testing.assert_allclose(rule.adjusted(many)[1][:, 0], significance.benjamini_hochberg(padded)[:15])


# ---------------------------------------------------------------------------------- stability
@pytest.mark.parametrize("crossed", [False, True], ids=["by base", "both ways"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_resample_is_the_pairs_written_out_anew(crossed: bool, share: float) -> None:
    rng = np.random.default_rng(5)
    base, source = np.repeat(np.arange(5), 4), np.tile(np.arange(4), 5)
    if not crossed:
        base, source = np.repeat(np.arange(8), [1, 2, 3, 4, 1, 2, 3, 4]), None
    effects, total = rng.normal(0.4, 0.5, (7, 20)), rng.normal(1.0, 0.3, 20)
    evidence = evidence_of(side_by_side(effects, total, base, source))
    values = evidence.scores.values[:, 0]
    for again in evidence.resampled(6):
        pairs, bases, sources = [], [], []
        for n in range(20):
            of_base = int(again.drawn[0][np.unique(base).tolist().index(base[n])])
            of_source = 1 if source is None else int(again.drawn[1][source[n]])
            for i in range(of_base):
                for j in range(of_source):
                    pairs.append(n)
                    bases.append(10 * base[n] + i)
                    sources.append(0 if source is None else 10 * source[n] + j)
        drawn, whole = values[:, pairs], total[pairs]
        np.testing.assert_allclose(again.mean[:, 0], drawn.mean(axis=1))
        np.testing.assert_allclose(again.weights, np.bincount(pairs, minlength=20))
        contrast = (
            drawn if not share else np.sign(drawn.mean(1))[:, None] * drawn - share * np.sign(whole.mean()) * whole
        )
        expected = t_pvalues(contrast, np.array(bases), np.array(sources) if crossed else None)
        if share:
            expected[contrast.mean(axis=1) <= 0] = 1.0
        if crossed and min(len(set(bases)), len(set(sources))) < 2:
            continue
        np.testing.assert_allclose(again.pvalues(share)[:, 0], expected, rtol=1e-6)


def test_stability_is_the_share_of_resamples_in_which_an_edge_is_selected() -> None:
    rng = np.random.default_rng(6)
    effects = rng.normal(1.0, 0.2, (4, 20))
    effects[1] = effects[0] + rng.normal(0, 0.5, 20)  # as strong as the first, give or take
    effects[2:] *= 0.2
    scores = side_by_side(effects, np.full(20, 1.0))
    evidence, counts = evidence_of(scores), np.zeros(12)
    for again in evidence.resampled(100):
        mean = again.mean[4:8, 0]
        counts[4:8] += mean >= sorted(mean)[-2]
    circuit = circuit_from(scores, TopK(6))
    found = {(a, b): data["stability"] for a, b, data in circuit.edges(data=True)}
    assert found["a[0]", "b[0]"] == pytest.approx(1.0)
    assert len(found) == 6
    close = side_by_side(np.stack([effects[0], effects[1]]), np.full(20, 1.0))
    first = circuit_from(close, TopK(3))
    (kept,) = [edge for edge in first.edges if edge[0].startswith("a")]
    expected = np.mean([again.mean[2:4, 0].argmax() == int(kept[0][2]) for again in evidence_of(close).resampled(100)])
    assert 0.3 < expected < 1.0
    assert first.edges[kept]["stability"] == pytest.approx(expected)


@pytest.mark.parametrize("select", [Prune(0.2), Greedy(0.03)], ids=repr)
def test_a_search_of_the_model_is_made_again_on_the_pairs_of_each_resample(select) -> None:
    vae, pairs, readout = tiny()
    circuit = extract_circuit(vae, pairs, readout, select=select, resamples=4)
    evidence = evidence_of(score_edges(vae, pairs, readout))
    again = [pairs[np.repeat(np.arange(6), r.weights.astype(int))] for r in evidence.resampled(4)]
    found = [set(extract_circuit(vae, drawn, readout, select=select).edges) for drawn in again]
    stability = {(a, b): data["stability"] for a, b, data in circuit.edges(data=True)}
    assert stability == pytest.approx({edge: np.mean([edge in each for each in found]) for edge in circuit.edges})
    assert len(set(stability.values())) > 1


def test_without_resamples_there_is_no_stability(wired) -> None:
    for circuit in (extract_circuit(*wired), circuit_from(score_edges(*wired), resamples=0)):
        assert {data["stability"] for *_, data in circuit.edges(data=True)} == {None}
        assert circuit.graph["selection"]["resamples"] == 0


# ---------------------------------------------------------------------------------- taking edges away
class TinyVAE(nn.Module):
    image = (3,)

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.enc, self.fc_mu, self.fc_logvar = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.dec, self.out = nn.Linear(2, 4), nn.Linear(4, 3)
        self.act = nn.Identity() if linear else nn.Tanh()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.act(self.enc(x))
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.act(self.dec(z)))


class MeanOutput:
    names = ("mean",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.mean(1, keepdim=True)


def tiny(linear: bool = False, n: int = 6) -> tuple[nv.VAE, Pairs, Readout]:
    model = seeded(TinyVAE(linear), 7).double()
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(n, 3, generator=generator).double()
    pairs = Pairs(base, base + 1 + torch.rand(n, 3, generator=generator).double(), factor="f")
    return nv.VAE(model, example=base), pairs, MeanOutput()


def literal_run(vae: nv.VAE, pairs: Pairs, edges: set[Edge]) -> Tensor:
    """The mean output of the source run in which edges outside the set carry what they carried in the base run, unit by unit."""
    model = vae.module
    layers = [
        ("input", model.enc, "enc"), ("enc", model.fc_mu, "latent.z"), ("latent.z", model.dec, "dec"), ("dec", model.out, "output"),
    ]  # fmt: skip
    base, x = pairs.base, pairs.base.clone()
    for i in range(3):
        if ("factor:f", f"input[{i}]") in edges:
            x[:, i] = pairs.source[:, i]
    for before, layer, after in layers:
        next_base, new = layer(base), layer(base).clone()
        for u in range(x.shape[1]):
            for v in range(new.shape[1]):
                if (f"{before}[{u}]", f"{after}[{v}]") in edges:
                    new[:, v] = new[:, v] + layer.weight[v, u] * (x[:, u] - base[:, u])
        act = model.act if after in ("enc", "dec") else nn.Identity()
        base, x = act(next_base), act(new)
    kept = torch.tensor([(f"output[{i}]", "readout:mean") in edges for i in range(3)])
    return torch.where(kept, x, base).mean(1).detach()


def literal_acdc(vae: nv.VAE, pairs: Pairs, scores: EdgeScores, tau: float) -> set[Edge]:
    """Algorithm 1 of the ACDC paper, with nothing remembered between runs."""
    edges = set(zip(scores.sources, scores.targets, strict=True))
    everything, nothing = literal_run(vae, pairs, edges), literal_run(vae, pairs, set())

    def deviation(kept: set[Edge]) -> float:
        run = literal_run(vae, pairs, kept)
        return float((run - everything).abs().mean() / (everything - nothing).abs().mean())

    strength = dict(zip(zip(scores.sources, scores.targets, strict=True), np.abs(scores.mean()[:, 0]), strict=True))
    names = [node.id for node in scores.nodes]
    for node in reversed(names):
        for edge in sorted((e for e in set(edges) if e[1] == node), key=lambda e: (strength[e], names.index(e[0]))):
            if deviation(edges - {edge}) - deviation(edges) < tau:
                edges.remove(edge)
    graph = nx.DiGraph(list(edges))
    graph.add_nodes_from(["factor:f", "readout:mean"])
    on = (nx.descendants(graph, "factor:f") | {"factor:f"}) & (nx.ancestors(graph, "readout:mean") | {"readout:mean"})
    return {edge for edge in edges if set(edge) <= on}


@pytest.mark.parametrize("tau", [0.005, 0.03, 0.1])
def test_greedy_search_equals_a_literal_acdc(tau: float) -> None:
    vae, pairs, readout = tiny()
    expected = literal_acdc(vae, pairs, score_edges(vae, pairs, readout), tau)
    visits: list[tuple[int, int]] = []
    circuit = extract_circuit(vae, pairs, readout, select=Greedy(tau), progress=lambda *at: visits.append(at))
    assert set(circuit.edges) == expected
    assert 3 < len(expected) < 46
    assert visits[-1] == (46, 46)
    note = circuit.graph["selection"]["targets"]["mean"]
    run, whole, nothing = (
        literal_run(vae, pairs, e) for e in (expected, set(zip(*_ends(vae, pairs, readout), strict=True)), set())
    )
    assert note["deviation"] == pytest.approx(float((run - whole).abs().mean() / (whole - nothing).abs().mean()))
    assert 1 < note["runs"] <= 47


def _ends(vae: nv.VAE, pairs: Pairs, readout: Readout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    scores = score_edges(vae, pairs, readout)
    return scores.sources, scores.targets


def test_an_edge_s_worth_is_what_its_loss_would_change_where_the_model_is_linear() -> None:
    vae, pairs, readout = tiny(linear=True)
    scores = score_edges(vae, pairs, readout)
    ends = list(zip(scores.sources, scores.targets, strict=True))
    trials = Trials(EdgeSets.of(vae, pairs, readout), scores)
    kept, weights = np.random.default_rng(0).random(len(ends)) < 0.8, np.array([1.0, 0.0, 2.0, 1.0, 3.0, 0.0])
    worth = trials.worth(kept, 0, weights)
    now = {ends[e] for e in np.flatnonzero(kept)}
    for e, edge in enumerate(ends):
        lost = (literal_run(vae, pairs, now) - literal_run(vae, pairs, now - {edge})).numpy()
        assert worth[e] == pytest.approx(abs(np.average(lost, weights=weights)), rel=1e-6, abs=1e-9)
    assert (worth[~kept] == 0).all()


def test_the_deviation_is_that_of_the_literal_run_pair_by_pair() -> None:
    vae, pairs, readout = tiny()
    scores = score_edges(vae, pairs, readout)
    ends = list(zip(scores.sources, scores.targets, strict=True))
    trials = Trials(EdgeSets.of(vae, pairs, readout), scores)
    kept, weights = np.random.default_rng(1).random(len(ends)) < 0.7, np.array([1.0, 0.0, 2.0, 1.0, 3.0, 0.0])
    run, whole, nothing = (
        literal_run(vae, pairs, {ends[e] for e in np.flatnonzero(each)}).numpy()
        for each in (kept, np.ones_like(kept), np.zeros_like(kept))
    )
    expected = (weights * np.abs(run - whole)).sum() / (weights * np.abs(whole - nothing)).sum()
    assert trials.deviation(kept, 0, weights) == pytest.approx(expected)
    assert trials.deviation(np.ones_like(kept), 0, weights) == pytest.approx(0.0, abs=1e-12)
    assert trials.deviation(np.zeros_like(kept), 0, weights) == pytest.approx(1.0)


@pytest.mark.parametrize("allowed", [0.05, 0.2, 0.35, 0.5])
def test_pruning_takes_as_much_as_is_allowed(allowed: float) -> None:
    vae, pairs, readout = tiny()
    circuit = extract_circuit(vae, pairs, readout, select=Prune(allowed, step=0.05))
    note = circuit.graph["selection"]["targets"]["mean"]
    scores = score_edges(vae, pairs, readout)
    whole, nothing = (
        literal_run(vae, pairs, set(zip(*_ends(vae, pairs, readout), strict=True))),
        literal_run(vae, pairs, set()),
    )
    deviation = float(
        (literal_run(vae, pairs, set(circuit.edges)) - whole).abs().mean() / (whole - nothing).abs().mean()
    )
    assert note["deviation"] == pytest.approx(deviation)
    assert deviation <= allowed
    assert all(nx.has_path(circuit, "factor:f", n) and nx.has_path(circuit, n, "readout:mean") for n in circuit)
    trials = Trials(EdgeSets.of(vae, pairs, readout), scores)
    ends = list(zip(scores.sources, scores.targets, strict=True))
    kept, everyone = np.array([edge in circuit.edges for edge in ends]), np.ones(6)
    worth = trials.worth(kept, 0, everyone)
    kept[np.where(kept, worth, np.inf).argmin()] = False
    assert trials.deviation(trials.paths.on_paths_to(kept, 0), 0, everyone) > allowed


def test_pruning_keeps_both_routes_of_the_wired_model_until_they_may_go(wired) -> None:
    """Alone, the loss of enc[1] deviates by .4 / 1.4 = .286; that of both routes by 1 - 1 / (1.4 * .72) = .008."""
    for allowed, gone in ((0.28, set()), (0.29, {"enc[1]", "dec[1]"})):
        circuit = extract_circuit(*wired, select=Prune(allowed, step=0.01))
        assert set(circuit.edges) == {edge for edge in TRUE_EDGES if not gone & set(edge)}


def test_what_the_last_step_strands_goes_too() -> None:
    """Four routes of equal worth; two fifths of the effect may go, one route in four is all that fits."""
    scores = side_by_side(np.ones((4, 3)), np.ones(3))
    paths = Paths.of(scores)

    class Routes:
        paths = Paths.of(scores)

        def worth(self, kept: np.ndarray, t: int, weights: np.ndarray) -> np.ndarray:
            return np.where(kept, np.arange(12.0) + 1, 0.0)

        def deviation(self, kept: np.ndarray, t: int, weights: np.ndarray) -> float:
            return 1 - kept.reshape(3, 4).all(axis=0).mean()

    kept, note = Prune(0.4, step=0.5).trim(Routes(), np.ones(12, dtype=bool), 0, np.ones(3))  # type: ignore[arg-type]
    assert kept.reshape(3, 4).tolist() == [[False, True, True, True]] * 3
    assert (note["deviation"], note["looks"]) == (0.25, 1)
    assert (paths.on_paths_to(kept, 0) == kept).all()


def test_what_goes_too_far_in_one_pair_does_not_make_up_for_another() -> None:
    vae, pairs, readout = tiny()
    trials = Trials(EdgeSets.of(vae, pairs, readout), score_edges(vae, pairs, readout))
    both = np.random.default_rng(1).random(46) < 0.7
    alone = [trials.deviation(both, 0, np.eye(6)[i]) for i in range(6)]
    total = np.abs(trials._whole - trials._nothing)[0]
    assert trials.deviation(both, 0, np.ones(6)) == pytest.approx(np.average(alone, weights=total))


def test_a_readout_without_a_gradient_cannot_be_pruned_by_it(wired) -> None:
    class Bright:
        names = ("bright",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return (reconstruction[:, :1] > 0.35).float()

    vae, pairs, _ = wired
    with pytest.raises(ReadoutError, match=r"'bright' has no gradient.*Greedy"):
        extract_circuit(vae, pairs, Bright(), method="exact")
    circuit = extract_circuit(vae, pairs, Bright(), method="exact", select=Greedy(0.05))
    assert {(a, b) for a, b in circuit.edges if b != "readout:bright"} < TRUE_EDGES
    assert len(circuit)


# ---------------------------------------------------------------------------------- screening
@pytest.mark.parametrize(("n", "sampled", "confidence"), [(30, 10, 0.9), (47, 12, 0.95), (25, 25, 0.95), (40, 1, 0.8)])
def test_the_bound_on_what_was_missed_covers_every_truth(n: int, sampled: int, confidence: float) -> None:
    for hits in range(n + 1):
        seen = np.arange(max(0, hits - (n - sampled)), min(hits, sampled) + 1)
        covers = np.array([hits - x <= missed_at_most(n, sampled, int(x), confidence) for x in seen])
        chance = hypergeom.pmf(seen, n, hits, sampled)
        assert chance[covers].sum() >= confidence - 1e-9
    assert missed_at_most(n, sampled, 0, confidence) <= n - sampled


def test_the_bound_becomes_clopper_pearson_where_there_is_no_end_of_edges() -> None:
    for hits in (0, 1, 7):
        share = (missed_at_most(2_000_000, 100, hits, 0.95) + hits) / 2_000_000
        assert share == pytest.approx(beta.ppf(0.95, hits + 1, 100 - hits), rel=1e-3)


def test_the_bounds_of_a_screen_are_about_what_was_never_patched() -> None:
    screened, sampled = np.array([0.9, 0.5, 0.45, 0.4]), np.array([0.6, 0.45, 0.1])
    note = Screen(0.1, confidence=0.9).bounds(screened, sampled, np.array([True, False, False, True]), 50)
    assert note == {
        "n_screened": 4, "n_sampled": 3, "n_never_patched": 43, "confidence": 0.9, "weakest": 0.4,
        "sampled_above": 2, "missed_above": missed_at_most(46, 3, 2, 0.9),
        "largest_sampled": 0.6, "missed_above_largest": missed_at_most(46, 3, 0, 0.9),
    }  # fmt: skip
    none = Screen().bounds(screened, sampled, np.zeros(4, dtype=bool), 50)
    assert (none["weakest"], none["sampled_above"], none["missed_above"]) == (None, None, None)
    everything = Screen(1.0).bounds(screened, np.zeros(0), np.ones(4, dtype=bool), 4)
    assert (everything["largest_sampled"], everything["missed_above"], everything["missed_above_largest"]) == (
        None,
        0,
        0,
    )


def conv_case() -> tuple[nv.VAE, Pairs, Readout]:
    model = seeded(ConvVAE(), 5)
    pairs = Pairs(images(model, 8) / 2, images(model, 8) / 2 + 0.5, factor="f")
    return nv.VAE(model), pairs, Region({"top": (slice(0, 8), slice(None))})


def test_a_screen_s_effects_are_exact_and_what_it_missed_is_within_its_bounds() -> None:
    vae, pairs, readout = conv_case()
    exact = score_edges(vae, pairs, readout, method="exact")
    effect = dict(zip(zip(exact.sources, exact.targets, strict=True), exact.mean()[:, 0], strict=True))
    attributed, broken = score_edges(vae, pairs, readout, method="eap"), 0
    for seed in range(3):
        select = Screen(0.1, TopK(60, among=FDR(0.5, 0.0)), sample=30, confidence=0.9)
        circuit = extract_circuit(vae, pairs, readout, select=select, seed=seed, method="eap", resamples=0)
        note = circuit.graph["selection"]["targets"]["top"]
        for a, b, data in circuit.edges(data=True):
            assert data["effect"] == pytest.approx(effect[a, b], rel=1e-3, abs=1e-6)
        assert (circuit.graph["method"], circuit.graph["n_candidates"]) == ("exact", len(exact))
        screened, sampled = select.chosen(attributed, seed)
        assert (note["n_screened"], note["n_sampled"]) == (len(screened), len(sampled))
        assert not set(screened) & set(sampled)
        rest = np.setdiff1d(np.arange(len(exact)), np.concatenate([screened, sampled]))
        assert note["n_never_patched"] == len(rest)
        size = np.abs(exact.mean()[:, 0])
        assert note["largest_sampled"] == pytest.approx(size[sampled].max(), rel=1e-3)
        broken += (size[rest] > note["largest_sampled"]).sum() > note["missed_above_largest"]
        if note["weakest"] is not None:
            assert note["sampled_above"] == (size[sampled] > note["weakest"]).sum()
            broken += (size[rest] > note["weakest"]).sum() > note["missed_above"]
    assert broken <= 1


def test_a_screen_takes_what_is_largest_anywhere_and_what_is_largest_in_its_cut() -> None:
    rng = np.random.default_rng(7)
    scores = side_by_side(0.01 * rng.random((20, 4)), np.ones(4))
    attributed = replace(scores, values=scores.values * np.linspace(1, 2, 60)[:, None, None])
    screened, sampled = Screen(0.2, sample=7).chosen(attributed, 0)
    size = np.abs(attributed.mean()[:, 0])
    assert len(screened) == 12
    assert size.argmax() in screened  # of all; those of the middle cut are a hundredth of it
    assert 20 + size[20:40].argmax() in screened
    assert len(set(sampled)) == 7
    assert not set(sampled) & set(screened)
    assert set(Screen(0.2, sample=7).chosen(attributed, 1)[1]) != set(sampled)


def test_what_the_sample_finds_joins_the_circuit_but_does_not_move_its_own_threshold(wired) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=Screen(0.1, sample=70))
    note = circuit.graph["selection"]["targets"]["pixel[0]"]
    assert note["n_screened"] == 8  # of ten true edges
    assert note["n_sampled"] == 66  # all others
    assert set(circuit.edges) == TRUE_EDGES
    assert note["missed_above"] in (None, 0)
    assert note["missed_above_largest"] == 0


# ---------------------------------------------------------------------------------- several factors
def test_a_circuit_per_factor_and_their_union_say_whose_is_what(wired) -> None:
    vae, pairs, _ = wired
    both = Pixels((4,))[["pixel[0]", "pixel[2]"]]
    circuits = extract_circuits(
        vae, {name: replace(pairs, factor=name) for name in both.names}, both, select=FDR(), resamples=0
    )
    assert list(circuits) == ["pixel[0]", "pixel[2]"]
    assert all(circuit.graph["total_effect"].keys() == {name} for name, circuit in circuits.items())
    assert set(circuits["pixel[0]"].edges) == {(a.replace("factor:f", "factor:pixel[0]"), b) for a, b in TRUE_EDGES}
    merged = union(circuits)
    assert set(merged.edges) == set().union(*(circuit.edges for circuit in circuits.values()))
    shared = merged.edges["enc[0]", "latent.z[0]"]
    assert shared["factors"] == {
        name: circuit.edges["enc[0]", "latent.z[0]"]["share"] for name, circuit in circuits.items()
    }
    assert merged.edges["dec[4]", "output[2]"]["factors"].keys() == {"pixel[2]"}
    assert merged.nodes["dec[0]"]["factors"] == {"pixel[0]": circuits["pixel[0]"].nodes["dec[0]"]["effect"]}
    layers = [data["layer"] for _, data in merged.nodes(data=True)]
    assert layers == sorted(layers)
    assert all(merged.nodes[a]["layer"] < merged.nodes[b]["layer"] for a, b in merged.edges)
    assert nx.is_directed_acyclic_graph(merged)


def test_the_strongest_factor_speaks_for_a_shared_edge(wired) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=FDR(), resamples=0)
    weaker = circuit.copy()
    weaker.edges["enc[0]", "latent.z[0]"]["share"] /= 2
    weaker.nodes["enc[0]"]["effect"] /= 2
    for order in (("weak", "strong"), ("strong", "weak")):
        merged = union({name: {"weak": weaker, "strong": circuit}[name] for name in order})
        assert merged.edges["enc[0]", "latent.z[0]"]["factor"] == merged.nodes["enc[0]"]["factor"] == "strong"


def test_factors_are_refused_before_any_work(wired) -> None:
    vae, pairs, readout = wired
    for own, message in (
        ({}, "at least one factor"),
        ([pairs], "at least one factor"),
        ({"g": pairs}, "are pairs of factor 'f'"),
    ):
        with pytest.raises(CircuitError, match=message):
            extract_circuits(vae, own, readout)
    with pytest.raises(CircuitError, match="no readout for factor 'f'"):
        extract_circuits(vae, {"f": pairs}, {"g": readout})
    circuit = extract_circuit(vae, pairs, readout)
    foreign = circuit.copy()
    foreign.graph["fingerprint"] = "other"
    with pytest.raises(CircuitError, match="different models"):
        union({"a": circuit, "b": foreign})


# ---------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FDR(q=0.0), "q=0.0"),
        (lambda: FDR(q=1), "q=1"),
        (lambda: FDR(min_share=-0.1), "min_share=-0.1"),
        (lambda: FDR(min_share=float("nan")), "min_share=nan"),
        (lambda: FDR(control="bonferroni"), "'bonferroni' is unknown"),
        (lambda: Mass(0.0), "share=0.0"),
        (lambda: Mass(1.5), "share=1.5"),
        (lambda: Mass("most"), "share='most'"),
        (lambda: Mass(level="heads"), "level='heads'"),
        (lambda: Mass(among=TopK(3)), "expected the test"),
        (lambda: TopK(0), "k=0"),
        (lambda: TopK(2.5), "k=2.5"),
        (lambda: TopK(True), "k=True"),
        (lambda: TopK(3, among=None), "expected the test"),
        (lambda: Prune(0.0), "deviation=0.0"),
        (lambda: Prune(1.0), "deviation=1.0"),
        (lambda: Prune(step=1.0), "step=1.0"),
        (lambda: Greedy(0.0), "tau=0.0"),
        (lambda: Greedy(among=Prune()), "among=Prune"),
        (lambda: Screen(0.0), "share=0.0"),
        (lambda: Screen(then=Prune()), "then=Prune"),
        (lambda: Screen(sample=0), "sample=0"),
        (lambda: Screen(confidence=1.0), "confidence=1.0"),
        (lambda: Screen(then=FDR(control="max-t")), "needs the effects of all edges"),
        (lambda: Screen(then=Mass(among=FDR(control="max-t"))), "needs the effects of all edges"),
    ],
)
def test_a_strategy_out_of_range_is_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "weight"}, "baseline"),
        ({"method": "correlation"}, "baseline"),
        ({"select": 0.9}, r"select=0.9: expected Prune"),
        ({"select": Prune}, "expected Prune"),
        ({"select": Screen(), "method": "exact"}, "let it screen by"),
        ({"resamples": -1}, "resamples=-1"),
        ({"resamples": True}, "resamples=True"),
    ],
)
def test_impossible_searches_are_refused_before_any_work(wired, options: dict, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        extract_circuit(*wired, **options, progress=lambda *_: pytest.fail("work was done"))


def test_scores_that_cannot_be_selected_from_are_refused(wired) -> None:
    scores = score_edges(*wired)
    with pytest.raises(CircuitError, match=r"select=Prune.*expected a selection by scores"):
        circuit_from(scores, Prune())
    with pytest.raises(CircuitError, match="baseline 'random'"):
        circuit_from(score_edges(*wired, method="random"))
    vae, pairs, readout = wired
    with pytest.raises(DataError, match="two"):
        extract_circuit(vae, pairs[:1], readout)


def test_pairs_that_do_nothing_have_no_circuit(wired) -> None:
    vae, pairs, readout = wired
    same = Pairs(pairs.base, pairs.base.clone(), factor="f")
    for select in (Prune(), FDR(), Screen(0.2, sample=5)):
        circuit = extract_circuit(vae, same, readout, select=select)
        assert len(circuit) == 0
        assert "by more than rounding" in circuit.graph["left_out"]["pixel[0]"]


def test_pairs_that_share_bases_are_resampled_and_tested_by_base(wired) -> None:
    vae, pairs, readout = wired
    grouped = replace(pairs, groups=torch.arange(30) // 6)  # five clusters: p is 1/16 at least
    nothing = extract_circuit(vae, grouped, readout, select=FDR())
    assert len(nothing) == 0
    assert "few independent pairs" in nothing.graph["selection"]["targets"]["pixel[0]"]["reason"]
    crossed = Pairs.crossed(pairs.base[:6], pairs.source[6:12], factor="f")
    for before, after in pairwise([FDR(), TopK(10), Prune()]):
        one, two = (extract_circuit(vae, crossed, readout, select=s, resamples=3) for s in (before, after))
        assert ("dec[0]", "output[0]") in one.edges
        assert ("dec[0]", "output[0]") in two.edges


# ---------------------------------------------------------------------------------- models that branch
@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("select", [Prune(0.3), TopK(40), Greedy(0.02, among=TopK(25))], ids=repr)
def test_circuits_of_a_model_with_skip_connections_lie_on_its_paths(select, sampled: bool) -> None:
    model = seeded(ResidualVAE(), 1)
    base = images(model, 8) / 2
    eps = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)) if sampled else None
    pairs, readout = Pairs(base, base + 0.5, factor="f", eps=eps), Region({"top": (slice(0, 4), slice(None))})
    vae = nv.VAE(model, example=base)
    circuit = extract_circuit(vae, pairs, readout, select=select, resamples=0)
    assert circuit.number_of_edges() > 5
    assert all(nx.has_path(circuit, "factor:f", n) and nx.has_path(circuit, n, "readout:top") for n in circuit)
    assert any(circuit.nodes[b]["layer"] - circuit.nodes[a]["layer"] > 1 for a, b in circuit.edges) or isinstance(
        select, Greedy
    )
    score = faithfulness(vae, circuit, pairs, readout, sizes=()).score["top"].value
    note = circuit.graph["selection"]["targets"]["top"]
    if "deviation" in note:
        assert abs(1 - score) <= note["deviation"] + 1e-4
