"""Edge patching: every edge in a run of its own, which starts where the edge ends and is as short as the engine makes it.

Edge u -> v: v's pre-activation moves by `dc_uv`, all else follows from there. That is the intervention `Add(dc_uv)` on unit v,
so the engine runs it: many edges in one batch, only below v, one channel of the next layer instead of all, and not at all where
an activation is deaf to the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.contributions import apply, port_axis
from nnsight_vae.circuits.edges import Cut
from nnsight_vae.circuits.pair_run import PairRun, read
from nnsight_vae.donors import Joint, Replacement
from nnsight_vae.engine import CHUNK_BYTES, Sweep
from nnsight_vae.groups import Group, by_sites
from nnsight_vae.interventions import Add, Intervention
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Selection


@torch.no_grad()
def patched(
    run: PairRun,
    cut: Cut,
    column: int,
    readout: Readout,
    edges: Int[np.ndarray, " some"],
    advance: Callable[[int], None],
) -> Float[Tensor, "some target pair"]:
    """m(base; p_v += dc_uv) - m(base) of some edges u -> v into one column.

    Args:
        run: the pairs; reversed, the result is minus the denoising effect.
        cut: the edges into the column.
        column: which one; the one after the last is the readout.
        readout: m.
        edges: positions in the cut.
        advance: called with the number of (edge, pair) rows just finished.
    """
    if column == len(run.chain.columns):
        return _patched_readout(run, cut, readout, edges, advance)
    clean = run.base
    unpatched = read(readout, run.base_inputs[-1])
    result = unpatched.new_empty(len(edges), len(clean), len(readout.names))
    sweep = Sweep(clean, readout, clean.vae.layout(clean.x).paths[run.chain.reads])
    for chosen, joints in _plans(run, cut, column, edges):
        groups = [
            Group.of(clean.vae, clean.x, clean.eps, joints, members, run.chain.reads) for members in by_sites(joints)
        ]
        for members, examples, values in sweep.results(groups, _as_given):
            result[chosen[members], examples] = values - unpatched[examples]
            advance(len(values))
    return result.transpose(1, 2)


def _patched_readout(
    run: PairRun, cut: Cut, readout: Readout, edges: Int[np.ndarray, " some"], advance: Callable[[int], None]
) -> Float[Tensor, "some target pair"]:
    """Each unit moves on its own in what the readout reads; an edge into one target is 0 on the others."""
    base, change, ports = run.base_inputs[-1], run.change(-1), run.chain.columns[-1].ports
    unpatched = read(readout, base)
    result = unpatched.new_zeros(len(edges), len(readout.names), len(run))
    for source in np.unique(cut.ends[edges, 0]):
        share = (read(readout, base + only(change, 1, ports, int(source))) - unpatched).T
        for position in np.flatnonzero(cut.ends[edges, 0] == source):
            target = cut.ends[edges[position], 1]
            result[position, target] = share[target]
            advance(len(run))
    return result


def _plans(
    run: PairRun, cut: Cut, column: int, edges: Int[np.ndarray, " some"]
) -> Iterator[tuple[Int[Tensor, " k"], list[Joint]]]:
    """The interventions of some edges at a time, source by source, so few that what they add stays within `CHUNK_BYTES`."""
    chosen, joints, held = [], [], 0
    for source in np.unique(cut.ends[edges, 0]):
        added = _arriving(run, column, int(source))
        for position in np.flatnonzero(cut.ends[edges, 0] == source):
            joints.append(_joint(run, column, int(cut.ends[edges[position], 1]), added))
            chosen.append(position)
        held += sum(tensor.numel() * tensor.element_size() for tensor in added)
        if held >= CHUNK_BYTES:
            yield torch.tensor(chosen), joints
            chosen, joints, held = [], [], 0
    if chosen:
        yield torch.tensor(chosen), joints


def _arriving(run: PairRun, column: int, source: int) -> list[Float[Tensor, "n ..."]]:
    """What a source node adds to each output of a column when it alone moves from base to source."""
    if column == 0:
        return [run.source.outputs["tap_input"] - run.base.outputs["tap_input"]]
    layers, change = run.chain.layers[column], run.change(column - 1)
    moved = only(change, port_axis(layers[0], change), run.chain.columns[column - 1].ports, source)
    return [apply(layer, moved) for layer in layers]


def _joint(run: PairRun, column: int, target: int, added: Sequence[Tensor]) -> Joint:
    """What arrives at a node, as an addition to each site that has units of it."""
    joint: dict[Selection, Intervention] = {}
    to = run.chain.columns[column]
    names = {path: name for name, path in run.base.vae.layout(run.base.x).paths.items()}
    for path, axis, owners, tensor in zip(to.paths, to.axes, to.owners, added, strict=True):
        units = (owners == target).nonzero().flatten()
        if len(units):
            joint[Selection(names[path], tuple(units.tolist()))] = Add(tensor.movedim(axis, 1)[:, units])
    return joint


def _as_given(selection: Selection, intervention: Intervention) -> Replacement:
    return Replacement(1.0, intervention.delta)  # type: ignore[attr-defined]


def only(tensor: Tensor, axis: int, owners: Int[Tensor, " unit"], node: int) -> Tensor:
    """The tensor with everything set to 0 that is not the node's."""
    mask = (owners == node).to(tensor)
    return tensor * mask.view([-1 if a == axis else 1 for a in range(tensor.ndim)])
