"""The Gaussian posterior: its formulas against torch.distributions, and what cannot be read as one."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import LogNormal, Normal, kl_divergence

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
