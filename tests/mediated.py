"""Small models in double precision, pairs for them, and two pixels to read: what tests of mediation share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from vaes import all_vaes, images

import nnsight_vae as nv

MODELS = {name: model.double() for name, model in all_vaes().items()}


def pairs_of(name: str, noisy: bool = False, n: int = 4) -> tuple[nv.VAE, nv.Pairs]:
    model = MODELS[name]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 2 * n, seed=5).double()
    shape = vae.encode(x[:n]).mu.shape
    eps = torch.randn(shape, generator=torch.Generator().manual_seed(6), dtype=torch.double) if noisy else None
    return vae, nv.Pairs(x[:n], x[n:], eps=eps)


class TwoPixels:
    names = ("a", "b")

    def __init__(self, first: int, second: int) -> None:
        self.pixels = [first, second]

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return 10 * reconstruction.flatten(1)[:, self.pixels]
