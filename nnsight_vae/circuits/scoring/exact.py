"""Edge patching: every edge in a run of its own, which starts where the edge ends and is as short as the engine makes it.

Edge u -> v: v's pre-activation moves by `dc_uv`, all else follows from there. That is the intervention `Add(dc_uv)` on unit v,
so the engine runs it: many edges in one batch, only below v, one channel of the next layer instead of all, and not at all where
an activation is deaf to the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import apply
from nnsight_vae.circuits.wiring.cuts import Block, Cut
from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.donors import Joint, Replacement
from nnsight_vae.engine import CHUNK_BYTES, Sweep
from nnsight_vae.groups import Group, by_sites
from nnsight_vae.interventions import Add, Intervention
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Selection


@torch.no_grad()
def patched(
    run: PairRun, cut: Cut, readout: Readout, edges: Int[np.ndarray, " some"], advance: Callable[[int], None]
) -> Float[Tensor, "some target pair"]:
    """m(base; p_v += dc_uv) - m(base) of some edges u -> v of a cut, dc_uv what v takes in more as u alone goes to the source.

    Args:
        run: the pairs; reversed, the result is minus the denoising effect.
        cut: the edges.
        readout: m.
        edges: positions in the cut.
        advance: called with the number of (edge, pair) rows just finished.
    """
    if cut.readers == (len(run.wiring.columns),):
        return _patched_readout(run, cut, readout, edges, advance)
    clean, reads = run.base, run.wiring.reads
    unpatched = read(readout, run.base_inputs[-1])
    result = unpatched.new_empty(len(edges), len(clean), len(readout.names))
    sweep = Sweep(clean, readout, clean.vae.layout(clean.x).paths[reads])
    for chosen, joints in _plans(run, cut, edges):
        groups = [Group.of(clean.vae, clean.x, clean.eps, joints, members, reads) for members in by_sites(joints)]
        for members, examples, values in sweep.results(groups, _as_given):
            result[chosen[members], examples] = values - unpatched[examples]
            advance(len(values))
    return result.transpose(1, 2)


def _patched_readout(
    run: PairRun, cut: Cut, readout: Readout, edges: Int[np.ndarray, " some"], advance: Callable[[int], None]
) -> Float[Tensor, "some target pair"]:
    """Each unit moves on its own in what the readout reads; an edge into one target is 0 on the others."""
    unpatched = read(readout, run.base_inputs[-1])
    result = unpatched.new_zeros(len(edges), len(readout.names), len(run))
    for block, node, wanted in _by_source(cut, edges):
        moved = run.moved_alone(block.reader, block.route, node)
        share = (read(readout, run.base_inputs[-1] + moved) - unpatched).T
        for target, position in wanted:
            result[position, target] = share[target]
            advance(len(run))
    return result


def _plans(run: PairRun, cut: Cut, edges: Int[np.ndarray, " some"]) -> Iterator[tuple[Int[Tensor, " k"], list[Joint]]]:
    """The interventions of some edges at a time, source by source, so few that what they add stays within `CHUNK_BYTES`."""
    chosen, joints, held = [], [], 0
    for block, node, wanted in _by_source(cut, edges):
        added = run.moved_alone(block.reader, block.route, node)
        if block.layer is not None:
            added = apply(block.layer, added)
        for target, position in wanted:
            joints.append(_joint(run, block, target, added))
            chosen.append(position)
        held += added.numel() * added.element_size()
        if held >= CHUNK_BYTES:
            yield torch.tensor(chosen), joints
            chosen, joints, held = [], [], 0
    if chosen:
        yield torch.tensor(chosen), joints


def _by_source(cut: Cut, edges: Int[np.ndarray, " some"]) -> Iterator[tuple[Block, int, list[tuple[int, int]]]]:
    """Each block and node with edges among some: their targets and positions among the some."""
    position = {edge: i for i, edge in enumerate(edges.tolist())}
    for block in cut.blocks:
        for node, row in enumerate(block.edges.tolist()):
            wanted = [(target, position[edge]) for target, edge in enumerate(row) if edge in position]
            if wanted:
                yield block, node, wanted


def _joint(run: PairRun, block: Block, target: int, added: Float[Tensor, "n ..."]) -> Joint:
    """What arrives at a node, as an addition to its units."""
    to = run.wiring.columns[block.reader]
    names = {path: name for name, path in run.base.vae.layout(run.base.x).paths.items()}
    units = (to.owners == target).nonzero().flatten()
    return {Selection(names[to.path], tuple(units.tolist())): Add(added.movedim(to.axis, 1)[:, units])}


def _as_given(selection: Selection, intervention: Intervention) -> Replacement:
    return Replacement(1.0, intervention.delta)  # type: ignore[attr-defined]
