"""The networks by name: build one from its recorded arguments, with weights drawn from a generator or none yet."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import DataError
from .networks import MLPVAE, ConvVAE, GaussianVAE, ResidualVAE
from .quantizer import VectorQuantizer
from .vq import VQVAE

ARCHITECTURES: Mapping[str, type[GaussianVAE | VQVAE]] = {
    "ConvVAE": ConvVAE,
    "MLPVAE": MLPVAE,
    "ResidualVAE": ResidualVAE,
    "VQVAE": VQVAE,
}

# By name, as on the command line. "conv-large" has the sizes of disentanglement_lib's `conv_encoder`, 4x4 kernels throughout.
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "conv": ("ConvVAE", {}),
    "conv-large": ("ConvVAE", {"channels": (32, 32, 64, 64), "hidden": 256}),
    "residual": ("ResidualVAE", {}),
    "mlp": ("MLPVAE", {}),
}


def build(architecture: str, arguments: Mapping[str, Any], generator: torch.Generator) -> GaussianVAE | VQVAE:
    """Make one of `ARCHITECTURES` with weights drawn from `generator`.

    Weights and biases are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's own default for these layers; a codebook is as
    `VectorQuantizer.initialise` says. torch's global random state is neither used nor advanced.

    Args:
        architecture: one of `ARCHITECTURES`.
        arguments: keyword arguments of its constructor.
        generator: on the CPU; advanced.

    Raises:
        DataError: if the architecture or one of its arguments is unknown or unfit.

    Example:
        >>> one, two = (build("MLPVAE", {"latent": 2}, torch.Generator().manual_seed(0)) for _ in range(2))
        >>> torch.equal(one.fc_mu.weight, two.fc_mu.weight)
        True
    """
    module = empty(architecture, arguments).to_empty(device="cpu")
    draw_weights(module, generator)
    return module


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of every layer of `module` anew, in place; see `build`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(layer, VectorQuantizer):
            layer.initialise(generator)


def complete(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the constructor's defaults filled in, so that a record outlives a change of defaults.

    Raises:
        DataError: if the architecture or an argument is unknown.

    Example:
        >>> complete("MLPVAE", {"latent": 2})
        {'image_shape': (1, 8, 8), 'latent': 2, 'hidden': (128, 64)}
    """
    if architecture not in ARCHITECTURES:
        raise DataError(f"Unknown architecture {architecture!r}. Known: {', '.join(ARCHITECTURES)}.")
    try:
        bound = inspect.signature(ARCHITECTURES[architecture]).bind(**arguments)
    except TypeError as error:
        raise DataError(f"{architecture} cannot be built from {dict(arguments)}: {error}.") from error
    bound.apply_defaults()
    return bound.arguments


def empty(architecture: str, arguments: Mapping[str, Any]) -> GaussianVAE | VQVAE:
    """One of `ARCHITECTURES` on torch's meta device: shapes without weights, no random number drawn.

    Raises:
        DataError: if the architecture or one of its arguments is unknown or unfit.
    """
    arguments = complete(architecture, arguments)
    with torch.device("meta"):
        return ARCHITECTURES[architecture](**arguments)
