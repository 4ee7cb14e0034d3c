"""How far set latents are from the data: distances to the aggregate posterior, what is warned of and recorded."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from latent_worlds import MODELS, setup, spatial
from scipy.stats import chi2
from vaes import images

import nnsight_vae as nv
from nnsight_vae.levels import manifold
from nnsight_vae.levels.latent_values import posterior_draws
from nnsight_vae.levels.manifold import AggregatePosterior

__all__ = ["spatial"]  # fixtures


# The latents of a random linear VAE are correlated, so that moving one alone leaves the data; that it is warned of is a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*aggregate posterior:nnsight_vae.NnsightVaeWarning")


def uncorrelated():
    vae, x, read, *_ = setup()
    with torch.no_grad():
        vae.module.mu.weight.copy_(torch.linalg.pinv(vae.module.enc.weight)[:3])
    return vae, x, read


def test_distances_are_mahalanobis_distances_and_tails_those_of_chi_squared():
    """Gaussian codes: d^2 has a closed form, the share of clean codes that are further is that of chi squared."""
    vae, x, read, *_ = setup(n=4000)
    sd = torch.tensor([3.0, 0.3, 1.0, 1.0, 1.0, 1.0], dtype=torch.double)
    x = x * sd
    mu = vae.encode(x).mu.detach()
    covariance = torch.cov(mu.T, correction=0) + np.exp(-2.0) * torch.eye(3)
    inverse = torch.linalg.inv(covariance)
    value = float(2 * covariance[0, 0].sqrt())
    manifold = nv.perturb_latents(vae, x, value, readout=read).provenance["manifold"]
    for k in range(3):
        z = mu.clone()
        z[:, k] = value
        deviation = z - mu.mean(0)
        squared = torch.einsum("ni,ij,nj->n", deviation, inverse, deviation).numpy()
        name, move = f"latent.z[{k}]", f"{value:g}" if float(f"{value:g}") == value else repr(value)
        assert manifold["distance"][move][name] == pytest.approx(np.sqrt(squared).mean(), rel=1e-9)
        assert manifold["tail"][move][name] == pytest.approx(chi2.sf(squared, 3).mean(), abs=0.02)
        assert manifold["beyond"][move][name] == pytest.approx((squared > chi2.ppf(0.99, 3)).mean(), abs=0.03)
        assert manifold["clean_99"][name] == pytest.approx(np.sqrt(chi2.ppf(0.99, 3)), rel=0.05)


def test_distances_are_of_the_codes_with_their_noise():
    vae, x, read, _, mu, _ = setup()
    eps = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    z = mu + np.exp(-1.0) * eps
    z[:, 1] = 0.5
    inverse = torch.linalg.inv(torch.cov(mu.T, correction=0) + np.exp(-2.0) * torch.eye(3))
    squared = torch.einsum("ni,ij,nj->n", z - mu.mean(0), inverse, z - mu.mean(0))
    manifold = nv.perturb_latents(vae, x, 0.5, readout=read, eps=eps).provenance["manifold"]
    assert manifold["distance"]["0.5"]["latent.z[1]"] == pytest.approx(float(squared.sqrt().mean()), rel=1e-9)


def test_the_draws_of_each_example_have_its_own_mean_and_spread():
    vae = nv.VAE(MODELS["mlp"])
    x = 3 * images(MODELS["mlp"], 5)
    with torch.no_grad():
        mu, logvar = vae.module.encode(x).values()
    draws = posterior_draws(vae, x, 5 * 4000).unflatten(0, (4000, 5))
    assert logvar.exp().sqrt().std(0).max() > 0.3
    torch.testing.assert_close(draws.mean(0), mu, atol=0.08, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.exp(0.5 * logvar), atol=0, rtol=0.05)


def test_moments_are_those_of_the_mixture_of_posteriors():
    vae, x, *_ = setup()
    found = AggregatePosterior.of(vae, x)
    draws = posterior_draws(vae, x, 200_000)
    torch.testing.assert_close(found.mean, draws.mean(0), atol=0.02, rtol=0)
    precision = found.whitening.T @ found.whitening
    torch.testing.assert_close(torch.linalg.inv(precision), torch.cov(draws.T), atol=0.05, rtol=0.02)


def test_distances_are_measured_on_the_device_of_the_codes():
    """Moments are kept on the CPU, and the engine reads on the model's device; "meta" stands for one that tests do not have."""
    vae, x, *_ = setup()
    assert AggregatePosterior.of(vae, x)(torch.zeros(4, 3, device="meta")).device.type == "meta"


def test_far_values_are_warned_of_and_near_ones_are_not():
    vae, x, read = uncorrelated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]
    assert max(near["beyond"]["q0.95"].values()) < 0.1
    with pytest.warns(nv.NnsightVaeWarning, match=r"3 of 6 interventions .* 100 % of examples") as record:
        far = nv.perturb_latents(vae, x, [0.0, 40.0], readout=read).provenance["manifold"]
    assert record[0].filename == __file__
    assert list(far["beyond"]["40"].values()) == [1.0] * 3
    assert list(far["tail"]["40"].values()) == [0.0] * 3


def test_correlated_latents_leave_the_data_where_each_alone_would_not():
    """mu_0 = mu_1: values that each latent takes, but never apart."""
    vae, x, read = uncorrelated()
    vae.module.logvar = -5.0
    with torch.no_grad():
        vae.module.mu.weight[1] = vae.module.mu.weight[0]
    with pytest.warns(nv.NnsightVaeWarning, match="aggregate posterior"):
        manifold = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]
    assert manifold["beyond"]["q0.95"]["latent.z[0]"] > 0.5
    assert manifold["beyond"]["q0.95"]["latent.z[2]"] < 0.1
    together = nv.perturb_latents(vae, x, readout=read, units=[("latent.z[0]", "latent.z[1]")]).provenance["manifold"]
    assert together["beyond"]["q0.95"]["latent.z[0] + latent.z[1]"] < 0.1


def test_where_no_distance_is_defined_the_result_says_why():
    vae, x, read, *_ = setup()
    few = nv.perturb_latents(vae, x[:14], readout=read).provenance["manifold"]
    assert few["undefined"] == "14 codes of 3 channels are too few for a covariance; at least 15 are needed"
    assert "tail" not in few
    assert "tail" in nv.perturb_latents(vae, x[:15], readout=read).provenance["manifold"]
    with torch.no_grad():
        vae.module.mu.weight[1] = vae.module.mu.weight[0]
    vae.module.logvar = -60.0
    assert "functions of others" in nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["undefined"]
    with torch.no_grad():
        vae.module.mu.weight[2] = 0
    vae.module.logvar = -2000.0
    assert nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["undefined"] == "latent.z[2] never varies"


def test_the_scale_of_a_latent_does_not_matter_to_the_distance():
    vae, x, read, *_ = setup()
    vae.module.logvar = -40.0
    before = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["distance"]["q0.95"]
    with torch.no_grad():
        vae.module.mu.weight[1] *= 1e-5
    after = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]["distance"]["q0.95"]
    np.testing.assert_allclose(list(after.values()), list(before.values()), rtol=1e-3)


def test_distances_do_not_depend_on_how_many_are_measured_at_once(monkeypatch):
    vae, x, read, *_ = setup()
    whole = nv.perturb_latents(vae, x, readout=read).provenance["manifold"]
    monkeypatch.setattr(manifold, "_BLOCK", 4 * len(x))  # four of the six
    assert nv.perturb_latents(vae, x, readout=read).provenance["manifold"] == whole


def test_the_record_of_distances_survives_saving(tmp_path):
    vae, x, read, *_ = setup()
    effects = nv.perturb_latents(vae, x, readout=read)
    effects.save(tmp_path / "effects.npz")
    assert nv.Effects.load(tmp_path / "effects.npz").provenance == effects.provenance


def test_the_distance_of_a_position_is_that_of_the_position(spatial):
    vae, x, mu, read = spatial
    posterior = vae.encode(x)
    vectors = mu.movedim(1, -1).flatten(0, -2).double()
    variances = posterior.logvar.detach().double().exp().mean((0, 2, 3))
    inverse = torch.linalg.inv(torch.cov(vectors.T, correction=0) + torch.diag(variances))
    deviation = torch.full((2,), 0.5, dtype=torch.double) - vectors.mean(0)
    expected = float((deviation @ inverse @ deviation).sqrt())
    manifold = nv.perturb_latents(vae, x, 0.5, readout=read, per="position").provenance["manifold"]
    np.testing.assert_allclose(list(manifold["distance"]["0.5"].values()), expected, rtol=1e-5)
    channel = nv.perturb_latents(vae, x, 0.5, readout=read).provenance["manifold"]
    z = mu.clone().double()
    z[:, 1] = 0.5
    deviation = z.movedim(1, -1) - vectors.mean(0)
    squared = torch.einsum("nhwi,ij,nhwj->nhw", deviation, inverse, deviation).mean((1, 2))
    assert channel["distance"]["0.5"]["latent.z[1]"] == pytest.approx(float(squared.sqrt().mean()), rel=1e-5)
    clean = posterior_draws(vae, x, 1000).double().movedim(1, -1) - vectors.mean(0)
    at = torch.einsum("ni,ij,nj->n", clean[:, 1, 2], inverse, clean[:, 1, 2]).sqrt()
    assert manifold["clean_99"]["latent.z@1,2"] == pytest.approx(float(np.quantile(at, 0.99)), rel=1e-5)
    assert manifold["tail"]["0.5"]["latent.z@1,2"] == pytest.approx(float((at >= expected).double().mean()), abs=2e-3)
