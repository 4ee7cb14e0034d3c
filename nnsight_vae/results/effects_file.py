"""The file format of Effects: an `.npz` of plain arrays and one JSON header, never a pickle."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nnsight_vae.errors import DataError, NnsightVaeError
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats.discovery import TestResult

_SCHEMA = "nnsight-vae/effects@2"


def write(effects: Effects, path: Path) -> None:
    """Write effects whole or not at all: beside their place under another name, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **_arrays(effects, prefix=""))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write effects to {path}: {error}. Choose an existing, writable folder.") from error


def read(path: Path) -> Effects:
    """Read effects that `write` wrote."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _from_arrays(dict(arrays), prefix="")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, NnsightVaeError) as error:
        raise DataError(
            f"{path} is not a readable effects file ({error}); expected an .npz written by Effects.save ({_SCHEMA})."
        ) from error


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
    arrays["header"] = np.array(json.dumps(header))
    arrays = {prefix + name: array for name, array in arrays.items()}
    for name, part in effects.parts.items():
        arrays |= _arrays(part, f"{prefix}{name}:")
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray], prefix: str) -> Effects:
    header = json.loads(str(arrays[f"{prefix}header"]))
    if header["schema"] != _SCHEMA:
        raise DataError(f"schema {header['schema']!r}")
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
