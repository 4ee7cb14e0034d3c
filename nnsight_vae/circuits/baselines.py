"""Scores that intervene on nothing, to hold beside those that do: how large weights are, and what goes together in clean runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.contributions import port_axis, weight_norms
from nnsight_vae.circuits.edges import Cut
from nnsight_vae.circuits.layers import Chain
from nnsight_vae.circuits.pair_run import PairRun, read
from nnsight_vae.readouts import Readout


def weights(chain: Chain, cuts: Sequence[Cut], n_targets: int) -> Float[np.ndarray, "edge target"]:
    """L2 norm of each edge's weights; 1 at the ends, which have none."""
    scores = []
    for i, cut in enumerate(cuts):
        norms = torch.ones(len(cut))
        if cut.edge_of:
            parts = zip(chain.layers[i], cut.edge_of, strict=True)
            norms = torch.stack([weight_norms(layer, edge, len(cut)) for layer, edge in parts]).sum(0)
        scores.append(norms.cpu().numpy()[:, None].repeat(n_targets, axis=1))
    return _own_readout_only(np.concatenate(scores), cuts)


def random(cuts: Sequence[Cut], n_targets: int, seed: int) -> Float[np.ndarray, "edge target"]:
    """Standard normal numbers."""
    drawn = np.random.default_rng(seed).standard_normal((sum(map(len, cuts)), n_targets))
    return _own_readout_only(drawn, cuts)


class Activity:
    """How active each node is in every clean run: the mean over its units and all positions, gathered run by run.

    Each column is seen from both sides, as its layers give it (pre-activation) and as its reader takes it in.
    """

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self._given: list[list[Tensor]] = []
        self._taken: list[list[Tensor]] = []

    @torch.no_grad()
    def add(self, run: PairRun) -> None:
        """Take in both runs of some pairs."""
        columns, layers = run.chain.columns, run.chain.layers
        for side, inputs in ((run.base, run.base_inputs), (run.source, run.source_inputs)):
            given, taken = [], []
            for i, column in enumerate(columns):
                parts = [
                    _node_means(side.outputs[path], axis, owners, len(column.nodes))
                    for path, axis, owners in zip(column.paths, column.axes, column.owners, strict=True)
                ]
                given.append(torch.stack(parts).sum(0))
                axis = port_axis(layers[i + 1][0], inputs[i]) if i + 1 < len(layers) else 1
                taken.append(_node_means(inputs[i], axis, column.ports, len(column.nodes)))
            given.append(read(self.readout, inputs[-1]).double())
            is_source = float(side is run.source)
            self._given.append(given)
            self._taken.append([given[0].new_full((len(run), 1), is_source), *taken])

    def correlations(self, cuts: Sequence[Cut]) -> Float[np.ndarray, "edge target"]:
        """|Pearson correlation| of each edge's source as it is read with its target's pre-activation, over both runs of all pairs.

        The factor counts as 0 in base runs and 1 in source runs, a readout as its value. 0 where either does not vary, since
        nothing then goes together.
        """
        n_targets, scores = len(self.readout.names), []
        for i, cut in enumerate(cuts):
            source, target = (_standardised(torch.cat([run[i] for run in runs])) for runs in (self._taken, self._given))
            both = (source.T @ target).abs().cpu().numpy()[cut.ends[:, 0], cut.ends[:, 1]]
            scores.append(both[:, None].repeat(n_targets, axis=1))
        return _own_readout_only(np.concatenate(scores), cuts)


def _own_readout_only(
    scores: Float[np.ndarray, "edge target"], cuts: Sequence[Cut]
) -> Float[np.ndarray, "edge target"]:
    """An edge into a readout's target is 0 on the others."""
    ends = cuts[-1].ends[:, 1]
    scores[len(scores) - len(ends) :] *= ends[:, None] == np.arange(scores.shape[1])
    return scores


def _node_means(tensor: Tensor, axis: int, owners: Int[Tensor, " unit"], n_nodes: int) -> Float[Tensor, "n node"]:
    per_unit = tensor.double().movedim(axis, 1).flatten(2).mean(2) if tensor.ndim > 2 else tensor.double()
    owned = owners.to(tensor.device)
    real = owned >= 0
    sums = per_unit.new_zeros(len(tensor), n_nodes).index_add_(1, owned[real], per_unit[:, real])
    return sums / torch.bincount(owned[real], minlength=n_nodes).clamp(min=1)


def _standardised(activity: Float[Tensor, "run node"]) -> Float[Tensor, "run node"]:
    """Centred and of length 1; all 0 where it does not vary beyond rounding."""
    centred = activity - activity.mean(0)
    length = centred.norm(dim=0)
    varies = length > 1e-6 * activity.norm(dim=0)
    return torch.where(varies, centred / length, 0.0)
