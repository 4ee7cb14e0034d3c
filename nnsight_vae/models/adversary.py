"""The discriminator of FactorVAE and its own optimiser: it learns, between the steps of the VAE, to tell latents from permuted ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .penalties import discriminator_loss, permute_latents

_SLOPE = 0.2
_BETAS = (0.5, 0.9)


class Discriminator(nn.Sequential):
    """Logit ``log D(z) / (1 - D(z))`` that latents `[n, latent]` come from q(z) and not from the product of its marginals.

    Linear layers of the widths `hidden` with leaky ReLUs of slope 0.2, and a linear read-out of one logit (the paper's two
    are, by their difference, the same).

    Source: Kim and Mnih 2018 (arXiv 1802.05983), appendix A, with six layers of 1000.

    Example:
        >>> Discriminator(3, (8, 8))(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, latent: int, hidden: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise((latent, *hidden)):
            layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(_SLOPE)]
        super().__init__(*layers, nn.Linear(hidden[-1], 1), nn.Flatten(0))


@dataclass
class Adversary:
    """A discriminator being trained.

    Attributes:
        module: the discriminator.
        optimizer: Adam over its parameters, with a constant learning rate.
    """

    module: Discriminator
    optimizer: torch.optim.Adam

    @classmethod
    def of(cls, module: Discriminator, lr: float) -> Adversary:
        """An adversary that has learned nothing yet."""
        return cls(module, torch.optim.Adam(module.parameters(), lr=lr, betas=_BETAS))

    def update(
        self, z: Float[Tensor, "n latent"], others: Float[Tensor, "m latent"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """One step of the discriminator on latents, against the permuted latents of other images; neither gets a gradient.

        Returns: its loss before the step, see `discriminator_loss`.

        Source: Kim and Mnih 2018 (arXiv 1802.05983), algorithm 2.
        """
        permuted = permute_latents(others.detach(), generator)
        loss = discriminator_loss(self.module(z.detach()), self.module(permuted))
        self.optimizer.zero_grad()  # also what the VAE's own step left there
        loss.backward()
        self.optimizer.step()
        return loss.detach()
