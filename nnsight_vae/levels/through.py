"""Nested counterfactuals: what an intervention makes of units further down, put into a run that is otherwise clean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.donors import selected
from nnsight_vae.engine import run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Set
from nnsight_vae.progress import Advance
from nnsight_vae.reading import Readout, reads as reads_of
from nnsight_vae.sites import Key, Selection, Site
from nnsight_vae.vae import VAE

CARRIED_BYTES = 64 * 2**20  # activations on their way from one run to the next

Level = tuple[Selection, ...]  # units that an effect may pass at one step of its way
Through = Sequence[Key] | Sequence[Sequence[Key]] | Key
Plan = Sequence[Mapping[Selection, Intervention]]


@dataclass(frozen=True)
class Activation:
    """The readout that returns the activations of some units of a site as they are, in a row.

    Attributes:
        site: the site they are at.
        selections: the units, or units at a position.

    Example:
        >>> read = Activation(Site("conv", "conv", "encoder", 3, (3, 1, 2)), (Selection("conv", (0, 2)), Selection("conv", (1,), (0, 1))))
        >>> read(torch.arange(6.0).view(1, 3, 1, 2)).tolist()
        [[0.0, 1.0, 4.0, 5.0, 3.0]]
    """

    site: Site
    selections: Level

    @property
    def reads(self) -> str:
        """The site's name."""
        return self.site.name

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name per number."""
        return tuple(map(str, range(sum(math.prod(shape) for shape in self._shapes))))

    def __call__(self, activation: Float[Tensor, "n ..."]) -> Float[Tensor, "n number"]:
        """The activations, selection by selection."""
        units_first = activation.movedim(self.site.axis, 1)
        return torch.cat([selected(units_first, each).flatten(1) for each in self.selections], dim=1)

    def held(self, numbers: Float[Tensor, "n number"]) -> dict[Selection, Intervention]:
        """The interventions that hold each selection at the numbers read."""
        parts = numbers.split([math.prod(shape) for shape in self._shapes], dim=1)
        return {
            selection: Set(part.unflatten(1, shape))
            for selection, part, shape in zip(self.selections, parts, self._shapes, strict=True)
        }

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        counts = [self.site.n_units if each.indices is None else len(each.indices) for each in self.selections]
        grids = [self.site.grid if each.position is None else () for each in self.selections]
        return [(count, *grid) for count, grid in zip(counts, grids, strict=True)]


def levels_of(vae: VAE, through: Through | None, readout: Readout) -> tuple[Level, ...]:
    """The levels that `through=` names, checked: a list of keys is one level, a list of lists one level after the other.

    Raises:
        SiteError: a key names no unit of this VAE.
        InterventionError: no keys, keys mixed with lists of keys, a unit named twice, levels that are not in the order of
            execution, or a level after what the readout reads.
    """
    if through is None:
        return ()
    steps: list[Any] = [through] if isinstance(through, str) or not isinstance(through, Sequence) else list(through)
    nested = [isinstance(step, list | tuple) for step in steps]
    if any(nested) and not all(nested):
        raise InterventionError(
            f"through={through!r} mixes keys with lists of keys; write one list of keys, or a list of lists, one a level."
        )
    levels = tuple(tuple(vae.sites.select(key) for key in level) for level in (steps if any(nested) else [steps]))
    if not all(levels):
        raise InterventionError("through=[] lets nothing pass; name the units an effect may pass, or leave it out.")
    for level in levels:
        vae.sites.require_disjoint(level)
    for earlier, later in pairwise(levels):
        require_before(vae, earlier, later)
    after = [each for each in levels[-1] if vae.sites.order(each.site) > vae.sites.order(reads_of(readout))]
    if after:
        raise InterventionError(
            f"through names {after[0]}, which comes after {reads_of(readout)!r}, what the readout reads."
        )
    return levels


def require_before(vae: VAE, earlier: Level, later: Level) -> None:
    """Refuse a step of a path that does not lead down the model.

    Raises:
        InterventionError: some of `later` is at the site of, or before, some of `earlier`.
    """
    last = max(earlier, key=lambda each: vae.sites.order(each.site))
    first = min(later, key=lambda each: vae.sites.order(each.site))
    if vae.sites.order(first.site) <= vae.sites.order(last.site):
        raise InterventionError(
            f"{first} is not downstream of {last}, so no effect of {last} goes through it; name units of later sites in through."
        )


def runs_of(levels: Sequence[Level]) -> int:
    """Runs it takes to follow an effect through these levels to the readout."""
    return 1 + sum(len(_by_site(level)) for level in levels)


def examples_at_once(vae: VAE, x: Tensor, levels: Sequence[Level]) -> int:
    """Examples like x of which the activations of one entry of a plan, on their way between runs, stay within `CARRIED_BYTES`."""
    widest = max(sum(len(reader.names) for reader in level) for level in _readers(vae, levels))
    return max(1, CARRIED_BYTES // (widest * x.element_size()))


def run_through(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    plan: Plan,
    levels: Sequence[Level],
    read: Readout,
    *,
    eps: Tensor | None = None,
    progress: Advance = None,
) -> Float[Tensor, "plan n target"]:
    """`run_interventions`, of which only what passes each of some levels of units reaches the readout.

    M1* = M1(x; intervention), M2* = M2(x; M1 <- M1*), ..., result = Y(x; M_last <- M_last*), one such nest an entry of the plan.
    Entries run together as far as `CARRIED_BYTES` of activations between two runs allow.

    Args:
        vae: the model.
        x: inputs `[n, *image]`.
        plan: joint interventions, each before the first level.
        levels: from `levels_of`; none at all is the plain run.
        read: the readout.
        eps: reparameterisation noise `[n, *latent]`, the same in every run.
        progress: called with the number of (intervention, example) rows just finished, in all runs.

    Returns: `[len(plan), n, len(read.names)]`.
    """
    readers = _readers(vae, levels)
    step = max(1, examples_at_once(vae, x, levels) // len(x)) if levels else max(1, len(plan))
    parts = []
    for start in range(0, len(plan), step):
        part = plan[start : start + step]
        for level in readers:
            held: list[dict[Selection, Intervention]] = [{} for _ in part]
            for reader in level:
                arrived = run_interventions(vae, x, part, reader, eps=eps, progress=progress)
                for entry, numbers in zip(held, arrived, strict=True):
                    entry.update(reader.held(numbers))
            part = held
        parts.append(run_interventions(vae, x, part, read, eps=eps, progress=progress))
    return torch.cat(parts)


def _readers(vae: VAE, levels: Sequence[Level]) -> list[list[Activation]]:
    """What reads each level: one readout a site."""
    return [[Activation(vae.sites[site], each) for site, each in _by_site(level).items()] for level in levels]


def _by_site(level: Level) -> dict[str, Level]:
    sites = dict.fromkeys(selection.site for selection in level)
    return {site: tuple(each for each in level if each.site == site) for site in sites}
