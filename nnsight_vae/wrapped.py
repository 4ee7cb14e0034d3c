"""The module nnsight sees: the user's model, unchanged, between identity taps that name the values functions make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnsight_vae.errors import DataError
from nnsight_vae.posterior import Posterior

if TYPE_CHECKING:
    from nnsight_vae.adapters import Adapter


class Tap(nn.Module):
    """Identity with a name: a place to read, write, skip or attribute a value that a function, not a module, makes."""

    def forward(self, value: Tensor) -> Tensor:
        """The value, unchanged."""
        return value


class Latent(nn.Module):
    """Container of the latent taps `mu`, `logvar`, `eps` and `z`."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.logvar, self.eps, self.z = Tap(), Tap(), Tap(), Tap()


class Wrapped(nn.Module):
    """The user's model beside the taps; `forward` is encode, sample, decode as the adapter reads them.

    Args:
        model: the user's own.
        adapter: how it is read.
        given: conditions of a conditional VAE, one row each, for the runs that are passed none.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, given: tuple[Tensor, ...] = ()) -> None:
        super().__init__()
        self.tap_input = Tap()
        self.model = model
        self.latent = Latent()
        self.tap_output = Tap()
        self.adapter, self.given = adapter, given
        self.law: type[Posterior] = Posterior  # the family of the posterior, as the adapter last stated it

    def encode(self, x: Float[Tensor, "n *image"], *given: Tensor, eps: Tensor | None = None) -> Posterior:
        """The posterior of `x`, through the taps. Noise matters to it where lower latents are inferred from higher ones."""
        stated = self.adapter.encode(self.model, self.tap_input(x), *self.conditions(given, len(x)))
        if (law := type(stated) if isinstance(stated, Posterior) else Posterior) is not self.law:
            self.law = law
        mu, logvar = stated
        return self.law(self.latent.mu(mu), self.latent.logvar(logvar))

    def at(
        self, x: Float[Tensor, "n *image"], *given: Tensor, eps: Tensor | None = None, draw: bool = False
    ) -> tuple[Posterior, Float[Tensor, "n *latent"]]:
        """The posterior of `x` and z: its mean, to the bit, unless noise is given or asked for."""
        posterior = self.encode(x, *given)
        # A small model notices the six small operations that would say so.
        return posterior, self.sample(posterior, eps, draw=draw) if draw or eps is not None else posterior.mu

    def noise(self, eps: Float[Tensor, "n *latent"]) -> dict[str, Tensor]:
        """Tap -> the part of the noise that enters there."""
        return {"latent.eps": eps}

    def sample(self, posterior: Posterior, eps: Tensor | None, *, draw: bool = False) -> Float[Tensor, "rows *latent"]:
        """z = mu + sd * eps, or as the posterior's law has it; eps is zero unless given, or drawn if asked for."""
        if eps is None:
            eps = torch.randn_like(posterior.mu) if draw else torch.zeros_like(posterior.mu)
        elif eps.shape != posterior.mu.shape:  # it would broadcast, and examples would share a draw
            raise DataError(
                f"eps has shape {tuple(eps.shape)}, expected {tuple(posterior.mu.shape)}: one draw an example and latent."
            )
        return posterior.rsample(self.latent.eps(eps))

    def decode(self, z: Float[Tensor, "n *latent"], *given: Tensor) -> Float[Tensor, "rows *image"]:
        """The reconstruction of `z`, through the taps."""
        z = self.latent.z(z)
        return self.tap_output(self.adapter.decode(self.model, z, *self.conditions(given, len(z))))

    def conditions(self, given: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
        """Conditions of a run with so many rows: its own, or else those of the VAE."""
        return given or tuple(one.expand(rows, *one.shape[1:]) for one in self.given)

    def decode_posterior(self, mu: Tensor, logvar: Tensor, eps: Tensor) -> Float[Tensor, "rows *image"]:
        """Everything from the posterior on: all latent taps fire, the encoder does not run."""
        posterior = self.law(self.latent.mu(mu), self.latent.logvar(logvar))
        return self.decode(self.sample(posterior, eps))

    def forward(
        self, x: Tensor, *given: Tensor, eps: Tensor | None = None, sample: bool = False
    ) -> Float[Tensor, "n *image"]:
        """The reconstruction of `x`: at the posterior mean, at `mu + sd * eps`, or at a fresh draw (`sample=True`)."""
        return self.decode(self.sample(self.encode(x, *given), eps, draw=sample), *given)
