"""Greedy search in the manner of ACDC: each edge is taken away once, for good if the readout hardly minds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.checks import check_share
from nnsight_vae.circuits.selection.rules import Rule, check_rule
from nnsight_vae.circuits.selection.trials import Edges, Trials


@dataclass(frozen=True)
class Greedy:
    """Automatic circuit discovery: from the readout back, take each edge away and leave it out if little changes.

    Nodes are visited from the readout to the factor, the edges into each from the weakest score to the strongest. With H the
    edges still there and D(H) = mean |m(H) - m(M)| / mean |m(M) - m(nothing)| over the pairs, edge e goes for good where
    D(H without e) - D(H) < tau. One forward pass an edge: begin with few (`among`) where the model has many. What is
    found depends on the order of the visits, and tau does not bound the deviation of the whole: that is in the graph's record.

    Attributes:
        tau: in (0, 1], a share of the mean |total effect|.
        among: the edges to begin with; the others go at once, so these must do most of what the model does: from a set that does
            little, every edge can go. None: all edges.

    Raises:
        CircuitError: a value out of range.

    Source: Conmy et al. 2023, Towards automated circuit discovery (arXiv 2304.14997), algorithm 1.

    Example:
        >>> Greedy(tau=0.02)
        Greedy(tau=0.02, among=None)
    """

    tau: float = 0.01
    among: Rule | None = None

    def __post_init__(self) -> None:
        check_share("tau", self.tau, "a share of the total effect")
        if self.among is not None:
            check_rule("among", self.among)

    def trim(
        self,
        trials: Trials,
        kept: Edges,
        t: int,
        weights: Float[np.ndarray, " pair"],
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Edges, dict[str, Any]]:
        """The circuit of one target.

        Args:
            trials: the model.
            kept: edges to begin with.
            t: the target.
            weights: of the pairs.
            progress: called with (edges visited, edges to begin with).

        Returns: its edges, and `deviation` and `runs` (forward passes) for the record.
        """
        size = np.abs(trials.scores.values[:, t] @ weights)
        candidates = np.flatnonzero(kept)
        ends = trials.paths.targets[candidates]
        order = candidates[np.lexsort((size[candidates], -ends, -trials.paths.layers[ends]))]
        kept, runs = kept.copy(), 1
        deviation = trials.deviation(kept, t, weights)
        for done, edge in enumerate(order.tolist(), start=1):
            kept[edge] = False
            if self._is_read(trials, kept, edge, t):
                found = trials.deviation(kept, t, weights)
                runs += 1
                if found - deviation < self.tau:
                    deviation = found
                else:
                    kept[edge] = True
            if progress is not None:
                progress(done, len(order))
        return trials.paths.on_paths_to(kept, t), {"deviation": deviation, "runs": runs}

    def _is_read(self, trials: Trials, kept: Edges, edge: int, t: int) -> bool:
        """Whether anything reads what the edge carries; a run without it would not differ otherwise."""
        end = trials.paths.targets[edge]
        return bool(trials.paths.readouts[end, t] or kept[trials.paths.sources == end].any())
