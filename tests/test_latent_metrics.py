"""The seed metrics measured on a VAE equal their published formulas, computed here by hand on a linear decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, LinearVAE, random_linear_vae
from vaes import Tokens, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae.engine import activations
from nnsight_vae.levels.latent_metrics import LatentRuns
from nnsight_vae.levels.latent_response import latent_draws
from nnsight_vae.levels.latent_values import posterior_quantiles


@pytest.fixture
def world():
    model = random_linear_vae(3)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    with torch.no_grad():
        mu = model.encode(x)[0]
    return nv.VAE(model), x, mu, (model.out.weight @ model.dec.weight).detach()


def test_effect_strength_is_the_mean_displacement_over_seven_clamps(world):
    vae, x, mu, decoder = world
    clamps = torch.linspace(-3, 3, 7, dtype=torch.double)
    expected = [float((clamps[:, None] - mu[:, k]).abs().mean() * decoder[:, k].norm()) for k in range(3)]
    np.testing.assert_allclose(nv.metrics.causal_effect_strength(vae, x).values, expected, rtol=1e-6)


def test_specificity_is_the_inverse_entropy_of_squared_changes(world):
    vae, x, _, decoder = world
    shares = (decoder**2 / (decoder**2).sum(0)).numpy()
    entropy = -(shares * np.log(shares)).sum(0)
    np.testing.assert_allclose(nv.metrics.intervention_specificity(vae, x).values, 1 / (entropy + 1e-6), rtol=1e-5)


def test_modularity_compares_the_units_of_a_decoder_site(world):
    vae, x, mu, _ = world
    weights = (
        vae.module.dec.weight.detach().abs().numpy()
    )  # RMS change of unit u under do(z_k = 0) is |W_uk| times |mu_k|
    raw = [abs(np.corrcoef(weights[:, i], weights[:, j])[0, 1]) for i, j in ((0, 1), (0, 2), (1, 2))]
    measured = nv.metrics.circuit_modularity(vae, x, site="dec")
    assert measured.value == pytest.approx(1 - np.mean(raw), abs=1e-6)
    literal = np.stack([mu[:, k : k + 1].numpy() * vae.module.dec.weight.detach()[:, k].numpy() for k in range(3)])
    activations = (mu @ vae.module.dec.weight.detach().T).numpy()
    normalised = nv.metrics.circuit_modularity(vae, x, site="dec", form="normalised")
    expected = nv.metrics.circuit_modularity(literal, form="normalised", activations=activations)
    assert normalised.value == pytest.approx(expected.value, rel=1e-9)
    assert normalised.ci == pytest.approx(expected.ci, rel=1e-9)


def test_one_call_gives_all_three(world):
    vae, x, _, _ = world
    together = nv.latent_metrics(vae, x, form="raw")
    assert together.effect_strength == nv.metrics.causal_effect_strength(vae, x)
    assert together.specificity == nv.metrics.intervention_specificity(vae, x)
    assert together.modularity == nv.metrics.circuit_modularity(vae, x)
    assert str(together).count("(raw)") == 3


def test_the_pixel_form_is_in_units_of_the_spread_of_the_data(world):
    vae, x, mu, decoder = world
    clamps = torch.linspace(-3, 3, 7, dtype=torch.double)
    raw = np.array([float((clamps[:, None] - mu[:, k]).abs().mean() * decoder[:, k].norm()) for k in range(3)])
    spread = float(x.var(0, correction=0).sum().sqrt())
    found = nv.metrics.causal_effect_strength(vae, x, form="normalised")
    np.testing.assert_allclose(found.values, raw / spread, rtol=1e-6)
    assert all(low < value < high for (low, high), value in zip(found.ci, found.values, strict=True))


def test_the_factor_form_is_in_units_of_the_spread_of_the_factors(world):
    """A readout of factors C x: effects are C D (v - mu), the data's own factors C x."""
    vae, x, mu, decoder = world
    read = LinearReadout(torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double))
    clamps, effect = torch.linspace(-3, 3, 7, dtype=torch.double), read.c @ decoder
    raw = np.array([float((clamps[:, None] - mu[:, k]).abs().mean() * effect[:, k].norm()) for k in range(3)])
    spread = float((x @ read.c.T).var(0, correction=0).sum().sqrt())
    found = nv.latent_metrics(vae, x, readout=read)
    np.testing.assert_allclose(found.effect_strength.values, raw / spread, rtol=1e-6)
    shares = (effect**2 / (effect**2).sum(0)).numpy()
    specificity = 1 + (shares * np.log(shares)).sum(0) / np.log(2)
    np.testing.assert_allclose(found.specificity.values, specificity, rtol=1e-6)
    assert found.modularity == nv.latent_metrics(vae, x).modularity


def test_without_an_input_that_is_an_output_the_reconstructions_are_the_yardstick(world):
    vae, x, mu, decoder = world
    narrow = nv.adapt(vae.module, encoder=vae.module.encode, decoder=lambda z: vae.module.decode(z)[:, :4], example=x)
    found = LatentRuns(narrow, x)
    torch.testing.assert_close(torch.from_numpy(found.data), mu @ decoder[:4].T)


def test_effect_strength_over_calibrated_values_and_chosen_units(world):
    vae, x, mu, decoder = world
    low, high = posterior_quantiles(vae, x, (0.05, 0.95))
    found = nv.metrics.causal_effect_strength(vae, x, values="posterior", units=["latent.z[2]", "latent.z[0]"])
    assert found.units == ("latent.z[2]", "latent.z[0]")
    for score, k in zip(found.values, (2, 0), strict=True):
        reach = ((low[k] - mu[:, k]).abs() + (high[k] - mu[:, k]).abs()).mean() / 2
        assert score == pytest.approx(float(reach * decoder[:, k].norm()), rel=1e-6)


def test_a_latent_is_dead_by_its_kl_and_its_effect(world):
    vae, x, _, _ = world
    with torch.no_grad():
        vae.module.mu.weight[1] = 0  # collapsed, but for its variance
        vae.module.dec.weight[:, 1] *= 1e-3
        vae.module.dec.weight[:, 2] = 0  # informed, and ignored by the decoder
    vae.module.logvar = 0.0
    found = nv.latent_metrics(vae, x)
    assert found.effect_strength.flags[:2] == ("", "dead: effect at most 1 % of the spread, KL 0 nats")
    assert found.effect_strength.flags[2].startswith("dead: no effect, KL")
    assert found.specificity.flags[:2] == ("", "dead: no effect, KL 0 nats")  # at its mean, 0, already
    assert found.effect_strength.ranked == (0,)
    assert found.effect_strength.values[2] == 0
    assert found.specificity.values[1:] == (None, None)
    assert found.modularity.note == "undefined with 1 latents alive; left out dead latents: 1, 2"


def test_units_named_alone_keep_their_own_kl(world):
    vae, x, _, _ = world
    with torch.no_grad():
        vae.module.mu.weight[1] = 0
    vae.module.logvar = 0.0
    found = nv.metrics.causal_effect_strength(vae, x, units=["latent.z[1]", "latent.z[0]"])
    assert found.flags == ("collapsed: KL 0 nats", "")
    joint = nv.metrics.causal_effect_strength(vae, x, units=[("latent.z[0]", "latent.z[1]"), "latent.z[1]"])
    assert joint.flags == ("", "")


def test_activity_of_a_vae_is_kl_and_variance_of_its_posterior(world):
    vae, x, mu, _ = world
    found = nv.metrics.activity(vae, x)
    nats = (mu**2 + np.exp(-2.0) - 1 + 2.0).mean(0) / 2
    np.testing.assert_allclose(found.kl.values, nats)
    np.testing.assert_allclose(found.variance.values, mu.var(0, correction=0))
    assert found.active_units.value == 3
    by_arrays = nv.metrics.activity(mu.numpy(), np.full(mu.shape, -2.0))
    assert by_arrays.kl.values == pytest.approx(found.kl.values)


def test_activity_of_another_law_is_its_own_kl():
    module = nv.models.MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)).double()
    law = torch.distributions.Laplace

    def encode(x):
        mu, logvar = module.encode(x)
        return law(mu, torch.exp(0.5 * logvar))

    x = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    vae = nv.adapt(module, encoder=encode, decoder=module.decode, example=x)
    with torch.no_grad():
        nats = torch.distributions.kl_divergence(encode(x), law(torch.zeros(()), torch.ones(()))).mean(0)
    np.testing.assert_allclose(nv.metrics.activity(vae, x).kl.values, nats, rtol=1e-9, atol=1e-12)
    with pytest.raises(nv.DataError, match=r"kl \(9, 3\)"):
        nv.metrics.activity(np.zeros((9, 2)), np.zeros((9, 2)), kl=np.zeros((9, 3)))


@pytest.mark.parametrize("source", ["prior", "posterior"])
def test_the_response_matrix_of_a_linear_vae_has_a_closed_form(world, source):
    """R_jk = |H_kj| sqrt(E (r_j - mu_j)^2), H = A B, with r the very draws: exact; and against E (r - mu)^2 = 1 + E mu^2 for the prior."""
    vae, x, mu, decoder = world
    h = (vae.module.mu.weight @ vae.module.enc.weight).detach() @ decoder
    draws = latent_draws(vae, x, source, 4, seed=3)
    size = (draws.view(4, 30, 3) - mu).square().mean((0, 1)).sqrt()
    found = nv.metrics.latent_response_matrix(vae, x, values=source, draws=4, seed=3)
    np.testing.assert_allclose(found.values, (h.T.abs() * size[:, None]), rtol=1e-6)
    scaled = nv.metrics.latent_response_matrix(vae, x, values=source, draws=4, seed=3, form="normalised")
    sd = (mu @ h.T).std(0, correction=0)
    np.testing.assert_allclose(scaled.values, (h.T.abs() * size[:, None] / sd), rtol=1e-6)
    many = nv.metrics.latent_response_matrix(vae, x, values=source, draws=400)
    expected = {"prior": 1.0 + mu.square().mean(0), "posterior": 2 * mu.var(0, correction=0) + np.exp(-2.0)}[source]
    np.testing.assert_allclose(many.values, h.T.abs() * expected.sqrt()[:, None], rtol=0.03)


def test_the_kl_of_a_channel_is_that_of_its_positions_together():
    model = all_vaes()["residual"]
    x = images(model, 12)
    vae = nv.VAE(model)
    nats = vae.encode(x).kl().detach().double().sum((2, 3)).mean(0)
    np.testing.assert_allclose(LatentRuns(vae, x).kl, nats, rtol=1e-5)
    np.testing.assert_allclose(nv.metrics.activity(vae, x).kl.values, nats, rtol=1e-5)


def test_responses_of_a_spatial_latent_are_per_channel():
    """Literal: every element of a channel drawn anew, root mean square over draws and positions."""
    model = all_vaes()["residual"]
    x = images(model, 12)
    vae = nv.VAE(model)
    with torch.no_grad():
        mu = vae.encode(x).mu
        base = vae.encode(vae.decode(mu)).mu
        draws = latent_draws(vae, x, "prior", 2, seed=0).view(2, 12, 2, 4, 4)
        literal = np.zeros((2, 2))
        for j in range(2):
            moved = []
            for drawn in draws:
                z = mu.clone()
                z[:, j] = drawn[:, j]
                moved.append(vae.encode(vae.decode(z)).mu - base)
            literal[j] = torch.stack(moved).square().mean((0, 1, 3, 4)).sqrt()
    found = nv.metrics.latent_response_matrix(vae, x, draws=2)
    np.testing.assert_allclose(found.values, literal, rtol=1e-4)
    scaled = nv.metrics.latent_response_matrix(vae, x, draws=2, form="normalised")
    sd = base.transpose(0, 1).flatten(1).std(1, correction=0)
    np.testing.assert_allclose(scaled.values, literal / sd.numpy(), rtol=1e-4)


@given(st.integers(0, 1000), st.permutations(range(3)))
@settings(max_examples=3, deadline=None, derandomize=True)
def test_permuting_the_latents_of_a_model_permutes_its_scores(seed, order):
    model, order = random_linear_vae(seed), list(order)
    layers = model.enc.weight, model.mu.weight[order], model.dec.weight[:, order], model.out.weight
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    plain, moved = (
        nv.latent_metrics(nv.VAE(m), x) for m in (model, LinearVAE(*(weight.detach() for weight in layers)))
    )
    np.testing.assert_allclose(moved.effect_strength.values, np.array(plain.effect_strength.values)[order])
    np.testing.assert_allclose(moved.specificity.values, np.array(plain.specificity.values)[order])
    assert moved.modularity.value == pytest.approx(plain.modularity.value)


@given(st.floats(1e-2, 1e2))
@settings(max_examples=3, deadline=None, derandomize=True)
def test_scaling_pixels_scales_the_raw_effect_strength_and_leaves_the_normalised(scale):
    """The same pictures in other units: x scaled, an encoder that undoes it, a decoder that does it."""
    model = random_linear_vae()
    layers = model.enc.weight / scale, model.mu.weight, model.dec.weight, model.out.weight * scale
    scaled = LinearVAE(*(weight.detach() for weight in layers))
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    for form, factor in (("raw", scale), ("normalised", 1.0)):
        before, after = (
            nv.latent_metrics(nv.VAE(model), x, form=form),
            nv.latent_metrics(nv.VAE(scaled), scale * x, form=form),
        )
        np.testing.assert_allclose(after.effect_strength.values, factor * np.array(before.effect_strength.values))
        np.testing.assert_allclose(after.effect_strength.ci, factor * np.array(before.effect_strength.ci))
        np.testing.assert_allclose(after.specificity.values, before.specificity.values)
        assert after.modularity.value == pytest.approx(before.modularity.value)


def test_bad_input_is_refused(world):
    vae, x, _, _ = world
    with pytest.raises(nv.SiteError, match="decoder"):
        nv.latent_metrics(vae, x, site="enc")
    for metric in (
        nv.metrics.causal_effect_strength,
        nv.metrics.intervention_specificity,
        nv.metrics.circuit_modularity,
        nv.metrics.latent_response_matrix,
        nv.metrics.activity,
    ):
        with pytest.raises(nv.DataError, match="pass them beside it"):
            metric(vae)
    with pytest.raises(nv.InterventionError, match="'prior' or 'posterior'"):
        nv.metrics.latent_response_matrix(vae, x, values="codes")
    with pytest.raises(nv.InterventionError, match="draws >= 1"):
        nv.metrics.latent_response_matrix(vae, x, draws=0)
    with pytest.raises(nv.ReadoutError, match="names"):
        nv.latent_metrics(vae, x, readout=torch.sum)
    with pytest.raises(nv.DataError, match="non-empty batch"):
        nv.metrics.causal_effect_strength(vae, x[:0])


def test_modularity_at_a_site_with_positions_takes_root_mean_squares():
    """Literal: zero one latent at a time, and compare the channels of the decoder's middle layer."""
    model = all_vaes()["conv"]
    x = images(model, 25)
    vae = nv.VAE(model)
    runs = LatentRuns(vae, x, site="decoder.2")
    with torch.no_grad():
        mu = vae.encode(x).mu
        reach = lambda z: vae.module.decoder[:3](z)
        for k in range(mu.shape[1]):
            zeroed = mu.clone()
            zeroed[:, k] = 0
            change = (reach(zeroed) - reach(mu)).square().mean((2, 3)).sqrt()
            np.testing.assert_allclose(runs.unit_change[k], change, atol=1e-5)
        np.testing.assert_allclose(runs.activation, reach(mu).flatten(2), atol=1e-5)
    np.testing.assert_array_equal(LatentRuns(vae, x).activation, LatentRuns(vae, x, site="decoder.3").activation)


def test_units_of_a_site_are_on_its_own_channel_axis():
    model = seeded(Tokens())
    x = images(model, 10)
    vae = nv.VAE(model, example=x)
    runs = LatentRuns(vae, x, site="out")
    assert runs.unit_change.shape == (4, 10, 5)
    out = activations(vae, x, ["out"])["out"]  # [example, token, unit]
    np.testing.assert_allclose(runs.activation, out.transpose(1, 2), rtol=1e-6)


def test_metrics_show_themselves_readably_and_every_one_has_a_table():
    rng = np.random.default_rng(0)
    found = nv.metrics.activity(rng.normal(0, [1.0, 0.0], (30, 2)), np.zeros((30, 2)))
    matrix = nv.metrics.latent_response_matrix(rng.normal(size=(2, 30, 2)))
    for each in (*found, found, matrix):
        assert repr(each) == str(each)
        assert len(repr(each)) < 300
    table = found.to_frame()
    assert list(table.columns) == [
        "latent",
        "unit",
        "kl",
        "kl_low",
        "kl_high",
        "variance",
        "variance_low",
        "variance_high",
    ]
    assert table["kl"].tolist() == list(found.kl.values)
    assert list(zip(table["variance_low"], table["variance_high"], strict=True)) == list(found.variance.ci)
    (row,) = found.active_units.to_frame().itertuples(index=False)
    assert (row.metric, row.form, row.value, (row.ci_low, row.ci_high), row.note) == (
        *("active units", "variance > 0.01", 1.0, found.active_units.ci), "of 2 latents"
    )  # fmt: skip
    undefined = nv.metrics.Score("modularity", "raw", None, None, "one latent only").to_frame()
    assert undefined[["value", "ci_low", "ci_high"]].isna().all(axis=None)
