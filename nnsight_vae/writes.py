"""Writes: a chunk of interventions as one write into the activation of each site they touch.

Every continuous intervention is affine in the activation it replaces, `a <- scale * a + shift` (a pure replacement has no
scale), so a chunk of K single-unit interventions on n examples is one indexed write into K * n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnsight_vae.donors import Joint, Replacement
from nnsight_vae.interventions import Intervention
from nnsight_vae.layout import Layout
from nnsight_vae.runs import Write
from nnsight_vae.sites import Selection


def writes_of(
    layout: Layout, joints: Sequence[Joint], resolved: Callable[[Selection, Intervention], Replacement], n: int
) -> dict[str, Write]:
    """The writes that give each copy of the batch its own interventions, one a site.

    Args:
        layout: of the inputs that run.
        joints: one joint intervention a copy.
        resolved: what an intervention puts at a selection.
        n: examples in each copy; the writes take activations `[len(joints) * n, ...]`.

    Returns: module path -> the write at that module's output.
    """
    per_site: dict[str, list[tuple[int, Selection, Replacement]]] = {}
    for k, joint in enumerate(joints):
        for selection, intervention in joint.items():
            per_site.setdefault(selection.site, []).append((k, selection, resolved(selection, intervention)))

    def writer(site: str, rows: list[tuple[int, Selection, Replacement]]) -> Write:
        axis = layout.sites[site].axis

        def write(activation: Tensor) -> Tensor:
            view = activation.movedim(axis, 1).unflatten(0, (len(joints), n))  # [K, n, units, ...], shares memory
            single = all(s.indices is not None and len(s.indices) == 1 for _, s, _ in rows)
            if len(rows) > 1 and single and len({s.position is None for _, s, _ in rows}) == 1:
                _write_single_units(view, rows)
            else:
                for k, selection, replacement in rows:
                    _write_selection(view[k], selection, replacement)
            return activation

        return write

    return {layout.paths[site]: writer(site, rows) for site, rows in per_site.items()}


def _write_selection(view: Tensor, selection: Selection, replacement: Replacement) -> None:
    units = slice(None) if selection.indices is None else list(selection.indices)
    at = (slice(None), units, *(selection.position or ()))
    if replacement.scale is None:
        view[at] = _as_tensor(replacement.shift, view)
    else:
        view[at] = replacement.scale * view[at] + replacement.shift


def _write_single_units(view: Tensor, rows: list[tuple[int, Selection, Replacement]]) -> None:
    """One indexed write for K different units, `[K, n, ...]`, or for K units each at a position of its own, `[K, n]`."""
    copies = torch.tensor([k for k, _, _ in rows], device=view.device)
    units = torch.tensor([s.indices[0] for _, s, _ in rows if s.indices], device=view.device)
    coordinates = torch.tensor([s.position or () for _, s, _ in rows], device=view.device).T
    at = (copies, slice(None), units, *coordinates.long())
    n, grid = view.shape[1], view.shape[3 + len(coordinates) :]
    shifts = [r.shift for _, _, r in rows]
    ones = [1] * (1 + len(grid))
    if all(not isinstance(shift, Tensor) for shift in shifts):
        shift = torch.tensor(shifts, dtype=view.dtype, device=view.device).view(-1, *ones)
    else:
        shift = torch.stack([_as_tensor(s, view).expand(n, 1, *grid) for s in shifts]).squeeze(2)
    scales = [r.scale for _, _, r in rows]
    if all(scale is None for scale in scales):
        view[at] = shift.expand(len(rows), n, *grid)
        return
    current = view[at]
    factor = torch.tensor([1.0 if s is None else s for s in scales], dtype=view.dtype, device=view.device).view(
        -1, *ones
    )
    replaced = torch.tensor([s is None for s in scales], device=view.device).view(-1, *ones)
    view[at] = torch.where(replaced, shift, factor * current + shift)


def _as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    return value.to(like) if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype, device=like.device)
