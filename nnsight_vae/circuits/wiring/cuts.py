"""Cuts: all edges into one level of a wiring, by the column they come from and the layer that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import Linear, weight_grid
from nnsight_vae.circuits.wiring.nodes import Column, Node, Route
from nnsight_vae.circuits.wiring.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Block:
    """All edges from one column into one reader.

    Attributes:
        route: from the column; its parent is -1 for the factor.
        reader: position of the column whose layer reads it; for the number after the last, the readout.
        edges: edge (in the cut) from each node to each target; -1 where there is none.
        layer: of the reader; None where what is read is handed on (the input, `latent.z`, the readout).
        owners: node of each unit of the reader's output; empty for the readout.
    """

    route: Route
    reader: int
    edges: Int[Tensor, "source target"]
    layer: Linear | None
    owners: Int[Tensor, " unit"]

    def of_entries(self, owners: Int[Tensor, " port"]) -> Int[Tensor, "..."]:
        """The edges by which a change of what the reader takes in goes on, where it is due to one set of `route.owners`.

        One for each entry of the layer's `weight_grid`; where what is read is handed on, one for each port.
        """
        return self._entries if len(self.route.owners) == 1 else self._entries_of(owners)

    @cached_property
    def _entries(self) -> Int[Tensor, "..."]:
        return self._entries_of(self.route.owners[0])

    def _entries_of(self, owners: Int[Tensor, " port"]) -> Int[Tensor, "..."]:
        if self.layer is None:
            return self._between(owners, self.owners)
        units, ports = weight_grid(self.layer)
        return self._between(owners[ports], self.owners[units])

    def _between(self, sources: Tensor, targets: Tensor) -> Tensor:
        return torch.where((sources >= 0) & (targets >= 0), self.edges[sources, targets], -1)


@dataclass(frozen=True, eq=False)
class Cut:
    """All edges into one level, or into the readout. With what bypasses the level they carry everything.

    Attributes:
        name: `"encoder.0 -> encoder.2"`.
        sources, targets: the nodes on both sides.
        ends: (source, target) positions of each edge.
        blocks: the edges by column and reader, in order.
        bypassed: ids of the nodes of earlier columns that later levels still read: none in a chain.
    """

    name: str
    sources: tuple[Node, ...]
    targets: tuple[Node, ...]
    ends: Int[np.ndarray, "edge 2"]
    blocks: tuple[Block, ...]
    bypassed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def readers(self) -> tuple[int, ...]:
        """Positions of the columns of the level; the number after the last for the readout."""
        return tuple(dict.fromkeys(block.reader for block in self.blocks))


_INNER: WeakKeyDictionary[Wiring, tuple[Cut, ...]] = WeakKeyDictionary()


def cuts_of(wiring: Wiring, factor: str, readouts: Sequence[str]) -> tuple[Cut, ...]:
    """The cuts of a wiring: factor to input units, then the edges into each level, last those into the readouts."""
    columns, end = wiring.columns, len(wiring.columns)
    source = Node(f"factor:{factor}", "factor", None, None, "factor", 0)
    sinks = tuple(
        Node(f"readout:{name}", "readout", None, None, "readout", len(wiring.levels) + 1) for name in readouts
    )
    inputs = columns[0]
    every = Route(-1, torch.ones(1, len(inputs.owners), dtype=torch.bool))
    into_inputs = _cut({-1: (source,), 0: inputs.nodes}, (0,), [(every, 0, _joined(wiring, 0, every))], columns)
    nodes = {end: sinks} | {i: column.nodes for i, column in enumerate(columns)}
    ends = [(route, end, route.reach.any(1)[:, None].expand(-1, len(sinks))) for route in wiring.ends]
    return (into_inputs, *_inner(wiring), _cut(nodes, (end,), ends, columns))


def _inner(wiring: Wiring) -> tuple[Cut, ...]:
    """The cuts between columns: of the wiring alone, so they are found once for all factors and readouts."""
    if wiring not in _INNER:
        nodes = {i: column.nodes for i, column in enumerate(wiring.columns)}
        cuts = []
        for level, readers in enumerate(wiring.levels[1:], start=1):
            present = [(route, i, _joined(wiring, i, route)) for i in readers for route in wiring.routes(i)]
            cuts.append(_cut(nodes, readers, present, wiring.columns, wiring.alive(level)))
        _INNER[wiring] = tuple(cuts)
    return _INNER[wiring]


def _cut(
    nodes: Mapping[int, tuple[Node, ...]],
    readers: Sequence[int],
    present: Sequence[tuple[Route, int, Bool[Tensor, "source target"]]],
    columns: Sequence[Column],
    alive: Sequence[int] = (),
) -> Cut:
    """A cut of the edges that are present between some columns and some readers."""
    parents = sorted({route.parent for route, *_ in present})
    before = dict(zip(parents, _starts([len(nodes[p]) for p in parents]), strict=True))
    after = dict(zip(readers, _starts([len(nodes[r]) for r in readers]), strict=True))
    blocks, ends, count = [], [], 0
    for route, reader, joined in present:
        found = joined.nonzero()
        edges = torch.full(joined.shape, -1, dtype=torch.long)
        edges[joined] = torch.arange(count, count + len(found))
        count += len(found)
        ends.append(found + torch.tensor([before[route.parent], after[reader]]))
        to = columns[reader] if reader < len(columns) else None
        blocks.append(
            Block(route, reader, edges, to.layer if to else None, to.owners if to else torch.zeros(0, dtype=torch.long))
        )
    sources, targets = (tuple(node for c in chosen for node in nodes[c]) for chosen in (parents, readers))
    return Cut(
        f"{_names(sources)} -> {_names(targets)}",
        sources,
        targets,
        torch.cat(ends).numpy(),
        tuple(blocks),
        tuple(node.id for i in alive for node in columns[i].nodes),
    )


def _joined(wiring: Wiring, reader: int, route: Route) -> Bool[Tensor, "source target"]:
    """Which nodes of a column have an edge to which nodes of a reader."""
    to = wiring.columns[reader]
    units, ports = (torch.arange(len(to.owners)),) * 2 if to.layer is None else weight_grid(to.layer)
    joined = torch.zeros(len(route.reach), len(to.nodes), dtype=torch.bool)
    for owners in route.owners:
        real = (owners[ports] >= 0) & (to.owners[units] >= 0)
        joined[owners[ports[real]], to.owners[units[real]]] = True
    return joined


def nodes_of(cuts: Sequence[Cut]) -> tuple[Node, ...]:
    """Every node, layer by layer."""
    nodes = dict.fromkeys(node for cut in cuts for node in (*cut.sources, *cut.targets))
    return tuple(sorted(nodes, key=lambda node: node.layer))


def _names(nodes: Sequence[Node]) -> str:
    """`"encoder.0"`, `"latent.mu + latent.logvar"`: the sites of some nodes."""
    if len(nodes) == 1 and nodes[0].site is None:
        return nodes[0].id
    return " + ".join(dict.fromkeys(node.site or f"{node.kind}s" for node in nodes)) or "nothing"


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
