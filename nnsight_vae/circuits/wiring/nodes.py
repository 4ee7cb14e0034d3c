"""Nodes of a circuit, the columns they stand in, and the routes by which columns are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import Linear


@dataclass(frozen=True)
class Node:
    """A node of a circuit.

    Attributes:
        id: `"encoder.4[7]"`, `"factor:angle"`, `"readout:angle"`.
        kind: factor, input, conv, linear, latent, output or readout.
        site: the site it is a unit of; None for factors and readouts.
        index: which unit; None where it is a set of units.
        stage: input, encoder, latent, decoder or output; factor and readout for the ends.
        layer: position of its column, 0 for factors; edges go from lower to higher and may skip some.
    """

    id: str
    kind: str
    site: str | None
    index: int | None
    stage: str
    layer: int


@dataclass(frozen=True, eq=False)
class Route:
    """How what a layer (or the readout) takes in depends on the nodes of one column, all other columns held fixed.

    Attributes:
        parent: position of the column.
        reach: which ports (channels, features of the input) each node changes.
    """

    parent: int
    reach: Bool[Tensor, "node port"]

    @cached_property
    def owners(self) -> tuple[Int[Tensor, " port"], ...]:
        """Who changes each port, in as many sets of nodes as it takes for no two of a set to change the same port.

        Each gives the node of its set that changes each port, -1 where none does. One set where the map between keeps nodes apart
        (activations, pooling, reshapes); as many as nodes where it mixes all of them (attention, a norm over channels).
        """
        if bool((self.reach.sum(0) <= 1).all()):
            return (torch.where(self.reach.any(0), self.reach.int().argmax(0), -1),)
        sets: list[Tensor] = []
        for node, ports in enumerate(self.reach):
            for owners in sets:
                if bool((owners[ports] < 0).all()):
                    owners[ports] = node
                    break
            else:
                if bool(ports.any()):
                    sets.append(torch.where(ports, node, -1))
        return tuple(sets)


@dataclass(frozen=True, eq=False)
class Column:
    """Nodes side by side: the input, or what one linear layer gives, or the sample `latent.z`.

    Attributes:
        nodes: the nodes.
        path: module whose output holds them.
        axis: the unit axis of that output.
        owners: node of each unit of that output; -1 where the unit reaches nothing.
        layer: the linear layer that makes it from what it takes in; None where nothing is made (the input) or what is taken in is
            handed on (`latent.z`).
        routes: from the columns that what it takes in depends on; none for the input.
        depth: most columns between it and the input; a level is the columns of one depth.
    """

    nodes: tuple[Node, ...]
    path: str
    axis: int
    owners: Int[Tensor, " unit"]
    layer: Linear | None
    routes: tuple[Route, ...]
    depth: int
