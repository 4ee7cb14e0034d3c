"""What a larger beta does: the KL falls, and latents collapse one by one, for a linear VAE where theory says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nnsight_vae.models import Objective, train
from nnsight_vae.models.checkpoints import Run
from nnsight_vae.models.networks import GaussianVAE
from nnsight_vae.models.objectives import gaussian_kl

VARIANCES = (1.0, 0.4, 0.1)  # of three independent pixels
SD = 0.3


def pixels(n: int = 1024) -> torch.Tensor:
    """Images of three pixels with exactly the covariance diag(VARIANCES)."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T
    return (white * torch.tensor(VARIANCES, dtype=torch.float64).sqrt()).float().view(n, 1, 1, 3)


def linear_vae(beta: float, steps: int) -> torch.Tensor:
    """KL of each latent, largest first, of a linear VAE trained to the optimum of `Objective`."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Identity())
    decoder = nn.Sequential(nn.Linear(3, 3), nn.Unflatten(1, (1, 1, 3)))
    module = GaussianVAE(encoder, decoder, hidden=3, latent=3)
    adam = torch.optim.Adam(module.parameters(), lr=0.02)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    objective, x = Objective(beta=beta, likelihood="gaussian", sd=SD), pixels()
    run = Run(module, adam, torch.Generator().manual_seed(1), objective.columns)
    for _ in range(steps):
        losses, _ = objective.minibatch(run, x, len(x))
        adam.zero_grad()
        losses["loss"].backward()
        adam.step()
        rate.step()
    with torch.no_grad():
        return gaussian_kl(*module.encode(x)).mean(0).sort(descending=True).values


@pytest.mark.parametrize(("beta", "steps"), [(0.5, 2000), (2.0, 700), (6.0, 700), (15.0, 700)])
def test_a_latent_of_a_linear_vae_carries_a_direction_of_more_than_beta_times_the_noise_and_no_other(beta, steps):
    """At the optimum the KL of direction k is ``max(0, log(variance_k / (beta sd^2)) / 2)``.

    Probabilistic PCA (Tipping and Bishop 1999, eq. 15) with the noise beta sd^2; of VAEs, Lucas et al. 2019 (arXiv 1911.02469).
    """
    expected = [max(0.0, 0.5 * np.log(variance / (beta * SD**2))) for variance in VARIANCES]
    assert sum(kl > 0 for kl in expected) == {0.5: 3, 2.0: 2, 6.0: 1, 15.0: 0}[beta]
    np.testing.assert_allclose(linear_vae(beta, steps).numpy(), expected, rtol=0.05, atol=0.02)


def test_in_the_training_loop_a_larger_beta_leaves_fewer_nats_and_latents():
    images = torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.rand(256, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    images[:, 0, :4], images[:, 0, 4:6], images[:, 0, 6:] = rows[:, 0], rows[:, 1], rows[:, 2]
    nats, active = [], []
    for beta in (1.0, 10.0, 100.0, 1000.0):
        trained = train(
            images,
            objective=Objective(beta=beta, likelihood="gaussian", sd=0.1),
            architecture="MLPVAE",
            arguments={"latent": 4, "hidden": (32,)},
            steps=500,
            lr=5e-3,
            progress=False,
        )
        with torch.no_grad():
            kl = gaussian_kl(*trained.module.encode(images)).mean(0)
        nats.append(float(kl.sum()))
        active.append(int((kl > 0.1).sum()))
    assert all(after < 0.8 * before for before, after in itertools.pairwise(nats)), nats
    assert active == sorted(active, reverse=True)
    assert active[0] >= 3
    assert active[-1] == 0
