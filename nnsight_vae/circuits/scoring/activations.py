"""Edge scores that are exact through the target's own activation and first order after it: `eap-act`.

Edge u -> v moves v's pre-activation p_v by dc_uv. Most of what a gradient at p_v gets wrong about that is v's own doing: a ReLU
that is shut at the base opens, one that is open shuts. What follows v sees one of many units change, and is nearly linear in it. So

    score = sum over positions of (phi(p_v + dc_uv) - phi(p_v)) dm/dphi,

phi all that v passes alone before the next layer mixes it with others (activations, norms in eval mode), found by `routes` and tried on
the model. Where nothing is found (a norm over channels, a residual addition, a function in between that is no module) phi is the
identity, which leaves `eap`. The contributions dc_uv are written out, some sources at a time: several times the work of `eap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.scoring.gradients import at_inputs
from nnsight_vae.circuits.wiring.contraction import ByTarget, contracted
from nnsight_vae.circuits.wiring.contributions import apply_to_ports, port_axis
from nnsight_vae.circuits.wiring.cuts import Block, Cut
from nnsight_vae.circuits.wiring.local_maps import Part
from nnsight_vae.circuits.wiring.pair_run import PairRun
from nnsight_vae.engine import CHUNK_BYTES
from nnsight_vae.readouts import Readout
from nnsight_vae.routes import Route, route_for


def at_activations(
    run: PairRun, readout: Readout, cuts: Sequence[Cut]
) -> Iterator[tuple[Float[Tensor, "edge target pair"], ByTarget]]:
    """Noising of every edge to first order after its target's activation, cut by cut, the readout's first.

    Args:
        run: the pairs; reversed, the result is minus the denoising effect.
        readout: m.
        cuts: all edges.

    Returns: the scores of a cut's edges, and the gradients that were taken in its readers' activations.

    Source: attribution patching with an exact nonlinearity, as AtP* has it for the softmax of attention, Kramar et al. 2024
        (arXiv 2403.00745), section 3.1, here for the activation of an edge's target.
    """
    routes = [_route(run, i) for i in range(len(run.wiring.columns))]
    layout = run.base.vae.layout(run.base.x)
    paths = [route.acting[-1].path if route.acting else layout.paths[route.site.name] for route in routes]
    gradients = at_inputs(run, readout, (0.0,), paths)
    for cut in reversed(cuts):
        there = [[gradient[0] for gradient in of_target] for of_target in gradients.pop()]
        readers = [routes[reader] if reader < len(routes) else None for reader in cut.readers]
        if any(route is not None and route.acting for route in readers):
            yield _scores(run, cut, there, readers), there
        else:
            yield contracted(run, cut, there), there


def _route(run: PairRun, column: int) -> Route:
    clean, path = run.base, run.wiring.columns[column].path
    names = {path: name for name, path in clean.vae.layout(clean.x).paths.items()}
    return route_for(clean.vae, clean.x, clean.eps, names[path], run.wiring.reads)


@torch.no_grad()
def _scores(run: PairRun, cut: Cut, gradients: ByTarget, routes: Sequence[Route | None]) -> Tensor:
    result = run.base.x.new_zeros(len(cut), len(gradients), len(run))
    for at, (reader, route) in enumerate(zip(cut.readers, routes, strict=True)):
        blocks = {block.route.parent: block for block in cut.blocks if block.reader == reader}
        for part in run.parts(reader):
            _add(result, run, blocks[part.parent], part, route, [of_target[at] for of_target in gradients])
    return result


def _add(
    result: Float[Tensor, "edge target pair"],
    run: PairRun,
    block: Block,
    part: Part,
    route: Route,
    gradients: Sequence[Tensor],
) -> None:
    """Add what one part of a reader's change is worth, some of the nodes it is due to at a time."""
    column = run.wiring.columns[block.reader]
    before = run.base.outputs[column.path]
    resting = route.activated(before.clone())
    step = max(1, CHUNK_BYTES // (before.numel() * before.element_size()))
    for nodes in torch.unique(part.owners[part.owners >= 0]).split(step):
        arriving = torch.stack([_arriving(block, part, int(node)) for node in nodes])
        moved = route.activated((arriving + before).flatten(0, 1)).unflatten(0, (len(nodes), -1)) - resting
        edges = block.edges[nodes][:, block.owners.clamp(min=0)]
        real = ((edges >= 0) & (block.owners >= 0)).flatten()
        for t, gradient in enumerate(gradients):
            products = (moved * gradient.reshape(before.shape)).movedim(column.axis + 1, 1)  # [node, unit, pair, ...]
            by_unit = products.flatten(3).sum(-1) if products.ndim > 3 else products
            result[:, t].index_add_(
                0, edges.flatten()[real].to(result.device), by_unit.flatten(0, 1)[real.to(result.device)]
            )


def _arriving(block: Block, part: Part, node: int) -> Float[Tensor, "n ..."]:
    """What a node adds to the reader's output as it alone goes from base to source."""
    ports = (part.owners == node).nonzero().flatten().to(part.delta.device)
    if block.layer is not None:
        return apply_to_ports(block.layer, part.delta, ports)
    axis = port_axis(None, part.delta)
    return torch.zeros_like(part.delta).index_copy_(axis, ports, part.delta.index_select(axis, ports))
