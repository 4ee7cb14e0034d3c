"""The four levels against closed forms of a linear-Gaussian VAE, a net with a known interaction, and exact identities."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, linear, random_linear_vae
from test_engine import literal, record
from torch import Tensor, nn
from vaes import all_vaes, images

import nnsight_vae as nv
from nnsight_vae.levels.latents import posterior_quantiles
from nnsight_vae.levels.units import default_sites


def setup(seed: int = 0, n: int = 12):
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    base, source = (torch.randn(n, 6, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    a1, a2, b1, b2 = (layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out))
    return nv.VAE(model), nv.Pairs(base, source), read, (a1, a2, b1, b2)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_every_level_equals_its_closed_form_on_a_linear_vae(seed):
    vae, pairs, read, (a1, a2, b1, b2) = setup(seed)
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


def test_interaction_of_a_product_is_analytic():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = linear(torch.eye(2, dtype=torch.double))

        def encode(self, x: Tensor):
            mu = self.heads(x)
            return mu, torch.zeros_like(mu)

        def decode(self, z: Tensor):
            return (z[:, :1] * z[:, 1:]).expand(-1, 2)

    generator = torch.Generator().manual_seed(0)
    b, s = (torch.randn(15, 2, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.tensor([[1.0, 0.0]], dtype=torch.double))
    m = nv.mediate(nv.VAE(Product()), nv.Pairs(b, s), ["latent.z[0]"], readout=read)
    np.testing.assert_allclose(m.te.values[0, 0], (s[:, 0] * s[:, 1] - b[:, 0] * b[:, 1]).numpy())
    np.testing.assert_allclose(m.pnie.values[0, 0], ((s - b)[:, 0] * b[:, 1]).numpy())
    np.testing.assert_allclose(m.tnie.values[0, 0], ((s - b)[:, 0] * s[:, 1]).numpy())
    np.testing.assert_allclose(m.interaction.values[0, 0], (s - b).prod(1).numpy(), atol=1e-12)


MODELS = all_vaes()


class FirstPixels:
    names = ("a", "b", "c")

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)[:, :3]


@pytest.fixture(params=MODELS, scope="module")
def world(request):
    model = MODELS[request.param]
    vae = nv.VAE(copy.deepcopy(model))
    pairs = nv.Pairs(images(model, 11), images(model, 11, seed=1))
    vae.encode(pairs.base)
    shape = vae.sites["latent.mu"].shape
    return vae, nv.Pairs(
        pairs.base, pairs.source, eps=torch.randn(11, *shape, generator=torch.Generator().manual_seed(2))
    )


def test_noising_is_minus_denoising_of_the_reversed_pair(world):
    vae, pairs = world
    sites = list(vae.sites)[1::4]
    noising = nv.patch_activations(vae, pairs, sites, readout=FirstPixels(), direction="noising")
    denoising = nv.patch_activations(vae, pairs.reversed(), sites, readout=FirstPixels(), direction="denoising")
    np.testing.assert_allclose(noising.values, -denoising.values, atol=1e-6)


def test_a_vertex_cut_carries_all_of_the_effect(world):
    vae, pairs = world
    m = nv.mediate(vae, pairs, ["latent.mu", "latent.logvar"], readout=FirstPixels())
    np.testing.assert_allclose(m.pnie.values, m.te.values, atol=1e-6)
    np.testing.assert_allclose(m.tnie.values, m.te.values, atol=1e-6)
    np.testing.assert_allclose(m.nde.values, 0, atol=1e-6)
    # A cut that leaves the variance path open must not carry everything when noise is on.
    partial = nv.mediate(vae, pairs, ["latent.mu"], readout=FirstPixels())
    assert np.abs(partial.nde.values).max() > 1e-4


def test_reversing_the_pairs_flips_the_total_effect_and_keeps_the_interaction(world):
    vae, pairs = world
    site = list(vae.sites)[1]
    forth = nv.mediate(vae, pairs, [f"{site}[0:2]"], readout=FirstPixels())
    back = nv.mediate(vae, pairs.reversed(), [f"{site}[0:2]"], readout=FirstPixels())
    np.testing.assert_allclose(back.te.values, -forth.te.values, atol=1e-6)
    np.testing.assert_allclose(back.interaction.values, forth.interaction.values, atol=1e-6)
    np.testing.assert_allclose(forth.te.values, forth.nde.values - back.pnie.values, atol=1e-6)


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


def test_a_dead_unit_has_no_effect():
    vae, pairs, read, _ = setup()
    with torch.no_grad():
        vae.module.enc.weight[2] = 0
    effects = nv.patch_activations(vae, pairs, ["enc"], readout=read)
    assert np.abs(effects.values[2]).max() < 1e-12
    inputs = nv.manipulate_inputs(vae, pairs, ["enc"])
    assert np.abs(inputs.values[2]).max() == 0
    assert np.abs(inputs.values[1]).max() > 0


def test_default_latent_values_stay_inside_the_aggregate_posterior():
    vae, pairs, read, (a1, a2, _, _) = setup(n=400)
    effects = nv.perturb_latents(vae, pairs.base, readout=read)
    low, high = (np.array(v) for v in effects.provenance["values"].values())
    mu = pairs.base @ (a2 @ a1).T
    sd = (mu.var(0) + np.exp(-2.0)).sqrt().numpy()
    np.testing.assert_allclose(high - low, 2 * 1.645 * sd, rtol=0.2)
    assert (low > mu.min(0).values.numpy() - 1).all()


def test_default_sites_of_a_conv_vae_are_its_layers_with_channels_as_units():
    vae = nv.VAE(copy.deepcopy(MODELS["conv"]))
    found = default_sites(vae)
    assert "encoder.0" in found
    assert "latent.z" in found
    assert "decoder.2" in found  # the 6 channels that decoder.0's 96 neurons make up
    assert "decoder.0" not in found
    assert not any(vae.sites[name].kind in ("activation", "container") for name in found)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda v, p, r: nv.patch_activations(v, p, ["nowhere"], readout=r), nv.SiteError),
        (lambda v, p, r: nv.patch_activations(v, p, [], readout=r), nv.SiteError),
        (lambda v, p, r: nv.patch_activations(v, p, ["enc"], readout=r, direction="sideways"), nv.InterventionError),
        (lambda v, p, r: nv.perturb_latents(v, p.base, values=[], readout=r), nv.InterventionError),
        (lambda v, p, r: nv.perturb_latents(v, p.base, values=[float("nan")], readout=r), nv.InterventionError),
        (lambda v, p, r: nv.perturb_latents(v, p.base[:0], readout=r), nv.DataError),
        (lambda v, p, r: nv.mediate(v, p, [], readout=r), nv.InterventionError),
        (lambda v, p, r: nv.manipulate_inputs(v, nv.Pairs(p.base[:, :4], p.source[:, :4])), nv.DataError),
        (
            lambda v, p, r: nv.patch_activations(
                v, nv.Pairs(p.base, p.source, eps=torch.zeros(12, 7)), ["enc"], readout=r
            ),
            nv.DataError,
        ),
    ],
)
def test_bad_input_is_refused(call, error):
    vae, pairs, read, _ = setup()
    with pytest.raises(error):
        call(vae, pairs, read)


def test_few_examples_still_give_each_latent_its_posteriors_range():
    """One example: its posterior is the aggregate; N(mu, e^-2) has its 5 % and 95 % quantiles 2 * 1.645 * e^-1 apart."""
    vae, pairs, read, _ = setup()
    low, high = np.array(list(nv.perturb_latents(vae, pairs.base[:1], readout=read).provenance["values"].values()))
    np.testing.assert_allclose(high - low, 2 * 1.645 * np.exp(-1), rtol=0.35)
    np.testing.assert_allclose((high + low) / 2, vae.encode(pairs.base[:1]).mu[0].detach(), atol=0.3)


def test_a_single_mediator_may_be_a_unit_and_overlapping_ones_are_refused():
    vae, pairs, read, _ = setup()
    by_unit, by_name = (nv.mediate(vae, pairs, key, readout=read) for key in (nv.Unit("latent.z", 1), ["latent.z[1]"]))
    np.testing.assert_array_equal(by_unit.pnie.values, by_name.pnie.values)
    with pytest.raises(nv.InterventionError, match="both name"):
        nv.mediate(vae, pairs, ["latent.z[0:2]", "latent.z[1]"], readout=read)


def test_values_are_one_list_for_all_latents():
    vae, pairs, read, _ = setup()
    with pytest.raises(nv.InterventionError, match="same for every latent"):
        nv.perturb_latents(vae, pairs.base, values=[[1.0, 2.0], [3.0, 4.0]], readout=read)
    one = nv.perturb_latents(vae, pairs.base, values=torch.tensor([0.5]), readout=read)
    two = nv.perturb_latents(vae, pairs.base, values=[-1.0, 0.5], readout=read)
    np.testing.assert_array_equal(one.values, two.parts["0.5"].values)


def test_changes_at_units_with_positions_are_means_and_root_mean_squares(world):
    vae, pairs = world
    model = vae.module
    sites = [name for name in default_sites(vae) if vae.sites[name].stage in ("encoder", "latent")]
    found = nv.manipulate_inputs(vae, pairs, sites)
    row = 0
    for name in sites:
        site = vae.sites[name]
        before, after = (
            record(copy.deepcopy(MODELS[_name_of(model)]), x, name, pairs.eps).flatten(2 if len(site.shape) > 1 else 1)
            for x in (pairs.base, pairs.source)
        )
        before, after = (a.reshape(11, site.n_units, -1).double().numpy() for a in (before, after))
        both = np.concatenate([before, after]).mean(-1)
        for u in range(site.n_units):
            sd = both[:, u].std()
            want = (after - before)[:, u].mean(-1) / sd
            np.testing.assert_allclose(found.values[row, 0], want, rtol=1e-3, atol=1e-4)
            size = np.sqrt(np.square((after - before)[:, u]).mean(-1)) / sd
            np.testing.assert_allclose(found.parts["norm"].values[row, 0], size, rtol=1e-3, atol=1e-4)
            row += 1
    assert row == len(found.units)


def _name_of(module: nn.Module) -> str:
    weights = next(module.parameters())
    return next(n for n, m in MODELS.items() if type(m) is type(module) and torch.equal(next(m.parameters()), weights))


def test_rounding_alone_is_no_change():
    """Every input is a permutation of the same numbers, so that their sum is constant but for rounding."""
    model = random_linear_vae()
    with torch.no_grad():
        model.enc.weight[0] = 1.0
    rows = [
        torch.arange(6.0, dtype=torch.double).sin()[torch.randperm(6, generator=torch.Generator().manual_seed(i))]
        for i in range(40)
    ]
    x = torch.stack(rows)
    pairs = nv.Pairs(x[:20], x[20:])
    vae = nv.VAE(model)
    assert nv.engine.activations(vae, x, ["enc"])["enc"][:, 0].std() > 0
    found = nv.manipulate_inputs(vae, pairs, ["enc"])
    assert np.abs(found.values[0]).max() == 0
    assert np.abs(found.values[1]).max() > 1


def test_every_level_runs_on_the_noise_it_is_given(world):
    """Against hooks with the same noise; no level may fall back to posterior means."""
    vae, pairs = world
    model = copy.deepcopy(MODELS[_name_of(vae.module)])
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


def test_quantiles_of_a_spatial_latent_are_over_examples_and_positions():
    model = MODELS["residual"]
    x = images(model, 200)
    vae = nv.VAE(copy.deepcopy(model))
    posterior = vae.encode(x)
    z = posterior.rsample(torch.randn(posterior.mu.shape, generator=torch.Generator().manual_seed(9)))
    found = posterior_quantiles(vae, x, (0.25, 0.5))
    expected = torch.quantile(z.detach().transpose(0, 1).flatten(1), torch.tensor([0.25, 0.5]), dim=1)
    assert found.shape == (2, 2)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
