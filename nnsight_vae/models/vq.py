"""A VAE with discrete latents over the same convolutions: one code of a codebook at each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .networks import check_positive, doubling, halving, halvings
from .quantizer import VectorQuantizer

_POINT_MASS = -60.0  # log variance of a posterior that is all at one code: sd 1e-13, and finite, as analyses ask


class VQVAE(nn.Module):
    """VQ-VAE: a map of encodings, each replaced by the nearest of `codes` vectors, decoded by convolutions.

    ``encoder``: (Conv2d 4x4 stride 2, ReLU) per entry of `channels`, then Conv2d 1x1 to `latent` channels. ``quantizer``:
    `VectorQuantizer`. ``decoder``: Conv2d 1x1, ReLU, then (ConvTranspose2d 4x4 stride 2, ReLU) back up, the last one
    followed by Sigmoid.

    In `nv.VAE` the site `encoder` is the encoding before quantisation, so that a patch there moves which code is nearest;
    `quantizer`, `latent.mu` and `latent.z` are the code at each position, `levels.codes.nearest_codes(vae, z)` tells its index,
    and `nv.Quantize(k)` puts code k there. The decoder takes what it is given: a value that is no code
    is not snapped back to one.

    Args:
        image_shape: (channels, height, width) of one image.
        latent: length of a code.
        codes: number of codes, K.
        channels: output channels of each encoder convolution. Default: as for `ConvVAE`, so there are 4x4 codes in a
            64x64 image.

    Raises:
        DataError: if a size is not positive, or the image cannot be halved `len(channels)` times.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 3, with the convolutions of `ConvVAE`.

    Example:
        >>> model = VQVAE(image_shape=(1, 16, 16), latent=4, codes=8)
        >>> reconstruction, encoding, code = model(torch.zeros(2, 1, 16, 16))
        >>> reconstruction.shape, code.shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 4, 4, 4]))
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 64, 64),
        latent: int = 8,
        codes: int = 64,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        channels, (width, *_) = halvings(image_shape, channels)
        check_positive("latent and codes", latent, codes)
        self.encoder = nn.Sequential(*halving(image_shape[0], channels), nn.Conv2d(width, latent, 1))
        self.quantizer = VectorQuantizer(codes, latent)
        self.decoder = nn.Sequential(nn.Conv2d(latent, width, 1), nn.ReLU(), *doubling(channels, image_shape[0]))

    @property
    def codebook(self) -> Tensor:
        """The codes, `[codes, latent]`; found here by `nv.VAE`."""
        return self.quantizer.codebook

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code at each position `[n, latent, h, w]` of images `[n, c, h, w]`, and the log variance of no spread."""
        q = self.quantizer(self.encoder(x))
        return q, torch.full_like(q, _POINT_MASS)

    def decode(self, z: Tensor) -> Tensor:
        """Pixel probabilities `[n, c, h, w]` in (0, 1) of codes `[n, latent, h, w]`."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images `[n, c, h, w]` in [0, 1]: ``(decode(q), h, q)``, with the encoding h and its code q."""
        h = self.encoder(x)
        q = self.quantizer(h)
        return self.decode(q), h, q
