"""The file format of EdgeScores."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.wiring.nodes import Node
from nnsight_vae.results import npz

_SCHEMA = "nnsight-vae/edge-scores@1"
_ARRAYS = ("values", "cut_of", "total", "resolution", "gaps", "bypass", "groups", "source_groups")
_PLAIN = ("readouts", "cuts", "method", "estimand", "bypassed", "sizes", "provenance")


def write(scores: EdgeScores, path: Path) -> None:
    """Write edge scores whole or not at all."""
    npz.write(path, _arrays(scores, prefix=""), "edge scores")


def read(path: Path) -> EdgeScores:
    """Read edge scores that `write` wrote."""
    return npz.read(path, lambda arrays: _from_arrays(arrays, prefix=""), "edge scores", _SCHEMA)


def _arrays(scores: EdgeScores, prefix: str) -> dict[str, np.ndarray]:
    """What `write` writes; the arrays of parts carry the part's name as a prefix."""
    header: dict[str, Any] = {"schema": _SCHEMA, "parts": list(scores.parts), "beside": list(scores.beside)}
    header |= {name: getattr(scores, name) for name in _PLAIN}
    header["nodes"] = [asdict(node) for node in scores.nodes]
    header["edges"] = list(zip(scores.sources, scores.targets, strict=True))
    arrays = {name: array for name in _ARRAYS if (array := getattr(scores, name)) is not None}
    arrays |= {f"beside.{name}": array for name, array in scores.beside.items()}
    arrays["header"] = npz.header(header)
    arrays = {prefix + name: array for name, array in arrays.items()}
    for name, part in scores.parts.items():
        arrays |= _arrays(part, f"{prefix}{name}:")
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray], prefix: str) -> EdgeScores:
    header = npz.read_header(arrays[f"{prefix}header"], _SCHEMA)
    fields: dict[str, Any] = {name: arrays.get(prefix + name) for name in _ARRAYS}
    fields |= {name: tuple(value) if isinstance(value := header[name], list) else value for name in _PLAIN}
    return EdgeScores(
        **fields,
        sources=tuple(source for source, _ in header["edges"]),
        targets=tuple(target for _, target in header["edges"]),
        nodes=tuple(Node(**node) for node in header["nodes"]),
        beside={name: arrays[f"{prefix}beside.{name}"] for name in header["beside"]},
        parts={name: _from_arrays(arrays, f"{prefix}{name}:") for name in header["parts"]},
    )
