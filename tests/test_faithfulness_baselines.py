"""The curve of a circuit beside those of rankings that know nothing of effects, and how much better it is, pair by pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from wired import PIXEL, TRUE_EDGES, true_circuit, wired

import nnsight_vae as nv
from nnsight_vae.circuits import Faithfulness, faithfulness, hypothesis_tests, score_edges
from nnsight_vae.circuits.evaluation.curves import area_gains, curve_areas
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.evaluation.rankings import N_RANDOM, by_baseline
from nnsight_vae.errors import CircuitError
from nnsight_vae.readouts import Pixels

__all__ = ["true_circuit", "wired"]  # fixtures

ALL = ("weight", "correlation", "random")


def others(pairs: nv.Pairs) -> nv.Pairs:
    """Pairs of the same kind, other images."""
    noise = 0.3 * torch.randn(pairs.base.shape, generator=torch.Generator().manual_seed(7))
    return replace(pairs, base=pairs.base + noise, source=pairs.source + 1.5 * noise)


def test_one_call_gives_the_circuit_s_curve_beside_those_of_all_baselines(wired, true_circuit, tmp_path) -> None:
    vae, pairs, readout = wired
    scores = score_edges(vae, pairs, readout)
    result = faithfulness(vae, true_circuit, others(pairs), readout, scores=scores, baselines=ALL)
    assert tuple(result.baselines) == ALL
    curve = result.curve_frame()
    assert set(curve.ranking) == {"circuit", *ALL}
    ends = curve[curve.n_edges == result.n_candidates]
    assert ends.f.to_numpy() == pytest.approx(np.ones(4), abs=1e-5)  # every ranking ends with the whole model
    assert result.gains["random"]["cpr"]["pixel[0]"].low > 0
    text = str(result)
    assert all(f"of {name}" in text for name in ALL)
    result.save(tmp_path / "f.npz")
    again = Faithfulness.load(tmp_path / "f.npz")
    assert str(again) == text
    assert again.to_frame().equals(result.to_frame())
    _, axes = result.plot()
    assert [line.get_label() for line in axes.get_lines()[2:6]] == ["pixel[0]", *ALL]


def test_a_baseline_s_curve_is_that_of_its_strongest_edges_relative_to_their_cut(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    scores = score_edges(vae, pairs, readout)
    result = faithfulness(vae, true_circuit, pairs, readout, scores=scores, sizes=(5, 20, 40), baselines=("weight",))
    sets = EdgeSets.of(vae, pairs, readout)
    size = np.abs(scores.beside["weight"][:, 0])
    largest = np.array([size[scores.cut_of == cut].max() for cut in scores.cut_of])
    order = np.argsort(-size / np.where(largest > 0, largest, 1), kind="stable")
    edges = list(zip(scores.sources, scores.targets, strict=True))
    (ranked,) = by_baseline("weight", scores, sets, 0)
    assert [sets.edges[i] for i in ranked] == [edges[i] for i in order]
    for k, n in enumerate((5, 20, 40)):
        chosen = sets.set_of([edges[i] for i in order[:n]])
        literal = sets.read([chosen]).effects[0]
        np.testing.assert_allclose(result.baselines["weight"][k], literal, atol=1e-6)


def test_random_is_the_mean_of_orders_that_the_seed_draws(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    scores = score_edges(vae, pairs, readout)
    sets = EdgeSets.of(vae, pairs, readout)
    drawn = list(by_baseline("random", scores, sets, 3))
    assert len(drawn) == N_RANDOM
    assert len({tuple(order) for order in drawn}) == N_RANDOM
    assert all(sorted(order) == list(range(len(sets.edges))) for order in drawn)
    result = faithfulness(vae, true_circuit, pairs, readout, scores=scores, sizes=(66,), baselines=("random",), seed=3)
    effects = sets.read([np.isin(np.arange(len(sets.edges)), order[:66]) for order in drawn]).effects
    assert len({round(float(each.mean()), 4) for each in effects}) > 1
    np.testing.assert_allclose(result.baselines["random"][0], effects.mean(axis=0), atol=1e-6)


def test_a_gain_is_the_difference_of_areas_with_an_interval_of_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    total = 1 + rng.normal(0, 0.4, (1, 40))
    noise = rng.normal(0, 0.3, (1, 40))  # what both curves share, as curves of the same pairs do
    own, rival = (np.stack([share * total + noise, total]) for share in (0.7, 0.5))
    areas = [curve_areas(each, total, (5, 10))["cpr"] for each in (own, rival)]
    gain = area_gains(own, rival, total, (5, 10))["cpr"]
    assert gain.value == pytest.approx(areas[0].value - areas[1].value)
    assert gain.value == pytest.approx(0.5 * 0.2)  # f differs by .2 at half of the edges: .05 on both sides of it
    assert gain.high - gain.low < 1e-9  # the shared noise cancels, though it widens both areas
    assert areas[0].high - areas[0].low > 0.02
    assert area_gains(rival, own, total, (5, 10))["cmd"].value == pytest.approx(0.1)


def test_the_gain_of_a_curve_over_itself_is_zero_for_certain(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    result = faithfulness(
        vae, true_circuit, pairs, readout, scores=score_edges(vae, pairs, readout), baselines=("random",)
    )
    same = replace(result, baselines={"random": result.curve_effects})
    for gain in same.gains["random"].values():
        assert (gain["pixel[0]"].value, gain["pixel[0]"].low, gain["pixel[0]"].high) == (0.0, 0.0, 0.0)


def test_a_result_says_where_it_was_made_on_the_pairs_the_circuit_was_found_on(wired, tmp_path) -> None:
    vae, pairs, readout = wired
    circuit = nv.extract_circuit(vae, pairs, readout)
    on_these, on_others = (faithfulness(vae, circuit, each, readout) for each in (pairs, others(pairs)))
    assert (on_these.seen, on_others.seen) == (True, False)
    of_these, of_others = (
        hypothesis_tests(vae, circuit, each, readout, tests=("equivalence",)) for each in (pairs, others(pairs))
    )
    assert ("others test it" in str(of_these), "others test it" in str(of_others)) == (True, False)
    assert "found on these pairs" in str(on_these)
    assert "found on these pairs" not in str(on_others)
    on_these.save(tmp_path / "f.npz")
    assert Faithfulness.load(tmp_path / "f.npz").seen
    assert not faithfulness(vae, circuit, pairs, readout, ablation="zero").seen  # not told there
    bare = nv.circuits.circuit_from(score_edges(vae, pairs, readout)).edge_subgraph(TRUE_EDGES).copy()
    bare.graph.clear()
    assert not faithfulness(vae, bare, pairs, readout).seen
    two = Pixels((4,))[["pixel[0]", "pixel[3]"]]  # no pair changes pixel 3, so its total effect is 0 on any pairs
    of_two = nv.extract_circuit(vae, pairs, two)
    assert [faithfulness(vae, of_two, each, two).seen for each in (pairs, others(pairs))] == [True, False]


def test_baselines_without_a_ranking_are_refused_before_any_run(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    scores = score_edges(vae, pairs, readout)
    for options, message in [
        ({"baselines": ("random",)}, "give scores="),
        ({"baselines": ("size",), "scores": scores}, "expected some of 'weight'"),
        ({"baselines": "random", "scores": scores}, "expected some of 'weight'"),
        ({"baselines": ("weight",), "scores": replace(scores, beside={})}, "hold no weight"),
    ]:
        with pytest.raises(CircuitError, match=message):
            faithfulness(vae, true_circuit, pairs, readout, **options)
    assert PIXEL.names == readout.names
