"""What a circuit is held against that was not learned: models with new random weights, and pairs left to chance."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from nnsight_vae.errors import AdapterError
from nnsight_vae.pairs import Pairs
from nnsight_vae.vae import VAE

Shuffle = Literal["sources", "orientation"]


def reinitialised(vae: VAE, seed: int) -> VAE:
    """A copy of a model with new random weights, each module by its own `reset_parameters`.

    Args:
        vae: the model; it is not touched.
        seed: of the weights.

    Raises:
        AdapterError: some module has parameters or saved buffers of its own and no `reset_parameters`.

    Example:
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> reinitialised(vae, 0).fingerprint != vae.fingerprint
        True
    """
    for name, module in vae.module.named_modules():
        if _own_state(module) and not callable(getattr(module, "reset_parameters", None)):
            raise AdapterError(
                f"module {name or 'at the root'!r} ({type(module).__name__}) has {', '.join(_own_state(module))} and no "
                "reset_parameters, so how to make it untrained is not known. Give untrained=lambda vae, seed: nv.VAE(new_model(seed))."
            )
    twin = copy.deepcopy(vae)
    with torch.random.fork_rng(devices=_cuda_devices(twin)):
        torch.manual_seed(seed)
        for module in twin.module.modules():
            if _own_state(module):
                module.reset_parameters()  # type: ignore[operator]
    return twin


def shuffled(pairs: Pairs, how: str, seed: int) -> Pairs:
    """Pairs whose sources, or whose orientation, are left to chance.

    Args:
        pairs: two or more.
        how: "sources" or "orientation".
        seed: of the shuffle.
    """
    rng = np.random.default_rng(seed)
    if how == "sources":
        order = torch.from_numpy(_derangement(len(pairs), rng))
        factors = pairs.source_factors
        ids = pairs.source_groups
        return replace(
            pairs,
            source=pairs.source[order],
            source_factors=None if factors is None else factors[order],
            source_groups=None if ids is None else ids[order],
        )
    groups, _ = pairs.cluster_ids
    _, cluster = np.unique(np.arange(len(pairs)) if groups is None else groups, return_inverse=True)
    flip = torch.from_numpy(rng.permutation(cluster.max() + 1) % 2 == 1)[torch.from_numpy(cluster)]
    exchange = flip.view(-1, *[1] * (pairs.base.ndim - 1)).to(pairs.base.device)
    return replace(
        pairs,
        base=torch.where(exchange, pairs.source, pairs.base),
        source=torch.where(exchange, pairs.base, pairs.source),
        base_factors=None,
        source_factors=None,
        factor_names=(),
    )


def _derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation that leaves nothing in its place: along a random cycle through all."""
    cycle = rng.permutation(n)
    order = np.empty(n, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def _own_state(module: nn.Module) -> list[str]:
    """Names of the parameters and saved buffers that are a module's own."""
    buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
    owned = {**module._parameters, **{name: module._buffers[name] for name in buffers}}
    return [name for name, tensor in owned.items() if tensor is not None]


def _cuda_devices(vae: VAE) -> list[torch.device]:
    return sorted({p.device for p in vae.module.parameters() if p.device.type == "cuda"}, key=str)
