"""Loading a model ready for analysis: bundled, trained with this package, or made by your own factory."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import torch
from torch import nn

from nnsight_vae.errors import AdapterError, DataError
from nnsight_vae.vae import VAE

_FACTORY = re.compile(r"^(?P<module>[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)$")


def load(spec: str | Path, weights: str | Path | None = None) -> VAE:
    """A VAE ready to trace.

    Args:
        spec: the name of a bundled model (`nv.zoo()` lists them), a folder written by `nv.models.train`, or
            `"package.module:factory"`, a function without arguments that returns a module (or a `VAE`).
        weights: a `.safetensors` file for a factory's module; the others bring theirs.

    Raises:
        DataError: unknown name, missing or unreadable file, weights that do not fit.
        AdapterError: the factory cannot be imported or called, or its result cannot be read as a VAE.

    Example:
        >>> load("pendulum-beta-vae").sites["latent.z"].n_units
        8
    """
    from nnsight_vae.models import load_module, read_record

    match = _FACTORY.match(str(spec))
    if match is None:
        if weights is not None:
            raise DataError(
                f"weights= goes with a factory ('package.module:factory'); {str(spec)!r} brings its own weights."
            )
        module = load_module(spec)
        # Of its own image size: a network of convolutions alone would run any, and its sites would be those of a guess.
        return VAE(module, example=torch.zeros(1, *read_record(spec)["arguments"]["image_shape"]))
    made = _make(match["module"], match["function"], str(spec))
    if weights is not None:
        from nnsight_vae.models import load_weights

        load_weights(made.module if isinstance(made, VAE) else made, weights)
    return made if isinstance(made, VAE) else VAE(made)


def _make(module: str, function: str, spec: str) -> nn.Module | VAE:
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise AdapterError(
            f"cannot import {spec!r}: {error}. Write 'package.module:factory', importable from here."
        ) from error
    if not callable(factory):
        raise AdapterError(
            f"{spec!r} is a {type(factory).__name__}, expected a function without arguments that returns a module."
        )
    try:
        made = factory()
    except TypeError as error:
        raise AdapterError(f"{spec!r} could not be called without arguments: {error}.") from error
    if not isinstance(made, nn.Module | VAE):
        raise AdapterError(f"{spec!r} returned a {type(made).__name__}, expected a torch module or a VAE.")
    return made
