"""The four levels and attribution on any VAE, held to identities that need no knowledge of it."""

from __future__ import annotations

import warnings

import numpy as np
import torch

import nnsight_vae as nv
from nnsight_vae.testing import _Moments as Moments, check_adapter


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conforms(vae: nv.VAE, x: torch.Tensor) -> None:
    """The conformance suite, then every level: whole-latent patches carry the total effect, sweeps equal decoding by hand."""
    found = check_adapter(vae, x)
    assert found.difference <= 1e-6 * float(vae(x).detach().abs().max())
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", nv.NnsightVaeWarning
        )  # of few pairs, and of untrained models that do next to nothing
        four_levels(vae, x)


def four_levels(vae: nv.VAE, x: torch.Tensor) -> None:
    pairs, readout = nv.Pairs(x, x.roll(1, 0)), Moments()
    with torch.no_grad():
        base, source = readout(vae(pairs.base)), readout(vae(pairs.source))
    total, size = (source - base).double().numpy().T, float(base.abs().max())
    close = {"rtol": 1e-4, "atol": 1e-5 * max(size, 1e-6)}

    inputs = nv.manipulate_inputs(vae, pairs)
    assert np.isfinite(inputs.values).all()
    assert {unit for unit in inputs.units if unit.startswith("latent.z[")} == set(map(str, vae.sites["latent.z"].units))

    encoder = next(site.name for site in vae.sites.values() if site.stage == "encoder")
    patched = nv.patch_activations(vae, pairs, ["latent.z", encoder], readout=readout, per="site")
    np.testing.assert_allclose(patched.parts["noising"].values[0], total, **close)
    np.testing.assert_allclose(patched.parts["denoising"].values[0], total, **close)

    mediated = nv.mediate(vae, pairs, ["latent.z"], readout=readout)
    np.testing.assert_allclose(mediated.tnie.values[0], total, **close)
    np.testing.assert_allclose(mediated.nde.values[0], 0 * total, **close)

    swept = nv.perturb_latents(vae, x, None if vae.adapter.codebook is not None else [0.0, 1.0], readout=readout)
    _require_swept(vae, x, swept, readout, base, close)

    attributed = nv.attribution.unit_attributions(vae, pairs, ["latent.z"], readout=readout, n_steps=4)
    assert np.isfinite(attributed.values).all()


def _require_swept(vae, x, swept, readout, base, close):
    """The first unit of the sweep, against decoding a latent that was changed by hand."""
    z = vae.encode(x).mu.detach().clone()
    if vae.adapter.codebook is None:
        z[:, 0] = 1.0
        part = swept.parts["1"]
    else:
        name = next(iter(swept.parts))
        code = vae.adapter.codebook[int(name.removeprefix("code "))].detach()
        z[(slice(None), slice(None), *([0] * (z.ndim - 2)))] = code
        part = swept.parts[name]
    with torch.no_grad():
        expected = (readout(vae.decode(z)) - base).double().numpy().T
    np.testing.assert_allclose(part.values[0], expected, **close)
