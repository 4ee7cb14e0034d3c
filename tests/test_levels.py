"""The four levels against closed forms of a linear-Gaussian VAE, a net with a known interaction, and exact identities."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hooks import literal, record
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, random_linear_vae
from torch import Tensor
from vaes import all_vaes, unwrapped, wrapped_with_pairs

import nnsight_vae as nv
from nnsight_vae.levels.units import default_sites


def linear_case(seed: int = 0, n: int = 12):
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    base, source = (torch.randn(n, 6, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    a1, a2, b1, b2 = (layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out))
    return nv.VAE(model), nv.Pairs(base, source), read, (a1, a2, b1, b2)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_every_level_equals_its_closed_form_on_a_linear_vae(seed):
    vae, pairs, read, (a1, a2, b1, b2) = linear_case(seed)
    delta = pairs.source - pairs.base
    onto_readout = {"enc": read.c @ b2 @ b1 @ a2, "latent.z": read.c @ b2 @ b1, "dec": read.c @ b2}
    changes = {"enc": delta @ a1.T, "latent.z": delta @ (a2 @ a1).T, "dec": delta @ (b1 @ a2 @ a1).T}
    effects = nv.patch_activations(vae, pairs, list(changes), readout=read)
    expected = torch.cat([torch.einsum("nu,tu->utn", changes[s], onto_readout[s]) for s in changes]).numpy()
    for part in (effects, effects.parts["noising"], effects.parts["denoising"]):
        np.testing.assert_allclose(part.values, expected, atol=1e-9)  # linear: no interaction, so both directions agree

    moved = nv.perturb_latents(vae, pairs.base, values=[-1.0, 0.5], readout=read)
    np.testing.assert_allclose(
        moved.values,
        np.broadcast_to(1.5 * onto_readout["latent.z"].T.numpy()[..., None], moved.values.shape),
        atol=1e-9,
    )
    mu = pairs.base @ (a2 @ a1).T
    against_base = torch.einsum("nk,tk->ktn", 0.5 - mu, onto_readout["latent.z"]).numpy()
    np.testing.assert_allclose(moved.parts["0.5"].values, against_base, atol=1e-9)

    m = nv.mediate(vae, pairs, ["latent.z[0:2]"], readout=read)
    total = (delta @ (read.c @ b2 @ b1 @ a2 @ a1).T).T.numpy()
    through = (changes["latent.z"][:, :2] @ onto_readout["latent.z"][:, :2].T).T.numpy()
    for quantity, value in (
        (m.te, total),
        (m.pnie, through),
        (m.tnie, through),
        (m.nde, total - through),
        (m.interaction, 0 * total),
    ):
        np.testing.assert_allclose(quantity.values[0], value, atol=1e-9)

    inputs = nv.manipulate_inputs(vae, pairs, ["enc", "latent.mu"])
    for rows, weight, change in (
        (slice(0, 5), a1, changes["enc"]),
        (slice(5, 8), a2 @ a1, changes["latent.z"]),
    ):
        spread = torch.cat([pairs.base, pairs.source]) @ weight.T
        np.testing.assert_allclose(inputs.values[rows, 0], (change / spread.std(0, correction=0)).T.numpy(), atol=1e-9)


MODELS = all_vaes()


class FirstPixels:
    names = ("a", "b", "c")

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)[:, :3]


@pytest.fixture(params=MODELS, scope="module")
def world(request):
    return wrapped_with_pairs(MODELS[request.param])


def test_noising_is_minus_denoising_of_the_reversed_pair(world):
    vae, pairs = world
    sites = list(vae.sites)[1::4]
    noising = nv.patch_activations(vae, pairs, sites, readout=FirstPixels(), direction="noising")
    denoising = nv.patch_activations(vae, pairs.reversed(), sites, readout=FirstPixels(), direction="denoising")
    np.testing.assert_allclose(noising.values, -denoising.values, atol=1e-6)


def test_identical_pairs_have_no_effect_at_any_level(world):
    vae, pairs = world
    same = nv.Pairs(pairs.base, pairs.base.clone(), eps=pairs.eps)
    sites = default_sites(vae)
    assert np.abs(nv.patch_activations(vae, same, sites, readout=FirstPixels()).values).max() < 1e-6
    assert np.abs(nv.mediate(vae, same, [sites[0]], readout=FirstPixels()).te.values).max() == 0
    assert np.abs(nv.manipulate_inputs(vae, same, sites).values).max() == 0


def test_permuting_pairs_permutes_results(world):
    vae, pairs = world
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    sites = default_sites(vae)[-2:]
    straight = nv.patch_activations(vae, pairs, sites, readout=FirstPixels()).values
    shuffled = nv.patch_activations(vae, pairs[order], sites, readout=FirstPixels()).values
    np.testing.assert_allclose(shuffled, straight[:, :, order.numpy()], atol=1e-6)


def test_patching_of_crossed_pairs_is_clustered_by_base_and_by_source():
    vae, pairs, read, _ = linear_case()
    crossed = nv.Pairs.crossed(pairs.base[:4], pairs.source[:3])
    both = nv.patch_activations(vae, crossed, ["latent.z"], readout=read)
    ablated = nv.patch_activations(vae, crossed, ["latent.z"], readout=read, ablation="zero", direction="noising")
    for effects in (both, *both.parts.values(), ablated):
        assert effects.groups.tolist() == np.repeat(range(4), 3).tolist()
        assert effects.source_groups.tolist() == [0, 1, 2] * 4


def test_a_dead_unit_has_no_effect():
    vae, pairs, read, _ = linear_case()
    with torch.no_grad():
        vae.module.enc.weight[2] = 0
    effects = nv.patch_activations(vae, pairs, ["enc"], readout=read)
    assert np.abs(effects.values[2]).max() < 1e-12
    inputs = nv.manipulate_inputs(vae, pairs, ["enc"])
    assert np.abs(inputs.values[2]).max() == 0
    assert np.abs(inputs.values[1]).max() > 0


def test_default_sites_of_a_conv_vae_are_its_layers_with_channels_as_units():
    vae = nv.VAE(copy.deepcopy(MODELS["conv"]))
    found = default_sites(vae)
    assert "encoder.0" in found
    assert "latent.z" in found
    assert "decoder.2" in found  # the 6 channels that decoder.0's 96 neurons make up
    assert "decoder.0" not in found
    assert not any(vae.sites[name].kind in ("activation", "container") for name in found)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda v, p, r: nv.patch_activations(v, p, ["nowhere"], readout=r),
            nv.SiteError,
            "'nowhere' is not a site",
        ),
        (lambda v, p, r: nv.patch_activations(v, p, [], readout=r), nv.SiteError, "no sites given"),
        (
            lambda v, p, r: nv.patch_activations(v, p, ["enc"], readout=r, direction="sideways"),
            nv.InterventionError,
            "got 'sideways'",
        ),
        (lambda v, p, r: nv.perturb_latents(v, p.base, values=[], readout=r), nv.InterventionError, r"got \[\]"),
        (
            lambda v, p, r: nv.perturb_latents(v, p.base, values=[float("nan")], readout=r),
            nv.InterventionError,
            "finite number.*got nan",
        ),
        (lambda v, p, r: nv.perturb_latents(v, p.base[:0], readout=r), nv.DataError, "non-empty batch"),
        (lambda v, p, r: nv.mediate(v, p, [], readout=r), nv.InterventionError, "at least one mediator"),
        (
            lambda v, p, r: nv.manipulate_inputs(v, nv.Pairs(p.base[:, :4], p.source[:, :4])),
            nv.DataError,
            r"cannot run x of shape \(12, 4\)",
        ),
        (
            lambda v, p, r: nv.patch_activations(
                v, nv.Pairs(p.base, p.source, eps=torch.zeros(12, 7)), ["enc"], readout=r
            ),
            nv.DataError,
            r"noise of shape \(12, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    vae, pairs, read, _ = linear_case()
    with pytest.raises(error, match=message):
        call(vae, pairs, read)


@pytest.mark.filterwarnings("ignore:.*aggregate posterior:nnsight_vae.NnsightVaeWarning")  # 2.0 is far for some latents
def test_every_level_runs_on_the_noise_it_is_given(world):
    """Against hooks with the same noise; no level may fall back to posterior means."""
    vae, pairs = world
    model = unwrapped(vae)
    eps = pairs.eps
    read = FirstPixels()

    def pixels(x: Tensor, z: Tensor | None = None) -> np.ndarray:
        def put(value: Tensor) -> Tensor:
            return torch.cat([z[:, :1], value[:, 1:]], 1)

        return literal(model, x, {} if z is None else {"latent.z": put}, eps)[:, :3].double().numpy().T

    base_z, source_z = (record(model, x, "latent.z", eps) for x in (pairs.base, pairs.source))
    patched = nv.patch_activations(vae, pairs, ["latent.z[0]"], readout=read)
    noising = pixels(pairs.base, source_z) - pixels(pairs.base)
    denoising = pixels(pairs.source) - pixels(pairs.source, base_z)
    np.testing.assert_allclose(patched.parts["noising"].values[0], noising, atol=1e-5)
    np.testing.assert_allclose(patched.parts["denoising"].values[0], denoising, atol=1e-5)
    np.testing.assert_allclose(patched.values[0], (noising + denoising) / 2, atol=1e-5)
    m = nv.mediate(vae, pairs, ["latent.z[0]"], readout=read)
    np.testing.assert_allclose(m.te.values[0], pixels(pairs.source) - pixels(pairs.base), atol=1e-5)
    np.testing.assert_allclose(m.pnie.values[0], noising, atol=1e-5)
    moved = nv.perturb_latents(vae, pairs.base, values=[-1.0, 2.0], readout=read, eps=eps)
    at = {v: pixels(pairs.base, torch.full_like(base_z, v)) for v in (-1.0, 2.0)}
    np.testing.assert_allclose(moved.values[0], at[2.0] - at[-1.0], atol=1e-5)
    np.testing.assert_allclose(moved.parts["2"].values[0], at[2.0] - pixels(pairs.base), atol=1e-5)


def test_numbers_follow_from_seeds_alone_whatever_the_default_dtype_is():
    vae, pairs = wrapped_with_pairs(all_vaes()["mlp"])
    read = nv.readouts.Pixels(vae.sites["output"].shape)

    def numbers() -> list[np.ndarray]:
        return [
            nv.perturb_latents(vae, pairs.base, readout=read).values,
            nv.patch_activations(vae, pairs, ["latent.z"], readout=read, ablation=nv.Noise(1.0)).values,
            nv.manipulate_inputs(vae, pairs, ["latent.z"], reference=pairs.source).values,
            nv.metrics.latent_response_matrix(vae, pairs.base).values,
        ]

    expected = numbers()
    torch.set_default_dtype(torch.float64)
    try:
        found = numbers()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
