"""Adapters for VAEs with several latents, each inferred from the input and the latents above it: ladders, hierarchies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter
from nnsight_vae.adapters.generic import read_reconstruction
from nnsight_vae.adapters.reference import own_reconstruction
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError
from nnsight_vae.posterior import Packed, read_posterior

Draw = Callable[[int, Any], Tensor]


class Ladder(Adapter):
    """How to use a VAE of several latents. Subclass it, set `levels`, override `infer` and `decode`; or use `nv.adapt(levels=)`.

    Level 0 is the nearest to the reconstruction. Its sites are `latent.mu0`, `latent.logvar0`, `latent.eps0` and `latent.z0`, and so
    on for each level; `latent.mu`, `latent.logvar`, `latent.eps` and `latent.z` are all levels side by side, flattened, level 0 first.
    A module that both infers and decodes runs twice a forward, and is no site.

    Example:
        >>> from torch import nn
        >>> class Mine(Ladder):
        ...     levels = 2
        ...     def infer(self, model, x, draw):
        ...         low = model.low(x)
        ...         z1 = draw(1, model.q1(model.high(low)))  # (mu, logvar), or any form that `nv.adapt` reads
        ...         draw(0, model.q0(low, z1))
        ...     def decode(self, model, z0, z1):
        ...         return model.out(z0, z1)
        >>> Mine().matches(nn.Linear(2, 2))
        False
    """

    levels: int
    #: whether every level has the prior N(0, 1) (or Laplace(0, 1)), which decides whether KL per latent is known
    standard_prior: bool = False
    packed: Packed = False

    def infer(self, model: nn.Module, x: Float[Tensor, "n *image"], draw: Draw, *given: Tensor) -> None:
        """Call `z = draw(k, posterior)` once for each level, in the order in which the model infers them."""
        raise NotImplementedError

    def decode(self, model: nn.Module, *levels_and_given: Tensor) -> Float[Tensor, "rows *image"]:
        """The reconstruction of the levels `z0, z1, ...`, and of the conditions after them where the VAE takes some."""
        raise NotImplementedError

    def reference(
        self, model: nn.Module, x: Float[Tensor, "n *image"], *given: Tensor
    ) -> tuple[Float[Tensor, "n *image"], str]:
        """As `Adapter.reference`, every level at its posterior mean."""
        drawn: dict[int, Tensor] = {}

        def at_mean(k: int, stated: Any) -> Tensor:
            return drawn.setdefault(k, read_posterior(stated, packed=self.packed, where=f"level {k}").mu)

        self.infer(model, x, at_mean, *given)
        expected = self.decode(model, *(drawn[k] for k in range(self.levels)), *given)
        return own_reconstruction(model, x, expected, *given) or (expected, "decode of every level at its mean")


class CallableLadder(Ladder):
    """A VAE of several latents told by two plain callables: `encoder(x, draw)` and `decoder(z0, z1, ...)`.

    Raises:
        AdapterError: levels is no whole number of at least 2.
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        levels: int,
        *,
        packed: Packed = False,
        standard_prior: bool = False,
    ) -> None:
        if not isinstance(levels, int) or levels < 2:
            raise AdapterError(f"levels is a number of latents, at least 2, got {levels!r}; leave it out for one.")
        self.encoder, self.decoder, self.levels = encoder, decoder, levels
        self.packed, self.standard_prior = packed, standard_prior

    def infer(self, model: nn.Module, x: Float[Tensor, "n *image"], draw: Draw, *given: Tensor) -> None:
        """What the encoder callable draws."""
        self.encoder(x, draw, *given)

    def decode(self, model: nn.Module, *levels_and_given: Tensor) -> Float[Tensor, "rows *image"]:
        """What the decoder callable makes of the levels."""
        return read_reconstruction(self.decoder(*levels_and_given), where="decoder")
