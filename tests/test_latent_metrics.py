"""The seed metrics measured on a VAE equal their published formulas, computed here by hand on a linear decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import random_linear_vae
from test_engine_edges import Tokens
from vaes import all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae.engine import activations
from nnsight_vae.levels.latent_metrics import latent_runs


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
    spread = (mu @ vae.module.dec.weight.detach().T).std(0, correction=0).numpy()
    scaled = weights / spread[:, None]
    cosines = [
        scaled[:, i] @ scaled[:, j] / np.linalg.norm(scaled[:, i]) / np.linalg.norm(scaled[:, j])
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    normalised = nv.metrics.circuit_modularity(vae, x, site="dec", form="normalised")
    assert normalised.value == pytest.approx(1 - np.mean(cosines), abs=1e-6)


def test_one_call_gives_all_three(world):
    vae, x, _, _ = world
    together = nv.latent_metrics(vae, x, form="raw")
    assert together.effect_strength == nv.metrics.causal_effect_strength(vae, x)
    assert together.modularity == nv.metrics.circuit_modularity(vae, x)


def test_bad_input_is_refused(world):
    vae, x, _, _ = world
    with pytest.raises(nv.SiteError, match="decoder"):
        nv.latent_metrics(vae, x, site="enc")
    with pytest.raises(nv.DataError):
        nv.metrics.causal_effect_strength(vae)
    with pytest.raises(nv.DataError):
        nv.metrics.causal_effect_strength(vae, x[:0])


def test_modularity_at_a_site_with_positions_takes_root_mean_squares():
    """Literal: zero one latent at a time, and compare the channels of the decoder's middle layer."""
    model = all_vaes()["conv"]
    x = images(model, 25)
    vae = nv.VAE(model)
    runs = latent_runs(vae, x, "decoder.2")
    with torch.no_grad():
        mu = vae.encode(x).mu
        reach = lambda z: vae.module.decoder[:3](z)
        for k in range(mu.shape[1]):
            zeroed = mu.clone()
            zeroed[:, k] = 0
            change = (reach(zeroed) - reach(mu)).square().mean((2, 3)).sqrt()
            np.testing.assert_allclose(runs.unit_change[k], change, atol=1e-5)
        np.testing.assert_allclose(runs.unit_sd, reach(mu).transpose(0, 1).flatten(1).std(1, correction=0), rtol=1e-4)
    assert latent_runs(vae, x).unit_sd.shape == latent_runs(vae, x, "decoder.3").unit_sd.shape


def test_units_of_a_site_are_on_its_own_channel_axis():
    model = seeded(Tokens())
    x = images(model, 10)
    vae = nv.VAE(model, example=x)
    runs = latent_runs(vae, x, "out")
    assert runs.unit_change.shape == (4, 10, 5)
    out = activations(vae, x, ["out"])["out"].flatten(0, 1)  # [example * token, unit]
    np.testing.assert_allclose(runs.unit_sd, out.std(0, correction=0), rtol=1e-4)
