"""Discrete latents: codes swapped position by position, against a decoder run on the swapped codes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from latent_worlds import MODELS, decoded
from vaes import images, vq_vae

import nnsight_vae as nv
from nnsight_vae.levels.codes import nearest_codes


@pytest.fixture(scope="module")
def discrete():
    model = vq_vae()
    vae = nv.adapt(model, codebook=model.codebook.weight)
    x = images(model, 30)
    with torch.no_grad():
        return vae, x, model.codes(model.encode(x)[0]), nv.readouts.Pixels((1, 12, 12))


def from_codes(vae: nv.VAE, codes: torch.Tensor) -> np.ndarray:
    return decoded(vae, vae.module.codebook.weight.detach()[codes].movedim(-1, 1))


def test_codes_are_swapped_position_by_position_and_averaged_as_they_are_used(discrete):
    vae, x, codes, read = discrete
    assert torch.equal(nearest_codes(vae, vae.encode(x).mu), codes)
    effects = nv.perturb_latents(vae, x, readout=read)
    assert list(effects.parts) == [f"code {c}" for c in range(6)]
    assert effects.units[5] == "latent.z@1,2"
    usage = np.bincount(codes.flatten(), minlength=6) / codes.numel()
    mean = np.zeros((144, 30))
    for c in range(6):
        swapped = codes.clone()
        swapped[:, 1, 2] = c
        change = (from_codes(vae, swapped) - from_codes(vae, codes)).T
        np.testing.assert_allclose(effects.parts[f"code {c}"].values[5], change, atol=1e-5)
        kept = (codes[:, 1, 2] == c).numpy()
        assert kept.any()
        assert np.abs(effects.parts[f"code {c}"].values[5][:, kept]).max() < 1e-5  # its own code is no change
        mean += usage[c] * change
    np.testing.assert_allclose(effects.values[5], mean, atol=1e-5)
    assert effects.provenance["manifold"]["usage"] == pytest.approx({f"code {c}": usage[c] for c in range(6)})
    np.testing.assert_array_equal(nv.perturb_latents(vae, x, "codes", readout=read).values, effects.values)


def test_the_code_of_another_input_is_a_swap_at_a_position(discrete):
    vae, x, codes, read = discrete
    found = nv.perturb_latents(vae, x, nv.Swap(x.flip(0)), readout=read, per="position")
    swapped = codes.clone()
    swapped[:, 0, 1] = codes.flip(0)[:, 0, 1]
    np.testing.assert_allclose(found.values[1], (from_codes(vae, swapped) - from_codes(vae, codes)).T, atol=1e-5)


def test_named_codes_are_contrasted_first_to_last(discrete):
    vae, x, codes, read = discrete
    found = nv.perturb_latents(vae, x, [nv.Quantize(4), nv.Quantize(1)], readout=read)
    last, first = codes.clone(), codes.clone()
    last[:, 2, 0], first[:, 2, 0] = 1, 4
    np.testing.assert_allclose(found.values[6], (from_codes(vae, last) - from_codes(vae, first)).T, atol=1e-5)
    one = nv.perturb_latents(vae, x, nv.Quantize(1), readout=read, units="latent.z@2,0")
    np.testing.assert_allclose(one.values[0], found.parts["code 1"].values[6], atol=1e-6)


def test_continuous_values_are_snapped_back_where_code_swaps_show(discrete):
    """Leaving 3 % of the effect at most: what seems a limit of effect strength for discrete latents is one of the intervention."""
    vae, x, _, _ = discrete
    by_codes = nv.metrics.causal_effect_strength(vae, x, form="normalised")
    channels = nv.metrics.causal_effect_strength(vae, x, values="posterior", form="normalised")
    shifts = nv.metrics.causal_effect_strength(vae, x, values=nv.Add(0.3), per="position", form="normalised")
    assert by_codes.units == tuple(f"latent.z@{i},{j}" for i in range(3) for j in range(3))
    assert min(by_codes.values) > 0.7
    assert max(channels.values) < 0.1
    assert max(shifts.values) < 1e-5
    assert by_codes.alive == tuple(range(9))
    assert shifts.alive == ()
    assert nv.latent_metrics(vae, x).effect_strength == by_codes


def test_effect_strength_by_codes_is_the_mean_displacement_by_a_code_drawn_anew(discrete):
    vae, x, codes, _ = discrete
    usage = np.bincount(codes.flatten(), minlength=6) / codes.numel()
    base, total = from_codes(vae, codes), 0.0
    for c in range(6):
        swapped = codes.clone()
        swapped[:, 1, 1] = c
        total += usage[c] * np.linalg.norm(from_codes(vae, swapped) - base, axis=1).mean()
    found = nv.metrics.causal_effect_strength(vae, x)
    assert found.values[4] == pytest.approx(total, rel=1e-4)
    spread = float(x.flatten(1).var(0, correction=0).sum().sqrt())
    normalised = nv.metrics.causal_effect_strength(vae, x, form="normalised")
    assert normalised.values[4] == pytest.approx(total / spread, rel=1e-4)


def test_many_codes_are_drawn_as_they_are_used(discrete, monkeypatch):
    vae, x, codes, read = discrete
    monkeypatch.setattr("nnsight_vae.levels.codes.CODES", 5)
    found = nv.perturb_latents(vae, x, readout=read)
    counts = np.random.default_rng(0).multinomial(5, np.bincount(codes.flatten(), minlength=6) / codes.numel())
    assert list(found.parts) == [f"code {c}" for c in np.flatnonzero(counts)]
    mean = sum(counts[c] / 5 * found.parts[f"code {c}"].values for c in np.flatnonzero(counts))
    np.testing.assert_allclose(found.values, mean, atol=1e-9)


def test_what_codes_cannot_do_is_refused_and_an_unused_code_is_warned_of(discrete):
    vae, x, codes, read = discrete
    with pytest.raises(nv.InterventionError, match="per='position'"):
        nv.perturb_latents(vae, x, "codes", readout=read, per="unit")
    with pytest.raises(nv.InterventionError, match="does not fit a codebook"):
        nv.perturb_latents(vae, x, nv.Quantize(6), readout=read)
    one = x[:1]
    unused = next(c for c in range(6) if c not in codes[0])
    with pytest.warns(nv.NnsightVaeWarning, match=f"code {unused}: never used"):
        nv.perturb_latents(vae, one, nv.Quantize(unused), readout=read)
    misfit = nv.adapt(vq_vae(), codebook=torch.zeros(6, 3))
    with pytest.raises(nv.InterventionError, match="16 latent channels"):
        nv.perturb_latents(misfit, x, readout=read)


def test_codes_of_a_latent_without_positions_are_swapped_whole():
    model = copy.deepcopy(MODELS["mlp"])
    codebook = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    vae = nv.adapt(model, codebook=codebook)
    x = images(model, 20)
    found = nv.perturb_latents(vae, x, nv.Quantize(2), readout=nv.readouts.Pixels((20,)), units="latent.z")
    assert found.units == ("latent.z",)
    base = decoded(vae, vae.encode(x).mu)
    np.testing.assert_allclose(found.values[0], (decoded(vae, codebook[2].expand(20, 4)) - base).T, atol=1e-6)


def test_an_encoding_patched_before_the_quantiser_changes_codes_one_by_one(discrete):
    """The site before the quantiser is where encodings are read and patched; their indices are those of the nearest codes."""
    model = nv.models.VQVAE(image_shape=(1, 12, 12), latent=3, codes=5, channels=(4, 4))
    model.quantizer.codebook.copy_(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    vae, x = nv.VAE(model), images(vq_vae(), 7)
    codes, chosen = model.quantizer.codebook, torch.tensor([3.0, -2.0, 1.0])
    out = nv.intervene(vae, x, {"encoder@1,2": nv.Set(chosen)})
    expected = nearest_codes(vae, vae.encode(x).mu)
    expected[:, 1, 2] = (codes - chosen).norm(dim=1).argmin()
    assert torch.equal(nearest_codes(vae, out.z), expected)
    assert not torch.equal(expected, nearest_codes(vae, vae.encode(x).mu))
    with torch.no_grad():
        torch.testing.assert_close(out.reconstruction, model.decoder(codes[expected].movedim(-1, 1)))


def test_codes_far_from_the_origin_and_near_one_another_are_told_apart():
    """Distances through matrix products, as torch takes them from 25 rows on, would round theirs away."""
    codebook = 3000 + 0.01 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(MODELS["mlp"])
    vae = nv.adapt(model, codebook=codebook)
    vae.encode(images(model, 1))
    assert nearest_codes(vae, codebook).tolist() == list(range(40))
