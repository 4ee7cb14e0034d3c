"""What can be wrapped, read by which adapter, and what is warned of when it is."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnsight_vae.errors import AdapterError, NnsightVaeWarning
from nnsight_vae.probe import random_state_kept, zeros_like_input
from nnsight_vae.wrapped import Wrapped

if TYPE_CHECKING:
    from nnsight_vae.adapters import Adapter


def require_module(module: Any) -> None:
    """Refuse what is no torch module with a Python forward.

    Raises:
        AdapterError: says what was got.
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise AdapterError(
            f"nv.VAE wraps a torch.nn.Module with a Python forward, got {type(module).__name__}; pass the model itself."
        )


def adapter_for(module: nn.Module, adapter: Any) -> Adapter:
    """The adapter that was passed, or one found from the module's type or shape.

    Raises:
        AdapterError: no adapter can read the module, or what was passed is none.
    """
    if adapter is None:
        from nnsight_vae.adapters import find_adapter

        return find_adapter(module)
    if isinstance(adapter, type) or not all(callable(getattr(adapter, name, None)) for name in ("encode", "decode")):
        raise AdapterError(
            f"adapter must be an instance with encode(model, x) and decode(model, z), got {adapter!r}; see nv.adapters.Adapter."
        )
    return adapter


def warn_of_batch_statistics(module: nn.Module, *, stacklevel: int) -> None:
    """Warn of layers that normalise over the batch in eval mode too."""
    batch_norms = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if names := [name for name, part in batch_norms if part.running_mean is None]:
        warnings.warn(
            f"{', '.join(names)}: normalises over the batch even in eval mode (track_running_stats=False), so examples change one "
            "another, and so do interventions that share a run. Effects are then those of this batch, not of an example.",
            NnsightVaeWarning,
            stacklevel=stacklevel,
        )


def watch_posterior(root: Wrapped, shape: tuple[int, ...]) -> None:
    """Encode once where autograd watches: how the posterior was made tells a scale from a log variance, and is warned of."""
    x = zeros_like_input(root.model, shape).requires_grad_()
    # A model that cannot be differentiated (weights made in inference mode) can still be read.
    with torch.inference_mode(False), torch.enable_grad(), random_state_kept(x.device), suppress(RuntimeError):
        root.encode(x.clone())
