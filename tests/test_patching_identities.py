"""Identities of patching: parts and wholes, reversed pairs, equal inputs, permutations, chunks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from patched import MODELS, READ, N, linear_vae_and_pairs, pairs_of

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels import through


@pytest.mark.parametrize("name", MODELS)
def test_units_together_and_positions_together_are_the_site(name):
    vae, pairs = pairs_of(MODELS[name])
    site = max((s for s in vae.sites.values() if s.name not in ("input", "output")), key=lambda s: len(s.positions))
    units, cells = site.units, [nv.Selection(site.name, None, p) for p in site.positions if p]
    sets = [tuple(units), *([tuple(cells)] if cells else [])]
    effects = nv.patch_activations(vae, pairs, [site, *sets], readout=READ, per="site")
    for row in effects.values[1:]:
        np.testing.assert_allclose(row, effects.values[0], atol=1e-6)
    assert np.abs(effects.values).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", [{"through": ["latent.z[0]"]}, {"ablation": "mean"}, {"per": "site"}])
def test_noising_is_minus_denoising_of_the_reversed_pair_in_every_variant(name, how):
    vae, pairs = pairs_of(MODELS[name])
    keys = [s.name for s in vae.sites.values() if s.stage == "encoder"][:3]
    forth = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
    back = nv.patch_activations(vae, pairs.reversed(), keys, readout=READ, **how)
    np.testing.assert_allclose(forth.parts["noising"].values, -back.parts["denoising"].values, atol=1e-5)
    np.testing.assert_allclose(forth.values, -back.values, atol=1e-5)
    one = nv.patch_activations(vae, pairs, keys, readout=READ, direction="denoising", **how)
    np.testing.assert_array_equal(one.values, forth.parts["denoising"].values)
    assert one.estimand == forth.parts["denoising"].estimand


@pytest.mark.parametrize("name", MODELS)
def test_equal_inputs_have_no_effect_to_the_last_bit(name):
    vae, pairs = pairs_of(MODELS[name], n=12)
    same = nv.Pairs(pairs.base, pairs.base.clone(), eps=pairs.eps)
    early = list(vae.sites)[1]
    for how in ({}, {"per": "site"}, {"sites": [early], "through": ["latent.z[0]"]}):
        assert not nv.patch_activations(vae, same, readout=READ, **how).values.any()
    base = pairs.source.clone()
    base[3:5].add_(0.1)
    base[7, 0] += 0.1  # one row of the image, and all else as in the source
    some = nv.patch_activations(
        vae, nv.Pairs(base, pairs.source, eps=pairs.eps), ["latent.z"], readout=READ, per="site"
    )
    assert (np.abs(some.values).max((0, 1)) > 0).tolist() == [i in (3, 4, 7) for i in range(12)]


def test_without_any_effect_nothing_is_significant():
    vae, pairs = pairs_of(MODELS["mlp"], n=12)
    same = nv.Pairs(pairs.base, pairs.base.clone(), eps=pairs.eps)
    effects = nv.patch_activations(vae, same, ["latent.z"], readout=READ)
    assert (effects.pvalues() == 1).all()
    assert len(effects.significant().units) == 0
    ablated = nv.patch_activations(vae, same, ["latent.z"], readout=READ, ablation="zero")
    assert np.abs(ablated.parts["noising"].values).min() > 0
    np.testing.assert_allclose(ablated.values, 0, atol=1e-7)


@given(st.permutations(range(N)), st.permutations(range(5)), st.sampled_from([{}, {"ablation": "mean"}, {"through": ["latent.z[0]"]}]))  # fmt: skip
@settings(max_examples=9)
def test_permuting_pairs_and_units_permutes_results(order, units, how):
    vae, pairs = pairs_of(MODELS["mlp"])
    keys = ["enc1[0]", "enc2[3]", ("enc1[1]", "enc2[2]"), "enc1[4:6]", "heads[0]"]
    straight = nv.patch_activations(vae, pairs, keys, readout=READ, per="site", **how)
    shuffled = nv.patch_activations(vae, pairs[list(order)], [keys[i] for i in units], readout=READ, per="site", **how)
    assert shuffled.units == tuple(straight.units[i] for i in units)
    np.testing.assert_allclose(shuffled.values, straight.values[list(units)][:, :, list(order)], atol=1e-6)


def test_a_dead_unit_has_no_effect_in_any_variant():
    vae, pairs, read, _ = linear_vae_and_pairs()
    with torch.no_grad():
        vae.module.mu.weight[:, 2] = 0  # nothing listens to unit 2
    for how in ({}, {"ablation": "zero"}, {"ablation": nv.Set(9.0)}, {"through": ["latent.z"]}):
        effects = nv.patch_activations(vae, pairs, ["enc"], readout=read, **how)
        assert np.abs(effects.values[2]).max() < 1e-12
        assert (np.abs(effects.values).max((1, 2)) > 1e-3).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("how", [{}, {"ablation": "resample"}, {"ablation": nv.Noise(1.0)}, {"through": [["fc_mu[0:3]"], ["decoder.2"]]}])  # fmt: skip
def test_chunks_change_nothing(how, monkeypatch):
    vae, pairs = pairs_of(MODELS["conv"])
    keys = ["encoder.0", "encoder.2"]
    whole = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)
    monkeypatch.setattr(engine, "MIN_ROWS", 3)
    for two_entries_or_two_pairs in (2 * (3 + 96) * N * 4, 2 * 96 * 4):
        monkeypatch.setattr(through, "CARRIED_BYTES", two_entries_or_two_pairs)
        again = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
        np.testing.assert_allclose(again.values, whole.values, atol=1e-5)


def test_pairs_are_independent_of_the_pairs_beside_them():
    _, single = pairs_of(MODELS["residual"])
    # In float32 a convolution of one row rounds in another order than one of seven.
    model = copy.deepcopy(MODELS["residual"]).double()
    vae, pairs = nv.VAE(model), nv.Pairs(single.base.double(), single.source.double(), eps=single.eps.double())
    keys = ["stem[1]", "latent.z[0]@1,1"]
    for how in ({}, {"ablation": "zero"}, {"through": ["refine[2]"]}):
        whole = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
        parts = [
            nv.patch_activations(vae, pairs[rows], keys, readout=READ, **how).values
            for rows in (slice(0, 1), slice(1, 7))
        ]
        np.testing.assert_allclose(np.concatenate(parts, axis=2), whole.values, atol=1e-12)


def test_what_is_carried_between_runs_is_bounded(monkeypatch):
    """Entries run one by one where two would not fit, and together where they do."""
    vae, pairs = pairs_of(MODELS["conv"])
    lengths = []
    plain = through.run_interventions

    def counting(vae, x, plan, *args, **kwargs):
        lengths.append(len(plan))
        return plain(vae, x, plan, *args, **kwargs)

    monkeypatch.setattr(through, "run_interventions", counting)
    for carried, want in ((1, [1] * 8 * N), (2 * 96 * N * 4, [2] * 4), (3 * 96 * N * 4, [3, 3, 1, 1]), (10**9, [4, 4])):
        monkeypatch.setattr(through, "CARRIED_BYTES", carried)
        lengths.clear()
        nv.patch_activations(vae, pairs, ["encoder.0"], readout=READ, through=["decoder.2"], direction="noising")
        assert lengths == want
