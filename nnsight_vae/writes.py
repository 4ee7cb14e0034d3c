"""Writes: interventions as writes into the activations of rows that run side by side.

Every continuous intervention is affine in the activation it replaces, `a <- scale * a + shift` (a pure replacement has no
scale). What it makes of the clean activation is known before anything runs, and so is whether it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnsight_vae.donors import Joint, Replacement
from nnsight_vae.interventions import Intervention
from nnsight_vae.layout import Layout
from nnsight_vae.runs import CleanRun, Write
from nnsight_vae.sites import Selection

Resolved = Callable[[Selection, Intervention], Replacement]  # what an intervention puts at a selection


class Rows(NamedTuple):
    """Runs side by side in one batch: row i is example `examples[i]` under intervention `members[i]`, members in order."""

    members: Int[Tensor, " r"]
    examples: Int[Tensor, " r"]

    @classmethod
    def every(cls, n: int) -> Rows:
        """All of n examples under the one intervention there is."""
        return cls(torch.zeros(n, dtype=torch.long), torch.arange(n))


def writes_of(layout: Layout, joints: Sequence[Joint], resolved: Resolved, rows: Rows) -> dict[str, Write]:
    """The writes that give each row its own intervention, one a site.

    Args:
        layout: of the inputs that run.
        joints: the joint interventions that `rows.members` counts.
        resolved: what an intervention puts at a selection.
        rows: what runs; the writes take activations `[r, ...]`.

    Returns: module path -> the write at that module's output, in place.
    """
    per_site: dict[str, list[tuple[slice, Selection, Replacement]]] = {}
    members, counts = torch.unique_consecutive(rows.members, return_counts=True)
    start = 0
    for member, count in zip(members.tolist(), counts.tolist(), strict=True):
        part = slice(start, start + count)
        start += count
        for selection, intervention in joints[member].items():
            replacement = resolved(selection, intervention)
            shift = _of_examples(replacement.shift, layout, selection, rows.examples[part])
            per_site.setdefault(selection.site, []).append((part, selection, Replacement(replacement.scale, shift)))

    def writer(site: str, parts: list[tuple[slice, Selection, Replacement]]) -> Write:
        axis = layout.sites[site].axis

        def write(activation: Tensor) -> Tensor:
            view = activation.movedim(axis, 1)  # [r, units, ...], shares memory
            for part, selection, replacement in parts:
                view[part][_at(selection)] = _replaced(view[part][_at(selection)], replacement)
            return activation

        return write

    return {layout.paths[site]: writer(site, parts) for site, parts in per_site.items()}


def changed(clean: CleanRun, joint: Joint, resolved: Resolved) -> Bool[Tensor, " n"]:
    """The examples in which a joint intervention changes an activation at all; in the others every run is the clean run."""
    layout = clean.vae.layout(clean.x)
    found = torch.zeros(len(clean), dtype=torch.bool, device=clean.x.device)
    for selection, intervention in joint.items():
        before = clean.at(selection.site).movedim(layout.sites[selection.site].axis, 1)[_at(selection)]
        found |= (_replaced(before, resolved(selection, intervention)) != before).flatten(1).any(1)
    return found


def units_replaced(
    activation: Float[Tensor, "n units *grid"], units: Int[Tensor, " k"], plan: Sequence[tuple[Selection, Replacement]]
) -> tuple[Float[Tensor, "k n *grid"], Float[Tensor, "k n *grid"]]:
    """Single units before and after: unit k as it is, and with what the k-th entry of a plan puts in its place."""
    before = activation.index_select(1, units).movedim(1, 0)
    after = before.clone()
    for values, (selection, replacement) in zip(after.unsqueeze(2), plan, strict=True):
        at = (slice(None), slice(None), *(selection.position or ()))
        values[at] = _replaced(values[at], replacement)
    return before, after


def _at(selection: Selection) -> tuple[Any, ...]:
    """Where a selection lies in an activation `[n, units, ...]`."""
    units = slice(None) if selection.indices is None else list(selection.indices)
    return (slice(None), units, *(selection.position or ()))


def _replaced(current: Tensor, replacement: Replacement) -> Tensor:
    shift = replacement.shift
    shift = shift.to(current) if isinstance(shift, Tensor) else current.new_tensor(shift)
    return shift.expand_as(current) if replacement.scale is None else replacement.scale * current + shift


def _of_examples(shift: float | Tensor, layout: Layout, selection: Selection, examples: Tensor) -> float | Tensor:
    """The shift of some examples, where it has a row for each."""
    axes = 2 if selection.position is not None else 2 + len(layout.sites[selection.site].grid)
    if not isinstance(shift, Tensor) or shift.ndim < axes or len(shift) == 1:
        return shift
    return shift[examples.to(shift.device)]
