"""The module nnsight sees of a VAE with several latents, each inferred from the input and the latents above it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError, DataError
from nnsight_vae.posterior import Laplace, OtherPrior, Posterior, read_posterior
from nnsight_vae.wrapped import Tap, Wrapped

if TYPE_CHECKING:
    from nnsight_vae.adapters import Adapter
    from nnsight_vae.adapters.ladder import Ladder

_TAPS = ("mu", "logvar", "eps", "z")


class WrappedLadder(Wrapped):
    """As `Wrapped`, with taps for each level (`mu0`, `logvar0`, `eps0`, `z0`, ...) before those of the whole latent.

    The whole latent is every level's, flattened, side by side, level 0 first. A write at `latent.z1` is seen by the inference of the
    levels below it and by the decoder; a write at that part of `latent.z` by the decoder alone.
    """

    adapter: Ladder

    def __init__(self, model: nn.Module, adapter: Ladder, given: tuple[Tensor, ...] = ()) -> None:
        super().__init__(model, adapter, given)
        for k in range(adapter.levels):
            for name in _TAPS:
                setattr(self.latent, f"{name}{k}", Tap())
        self.shapes: dict[int, tuple[torch.Size, ...]] = {}  # length of the whole latent -> shape of each level

    def encode(self, x: Float[Tensor, "n *image"], *given: Tensor, eps: Tensor | None = None) -> Posterior:
        """The posterior of all levels, each given those above it at their means, or drawn with `eps`."""
        return self._tapped(self.at(x, *given, eps=eps)[0])

    def at(
        self, x: Tensor, *given: Tensor, eps: Tensor | None = None, draw: bool = False
    ) -> tuple[Posterior, Float[Tensor, "n latent"]]:
        """The posterior, and the draw from it that its own lower levels are inferred from."""
        posterior, _, z = self._inferred(x, *given, eps=eps, draw=draw)
        return posterior, z

    def forward(
        self, x: Tensor, *given: Tensor, eps: Tensor | None = None, sample: bool = False
    ) -> Float[Tensor, "n *image"]:
        """As `Wrapped.forward`."""
        posterior, noise, z = self._inferred(x, *given, eps=eps, draw=sample)
        # The levels have been drawn. A write at the taps of the whole moves z by what it moves mu + sd eps: by nothing else, exactly.
        moved = self._tapped(posterior).rsample(self.latent.eps(noise)) - posterior.rsample(noise)
        return self.decode(z + moved, *given)

    def decode(self, z: Float[Tensor, "n latent"], *given: Tensor) -> Float[Tensor, "rows *image"]:
        """The reconstruction of all levels side by side."""
        levels = self.split(self.latent.z(z))
        return self.tap_output(self.adapter.decode(self.model, *levels, *self.conditions(given, len(z))))

    def noise(self, eps: Float[Tensor, "n latent"]) -> dict[str, Tensor]:
        """As `Wrapped.noise`: each level has its own."""
        return {f"latent.eps{k}": part for k, part in enumerate(self.split(eps))}

    def split(self, whole: Float[Tensor, "n latent"]) -> tuple[Tensor, ...]:
        """The levels' parts of the whole latent, each in its level's shape.

        Raises:
            DataError: no run has had a latent of this length.
        """
        if whole.shape[1] not in self.shapes:
            raise DataError(
                f"this VAE is not known to have a latent of {whole.shape[1]} numbers over all levels; run it once (vae.encode(x)), or "
                "wrap it with example=x."
            )
        shapes = self.shapes[whole.shape[1]]
        parts = whole.split([shape.numel() for shape in shapes], dim=1)
        return tuple(part.reshape(len(whole), *shape) for part, shape in zip(parts, shapes, strict=True))

    def _tapped(self, posterior: Posterior) -> Posterior:
        return self.law(self.latent.mu(posterior.mu), self.latent.logvar(posterior.logvar))

    def _inferred(
        self, x: Tensor, *given: Tensor, eps: Tensor | None, draw: bool
    ) -> tuple[Posterior, Float[Tensor, "n latent"], Float[Tensor, "n latent"]]:
        """Posterior, noise and draw of all levels side by side."""
        levels = _Levels(self, None if eps is None else self.split(eps), draw)
        self.adapter.infer(self.model, self.tap_input(x), levels.draw, *self.conditions(given, len(x)))
        posteriors, noise, z = zip(*levels.in_order(), strict=True)
        self.law = self._law_of({type(posterior) for posterior in posteriors})
        mu, logvar = (_joined(side) for side in zip(*posteriors, strict=True))
        self.shapes[mu.shape[1]] = tuple(level.shape[1:] for level in z)
        return self.law(mu, logvar), _joined(noise), _joined(z)

    def _law_of(self, laws: set[type[Posterior]]) -> type[Posterior]:
        if laws == {Posterior}:
            return Posterior if self.adapter.standard_prior else OtherPrior
        if laws == {Laplace} and self.adapter.standard_prior:
            return Laplace
        raise AdapterError(
            f"the levels have {', '.join(sorted(law.__name__ for law in laws))} posteriors; a VAE of several levels is read where all "
            "are Gaussian, or all Laplace with standard_prior=True."
        )


def wrapped(model: nn.Module, adapter: Adapter, given: tuple[Tensor, ...]) -> Wrapped:
    """A model between the taps that its adapter's latents need.

    Raises:
        AdapterError: an adapter of several latents does not say how many.
    """
    from nnsight_vae.adapters.ladder import Ladder

    if not isinstance(adapter, Ladder):
        return Wrapped(model, adapter, given)
    if adapter.levels < 2:
        raise AdapterError(f"{type(adapter).__name__} is an adapter of several latents: set its `levels`, at least 2.")
    return WrappedLadder(model, adapter, given)


class _Levels:
    """The levels of one run, as they are drawn."""

    def __init__(self, wrapped: WrappedLadder, noise: tuple[Tensor, ...] | None, draws: bool) -> None:
        self._wrapped, self._noise, self._draws = wrapped, noise, draws
        self._drawn: dict[int, tuple[Posterior, Tensor, Tensor]] = {}

    def draw(self, k: int, stated: Any) -> Tensor:
        """The latent of level k, through its taps, from what the encoder states of it."""
        n_levels, latent = self._wrapped.adapter.levels, self._wrapped.latent
        if k not in range(n_levels) or k in self._drawn:
            raise AdapterError(f"draw({k!r}, ...): each of the levels 0 to {n_levels - 1} is drawn once in a run.")
        q = read_posterior(stated, packed=self._wrapped.adapter.packed, where=f"level {k}")
        mu, logvar, eps, z = (getattr(latent, f"{name}{k}") for name in _TAPS)
        q = type(q)(mu(q.mu), logvar(q.logvar))
        if self._noise is not None:
            noise = self._noise[k]
        else:
            noise = torch.randn_like(q.mu) if self._draws else torch.zeros_like(q.mu)
        noise = eps(noise)
        drawn: Tensor = z(q.rsample(noise))
        self._drawn[k] = q, noise, drawn
        return drawn

    def in_order(self) -> Iterator[tuple[Posterior, Tensor, Tensor]]:
        """What was drawn, level 0 first."""
        for k in range(self._wrapped.adapter.levels):
            if k not in self._drawn:
                raise AdapterError(f"the encoder never drew level {k}: call draw({k}, posterior) once for every level.")
            yield self._drawn[k]


def _joined(levels: tuple[Tensor, ...]) -> Float[Tensor, "n latent"]:
    return torch.cat([level.flatten(1) for level in levels], dim=1)
