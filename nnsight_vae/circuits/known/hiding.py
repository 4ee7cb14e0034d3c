"""Hiding a wiring without changing what the network computes: decoys, copies, and new names and scales for units.

Every hidden column of nodes (units or channels between two linear layers, behind a ReLU) may be

- permuted: the order of its nodes says nothing;
- rescaled: relu(g p) = g relu(p) for g > 0, so what is written g times larger is read g times smaller, and the size of a
  weight says nothing;
- copied: a node and its copy are each read in part;
- camouflaged: *closed gates* (bias below anything that their large inputs add up to, large weights out) and *unread* nodes
  (large weights in from everything, none out; a column's decoys are among what the next column's decoys read, so large
  weights also lead from dead end to dead end).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from nnsight_vae.models.networks import GaussianVAE

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
Live = tuple[Shaped[np.ndarray, "source target"], ...]

_LARGE = 6.0  # a decoy's weights, in typical (median) sizes of the layer's own
_SHUT = 1e3  # what the bias of a closed gate is below 0, at least
_MARGIN = 4.0  # ... and how many times what its inputs add up to on the given images
_GAIN = math.log(6.0)  # nodes are rescaled by factors of up to 6, both ways


@dataclass(frozen=True)
class Disguise:
    """What is done to each hidden column.

    Attributes:
        gates, unread: share of closed gates and of unread nodes that are added, of the nodes there are; rounded up.
        copies: share of nodes that get a copy; rounded up.
        rescale, permute: whether nodes are.
    """

    gates: float = 0.0
    unread: float = 0.0
    copies: float = 0.0
    rescale: bool = True
    permute: bool = True


@dataclass(frozen=True)
class Column:
    """A column of nodes behind a linear layer.

    Attributes:
        site: name of its nodes' site in the wrapped model.
        writer: path of the layer that makes it.
        readers: paths of the layers that take it; none for the output.
        nodes: how many nodes it has: channels where the map is or becomes one, else units.
    """

    site: str
    writer: str
    readers: tuple[str, ...]
    nodes: int


def columns(module: GaussianVAE) -> tuple[Column, ...]:
    """The columns of a VAE of linear layers with ReLUs between them, from behind the first layer to the output.

    Example:
        >>> from nnsight_vae.models import ConvVAE
        >>> [column.site for column in columns(ConvVAE((1, 8, 8), latent=2, channels=(4,)))]
        ['encoder.0', 'encoder.3', 'latent.z', 'decoder.0', 'decoder.4', 'output']
    """
    paths = [path for path, layer in module.named_modules() if isinstance(layer, Layer) and path != "fc_logvar"]
    order = {"encoder": 0, "fc_mu": 1, "decoder": 2}
    paths.sort(key=lambda path: order[path.split(".")[0]])
    found = []
    for writer, reader in zip(paths, [*paths[1:], None], strict=True):
        site, nodes = writer, len(_by_output(layer_at(module, writer)))
        unflatten = _unflatten_between(module, writer, reader)
        if unflatten is not None:
            site, nodes = unflatten, _unflatten(module, unflatten)[0]
        if reader is None:
            found.append(Column("output", writer, (), nodes))
        elif reader == "fc_mu":
            found.append(Column(site, writer, ("fc_mu", "fc_logvar"), nodes))
        else:
            found.append(Column("latent.z" if writer == "fc_mu" else site, writer, (reader,), nodes))
    return tuple(found)


@torch.no_grad()
def hide(
    module: GaussianVAE, live: Live, disguise: Disguise, x: Float[Tensor, "n *image"], generator: torch.Generator
) -> tuple[GaussianVAE, Live]:
    """The same function in disguise.

    Args:
        module: a VAE of linear layers with ReLUs between them; not changed.
        live: which connections carry something, column by column from the input: False, or 0, for those that do not.
        disguise: what to do.
        x: images on which gates are made sure to be shut.
        generator: of everything random.

    Returns: a module of the same architecture and function but other widths, and its live connections.
    """
    module, kept = copy.deepcopy(module), list(live)
    for c in range(len(kept) - 1):
        column = columns(module)[c]
        if column.site != "latent.z":
            kept[c], kept[c + 1] = _disguise(module, column, kept[c], kept[c + 1], disguise, x, generator)
    return module, tuple(kept)


def _disguise(
    module: GaussianVAE,
    column: Column,
    into: Shaped[np.ndarray, "source node"],
    out_of: Shaped[np.ndarray, "node target"],
    disguise: Disguise,
    x: Tensor,
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    n = column.nodes
    n_gates, n_unread, n_copies = (math.ceil(share * n) for share in (disguise.gates, disguise.unread, disguise.copies))
    copied = torch.randperm(n, generator=generator)[:n_copies]
    origin = torch.cat([torch.arange(n), copied])
    kept = torch.ones(len(origin))  # the part of what a node is worth that its readers take from it
    kept[n:] = 0.3 + 0.4 * torch.rand(n_copies, generator=generator)
    kept[copied] = 1 - kept[n:]
    decoys = n_gates + n_unread
    order = torch.arange(len(origin) + decoys)
    if disguise.permute:
        order = torch.randperm(len(order), generator=generator)
    gain = torch.ones(len(order))
    if disguise.rescale:
        gain = torch.exp(_GAIN * (2 * torch.rand(len(order), generator=generator) - 1))
    gate = order.new_zeros(len(order), dtype=torch.bool)
    gate[len(origin) : len(origin) + n_gates] = True

    def per_node(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (n, -1))

    writer = layer_at(module, column.writer)
    weight = per_node(_by_output(writer))
    bias = per_node(bias_of(writer))
    weight = _ordered([weight[origin], _large(weight, decoys, generator)], order, gain)
    bias = _ordered([bias[origin], bias.new_zeros(decoys, *bias.shape[1:])], order, gain)
    rewrite(module, column.writer, weight=_from_output(writer, weight.flatten(0, 1)), bias=bias.flatten())
    for path in column.readers:
        reader = layer_at(module, path)
        weight = per_node(_by_input(reader))
        read = weight[origin] * kept.view(-1, *[1] * (weight.ndim - 1))
        unread = weight.new_zeros(n_unread, *weight.shape[1:])
        written = _large(weight, n_gates, generator)
        weight = _ordered([read, written, unread], order, 1 / gain)
        rewrite(module, path, weight=_from_input(reader, weight.flatten(0, 1)))
    unflatten = _unflatten_between(module, column.writer, column.readers[0])
    if unflatten is not None:
        module.set_submodule(unflatten, nn.Unflatten(1, (len(order), *_unflatten(module, unflatten)[1:])))
    _shut(module, column.writer, gate[order], x)
    dead = np.zeros((len(into), decoys), dtype=into.dtype)
    into = np.concatenate([into[:, origin], dead], axis=1)[:, order]
    out_of = np.concatenate([out_of[origin], np.zeros((decoys, out_of.shape[1]), dtype=out_of.dtype)])[order]
    return into, out_of


def _large(like: Float[Tensor, "node ..."], count: int, generator: torch.Generator) -> Tensor:
    """Weights of `count` decoys, several times as large as those of the nodes."""
    present = like[like != 0].abs()
    size = present.median() if len(present) else present.sum()
    return _LARGE * size * torch.randn(count, *like.shape[1:], generator=generator)


def _ordered(parts: list[Tensor], order: Tensor, gain: Tensor) -> Tensor:
    joined = torch.cat(parts)[order]
    return joined * gain.view(-1, *[1] * (joined.ndim - 1))


def _shut(module: GaussianVAE, path: str, gate: Bool[Tensor, " node"], x: Tensor) -> None:
    """Lower the bias of closed gates until nothing on these images comes near to opening them."""
    reached = output_of(module, path, x).movedim(1, 0).flatten(1).abs().amax(1).unflatten(0, (len(gate), -1)).amax(1)
    bias = bias_of(layer_at(module, path)).unflatten(0, (len(gate), -1))
    bias[gate] = -torch.clamp(_MARGIN * reached[gate], min=_SHUT)[:, None]


def output_of(module: GaussianVAE, path: str, x: Float[Tensor, "n *image"]) -> Tensor:
    """What the layer at `path` gives on images."""
    heard: list[Tensor] = []
    handle = module.get_submodule(path).register_forward_hook(lambda _, args, out: heard.append(out))
    module(x)
    handle.remove()
    return heard[0]


def input_of(module: GaussianVAE, path: str, x: Float[Tensor, "n *image"]) -> Tensor:
    """What the layer at `path` takes on images."""
    heard: list[Tensor] = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    module(x)
    handle.remove()
    return heard[0]


def rewrite(module: GaussianVAE, path: str, *, weight: Tensor, bias: Tensor | None = None) -> None:
    """Give a layer another weight, and sizes that fit it."""
    layer = layer_at(module, path)
    rows, cols = weight.shape[:2]
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.contiguous())
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = rows, cols
    elif isinstance(layer, nn.ConvTranspose2d):
        layer.in_channels, layer.out_channels = rows, cols
    else:
        layer.out_channels, layer.in_channels = rows, cols


def layer_at(module: GaussianVAE, path: str) -> Layer:
    """The linear layer at a path of `columns`."""
    return cast(Layer, module.get_submodule(path))


def bias_of(layer: Layer) -> Float[Tensor, " unit"]:
    """The values of a layer's bias; those of these networks all have one."""
    return cast(nn.Parameter, layer.bias).data


def _unflatten(module: GaussianVAE, path: str) -> tuple[int, ...]:
    return tuple(map(int, cast(nn.Unflatten, module.get_submodule(path)).unflattened_size))


def _by_output(layer: Layer) -> Tensor:
    """The weight with the unit that is written first."""
    return layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight


def _by_input(layer: Layer) -> Tensor:
    """The weight with the unit that is read first."""
    return layer.weight if isinstance(layer, nn.ConvTranspose2d) else layer.weight.transpose(0, 1)


def _from_output(layer: Layer, weight: Tensor) -> Tensor:
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def _from_input(layer: Layer, weight: Tensor) -> Tensor:
    return weight if isinstance(layer, nn.ConvTranspose2d) else weight.transpose(0, 1)


def _unflatten_between(module: GaussianVAE, writer: str, reader: str | None) -> str | None:
    """The path of the layer that makes maps of what `writer` gives to `reader` (None: to the image)."""
    stage, _, number = writer.rpartition(".")
    if not stage or (reader is not None and not reader.startswith(f"{stage}.")):
        return None
    sequence = module.get_submodule(stage)
    stop = len(list(sequence.children())) if reader is None else int(reader.rpartition(".")[2])
    paths = [f"{stage}.{i}" for i in range(int(number) + 1, stop)]
    return next((path for path in paths if isinstance(module.get_submodule(path), nn.Unflatten)), None)
