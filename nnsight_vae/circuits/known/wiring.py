"""Which connections of a VAE can carry anything, and from that which of them a factor's effect on a target runs through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from nnsight_vae.circuits.known.circuit import Edge, Task


@dataclass(frozen=True, eq=False)
class Wiring:
    """The live connections between neighbouring columns of nodes, and where factors enter and targets are read.

    Attributes:
        columns: node ids, column by column from input to output. An id may stand for several parts (the tiles of one colour
            channel), each with connections of its own.
        live: for each pair of neighbouring columns, which connections can carry a change.
        enters: factor -> which parts of the input it changes.
        leaves: target -> which parts of the output it reads.
    """

    columns: tuple[tuple[str, ...], ...]
    live: tuple[Bool[np.ndarray, "source target"], ...]
    enters: dict[str, Bool[np.ndarray, " part"]]
    leaves: dict[str, Bool[np.ndarray, " part"]]

    def circuit(self, task: Task) -> frozenset[Edge]:
        """The edges on a live path from the factor to the target."""
        changed = [self.enters[task.factor]]
        for live in self.live:
            changed.append((live & changed[-1][:, None]).any(0))
        heard = [self.leaves[task.target]]
        for live in reversed(self.live):
            heard.insert(0, (live & heard[0]).any(1))
        on_path = [a & b for a, b in zip(changed, heard, strict=True)]
        edges = {(f"factor:{task.factor}", self.columns[0][i]) for i in np.flatnonzero(on_path[0])}
        edges |= {(self.columns[-1][i], f"readout:{task.target}") for i in np.flatnonzero(on_path[-1])}
        for c, live in enumerate(self.live):
            ends = np.argwhere(live & on_path[c][:, None] & on_path[c + 1])
            edges |= {(self.columns[c][i], self.columns[c + 1][j]) for i, j in ends.tolist()}
        return frozenset(edges)
