"""An unwrapped copy of a model, run with hand-written torch hooks: what the engine must equal."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nnsight_vae.posterior import read_posterior


class Everything:
    """Reads the whole reconstruction."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.names = tuple(str(i) for i in range(torch.Size(shape).numel()))

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)


def literal(model: nn.Module, x: Tensor, writes: dict, eps: Tensor | None = None) -> Tensor:
    """encode, sample, decode with plain torch: `writes` maps site -> function of the activation."""
    model = copy.deepcopy(model).eval()
    modules = dict(model.named_modules())

    def tap(name: str, value: Tensor) -> Tensor:
        return writes[name](value) if name in writes else value

    for name, write in writes.items():
        if name in modules:
            modules[name].register_forward_hook(lambda m, a, out, write=write: write(out))
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    with torch.no_grad():
        mu, logvar = read_posterior(model.encode(tap("input", x)))
        mu, logvar = tap("latent.mu", mu), tap("latent.logvar", logvar)
        noise = tap("latent.eps", torch.zeros_like(mu) if eps is None else eps)
        z = tap("latent.z", mu + torch.exp(0.5 * logvar) * noise)
        return tap("output", model.decode(z)).flatten(1)


def record(model: nn.Module, x: Tensor, site: str, eps: Tensor | None = None) -> Tensor:
    kept = []
    literal(model, x, {site: lambda value: kept.append(value.clone()) or value}, eps)
    return kept[0]


def unit_write(index, function):
    def write(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, index] = function(value[:, index])
        return value

    return write
