"""What the families of disentangling VAEs add to the ELBO, as functions of one minibatch of latents, in nats per image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import DataError


class KLDecomposition(NamedTuple):
    """The three parts of ``E_x KL(q(z|x) || p(z))``, estimated from a minibatch, in nats per image.

    Attributes:
        mutual_information: of image and latents, ``KL(q(z, x) || q(z) p(x))``.
        total_correlation: of the latents with each other, ``KL(q(z) || prod_k q(z_k))``.
        dimension_wise: ``sum_k KL(q(z_k) || p(z_k))``.
    """

    mutual_information: Float[Tensor, ""]
    total_correlation: Float[Tensor, ""]
    dimension_wise: Float[Tensor, ""]


def kl_decomposition(
    z: Float[Tensor, "n latent"], mu: Float[Tensor, "n latent"], logvar: Float[Tensor, "n latent"], images: int
) -> KLDecomposition:
    """Split the KL into mutual information, total correlation and dimension-wise KL by minibatch-weighted sampling.

    With M latents ``z_i ~ q(z|x_i)`` and N training images, ``log q(z_i) ~ log (1 / (N M)) sum_j q(z_i|x_j)``, and the same
    for one latent alone. The parts sum to ``mean_i [log q(z_i|x_i) - log p(z_i)]`` whatever N.

    The estimator is biased: each ``log q`` is a lower bound in expectation, and of `k` latents whose posteriors are all
    alike the total correlation, 0, comes out as ``(k - 1) log N``. N moves the values by constants only, so gradients do
    not depend on it.

    Args:
        z: one sample of the posterior of each image.
        mu: posterior means.
        logvar: logarithms of the posterior variances.
        images: N, size of the training set.

    Raises:
        DataError: if shapes differ, or `images` is smaller than 1.

    Source: Chen et al. 2018 (arXiv 1802.04942), eq. 2, and appendix C.1 for the estimator.

    Example:
        >>> one = torch.zeros(1, 2)
        >>> [round(float(part), 4) for part in kl_decomposition(one, one, one, images=1)]   # q(z) is q(z|x) is p(z)
        [0.0, 0.0, 0.0]
    """
    if not z.shape == mu.shape == logvar.shape:
        raise DataError(
            f"z, mu and logvar are {tuple(z.shape)}, {tuple(mu.shape)} and {tuple(logvar.shape)}: must be equal."
        )
    if images < 1:
        raise DataError(f"images={images}, expected the size of the training set, >= 1.")
    density = _log_normal(z[:, None], mu[None], logvar[None])  # [i, j, k]: log q(z_ik | x_j)
    weight = math.log(images * len(z))
    log_joint = density.sum(2).logsumexp(1) - weight
    log_marginals = (density.logsumexp(1) - weight).sum(1)
    log_posterior = _log_normal(z, mu, logvar).sum(1)
    log_prior = _log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
    return KLDecomposition(
        (log_posterior - log_joint).mean(), (log_joint - log_marginals).mean(), (log_marginals - log_prior).mean()
    )


class DIPTerms(NamedTuple):
    """How far the covariance of the aggregate posterior is from the identity.

    Attributes:
        off_diagonal: ``sum_{i != j} C_ij^2``.
        diagonal: ``sum_i (C_ii - 1)^2``.
    """

    off_diagonal: Float[Tensor, ""]
    diagonal: Float[Tensor, ""]


def dip_terms(mu: Float[Tensor, "n latent"], logvar: Float[Tensor, "n latent"]) -> DIPTerms:
    """The two terms of DIP-VAE-II, of the covariance of z over images and noise.

    ``C = Cov_x[mu(x)] + E_x[diag(exp(logvar(x)))]``, by the law of total covariance, with 1/n in the covariance.

    Args:
        mu: posterior means.
        logvar: logarithms of the posterior variances.

    Raises:
        DataError: if shapes differ.

    Source: Kumar et al. 2018 (arXiv 1711.00848), eqs. 5 and 7. Of the libraries in use, disent adds one number to every
    entry of C, and PyTorch-VAE squares the variances and centres over latents; disentanglement_lib agrees with this.

    Example:
        >>> [float(term) for term in dip_terms(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.zeros(2, 2))]   # C = [2 1; 1 2]
        [2.0, 2.0]
    """
    if mu.shape != logvar.shape:
        raise DataError(f"mu is {tuple(mu.shape)}, logvar is {tuple(logvar.shape)}: must be equal.")
    centred = mu - mu.mean(0)
    covariance = centred.T @ centred / len(mu) + torch.diag(logvar.exp().mean(0))
    variances = covariance.diagonal()
    return DIPTerms((covariance - torch.diag(variances)).square().sum(), (variances - 1).square().sum())


def permute_latents(z: Float[Tensor, "n latent"], generator: torch.Generator) -> Float[Tensor, "n latent"]:
    """Each latent shuffled over the batch on its own: samples of about ``prod_k q(z_k)`` from samples of q(z).

    Source: Kim and Mnih 2018 (arXiv 1802.05983), algorithm 1.

    Example:
        >>> z = torch.arange(6.0).view(3, 2)
        >>> permute_latents(z, torch.Generator().manual_seed(0)).sum(0)
        tensor([6., 9.])
    """
    n, latents = z.shape
    rows = torch.stack([torch.randperm(n, generator=generator) for _ in range(latents)], 1)
    return z.gather(0, rows.to(z.device))


def density_ratio(logits: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Total correlation by a discriminator D of q(z) from ``prod_k q(z_k)``: ``E_q(z)[log D(z) / (1 - D(z))]``.

    Args:
        logits: ``log D(z) / (1 - D(z))`` of samples of q(z).

    Source: Kim and Mnih 2018 (arXiv 1802.05983), eq. 3.

    Example:
        >>> float(density_ratio(torch.tensor([1.0, 2.0])))
        1.5
    """
    return logits.mean()


def discriminator_loss(joint: Float[Tensor, " n"], permuted: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """Cross-entropy of telling samples of q(z) from permuted ones: ``-(E log D(z) + E log(1 - D(z'))) / 2``, log 2 at chance.

    Args:
        joint: logits of samples of q(z).
        permuted: logits of permuted samples.

    Source: Kim and Mnih 2018 (arXiv 1802.05983), algorithm 2.

    Example:
        >>> round(float(discriminator_loss(torch.zeros(3), torch.zeros(2))), 4)
        0.6931
    """
    return (F.softplus(-joint).mean() + F.softplus(permuted).mean()) / 2


def _log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log density but for -log(2 pi) / 2, which every part has as often with one sign as with the other."""
    return -0.5 * ((z - mu).square() * torch.exp(-logvar) + logvar)
