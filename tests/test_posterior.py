"""Posteriors: their formulas against torch.distributions, the forms they come in, and what cannot be read as one."""

from __future__ import annotations

import warnings

import pytest
import torch
from matrix import conforms
from torch.distributions import Independent, Laplace, LogNormal, Normal, kl_divergence
from torch.nn import functional as F
from vaes import seeded

import nnsight_vae as nv
from nnsight_vae.posterior import Laplace as LaplacePosterior, read_posterior


@pytest.fixture
def posterior():
    generator = torch.Generator().manual_seed(0)
    return nv.Posterior(torch.randn(5, 3, 2, 2, generator=generator), torch.randn(5, 3, 2, 2, generator=generator))


def test_kl_is_that_of_torch(posterior):
    prior = Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(posterior.kl(), kl_divergence(Normal(posterior.mu, posterior.sd), prior))


def test_samples_have_the_posteriors_moments():
    posterior = nv.Posterior(torch.tensor([[1.0, -2.0]]), torch.log(torch.tensor([[0.25, 4.0]])))
    eps = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    z = posterior.rsample(eps)
    torch.testing.assert_close(z.mean(0), posterior.mu[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.std(0), posterior.sd[0], atol=0.03, rtol=0)
    assert torch.equal(posterior.rsample(torch.zeros(1, 2)), posterior.mu)


def test_it_unpacks_and_passes_through(posterior):
    mu, logvar = posterior
    assert mu is posterior.mu
    assert logvar is posterior.logvar
    assert read_posterior(posterior) is posterior


def test_a_packed_tensor_is_mu_then_logvar_along_axis_1():
    packed = torch.arange(24.0).view(2, 6, 2)
    mu, logvar = read_posterior(packed, packed=True)
    assert torch.equal(mu, packed[:, :3])
    assert torch.equal(logvar, packed[:, 3:])


def test_an_interleaved_tensor_alternates_mu_and_logvar_along_axis_1():
    """As Burgess et al.'s and Dubois et al.'s encoders: view(n, d, 2).unbind(-1)."""
    packed = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    mu, logvar = read_posterior(packed, packed="interleaved")
    expected = packed.view(2, 3, 2).unbind(-1)
    assert torch.equal(mu, expected[0])
    assert torch.equal(logvar, expected[1])
    spatial = torch.arange(24.0).view(2, 6, 2)
    assert torch.equal(read_posterior(spatial, packed="interleaved").logvar, spatial[:, [1, 3, 5]])


class Heads(torch.nn.Module):
    """10 numbers, 3 latents; `say` gives encode its form."""

    def __init__(self, say):
        super().__init__()
        self.heads, self.out, self.say = torch.nn.Linear(10, 6), torch.nn.Linear(3, 10), say

    def halves(self, x):
        return self.heads(x).chunk(2, 1)

    def encode(self, x):
        return self.say(self.heads(x))

    def decode(self, z):
        return torch.tanh(self.out(z))


def scaled(raw):
    mu, scale = raw.chunk(2, 1)
    return {"mu": mu, "scale": F.softplus(scale) + 1e-3}


KEPT = {
    "softplus scales by name": (scaled, False, nv.Posterior, lambda raw: 2 * (F.softplus(raw[:, 3:]) + 1e-3).log()),
    "interleaved": (lambda raw: raw, "interleaved", nv.Posterior, lambda raw: raw[:, 1::2]),
    "side by side": (lambda raw: raw, True, nv.Posterior, lambda raw: raw[:, 3:]),
    "Laplace": (
        lambda raw: Laplace(raw[:, :3], raw[:, 3:].exp()),
        False,
        LaplacePosterior,
        lambda raw: 2 * raw[:, 3:] + torch.log(torch.tensor(2.0)),
    ),
}


@pytest.mark.parametrize("form", KEPT)
def test_every_kind_of_posterior_goes_all_the_way(form):
    """Wrap, encode, sample, trace, patch, sweep, attribute, verify."""
    say, packed, law, logvar = KEPT[form]
    model = seeded(Heads(say))
    vae = nv.adapt(model, packed=packed)
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    assert vae.verify(x) == 0.0
    raw = model.heads(x)
    mu = raw[:, 0::2] if packed == "interleaved" else raw[:, :3]
    q = vae.encode(x)
    assert vae.law is law
    torch.testing.assert_close(q, law(mu, logvar(raw)))
    eps = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(vae(x, eps=eps), model.decode(law(mu, logvar(raw)).rsample(eps)))
    conforms(vae, x)


MADE = {
    "softplus": lambda raw: F.softplus(raw),
    "softplus and a floor": lambda raw: F.softplus(raw) + 1e-3,
    "exp, clamped": lambda raw: raw.exp().clamp(1e-3, 10.0),
    "exp of half": lambda raw: torch.exp(0.5 * raw),
}


@pytest.mark.parametrize("made", MADE)
def test_a_scale_by_position_is_warned_of_with_what_to_write(made):
    def say(raw):
        mu, spread = raw.chunk(2, 1)
        return mu, MADE[made](spread)

    model = seeded(Heads(say))
    model.requires_grad_(False)
    with pytest.warns(nv.NnsightVaeWarning, match=r'Heads.encode returned \(mu, s\).*"scale": s'):
        vae = nv.VAE(model)
    assert torch.equal(vae.encode(torch.ones(1, 10)).logvar, say(model.heads(torch.ones(1, 10)))[1])
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "made",
    [
        lambda raw: raw,
        lambda raw: raw.square(),
        lambda raw: torch.log(F.softplus(raw) + 1e-3),
        lambda raw: F.softplus(raw) - 6.0,
        lambda raw: -6.0 + F.softplus(raw + 6.0),
        lambda raw: -F.softplus(raw),
        lambda raw: raw.clamp(-30.0, 20.0),
        torch.zeros_like,
    ],
)
def test_a_log_variance_is_not_warned_of(made):
    def say(raw):
        mu, spread = raw.chunk(2, 1)
        return mu, made(spread)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nv.VAE(seeded(Heads(say)))


def test_a_scale_keeps_its_law():
    """A scale that underflows to 0 is a point: no noise gets through, and nothing is NaN."""
    scale = torch.tensor([[2.0, 0.0]])
    posterior = read_posterior(Normal(torch.ones(1, 2), scale, validate_args=False))
    torch.testing.assert_close(posterior.sd, scale)
    assert posterior.rsample(torch.ones(1, 2)).tolist() == [[3.0, 1.0]]


def test_a_laplace_posterior_is_drawn_by_its_own_quantiles_of_shared_normal_noise():
    law = Laplace(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]]))
    posterior = read_posterior(Independent(law, 1))
    assert type(posterior).__name__ == "Laplace"
    eps = torch.tensor([[-6.0, -1.0], [0.0, 0.0], [0.3, 4.0]])
    quantiles = Normal(0.0, 1.0).cdf(eps.double())
    expected = Laplace(law.loc.double(), law.scale.double()).icdf(quantiles).float()
    torch.testing.assert_close(posterior.rsample(eps), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(posterior.rsample(eps)[1:2], posterior.mu)
    torch.testing.assert_close(posterior.sd, law.stddev)
    torch.testing.assert_close(posterior.kl(), kl_divergence(law, Laplace(torch.zeros(()), torch.ones(()))))


def test_a_wrapped_models_law_reaches_every_run_and_divergence():
    module = nv.models.MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,))

    def encode(x):
        mu, logvar = module.encode(x)
        return Laplace(mu, torch.exp(0.5 * logvar))

    vae = nv.adapt(module, encoder=encode, decoder=module.decode, example=torch.rand(2, 1, 4, 4))
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    z = vae.encode(x).rsample(eps)
    assert not torch.allclose(z, nv.Posterior(*vae.encode(x)).rsample(eps), atol=1e-3)
    torch.testing.assert_close(vae(x, eps=eps), module.decode(z))
    out = nv.intervene(vae, x, {"latent.mu[0]": nv.Add(1.0)}, eps=eps)  # runs from the posterior on
    torch.testing.assert_close(out.reconstruction, module.decode(z + torch.tensor([1.0, 0.0])))
    patched = nv.patch_activations(
        vae, nv.Pairs(x, x.roll(1, 0), eps=eps), ["latent.z"], readout=nv.readouts.Pixels((1, 4, 4)), per="site"
    )
    torch.testing.assert_close(
        torch.from_numpy(patched.parts["noising"].values[0].T).float(),
        (vae(x.roll(1, 0), eps=eps) - vae(x, eps=eps)).detach().flatten(1),
        atol=1e-6,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("value", "packed", "message"),
    [
        (torch.zeros(2, 6), False, r"packed=True"),
        (torch.zeros(2, 5), True, r"shape \(2, 5\).*even axis 1"),
        (torch.zeros(4), True, "even axis 1"),
        ((torch.zeros(2, 3), torch.zeros(2, 4)), False, "equal shape"),
        ((torch.zeros(2, 3),), False, "returned tuple"),
        ((torch.zeros(2, 3),) * 3, False, "which of them"),
        (LogNormal(0.0, 1.0), False, "LogNormal posterior"),
        (None, False, "returned NoneType"),
        ({"mean": torch.zeros(2, 3)}, False, "returned dict"),
    ],
)
def test_what_cannot_be_read_is_refused(value, packed, message):
    with pytest.raises(nv.AdapterError, match=f"encoder of mine.*{message}"):
        read_posterior(value, packed=packed, where="encoder of mine")
