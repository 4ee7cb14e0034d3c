"""Adapters for modules that follow the usual shapes, and for anything else by plain callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter
from nnsight_vae.adapters.reference import own_reconstruction
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError
from nnsight_vae.posterior import Packed, Posterior, read_posterior

_RECONSTRUCTION = (
    "reconstruction",
    "recon_x",
    "recon",
    "x_hat",
    "x_recon",
    "sample",
    "reconstructions",
    "output",
    "mean",
    "loc",
    "probs",
    "logits",
)

_MU_HEADS = ("fc_mu", "fc_mean", "mu", "to_mu")
_LOGVAR_HEADS = ("fc_logvar", "fc_log_var", "fc_var", "logvar", "log_var", "to_logvar")


class _TakesConditions(Adapter):
    """Passes conditions on to what encodes and decodes, and to the model's own forward."""

    def reference(
        self, model: nn.Module, x: Float[Tensor, "n *image"], *given: Tensor
    ) -> tuple[Float[Tensor, "n *image"], str]:
        """As `Adapter.reference`, under the conditions."""
        expected = self.decode(model, Posterior(*self.encode(model, x, *given)).mu, *given)
        return own_reconstruction(model, x, expected, *given) or (expected, "decode(encode(x).mu)")


class EncodeDecode(_TakesConditions):
    """Modules with `encode(x)` and `decode(z)` methods, or `encoder` and `decoder` submodules.

    `encode` may return `(mu, logvar)`, a dict, a named tuple, a dataclass, a Normal distribution, or (with `packed`) one
    tensor with mu and logvar side by side. An `encoder` submodule may also return features that two heads (`fc_mu` and
    `fc_var`, `fc_logvar`, ...) read, flattened where the heads are linear.

    Args:
        packed: read one tensor as mu, then logvar, along axis 1; `"interleaved"` where they alternate.
        codebook: rows `[codes, channels]` of a discrete latent, for `Quantize`.
    """

    def __init__(self, *, packed: Packed = False, codebook: Float[Tensor, "codes channels"] | None = None) -> None:
        self.packed, self.codebook = packed, codebook

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` has both halves, as methods or as submodules."""
        return _function(model, "encode", "encoder") is not None and _function(model, "decode", "decoder") is not None

    def encode(self, model: nn.Module, x: Float[Tensor, "n *image"], *given: Tensor) -> Posterior:
        """The posterior that the module's own encode (or encoder) states."""
        encode = _function(model, "encode", "encoder")
        if encode is None:
            raise AdapterError(f"{type(model).__name__} has neither encode(x) nor a submodule 'encoder'; use nv.adapt.")
        encoded = encode(x, *given)
        heads = [_function(model, *names) for names in (_MU_HEADS, _LOGVAR_HEADS)]
        if encode is getattr(model, "encoder", None) and isinstance(encoded, Tensor) and None not in heads:
            features = encoded.flatten(1) if isinstance(heads[0], nn.Linear) else encoded
            encoded = tuple(head(features) for head in heads if head is not None)
        half = "encode" if callable(getattr(model, "encode", None)) else "encoder"
        return read_posterior(encoded, packed=self.packed, where=f"{type(model).__name__}.{half}")

    def decode(self, model: nn.Module, z: Float[Tensor, "n *latent"], *given: Tensor) -> Float[Tensor, "rows *image"]:
        """What the module's own decode (or decoder) makes of `z`."""
        decode = _function(model, "decode", "decoder")
        if decode is None:
            raise AdapterError(f"{type(model).__name__} has neither decode(z) nor a submodule 'decoder'; use nv.adapt.")
        return read_reconstruction(decode(z, *given), where=f"{type(model).__name__}.decode")


class CallableAdapter(_TakesConditions):
    """A VAE told by two plain callables: `encoder(x) -> posterior` and `decoder(z) -> reconstruction`."""

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        *,
        packed: Packed = False,
        codebook: Float[Tensor, "codes channels"] | None = None,
    ) -> None:
        self.encoder, self.decoder, self.packed, self.codebook = encoder, decoder, packed, codebook

    def encode(self, model: nn.Module, x: Float[Tensor, "n *image"], *given: Tensor) -> Posterior:
        """The posterior that the encoder callable states."""
        return read_posterior(self.encoder(x, *given), packed=self.packed, where="encoder")

    def decode(self, model: nn.Module, z: Float[Tensor, "n *latent"], *given: Tensor) -> Float[Tensor, "rows *image"]:
        """What the decoder callable makes of `z`."""
        return read_reconstruction(self.decoder(z, *given), where="decoder")


def read_reconstruction(value: Any, *, where: str) -> Tensor:
    """The reconstruction tensor in what a decoder (or a forward) returned.

    Raises:
        AdapterError: there is none to be found.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, torch.distributions.Distribution):
        return _mean(value, where)
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        for name in _RECONSTRUCTION:
            if isinstance(value.get(name), Tensor):
                return value[name]
        raise AdapterError(
            f"{where} returned fields {', '.join(map(str, value))}; expected one of {', '.join(_RECONSTRUCTION)}. Say which is the "
            f"reconstruction: nv.adapt(module, encoder=..., decoder=lambda z: module.decoder(z)[{next(iter(value), 'name')!r}])."
        )
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return value[0]
    raise AdapterError(f"{where} returned {type(value).__name__}, expected the reconstruction as a tensor.")


def _mean(value: torch.distributions.Distribution, where: str) -> Tensor:
    try:
        if not isinstance(value, torch.distributions.Categorical):  # whose mean is NaN: its outcomes are no numbers
            return value.mean
    except NotImplementedError:
        pass
    raise AdapterError(
        f"{where} returned a {type(value).__name__}, which has no mean. Say which tensor is the reconstruction, such as its "
        "probabilities: nv.adapt(module, encoder=..., decoder=lambda z: module.decoder(z).probs)."
    )


def own_codebook(model: nn.Module | None) -> Float[Tensor, "codes channels"] | None:
    """The codebook that a module shows as its tensor `codebook` `[codes, channels]`; None where it shows none."""
    codebook = getattr(model, "codebook", None)
    return codebook if isinstance(codebook, Tensor) and codebook.ndim == 2 else None


def _function(model: nn.Module, *names: str) -> Callable[..., Any] | None:
    return next((f for name in names if callable(f := getattr(model, name, None))), None)
