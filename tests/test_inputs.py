"""What a VAE refuses to run: before any work, wherever it is passed, saying what to do."""

# ruff: noqa: SIM117 - a trace is a block of its own inside what it must raise
from __future__ import annotations

import numpy as np
import pytest
import torch
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv


@pytest.fixture
def conv():
    model = seeded(ConvVAE())
    return model, nv.VAE(model), images(model, 4)


BAD = {
    "uint8": (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"\.float\(\) / 255"),
    "nan": (torch.full((2, 3, 16, 16), torch.nan), "NaN or infinite values in 2 of 2"),
    "infinite": (torch.full((2, 3, 16, 16), torch.inf), "NaN or infinite"),
    "empty": (torch.zeros(0, 3, 16, 16), "non-empty batch"),
    "no batch axis": (torch.zeros(3), "non-empty batch"),
    "channels": (torch.zeros(2, 1, 16, 16), r"cannot run x of shape \(2, 1, 16, 16\).*\('n', 3, 16, 16\)"),
    "size": (torch.zeros(2, 3, 20, 20), r"cannot run x of shape \(2, 3, 20, 20\)"),
    "double": (torch.zeros(2, 3, 16, 16, dtype=torch.float64), r"float64.*float32"),
    "integers": (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "int64"),
    "array": (np.zeros((2, 3, 16, 16), np.float32), "torch.as_tensor"),
    "list": ([[0.0]], "got list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs_are_refused(name, conv):
    _, vae, _ = conv
    x, message = BAD[name]
    for call in (vae, vae.encode, vae.verify, lambda x: nv.intervene(vae, x, {"latent.z": nv.Zero()})):
        with pytest.raises(nv.DataError, match=message):
            call(x)
    for fn in (None, "encode"):
        with pytest.raises(nv.DataError, match=message):
            with vae.trace(x, fn=fn):
                never = vae.latent.z.output.save()  # noqa: F841


def test_a_latent_shape_that_several_input_shapes_have_is_named_once():
    vae = nv.VAE(nv.models.MLPVAE(image_shape=(1, 8, 8), latent=3))
    vae(torch.rand(2, 8, 8))  # flattened by the model itself, so that these are inputs too
    with pytest.raises(nv.DataError, match=r"this VAE's latent is \('n', 3\)\.$"):
        vae.decode(torch.zeros(2, 4))


def test_bad_latents_and_noise_are_refused(conv):
    _, vae, x = conv
    for z, message in (
        (torch.zeros(2, 6), r"shape \(2, 6\), this VAE's latent is \('n', 5\)"),
        (torch.zeros(2, 5, 1), r"shape \(2, 5, 1\), this VAE's latent is \('n', 5\)"),
        (torch.full((2, 5), torch.nan), "NaN or infinite values in 2 of 2"),
        (torch.zeros(2, 5).double(), "computes in torch.float32"),
    ):
        with pytest.raises(nv.DataError, match=message):
            vae.decode(z)
        with pytest.raises(nv.DataError, match=message):
            with vae.trace(z, fn="decode"):
                never = vae.output.save()
    for eps in (torch.zeros(1, 5), torch.zeros(5), torch.full((4, 5), torch.nan), 0.0, torch.zeros(4, 5).long()):
        with pytest.raises(nv.DataError, match="eps"):
            vae(x, eps=eps)
        with pytest.raises(nv.DataError, match="eps"):
            with vae.trace(x, eps=eps):
                never = vae.output.save()  # noqa: F841
