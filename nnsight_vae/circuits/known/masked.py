"""`masked`: a convolutional VAE most of whose weights a mask holds at 0: the mask is a factor graph's wiring.

Every layer is in blocks, one a factor; a block reads the block of its own factor in the layer before, and where the factor
graph has f -> g, block g reads block f in one layer of the decoder. All other weights are exactly 0: no method can be
excused for finding an edge there. Units are then copied, hidden among decoys, permuted and rescaled; see `hiding`.
"""

from __future__ import annotations

from typing import cast

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.circuits.known.circuit import KnownCircuit, Projection, Task
from nnsight_vae.circuits.known.dags import levels, random_dag, reached
from nnsight_vae.circuits.known.hiding import Disguise, bias_of, columns, hide, input_of, layer_at, output_of
from nnsight_vae.circuits.known.wiring import Wiring
from nnsight_vae.errors import DataError
from nnsight_vae.models.architectures import build
from nnsight_vae.models.networks import ConvVAE, GaussianVAE
from nnsight_vae.pairs import Pairs
from nnsight_vae.vae import VAE

_SIDE = 8  # pixels of an image
_COLOURS = 2  # channels of a factor
_WIDTHS = (2, 3)  # channels of a factor after each convolution
_HIDDEN = 3  # units of a factor beside the latents
_CROSSINGS = 4  # linear layers of the decoder, in one of which a factor can reach another
_DISGUISE = Disguise(gates=0.2, unread=0.2, copies=0.2)
_GREY, _CONTRAST, _NOISE = 0.5, 0.3, 0.05
_LOGVAR = -3.0
_DRAWS, _CLEAR = 60, 0.6  # draws of weights, until each effect's mean is this many of its sds from 0
_AGAINST = 0.1  # share of weights whose sign is the other one


def masked(
    seed: int = 0,
    *,
    factors: int = 4,
    edge_probability: float = 0.5,
    depth: int = 2,
    dag: nx.DiGraph | None = None,
    hidden: bool = True,
) -> KnownCircuit:
    """A VAE whose wiring is a factor graph, and in which everything else is certain to do nothing.

    A task's truth is every connection that the mask allows on the way from the factor's channels of the image to those of
    the target. Every unit is on for some images, so all of these carry something, if little: rank them by `exact`. What is
    not in the truth carries exactly nothing. Factors of the images are independent: what one causes in another is up to the
    decoder.

    Args:
        seed: of the graph, weights, disguise.
        factors: of the graph that is drawn, see `random_dag`.
        edge_probability: of it.
        depth: of it, at most 4.
        dag: a graph instead.
        hidden: copy, camouflage, permute and rescale units; False leaves the blocks in order.

    Returns: the model. A factor is the strength of a pattern in two channels of the image that are its own, a target
        the brightness of these channels of the reconstruction, in sd over images.

    Raises:
        DataError: the graph has paths of more than 4 edges, cycles, or no factor.

    Example:
        >>> known = masked(1)
        >>> sorted(known.dag.edges)
        [('f0', 'f2'), ('f0', 'f3'), ('f1', 'f3')]
        >>> ("f1", "f2") in known.truth, ("f1", "f3") in known.truth
        (False, True)
    """
    dag = random_dag(factors, edge_probability, depth, seed) if dag is None else dag
    if not len(dag) or not nx.is_directed_acyclic_graph(dag) or max(levels(dag).values()) > _CROSSINGS:
        raise DataError(
            f"got a graph of {len(dag)} factors, longest path {_longest(dag)}; expected a directed acyclic graph with at least "
            f"one factor and paths of at most {_CROSSINGS} edges, one for each linear layer of the decoder."
        )
    generator = torch.Generator().manual_seed(seed)
    names, reach = tuple(dag), reached(dag)
    patterns = 0.5 + 0.5 * torch.rand(len(names), _COLOURS, _SIDE, _SIDE, generator=generator)

    def draw(factor: str, n: int, pair_seed: int) -> Pairs:
        return _pairs(names, patterns, factor, n, pair_seed)

    shown = [draw(name, 64, seed) for name in names]
    images = torch.cat([pairs.source for pairs in shown])
    module: GaussianVAE
    module, live = _drawn(dag, shown, generator)
    if hidden:
        module, live = hide(module, live, _DISGUISE, images, generator)
    channel_of = np.arange(len(names)).repeat(_COLOURS)
    tasks = [Task(name, target) for name in names for target in reach[name]]
    wiring = Wiring(
        (
            tuple(f"input[{i}]" for i in range(len(channel_of))),
            *(tuple(f"{column.site}[{i}]" for i in range(column.nodes)) for column in columns(module)),
        ),
        live,
        {name: channel_of == k for k, name in enumerate(names)},
        {name: channel_of == k for k, name in enumerate(names)},
    )
    return KnownCircuit(
        VAE(module.eval(), example=images[:1]),
        dag,
        _readout(module, names, images),
        {task: wiring.circuit(task) for task in tasks},
        f"masked wiring of {len(names)} factors with {dag.number_of_edges()} edges{', hidden' if hidden else ''}",
        draw,
    )


def _drawn(
    dag: nx.DiGraph, shown: list[Pairs], generator: torch.Generator
) -> tuple[ConvVAE, tuple[Bool[np.ndarray, "source target"], ...]]:
    """A network with the wiring of the graph: the first draw of weights in which every effect has a clear sign, or the best.

    Args:
        dag: of the factors.
        shown: pairs for each factor.
        generator: of the weights.
    """
    arguments = {
        "image_shape": tuple(shown[0].base.shape[1:]),
        "latent": len(dag),
        "channels": [width * len(dag) for width in _WIDTHS],
        "hidden": _HIDDEN * len(dag),
    }
    images, factors = (torch.cat([getattr(p, part) for p in shown]) for part in ("source", "source_factors"))
    allowed, reach, drawn = _allowed(dag, generator), reached(dag), []
    for _ in range(_DRAWS):
        module = cast(ConvVAE, build("ConvVAE", arguments, generator))
        live = _wire(module, allowed, images, factors, generator)
        clear = min(
            _clarity(module, pairs, [f in reach[name] for f in dag]) for name, pairs in zip(dag, shown, strict=True)
        )
        drawn.append((clear, module, live))
        if clear > _CLEAR:
            break
    _, module, live = max(drawn, key=lambda draw: draw[0])
    return module, live


@torch.no_grad()
def _clarity(module: ConvVAE, pairs: Pairs, caused: list[bool]) -> float:
    """The least |mean| / sd of a factor's effects on the brightness of what it causes."""
    change = (
        (module(pairs.source)[0] - module(pairs.base)[0])
        .flatten(2)
        .mean(2)
        .unflatten(1, (len(caused), _COLOURS))
        .mean(2)
    )
    return float((change.mean(0).abs() / change.std(0))[caused].min())


def _longest(dag: nx.DiGraph) -> object:
    return nx.dag_longest_path_length(dag) if nx.is_directed_acyclic_graph(dag) else "a cycle"


def _allowed(dag: nx.DiGraph, generator: torch.Generator) -> list[Bool[np.ndarray, "source target"]]:
    """For each layer, which block may read which: its own, and where an edge of the graph crosses.

    What causes a factor must have reached it before it is handed on. So an edge crosses in one of the layers from the level
    of its cause up to, and without, the level of its effect: crossings along a path come one after the other.
    """
    names, level = tuple(dag), levels(dag)
    encoder = len(_WIDTHS) + 2
    allowed = [np.eye(len(names), dtype=bool) for _ in range(encoder + _CROSSINGS)]
    for cause, effect in dag.edges:
        layer = int(torch.randint(level[cause], level[effect], (), generator=generator))
        allowed[encoder + layer][names.index(cause), names.index(effect)] = True
    return allowed


@torch.no_grad()
def _wire(
    module: ConvVAE, allowed: list[np.ndarray], images: Tensor, factors: Tensor, generator: torch.Generator
) -> tuple[Bool[np.ndarray, "source target"], ...]:
    """Draw the weights that the mask allows, layer by layer, and set all others to 0.

    The sign of a weight is, save for a few, that with which what it reads follows the factor of its block, times one of the
    node, of either sign by turns in a block, and one of the graph's edge: wholly random weights would fold a factor's effect
    until it has no direction, and units that all look the same way would be blind to half of its range. Then every unit is
    scaled and shifted so that over the images its mean is 0 and its sd 1: it is on for some.
    """
    blocks, live = len(allowed[0]), []
    before, taken = blocks * _COLOURS, images
    for column, mask in zip(columns(module), allowed, strict=True):
        layer = layer_at(module, column.writer)
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        weight = layer.weight.data.transpose(0, 1) if transposed else layer.weight.data
        ports = torch.arange(blocks).repeat_interleave(weight.shape[1] // blocks)
        units = torch.arange(blocks).repeat_interleave(weight.shape[0] // blocks)
        signs = torch.where(torch.rand(blocks, blocks, generator=generator) < 0.5, -1.0, 1.0).fill_diagonal_(1.0)
        nodes = torch.arange(column.nodes).repeat_interleave(len(units) // column.nodes)
        turns = (1.0 - 2.0 * (nodes % (column.nodes // blocks) % 2))[:, None]
        follows = _covariance(taken, factors[:, ports]).sign()
        keep = torch.as_tensor(mask)[ports].T[units]
        against = torch.rand(weight.shape, generator=generator) < _AGAINST
        drawn = torch.randn(weight.shape, generator=generator).abs() * torch.where(against, -1.0, 1.0)
        kernel = [1] * (weight.ndim - 2)
        weight.copy_(
            drawn
            * (keep * follows * signs[ports].T[units] * (turns if column.readers else 1.0)).view(*keep.shape, *kernel)
        )
        bias_of(layer).zero_()
        values = output_of(module, column.writer, images).movedim(1, 0).flatten(1)
        sd = values.std(1)
        weight /= sd.view(-1, 1, *kernel)
        bias_of(layer).copy_(-values.mean(1) / sd)
        if column.readers:
            taken = input_of(module, column.readers[0], images)
        live.append(mask.repeat(before // blocks, axis=0).repeat(column.nodes // blocks, axis=1))
        before = column.nodes
    module.fc_logvar.weight.zero_()
    module.fc_logvar.bias.fill_(_LOGVAR)
    return tuple(live)


def _covariance(taken: Float[Tensor, "n port ..."], factors: Float[Tensor, "n port"]) -> Float[Tensor, " port"]:
    """Of each port, averaged over positions, with the factor of its block."""
    means = taken.flatten(2).mean(2) if taken.ndim > 2 else taken
    return ((means - means.mean(0)) * (factors - factors.mean(0))).mean(0)


def _speckle(n: int, factors: int, generator: torch.Generator) -> Float[Tensor, "n channel h w"]:
    return _NOISE * torch.randn(n, factors * _COLOURS, _SIDE, _SIDE, generator=generator)


def _images(
    factors: Float[Tensor, "n factor"], patterns: Float[Tensor, "factor colour h w"], noise: Tensor | float = 0.0
) -> Float[Tensor, "n channel h w"]:
    """Each factor as the strength, tanh f, of its pattern in its own channels."""
    shown = torch.einsum("nk,kchw->nkchw", _CONTRAST * torch.tanh(factors), patterns).flatten(1, 2)
    return (_GREY + shown + noise).clamp(0, 1)


@torch.no_grad()
def _readout(module: GaussianVAE, names: tuple[str, ...], images: Tensor) -> Projection:
    """The brightness of each factor's own channels, in its sd over the images."""
    own = torch.eye(len(names)).repeat_interleave(_COLOURS, 1)[:, :, None, None].expand(-1, -1, _SIDE, _SIDE)
    sd = Projection(names, own)(module(images)[0]).std(0)
    return Projection(names, own / sd[:, None, None, None], _GREY)


def _pairs(names: tuple[str, ...], patterns: Tensor, factor: str, n: int, seed: int) -> Pairs:
    """Pairs in which the pattern of one factor changes from weaker to stronger; the factors of the images are independent."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(n, len(names), generator=generator)
    value = torch.randn(n, 2, generator=generator).sort(1).values
    speckle = _speckle(n, len(names), generator)
    tables = [factors.clone() for _ in range(2)]
    for i, table in enumerate(tables):
        table[:, names.index(factor)] = value[:, i]
    base, source = (_images(table, patterns, speckle) for table in tables)
    record = {"world": "masked", "seed": seed}
    return Pairs(
        base,
        source,
        factor,
        base_factors=tables[0],
        source_factors=tables[1],
        factor_names=names,
        propagate=False,
        record=record,
    )
