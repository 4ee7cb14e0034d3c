"""The latent level: what latents are set to, latents with positions, re-encoded latents."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from latent_worlds import MODELS, decoded, setup, spatial
from linear import LinearVAE
from scipy.stats import norm
from vaes import images

import nnsight_vae as nv
from nnsight_vae.levels.latent_values import posterior_draws, posterior_quantiles

__all__ = ["spatial"]  # fixtures


# The latents of a random linear VAE are correlated, so that moving one alone leaves the data; that it is warned of is a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*aggregate posterior:nnsight_vae.NnsightVaeWarning")


# ---------------------------------------------------------------- what latents are set to


def test_default_latent_values_stay_inside_the_aggregate_posterior():
    vae, x, read, _, mu, _ = setup(n=400)
    effects = nv.perturb_latents(vae, x, readout=read)
    low, high = (np.array(list(v.values())) for v in effects.provenance["values"].values())
    sd = (mu.var(0) + np.exp(-2.0)).sqrt().numpy()
    np.testing.assert_allclose(high - low, 2 * 1.645 * sd, rtol=0.2)
    assert (low > mu.min(0).values.numpy() - 1).all()


def test_the_values_of_each_unit_are_recorded_under_its_name():
    """Positions in a list would mean other units once some were selected."""
    vae, x, read, *_ = setup()
    few = nv.perturb_latents(
        vae, x, [0.5, nv.Add(1.0)], readout=read, units=["latent.z[2]", ("latent.z[0]", "latent.z[1]")]
    )
    joint = "latent.z[0] + latent.z[1]"
    assert few.select(joint).provenance["values"] == {
        "0.5": {"latent.z[2]": 0.5, joint: [0.5, 0.5]},
        "Add(1.0)": {"latent.z[2]": "Add(1.0)", joint: ["Add(1.0)", "Add(1.0)"]},
    }


def test_provenance_says_whether_codes_carry_noise():
    vae, x, read, *_ = setup()
    means, noisy = (
        nv.perturb_latents(vae, x, 0.5, readout=read, eps=eps) for eps in (None, torch.zeros(40, 3).double())
    )
    assert (means.provenance["noise"], noisy.provenance["noise"]) == ("posterior mean", "shared eps")
    np.testing.assert_allclose(noisy.values, means.values, atol=1e-12)


def test_few_examples_still_give_each_latent_its_posteriors_range():
    """One example: its posterior is the aggregate; N(mu, e^-2) has its 5 % and 95 % quantiles 2 * 1.645 * e^-1 apart."""
    vae, x, read, *_ = setup()
    record = nv.perturb_latents(vae, x[:1], readout=read).provenance["values"]
    low, high = (np.array(list(v.values())) for v in record.values())
    np.testing.assert_allclose(high - low, 2 * 1.645 * np.exp(-1), rtol=0.35)
    np.testing.assert_allclose((high + low) / 2, vae.encode(x[:1]).mu[0].detach(), atol=0.3)


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


def test_prior_quantiles_are_those_of_a_standard_normal():
    vae, x, read, w, mu, _ = setup()
    effects = nv.perturb_latents(vae, x, "prior", quantiles=(0.1, 0.5, 0.975), readout=read)
    assert list(effects.parts) == ["q0.1", "q0.5", "q0.975"]
    for q, (name, part) in zip((0.1, 0.5, 0.975), effects.parts.items(), strict=True):
        expected = torch.einsum("nk,tk->ktn", norm.ppf(q) - mu, w)
        np.testing.assert_allclose(part.values, expected, atol=1e-9)
        assert effects.provenance["values"][name] == pytest.approx(dict.fromkeys(effects.units, norm.ppf(q)))
    slope = (norm.ppf(0.975) - norm.ppf(0.1)) * w.T[..., None]
    np.testing.assert_allclose(effects.values, np.broadcast_to(slope, effects.values.shape), atol=1e-9)


def test_posterior_quantiles_can_be_chosen_and_are_moved_through_in_order():
    vae, x, read, w, *_ = setup()
    effects = nv.perturb_latents(vae, x, "posterior", quantiles=(0.9, 0.2), readout=read)
    high, low = posterior_quantiles(vae, x, (0.9, 0.2))
    np.testing.assert_allclose(effects.values[:, :, 0], ((low - high) * w).T, atol=1e-9)
    assert effects.estimand == "do(z_k = q0.2) - do(z_k = q0.9)"


def test_values_are_one_list_for_all_latents():
    vae, x, read, *_ = setup()
    with pytest.raises(nv.InterventionError, match="same for every latent"):
        nv.perturb_latents(vae, x, values=[[1.0, 2.0], [3.0, 4.0]], readout=read)
    one = nv.perturb_latents(vae, x, values=torch.tensor([0.5]), readout=read)
    two = nv.perturb_latents(vae, x, values=[-1.0, 0.5], readout=read)
    np.testing.assert_array_equal(one.values, two.parts["0.5"].values)
    for alone in (0.5, np.float32(0.5), nv.Set(0.5)):
        np.testing.assert_array_equal(nv.perturb_latents(vae, x, alone, readout=read).values, one.values)


def test_values_that_print_alike_keep_their_own_names():
    vae, x, read, w, mu, _ = setup()
    values = [0.1 + 0.2, 0.3, 0.12345678, 0.12345679, 1e-9, 2.0, -0.0]
    effects = nv.perturb_latents(vae, x, values, readout=read)
    assert list(effects.parts) == ["0.30000000000000004", "0.3", "0.12345678", "0.12345679", "1e-09", "2", "0"]
    for value, part in zip(values, effects.parts.values(), strict=True):
        np.testing.assert_allclose(part.values, torch.einsum("nk,tk->ktn", value - mu, w), atol=1e-12)


def test_a_swap_gives_each_latent_the_value_it_has_for_another_input():
    vae, x, read, w, mu, _ = setup()
    eps = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = nv.perturb_latents(vae, x, nv.Swap(x.flip(0)), readout=read, eps=eps)
    # noise is shared: the swapped value is the other mean plus this example's own draw
    np.testing.assert_allclose(found.values, torch.einsum("nk,tk->ktn", mu.flip(0) - mu, w), atol=1e-9)
    assert found.estimand == "do(z_k = swap)"
    both = nv.perturb_latents(vae, x, [nv.Swap(x.flip(0)), nv.Swap(x.roll(1, 0)), nv.Add(0.5)], readout=read, eps=eps)
    assert list(both.parts) == ["swap", "swap (2)", "Add(0.5)"]
    np.testing.assert_array_equal(both.parts["swap"].values, found.values)
    np.testing.assert_allclose(both.parts["Add(0.5)"].values[..., 0], 0.5 * w.T, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "finite numbers"),
        ({"values": [float("nan")]}, "finite"),
        ({"values": "uniform"}, "'posterior', 'prior', 'codes'"),
        ({"values": [1.0, 2.0, 1.0]}, r"repeats Set\(1.0\)"),
        ({"values": None, "quantiles": (0.5, 1.5)}, "between 0 and 1"),
        ({"values": None, "quantiles": "5 %"}, "between 0 and 1"),
        ({"values": None, "quantiles": ()}, "between 0 and 1"),
        ({"values": None, "quantiles": (0.5, 0.5)}, "repeat"),
        ({"values": None, "quantiles": 0.5}, "between 0 and 1"),
        ({"values": "prior", "quantiles": (0.0, 1.0)}, "between 0 and 1"),
        ({"values": "codes"}, "no codebook"),
        ({"values": nv.Quantize(1)}, "no codebook"),
        ({"values": 1.0, "units": ["latent.mu"]}, r"latent\.z"),
        ({"values": 1.0, "per": "pixel"}, "'unit', 'site' or 'position'"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    vae, x, read, *_ = setup()
    with pytest.raises(nv.InterventionError, match=message):
        nv.perturb_latents(vae, x, readout=read, **arguments)


@given(st.integers(0, 1000), st.permutations(range(3)))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_permuting_latents_permutes_their_effects(seed, order):
    vae, x, read, *_ = setup(seed)
    model = vae.module
    layers = model.enc.weight, model.mu.weight[list(order)], model.dec.weight[:, list(order)], model.out.weight
    permuted = nv.VAE(LinearVAE(*(weight.detach() for weight in layers)))
    plain, moved = (nv.perturb_latents(v, x, [-0.5, 0.5], readout=read) for v in (vae, permuted))
    np.testing.assert_allclose(moved.values, plain.values[list(order)], atol=1e-9)
    tails = [effects.provenance["manifold"]["tail"]["0.5"] for effects in (plain, moved)]
    np.testing.assert_allclose(list(tails[1].values()), np.array(list(tails[0].values()))[list(order)], atol=0.05)


def test_a_latent_the_decoder_ignores_has_exactly_no_effect():
    vae, x, read, *_ = setup()
    with torch.no_grad():
        vae.module.dec.weight[:, 1] = 0
    effects = nv.perturb_latents(vae, x, readout=read)
    assert np.abs(effects.values[1]).max() == 0
    assert np.abs(effects.values[0]).max() > 0.1


# ---------------------------------------------------------------- spatial latents


def test_a_channel_is_set_everywhere_a_position_in_all_channels_an_element_alone(spatial):
    vae, x, mu, read = spatial
    base = decoded(vae, mu)

    def literal(at, value):
        z = mu.clone()
        z[(slice(None), *at)] = value
        return (decoded(vae, z) - base).T

    channel = nv.perturb_latents(vae, x, 0.5, readout=read)
    assert channel.units == ("latent.z[0]", "latent.z[1]")
    np.testing.assert_allclose(channel.values[1], literal((1,), 0.5), atol=1e-4)
    position = nv.perturb_latents(vae, x, 0.5, readout=read, per="position")
    assert position.units[:5] == ("latent.z@0,0", "latent.z@0,1", "latent.z@0,2", "latent.z@0,3", "latent.z@1,0")
    assert len(position.units) == 16
    np.testing.assert_allclose(position.values[6], literal((slice(None), 1, 2), 0.5), atol=1e-4)
    keys = ["latent.z[1]@2,3", ("latent.z[0]@0,0", "latent.z[1]@3,3")]
    single = nv.perturb_latents(vae, x, 0.5, readout=read, units=keys)
    assert single.units == ("latent.z[1]@2,3", "latent.z[0]@0,0 + latent.z[1]@3,3")
    np.testing.assert_allclose(single.values[0], literal((1, 2, 3), 0.5), atol=1e-4)
    whole = nv.perturb_latents(vae, x, 0.5, readout=read, per="site")
    np.testing.assert_allclose(whole.values[0], literal((), 0.5), atol=1e-4)


def test_quantiles_are_over_what_is_set_together(spatial):
    """A channel everywhere: one value over positions; at a position: each channel's own value over examples there."""
    vae, x, mu, read = spatial
    draws = posterior_draws(vae, x, 100).double().numpy()
    for per, index, expected in (
        ("unit", 1, np.quantile(draws[:, 1], 0.9)),
        ("position", 6, np.quantile(draws[:, :, 1, 2], 0.9, axis=0)),
        ("site", 0, np.quantile(draws.swapaxes(0, 1).reshape(2, -1), 0.9, axis=1)),
    ):
        found = nv.perturb_latents(vae, x, "posterior", quantiles=[0.9], readout=read, per=per)
        np.testing.assert_allclose(found.provenance["values"]["q0.9"][found.units[index]], expected, rtol=1e-6)
    z = mu.clone()
    z[:, :, 1, 2] = torch.from_numpy(np.quantile(draws[:, :, 1, 2], 0.9, axis=0)).float()
    found = nv.perturb_latents(vae, x, "posterior", quantiles=[0.9], readout=read, per="position")
    np.testing.assert_allclose(found.values[6], (decoded(vae, z) - decoded(vae, mu)).T, atol=1e-4)


# ---------------------------------------------------------------- models that compute no numbers


@pytest.mark.parametrize(("layer", "unit"), [("encoder.2", 3), ("fc_mu", 4), ("fc_logvar", 0)])
def test_a_model_whose_posterior_is_nan_is_refused_by_the_first_unit_that_is(layer, unit):
    model = copy.deepcopy(MODELS["conv"])
    with torch.no_grad():
        model.get_submodule(layer).bias[unit] = float("nan")
    vae, x = nv.VAE(model), images(model, 30)
    with pytest.raises(nv.DataError, match=rf"^{layer}\[{unit}\] is NaN for 30 of 30 inputs, without any intervention"):
        nv.perturb_latents(vae, x, readout=nv.readouts.Pixels(model.image)["pixel[0,0,0]"])


# ---------------------------------------------------------------- re-encoded latents


def test_effects_on_reencoded_latents_have_a_closed_form():
    vae, x, _, _, mu, h = setup()
    found = nv.perturb_latents(vae, x, [-1.0, 1.0], readout=nv.readouts.Reencoded(vae))
    assert found.targets == ("latent.mu[0]", "latent.mu[1]", "latent.mu[2]")
    np.testing.assert_allclose(found.values, np.broadcast_to(2 * h.T[..., None], found.values.shape), atol=1e-9)
    np.testing.assert_allclose(found.parts["1"].values, torch.einsum("nk,tk->ktn", 1 - mu, h), atol=1e-9)
    some = nv.perturb_latents(vae, x, [-1.0, 1.0], readout=nv.readouts.Reencoded(vae)["latent.mu[2]"])
    np.testing.assert_allclose(some.values[:, 0], found.values[:, 2], atol=1e-12)


def test_reencoding_inside_a_trace_is_encoding_and_leaves_the_model_as_it_was():
    model = copy.deepcopy(MODELS["conv"]).train()
    vae, x = nv.VAE(model), images(model, 30)
    found = nv.perturb_latents(vae, x, readout=nv.readouts.Reencoded(vae))
    assert model.training
    z = vae.encode(x).mu.detach()
    base = vae.encode(vae.decode(z)).mu
    high = float(posterior_quantiles(vae, x)[1, 3])
    z[:, 3] = high
    change = vae.encode(vae.decode(z)).mu - base
    np.testing.assert_allclose(found.parts["q0.95"].values[3], change.detach().T, atol=1e-6)


def test_reencoded_latents_with_positions_are_named_by_position(spatial):
    vae, x, *_ = spatial
    read = nv.readouts.Reencoded(vae)
    assert read.names[:2] == ("latent.mu[0]@0,0", "latent.mu[0]@0,1")
    assert len(read.names) == 32
    with torch.no_grad():
        assert torch.equal(read(x)[:, read.names.index("latent.mu[1]@2,3")], vae.encode(x).mu[:, 1, 2, 3])


def test_a_model_that_is_not_wrapped_cannot_be_read():
    with pytest.raises(nv.AdapterError, match="wrap it first"):
        nv.readouts.Reencoded(MODELS["mlp"])


def test_an_output_that_is_no_input_cannot_be_reencoded():
    vae, x, *_ = setup()
    wide = nv.adapt(vae.module, encoder=vae.module.encode, decoder=lambda z: vae.module.decode(z)[:, :4], example=x)
    with pytest.raises(nv.DataError, match="cannot run"):
        nv.perturb_latents(wide, x, readout=nv.readouts.Reencoded(wide))
