"""Small Gaussian VAEs, plain ``nn.Module``s: an `encoder`, two heads `fc_mu` and `fc_logvar`, a `decoder`.

They are written for interpretation: every layer is a module of a `Sequential` (so it is a site of its own), and the
ReLUs work out of place (an in-place one overwrites the activation that was to be read).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import DataError

_CHANNELS = (16, 32, 32, 32)
_SMALLEST_MAP = 4


class GaussianVAE(nn.Module):
    """What the Gaussian networks share: how the four parts are called. Build `ConvVAE`, `ResidualVAE` or `MLPVAE`."""

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc_mu = nn.Linear(hidden, latent)
        self.fc_logvar = nn.Linear(hidden, latent)
        self.decoder = decoder

    # Annotated `Tensor` and not with shapes: torch.jit.script reads these annotations and knows no others.
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior q(z|x) = N(mu, diag(exp(logvar))) of images `[n, c, h, w]` in [0, 1]; both are `[n, latent]`."""
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        """Pixel probabilities `[n, c, h, w]` in (0, 1) of latents `[n, latent]`."""
        return self.decoder(z)

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct: ``(decode(mu + exp(logvar / 2) * eps), mu, logvar)``.

        Args:
            x: images `[n, c, h, w]` in [0, 1].
            eps: standard normal noise `[n, latent]`; without it the posterior mean is decoded, so a plain call is
                deterministic.
        """
        mu, logvar = self.encode(x)
        z = mu
        if eps is not None:
            z = mu + torch.exp(0.5 * logvar) * eps
        return self.decode(z), mu, logvar


class ConvVAE(GaussianVAE):
    """Convolutional VAE: each encoder step halves the image, each decoder step doubles it.

    ``encoder``: (Conv2d 4x4 stride 2, ReLU) per entry of `channels`, Flatten, Linear, ReLU. ``decoder``: Linear, ReLU,
    Linear, ReLU, Unflatten, then (ConvTranspose2d 4x4 stride 2, ReLU) back up, the last one followed by Sigmoid.

    Args:
        image_shape: (channels, height, width) of one image.
        latent: number of latent dimensions.
        channels: output channels of each encoder convolution. Default: as many of (16, 32, 32, 32) as halve the image
            evenly down to no less than 4 pixels (four for 64x64, two for 16x16, one for 8x8).
        hidden: width of the linear layer between the convolutions and the latents.

    Raises:
        DataError: if a size is not positive, or the image cannot be halved `len(channels)` times.

    Source: the encoder/decoder shape of Higgins et al. 2017 (beta-VAE), table 1, narrowed.

    Example:
        >>> model = ConvVAE(image_shape=(1, 16, 16), latent=4)
        >>> reconstruction, mu, logvar = model(torch.zeros(2, 1, 16, 16))
        >>> reconstruction.shape, mu.shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 64, 64),
        latent: int = 8,
        channels: Sequence[int] | None = None,
        hidden: int = 128,
    ) -> None:
        channels, small = halvings(image_shape, channels)
        check_positive("latent and hidden", latent, hidden)
        encoder = nn.Sequential(
            *halving(image_shape[0], channels), nn.Flatten(), nn.Linear(math.prod(small), hidden), nn.ReLU()
        )
        decoder = nn.Sequential(
            *_linear_relu((latent, hidden, math.prod(small))),
            nn.Unflatten(1, small),
            *doubling(channels, image_shape[0]),
        )
        super().__init__(encoder, decoder, hidden, latent)


class ResidualVAE(GaussianVAE):
    """A `ConvVAE` with a residual block, ``h + Conv2d 3x3 (ReLU (Conv2d 3x3 (ReLU h)))``, at each size of the maps.

    ``encoder``: (Conv2d 4x4 stride 2, Residual, ReLU) per entry of `channels`, Flatten, Linear, ReLU. ``decoder``: Linear,
    ReLU, Linear, ReLU, Unflatten, then (Residual, ReLU, ConvTranspose2d 4x4 stride 2) back up, followed by Sigmoid.

    Args:
        image_shape: (channels, height, width) of one image.
        latent: number of latent dimensions.
        channels: output channels of each halving. Default: as for `ConvVAE`.
        hidden: width of the linear layer between the maps and the latents.

    Raises:
        DataError: if a size is not positive, or the image cannot be halved `len(channels)` times.

    Source: residual blocks: He et al. 2016 (arXiv 1603.05027), without normalisation.

    Example:
        >>> ResidualVAE(image_shape=(1, 8, 8), latent=3).decode(torch.zeros(5, 3)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 64, 64),
        latent: int = 8,
        channels: Sequence[int] | None = None,
        hidden: int = 128,
    ) -> None:
        channels, small = halvings(image_shape, channels)
        check_positive("latent and hidden", latent, hidden)
        encoder = nn.Sequential(
            *halving(image_shape[0], channels, residual=True),
            nn.Flatten(),
            nn.Linear(math.prod(small), hidden),
            nn.ReLU(),
        )
        decoder = nn.Sequential(
            *_linear_relu((latent, hidden, math.prod(small))),
            nn.Unflatten(1, small),
            *doubling(channels, image_shape[0], residual=True),
        )
        super().__init__(encoder, decoder, hidden, latent)


class MLPVAE(GaussianVAE):
    """Fully connected VAE.

    ``encoder``: Flatten, then (Linear, ReLU) per entry of `hidden`. ``decoder``: the mirror image, then Linear,
    Sigmoid, Unflatten back to the image.

    Args:
        image_shape: (channels, height, width) of one image.
        latent: number of latent dimensions.
        hidden: widths of the encoder's hidden layers; the decoder has them reversed.

    Raises:
        DataError: if a size is not positive.

    Source: Kingma and Welling 2014 (arXiv 1312.6114), appendix C, with ReLU.

    Example:
        >>> MLPVAE(image_shape=(1, 8, 8), latent=3).decode(torch.zeros(5, 3)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, image_shape: Sequence[int] = (1, 8, 8), latent: int = 8, hidden: Sequence[int] = (128, 64)
    ) -> None:
        shape = checked_shape(image_shape)
        widths = (math.prod(shape), *hidden)
        check_positive("hidden", *hidden, at_least=1)
        check_positive("latent", latent)

        encoder = nn.Sequential(nn.Flatten(), *_linear_relu(widths))
        decoder = nn.Sequential(
            *_linear_relu((latent, *widths[:0:-1])),
            nn.Linear(widths[1], widths[0]),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )
        super().__init__(encoder, decoder, widths[-1], latent)


class Residual(nn.Module):
    """``h + second(act(first(ReLU h)))``: maps of the same size and channels, `[n, width, h, w]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.act = nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """The maps, and what the block adds to them."""
        return h + self.second(self.act(self.first(self.relu(h))))


def halvings(
    image_shape: Sequence[int], channels: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """The channels of each halving of an image, chosen if None, and the shape of the maps that are left.

    Raises:
        DataError: if a size is not positive, or the image cannot be halved so often.

    Example:
        >>> halvings((3, 64, 64), None), halvings((1, 8, 8), None)
        (((16, 32, 32, 32), (32, 4, 4)), ((16,), (16, 4, 4)))
    """
    _, h, w = checked_shape(image_shape)
    channels = _default_channels(h, w) if channels is None else tuple(channels)
    check_positive("channels", *channels, at_least=1)
    factor = 2 ** len(channels)
    if h % factor or w % factor:
        raise DataError(
            f"an image of {h}x{w} pixels cannot be halved {len(channels)} times (channels={channels}). Expected height "
            f"and width divisible by {factor}: pass fewer channels, pad the images, or use MLPVAE."
        )
    return channels, (channels[-1], h // factor, w // factor)


def halving(n_in: int, channels: Sequence[int], *, residual: bool = False) -> list[nn.Module]:
    """Layers that halve an image once per entry of `channels`: Conv2d 4x4 stride 2, (Residual,) ReLU."""
    layers: list[nn.Module] = []
    for n_before, n_out in itertools.pairwise((n_in, *channels)):
        block = [Residual(n_out)] if residual else []
        layers += [nn.Conv2d(n_before, n_out, 4, stride=2, padding=1), *block, nn.ReLU()]
    return layers


def doubling(channels: Sequence[int], n_out: int, *, residual: bool = False) -> list[nn.Module]:
    """Layers from the smallest maps back to an image in (0, 1): (Residual, ReLU,) ConvTranspose2d 4x4 stride 2, ReLU."""
    layers: list[nn.Module] = []
    for n_before, n_after in itertools.pairwise((*channels[::-1], n_out)):
        block = [Residual(n_before), nn.ReLU()] if residual else []
        layers += [*block, nn.ConvTranspose2d(n_before, n_after, 4, stride=2, padding=1), nn.ReLU()]
    return [*layers[:-1], nn.Sigmoid()]


def _linear_relu(widths: Sequence[int]) -> list[nn.Module]:
    return [layer for n_in, n_out in itertools.pairwise(widths) for layer in (nn.Linear(n_in, n_out), nn.ReLU())]


def _default_channels(height: int, width: int) -> tuple[int, ...]:
    halvings = 0
    side = min(height, width)
    while side % 2 == 0 and side // 2 >= _SMALLEST_MAP and max(height, width) % 2 ** (halvings + 1) == 0:
        side //= 2
        halvings += 1
    return _CHANNELS[: max(halvings, 1)]


def checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of an image as whole numbers.

    Raises:
        DataError: if it is not three positive sizes.
    """
    if len(image_shape) != 3:
        raise DataError(f"image_shape={tuple(image_shape)}: expected (channels, height, width).")
    c, h, w = (int(size) for size in image_shape)
    check_positive("image_shape", c, h, w)
    return c, h, w


def check_positive(name: str, *sizes: int, at_least: int = 0) -> None:
    """Refuse fewer than `at_least` sizes, or one below 1.

    Raises:
        DataError: names them.
    """
    if len(sizes) < at_least or any(size < 1 for size in sizes):
        raise DataError(f"{name}: got {sizes}, expected positive sizes.")
