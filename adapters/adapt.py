"""`nv.adapt`: wrap anything as a VAE by saying how to encode and decode it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from nnsight_vae.adapters.base import Adapter
from nnsight_vae.adapters.generic import CallableAdapter, EncodeDecode, own_codebook
from nnsight_vae.adapters.ladder import CallableLadder
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError
from nnsight_vae.posterior import Packed
from nnsight_vae.vae import VAE


def adapt(
    module: nn.Module | None = None,
    *,
    encoder: Callable[..., Any] | None = None,
    decoder: Callable[..., Any] | None = None,
    packed: Packed = False,
    levels: int = 1,
    standard_prior: bool = False,
    codebook: Float[Tensor, "codes channels"] | None = None,
    example: Tensor | None = None,
    given: Tensor | Sequence[Tensor] = (),
) -> VAE:
    """Wrap anything as a VAE by saying how to encode and decode it.

    Args:
        module: the module whose submodules become sites; may be left out if `encoder` and `decoder` are modules themselves.
        encoder: callable (or module) `x -> (mu, logvar)`, a dict, a Normal distribution, or one packed tensor. A scale is not a
            log variance: return `{"mu": mu, "scale": scale}` or `torch.distributions.Normal(mu, scale)`. A direction on the sphere
            comes with its concentration, `{"mu": mu, "kappa": kappa}`.
        decoder: callable (or module) `z -> reconstruction`.
        packed: the encoder returns one tensor with mu, then logvar, along axis 1; `"interleaved"` where they alternate.
        levels: how many latents there are. With several, `encoder(x, draw)` calls `z = draw(k, posterior)` once for each, and the
            decoder takes them all, `decoder(z0, z1)`; see `nv.adapters.Ladder`.
        standard_prior: every level has the prior N(0, 1), so that KL per latent is known.
        codebook: rows `[codes, channels]` of a discrete latent, for `Quantize`. The encoding before quantisation is the site of the
            module that gives it, read and patched there; `levels.codes.nearest_codes` tells which code it is. Default where the module's own encode and decode
            are used: its tensor `codebook`, if it has one.
        example: one batch of inputs, where the input shape cannot be inferred.
        given: conditions of a conditional VAE, one row each: encoder and decoder are called as `encoder(x, *given)` and
            `decoder(z, *given)`; see `VAE`.

    Returns: a `VAE`.

    Raises:
        AdapterError: there is no module to hold, only one of encoder and decoder is given, or one of them runs a module that is
            not part of `module`.

    Example:
        >>> import torch
        >>> body, out = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> vae = adapt(encoder=body, decoder=out, packed=True)
        >>> vae.encode(torch.zeros(3, 6)).mu.shape
        torch.Size([3, 2])
    """
    if (encoder is None) != (decoder is None):
        raise AdapterError(
            "nv.adapt needs both encoder= and decoder=, or neither (then the module's own encode/decode are used)."
        )
    if module is None:
        if not isinstance(encoder, nn.Module) or not isinstance(decoder, nn.Module):
            raise AdapterError(
                "nv.adapt needs module= (the model whose submodules become sites) unless encoder and decoder are modules."
            )
        module = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    if encoder is None or decoder is None:
        if levels != 1:
            raise AdapterError(
                "a VAE of several latents is told by encoder=lambda x, draw: ... and decoder=lambda z0, z1: ...; see nv.adapters.Ladder."
            )
        codebook = own_codebook(module) if codebook is None else codebook
        return VAE(module, EncodeDecode(packed=packed, codebook=codebook), example=example, given=given)
    for name, function in (("encoder", encoder), ("decoder", decoder)):
        _require_part(module, name, function)
    adapter: Adapter = (
        CallableAdapter(encoder, decoder, packed=packed, codebook=codebook)
        if levels == 1
        else CallableLadder(encoder, decoder, levels, packed=packed, standard_prior=standard_prior)
    )
    return VAE(module, adapter, example=example, given=given)


def _require_part(module: nn.Module, name: str, function: Any) -> None:
    if not callable(function):
        raise AdapterError(f"{name} must be a callable or a module, got {type(function).__name__}.")
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    if isinstance(owner, nn.Module) and isinstance(module, nn.Module) and all(owner is not m for m in module.modules()):
        raise AdapterError(
            f"{name} runs a {type(owner).__name__} that is not part of module ({type(module).__name__}), so nothing in it could be "
            "traced; pass the module that holds it, or leave module out if encoder and decoder are modules."
        )
