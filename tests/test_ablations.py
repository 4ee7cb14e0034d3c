"""Ablations of units against hooks and closed forms, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hooks import record
from hypothesis import given, settings, strategies as st
from patched import MODELS, READ, N, linear_vae_and_pairs, literal_change, pairs_of
from torch import Tensor

import nnsight_vae as nv


@pytest.mark.parametrize("name", ["conv", "mlp", "residual"])
def test_ablations_equal_hooks_in_both_directions(name):
    model = MODELS[name]
    vae, pairs = pairs_of(model)
    x, eps = torch.cat([pairs.base, pairs.source]), torch.cat([pairs.eps, pairs.eps])
    sites = [s for s in vae.sites if s not in ("latent.eps", "input")][::3]
    drawn = torch.randint(2 * N, (N,), generator=torch.Generator().manual_seed(0))
    few = torch.randint(3, (N,), generator=torch.Generator().manual_seed(5))

    def donors(x: Tensor, eps: Tensor, mean: bool = False):
        def change(site: str):
            donor = record(model, x, site, eps)[:, :1]
            return lambda a: donor.mean(0).expand_as(a) if mean else donor

        return change

    cases = {
        "zero": ("zero", lambda site: torch.zeros_like),
        "mean": ("mean", donors(x, eps, mean=True)),
        "resample": ("resample", donors(x[drawn], pairs.eps)),
        nv.Resample(x[:3], seed=5): ("resample", donors(x[few], pairs.eps)),
        nv.Mean(x[:1]): ("mean", donors(x[:1], pairs.eps[:1], mean=True)),
        nv.Set(-0.4): ("Set(-0.4)", lambda site: lambda a: torch.full_like(a, -0.4)),
    }
    for ablation, (word, change) in cases.items():
        effects = nv.patch_activations(vae, pairs, [f"{s}[0]" for s in sites], readout=READ, ablation=ablation)
        assert effects.estimand == f"ablation ({word}), mean of noising and denoising"
        assert effects.parts["denoising"].estimand == f"ablation ({word}), denoising"
        for row, site in enumerate(sites):
            held = {nv.Selection(site, (0,)): change(site)}
            noising = literal_change(vae, model, pairs.base, held, pairs.eps)
            denoising = -literal_change(vae, model, pairs.source, held, pairs.eps)
            np.testing.assert_allclose(effects.parts["noising"].values[row], noising, atol=1e-5)
            np.testing.assert_allclose(effects.parts["denoising"].values[row], denoising, atol=1e-5)
            np.testing.assert_allclose(effects.values[row], (noising + denoising) / 2, atol=1e-5)
    zero = nv.patch_activations(vae, pairs, sites, readout=READ, ablation=nv.Zero())
    np.testing.assert_array_equal(
        zero.values, nv.patch_activations(vae, pairs, sites, readout=READ, ablation="zero").values
    )


def test_noise_is_an_ablation_too_and_its_effect_grows_with_its_spread():
    vae, pairs, read, (_, _, b1, b2) = linear_vae_and_pairs(n=400)
    small, large = (
        nv.patch_activations(vae, pairs, ["latent.z"], readout=read, ablation=nv.Noise(sd, seed=2), direction="noising")
        for sd in (0.5, 1.0)
    )
    assert large.estimand == "ablation (noise), noising"
    np.testing.assert_allclose(large.values, 2 * small.values, atol=1e-12)
    gain = (read.c @ b2 @ b1).T.abs().numpy()
    np.testing.assert_allclose(large.values.std(-1), gain, rtol=0.1)


@given(st.integers(0, 10_000), st.floats(-2, 2))
@settings(max_examples=5)
def test_ablations_of_a_linear_vae_are_distances_to_the_value_put(seed, value):
    vae, pairs, read, (a1, a2, b1, b2) = linear_vae_and_pairs(seed)
    gain = read.c @ b2 @ b1
    before, after = (x @ (a2 @ a1).T for x in (pairs.base, pairs.source))
    mean = torch.cat([before, after]).mean(0)
    for ablation, put in ((nv.Set(value), value), ("zero", 0.0), ("mean", mean)):
        effects = nv.patch_activations(vae, pairs, ["latent.z"], readout=read, ablation=ablation)
        for way, distance in (("noising", put - before), ("denoising", after - put)):
            want = torch.einsum("nk,tk->ktn", distance, gain).numpy()
            np.testing.assert_allclose(effects.parts[way].values, want, atol=1e-9)
        patched = nv.patch_activations(vae, pairs, ["latent.z"], readout=read)
        np.testing.assert_allclose(effects.values, patched.values / 2, atol=1e-9)


def test_an_ablation_reaches_the_readout_through_named_units_only():
    model = MODELS["conv"]
    vae, pairs = pairs_of(model)
    levels = [
        [nv.Selection("fc_mu", (1, 2))],
        [nv.Selection("decoder.0", tuple(range(40))), nv.Selection("decoder.2", (4,))],
    ]
    effects = nv.patch_activations(
        vae,
        pairs,
        ["encoder.2[1:4]"],
        readout=READ,
        per="site",
        ablation="zero",
        through=[["fc_mu[1:3]"], ["decoder.0[0:40]", "decoder.2[4]"]],
    )
    assert effects.estimand.startswith(
        "ablation (zero), mean of noising and denoising, through fc_mu[1:3] -> decoder.0[0:40] + "
    )
    held = {nv.Selection("encoder.2", (1, 2, 3)): torch.zeros_like}
    for way, receiver, sign in (("noising", pairs.base, 1), ("denoising", pairs.source, -1)):
        want = sign * literal_change(vae, model, receiver, held, pairs.eps, levels)
        np.testing.assert_allclose(effects.parts[way].values[0], want, atol=1e-5)
        assert np.abs(want).max() > 1e-6
