"""A small VAE, pairs of images and readouts for tests of attributions."""

from __future__ import annotations

import pytest
import torch
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv

LATENTS = nv.readouts.Latents(5)
HALVES = nv.readouts.Region({"top": (slice(0, 8), slice(0, 16)), "bottom": (slice(8, 16), slice(0, 16))})


@pytest.fixture(scope="module")
def vae():
    return nv.VAE(seeded(ConvVAE()))


@pytest.fixture(scope="module")
def pairs():
    return nv.Pairs(images(ConvVAE, 6), images(ConvVAE, 6, seed=1), eps=torch.randn(6, 5, generator=torch.Generator()))
