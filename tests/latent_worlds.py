"""Models whose latents are set, with inputs and readouts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from linear import LinearReadout, random_linear_vae
from vaes import all_vaes, images

import nnsight_vae as nv

MODELS = all_vaes()


def setup(seed: int = 0, n: int = 40):
    """A linear VAE, inputs, a readout; W with Y = W z, the posterior means, and the matrix of h(z) = mean of encode(decode(z))."""
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    x = torch.randn(n, 6, generator=generator, dtype=torch.double)
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    a1, a2, b1, b2 = (layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out))
    return nv.VAE(model), x, read, read.c @ b2 @ b1, x @ (a2 @ a1).T, a2 @ a1 @ b2 @ b1


def decoded(vae: nv.VAE, z: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return vae.decode(z).flatten(1).double().numpy()


@pytest.fixture(scope="module")
def spatial():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 30)
    return vae, x, vae.encode(x).mu.detach(), nv.readouts.Pixels((1, 8, 8))
