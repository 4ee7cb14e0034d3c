"""A small VAE, pairs of images, readouts and an explanation for tests of attributions."""

from __future__ import annotations

import pytest
import torch
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import LatentIntegratedGradients

X, B = images(ConvVAE, 4), images(ConvVAE, 4, seed=1)
LATENTS = nv.readouts.Latents(5)
HALVES = nv.readouts.Region({"top": (slice(0, 8), slice(0, 16)), "bottom": (slice(8, 16), slice(0, 16))})
loose = pytest.mark.filterwarnings(  # few steps, and completeness is not the claim
    "ignore::nnsight_vae.NnsightVaeWarning"
)


def conv():
    return nv.VAE(seeded(ConvVAE()))


def explained(target, vae=None, x=X, b=B):
    return LatentIntegratedGradients(vae or conv()).attribute(x, baselines=b, target=target, n_steps=40)


@pytest.fixture(scope="module")
def vae():
    return conv()


@pytest.fixture(scope="module")
def pairs():
    return nv.Pairs(images(ConvVAE, 6), images(ConvVAE, 6, seed=1), eps=torch.randn(6, 5, generator=torch.Generator()))
