"""The losses against torch.distributions, sums written by hand, and a model whose likelihood has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from nnsight_vae.errors import DataError
from nnsight_vae.models.families import OBJECTIVES
from nnsight_vae.models.labels import label_loss, standardise
from nnsight_vae.models.objectives import (
    Objective,
    gaussian_kl,
    reconstruction_loss,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_kl_of_every_latent_equals_torch_distributions(generator):
    mu, logvar = torch.randn(2, 7, 5, generator=generator)
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros(5), torch.ones(5)))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)


@pytest.mark.parametrize("likely", ["between", "at the ends"])
def test_bernoulli_nats_and_their_gradient_are_those_of_torch(generator, likely):
    p = torch.rand(3, 2, 4, 4, generator=generator)
    x = torch.rand(3, 2, 4, 4, generator=generator)
    if likely == "at the ends":  # where logarithms and the gradient's denominator are cut off
        p, x = (values.round() for values in (p, x))
    ours, theirs = (p.clone().requires_grad_() for _ in range(2))
    weights = torch.rand(3, generator=generator)
    got = reconstruction_loss(ours, x, "bernoulli")
    expected = F.binary_cross_entropy(theirs, x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(got, expected)
    (got @ weights).backward()
    (expected @ weights).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_bernoulli_loss_equals_the_sum_written_by_hand_and_torch_distributions(generator):
    x = (torch.rand(3, 2, 4, 4, generator=generator) > 0.5).float()
    r = torch.rand(3, 2, 4, 4, generator=generator) * 0.9 + 0.05
    by_hand = [
        -sum(math.log(p) if bit else math.log1p(-p) for p, bit in zip(ri.flatten().tolist(), xi.flatten(), strict=True))
        for ri, xi in zip(r, x, strict=True)
    ]
    got = reconstruction_loss(r, x, "bernoulli")
    torch.testing.assert_close(got, torch.tensor(by_hand), rtol=1e-5, atol=0)
    torch.testing.assert_close(got, -Independent(Bernoulli(probs=r), 3).log_prob(x))


def test_the_gaussian_loss_is_the_negative_log_density_constant_included(generator):
    x, r = torch.rand(2, 3, 2, 4, 4, generator=generator)
    expected = -Independent(Normal(r, 0.3), 3).log_prob(x)
    torch.testing.assert_close(reconstruction_loss(r, x, "gaussian", sd=0.3), expected)


def test_losses_sum_over_pixels_and_latents_and_average_over_images(generator):
    x, r = torch.rand(2, 6, 1, 4, 4, generator=generator)
    mu, logvar = torch.randn(2, 6, 3, generator=generator)
    losses = Objective(beta=4.0).losses(r, x, mu, logvar)
    torch.testing.assert_close(losses.reconstruction, reconstruction_loss(r, x).sum() / 6)
    torch.testing.assert_close(losses.kl, gaussian_kl(mu, logvar).sum() / 6)
    torch.testing.assert_close(losses.total, losses.reconstruction + 4 * losses.kl)


def test_at_the_exact_posterior_of_a_linear_gaussian_model_the_loss_is_minus_the_log_evidence(generator):
    """x = W z + b + sd e: one latent, so the true posterior is diagonal and the ELBO is tight."""
    sd, n = 0.5, 3
    w, b = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    x = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    precision = 1 + w @ w / sd**2
    mean = (x - b) @ w / sd**2 / precision

    # E_q of the Gaussian log likelihood, exactly: two nodes of Gauss-Hermite suffice for a quadratic.
    nodes = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    z = mean[:, None] + nodes / precision.sqrt()
    r = z[..., None] * w + b
    objective = Objective(likelihood="gaussian", sd=sd)
    mu, logvar = mean[:, None], (-precision.log()).expand(n, 1)
    loss = sum(objective.losses(r[:, k].view(n, 1, 2, 2), x.view(n, 1, 2, 2), mu, logvar).total for k in range(2)) / 2

    evidence = MultivariateNormal(b, torch.outer(w, w) + sd**2 * torch.eye(4, dtype=torch.float64)).log_prob(x)
    torch.testing.assert_close(loss, -evidence.mean())


def test_beta_4_at_sd_01_has_the_gradient_directions_of_beta_1_at_sd_02(generator):
    x, r = torch.rand(2, 6, 1, 4, 4, generator=generator)
    mu, logvar = torch.randn(2, 6, 3, generator=generator)
    gradients = []
    for objective in (OBJECTIVES["beta-vae"], Objective(likelihood="gaussian", sd=0.2)):
        leaves = [tensor.clone().requires_grad_() for tensor in (r, mu, logvar)]
        objective.losses(leaves[0], x, *leaves[1:]).total.backward()
        gradients.append(torch.cat([leaf.grad.flatten() for leaf in leaves]))
    torch.testing.assert_close(gradients[0], 4 * gradients[1])


def test_the_label_loss_ties_only_the_first_latents(generator):
    mu = torch.randn(5, 8, generator=generator)
    targets = torch.randn(5, 2, generator=generator)
    by_hand = sum(float((mu[i, k] - targets[i, k]) ** 2) for i in range(5) for k in range(2)) / 5
    assert float(label_loss(mu, targets)) == pytest.approx(by_hand, rel=1e-6)
    untied = mu.clone()
    untied[:, 2:] = 100.0
    assert torch.equal(label_loss(untied, targets), label_loss(mu, targets))


def test_standardise_undoes_scale_and_offset(generator):
    factors = torch.randn(200, 3, generator=generator) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([0.0, 5.0, -1.0])
    z, mean, sd = standardise(factors)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.square().mean(0), torch.ones(3))
    torch.testing.assert_close(z * sd + mean, factors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Objective(beta=-1.0), "beta=-1.0"),
        (lambda: Objective(beta=float("nan")), "beta=nan"),
        (lambda: Objective(label_weight=float("inf")), "label_weight=inf"),
        (lambda: Objective(sd=0.0), "sd=0.0"),
        (lambda: Objective(likelihood="poisson"), "bernoulli, gaussian"),
        (lambda: reconstruction_loss(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5)), "must be equal"),
        (lambda: reconstruction_loss(torch.rand(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.uint8)), "by 255"),
        (lambda: label_loss(torch.zeros(4, 2), torch.zeros(4, 3)), "no more factors than latents"),
        (lambda: label_loss(torch.zeros(4, 2), torch.zeros(3, 2)), "as many rows"),
        (lambda: standardise(torch.tensor([[1.0, 0.0], [1.0, 2.0]])), r"columns \[0\] are constant"),
        (lambda: standardise(torch.tensor([[1.0], [float("nan")]])), "NaN"),
        (lambda: standardise(torch.ones(1, 3)), "at least 2 images"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(call, message):
    with pytest.raises(DataError, match=message):
        call()
