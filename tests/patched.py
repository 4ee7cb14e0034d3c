"""Patching one experiment at a time with hand-written hooks, and pairs for every small model."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch
from hooks import literal
from linear import LinearReadout, random_linear_vae
from torch import Tensor, nn
from vaes import Tokens, all_vaes, images, seeded

import nnsight_vae as nv

MODELS = {**all_vaes(), "tokens": seeded(Tokens(), 4)}


def noise_like_latent(vae: nv.VAE, n: int) -> Tensor:
    return torch.randn(n, *vae.sites["latent.mu"].shape, generator=torch.Generator().manual_seed(2))


def at(selection: nv.Selection, axis: int, change):
    """A hook's write: the activation with `change` of the selected units, at the selected position."""
    units = slice(None) if selection.indices is None else list(selection.indices)

    def write(value: Tensor) -> Tensor:
        value = value.clone()
        view = value.movedim(axis, 1)
        index = (slice(None), units, *(selection.position or ()))
        view[index] = change(view[index])
        return value

    return write


def chosen(activation: Tensor, selection: nv.Selection, axis: int) -> Tensor:
    view = activation.movedim(axis, 1)
    units = slice(None) if selection.indices is None else list(selection.indices)
    return view[(slice(None), units, *(selection.position or ()))]


class ThreePixels:
    names = ("a", "b", "c")

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)[:, [0, 7, -1]]


READ = ThreePixels()
N = 7


@cache
def pairs_of(model: nn.Module, noisy: bool = True, n: int = N) -> tuple[nv.VAE, nv.Pairs]:
    base, source = images(model, n), images(model, n, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=base)
    return vae, nv.Pairs(base, source, eps=noise_like_latent(vae, n) if noisy else None)


def run(vae: nv.VAE, model: nn.Module, x: Tensor, held: dict, eps, keep: tuple[nv.Selection, ...] = ()):
    """One literal run: selections held at values; the readout, and what some other selections become."""
    writes, kept = {}, {}

    def chain(site: str, function) -> None:
        before = writes.get(site, lambda value: value)
        writes[site] = lambda value: function(before(value))

    def keeper(key: nv.Selection, axis: int):
        def keeping(value: Tensor) -> Tensor:
            kept[key] = chosen(value, key, axis).clone()
            return value

        return keeping

    for key, value in held.items():
        chain(key.site, at(key, vae.sites[key.site].axis, value if callable(value) else lambda _, value=value: value))
    for key in keep:
        chain(key.site, keeper(key, vae.sites[key.site].axis))
    pixels = literal(model, x, writes, eps)
    return READ(pixels), kept


def literal_change(vae, model, receiver, held: dict, eps, levels=()) -> np.ndarray:
    """The readout's change when `held` reaches it through some levels only, `[target, pair]`."""
    for level in levels:
        _, held = run(vae, model, receiver, held, eps, tuple(level))
    return (run(vae, model, receiver, held, eps)[0] - clean_readout(model, receiver, eps)).double().numpy().T


@cache
def clean_readout(model: nn.Module, x: Tensor, eps: Tensor | None) -> Tensor:
    return READ(literal(model, x, {}, eps))


def linear_vae_and_pairs(seed: int = 0, n: int = 12):
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    base, source = (torch.randn(n, 6, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    weights = [layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out)]
    return nv.VAE(model), nv.Pairs(base, source), read, weights
