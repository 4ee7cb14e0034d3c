"""Whether a wrapped model still is the model: its reconstruction beside the model's own path."""

from __future__ import annotations

import torch
from torch import Tensor

from nnsight_vae.errors import AdapterError
from nnsight_vae.probe import random_state_kept
from nnsight_vae.wrapped import Wrapped


def largest_difference(root: Wrapped, x: Tensor, given: tuple[Tensor, ...]) -> float:
    """Largest difference between a wrapper and the model's own deterministic path, in output units.

    Args:
        root: the wrapper module, in eval mode.
        x: inputs `[n, *image]`.
        given: conditions `[n, ...]`.

    Raises:
        AdapterError: it is above the adapter's tolerance times the largest value of the reference, or the shapes differ.
    """
    adapter = root.adapter
    with torch.no_grad(), random_state_kept(x.device):
        wrapped = root(x, *given)
        reference, path = adapter.reference(root.model, x, *given)
    if wrapped.shape != reference.shape:
        raise AdapterError(
            f"the wrapper reconstructs shape {tuple(wrapped.shape)} but the model's {path} gives {tuple(reference.shape)}; "
            "the adapter reads the wrong output."
        )
    difference, size = float((wrapped - reference).abs().max()), float(reference.abs().max())
    if not difference <= adapter.tolerance * size:
        raise AdapterError(
            f"the wrapper differs from the model's {path} by {difference:.3g} (tolerance {adapter.tolerance:g} of the "
            f"largest value, {size:.3g}); the adapter does not follow the model's own reconstruction."
        )
    return difference
