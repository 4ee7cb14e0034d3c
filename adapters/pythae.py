"""Models of pythae: encoders and decoders that return `ModelOutput` dicts, quantisers and flows between them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter, library_classes
from nnsight_vae.adapters.reference import Noise
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError
from nnsight_vae.posterior import OtherPrior, Posterior

_REFUSED = {
    "HVAE": "moves its latent by Hamiltonian steps that differentiate through the decoder",
    "RHVAE": "moves its latent by Riemannian Hamiltonian steps that differentiate through the decoder",
    "PoincareVAE": "draws its latent on a hyperbolic disk",
    "SVAE": "draws its latent on a sphere",
}


class Pythae(Adapter):
    """`encoder(x)` and `decoder(z)` of a pythae model, at `embedding` and `log_covariance`, as its `predict` runs them.

    Plain autoencoders (AE, WAE_MMD, RAE, ...) state no `log_covariance`: their posterior is a point.

    Args:
        law: the family of the posterior; `OtherPrior` for a model whose prior is not N(0, 1) (VAMP learns its own).
    """

    def __init__(self, law: type[Posterior] = Posterior) -> None:
        self.law = law

    def encode(self, model: Any, x: Float[Tensor, "n *image"]) -> Posterior:
        """The Gaussian that the encoder states."""
        encoded = model.encoder(x)
        if "log_covariance" not in encoded or getattr(model, "deterministic_posterior", False):
            return Posterior.point(encoded["embedding"])
        return self.law(encoded["embedding"], encoded["log_covariance"])

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """What the decoder makes of `z`, its own output activation included."""
        return model.decoder(z)["reconstruction"]

    def reference(self, model: Any, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """pythae's own `predict`; its forward samples, and that of FactorVAE reconstructs a random half of the batch."""
        return model.predict(x)["recon_x"], "predict(x)"


class PythaeFlow(Pythae):
    """VAE_IAF and VAE_LinNF: `latent.z` is the Gaussian's, and decoding passes it through the flow first.

    N(0, 1) is the prior of what leaves the flow, so the KL of what enters it is not known (`OtherPrior`). pythae's `predict` leaves the flow out, so the reference is its forward.
    """

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """The decoder of the flow of `z`."""
        if hasattr(model, "iaf_flow"):
            z = model.iaf_flow.inverse(z)["out"]
        else:
            for layer in model.net:
                z = layer(z)["out"]
        return super().decode(model, z)

    def reference(self, model: Any, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """The model's own forward, with its noise at zero."""
        with Noise():
            return model({"data": x})["recon_x"], "forward with its noise at zero"


class PythaeVQVAE(Pythae):
    """VQVAE: the latent is what the quantiser gives, `[n, channels, height, width]`, and decoding does not quantise again.

    Of an encoder that gives vectors `[n, d]` pythae quantises each number, with codes of length 1: the latent is then
    `[n, 1, d]`, and `latent.z@3` its fourth number. The encoding before quantisation is the site of the encoder's last module.

    pythae's `predict` leaves the quantiser out, so the reference is its forward.

    Args:
        codebook: the codes `[codes, channels]`.
    """

    def __init__(self, codebook: Float[Tensor, "codes channels"]) -> None:
        super().__init__()
        self.codebook = codebook

    def encode(self, model: Any, x: Float[Tensor, "n *image"]) -> Posterior:
        """The code at each position."""
        h = model.encoder(x)["embedding"]
        grid = h[:, None, None] if h.ndim == 2 else h
        quantised = model.quantizer(grid.permute(0, 2, 3, 1))["quantized_vector"]
        return Posterior.point(quantised.flatten(2) if h.ndim == 2 else quantised)

    def decode(self, model: Any, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """What the decoder makes of codes, or of whatever stands in their place."""
        return super().decode(model, z.flatten(1) if z.ndim == 3 else z)

    def reference(self, model: Any, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """The model's own forward."""
        return model({"data": x})["recon_x"], "forward"


def adapter_for(model: Any) -> Adapter | None:
    """The adapter for a pythae model; None for other things of pythae's.

    Raises:
        AdapterError: a model whose latent is not what its encoder states, or lies in no vector space.
    """
    names = library_classes(model, "pythae")
    if "BaseAE" not in names or not (hasattr(model, "encoder") and hasattr(model, "decoder")):
        return None
    if refused := next((name for name in names if name in _REFUSED), None):
        raise AdapterError(
            f"pythae's {refused} {_REFUSED[refused]}, which no Gaussian posterior tells. To analyse its encoder's embedding as a "
            "point: nv.adapt(model, encoder=lambda x: nv.Posterior.point(model.encoder(x)['embedding']), "
            "decoder=lambda z: model.decoder(z)['reconstruction'])."
        )
    if "VQVAE" in names:
        codes = model.quantizer.embeddings
        return PythaeVQVAE(codes.weight if isinstance(codes, nn.Embedding) else codes)
    if {"VAE_IAF", "VAE_LinNF"} & set(names):
        return PythaeFlow(OtherPrior)
    return Pythae(OtherPrior if "VAMP" in names else Posterior)
