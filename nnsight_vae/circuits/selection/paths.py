"""Which scored edge feeds which: paths from the factor to each readout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from nnsight_vae.circuits.scoring.edges import EdgeScores


@dataclass(frozen=True)
class Paths:
    """The graph of scored edges, nodes by number; edges go from a lower layer to a higher one and may skip some.

    Attributes:
        sources, targets: node at both ends of each edge.
        layers: of each node.
        factors: which nodes effects start at.
        readouts: which node each target is read at.
    """

    sources: Int[np.ndarray, " edge"]
    targets: Int[np.ndarray, " edge"]
    layers: Int[np.ndarray, " node"]
    factors: Bool[np.ndarray, " node"]
    readouts: Bool[np.ndarray, "node target"]

    @classmethod
    def of(cls, scores: EdgeScores) -> Paths:
        """The graph that was scored."""
        place = {node.id: i for i, node in enumerate(scores.nodes)}
        ids = [f"readout:{name}" for name in scores.readouts]
        return cls(
            np.array([place[s] for s in scores.sources], dtype=np.intp),
            np.array([place[t] for t in scores.targets], dtype=np.intp),
            np.array([node.layer for node in scores.nodes], dtype=np.intp),
            np.array([node.kind == "factor" for node in scores.nodes], dtype=bool),
            np.array([[node.id == name for name in ids] for node in scores.nodes], dtype=bool),
        )

    def on_paths_to(self, selected: Bool[np.ndarray, " edge"], t: int) -> Bool[np.ndarray, " edge"]:
        """`on_paths` for one target."""
        alone = np.zeros((len(selected), self.readouts.shape[1]), dtype=bool)
        alone[:, t] = selected
        return self.on_paths(alone)[:, t]

    def on_paths(self, selected: Bool[np.ndarray, "edge target"]) -> Bool[np.ndarray, "edge target"]:
        """For each target, the selected edges on a path of selected edges from the factor to that target.

        Example:
            >>> paths = Paths(np.array([0, 1, 0]), np.array([1, 2, 2]), np.arange(3), np.arange(3) == 0, np.eye(3, 1, -2) == 1)
            >>> paths.on_paths(np.array([[True], [True], [False]])).ravel().tolist()
            [True, True, False]
            >>> paths.on_paths(np.array([[True], [False], [True]])).ravel().tolist()  # the first edge leads nowhere
            [False, False, True]
        """
        reached = np.repeat(self.factors[:, None], selected.shape[1], axis=1)
        reaching = self.readouts.copy()
        leaving, entering = self.layers[self.sources], self.layers[self.targets]
        for layer in np.unique(leaving):
            edges = np.flatnonzero(leaving == layer)
            np.logical_or.at(reached, self.targets[edges], selected[edges] & reached[self.sources[edges]])
        for layer in np.unique(entering)[::-1]:
            edges = np.flatnonzero(entering == layer)
            np.logical_or.at(reaching, self.sources[edges], selected[edges] & reaching[self.targets[edges]])
        return selected & reached[self.sources] & reaching[self.targets]
