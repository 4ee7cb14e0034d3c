"""The file format of Effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnsight_vae.results import npz
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats.discovery import TestResult

_SCHEMA = "nnsight-vae/effects@2"


def write(effects: Effects, path: Path) -> None:
    """Write effects whole or not at all."""
    npz.write(path, _arrays(effects, prefix=""), "effects")


def read(path: Path) -> Effects:
    """Read effects that `write` wrote."""
    return npz.read(path, lambda arrays: _from_arrays(arrays, prefix=""), "effects", _SCHEMA)


def _arrays(effects: Effects, prefix: str) -> dict[str, np.ndarray]:
    """What `save` writes; the arrays of parts carry the part's name as a prefix."""
    header: dict[str, Any] = {
        "schema": _SCHEMA,
        "units": effects.units,
        "targets": effects.targets,
        "estimand": effects.estimand,
        "provenance": effects.provenance,
        "parts": list(effects.parts),
    }
    arrays = {"values": effects.values}
    for name in ("groups", "source_groups"):
        if (ids := getattr(effects, name)) is not None:
            arrays[name] = ids
    if test := effects.test:
        header["test"] = {name: getattr(test, name) for name in ("level", "min_effect", "n_tests", "method")}
        arrays |= {"test.p": test.p, "test.q": test.q, "test.passed": test.passed}
    arrays["header"] = npz.header(header)
    arrays = {prefix + name: array for name, array in arrays.items()}
    for name, part in effects.parts.items():
        arrays |= _arrays(part, f"{prefix}{name}:")
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray], prefix: str) -> Effects:
    header = npz.read_header(arrays[f"{prefix}header"], _SCHEMA)
    test = header.get("test")
    return Effects(
        values=arrays[f"{prefix}values"],
        units=tuple(header["units"]),
        targets=tuple(header["targets"]),
        estimand=header["estimand"],
        groups=arrays.get(f"{prefix}groups"),
        source_groups=arrays.get(f"{prefix}source_groups"),
        provenance=header["provenance"],
        parts={name: _from_arrays(arrays, f"{prefix}{name}:") for name in header["parts"]},
        test=TestResult(
            p=arrays[f"{prefix}test.p"], q=arrays[f"{prefix}test.q"], passed=arrays[f"{prefix}test.passed"], **test
        )
        if test
        else None,
    )
