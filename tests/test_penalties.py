"""The terms of the disentangling VAEs against loops written from the papers, closed forms of Gaussians, and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nnsight_vae.errors import DataError
from nnsight_vae.models.adversary import Adversary, Discriminator
from nnsight_vae.models.penalties import (
    density_ratio,
    dip_terms,
    discriminator_loss,
    kl_decomposition,
    permute_latents,
)


def posteriors(n: int, latents: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, mu and logvar, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    mu, logvar, eps = torch.randn(3, n, latents, dtype=torch.float64, generator=generator)
    return mu + torch.exp(0.5 * logvar) * eps, mu, logvar


def correlated(n: int, seed: int = 0) -> tuple[torch.Tensor, float]:
    """Samples of a Gaussian of two latents with correlation 0.8, and its total correlation, -log(1 - 0.8^2) / 2."""
    one, two = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack([one, 0.8 * one + 0.6 * two], 1), -0.5 * math.log(1 - 0.64)


# ---------------------------------------------------------------- minibatch-weighted sampling


def decomposition_by_loops(z, mu, logvar, images: int) -> tuple[float, float, float]:
    """Chen et al. 2018, appendix C.1, one density at a time."""

    def density(value, mean, log_variance):
        variance = math.exp(log_variance)
        return math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    m, latents = z.shape
    z, mu, logvar = (tensor.tolist() for tensor in (z, mu, logvar))
    information = correlation = dimension_wise = 0.0
    for i in range(m):
        joint = 0.0
        marginals = [0.0] * latents
        for j in range(m):
            each = [density(z[i][k], mu[j][k], logvar[j][k]) for k in range(latents)]
            joint += math.prod(each) / (images * m)
            for k in range(latents):
                marginals[k] += each[k] / (images * m)
        own = math.prod(density(z[i][k], mu[i][k], logvar[i][k]) for k in range(latents))
        prior = math.prod(density(z[i][k], 0.0, 0.0) for k in range(latents))
        information += math.log(own / joint) / m
        correlation += math.log(joint / math.prod(marginals)) / m
        dimension_wise += math.log(math.prod(marginals) / prior) / m
    return information, correlation, dimension_wise


@pytest.mark.parametrize(("n", "latents", "images"), [(7, 3, 100), (1, 2, 1), (4, 1, 9)])
def test_the_parts_of_the_kl_equal_loops_over_densities(n, latents, images):
    sample = posteriors(n, latents)
    found = kl_decomposition(*sample, images)
    assert tuple(map(float, found)) == pytest.approx(decomposition_by_loops(*sample, images), rel=1e-9, abs=1e-12)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 10**6), st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_parts_sum_to_the_sampled_kl_and_depend_on_no_order(n, latents, images, seed):
    z, mu, logvar = posteriors(n, latents, seed)
    found = kl_decomposition(z, mu, logvar, images)
    posterior = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(sum(found), (posterior - prior).mean())
    shuffled = kl_decomposition(z.flip(0, 1), mu.flip(0, 1), logvar.flip(0, 1), images)
    torch.testing.assert_close(torch.stack(shuffled), torch.stack(found))


def test_the_size_of_the_training_set_moves_values_by_constants_and_gradients_not_at_all():
    gradients, values = [], []
    for images in (10, 10_000):
        leaves = [tensor.clone().requires_grad_() for tensor in posteriors(6, 3)]
        found = kl_decomposition(*leaves, images)
        gradients.append(torch.autograd.grad(found.total_correlation, leaves))
        values.append(torch.stack(found).detach())
    for one, two in zip(*gradients, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, two)
    offset = math.log(1000) * torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(values[1] - values[0], offset)


def test_of_posteriors_all_alike_the_total_correlation_is_all_bias():
    z, *_ = posteriors(6, 4)
    same = torch.zeros_like(z)
    assert float(kl_decomposition(z, same, same, 50).total_correlation) == pytest.approx(3 * math.log(50))


def test_of_a_gaussian_aggregate_the_total_correlation_is_the_closed_form_and_the_known_offset():
    mean, _ = correlated(1500)
    logvar = torch.full_like(mean, math.log(0.25))
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = kl_decomposition(mean + 0.5 * eps, mean, logvar, images=1500).total_correlation
    covariance = np.array([[1.25, 0.8], [0.8, 1.25]])
    exact = 0.5 * (2 * math.log(1.25) - math.log(np.linalg.det(covariance)))
    assert float(found) - math.log(1500) == pytest.approx(exact, abs=0.03)
    assert exact > 0.2


# ---------------------------------------------------------------- DIP-VAE-II


def test_the_dip_terms_equal_the_covariance_by_loops():
    _, mu, logvar = posteriors(9, 4)
    n, latents = mu.shape
    off = diagonal = 0.0
    for i in range(latents):
        for j in range(latents):
            mean_i, mean_j = mu[:, i].sum() / n, mu[:, j].sum() / n
            entry = sum((mu[a, i] - mean_i) * (mu[a, j] - mean_j) for a in range(n)) / n
            if i == j:
                diagonal += float(entry + sum(math.exp(logvar[a, i]) for a in range(n)) / n - 1) ** 2
            else:
                off += float(entry) ** 2
    found = dip_terms(mu, logvar)
    assert (float(found.off_diagonal), float(found.diagonal)) == pytest.approx((off, diagonal), rel=1e-10)


def test_the_dip_terms_are_of_the_covariance_of_latents_over_images_and_noise():
    _, mu, logvar = posteriors(5, 3)
    eps = torch.randn(100_000, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = (mu + torch.exp(logvar / 2) * eps).flatten(0, 1)
    covariance = np.cov(z.numpy().T, bias=True)
    off = (covariance**2).sum() - (covariance.diagonal() ** 2).sum()
    found = dip_terms(mu, logvar)
    assert float(found.off_diagonal) == pytest.approx(off, rel=0.02)
    assert float(found.diagonal) == pytest.approx(((covariance.diagonal() - 1) ** 2).sum(), rel=0.02)


def test_the_spread_of_posteriors_is_on_the_diagonal_alone():
    """In two libraries it is elsewhere too, so that a wider posterior would seem to be a more correlated one."""
    _, mu, logvar = posteriors(8, 3)
    narrow, wide = dip_terms(mu, logvar), dip_terms(mu, logvar + 1)
    assert float(narrow.off_diagonal) == float(wide.off_diagonal)
    assert float(narrow.diagonal) != float(wide.diagonal)
    leaves = [tensor.clone().requires_grad_() for tensor in (mu, logvar)]
    off, diagonal = dip_terms(*leaves)
    assert torch.autograd.grad(off, leaves, retain_graph=True, allow_unused=True)[1].abs().max() == 0
    assert min(g.abs().max() for g in torch.autograd.grad(diagonal, leaves)) > 1e-3


# ---------------------------------------------------------------- FactorVAE


def test_the_terms_of_the_discriminator_equal_logarithms_of_probabilities_by_hand():
    joint, permuted = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([-0.5, 0.7])
    d = [1 / (1 + math.exp(-logit)) for logit in joint.tolist()]
    d_permuted = [1 / (1 + math.exp(-logit)) for logit in permuted.tolist()]
    loss = -(sum(map(math.log, d)) / 3 + sum(math.log(1 - p) for p in d_permuted) / 2) / 2
    assert float(discriminator_loss(joint, permuted)) == pytest.approx(loss, rel=1e-6)
    assert float(density_ratio(joint)) == pytest.approx(sum(math.log(p / (1 - p)) for p in d) / 3, rel=1e-6)
    assert math.isfinite(float(discriminator_loss(torch.tensor([-1e4]), torch.tensor([1e4]))))


def test_of_the_best_discriminator_the_density_ratio_is_the_total_correlation():
    z, exact = correlated(20_000)
    joint = torch.distributions.MultivariateNormal(z.new_zeros(2), z.new_tensor([[1.0, 0.8], [0.8, 1.0]])).log_prob(z)
    marginals = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    assert float(density_ratio(joint - marginals)) == pytest.approx(exact, abs=0.02)


def test_permuted_latents_keep_each_latents_values_and_lose_what_ties_them():
    z, _ = correlated(2000)
    before = torch.get_rng_state()
    permuted = permute_latents(z, torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)
    assert not torch.equal(permuted[:, 0], z[:, 0])
    assert not torch.equal(permuted[:, 1], z[:, 1])
    assert abs(torch.corrcoef(permuted.T)[0, 1]) < 0.1 < abs(torch.corrcoef(z.T)[0, 1])
    assert torch.equal(permuted, permute_latents(z, torch.Generator().manual_seed(3)))
    assert not torch.equal(permuted, permute_latents(z, torch.Generator().manual_seed(4)))


def adversary(lr: float = 0.01) -> Adversary:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Adversary.of(Discriminator(2, (16, 16)), lr)


def test_the_discriminator_is_layers_of_leaky_relus_and_one_logit():
    module, z = Discriminator(2, (4, 3)), correlated(5)[0].float()
    (a, b), (c, d), (e, f) = ((layer.weight, layer.bias) for layer in module if isinstance(layer, torch.nn.Linear))
    assert (a.shape, c.shape, e.shape) == ((4, 2), (3, 4), (1, 3))
    h = z @ a.T + b
    assert (h < 0).any()
    h = torch.where(h > 0, h, 0.2 * h) @ c.T + d
    torch.testing.assert_close(module(z), (torch.where(h > 0, h, 0.2 * h) @ e.T + f)[:, 0])


def test_a_step_of_the_discriminator_is_adams_on_its_loss_alone():
    z, others = correlated(40)[0].float().requires_grad_(), correlated(30, seed=1)[0].float().requires_grad_()
    ours, twin = adversary(), adversary()
    density_ratio(ours.module(z)).backward()  # what a step of the VAE leaves behind, to be forgotten
    left = z.grad.clone()
    loss = ours.update(z, others, torch.Generator().manual_seed(5))
    assert torch.equal(z.grad, left)
    assert others.grad is None
    permuted = permute_latents(others.detach(), torch.Generator().manual_seed(5))
    target = torch.cat([torch.ones(40), torch.zeros(30)])
    weight = torch.cat([torch.full((40,), 0.5 / 40), torch.full((30,), 0.5 / 30)])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        twin.module(torch.cat([z.detach(), permuted])), target, weight, reduction="sum"
    )
    torch.testing.assert_close(loss, expected.detach())
    adam = torch.optim.Adam(twin.module.parameters(), lr=0.01, betas=(0.5, 0.9))
    expected.backward()
    adam.step()
    for one, two in zip(ours.module.parameters(), twin.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_trained_discriminator_tells_the_total_correlation():
    found, generator = adversary(), torch.Generator().manual_seed(6)
    for step in range(400):
        found.update(correlated(128, 2 * step)[0].float(), correlated(128, 2 * step + 1)[0].float(), generator)
    z, exact = correlated(5000, seed=999_999)
    with torch.no_grad():
        assert float(density_ratio(found.module(z.float()))) == pytest.approx(exact, abs=0.12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_decomposition(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3), 5), "must be equal"),
        (lambda: kl_decomposition(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), 0), "images=0"),
        (lambda: dip_terms(torch.zeros(2, 3), torch.zeros(2, 1)), "must be equal"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
