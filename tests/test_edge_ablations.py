"""What an edge outside a circuit carries under each ablation, against literal forwards and closed forms."""

from __future__ import annotations

import copy
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from literal_edges import HALVES, pairs_for
from masked import conv, some_edges
from vaes import ResidualVAE, images, seeded
from wired import true_circuit, wired

import nnsight_vae as nv
from nnsight_vae.circuits import faithfulness, hypothesis_tests
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets, Readings
from nnsight_vae.readouts import Pixels

__all__ = ["conv", "true_circuit", "wired"]  # fixtures


@pytest.mark.parametrize("ablation", ["base", "mean", "zero"])
def test_an_edge_outside_carries_what_the_ablation_says_as_in_a_literal_forward(conv, ablation: str) -> None:
    vae, pairs, literal = conv
    sets = EdgeSets.of(vae, pairs, HALVES, ablation)
    mask, edges = some_edges(sets)
    rest = literal.resting(ablation)
    readings = sets.read([mask, ~mask])
    np.testing.assert_allclose(readings.sets[0], literal.reads(edges, rest, HALVES), rtol=1e-9)
    np.testing.assert_allclose(readings.sets[1], literal.reads(set(sets.edges) - edges, rest, HALVES), rtol=1e-9)
    np.testing.assert_allclose(readings.nothing, HALVES(rest["output"]).T.numpy(), rtol=1e-9)


def test_the_mean_can_be_that_of_other_images(conv) -> None:
    vae, pairs, literal = conv
    reference = images(vae.module, 7, seed=9).double()
    sets = EdgeSets.of(vae, pairs, HALVES, "mean", reference)
    mask, edges = some_edges(sets)
    expected = literal.reads(edges, literal.resting("mean", reference), HALVES)
    np.testing.assert_allclose(sets.read([mask]).sets[0], expected, rtol=1e-9)
    assert not np.allclose(EdgeSets.of(vae, pairs, HALVES, "mean").read([mask]).sets[0], expected, rtol=1e-6)


@pytest.mark.parametrize("ablation", ["base", "mean", "zero"])
@pytest.mark.parametrize("sampled", [False, True])
def test_no_edge_is_nothing_and_every_edge_is_the_model_under_every_ablation(
    conv, ablation: str, sampled: bool
) -> None:
    vae, pairs, _ = conv
    if sampled:
        noise = torch.randn(len(pairs), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        pairs = replace(pairs, eps=noise)
    sets = EdgeSets.of(vae, pairs, HALVES, ablation)
    everything = np.ones(len(sets.edges), dtype=bool)
    readings = sets.read([~everything, everything])
    np.testing.assert_allclose(readings.effects[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(readings.effects[1], readings.total, rtol=1e-9)
    out = nv.intervene(vae, pairs.source, {"latent.z": nv.Add(0.0)}, eps=pairs.eps).reconstruction
    np.testing.assert_allclose(readings.whole, HALVES(out).T, rtol=1e-9)


@pytest.mark.parametrize("ablation", ["base", "mean", "zero"])
def test_models_with_skip_connections_are_evaluated_and_tested_alike(ablation: str) -> None:
    model = seeded(ResidualVAE()).double()
    pairs = pairs_for(model, 8)
    pairs = replace(pairs, base=pairs.base.double(), source=pairs.source.double())
    vae = nv.VAE(model, example=pairs.base)
    readout = Pixels((1, 8, 8))["pixel[0,3,3]"]
    sets = EdgeSets.of(vae, pairs, readout, ablation)
    everything = np.ones(len(sets.edges), dtype=bool)
    readings = sets.read([~everything, everything])
    np.testing.assert_allclose(readings.effects[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(readings.effects[1], readings.total, rtol=1e-8, atol=1e-12)
    half = nx.DiGraph([edge for i, edge in enumerate(sets.edges) if i % 3])
    result = hypothesis_tests(vae, half, pairs, readout, ablation=ablation, n_random=1, n_edges=1)
    assert {o.test for o in result.outcomes} == {
        "equivalence",
        "independence",
        "sufficiency",
        "necessity",
        "minimality",
    }
    assert all(o.p is not None for o in result.outcomes)


def test_chunks_of_pairs_change_nothing_not_even_the_mean(conv, monkeypatch) -> None:
    from nnsight_vae.circuits.wiring import pair_run

    vae, pairs, _ = conv
    sets = EdgeSets.of(vae, pairs, HALVES, "mean")
    mask, _ = some_edges(sets)
    calls: list[tuple[int, int]] = []
    whole = sets.read([mask], lambda done, total: calls.append((done, total)))
    assert calls == [(4, 4)]
    monkeypatch.setattr(pair_run, "CHUNK_BYTES", 1)
    monkeypatch.setattr(pair_run, "MIN_ROWS", 3)
    chunked = EdgeSets.of(vae, pairs, HALVES, "mean").read([mask], lambda done, total: calls.append((done, total)))
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert calls[1:] == [(3, 4), (4, 4)]


def test_what_may_be_rounding_is_no_effect() -> None:
    sets, whole = np.array([[[1.0, 1.2, 0.8]], [[1.0 + 1e-9, 1.0 - 1e-6, 1.0]]]), np.array([[1.0 + 1e-9, 2.0, 1.0]])
    readings = Readings(sets, np.ones((1, 3)), whole, np.array([1e-8]))
    np.testing.assert_allclose(readings.effects, [[[0.0, 0.2, -0.2]], [[0.0, -1e-6, 0.0]]], atol=1e-12)
    assert readings.effects[1, 0, 0] == readings.total[0, 0] == 0.0


def test_ablations_of_the_wired_model_in_closed_form(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    cut = true_circuit.copy()
    cut.remove_edge("enc[1]", "latent.z[0]")  # this route carries .4 of input 0
    x, base = pairs.source[:, 0].double(), pairs.base[:, 0].double()
    left = {"base": 0.4 * base, "mean": 0.4 * base.mean(), "zero": 0.0}
    at_rest = {"base": 1.4 * base, "mean": 1.4 * base.mean(), "zero": 0.0}
    for ablation in ("base", "mean", "zero"):
        result = faithfulness(vae, cut, pairs, readout, ablation=ablation)
        expected = 0.72 * (x + left[ablation] - at_rest[ablation])
        np.testing.assert_allclose(result.circuit[0], expected, rtol=1e-4)
        assert result.ablation == ablation
        assert f"({ {'base': 'resample'}.get(ablation, ablation) } ablation)" in str(result)


def test_evaluation_leaves_the_model_as_it_was(conv) -> None:
    vae, pairs, _ = conv
    before = copy.deepcopy(vae.module.state_dict())
    for ablation in ("mean", "zero"):
        faithfulness(vae, nx.DiGraph([("factor:f", "input[0]")]), pairs, HALVES, ablation=ablation)
    assert all(torch.equal(before[name], value) for name, value in vae.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.module.modules())
