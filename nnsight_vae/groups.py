"""Groups: the interventions of a plan that run together, which of their rows change anything, and what is written for those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from nnsight_vae.donors import Joint
from nnsight_vae.errors import InterventionError
from nnsight_vae.routes import Route, route_for
from nnsight_vae.runs import CleanRun, Write, needed_for, start_for
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE
from nnsight_vae.writes import Resolved, Rows, changed, units_replaced, writes_of


class Block(NamedTuple):
    """Some interventions on the examples of a clean run.

    Attributes:
        members: their positions in the plan.
        alive: where the intervention changes what follows; everywhere else the result is that of the clean run.
        writes: the writes for some rows; they count within the block.
    """

    members: list[int]
    alive: Bool[Tensor, "k n"]
    writes: Callable[[Rows], dict[str, Write]]


@dataclass(frozen=True)
class Group:
    """Interventions that share their sites, and so where their runs start.

    Attributes:
        joints: the whole plan.
        members: positions in it.
        start: path of the module the batch grows at; None is the input.
        until: moment up to which the clean run is needed.
        route: the way of a single unit's change; None where the interventions are on anything else.
    """

    joints: Sequence[Joint]
    members: list[int]
    start: str | None
    until: int
    route: Route | None

    @classmethod
    def of(
        cls, vae: VAE, x: Tensor, eps: Tensor | None, joints: Sequence[Joint], members: list[int], reads: str
    ) -> Group:
        """The group of some members of a plan.

        Raises:
            InterventionError: the readout reads a site before one of theirs.
        """
        layout = vae.layout(x)
        sites = sorted((selection.site for selection in joints[members[0]]), key=layout.sites.order)
        if layout.sites.order(sites[-1]) > layout.sites.order(reads):
            raise InterventionError(
                f"the readout reads {reads!r}, which comes before {sites[-1]!r}; nothing there can change it."
            )
        route = route_for(vae, x, eps, sites[0], reads) if _single(joints[members[0]]) else None
        path = layout.paths[sites[0]] if route is None else route.end(layout)
        start = start_for(vae, x, path, reads)
        kept = layout.firings[layout.paths[sites[-1]]].finished
        return cls(joints, members, start, max(kept, needed_for(vae, x, start)), route)

    def blocks(self, clean: CleanRun, resolved: Resolved, budget: int) -> Iterator[Block]:
        """The members in blocks on all examples of a clean run; what is kept for a block stays within `budget` bytes."""
        if self.route is None:
            joints = [self.joints[m] for m in self.members]
            alive = torch.stack([changed(clean, joint, resolved) for joint in joints])
            layout = clean.vae.layout(clean.x)
            yield Block(self.members, alive, lambda rows: writes_of(layout, joints, resolved, rows))
            return
        unit = clean.x.element_size() * len(clean) * self.route.positions
        step = max(1, budget // (4 * unit))  # before and after, at the site and at the end of the route
        for i in range(0, len(self.members), step):
            yield self._units(clean, resolved, self.route, self.members[i : i + step])

    def _units(self, clean: CleanRun, resolved: Resolved, route: Route, members: list[int]) -> Block:
        selections = [next(iter(self.joints[m].items())) for m in members]
        replacements = [(selection, resolved(selection, intervention)) for selection, intervention in selections]
        activation = clean.at(route.site.name).movedim(route.site.axis, 1)
        units = torch.tensor([_unit(selection) for selection, _ in selections], device=activation.device)
        before, after = units_replaced(activation, units, replacements)
        (first, old), (_, new) = route.follow(units, before), route.follow(units, after)
        alive = (old != new).flatten(2).any(2)  # an activation may be deaf to a change

        def writes(rows: Rows) -> dict[str, Write]:
            here = (rows.members, rows.examples)
            end = route.end(clean.vae.layout(clean.x))
            return {end: route.write(first[rows.members], old[here], new[here])}

        return Block(members, alive, writes)


def by_sites(joints: Sequence[Joint]) -> list[list[int]]:
    """Positions in the plan whose interventions touch the same sites, so that they can share traces."""
    groups: dict[tuple[bool, tuple[str, ...]], list[int]] = {}
    for i, joint in enumerate(joints):
        sites = tuple(sorted({selection.site for selection in joint}))
        groups.setdefault((_single(joint), sites), []).append(i)
    return list(groups.values())


def _single(joint: Joint) -> bool:
    return len(joint) == 1 and all(s.indices is not None and len(s.indices) == 1 for s in joint)


def _unit(selection: Selection) -> int:
    (unit,) = selection.indices or ()
    return unit
