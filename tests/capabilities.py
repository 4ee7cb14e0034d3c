"""What a VAE can be asked for, each held to an identity that needs no knowledge of it: rows of the matrix test."""

from __future__ import annotations

import numpy as np
import torch

import nnsight_vae as nv
from nnsight_vae.attribution import DecoderIntegratedGradients
from nnsight_vae.circuits import TopK, circuit_from
from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.testing import _Moments as Moments

N = 6


def total_effect(vae: nv.VAE, pairs: nv.Pairs) -> np.ndarray:
    readout = Moments()
    with torch.no_grad():
        return (readout(vae(pairs.source)) - readout(vae(pairs.base))).double().numpy().T


def close(vae: nv.VAE, x: torch.Tensor) -> dict[str, float]:
    """Rounding, relative to what is read."""
    with torch.no_grad():
        return {"rtol": 1e-4, "atol": 1e-5 * max(float(Moments()(vae(x)).abs().max()), 1e-6)}


def inputs(vae: nv.VAE, x: torch.Tensor) -> None:
    """Level 1: each latent changes by the difference of the two encodings, in its standard deviations."""
    pairs = nv.Pairs(x, x.roll(1, 0))
    found = nv.manipulate_inputs(vae, pairs, ["latent.mu"])
    with torch.no_grad():
        mu = vae.encode(x).mu.double().flatten(2).mean(2) if vae.encode(x).mu.ndim > 2 else vae.encode(x).mu.double()
    sd = mu.std(0, correction=0)
    varies = sd > 1e-5 * mu.abs().max()  # of the rest all differences are rounding, and 0 by definition
    expected = torch.where(varies, (mu.roll(1, 0) - mu) / sd, 0.0).T
    np.testing.assert_allclose(found.values[:, 0], expected.numpy(), rtol=1e-3, atol=1e-3)


def latents(vae: nv.VAE, x: torch.Tensor) -> None:
    """Level 2: a swept latent does what decoding a latent changed by hand does; with codes, a swapped code."""
    coded, readout = vae.adapter.codebook is not None, Moments()
    swept = nv.perturb_latents(vae, x, None if coded else [0.0, 1.0], readout=readout)
    name = next(iter(swept.parts)) if coded else "1"
    z = vae.encode(x).mu.detach().clone()
    if coded:
        z[(slice(None), slice(None), *([0] * (z.ndim - 2)))] = vae.adapter.codebook[int(name.split()[1])].detach()
    else:
        z[:, 0] = 1.0
    with torch.no_grad():
        expected = (readout(vae.decode(z)) - readout(vae(x))).double().numpy().T
    np.testing.assert_allclose(swept.parts[name].values[0], expected, **close(vae, x))


def activations(vae: nv.VAE, x: torch.Tensor) -> None:
    """Level 3: patching the whole latent carries the total effect, in both directions; an encoder site can be patched."""
    pairs = nv.Pairs(x, x.roll(1, 0))
    encoder = next(site.name for site in vae.sites.values() if site.stage == "encoder")
    found = nv.patch_activations(vae, pairs, ["latent.z", encoder], readout=Moments(), per="site")
    for part in found.parts.values():
        np.testing.assert_allclose(part.values[0], total_effect(vae, pairs), **close(vae, x))
        assert np.isfinite(part.values).all()


def mediation(vae: nv.VAE, x: torch.Tensor) -> None:
    """Level 4: all of the effect goes through the latent, none beside it."""
    pairs = nv.Pairs(x, x.roll(1, 0))
    found = nv.mediate(vae, pairs, ["latent.z"], readout=Moments())
    total = total_effect(vae, pairs)
    np.testing.assert_allclose(found.tnie.values[0], total, **close(vae, x))
    np.testing.assert_allclose(found.nde.values[0], 0 * total, **close(vae, x))


def circuit(vae: nv.VAE, x: torch.Tensor) -> None:
    """The scores of a cut sum to the total effect, but for quadrature; a circuit is drawn from them.

    Not where codes are: an encoding that moves changes its code at once or not at all, and no gradient tells which.
    """
    pairs = nv.Pairs(x[:3], x[:3].roll(1, 0), factor="input")
    scores = nv.score_edges(vae, pairs, Moments(), method="ig", nodes=5)
    total = total_effect(vae, pairs)
    np.testing.assert_allclose(scores.total, total, **close(vae, x))
    if vae.adapter.codebook is None:
        scored = np.where(scores.applies[..., None], scores.values, 0.0)
        for cut in range(len(scores.cuts)):
            carried = scored[scores.cut_of == cut].sum(0) + (0 if scores.bypass is None else scores.bypass[cut])
            size = np.abs(scored[scores.cut_of == cut]).sum(0)
            assert (np.abs(carried - total) <= 0.01 * size + close(vae, x)["atol"]).all(), scores.cuts[cut]
    found = circuit_from(scores, TopK(30), resamples=0)
    assert found.graph["n_candidates"] == len(scores)
    assert all(np.isfinite(edge["effect"]) for *_, edge in found.edges(data=True))


class Images(Dataset):
    """Any inputs as a data set of one factor: what multiplies them."""

    name, factors, image_shape, graph = "inputs", ("size",), (), None

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def images_u8(self, n, seed=0):
        raise NotImplementedError

    def _fit_readout(self, progress):
        raise NotImplementedError

    def sample(self, n: int, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        size = torch.rand(n, 1, generator=generator) / 2 + 0.5
        images = self.x[torch.randint(len(self.x), (n,), generator=generator)]
        return Batch(images * size.view(-1, *[1] * (images.ndim - 1)), size)

    def pairs(self, factor: str, n: int, *, seed: int = 0, propagate: bool = True) -> nv.Pairs:
        images = self.sample(n, seed).images
        return nv.Pairs(images, images * 0.8, factor=factor)


def factors(vae: nv.VAE, x: torch.Tensor) -> None:
    """A map of every latent (every position, with codes) to a factor, sizes within their intervals."""
    found = nv.causal.map_factors(vae, Images(x), n=20, readout=Moments())
    units = nv.perturb_latents(
        vae, x, "codes" if vae.adapter.codebook is not None else "posterior", readout=Moments()
    ).units
    assert found.effects.units == units
    assert found.size.shape == (len(units), len(Moments.names))
    assert ((found.low <= found.size) & (found.size <= found.high)).all()


def snaps(vae: nv.VAE, z: torch.Tensor) -> bool:
    """Whether a code moved a little is decoded as if it had not."""
    with torch.no_grad():
        return vae.adapter.codebook is not None and torch.equal(vae.decode(z), vae.decode(z + 1e-3))


def attribution(vae: nv.VAE, x: torch.Tensor) -> None:
    """Integrated gradients from 0 to z sum to what decoding z differs by from decoding 0.

    Not of a decoder that snaps what it is given to a code: its gradients are those of what it would do without.
    """
    z = vae.encode(x).mu.detach()
    found = DecoderIntegratedGradients(vae, Moments()).attribute(z, target=1, n_steps=256)
    with torch.no_grad():
        expected = (Moments()(vae.decode(z)) - Moments()(vae.decode(torch.zeros_like(z))))[:, 1]
    size = float(found.flatten(1).abs().sum(1).max())
    assert size > 0
    if snaps(vae, z):
        return
    torch.testing.assert_close(found.flatten(1).sum(1), expected.to(found), rtol=0.02, atol=0.02 * size + 1e-7)


CAPABILITIES = {
    "manipulate_inputs": inputs,
    "perturb_latents": latents,
    "patch_activations": activations,
    "mediate": mediation,
    "circuit": circuit,
    "map_factors": factors,
    "attribution": attribution,
}
