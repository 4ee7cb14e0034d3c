"""What a trained model does on held-out images: the numbers in the records of the bundled models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .networks import GaussianVAE
from .objectives import gaussian_kl, reconstruction_loss
from .quantizer import nearest_code, perplexity
from .vq import VQVAE

if TYPE_CHECKING:
    from ..datasets.base import Batch
    from ..readouts import Factors

_ACTIVE_NATS = 0.1


@torch.no_grad()
def measure(module: GaussianVAE, factors: Sequence[str], batch: Batch) -> dict[str, Any]:
    """A Gaussian model, decoding posterior means.

    Args:
        module: the model.
        factors: names of the batch's factors.
        batch: held-out images with their factors.

    Returns:
        reconstruction, mse: Bernoulli nats per image, and mean squared error per pixel.
        reconstruction_floor: the nats of a perfect reconstruction, not 0 since pixels are not all black or white.
        kl, kl_per_latent: nats per image. active: the latents with at least 0.1 nats.
        total_correlation: of the aggregate posterior, in nats, as if it were Gaussian (see `gaussian_total_correlation`).
        correlation: of mu_k with each factor, `[latent][factor]`.
    """
    mu, logvar = module.encode(batch.images)
    reconstruction = module.decode(mu)
    kl = gaussian_kl(mu, logvar).mean(0)
    return {
        "images": len(batch),
        "reconstruction": float(reconstruction_loss(reconstruction, batch.images).mean()),
        "reconstruction_floor": float(reconstruction_loss(batch.images, batch.images).mean()),
        "mse": float((reconstruction - batch.images).square().mean()),
        "kl": float(kl.sum()),
        "kl_per_latent": _rounded(kl),
        "active": (kl >= _ACTIVE_NATS).nonzero().flatten().tolist(),
        "total_correlation": round(gaussian_total_correlation(mu, logvar), 4),
        "factors": list(factors),
        "correlation": _rounded(torch.corrcoef(torch.cat([mu.T, batch.factors.T]))[: mu.shape[1], mu.shape[1] :]),
    }


def gaussian_total_correlation(mu: Float[Tensor, "n latent"], logvar: Float[Tensor, "n latent"]) -> float:
    """Total correlation of a Gaussian with the covariance of the aggregate posterior: ``(sum_k log C_kk - log det C) / 2``.

    C = Cov(mu) + diag(E exp(logvar)) is the exact covariance of z over images and noise.

    Example:
        >>> mu = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> round(gaussian_total_correlation(mu, torch.zeros(2, 2)), 4)  # -log(1 - (2 / 3)^2) / 2, at 1 / (n - 1)
        0.2939
    """
    covariance = torch.cov(mu.double().T) + torch.diag(logvar.double().exp().mean(0))
    return float((covariance.diagonal().log().sum() - torch.logdet(covariance)) / 2)


@torch.no_grad()
def measure_readout(module: GaussianVAE, readout: Factors, batch: Batch) -> dict[str, Any]:
    """What a readout of the factors sees in a model's images.

    Returns:
        readout_r2: of the factors read from reconstructions, against the true ones.
        effect: `[latent][factor]`: change of a read factor, in its standard deviations, per standard deviation of z_k:
            half of what do(z_k = mean + sd) differs by from do(z_k = mean - sd), mean and sd of mu_k over the batch,
            the other latents at their own mu; averaged over the batch.
    """
    mu, _ = module.encode(batch.images)
    true = (batch.factors - readout.mean) / readout.sd
    effects = []
    for k in range(mu.shape[1]):
        low, high = (readout(module.decode(_set(mu, k, sign))) for sign in (-1, 1))
        effects.append((high - low).mean(0) / 2)
    error = (readout(module.decode(mu)) - true).square().mean(0)
    return {"readout_r2": _rounded(1 - error / true.var(0, correction=0)), "effect": _rounded(torch.stack(effects))}


@torch.no_grad()
def measure_codes(module: VQVAE, batch: Batch) -> dict[str, Any]:
    """A VQ-VAE.

    Returns:
        reconstruction, reconstruction_floor, mse: as `measure`.
        codes: how many there are. used: how many stand at some place of some image.
        perplexity: exp of the entropy of their use over images and places.
    """
    reconstruction, _, q = module(batch.images)
    counts = torch.bincount(nearest_code(q, module.codebook).flatten(), minlength=len(module.codebook))
    return {
        "images": len(batch),
        "reconstruction": float(reconstruction_loss(reconstruction, batch.images).mean()),
        "reconstruction_floor": float(reconstruction_loss(batch.images, batch.images).mean()),
        "mse": float((reconstruction - batch.images).square().mean()),
        "codes": len(module.codebook),
        "used": int((counts > 0).sum()),
        "perplexity": round(float(perplexity(counts)), 2),
    }


def _set(mu: Float[Tensor, "n latent"], k: int, sds: int) -> Float[Tensor, "n latent"]:
    z = mu.clone()
    z[:, k] = mu[:, k].mean() + sds * mu[:, k].std()
    return z


def _rounded(values: Tensor) -> Any:
    return [_rounded(row) for row in values] if values.ndim > 1 else [round(float(value), 4) for value in values]
