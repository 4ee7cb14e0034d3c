"""Pruning: take away what matters least, look again, and stop where the circuit no longer does what the model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.checks import check_share
from nnsight_vae.circuits.selection.trials import Edges, Trials


@dataclass(frozen=True)
class Prune:
    """The smallest circuit found that still does what the model does, up to a stated deviation.

    From all edges on paths, again and again: take away the share `step` of the edges left whose loss would change the mean
    readout least *in the circuit as it is now* (to first order, all edges from one backward pass), and what no longer lies on
    a path. Stop before the deviation, mean |m(C) - m(M)| / mean |m(M) - m(nothing)| over the pairs, exceeds what is
    allowed; of the last, failed step as much is taken as is allowed. Edges outside carry what they carried in the base run. Scores from one look at the whole model know nothing of what the other edges' loss does to an edge; on the
    bundled models circuits of one size that were looked at again are twice as faithful.

    Attributes:
        deviation: in (0, 1); allowed on the pairs searched. On other pairs it is a few hundredths more. Where all total effects
            have one sign, faithfulness is at least 1 minus this, and more where some pairs go too far and others fall short.
        step: in (0, 1); smaller steps look more often and take longer.

    Raises:
        CircuitError: a value out of range.

    Source: iterative magnitude pruning with recomputed first-order scores, Molchanov et al. 2017 (arXiv 1611.06440) and
        Tanaka et al. 2020 (2006.05467), on the edges of ACDC, Conmy et al. 2023 (2304.14997).

    Example:
        >>> Prune()
        Prune(deviation=0.2, step=0.1)
    """

    deviation: float = 0.2
    step: float = 0.1

    def __post_init__(self) -> None:
        check_share("deviation", self.deviation, "a share of the total effect", below=1)
        check_share("step", self.step, "a share of the edges left", below=1)

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
            kept: edges to begin with, all on paths.
            t: the target.
            weights: of the pairs.
            progress: called with (edges taken away, edges to begin with).

        Returns: its edges, and `deviation` and `looks` (backward passes) for the record.
        """
        looks, n_edges = 0, int(kept.sum())
        deviation = trials.deviation(kept, t, weights)
        while kept.any():
            worth, left = trials.worth(kept, t, weights), np.flatnonzero(kept)
            looks += 1
            least_first = left[np.argsort(worth[left], kind="stable")]
            n_gone = max(1, int(self.step * len(left)))
            best, fits, fails = kept, 0, n_gone + 1  # how many of the least can go
            at = n_gone  # the whole step first: it usually fits
            while fails - fits > 1:
                candidate = _without(trials, kept, least_first[:at], t)
                found = trials.deviation(candidate, t, weights)
                if found <= self.deviation:
                    fits, best, deviation = at, candidate, found
                else:
                    fails = at
                at = (fits + fails) // 2
            kept = best
            if progress is not None:
                progress(n_edges if fits < n_gone else n_edges - int(kept.sum()), n_edges)
            if fits < n_gone:
                break
        return kept, {"deviation": deviation, "looks": looks}


def _without(trials: Trials, kept: Edges, gone: np.ndarray, t: int) -> Edges:
    fewer = kept.copy()
    fewer[gone] = False
    return trials.paths.on_paths_to(fewer, t)
