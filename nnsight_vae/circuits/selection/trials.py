"""A model whose edges are taken away: what is left of the effect, and which edge matters least to it now."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float

from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.circuits.wiring.pair_run import read
from nnsight_vae.circuits.wiring.partial import run_with
from nnsight_vae.errors import ReadoutError

Edges = Bool[np.ndarray, " edge"]


class Trials:
    """Runs of one model on the same pairs with any of its edges; all activations of both clean runs are held.

    Edges that are not kept carry what they carried in the base run (resample ablation, `edge_sets`).
    """

    def __init__(self, sets: EdgeSets, scores: EdgeScores) -> None:
        """Run the pairs; `scores` says in which order edges are numbered."""
        self.sets, self.scores, self.paths = sets, scores, Paths.of(scores)
        number = {edge: i for i, edge in enumerate(sets.edges)}
        ends = zip(scores.sources, scores.targets, strict=True)
        self._order = np.array([number[edge] for edge in ends], dtype=np.intp)
        self._runs = list(sets.runs())
        shape = (len(sets.readout.names), len(sets.pairs))
        self._nothing, self._whole = np.empty(shape), np.empty(shape)
        with torch.no_grad():
            for rows, run, rest in self._runs:
                self._nothing[:, rows] = read(sets.readout, rest.inputs[-1]).T.cpu()
                self._whole[:, rows] = read(sets.readout, run.source_inputs[-1]).T.cpu()

    def deviation(self, kept: Edges, t: int, weights: Float[np.ndarray, " pair"]) -> float:
        """How far the readout is from the model's: mean |m(C) - m(M)| / mean |m(M) - m(nothing)| over the pairs.

        Pair by pair, so that what goes too far in one pair does not make up for what falls short in another. Where all
        pairs have total effects of one sign, the faithfulness of C is within 1 -+ this.
        """
        values = np.empty(len(weights))
        with torch.no_grad():
            for rows, run, rest in self._runs:
                ran = run_with(self.sets.vae, run, self.sets.cuts, self._split(kept), self.sets.readout, rest=rest)
                values[rows] = ran[:, t].cpu()
        total = np.abs(self._whole[t] - self._nothing[t])
        return float(weights @ np.abs(values - self._whole[t]) / (weights @ total))

    def worth(self, kept: Edges, t: int, weights: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " edge"]:
        """|Change of the mean readout if an edge that is kept were taken away from the others|, to first order; 0 for the rest.

        The share that an edge carries is a number in which the run is differentiable: all edges cost one backward pass.

        Raises:
            ReadoutError: the readout has no gradient.
        """
        result = np.zeros(len(kept))
        for rows, run, rest in self._runs:
            with torch.enable_grad():
                shares = [k.to(run.base.x).requires_grad_() for k in self._split(kept)]
                ran = run_with(self.sets.vae, run, self.sets.cuts, shares, self.sets.readout, rest=rest)
                summed = (ran[:, t] * torch.as_tensor(weights[rows]).to(ran)).sum()
                gradients = torch.autograd.grad(summed, shares, allow_unused=True) if summed.requires_grad else ()
            if gradients:
                flat = [torch.zeros_like(s) if g is None else g for s, g in zip(shares, gradients, strict=True)]
                result += torch.cat(flat).double().cpu().numpy()[self._order]
        if not (result[kept] != 0).any() and self.deviation(kept, t, weights) < 1:
            raise ReadoutError(
                f"readout target {self.sets.readout.names[t]!r} has no gradient in what edges carry (a threshold, an argmax, a "
                "detached tensor), so edges cannot be pruned by it; use select=Mass(...), TopK(...) or Greedy(...)."
            )
        return np.where(kept, np.abs(result) / weights.sum(), 0.0)

    def _split(self, kept: Edges) -> list[torch.Tensor]:
        flat = np.zeros(len(kept), dtype=bool)
        flat[self._order] = kept
        return self.sets.kept(flat)
