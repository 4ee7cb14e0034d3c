"""`Reencoded`: the readout that says what the encoder sees of a reconstruction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from .arguments import require
from .reading import Readout, select
from .vae import VAE


class Reencoded:
    """The posterior mean of the reconstruction itself: h(z) = mean of encode(decode(z)), in latent units.

    Where `Latents` reads the posterior of the input, this reads that of the output, so that an intervention on a latent has an
    effect on latents: what the encoder takes the moved picture for. Targets are named `latent.mu[k]`, at a position
        `latent.mu[k]@i,j`.

    Args:
        vae: the model, whose output its own encoder can read.

    Raises:
        AdapterError: the model is not wrapped.
        DataError: in use, where the output is not an input that this model can run.

    Source: latent responses of Leeb et al. 2022, arXiv 2106.16091.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=2))
        >>> readout = Reencoded(vae)
        >>> readout.names
        ('latent.mu[0]', 'latent.mu[1]')
        >>> readout(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 2])
    """

    reads = "output"
    unit = "latent units"

    def __init__(self, vae: VAE) -> None:
        require(vae)
        self.vae = vae
        site = vae.sites["latent.mu"]
        ends = ["".join(f"@{','.join(map(str, position))}" for _ in position[:1]) for position in site.positions]
        self.names = tuple(f"{unit}{end}" for unit, end in itertools.product(site.units, ends))

    def __call__(self, reconstruction: Float[Tensor, "n *image"]) -> Float[Tensor, "n t"]:
        """The posterior mean of each reconstruction, flattened."""
        return self.vae.encode(reconstruction).mu.flatten(1)

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        return select(self, names)

    def __repr__(self) -> str:
        return f"Reencoded({type(self.vae.module).__name__})"
