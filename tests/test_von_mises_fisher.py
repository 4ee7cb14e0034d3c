"""Posteriors on the sphere: against Bessel functions, an exact sampler's law, finite differences, and through a wrapped model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matrix import conforms, seeded
from scipy import integrate, special, stats
from torch import nn
from torch.nn import functional as F
from vaes import seeded as seeded_weights

import nnsight_vae as nv
from nnsight_vae.posterior import read_posterior
from nnsight_vae.von_mises_fisher import VonMisesFisher


def posterior(d, kappa, n=1):
    mu = F.normalize(torch.randn(1, d, generator=seeded(), dtype=torch.float64), dim=1).expand(n, d)
    return VonMisesFisher.of(mu, torch.full((n, 1), kappa, dtype=torch.float64))


@pytest.mark.parametrize("d", [2, 3, 5, 20])
@pytest.mark.parametrize("kappa", [0.01, 1.0, 30.0, 3000.0])
def test_the_kl_to_uniform_is_the_closed_form_in_bessel_functions(d, kappa):
    a = special.ive(d / 2, kappa) / special.ive(d / 2 - 1, kappa)
    log_bessel = math.log(special.ive(d / 2 - 1, kappa)) + kappa
    log_c = (d / 2 - 1) * math.log(kappa) - d / 2 * math.log(2 * math.pi) - log_bessel
    area = math.log(2) + d / 2 * math.log(math.pi) - special.gammaln(d / 2)
    assert float(posterior(d, kappa).joint_kl()) == pytest.approx(kappa * a + log_c + area, abs=2e-6)


@pytest.mark.parametrize(("d", "kappa"), [(2, 3.0), (3, 0.5), (3, 40.0), (6, 8.0)])
def test_draws_have_the_laws_cosines_and_no_side(d, kappa):
    n = 4000
    q = posterior(d, kappa, n)
    z = q.rsample(torch.randn(n, d, generator=seeded(1), dtype=torch.float64))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n, dtype=torch.float64))

    def density(t):
        return math.sin(t) ** (d - 2) * math.exp(kappa * (math.cos(t) - 1))

    total = integrate.quad(density, 0, math.pi)[0]
    grid = np.linspace(0, math.pi, 400)
    below = np.array([integrate.quad(density, 0, t)[0] / total for t in grid])
    angles = torch.arccos((z * q.mu).sum(1).clamp(-1, 1)).numpy()
    assert stats.kstest(angles, lambda t: np.interp(t, grid, below)).pvalue > 0.01
    across = z - (z * q.mu).sum(1, keepdim=True) * q.mu
    assert float(F.normalize(across, dim=1).mean(0).norm()) < 4 / math.sqrt(n)


def test_without_noise_the_draw_is_mu_and_little_noise_moves_it_as_a_gaussian_would():
    q = posterior(4, 1e6)
    eps = torch.randn(1, 4, generator=seeded(1), dtype=torch.float64)
    assert torch.equal(q.rsample(torch.zeros_like(eps)), q.mu)
    across = eps - (eps * q.mu).sum(1, keepdim=True) * q.mu
    torch.testing.assert_close(q.rsample(eps), q.mu + across / 1e3, atol=1e-5, rtol=0)
    assert float((q.rsample(-eps) - q.mu + across / 1e3).abs().max()) < 1e-5


def test_gradients_are_those_of_differences_and_finite_without_noise():
    raw = torch.randn(2, 4, generator=seeded(), dtype=torch.float64, requires_grad=True)
    kappa = torch.tensor([[5.0], [80.0]], dtype=torch.float64, requires_grad=True)
    eps = torch.randn(2, 4, generator=seeded(1), dtype=torch.float64)

    def draw(raw, kappa, eps=eps):
        return VonMisesFisher.of(F.normalize(raw, dim=1), kappa).rsample(eps)

    # Quantiles come from a table, flat between its nodes to 1e-4
    assert torch.autograd.gradcheck(draw, (raw, kappa), atol=1e-4, rtol=1e-3)
    slopes = torch.autograd.grad(draw(raw, kappa, torch.zeros_like(eps)).square().sum(1)[0] + kappa.sum(), (raw, kappa))
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)


def test_it_is_read_by_names_and_from_the_papers_distribution():
    mu = F.normalize(torch.randn(3, 4, generator=seeded()), dim=1)
    kappa = torch.tensor([[1.0], [7.0], [300.0]])

    class Distribution(torch.distributions.Distribution):
        loc, scale = mu, kappa

    Distribution.__name__ = "VonMisesFisher"
    for stated in (
        {"mu": mu, "kappa": kappa},
        {"loc": mu, "concentration": kappa[:, 0]},
        Distribution(validate_args=False),
    ):
        q = read_posterior(stated)
        assert isinstance(q, VonMisesFisher)
        assert torch.equal(q.mu, mu)
        torch.testing.assert_close(q.kappa, kappa[:, 0])
        assert q.logvar.shape == mu.shape


@pytest.mark.parametrize(
    ("mu", "kappa"),
    [
        (torch.full((3, 4), 1.0), torch.ones(3, 1)),
        (torch.eye(3)[:, :1], torch.ones(3, 1)),
        (torch.eye(3), torch.ones(3, 3)),
        (torch.eye(3)[..., None], torch.ones(3, 1)),
    ],
)
def test_what_is_no_direction_with_one_concentration_is_refused(mu, kappa):
    with pytest.raises(nv.AdapterError, match=r"encoder of mine.*unit vectors.*one kappa an example"):
        read_posterior({"mu": mu, "kappa": kappa}, where="encoder of mine")


# ---------------------------------------------------------------------- through a wrapped model
class Sphere(nn.Module):
    """10 numbers, a direction in 4 dimensions."""

    def __init__(self):
        super().__init__()
        self.body, self.direction, self.spread = nn.Linear(10, 8), nn.Linear(8, 4), nn.Linear(8, 1)
        self.grow, self.out = nn.Linear(4, 8), nn.Linear(8, 10)

    def encode(self, x):
        h = torch.tanh(self.body(x))
        return {"mu": F.normalize(self.direction(h), dim=1), "kappa": 5 + F.softplus(self.spread(h))}

    def decode(self, z):
        return self.out(torch.tanh(self.grow(z)))


@pytest.fixture
def model():
    return seeded_weights(Sphere())


@pytest.fixture
def x():
    return torch.randn(6, 10, generator=seeded(2))


def test_a_model_on_the_sphere_conforms_and_shares_noise(model, x):
    vae = nv.VAE(model)
    conforms(vae, x)
    assert vae.verify(x) == 0.0
    assert vae.law is VonMisesFisher
    eps = torch.randn(6, 4, generator=seeded(3))
    z = vae.encode(x).rsample(eps)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(vae(x, eps=eps), model.decode(z))
    with torch.no_grad(), vae.trace(x, eps=eps):
        served = vae.latent.z.output.save()
    torch.testing.assert_close(served, z)
    out = nv.intervene(vae, x, {"latent.z[1]": nv.Set(2.0)}, eps=eps)  # off the sphere, as it stands
    moved = z.detach().clone()
    moved[:, 1] = 2.0
    torch.testing.assert_close(out.reconstruction, model.decode(moved))
    assert float(out.z.norm(dim=1).min()) > 2.0


def test_a_decoder_that_returns_to_the_sphere_turns_the_vector(model, x):
    vae = nv.adapt(model, encoder=model.encode, decoder=lambda z: model.decode(F.normalize(z, dim=1)))
    assert vae.verify(x) < 1e-5
    out = nv.intervene(vae, x, {"latent.z[1]": nv.Set(2.0)})
    torch.testing.assert_close(out.reconstruction, model.decode(F.normalize(out.z, dim=1)))


def test_whole_vectors_patched_under_noise_carry_the_total_effect(model, x):
    vae = nv.VAE(model)
    pairs = nv.Pairs(x, x.roll(1, 0), eps=torch.randn(6, 4, generator=seeded(3)))
    for key in ("latent.z", "latent.mu"):
        patched = nv.patch_activations(vae, pairs, [key], readout=nv.readouts.Pixels((10,)), per="site")
        swapped = nv.intervene(vae, pairs.base, {key: nv.Swap(pairs.source)}, eps=pairs.eps).reconstruction
        expected = (swapped - vae(pairs.base, eps=pairs.eps)).detach().numpy().T
        np.testing.assert_allclose(patched.parts["noising"].values[0], expected, atol=1e-5)


def test_a_kl_per_latent_is_refused_by_name_and_the_whole_given(model, x):
    vae = nv.VAE(model)
    with pytest.raises(nv.PriorError, match=r"joint_kl\(\)"):
        vae.encode(x).kl()
    with pytest.raises(nv.PriorError, match="no KL per latent"):
        nv.metrics.activity(vae, x)
    nats = vae.encode(x).joint_kl()
    assert nats.shape == (6,)
    assert bool((nats > 0).all())
