"""Attributions brought into the shape of effects: the same units, targets and pairs, or a word on why that cannot be."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.attribution.base import Record, record_of
from nnsight_vae.errors import DataError, NnsightVaeWarning
from nnsight_vae.results.effects import Effects
from nnsight_vae.sites import Selection
from nnsight_vae.wording import some

_UNIT = re.compile(r"^(?P<site>[^\[\]@]+)(?:\[(?P<index>[\d,:]+)\])?(?:@(?P<position>[\d,]+))?$")


@dataclass(frozen=True)
class Aligned:
    """Two measurements of the same units and targets, on the same pairs.

    Attributes:
        name: what of the effects is compared with: `"noising"`, `"denoising"`, `"both"`, or their estimand.
        attributions: `[unit, target, pair]`.
        effects: the same shape, with names and clusters.
    """

    name: str
    attributions: Float[np.ndarray, "unit target pair"]
    effects: Effects


def aligned(attributions: Any, effects: Effects) -> tuple[str, list[Aligned]]:
    """What to call the attributions, and each comparison to make: with the effects and, where they have them, with their parts.

    Raises:
        DataError: they are about other units, targets, pairs or models.
    """
    directions = {name: part for name, part in effects.parts.items() if name in ("noising", "denoising")}
    compared = {"both": effects, **directions} if directions else {effects.estimand: effects}
    if not isinstance(attributions, Effects):
        name, values, kept = _from_array(attributions, effects)
        return name, [
            Aligned(how, values, kept if how == "both" or not directions else kept.parts[how]) for how in compared
        ]
    _require_same_runs(attributions, effects)
    units = _common("units", attributions.units, effects.units)
    targets = _common("targets", attributions.targets, effects.targets)
    found = []
    for how, each in compared.items():
        matched = attributions.parts.get(how, attributions)  # end-point against end-point
        found.append(Aligned(how, matched.select(units, targets).values, each.select(units, targets)))
    return attributions.estimand, found


def _require_same_runs(attributions: Effects, effects: Effects) -> None:
    _require_pairs(attributions.n_pairs, effects)
    models = [each.provenance.get("fingerprint") for each in (attributions, effects)]
    if None not in models and models[0] != models[1]:
        raise DataError(
            f"the attributions are of a model with fingerprint {models[0]}, the effects of {models[1]}; both must be of one model."
        )


def _require_pairs(n: int, effects: Effects) -> None:
    if n != effects.n_pairs:
        raise DataError(
            f"{n} attributions, {effects.n_pairs} pairs; agreement needs one attribution for each pair that was patched, in their order: "
            "attribute(pairs.base, baselines=pairs)."
        )


def _common(kind: str, ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    found = [name for name in theirs if name in set(ours)]
    if not found:
        raise DataError(
            f"the attributions are of the {kind} {some(ours, 4)}, the effects of {some(theirs, 4)}: none in common. {_HOW}"
        )
    return found


# ---------------------------------------------------------------------- tensors and arrays
def _from_array(attributions: Any, effects: Effects) -> tuple[str, Float[np.ndarray, "unit target pair"], Effects]:
    """What to call them, their values from base to source, and the effects of the targets that both have."""
    record = record_of(attributions) if isinstance(attributions, Tensor) else None
    array = np.asarray(
        attributions.detach().cpu() if isinstance(attributions, Tensor) else attributions, dtype=np.float64
    )
    if array.ndim < 2:
        raise DataError(f"attributions have shape {array.shape}; expected [n, units, ...] or [n, targets, units, ...].")
    _require_pairs(len(array), effects)
    if not np.isfinite(array).all():
        raise DataError("attributions hold NaN or infinite values.")
    with_targets = len(effects.targets) > 1 if record is None else record.target_axis
    names = effects.targets if record is None else record.targets
    array = array if with_targets else array[:, None]
    if array.ndim < 3 or array.shape[1] != len(names):
        raise DataError(
            f"attributions of shape {array.shape} do not have one entry for each of {len(names)} targets ({some(names, 4)}): expected "
            "[n, targets, units, ...], or [n, units, ...] where the effects have one target."
        )
    targets = _common("targets", names, effects.targets)
    array = array[:, [names.index(name) for name in targets]]
    values = _of_units(array, effects.units, record)
    if record is not None:
        values = _from_base_to_source(values, record)
    return "attributions" if record is None else record.method, values, effects.select(targets=targets)


def _of_units(
    array: Float[np.ndarray, "n target channel *grid"], units: tuple[str, ...], record: Record | None
) -> Float[np.ndarray, "unit target pair"]:
    """The attributions of the units by their names; without names to go by, one column a unit in the effects' order."""
    if array.ndim == 3 and record is None:
        if array.shape[2] != len(units):
            raise DataError(
                f"attributions have {array.shape[2]} columns, the effects {len(units)} units ({some(units, 4)}); give one column a unit, in "
                "their order."
            )
        return array.transpose(2, 1, 0)
    selections = [_selection(name) for name in units]
    sites = {selection.site for selection in selections if selection is not None}
    of = record.of if record is not None else next(iter(sites), None)
    if None in selections or sites != {of}:
        attributed = f"attributions of {of!r}" if record is not None else "attributions of one site"
        raise DataError(f"{attributed} cannot be compared with effects of {some(units, 4)}. {_HOW}")
    shares = [_share(array, selection, name) for selection, name in zip(selections, units, strict=True) if selection]
    return np.stack(shares).transpose(0, 2, 1)


def _share(array: np.ndarray, selection: Selection, name: str) -> Float[np.ndarray, "n target"]:
    """The sum over a selection's units and positions."""
    grid = array.shape[3:]
    try:
        part = array if selection.indices is None else array[:, :, list(selection.indices)]
        if selection.position:
            if len(selection.position) != len(grid):
                raise IndexError
            at: tuple[slice | int, ...] = (slice(None), slice(None), slice(None), *selection.position)
            part = part[at]
    except IndexError:
        raise DataError(
            f"{name!r} is no unit of attributions with {array.shape[2]} units{f' and positions {grid}' if grid else ''}. {_HOW}"
        ) from None
    return part.reshape(*part.shape[:2], -1).sum(axis=2)


def _from_base_to_source(values: np.ndarray, record: Record) -> np.ndarray:
    """Attributions of base inputs against their sources run the other way; others compare with something else altogether."""
    if record.baseline == "source of each pair":
        return -values
    if record.baseline not in ("given", None):
        warnings.warn(
            f"the attributions compare inputs with a baseline ({record.baseline}), patching compares base with source: other questions, "
            "whose answers need not agree. For the same end-points: attribute(pairs.base, baselines=pairs).",
            NnsightVaeWarning,
            stacklevel=5,
        )
    return values


def _selection(name: str) -> Selection | None:
    """The selection a unit's name stands for; None for a joint set."""
    match = _UNIT.match(name)
    if match is None:
        return None
    position = match["position"]
    return Selection(
        match["site"],
        None if match["index"] is None else _indices(match["index"]),
        None if position is None else tuple(map(int, position.split(","))),
    )


def _indices(text: str) -> tuple[int, ...]:
    if ":" in text:
        first, last = text.split(":")
        return tuple(range(int(first), int(last)))
    return tuple(map(int, text.split(",")))


_HOW = (
    "Compare at the same units and targets: attribute what was patched, nv.attribution.unit_attributions(vae, pairs, sites, "
    "readout=readout), or patch what was attributed, for maps of pixels to latents nv.patch_activations(vae, pairs, ['input'], "
    "readout=nv.readouts.Latents(k), per='position')."
)
