"""The Gaussian posterior: its formulas against torch.distributions, and what cannot be read as one."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Laplace, LogNormal, Normal, kl_divergence

import nnsight_vae as nv
from nnsight_vae.posterior import read_posterior


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
