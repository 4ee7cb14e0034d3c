"""Frameworks of disent (`Vae`, `Ae` and what derives from them) and its bare `AutoEncoder`."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter, library_classes
from torch import Tensor

from nnsight_vae.posterior import Laplace, Posterior, read_posterior


class DisentFramework(Adapter):
    """A disent framework: its posterior is that of `encode_dists(x)`, Normal or Laplace; a framework without one (Ae) states a point.

    Decoding gives images, through the framework's output activation. Sites are the parts of the framework's `_model`
    (`_model._encoder.model.0`).
    """

    def input_shape(self, model: Any) -> tuple[int, ...] | None:
        """The one shape that disent's encoders take."""
        return tuple(model._model.x_shape)

    def encode(self, model: Any, x: Float[Tensor, "n *image"]) -> Posterior:
        """The posterior that the framework trains with."""
        if not callable(getattr(model, "encode_dists", None)):
            return Posterior.point(model.encode(x))
        # Not by way of its distribution objects, which refuse a scale that an intervention takes out of floating point's reach.
        law, stated = model.cfg.latent_distribution, model._model.encode(x, chunk=True)
        if law == "laplace":
            location, logscale = stated
            return Laplace(location, 2.0 * logscale + math.log(2.0))
        if law == "normal":
            return Posterior(*stated)
        return read_posterior(model.encode_dists(x)[0], where=f"{type(model).__name__}.encode_dists")

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """The image of `z`, activated."""
        return model.decode(z)

    def reference(self, model: Any, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """The framework's own forward, which is deterministic."""
        return model(x), "forward"


class DisentAutoEncoder(Adapter):
    """disent's `AutoEncoder` by itself: encoder and decoder, with no output activation (the frameworks add it)."""

    def input_shape(self, model: Any) -> tuple[int, ...] | None:
        """The one shape that disent's encoders take."""
        return tuple(model.x_shape)

    def encode(self, model: Any, x: Float[Tensor, "n *image"]) -> Posterior:
        """Mean and log variance where the encoder gives two numbers a latent, else a point."""
        stated = model.encode(x, chunk=True)
        return Posterior(*stated) if len(stated) == 2 else Posterior.point(stated[0])

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """What the decoder makes of `z`, before any activation."""
        return model.decode(z)


def adapter_for(model: Any) -> Adapter | None:
    """The adapter for a disent framework or autoencoder; None for anything else of disent's."""
    names = library_classes(model, "disent")
    if "_AeAndVaeMixin" in names:
        return DisentFramework()
    return DisentAutoEncoder() if "AutoEncoder" in names else None
