"""The sheet that a method fills in, some pairs at a time: the scores, and what is told beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from nnsight_vae.circuits.scoring import baselines
from nnsight_vae.circuits.scoring.flat import FlatPairs
from nnsight_vae.circuits.scoring.methods import BASELINES, Advance, Scoring, Wanted, resolution_of, total_effect
from nnsight_vae.circuits.wiring.cuts import Cut
from nnsight_vae.circuits.wiring.pair_run import pair_runs
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE


@dataclass
class Sheet:
    """Scores of the wanted edges.

    Attributes:
        parts: the variants whose mean the scores are -> their scores.
        total, resolution, gaps, bypass: as in `EdgeScores`.
        beside: the baselines' scores of the same edges.
    """

    parts: dict[str, Float[np.ndarray, "edge target pair"]]
    total: Float[np.ndarray, "target pair"]
    resolution: Float[np.ndarray, " target"]
    gaps: Float[np.ndarray, "cut target pair"]
    bypass: Float[np.ndarray, "cut target pair"]
    beside: dict[str, Float[np.ndarray, "edge target"]] = field(default_factory=dict)

    @classmethod
    def filled(
        cls,
        vae: VAE,
        pairs: Pairs,
        readout: Readout,
        wiring: Wiring,
        cuts: Sequence[Cut],
        wanted: Sequence[Wanted],
        scoring: Scoring,
        advance: Advance,
    ) -> Sheet:
        """Run the pairs, chunk by chunk, and score them.

        Raises:
            ReadoutError: every gradient that was taken is 0.
        """
        n_targets, n, n_edges = len(readout.names), len(pairs), sum(map(len, wanted))
        dtype = np.float64 if pairs.base.dtype == torch.float64 else np.float32
        sheet = cls(
            {part: np.empty((n_edges, n_targets, n), dtype=dtype) for part in scoring.parts},
            np.empty((n_targets, n)),
            np.zeros(n_targets),
            np.zeros((len(cuts), n_targets, n)),
            np.zeros((len(cuts), n_targets, n)),
        )
        activity = baselines.Activity(readout)
        flat = FlatPairs(readout, scoring.gradient_at) if scoring.by_gradient else None
        stops = np.cumsum([len(some) for some in wanted])
        for rows, run in pair_runs(vae, pairs, wiring):
            sheet.total[:, rows] = total_effect(run, readout).detach().cpu()
            sheet.resolution = np.maximum(sheet.resolution, resolution_of(run, readout))
            activity.add(run)
            for part, values in sheet.parts.items() if scoring.method not in BASELINES else ():
                scored = scoring.scores(part, run, readout, cuts, wanted, flat, advance)
                for i, of_cut in zip(reversed(range(len(cuts))), scored, strict=True):
                    values[stops[i] - len(wanted[i]) : stops[i], :, rows] = of_cut.values.detach().cpu()
                    sheet.gaps[i, :, rows] = of_cut.gap.detach().cpu()
                    sheet.bypass[i, :, rows] = of_cut.bypass.detach().cpu()
        if flat is not None:
            flat.report()
        asked = np.concatenate([some + start for some, start in zip(wanted, _starts(cuts), strict=True)])
        sheet.beside = {
            "weight": baselines.weights(cuts, n_targets)[asked],
            "correlation": activity.correlations(cuts)[asked],
        }
        if scoring.method in BASELINES:
            found = sheet.beside | {"random": baselines.random(cuts, n_targets, scoring.seed)[asked]}
            sheet.parts[scoring.method][:] = found[scoring.method][:, :, None]
            advance(n_edges * n)
        return sheet

    @property
    def mean(self) -> Float[np.ndarray, "edge target pair"]:
        """The mean of the parts."""
        first, *others = self.parts.values()
        return sum(others, first) / len(self.parts) if others else first


def _starts(cuts: Sequence[Cut]) -> list[int]:
    """Position of each cut's first edge among those of all."""
    return [sum(map(len, cuts[:i])) for i in range(len(cuts))]
