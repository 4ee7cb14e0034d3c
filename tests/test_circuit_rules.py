"""Selection by scores: paths, effects tested against a smallest share with their errors controlled, stability under resampling."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from searched import evidence_of, middle, side_by_side, tiny, wired, wired_scores
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.circuits import FDR, Greedy, Prune, TopK, circuit_from, extract_circuit, score_edges
from nnsight_vae.circuits.selection.evidence import Evidence
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.circuits.selection.rules import strongest
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Region
from nnsight_vae.stats import significance
from nnsight_vae.stats.standard_errors import t_pvalues

__all__ = ["wired", "wired_scores"]  # fixtures


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
