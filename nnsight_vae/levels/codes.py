"""Discrete latents: which code each position has, how often codes are used, and what a code can be put in the place of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.engine import activations
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Quantize
from nnsight_vae.models.quantizer import nearest_code
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE

CODES = 32  # most codes that each position is swapped to


def codebook_of(vae: VAE) -> Float[Tensor, "code channel"]:
    """The codebook of a VAE with discrete latents.

    Raises:
        InterventionError: it has none, or one that does not fit its latent.
    """
    codebook, channels = vae.adapter.codebook, vae.sites["latent.z"].n_units
    if codebook is None:
        raise InterventionError("this VAE has no codebook; pass codebook= to nv.adapt for a discrete latent.")
    if codebook.ndim != 2 or codebook.shape[1] != channels:
        raise InterventionError(f"a codebook of shape {tuple(codebook.shape)} does not fit {channels} latent channels.")
    return codebook.detach()


def nearest_codes(vae: VAE, z: Float[Tensor, "n channel *position"]) -> Int[Tensor, "n *position"]:
    """The codebook row nearest to the latent vector at each position: what a vector quantiser makes of it.

    Of `vae.encode(x).mu` these are the indices of the codes in use; of what the site before the quantiser gives, the codes that it
    becomes, also where a patch has moved it.

    Args:
        vae: a VAE with a codebook.
        z: codes, or encodings in their place.

    Returns: rows of the codebook.

    Raises:
        InterventionError: the VAE has no codebook, or one that does not fit its latent.

    Example:
        >>> import torch
        >>> from nnsight_vae.models import VQVAE
        >>> vae, x = VAE(VQVAE(image_shape=(1, 16, 16), latent=4, codes=8)), torch.rand(2, 1, 16, 16)
        >>> nearest_codes(vae, vae.encode(x).mu).shape
        torch.Size([2, 4, 4])
        >>> encoding = activations(vae, x, ["encoder"])["encoder"]
        >>> bool((nearest_codes(vae, encoding) == nearest_codes(vae, vae.encode(x).mu)).all())
        True
    """
    return nearest_code(z, codebook_of(vae).to(z))


def code_usage(vae: VAE, x: Float[Tensor, "n *image"]) -> Float[np.ndarray, " code"]:
    """Share of the positions of x that have each code."""
    codes = nearest_codes(vae, activations(vae, x, ["latent.z"])["latent.z"]).flatten().cpu().numpy()
    return np.bincount(codes, minlength=len(codebook_of(vae))) / len(codes)


def drawn_codes(vae: VAE, x: Float[Tensor, "n *image"]) -> tuple[list[int], tuple[float, ...]]:
    """The codes that x uses and the share of each: all of them, or a sample by usage where they are more than 32."""
    weights = code_usage(vae, x)
    if np.count_nonzero(weights) > CODES:  # multinomial shares are unbiased for the usage, whatever its shape
        weights = np.random.default_rng(0).multinomial(CODES, weights) / CODES
    codes = np.flatnonzero(weights)
    return codes.tolist(), tuple(weights[codes].tolist())


def require_codes(vae: VAE, what: Mapping[str, tuple[Selection, ...]], listed: Sequence[Intervention]) -> None:
    """Refuse codes that the codebook does not have, and parts of a latent vector in the place of which no code can be put.

    Raises:
        InterventionError: names the code or the part.
    """
    n_codes, everything = len(codebook_of(vae)), tuple(range(vae.sites["latent.z"].n_units))
    for name, joint in what.items():
        if any(selection.indices not in (None, everything) for selection in joint):
            raise InterventionError(f"a code is a whole latent vector, {name} is a part of one; use per='position'.")
    beyond = [each for each in listed if isinstance(each, Quantize) and each.code >= n_codes]
    if beyond:
        raise InterventionError(f"{beyond[0]!r} does not fit a codebook of {n_codes} codes.")
