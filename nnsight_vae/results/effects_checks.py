"""What Effects must be made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from nnsight_vae.errors import DataError
from nnsight_vae.stats.clusters import Design
from nnsight_vae.wording import some


def check(
    values: np.ndarray,
    units: Sequence[str],
    targets: Sequence[str],
    groups: np.ndarray | None,
    source_groups: np.ndarray | None,
) -> None:
    """Refuse arrays and names that disagree, and values that are not finite, with a DataError."""
    shape = (len(units), len(targets))
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
        got = f"{type(values).__name__} of {getattr(values, 'dtype', 'no dtype')}"
        raise DataError(f"Effects.values is {got}; expected a floating numpy array (for a tensor: .cpu().numpy()).")
    if values.ndim != 3 or values.shape[:2] != shape or 0 in values.shape[1:]:
        raise DataError(
            f"Effects.values has shape {values.shape}; expected [unit, target, pair] = [{shape[0]}, {shape[1]}, at "
            "least one pair], after the names in `units` and `targets`."
        )
    for kind, names in (("units", units), ("targets", targets)):
        if not all(isinstance(name, str) for name in names):
            raise DataError(f"Effects.{kind} must be names, str; got {names!r}.")
        if len(set(names)) != len(names):
            raise DataError(f"Effects.{kind} must not repeat a name; got {some(names)}.")
    if source_groups is not None and groups is None:
        raise DataError("Effects.source_groups without groups; give the id of each pair's base as well.")
    Design.of(values.shape[2], groups, source_groups)
    if not np.isfinite(values).all():
        unit, target, pair = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"Effect of {units[unit]} on {targets[target]} for pair {pair} is {values[unit, target, pair]}; expected "
            "finite numbers. Check the readout and the intervention's values."
        )


def plain(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance as JSON data, numpy and tensor scalars included, so that saving cannot fail after a long run."""

    def scalar(value: Any) -> Any:
        if hasattr(value, "item"):
            return value.item()
        raise TypeError(f"{type(value).__name__} is not JSON data")

    try:
        return json.loads(json.dumps(provenance, default=scalar))
    except (TypeError, ValueError) as error:
        raise DataError(f"provenance must be JSON data (numbers, strings, lists, dicts): {error}.") from error
