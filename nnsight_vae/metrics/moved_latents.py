"""What a readout sees of a decoder whose latents are moved as far as the data go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

_CHUNK = 256  # codes decoded at once


@dataclass(frozen=True)
class MovedLatents:
    """Readouts of decoded codes, latents moved one at a time and all but one at a time.

    Attributes:
        base: readout of the codes as they are.
        alone: change when one latent is moved to the end of its range that is farther.
        others: change when all others are.
        span: | mean readout with the latent at its largest - mean with it at its smallest |.
    """

    base: Float[np.ndarray, "factor example"]
    alone: Float[np.ndarray, "latent factor example"]
    others: Float[np.ndarray, "latent factor example"]
    span: Float[np.ndarray, "latent factor"]

    @property
    def reach(self) -> Float[np.ndarray, " factor"]:
        """How far each factor goes to the end of its range that is farther, on average over the examples."""
        low, high = self.base.min(axis=1, keepdims=True), self.base.max(axis=1, keepdims=True)
        return np.maximum(self.base - low, high - self.base).mean(axis=1)

    @property
    def shares(self) -> Float[np.ndarray, "latent factor"]:
        """The spans as shares of each factor's range."""
        return self.span / np.ptp(self.base, axis=1)


def moved_latents(
    vae: VAE, codes: Float[Tensor, "example latent"], latents: tuple[int, ...], readout: Readout
) -> MovedLatents:
    """Decode codes with some latents moved, alone or all but each, and read the images.

    Args:
        vae: the model; its decoder alone runs.
        codes: posterior means.
        latents: which are moved, and between which ends their data lie; the rest keep their values.
        readout: what is read of the decoded images.
    """
    low, high = codes.min(dim=0).values, codes.max(dim=0).values
    farther = torch.where(codes - low > high - codes, low, high)

    def read(columns: list[int], values: Tensor) -> np.ndarray:
        moved = codes.clone()
        moved[:, columns] = values.expand_as(codes)[:, columns]
        with torch.no_grad():
            parts = [readout(vae.decode(chunk)) for chunk in moved.split(_CHUNK)]
        return torch.cat(parts).T.double().cpu().numpy()

    base = read([], codes)
    alone = np.stack([read([k], farther) - base for k in latents])
    others = np.stack([read([j for j in latents if j != k], farther) - base for k in latents])
    span = np.stack([np.abs((read([k], high) - read([k], low)).mean(axis=1)) for k in latents])
    return MovedLatents(base, alone, others, span)
