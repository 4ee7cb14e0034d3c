"""Scores that intervene on nothing, to hold beside those that do: how large weights are, and what goes together in clean runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import port_axis, weight_squares
from nnsight_vae.circuits.wiring.cuts import Cut
from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.circuits.wiring.sums import counts_by, sums_by
from nnsight_vae.readouts import Readout


def weights(cuts: Sequence[Cut], n_targets: int) -> Float[np.ndarray, "edge target"]:
    """L2 norm of the weights by which each edge is read; 1 where none are (the ends, and into `latent.z`)."""
    scores = []
    for cut in cuts:
        squares = torch.zeros(len(cut))
        for block in cut.blocks:
            if block.layer is None:
                squares[block.edges[block.edges >= 0]] = 1
                continue
            for owners in block.route.owners:
                squares += weight_squares(block.layer, block.of_entries(owners), len(cut)).cpu()
        scores.append(squares.sqrt().numpy()[:, None].repeat(n_targets, axis=1))
    return _own_readout_only(np.concatenate(scores), cuts)


def random(cuts: Sequence[Cut], n_targets: int, seed: int) -> Float[np.ndarray, "edge target"]:
    """Standard normal numbers."""
    drawn = np.random.default_rng(seed).standard_normal((sum(map(len, cuts)), n_targets))
    return _own_readout_only(drawn, cuts)


class Activity:
    """How active each node is in every clean run: the mean over its units and all positions, gathered run by run.

    Each node is seen from both sides: as its layer gives it (pre-activation), and as a reader takes it in where it alone changes
    the reader's ports; where others do too, as its layer gives it.
    """

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self._given: list[list[Tensor]] = []
        self._taken: list[dict[tuple[int, int], Tensor]] = []

    @torch.no_grad()
    def add(self, run: PairRun) -> None:
        """Take in both runs of some pairs."""
        wiring = run.wiring
        given = [
            _node_means([side.outputs[c.path] for side in (run.base, run.source)], c.axis, c.owners, len(c.nodes))
            for c in wiring.columns
        ]
        taken = {(0, -1): torch.arange(2.0, dtype=torch.float64).repeat_interleave(len(run))[:, None].to(given[0])}
        for reader, inputs in enumerate(zip(run.base_inputs, run.source_inputs, strict=True)):
            layer = wiring.columns[reader].layer if reader < len(wiring.columns) else None
            apart = wiring.is_plain(reader)
            for route in wiring.routes(reader):
                taken[reader, route.parent] = (
                    _node_means(inputs, port_axis(layer, inputs[0]), route.owners[0], len(route.reach))
                    if apart
                    else given[route.parent]
                )
        ends = torch.cat([read(self.readout, inputs) for inputs in (run.base_inputs[-1], run.source_inputs[-1])])
        self._given.append([*given, ends.double()])
        self._taken.append(taken)

    def correlations(self, cuts: Sequence[Cut]) -> Float[np.ndarray, "edge target"]:
        """|Pearson correlation| of each edge's source as it is read with its target's pre-activation, over both runs of all pairs.

        The factor counts as 0 in base runs and 1 in source runs, a readout as its value. 0 where either does not vary, since
        nothing then goes together.
        """
        n_targets, scores = len(self.readout.names), []
        given = _standardised(self._given)
        taken = dict(zip(self._taken[0], _standardised([list(run.values()) for run in self._taken]), strict=True))
        for cut in cuts:
            found = np.zeros(len(cut))
            for block in cut.blocks:
                together = taken[block.reader, block.route.parent].T @ given[block.reader]
                real = block.edges >= 0
                found[block.edges[real].numpy()] = together.abs().cpu()[real].numpy()
            scores.append(found[:, None].repeat(n_targets, axis=1))
        return _own_readout_only(np.concatenate(scores), cuts)


def _own_readout_only(
    scores: Float[np.ndarray, "edge target"], cuts: Sequence[Cut]
) -> Float[np.ndarray, "edge target"]:
    """An edge into a readout's target is 0 on the others."""
    ends = cuts[-1].ends[:, 1]
    scores[len(scores) - len(ends) :] *= ends[:, None] == np.arange(scores.shape[1])
    return scores


def _node_means(
    sides: Sequence[Tensor], axis: int, owners: Int[Tensor, " unit"], n_nodes: int
) -> Float[Tensor, "run node"]:
    """The mean of each node's units over all positions, in the runs of both sides."""
    by_unit = [(side.movedim(axis, 1).flatten(2).mean(2) if side.ndim > 2 else side).T for side in sides]
    units = torch.cat(by_unit, dim=1).double()
    if torch.equal(owners, torch.arange(n_nodes)):  # each unit a node of its own
        return units.T
    return (sums_by(owners, units, n_nodes) / counts_by(owners, n_nodes).clamp(min=1).to(units)[:, None]).T


def _standardised(runs: Sequence[Sequence[Float[Tensor, "_run _node"]]]) -> Sequence[Float[Tensor, "_run _node"]]:
    """Each column of some chunks of runs, centred and of length 1; all 0 where it does not vary beyond rounding."""
    activity = torch.cat([torch.cat(list(columns), dim=1) for columns in runs])
    centred = activity - activity.mean(0)
    length = centred.norm(dim=0)
    varies = length > 1e-6 * activity.norm(dim=0)
    return torch.where(varies, centred / length, 0.0).split([column.shape[1] for column in runs[0]], dim=1)
