"""The file format of Faithfulness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnsight_vae.circuits.evaluation.faithfulness_result import Faithfulness
from nnsight_vae.circuits.evaluation.generative import Generative
from nnsight_vae.results import npz

_SCHEMA = "nnsight-vae/faithfulness@1"
_ARRAYS = ("circuit", "nodes", "complement", "total", "curve_effects", "groups", "source_groups")
_HEADER = ("sizes", "readouts", "n_edges", "n_candidates", "ablation", "provenance")
_BASELINE = "baseline."
_GENERATIVE = ("mse", "mse_nothing", "kl", "kl_nothing")


def write(result: Faithfulness, path: Path) -> None:
    """Write a faithfulness whole or not at all."""
    arrays = {name: array for name in _ARRAYS if (array := getattr(result, name)) is not None}
    made = result.generative
    if made is not None:
        arrays |= {f"generative.{name}": array for name in _GENERATIVE if (array := getattr(made, name)) is not None}
    arrays |= {_BASELINE + name: effects for name, effects in result.baselines.items()}
    record = {"schema": _SCHEMA, "posterior": None if made is None else made.posterior, "seen": result.seen}
    arrays["header"] = npz.header(record | {name: getattr(result, name) for name in _HEADER})
    npz.write(path, arrays, "faithfulness")


def read(path: Path) -> Faithfulness:
    """Read a faithfulness that `write` wrote."""
    return npz.read(path, _from_arrays, "faithfulness", _SCHEMA)


def _from_arrays(arrays: npz.Arrays) -> Faithfulness:
    header = npz.read_header(arrays["header"], _SCHEMA)
    fields: dict[str, Any] = {name: header[name] for name in _HEADER} | {name: arrays.get(name) for name in _ARRAYS}
    fields |= {name: tuple(header[name]) for name in ("sizes", "readouts")} | {"seen": header.get("seen", False)}
    fields["baselines"] = {
        name.removeprefix(_BASELINE): effects for name, effects in arrays.items() if name.startswith(_BASELINE)
    }
    if header["posterior"] is not None:
        made: dict[str, Any] = {name: arrays.get(f"generative.{name}") for name in _GENERATIVE}
        ids = {name: arrays.get(name) for name in ("groups", "source_groups")}
        fields["generative"] = Generative(**made, **ids, posterior=header["posterior"])
    return Faithfulness(**fields)
