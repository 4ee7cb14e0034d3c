"""Autoencoders of diffusers: spatial latents (AutoencoderKL, AutoencoderTiny, AutoencoderDC, video KL) and codes (VQModel).

The latent is the autoencoder's own: the scaling and shift factors by which diffusion pipelines multiply latents are left to
whoever compares the two (`z_pipeline = (z - shift) * scale`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter, library_classes
from torch import Tensor

from nnsight_vae.errors import AdapterError
from nnsight_vae.posterior import Posterior

_SPLITS = ("use_slicing", "use_tiling", "use_framewise_encoding", "use_framewise_decoding")


class Diffusers(Adapter):
    """`encode(x)` and `decode(z)` of a diffusers autoencoder, whole: slicing and tiling are off for the call, then back on.

    With them on, the modules would fire once per slice or tile, and tiled values are not the untiled ones. The posterior is the
    model's `latent_dist`; where it states a value only (`latents` of AutoencoderTiny, `latent` of AutoencoderDC), a point.
    """

    def encode(self, model: Any, x: Float[Tensor, "n *image"]) -> Posterior:
        """The posterior that the model states, before any scaling factor."""
        with unsplit(model):
            encoded = model.encode(x)
        for name in ("latents", "latent"):
            if isinstance(value := getattr(encoded, name, None), Tensor):
                return Posterior.point(value)
        law: Any = getattr(encoded, "latent_dist", None)
        if isinstance(getattr(law, "logvar", None), Tensor):
            return Posterior.point(law.mean) if law.deterministic else Posterior(law.mean, law.logvar)
        raise AdapterError(
            f"{type(model).__name__}.encode(x) returned {type(encoded).__name__}, with no latent known here."
        )

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """What the model decodes from a latent that no scaling factor has touched."""
        with unsplit(model):
            return model.decode(z).sample

    def reference(self, model: Any, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """The model's own forward, at the posterior's mode; of AutoencoderTiny, whose forward rounds to bytes, decode(encode)."""
        with unsplit(model):
            if "AutoencoderTiny" in library_classes(model, "diffusers"):
                return model.decode(model.encode(x).latents).sample, "decode(encode(x).latents)"
            return model(x).sample, "forward"


class DiffusersVQ(Diffusers):
    """VQModel: the latent is the code at each position; `quant_conv` is the encoding before quantisation.

    The model's own `encode` stops before quantisation and its `decode` quantises; here decoding takes what it is given, so a
    value that is no code is not snapped back to one.

    Args:
        codebook: the codes `[codes, channels]`.
    """

    def __init__(self, codebook: Float[Tensor, "codes channels"]) -> None:
        self.codebook = codebook

    def encode(self, model: Any, x: Float[Tensor, "n *image"]) -> Posterior:
        """The code at each position."""
        return Posterior.point(model.quantize(model.encode(x).latents)[0])

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """What the decoder makes of codes, or of whatever stands in their place."""
        return model.decoder(
            model.post_quant_conv(z), z if getattr(model.config, "norm_type", None) == "spatial" else None
        )

    def reference(self, model: Any, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """The model's own forward."""
        return model(x).sample, "forward"


@contextmanager
def unsplit(model: Any) -> Iterator[None]:
    """Run a model on whole batches and whole images: slicing and tiling are off inside, and as they were afterwards."""
    switched = [name for name in _SPLITS if getattr(model, name, False) is True]
    for name in switched:
        setattr(model, name, False)
    try:
        yield
    finally:
        for name in switched:
            setattr(model, name, True)


def adapter_for(model: Any) -> Adapter | None:
    """The adapter for an autoencoder of diffusers; None for its other models, and those that encode to nothing known."""
    names = library_classes(model, "diffusers")
    if "ModelMixin" not in names or not (
        callable(getattr(model, "encode", None)) and callable(getattr(model, "decode", None))
    ):
        return None
    return DiffusersVQ(model.quantize.embedding.weight) if "VQModel" in names else Diffusers()
