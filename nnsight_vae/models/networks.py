"""Two small VAEs, plain ``nn.Module``s: an `encoder`, two heads `fc_mu` and `fc_logvar`, a `decoder`.

They are written for interpretation: every layer is a module of a `Sequential` (so it is a site of its own), and the
ReLUs work out of place (an in-place one overwrites the activation that was to be read).
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError

_CHANNELS = (16, 32, 32, 32)
_SMALLEST_MAP = 4


class GaussianVAE(nn.Module):
    """What both networks share: how the four parts are called. Build `ConvVAE` or `MLPVAE`."""

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
        c, h, w = _checked_shape(image_shape)
        channels = _default_channels(h, w) if channels is None else tuple(channels)
        _check_positive("channels", *channels, at_least=1)
        _check_positive("latent and hidden", latent, hidden)
        factor = 2 ** len(channels)
        if h % factor or w % factor:
            raise DataError(
                f"ConvVAE: an image of {h}x{w} pixels cannot be halved {len(channels)} times (channels={channels}). "
                f"Expected height and width divisible by {factor}: pass fewer channels, pad the images, or use MLPVAE."
            )
        small = (channels[-1], h // factor, w // factor)

        down: list[nn.Module] = []
        for n_in, n_out in zip((c, *channels), channels, strict=False):
            down += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(small), hidden), nn.ReLU())

        up: list[nn.Module] = []
        for n_in, n_out in zip(channels[::-1], (*channels[-2::-1], c), strict=True):
            up += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        decoder = nn.Sequential(
            *_linear_relu((latent, hidden, math.prod(small))), nn.Unflatten(1, small), *up[:-1], nn.Sigmoid()
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
        shape = _checked_shape(image_shape)
        widths = (math.prod(shape), *hidden)
        _check_positive("hidden", *hidden, at_least=1)
        _check_positive("latent", latent)

        encoder = nn.Sequential(nn.Flatten(), *_linear_relu(widths))
        decoder = nn.Sequential(
            *_linear_relu((latent, *widths[:0:-1])),
            nn.Linear(widths[1], widths[0]),
            nn.Sigmoid(),
            nn.Unflatten(1, shape),
        )
        super().__init__(encoder, decoder, widths[-1], latent)


ARCHITECTURES: Mapping[str, type[GaussianVAE]] = {"ConvVAE": ConvVAE, "MLPVAE": MLPVAE}


def build(architecture: str, arguments: Mapping[str, Any], generator: torch.Generator) -> GaussianVAE:
    """Make one of `ARCHITECTURES` with weights drawn from `generator`.

    Weights and biases are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's own default for these layers. torch's global
    random state is neither used nor advanced.

    Args:
        architecture: "ConvVAE" or "MLPVAE".
        arguments: keyword arguments of its constructor.
        generator: on the CPU; advanced.

    Raises:
        DataError: if the architecture or one of its arguments is unknown or unfit.

    Example:
        >>> one, two = (build("MLPVAE", {"latent": 2}, torch.Generator().manual_seed(0)) for _ in range(2))
        >>> torch.equal(one.fc_mu.weight, two.fc_mu.weight)
        True
    """
    module = empty(architecture, arguments).to_empty(device="cpu")
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
    return module


def complete(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the constructor's defaults filled in, so that a record outlives a change of defaults.

    Raises:
        DataError: if the architecture or an argument is unknown.

    Example:
        >>> complete("MLPVAE", {"latent": 2})
        {'image_shape': (1, 8, 8), 'latent': 2, 'hidden': (128, 64)}
    """
    if architecture not in ARCHITECTURES:
        raise DataError(f"Unknown architecture {architecture!r}. Known: {', '.join(ARCHITECTURES)}.")
    try:
        bound = inspect.signature(ARCHITECTURES[architecture]).bind(**arguments)
    except TypeError as error:
        raise DataError(f"{architecture} cannot be built from {dict(arguments)}: {error}.") from error
    bound.apply_defaults()
    return bound.arguments


def empty(architecture: str, arguments: Mapping[str, Any]) -> GaussianVAE:
    """One of `ARCHITECTURES` on torch's meta device: shapes without weights, no random number drawn.

    Raises:
        DataError: if the architecture or one of its arguments is unknown or unfit.
    """
    arguments = complete(architecture, arguments)
    with torch.device("meta"):
        return ARCHITECTURES[architecture](**arguments)


def _linear_relu(widths: Sequence[int]) -> list[nn.Module]:
    return [layer for n_in, n_out in itertools.pairwise(widths) for layer in (nn.Linear(n_in, n_out), nn.ReLU())]


def _default_channels(height: int, width: int) -> tuple[int, ...]:
    halvings = 0
    side = min(height, width)
    while side % 2 == 0 and side // 2 >= _SMALLEST_MAP and max(height, width) % 2 ** (halvings + 1) == 0:
        side //= 2
        halvings += 1
    return _CHANNELS[: max(halvings, 1)]


def _checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(image_shape) != 3:
        raise DataError(f"image_shape={tuple(image_shape)}: expected (channels, height, width).")
    c, h, w = (int(size) for size in image_shape)
    _check_positive("image_shape", c, h, w)
    return c, h, w


def _check_positive(name: str, *sizes: int, at_least: int = 0) -> None:
    if len(sizes) < at_least or any(size < 1 for size in sizes):
        raise DataError(f"{name}: got {sizes}, expected positive sizes.")
