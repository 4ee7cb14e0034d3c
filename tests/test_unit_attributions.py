"""Attribution patching at every unit: closed forms, completeness, gradients at the ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attributed import HALVES, LATENTS, pairs, vae
from linear import LinearReadout, random_linear_vae
from torch import nn
from vaes import ConvVAE, ResidualVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.attribution import unit_attributions
from nnsight_vae.engine import baseline

__all__ = ["pairs", "vae"]  # fixtures


def total_effect(vae, pairs, readout):
    runs = [baseline(vae, x, readout, eps=pairs.eps) for x in (pairs.source, pairs.base)]
    return (runs[0] - runs[1]).double().numpy().T


@pytest.mark.parametrize("method", ["ig", "gradient x delta"])
def test_of_a_linear_model_attributions_are_what_patching_does(method):
    model = random_linear_vae(2)
    vae = nv.VAE(model, example=torch.zeros(1, 6, dtype=torch.double))
    generator = torch.Generator().manual_seed(0)
    pairs = nv.Pairs(*torch.randn(2, 7, 6, generator=generator, dtype=torch.double))
    readout = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    attributed = unit_attributions(vae, pairs, readout=readout, method=method, n_steps=1)
    patched = nv.patch_activations(vae, pairs, readout=readout)
    assert attributed.units == patched.units
    assert attributed.targets == patched.targets
    assert np.allclose(attributed.values, patched.values, atol=1e-12)


@pytest.mark.parametrize("readout", [HALVES, LATENTS], ids=["output", "latent.mu"])
def test_attributions_of_a_layer_that_everything_flows_through_add_up_to_the_total_effect(vae, pairs, readout):
    cuts = ["input", "encoder.3"]
    # latent.z alone is a cut of what comes after it; fc_mu is one only without noise, which logvar scales
    cuts += ["latent.z", "decoder.5"] if readout is HALVES else ["latent.mu"]
    total = total_effect(vae, pairs, readout)
    errors = {}
    for steps in (4, 64):
        found = unit_attributions(vae, pairs, cuts, readout=readout, n_steps=steps)
        sums = np.stack([found.select(cut).values.sum(0) for cut in cuts])
        errors[steps] = np.abs(sums - total).mean((1, 2)) / np.abs(total).mean()
    assert errors[64].max() < 0.02
    assert errors[64].mean() < 0.3 * errors[4].mean()


def test_the_two_ends_are_the_gradients_there_times_the_change(vae, pairs):
    found = unit_attributions(vae, pairs, ["encoder.3"], readout=LATENTS, method="gradient x delta")
    hidden = engine.activations(vae, torch.cat([pairs.base, pairs.source]), ["encoder.3"])["encoder.3"]
    rest = vae.module.encoder[4:]
    change = hidden[6:] - hidden[:6]
    for end, name in ((0, "noising"), (6, "denoising")):
        at = hidden[end : end + 6].clone().requires_grad_()
        mu = vae.module.fc_mu(rest(at))
        for t in range(5):
            (gradient,) = torch.autograd.grad(mu[:, t].sum(), at, retain_graph=True)
            expected = (gradient * change).flatten(2).sum(2).T
            assert np.allclose(found.parts[name].values[:, t], expected.numpy(), atol=1e-6)
    both = (found.parts["noising"].values + found.parts["denoising"].values) / 2
    assert np.allclose(found.values, both)
    assert {p.estimand for p in found.parts.values()} == {"gradient at base x delta", "gradient at source x delta"}


def test_sets_and_positions_get_the_sum_of_their_elements(vae, pairs):
    ask = lambda sites, **how: unit_attributions(vae, pairs, sites, readout=HALVES, n_steps=3, **how)
    units = ask(["encoder.3"])
    assert np.allclose(ask(["encoder.3"], per="site").values[0], units.values.sum(0), atol=1e-6)
    assert np.allclose(ask(["encoder.3"], per="position").values.sum(0), units.values.sum(0), atol=1e-6)
    elements = ask([f"encoder.3[2]@{i},{j}" for i in range(4) for j in range(4)])
    assert np.allclose(elements.values.sum(0), units.values[2], atol=1e-6)
    assert np.ptp(elements.values, axis=0).max() > 0.01 * np.abs(units.values).max()
    names = ("encoder.6[4]", "latent.z[2]")
    joint, apart = ask([names]), ask(list(names))
    assert joint.units == (" + ".join(names),)
    tolerance = 1e-3 * np.abs(apart.values).max((1, 2)).min()
    assert tolerance > 0
    assert np.allclose(joint.values[0], apart.values.sum(0), atol=tolerance)


class Tokens(nn.Module):
    """A linear VAE of 3 tokens of 4 features: the units of its layers lie on the last axis."""

    def __init__(self):
        super().__init__()
        self.enc, self.mix, self.dec = nn.Linear(4, 5), nn.Linear(15, 4), nn.Linear(2, 12)

    def encode(self, x):
        return self.mix(self.enc(x.unflatten(1, (3, 4))).flatten(1)).chunk(2, 1)

    def decode(self, z):
        return self.dec(z)


def test_units_on_the_last_axis_are_found_there():
    vae = nv.VAE(seeded(Tokens()), example=torch.zeros(1, 12))
    pairs = nv.Pairs(*torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)))
    readout = nv.readouts.Latents(2)
    for how in ("unit", "position"):
        attributed = unit_attributions(vae, pairs, ["enc"], readout=readout, n_steps=1, per=how)
        patched = nv.patch_activations(vae, pairs, ["enc"], readout=readout, per=how)
        assert len(attributed.units) == {"unit": 5, "position": 3}[how]
        assert np.allclose(attributed.values, patched.values, atol=1e-5)


def test_numbers_do_not_depend_on_chunks_and_noise_is_shared(vae, pairs, monkeypatch):
    whole = unit_attributions(vae, pairs, ["encoder.0", "latent.z"], readout=HALVES, n_steps=3)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)
    monkeypatch.setattr(engine, "MIN_ROWS", 2)
    assert np.allclose(
        unit_attributions(vae, pairs, ["encoder.0", "latent.z"], readout=HALVES, n_steps=3).values,
        whole.values,
        atol=1e-7,
    )
    quiet = nv.Pairs(pairs.base, pairs.source)
    assert not np.allclose(
        unit_attributions(vae, quiet, ["encoder.0", "latent.z"], readout=HALVES, n_steps=3).values,
        whole.values,
        atol=1e-5,
    )


def test_a_branch_inside_a_residual_block_is_attributed_like_its_patches():
    model = seeded(ResidualVAE())
    vae = nv.VAE(model, example=images(model, 1))
    close = nv.Pairs(images(model, 5), images(model, 5) + 1e-3 * images(model, 5, seed=1))
    corner = nv.readouts.Region({"corner": (slice(0, 4), slice(0, 4))})
    sites = ["stem", "block.first", "block.second", "refine.second"]
    attributed = unit_attributions(vae, close, sites, readout=corner)
    patched = nv.patch_activations(vae, close, sites, readout=corner)
    assert np.allclose(attributed.values, patched.values, atol=0.02 * np.abs(patched.values).max())


class Above:
    """Whether the mean intensity is above a level: it changes, and its gradient is 0 wherever there is one."""

    names = ("above",)

    def __init__(self, level):
        self.level = level

    def __call__(self, reconstruction):
        return (reconstruction.flatten(1).mean(1, keepdim=True) > self.level).to(reconstruction)


def test_what_cannot_be_attributed_is_refused(vae, pairs):
    with torch.no_grad():
        ends = [float(vae(x).mean()) for x in (pairs.base[:1], pairs.source[:1])]
    with pytest.raises(nv.ReadoutError, match="gradient is exactly 0"):
        unit_attributions(vae, nv.Pairs(pairs.base[:1], pairs.source[:1]), ["latent.z"], readout=Above(sum(ends) / 2))
    for arguments, message in (
        ({"method": "lrp"}, "'ig' or 'gradient x delta'"),
        ({"n_steps": 0}, "positive integer"),
        ({"sites": ["decoder.0"], "readout": LATENTS}, "nothing there can change it"),
    ):
        with pytest.raises(nv.InterventionError, match=message):
            unit_attributions(vae, pairs, **{"sites": ["latent.z"], "readout": HALVES} | arguments)


def test_the_model_is_as_before(pairs):
    vae = nv.VAE(seeded(ConvVAE(norm=True)).train())
    for parameter in vae.module.parameters():
        parameter.requires_grad_(False)
    before = {k: v.clone() for k, v in vae.module.state_dict().items()}
    unit_attributions(vae, pairs, ["encoder.0"], readout=HALVES, n_steps=2)
    assert vae.module.training
    assert all(torch.equal(v, before[k]) for k, v in vae.module.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in vae.module.parameters())
