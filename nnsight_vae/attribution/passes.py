"""How many rows go through the decoder at a time."""

from __future__ import annotations

import torch

from nnsight_vae.engine import CHUNK_BYTES, MIN_ROWS
from nnsight_vae.vae import VAE


def rows_per_pass(vae: VAE) -> int:
    """As many latents as keep the decoder's largest activation within the engine's bound, but not too few."""
    firings = vae.layout().firings
    begun = firings["latent.z"].started
    sizes = [torch.Size(f.shape[1:]).numel() for f in firings.values() if f.shape and f.finished >= begun]
    parameter = vae._parameter
    element = 4 if parameter is None else parameter.element_size()
    return max(MIN_ROWS, CHUNK_BYTES // (max(sizes) * element))
