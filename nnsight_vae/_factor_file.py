"""The file of a factor readout: weights as safetensors, everything else as JSON in its header. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._factor_heads import Heads
from ._files import write_atomically
from ._regressor import restore_regressor
from .errors import DataError

if TYPE_CHECKING:
    from .factor_readout import Factors

_SCHEMA = "nnsight-vae/factors@1"


def write_readout(readout: Factors, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        DataError: if the folder does not exist or cannot be written to.
    """
    from safetensors.torch import save

    header = {
        "schema": _SCHEMA,
        "names": readout.names,
        "reliability": readout.reliability,
        "image_shape": readout.image_shape,
        "values": readout.heads.values,
        "calibration": readout.calibration,
        "accuracy": readout.accuracy,
        "record": readout.record,
        "min_reliability": readout.min_reliability,
    }
    tensors = {f"network.{name}": weight.contiguous() for name, weight in readout.network.state_dict().items()}
    tensors |= {"mean": readout.mean.contiguous(), "sd": readout.sd.contiguous()}
    write_atomically(path, save(tensors, metadata={"readout": json.dumps(header)}))


def read_parts(path: Path) -> dict[str, Any]:
    """The arguments of `Factors` that a file holds.

    Raises:
        OSError, SafetensorError: the file is missing or unreadable.
        KeyError, TypeError, ValueError, RuntimeError: it is no readout.
        DataError: it is one of another version.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["readout"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if header["schema"] != _SCHEMA:
        raise DataError(f"Factors.load: {path} has schema {header['schema']!r}, expected {_SCHEMA!r}.")
    weights = {name.removeprefix("network."): value for name, value in tensors.items() if "." in name}
    values = header.get("values") or [None] * len(header["names"])  # files of before there were discrete factors
    heads = Heads(tuple(None if levels is None else tuple(map(float, levels)) for levels in values))
    if len(heads.values) != len(header["names"]):
        raise ValueError(f"{len(heads.values)} heads for {len(header['names'])} names")
    return {
        "network": restore_regressor(tuple(header["image_shape"]), heads.n_outputs, weights),
        "names": header["names"],
        "mean": tensors["mean"],
        "sd": tensors["sd"],
        "reliability": header["reliability"],
        "image_shape": header["image_shape"],
        "heads": heads,
        "calibration": header.get("calibration"),
        "accuracy": header.get("accuracy"),
        "record": header["record"],
        "min_reliability": header["min_reliability"],
    }
