"""The network of a glass box: filters, latents and blocks, weight by weight; and what may be added to it.

Connections are marked by what they are: 0 for none, `ORDINARY`, or `REDUNDANT` and `CANCELLING` for those that only mean
something together.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnsight_vae.circuits.known.hiding import bias_of, columns, layer_at, rewrite
from nnsight_vae.models.networks import GaussianVAE

ORDINARY, REDUNDANT, CANCELLING = 1, 2, 3
TILE = 4  # pixels a side
COLOURS = 3
CONTRAST = 0.1
NOISE = 0.12  # sd of a pixel: the posterior mean shrinks by 1 / (1 + NOISE^2 / (16 CONTRAST^2)), about 8 %
GREY = 0.5

_STEEP = 40.0  # a redundant unit is up to its ceiling of 1 where its factor exceeds 1 / _STEEP
_TWIN = 2.0  # what cancelling units write, with opposite signs

Marks = tuple[Int[np.ndarray, "source target"], ...]


def blocks(
    patterns: Float[Tensor, "factor tile tile"],
    loading: Float[Tensor, "factor latent"],
    side: int,
    generator: torch.Generator,
) -> tuple[GaussianVAE, Marks]:
    """The network without disguise, and its connections; units and channels in the order factor, sign, copy.

    Args:
        patterns: of each factor's tile.
        loading: of the factors on the latents, A (or A turned).
        side: tiles along a side of the image.
        generator: of what the units of a sign share.
    """
    k = len(patterns)
    with torch.device("meta"):  # so that no random number is drawn
        encoder = nn.Sequential(
            nn.Conv2d(COLOURS, 2 * k, TILE, stride=TILE),
            nn.ReLU(),
            nn.Conv2d(2 * k, 4 * k, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        decoder = nn.Sequential(
            *(nn.Linear(k, 4 * k), nn.ReLU(), nn.Linear(4 * k, 2 * k * side**2), nn.ReLU()),
            nn.Unflatten(1, (2 * k, side, side)),
            *(nn.ConvTranspose2d(2 * k, 2 * k, TILE, stride=TILE), nn.ReLU(), nn.Conv2d(2 * k, COLOURS, 1)),
        )
        module = GaussianVAE(encoder, decoder, 4 * k * side**2, k)
    module.to_empty(device="cpu")
    power = TILE**2 * CONTRAST**2
    precision = power * loading.T @ loading + NOISE**2 * torch.eye(k, dtype=torch.float64)
    mean_of = torch.linalg.solve(precision, loading.T) * CONTRAST  # of the filters' answers, <pattern, tile>
    gain = 0.5 + torch.rand(2, k, 2, 2, generator=generator, dtype=torch.float64)  # [half, factor, sign, copy]
    share = 0.3 + 0.4 * torch.rand(2, k, 2, generator=generator, dtype=torch.float64)  # of one unit of the two
    into = torch.stack([share, 1 - share], dim=-1) / gain  # what undoes the gain, unit by unit
    sign = (1, -1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        filters, spread = (layer_at(module, f"encoder.{i}").weight for i in (0, 2))
        units, joined, halves, image = (layer_at(module, f"decoder.{i}").weight for i in (0, 2, 5, 7))
        to_mu, maps = module.fc_mu.weight.view(k, 4 * k, side**2), joined.view(2 * k, side**2, 4 * k)
        for f in range(k):
            for s in range(2):
                filters[2 * f + s, f % COLOURS] = sign[s] * patterns[f]
                for copy in range(2):
                    unit = 4 * f + 2 * s + copy
                    spread[unit, 2 * f + s] = gain[0, f, s, copy]
                    to_mu[:, unit, f] = (sign[s] * into[0, f, s, copy] * mean_of[:, f]).float()
                    units[unit] = (sign[s] * gain[1, f, s, copy] * loading[f]).float()
                    maps[2 * f + s, f, unit] = into[1, f, s, copy]
                halves[2 * f + s, 2 * f] = CONTRAST * (sign[s] * patterns[f]).clamp(min=0)
                halves[2 * f + s, 2 * f + 1] = CONTRAST * (-sign[s] * patterns[f]).clamp(min=0)
                image[f % COLOURS, 2 * f + s] = sign[s]
        bias_of(layer_at(module, "decoder.7")).fill_(GREY)
        module.fc_logvar.bias.copy_(torch.log(NOISE**2 / precision.diagonal()))
    return module, _live(mean_of, loading)


def _live(mean_of: Float[Tensor, "latent factor"], loading: Float[Tensor, "factor latent"]) -> Marks:
    k = len(loading)
    blocks = np.eye(k, dtype=bool)
    means, loads = ((matrix.abs() > 1e-9).numpy() for matrix in (mean_of, loading))
    signs = np.eye(2 * k, dtype=bool)
    marks = (
        blocks.repeat(2, axis=1),  # tile -> filter of either sign
        signs.repeat(2, axis=1),  # filter -> two units
        means.T.repeat(4, axis=0),  # -> latents
        loads.T.repeat(4, axis=1),  # latents -> units of each block
        signs.repeat(2, axis=0),  # unit -> channel of its sign
        blocks.repeat(2, axis=0).repeat(2, axis=1),  # channel -> light and dark half
        blocks.repeat(2, axis=0),  # half -> tile
    )
    return tuple(mark.astype(np.int8) for mark in marks)


@torch.no_grad()
def leak(module: GaussianVAE, share: float, generator: torch.Generator) -> None:
    """Add noise to every weight, in place: normal, of this share of the median size of the weights in its layer."""
    for layer in (layer_at(module, column.writer) for column in columns(module)):
        size = layer.weight[layer.weight != 0].abs().median()
        layer.weight += share * size * torch.randn(layer.weight.shape, generator=generator)


@torch.no_grad()
def add_groups(
    module: GaussianVAE, marks: Marks, loading: Float[Tensor, "factor latent"], side: int
) -> tuple[GaussianVAE, Marks]:
    """Give the decoder two units for f0 that cancel, and two of which either one turns a switch on; in place.

    The twins read f0 > 0 and write the same with opposite signs into its channel. The switch is a tile of its own, after
    those of the factors: light where f0 < 0, grey where f0 > 0: v = relu(1 - u1 - u2) of two units u that exceed 1 as soon
    as f0 is over 0.025.

    Returns: the module, and the marks of its connections, with a further part of the output for the switch.
    """
    k = len(loading)
    weights = [layer_at(module, f"decoder.{i}").weight.data for i in (0, 2, 5, 7)]
    first = loading[0].float()
    extra = torch.stack([first, first, _STEEP * first, _STEEP * first])
    rewrite(module, "decoder.0", weight=torch.cat([weights[0], extra]), bias=torch.zeros(4 * k + 4))
    maps = torch.zeros(2 * k + 1, side**2, 4 * k + 4)
    maps[: 2 * k, :, : 4 * k] = weights[1].view(2 * k, side**2, 4 * k)
    maps[0, 0, 4 * k], maps[0, 0, 4 * k + 1] = _TWIN, -_TWIN
    maps[2 * k, k, 4 * k + 2 :] = -1.0
    bias = torch.zeros(2 * k + 1, side**2)
    bias[2 * k, k] = 1.0
    rewrite(module, "decoder.2", weight=maps.flatten(0, 1), bias=bias.flatten())
    module.decoder[4] = nn.Unflatten(1, (2 * k + 1, side, side))
    halves = torch.zeros(2 * k + 1, 2 * k + 1, TILE, TILE)
    halves[: 2 * k, : 2 * k] = weights[2]
    halves[2 * k, 2 * k] = CONTRAST
    rewrite(module, "decoder.5", weight=halves, bias=torch.zeros(2 * k + 1))
    image = torch.zeros(COLOURS, 2 * k + 1, 1, 1)
    image[:, : 2 * k] = weights[3]
    image[k % COLOURS, 2 * k] = 1.0
    rewrite(module, "decoder.7", weight=image)
    return module, (*marks[:3], *_with_groups(marks[3:], (first.abs() > 1e-9).numpy(), k))


def _with_groups(marks: Marks, reads: np.ndarray, k: int) -> Marks:
    into, maps, halves, tiles = (
        np.pad(mark, ((0, rows), (0, more))) for mark, rows, more in zip(marks, (0, 4, 1, 1), (4, 1, 1, 1), strict=True)
    )
    into[:, 4 * k :] = reads[:, None] * np.array([CANCELLING, CANCELLING, REDUNDANT, REDUNDANT])
    maps[4 * k : 4 * k + 2, 0] = CANCELLING
    maps[4 * k + 2 :, 2 * k] = REDUNDANT
    halves[2 * k, 2 * k] = tiles[2 * k, k] = ORDINARY
    return into, maps, halves, tiles
