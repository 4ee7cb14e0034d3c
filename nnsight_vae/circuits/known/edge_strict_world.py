"""The world of the edge-strict model: three factors, their pictures, and how its circuit is named."""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.circuits.known.circuit import Edge, Projection, Task
from nnsight_vae.circuits.known.wiring import Wiring
from nnsight_vae.pairs import Pairs

NAMES = ("f0", "f1", "f2")
IMAGE = (6, 2, 2)  # two channels a factor
LATENT = 4
HIDDEN = (30, 20)
ARGUMENTS = {"image_shape": IMAGE, "latent": LATENT, "hidden": HIDDEN}  # of the `MLPVAE`
COLUMNS = ("input", "encoder.1", "encoder.3", "latent.z", "decoder.0", "decoder.2", "output")
CHANNEL_OF = (0, 0, 1, 1, 2, 2)
TASKS = (Task("f0", "f0"), Task("f0", "f1"), Task("f1", "f1"), Task("f2", "f2"))

_EFFECT = 0.6  # f1 = u1 + 0.6 relu(f0)
_PICTURE_SEED = 0


def dag() -> nx.DiGraph:
    """f0 -> f1, and f2 apart."""
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(NAMES)
    graph.add_edge("f0", "f1")
    return graph


def factors_from(noise: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """The factors: f0 = u0, f1 = u1 + 0.6 relu(f0), f2 = u2."""
    f0, u1, f2 = noise.unbind(1)
    return torch.stack([f0, u1 + _EFFECT * f0.relu(), f2], dim=1)


def pictures() -> tuple[Float[Tensor, "c h w"], Float[Tensor, "c h w"]]:
    """Slope and offset of every pixel's logit in the factor of its channel."""
    generator = torch.Generator().manual_seed(_PICTURE_SEED)
    size, sign, offset = (torch.rand(IMAGE, generator=generator) for _ in range(3))
    return (0.7 + 0.6 * size) * torch.where(sign < 0.5, -1.0, 1.0), 1.2 * offset - 0.6


def render(factors: Float[Tensor, "n 3"]) -> Float[Tensor, "n c h w"]:
    """Pixels sigmoid(offset + slope f), f the factor of the channel."""
    slope, offset = pictures()
    return torch.sigmoid(offset + slope * factors[:, CHANNEL_OF, None, None])


def readout() -> Projection:
    """Each factor as the logits of its channels show it: their mean of (logit - offset) / slope."""
    slope, offset = pictures()
    own = torch.tensor(CHANNEL_OF) == torch.arange(len(NAMES))[:, None]
    return Projection(NAMES, own[:, :, None, None] / slope / (slope.numel() / len(NAMES)), offset, logits=True)


def pairs(factor: str, n: int, seed: int) -> Pairs:
    """Pairs with do(factor = low) and do(factor = high); what it causes follows, all noise is shared."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, len(NAMES), generator=generator)
    value = torch.randn(n, 2, generator=generator).sort(1).values
    k, tables = NAMES.index(factor), []
    for i in range(2):
        table = noise.clone()
        table[:, k] = value[:, i]
        table = factors_from(table)
        table[:, k] = value[:, i]
        tables.append(table)
    return Pairs(
        render(tables[0]),
        render(tables[1]),
        factor,
        base_factors=tables[0],
        source_factors=tables[1],
        factor_names=NAMES,
        propagate=True,
        record={"world": "edge-strict", "seed": seed},
    )


def wiring(live: tuple[Bool[np.ndarray, "source target"], ...]) -> Wiring:
    """The connections that the model was trained to need, over node ids."""
    sizes = (len(CHANNEL_OF), *HIDDEN, LATENT, *HIDDEN[::-1], len(CHANNEL_OF))
    channel_of = np.array(CHANNEL_OF)
    return Wiring(
        tuple(tuple(f"{site}[{i}]" for i in range(size)) for site, size in zip(COLUMNS, sizes, strict=True)),
        live,
        {"f0": channel_of <= 1, "f1": channel_of == 1, "f2": channel_of == 2},
        {name: channel_of == k for k, name in enumerate(NAMES)},
    )


def undecided(live: tuple[Bool[np.ndarray, "source target"], ...]) -> dict[Task, frozenset[Edge]]:
    """Edges that are right to find only as far as the model is wrong.

    do(f0) moves the pictures of f0 and f1, whose parts in latent 1, the noise of f1, cancel: what is left is error.
    """
    units = np.flatnonzero(live[3][1]).tolist()
    return {Task("f0", "f1"): frozenset(("latent.z[1]", f"decoder.0[{j}]") for j in units)}
