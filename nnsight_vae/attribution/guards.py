"""The user's model and tensors as they were, whatever an attribution method does to them, and however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nnsight_vae._nnsight import SLOTS
from nnsight_vae.arguments import require
from nnsight_vae.vae import VAE


@contextmanager
def guarded(vae: VAE, *tensors: Tensor) -> Iterator[None]:
    """Run any attribution method inside, and find model and tensors unchanged afterwards, an exception included.

    Inside, the model is in eval mode and held by this thread. Afterwards hooks, attributes of modules and `requires_grad` of
    parameters and of `tensors` are as before. Captum cleans up after itself when all goes well; when a method fails half-way,
    hooks stay behind, inputs keep `requires_grad`, and after a failed LRP no attribution of that model works again.

    Args:
        vae: the model.
        tensors: what is passed to the method, where its `requires_grad` is to be kept.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from captum.attr import DeepLift
        >>> from nnsight_vae.models import MLPVAE
        >>> vae, x = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3)), torch.rand(4, 1, 8, 8)
        >>> with guarded(vae, x):
        ...     maps = DeepLift(nv.attribution.captum_forward(vae)).attribute(x, target=0)
        >>> x.requires_grad
        False
    """
    require(vae)
    wanted = [(t, t.requires_grad) for t in (*tensors, *vae._module.parameters())]
    kept = [(m, set(m.__dict__), _hooks(m)) for m in vae._module.modules()]
    try:
        with vae.held():
            yield
    finally:
        for tensor, flag in wanted:
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
        for module, attributes, hooks in kept:
            _restore(module, attributes, hooks)


def _hooks(module: nn.Module) -> dict[str, dict[Any, Any]]:
    return {
        name: dict(value) for name, value in module.__dict__.items() if "_hooks" in name and isinstance(value, dict)
    }


def _restore(module: nn.Module, attributes: set[str], hooks: dict[str, dict[Any, Any]]) -> None:
    for name, value in hooks.items():
        if module.__dict__[name] != value:
            # In place: the handle with which its owner removes a hook refers to this very dictionary.
            module.__dict__[name].clear()
            module.__dict__[name].update(value)
    for name in set(module.__dict__) - attributes - set(SLOTS):
        del module.__dict__[name]
