"""The few images whose factors are known, and how they tie latents to factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DataError
from .images import check_images, fingerprint


@dataclass(frozen=True)
class Labels:
    """The few images whose factors are known; latent k is tied to factor k (see `label_loss`).

    Attributes:
        images: uint8 in 0-255 or floats in [0, 1], `[m, c, h, w]`.
        factors: in any unit; standardised over these m images before use.
        names: of the factors, for the record.
    """

    images: Tensor
    factors: Float[Tensor, "m factor"]
    names: tuple[str, ...]

    def check(self, image_shape: Sequence[int], latent: int) -> None:
        """Refuse labels that do not fit the images and the latents of a training.

        Raises:
            DataError: says what does not fit.
        """
        check_images("labels.images", self.images)
        n, *shape = self.images.shape
        if tuple(shape) != tuple(image_shape):
            raise DataError(f"labels.images are {tuple(shape)}, images are {tuple(image_shape)}.")
        if self.factors.ndim != 2 or self.factors.shape != (n, len(self.names)):
            raise DataError(
                f"labels.factors are {tuple(self.factors.shape)}, expected one row for each of the {n} images and "
                f"one column for each of the names {self.names}."
            )
        if self.factors.shape[1] > latent:
            raise DataError(f"{self.factors.shape[1]} labelled factors, but only {latent} latents: raise `latent`.")
        standardise(self.factors)

    def record(self) -> dict[str, Any]:
        """What the record of a training says of them."""
        _, mean, sd = standardise(self.factors)
        return {
            "images": len(self.images),
            "factors": self.names,
            "mean": mean.tolist(),
            "sd": sd.tolist(),
            "sha256": fingerprint(self.images, self.factors),
        }


def label_loss(mu: Float[Tensor, "n latent"], targets: Float[Tensor, "n factor"]) -> Float[Tensor, ""]:
    """How far the first latents are from the labels they are tied to: ``E_n sum_k (mu_k - g_k)^2``.

    Latent k is tied to factor k for the first `factor` latents; the rest are free.

    Args:
        mu: posterior means of labelled images.
        targets: their factors, standardised (see `standardise`).

    Raises:
        DataError: if there are more factors than latents, or the row counts differ.

    Source: Locatello et al. 2020 (arXiv 1905.01258), section 4, L2 form.

    Example:
        >>> float(label_loss(torch.zeros(5, 8), torch.ones(5, 2)))
        2.0
    """
    if targets.shape[0] != mu.shape[0] or targets.shape[1] > mu.shape[1]:
        raise DataError(
            f"label_loss: {tuple(targets.shape)} labels for {tuple(mu.shape)} latents. "
            "Expected as many rows, and no more factors than latents."
        )
    return (mu[:, : targets.shape[1]] - targets).square().sum(1).mean()


def standardise(
    factors: Float[Tensor, "n factor"],
) -> tuple[Float[Tensor, "n factor"], Float[Tensor, " factor"], Float[Tensor, " factor"]]:
    """Factors with mean 0 and standard deviation 1, and the mean and standard deviation that were removed.

    Raises:
        DataError: if there are fewer than two rows, a value is not finite, or a factor is constant (names its column).

    Example:
        >>> standardise(torch.tensor([[1.0], [3.0]]))[0].flatten()
        tensor([-1.,  1.])
    """
    if factors.ndim != 2 or len(factors) < 2:
        raise DataError(
            f"factors have shape {tuple(factors.shape)}, expected (images, factors) with at least 2 images."
        )
    if not torch.isfinite(factors).all():
        raise DataError("factors contain NaN or infinite values; every labelled image needs every factor.")
    mean, sd = factors.mean(0), factors.std(0, correction=0)
    constant = (sd == 0).nonzero().flatten().tolist()
    if constant:
        raise DataError(f"factor columns {constant} are constant over the {len(factors)} labelled images: drop them.")
    return (factors - mean) / sd, mean, sd
