"""`glass_box`: a linear-Gaussian VAE built by hand of ReLU blocks, whose posterior is known in closed form.

The world: factors f = A u of independent standard normal u, where A = (I - B)^-1 and B holds the weights of the factor
graph. Each factor is the contrast of a pattern t_k in a tile and colour channel of its own: x = 1/2 + s f_k t_k there. The
model is that world with Gaussian pixel noise of sd sigma, latent z in place of u: with J = diag(s) A (patterns in units of
their norm), M = J'J + sigma^2 I is, up to sigma^2, the precision of the posterior, its mean M^-1 J' (x - 1/2), and the best
factorised q(z | x) has that mean and variances sigma^2 / M_kk.

The encoder computes that mean: matched filters, their signs apart (relu(r) and relu(-r)), two units a sign, and one linear
layer. The decoder gives each factor a block: two units for either sign of f_k = (A z)_k, a channel for either sign, two
channels with the light and the dark half of the tile's picture, and the image.
"""

from __future__ import annotations

import math
from typing import Literal

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.known.circuit import EdgeGroup, KnownCircuit, Projection, Task
from nnsight_vae.circuits.known.dags import one_edge, reached
from nnsight_vae.circuits.known.glass_blocks import (
    CANCELLING,
    COLOURS,
    CONTRAST,
    GREY,
    REDUNDANT,
    TILE,
    Marks,
    add_groups,
    blocks,
    leak,
)
from nnsight_vae.circuits.known.hiding import Disguise, columns, hide
from nnsight_vae.circuits.known.wiring import Wiring
from nnsight_vae.errors import DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.vae import VAE

_CAMOUFLAGE = Disguise(gates=0.25, unread=0.25)
_PLAIN = Disguise(permute=False, rescale=False)


def glass_box(
    seed: int = 0,
    *,
    dag: nx.DiGraph | None = None,
    camouflage: bool = True,
    rotation: bool = False,
    groups: bool = False,
    leakage: float = 0.0,
) -> KnownCircuit:
    """A VAE built by hand, in which every edge that matters is known exactly.

    Args:
        seed: of patterns, weights, camouflage, rotation, leak.
        dag: graph of the factors; None: four factors with the one edge f0 -> f1.
        camouflage: hide the wiring among closed gates and unread channels, permute and rescale units; see `hiding`.
        rotation: turn the latent space by a random orthogonal matrix, so that no latent stands for one factor and every
            latent carries all of them.
        groups: add two units that cancel, and a switch (a target of its own, `"switch"`, in a tile that the encoder does not
            look at, and no task) that either of two units turns on: edges with a meaning together, excluded one by one.
        leakage: noise on every weight, as a share of its layer's median weight. The truth stays what was built, but now all
            edges carry something: even `exact` tells them apart by size only. The posterior is then closed-form no more.

    Returns: the model, with a task for each factor and what it causes. Images are `[3, side, side]` in grey levels
        around 1/2; the targets read each factor's contrast in units of the factor.

    Raises:
        DataError: the graph has a cycle or no factor, or the leak is negative.

    Example:
        >>> known = glass_box(0)
        >>> known.factors, sorted(known.dag.edges), len(known.tasks)
        (('f0', 'f1', 'f2', 'f3'), [('f0', 'f1')], 5)
        >>> len(known.truth["f2", "f2"])
        26
    """
    dag = one_edge() if dag is None else dag
    if not len(dag) or not nx.is_directed_acyclic_graph(dag) or not leakage >= 0:
        raise DataError(
            f"got {dag} and leakage={leakage}; expected an acyclic graph of factors, and a leak of at least 0."
        )
    generator = torch.Generator().manual_seed(seed)
    names, reach = tuple(dag), reached(dag)
    side = math.ceil(math.sqrt(len(names) + groups))
    mixing, patterns = _mixing(dag, generator), _patterns(len(names), generator)
    loading = mixing @ _turn(len(names), generator) if rotation else mixing
    module, marks = blocks(patterns, loading, side, generator)
    if groups:
        module, marks = add_groups(module, marks, loading, side)
    if leakage:
        leak(module, leakage, generator)
    pictures = _pictures(patterns, side)

    def draw(factor: str, n: int, pair_seed: int) -> Pairs:
        return _pairs(dag, mixing, pictures, factor, n, pair_seed)

    images = torch.cat([draw(name, 64, seed).source for name in names])
    module, marks = hide(module, marks, _CAMOUFLAGE if camouflage else _PLAIN, images, generator)
    targets = (*names, "switch") if groups else names
    wiring = Wiring(
        (
            tuple(f"input[{k % COLOURS}]" for k in range(len(names))),
            *(tuple(f"{column.site}[{i}]" for i in range(column.nodes)) for column in columns(module)[:-1]),
            tuple(f"output[{k % COLOURS}]" for k in range(len(targets))),
        ),
        tuple(mark > 0 for mark in marks),
        {name: np.isin(names, reach[name]) for name in names},
        {target: np.isin(targets, target) for target in targets},
    )
    tasks = [Task(name, target) for name in names for target in reach[name]]
    together = _groups(wiring, marks, names[0])
    apart = frozenset().union(*(route for group in together for route in group.routes))
    return KnownCircuit(
        VAE(module.eval(), example=images[:1]),
        dag,
        _readout(targets, pictures, side),
        {task: wiring.circuit(task) - apart for task in tasks},
        f"glass box of {len(names)} factors{', camouflaged' if camouflage else ''}{', latents rotated' if rotation else ''}",
        draw,
        excluded=dict.fromkeys(tasks, apart),
        groups=together,
    )


def _groups(wiring: Wiring, marks: Marks, factor: str) -> tuple[EdgeGroup, ...]:
    """The marked groups; the edges through each of their units are one route."""
    groups: list[EdgeGroup] = []
    kinds: tuple[tuple[int, Literal["redundant", "cancelling"], str], ...]
    kinds = ((REDUNDANT, "redundant", "switch"), (CANCELLING, "cancelling", factor))
    before, units, after = wiring.columns[3:6]
    for mark, kind, target in kinds:
        into, out_of = (marks[cut] == mark for cut in (3, 4))
        routes = tuple(
            frozenset((before[i], units[j]) for i in np.flatnonzero(into[:, j]))
            | frozenset((units[j], after[i]) for i in np.flatnonzero(out_of[j]))
            for j in np.flatnonzero(out_of.any(1)).tolist()
        )
        if routes:
            groups.append(EdgeGroup(kind, Task(factor, target), routes))
    return tuple(groups)


def _turn(n: int, generator: torch.Generator) -> Float[Tensor, "n n"]:
    turn, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return turn


def _readout(targets: tuple[str, ...], pictures: Float[Tensor, "factor colour h w"], side: int) -> Projection:
    """Each factor by its pattern's contrast; the switch by how grey its tile is, -1 for off and 0 for on."""
    weights = pictures / (pictures.flatten(1).square().sum(1) * CONTRAST)[:, None, None, None]
    if len(targets) > len(pictures):
        tile = _pictures(torch.ones(len(targets), TILE, TILE), side)[-1:]
        weights = torch.cat([weights, -tile / (tile.sum() * CONTRAST)])
    return Projection(targets, weights, GREY)


def _mixing(dag: nx.DiGraph, generator: torch.Generator) -> Float[Tensor, "factor factor"]:
    """A = (I - B)^-1, with what f -> g adds to g, of either sign and size 0.4 to 0.8, at B[g, f]."""
    size, sign = torch.rand(2, len(dag), len(dag), generator=generator, dtype=torch.float64)
    weight = (0.4 + 0.4 * size) * torch.where(sign < 0.5, -1.0, 1.0)
    adjacency = torch.as_tensor(nx.to_numpy_array(dag, weight=None)).T
    return torch.linalg.inv(torch.eye(len(dag), dtype=torch.float64) - adjacency * weight)


def _patterns(n: int, generator: torch.Generator) -> Float[Tensor, "factor tile tile"]:
    """Patterns of as many light (+1) as dark (-1) pixels."""
    half = torch.ones(TILE**2 // 2)
    signs = torch.cat([half, -half])
    return torch.stack([signs[torch.randperm(TILE**2, generator=generator)] for _ in range(n)]).view(n, TILE, TILE)


def _pictures(patterns: Float[Tensor, "factor tile tile"], side: int) -> Float[Tensor, "factor colour h w"]:
    """Each pattern in its tile and colour of an otherwise empty image."""
    images = torch.zeros(len(patterns), COLOURS, side * TILE, side * TILE)
    for k, pattern in enumerate(patterns):
        row, column = (TILE * i for i in divmod(k, side))
        images[k, k % COLOURS, row : row + TILE, column : column + TILE] = pattern
    return images


def _pairs(dag: nx.DiGraph, mixing: Tensor, pictures: Tensor, factor: str, n: int, seed: int) -> Pairs:
    """Pairs with do(factor = low) and do(factor = high): what the factor causes follows, everything else stays."""
    generator = torch.Generator().manual_seed(seed)
    names, k = tuple(dag), list(dag).index(factor)
    noise = torch.randn(n, len(names), generator=generator, dtype=torch.float64)
    value = torch.randn(n, 2, generator=generator, dtype=torch.float64).sort(1).values
    before = noise @ mixing.T
    factors = [before + (value[:, i] - before[:, k])[:, None] * mixing[:, k] for i in range(2)]
    base, source = (GREY + CONTRAST * torch.einsum("nk,kchw->nchw", f.float(), pictures) for f in factors)
    record = {"world": "glass box", "seed": seed}
    return Pairs(
        base,
        source,
        factor,
        base_factors=factors[0].float(),
        source_factors=factors[1].float(),
        factor_names=names,
        propagate=True,
        record=record,
    )
