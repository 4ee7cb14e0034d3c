"""Edge scores that are exact through the target's own activation and first order after it: `eap-act`.

Edge u -> v moves v's pre-activation p_v by dc_uv. Most of what a gradient at p_v gets wrong about that is v's own doing: a ReLU
that is shut at the base opens, one that is open shuts. What follows sees one of many units change, and is nearly linear in it. So

    score = sum over readers r of v of <phi_r(p_v + dc_uv) - phi_r(p_v), dm/dphi_r>,

phi_r all that lies between v's column and what the next layer (or the readout) r takes in, and dm/dphi_r the gradient there. Where
each port of r changes with one unit only (activations, norms in eval mode, pooling, reshapes) all units of the column move at once.
Where units meet on the way (a norm over channels, a residual addition) the gradient is taken at p_v itself, as `eap` takes it.
The contributions dc_uv are written out, some sources at a time: several times the work of `eap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.scoring.gradients import at_inputs
from nnsight_vae.circuits.wiring.contraction import ByTarget, contracted
from nnsight_vae.circuits.wiring.contributions import Linear, Transposed, apply, apply_to_ports, port_axis
from nnsight_vae.circuits.wiring.cuts import Block, Cut
from nnsight_vae.circuits.wiring.local_maps import LocalMap, Part
from nnsight_vae.circuits.wiring.nodes import Route
from nnsight_vae.circuits.wiring.pair_run import PairRun
from nnsight_vae.engine import CHUNK_BYTES
from nnsight_vae.readouts import Readout
from nnsight_vae.updates import CONVOLVE


def at_activations(
    run: PairRun, readout: Readout, cuts: Sequence[Cut], scored: Sequence[bool]
) -> Iterator[tuple[Float[Tensor, "edge target pair"] | None, ByTarget]]:
    """Noising of every edge, to first order after its target's activation, cut by cut, the readout's first.

    Args:
        run: the pairs; reversed, the result is minus the denoising effect.
        readout: m.
        cuts: all edges.
        scored: whether the edges of each cut are; those into the readout are none of them, as they pass no activation.

    Returns: the scores of a cut's edges, None where they are not wanted, and the gradients in what its readers give.

    Source: attribution patching with one nonlinearity taken exactly, as AtP* takes the softmax of attention, Kramar et al. 2024
        (arXiv 2403.00745), section 3.1; here it is the activation of an edge's target.
    """
    gradients = at_inputs(run, readout, (0.0,))
    worth: dict[int, list[Tensor]] = {}  # reader -> each target's gradient in what it takes in
    for cut, wanted in zip(reversed(cuts), reversed(scored), strict=True):
        there = [[gradient[0] for gradient in of_target] for of_target in gradients.pop()]
        yield (_scores(run, cut, there, worth) if wanted else None), there
        for at, reader in enumerate(cut.readers):
            layer = run.wiring.columns[reader].layer if reader < len(run.wiring.columns) else None
            worth[reader] = [_pulled_back(layer, of_target[at], run.base_inputs[reader]) for of_target in there]


def _pulled_back(layer: Linear | None, gradient: Tensor, taken: Tensor) -> Tensor:
    """The gradient in what a column takes in, from that in what it gives."""
    if layer is None:
        return gradient
    if isinstance(layer, Transposed):  # the gradient of a transposed convolution is the ordinary one
        return CONVOLVE[gradient.ndim - 2](
            gradient, layer.weight.detach(), None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    with torch.enable_grad():
        a = torch.zeros_like(taken).requires_grad_()
        (pulled,) = torch.autograd.grad((apply(layer, a) * gradient).sum(), a)
    return pulled


@dataclass(frozen=True)
class _Way:
    """From a column to one of its readers: phi.

    Attributes:
        local: what the reader takes in, as a function of what its parents give.
        outputs: what the parents give in the base run.
        position: of the column among them.
        owners: the node of the column that each port of the reader changes with.
        axis: of the ports.
        resting: what the reader takes in in the base run.
        worth: each target's gradient there.
    """

    local: LocalMap
    outputs: list[Tensor]
    position: int
    owners: Int[Tensor, " port"]
    axis: int
    resting: Tensor
    worth: list[Tensor]

    @classmethod
    def of(cls, run: PairRun, route: Route, reader: int, worth: list[Tensor]) -> _Way:
        local, columns, resting = LocalMap(run.base, run.wiring, reader), run.wiring.columns, run.base_inputs[reader]
        layer = columns[reader].layer if reader < len(columns) else None
        outputs = [run.base.outputs[column.path] for column in local.parents]
        position = local.parents.index(columns[route.parent])
        return cls(local, outputs, position, route.owners[0], port_axis(layer, resting), resting, worth)

    def moved(self, values: Float[Tensor, "k n ..."]) -> Float[Tensor, "k n ..."]:
        """The change of what the reader takes in with other values of the column."""
        k = len(values)
        points = [output.repeat(k, *[1] * (output.ndim - 1)) for output in self.outputs]
        points[self.position] = values.flatten(0, 1)
        return self.local(points).unflatten(0, (k, -1)).sub_(self.resting)


@torch.no_grad()
def _scores(
    run: PairRun, cut: Cut, gradients: ByTarget, worth: dict[int, list[Tensor]]
) -> Float[Tensor, "edge target pair"]:
    result = run.base.x.new_zeros(len(cut), len(gradients), len(run))
    for at, column in enumerate(cut.readers):
        into = replace(cut, blocks=tuple(block for block in cut.blocks if block.reader == column))
        routes = [(route, reader) for reader in worth for route in run.wiring.routes(reader) if route.parent == column]
        if all(run.wiring.is_plain(reader) for _, reader in routes):
            ways = [_Way.of(run, route, reader, worth[reader]) for route, reader in routes]
            for part in run.parts(column):
                (block,) = (block for block in into.blocks if block.route.parent == part.parent)
                _add(result, run, block, part, ways)
        else:
            result += contracted(run, into, [[of_target[at]] for of_target in gradients])
    return result


def _add(
    result: Float[Tensor, "edge target pair"], run: PairRun, block: Block, part: Part, ways: Sequence[_Way]
) -> None:
    """Add what one part of the change of what a column's layer takes in is worth, some of the nodes it is due to at a time."""
    before = run.base.outputs[run.wiring.columns[block.reader].path]
    largest = max(before.numel(), *(way.resting.numel() for way in ways))
    for nodes in torch.unique(part.owners[part.owners >= 0]).split(
        max(1, CHUNK_BYTES // (largest * before.element_size()))
    ):
        values = torch.stack([_arriving(block, part, int(node), before.shape[2:]) for node in nodes]).add_(before)
        for way in ways:
            moved = way.moved(values)
            edges = torch.where(way.owners >= 0, block.edges[nodes][:, way.owners], -1).flatten()
            real, where = (edges >= 0).to(result.device), edges[edges >= 0].to(result.device)
            for t, gradient in enumerate(way.worth):
                by_port = (moved * gradient).movedim(way.axis + 1, 1)  # [node, port, pair, ...]
                by_port = by_port.flatten(3).sum(-1) if by_port.ndim > 3 else by_port
                result[:, t].index_add_(0, where, by_port.flatten(0, 1)[real])


def _arriving(block: Block, part: Part, node: int, size: torch.Size) -> Float[Tensor, "n ..."]:
    """What a node adds to what the column gives as it alone goes from base to source."""
    ports = (part.owners == node).nonzero().flatten().to(part.delta.device)
    if block.layer is not None:
        return apply_to_ports(block.layer, part.delta, ports, size)
    return torch.zeros_like(part.delta).index_copy_(1, ports, part.delta.index_select(1, ports))
