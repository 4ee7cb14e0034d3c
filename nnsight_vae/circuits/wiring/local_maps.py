"""Local maps: how much of the change of what a layer takes in is due to each node before it.

Between the columns P that a layer reads and the layer lies a map F (activations, norms, additions, attention). As all of P move
on the straight line from a to a + d, F changes by the sum over nodes u of

    delta_u = integral over t in [0, 1] of J_F(a + t d) d_u dt,        d_u: the part of d that is u's.

Where a port of the layer changes with one node only that is the whole change of the port. Where F adds up what several columns
give to a port, delta_u is the change with u's column moved alone. Elsewhere (a gate after a residual addition, a norm over channels,
attention) it is averaged over Gauss-Lobatto nodes, with weights calibrated element by element to the known change as those of `quadrature`
are: exact where one gate opens on the way, and in the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nnsight_vae.circuits.wiring.contributions import port_axis
from nnsight_vae.circuits.wiring.nodes import Column, Route
from nnsight_vae.circuits.wiring.quadrature import gauss_lobatto
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.errors import CircuitError
from nnsight_vae.runs import CleanRun, Write, run_from, start_for

NODES = 8  # points on the straight line through a local map
_FEW = 4  # sets of nodes up to which it is tried whether the map just adds them up
_ROUNDING = 64  # units in the last place by which a sum that is the same may differ


class Part(NamedTuple):
    """A part of the change of what a reader takes in.

    Attributes:
        parent: the column it is due to; -1 for the factor.
        owners: the node of that column that each port's change is due to; -1 where the port's change is due to others.
        delta: the change, shaped like what the reader takes in; only ports with an owner count.
    """

    parent: int
    owners: Int[Tensor, " port"]
    delta: Float[Tensor, "n ..."]


class State(NamedTuple):
    """What a reader's parents give, and what it takes in with that.

    Attributes:
        outputs: of each parent, by position.
        taken: by the reader.
    """

    outputs: Mapping[int, Tensor]
    taken: Tensor


class LocalMap:
    """What a reader takes in, as a function of what its parents give.

    Args:
        run: a clean run of the examples; nothing of it matters but their noise.
        wiring: the columns.
        reader: position of the column whose module takes in, or the number after the last: the readout.
    """

    def __init__(self, run: CleanRun, wiring: Wiring, reader: int) -> None:
        self.run, layout = run, run.vae.layout(run.x)
        self.parents = [wiring.columns[route.parent] for route in wiring.routes(reader)]
        self.path = wiring.columns[reader].path if reader < len(wiring.columns) else layout.paths[wiring.reads]
        first = min((column.path for column in self.parents), key=lambda path: layout.firings[path].finished)
        self.reads = wiring.reads
        self.start = start_for(run.vae, run.x, first, wiring.reads)

    def __call__(self, outputs: Sequence[Float[Tensor, "m ..."]]) -> Float[Tensor, "m ..."]:
        """What is taken in; m is any number of times that of the examples."""
        rows = torch.arange(len(self.run), device=outputs[0].device).repeat(len(outputs[0]) // len(self.run))
        writes = {column.path: _put(value) for column, value in zip(self.parents, outputs, strict=True)}
        return run_from(self.run, self.start, rows, writes, torch.clone, self.reads, taken_by=self.path)


def parts_between(run: CleanRun, wiring: Wiring, reader: int, start: State, end: State) -> Iterator[Part]:
    """The change of what a reader takes in, part by part; over all parts it sums to `end.taken - start.taken`.

    Args:
        run: a clean run of the examples.
        wiring: the columns.
        reader: position of the column whose module takes in, or the number after the last: the readout.
        start: one end of the straight line.
        end: the other.

    Raises:
        CircuitError: what lies between cannot be differentiated.
    """
    change, routes = end.taken - start.taken, wiring.routes(reader)
    if not routes:  # the input: the factor changes it
        yield Part(-1, torch.zeros(change.shape[1], dtype=torch.long), change)
        return
    if wiring.is_plain(reader):
        for route in routes:
            for owners in route.owners:
                yield Part(route.parent, owners, change)
        return
    local = LocalMap(run, wiring, reader)
    starts = [start.outputs[route.parent] for route in routes]
    moves = [end.outputs[route.parent] - a for route, a in zip(routes, starts, strict=True)]
    sets = [(i, owners) for i, route in enumerate(routes) for owners in route.owners]
    directions = [only(moves[i], wiring.columns[routes[i].parent], owners) for i, owners in sets]
    alone, additive = [], torch.zeros_like(change, dtype=torch.bool)
    if len(sets) <= _FEW:
        alone = [
            moved - start.taken
            for moved in _one_at_a_time(local, starts, [(i, d) for (i, _), d in zip(sets, directions, strict=True)])
        ]
        size = start.taken.abs() + torch.stack([each.abs() for each in alone]).sum(0)
        additive = (torch.stack(alone).sum(0) - change).abs() <= _ROUNDING * torch.finfo(change.dtype).eps * size
    path = None if bool(additive.all()) else _Path(local, starts, moves, change)
    for k, (i, owners) in enumerate(sets):
        delta = alone[k] if path is None else path.due_to(i, directions[k])
        yield Part(routes[i].parent, owners, torch.where(additive, alone[k], delta) if alone else delta)


def moved_alone(
    run: CleanRun, wiring: Wiring, reader: int, route: Route, node: int, start: State, end: State
) -> Float[Tensor, "n ..."]:
    """Change of what a reader takes in when a single node goes from start to end: what edge patching adds."""
    if wiring.is_plain(reader):
        return (end.taken - start.taken) * _along(route.reach[node], end.taken, wiring, reader)
    outputs = dict(start.outputs)
    a = outputs[route.parent]
    outputs[route.parent] = a + only(end.outputs[route.parent] - a, wiring.columns[route.parent], torch.tensor([node]))
    return LocalMap(run, wiring, reader)(list(outputs.values())) - start.taken


def only(move: Tensor, column: Column, nodes: Int[Tensor, " some"]) -> Tensor:
    """The part of a column's change that is some nodes'."""
    mask = torch.isin(column.owners, nodes[nodes >= 0]).to(move)
    return move * mask.view([-1 if axis == column.axis else 1 for axis in range(move.ndim)])


class _Path:
    """A straight line through a local map, ready to tell what any direction contributes.

    J d is had by differentiating J^T w, which is linear in w, with respect to w: one pass forward and back for all points and
    directions, and one back through that for each direction.
    """

    def __init__(self, local: LocalMap, starts: Sequence[Tensor], moves: Sequence[Tensor], change: Tensor) -> None:
        positions, weights = zip(*gauss_lobatto(NODES), strict=True)
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # the fused kernels of attention differentiate once only
            points = [torch.cat([a + t * d for t in positions]) for a, d in zip(starts, moves, strict=True)]
            points = [point if point.requires_grad else point.requires_grad_() for point in points]
            values = local(points)
            if not values.requires_grad:
                raise CircuitError(
                    f"{self._between(local)} stops gradients, so the shares of the nodes in it cannot be told apart."
                )
            self.w = torch.zeros_like(values, requires_grad=True)
            self.pulled = torch.autograd.grad(
                (values * self.w).sum(), points, create_graph=True, allow_unused=True, materialize_grads=True
            )
        self.between, self.differentiable = self._between(local), any(d.requires_grad for d in moves)
        rule = change.new_tensor(weights).view(-1, *[1] * change.ndim)
        slopes = self._slopes(list(zip(self.pulled, moves, strict=True)))
        first, second = (rule * slopes).sum(0), (rule * slopes.square()).sum(0)
        tilt = torch.where(second > 0, (change - first) / second, 0.0)
        self.weights = rule * (1 + tilt * slopes)

    def due_to(self, i: int, direction: Tensor) -> Float[Tensor, "n ..."]:
        """The calibrated integral of the local map's slope along a direction of one parent."""
        return (self.weights * self._slopes([(self.pulled[i], direction)])).sum(0)

    def _slopes(self, directions: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "k n ..."]:
        with torch.enable_grad():
            pairs = [(pulled * d.repeat(NODES, *[1] * (d.ndim - 1))).sum() for pulled, d in directions]
            total = torch.stack(pairs).sum() + 0 * self.w.sum()  # the slope of what does not depend on w is 0
        try:
            (slopes,) = torch.autograd.grad(total, self.w, retain_graph=True, create_graph=self.differentiable)
        except (RuntimeError, NotImplementedError) as error:
            raise CircuitError(
                f"{self.between} cannot be differentiated twice, which the shares of the nodes in it need: {error}"
            ) from error
        return slopes.unflatten(0, (NODES, -1))

    @staticmethod
    def _between(local: LocalMap) -> str:
        parents = " and ".join(repr(column.path.removeprefix("model.")) for column in local.parents)
        return f"what lies between {parents} and {local.path.removeprefix('model.')!r}"


def _one_at_a_time(
    local: LocalMap, starts: Sequence[Tensor], directions: Sequence[tuple[int, Tensor]]
) -> Sequence[Tensor]:
    """What is taken in when only one direction is taken, each from one parent's start: all in one run."""
    points = [torch.cat([a + d if i == parent else a for parent, d in directions]) for i, a in enumerate(starts)]
    return local(points).chunk(len(directions))


def _along(mask: Tensor, like: Tensor, wiring: Wiring, reader: int) -> Tensor:
    """A mask of ports, shaped to multiply what a reader takes in."""
    layer = wiring.columns[reader].layer if reader < len(wiring.columns) else None
    axis = port_axis(layer, like)
    return mask.to(like).view([-1 if a == axis else 1 for a in range(like.ndim)])


def _put(value: Tensor) -> Write:
    return lambda _: value.clone()
