"""Interventions at one position of a site."""

from __future__ import annotations

import copy

import pytest
import torch
from hooks import Everything, literal, record
from patched import MODELS, at, chosen, noise_like_latent
from vaes import images

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels.through import Activation


@pytest.mark.parametrize("name", ["conv", "residual", "tokens"])
def test_every_intervention_at_a_position_equals_hooks(name):
    model = copy.deepcopy(MODELS[name]).double()  # outputs reach 20, where float32 itself is off by 1e-5
    x, source = (images(model, 4, seed=seed).double() for seed in (0, 1))
    vae = nv.VAE(copy.deepcopy(model), example=x)
    eps, read = noise_like_latent(vae, 4).double(), Everything(model.image)
    drawn = torch.randint(4, (4,), generator=torch.Generator().manual_seed(7))
    checked = 0
    for site in [site for site in vae.sites.values() if site.grid][::3]:
        donor = record(model, source, site.name, eps)
        resampled = record(model, source[drawn], site.name, eps)
        middle, last = site.positions[len(site.positions) // 2], site.positions[-1]
        keys = [
            nv.Selection(site.name, (0,), middle),
            nv.Selection(site.name, None, last),
            nv.Selection(site.name, (0, site.n_units - 1), site.positions[1]),
        ]
        plan, wanted = [], []
        for key in map(vae.sites.select, keys):
            units = len(vae.sites.units(key))
            values = torch.linspace(-1, 1, 4 * units, dtype=torch.float64).view(4, units)
            for what, change in (
                (nv.Set(0.7), lambda a: torch.full_like(a, 0.7)),
                (nv.Set(values), lambda a, v=values: v),
                (nv.Add(values[:1]), lambda a, v=values: a + v[:1]),
                (nv.Scale(-2.0), lambda a: -2 * a),
                (nv.Zero(), torch.zeros_like),
                (nv.Swap(source), lambda a, k=key: chosen(donor, k, site.axis)),
                (nv.Mean(source), lambda a, k=key: chosen(donor, k, site.axis).mean(0).expand_as(a)),
                (nv.Resample(source, seed=7), lambda a, k=key: chosen(resampled, k, site.axis)),
            ):
                plan.append({key: what})
                wanted.append(literal(model, x, {site.name: at(key, site.axis, change)}, eps))
        got = engine.run_interventions(vae, x, plan, read, eps=eps)
        for entry, row, want in zip(plan, got, wanted, strict=True):
            torch.testing.assert_close(row, want, atol=1e-10, rtol=0, msg=f"{entry}")
        checked += len(plan)
    assert checked >= 48


@pytest.mark.parametrize("m", [1, 3, 4, 9, 130])
def test_a_mean_is_over_the_reference_with_the_noise_of_the_examples_in_turn(m):
    model = MODELS["conv"]
    x, reference = images(model, 4), images(model, m, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    eps = noise_like_latent(vae, 4)
    rows = torch.arange(m) % 4
    for site in ("encoder.2", "latent.mu", "latent.z", "decoder.5"):
        read = Activation(vae.sites[site], (nv.Selection(site),))
        for noise in (None, eps):
            got = engine.run_interventions(vae, x, [{site: nv.Mean(reference)}], read, eps=noise)[0]
            want = record(model, reference, site, None if noise is None else noise[rows]).flatten(1).mean(0)
            torch.testing.assert_close(got, want.expand_as(got), atol=1e-5, rtol=0)


def test_noise_at_a_position_is_what_the_whole_unit_gets_there():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 5)
    whole = nv.intervene(vae, x, {"latent.z[1]": nv.Noise(2.0, seed=3)})
    here = nv.intervene(vae, x, {"latent.z[1]@2,-1": nv.Noise(2.0, seed=3)})
    torch.testing.assert_close(here.z[:, 1, 2, 3], whole.z[:, 1, 2, 3])
    elsewhere = torch.ones(2, 4, 4, dtype=torch.bool)
    elsewhere[1, 2, 3] = False
    assert torch.equal(here.z[:, elsewhere], here.mu[:, elsewhere])
    assert (here.z - here.mu)[:, 1, 2, 3].abs().min() > 0


def test_a_code_is_put_at_one_position_of_a_spatial_latent():
    model = copy.deepcopy(MODELS["residual"])
    codebook = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    vae = nv.adapt(model, encoder=model.encode, decoder=model.decode, codebook=codebook)
    out = nv.intervene(vae, images(model, 2), {"latent.z@1,2": nv.Quantize(2), "latent.z[0]@0,0": nv.Quantize(1)})
    assert torch.equal(out.z[:, :, 1, 2], codebook[2].expand(2, 2))
    assert torch.equal(out.z[:, 0, 0, 0], codebook[1, 0].expand(2))
    assert (out.z != out.mu).flatten(1).sum(1).tolist() == [3, 3]


def test_joint_interventions_may_share_a_unit_but_not_at_a_position():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 2)
    out = nv.intervene(vae, x, {"latent.z[1]@0,0": nv.Set(1.0), "latent.z[1]@0,1": nv.Set(2.0)})
    assert out.z[0, 1, 0, :2].tolist() == [1.0, 2.0]
    for other in ("latent.z[1]", "latent.z", "latent.z@0,0", "latent.z[0:2]@-4,0", "latent.z[1]@0,0 "):
        for joint in (
            {"latent.z[1]@0,0": nv.Zero(), other: nv.Zero()},
            {other: nv.Zero(), "latent.z[1]@0,0": nv.Zero()},
        ):
            with pytest.raises(nv.InterventionError, match=r"both name latent\.z\[1\]"):
                nv.intervene(vae, x, joint)


def test_a_tensor_that_does_not_fit_the_position_is_refused():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 2)
    with pytest.raises(nv.InterventionError, match=r"activation has shape \(2, 2\) \(\[n, units\]\)"):
        nv.intervene(vae, x, {"latent.z@0,0": nv.Set(torch.zeros(2, 2, 4, 4))})
