"""The file format of DoseResponse."""

from __future__ import annotations

from pathlib import Path

from nnsight_vae.results import npz
from nnsight_vae.results.dose_response import DoseResponse

_SCHEMA = "nnsight-vae/dose-response@1"
_ARRAYS = ("values", "doses", "groups", "rounding")
_HEADER = ("units", "factor", "factor_sd", "provenance")


def write(response: DoseResponse, path: Path) -> None:
    """Write a dose response whole or not at all."""
    arrays = {name: array for name in _ARRAYS if (array := getattr(response, name)) is not None}
    arrays["header"] = npz.header({"schema": _SCHEMA} | {name: getattr(response, name) for name in _HEADER})
    npz.write(path, arrays, "dose response")


def read(path: Path) -> DoseResponse:
    """Read a dose response that `write` wrote."""
    return npz.read(path, _from_arrays, "dose response", _SCHEMA)


def _from_arrays(arrays: npz.Arrays) -> DoseResponse:
    header = npz.read_header(arrays["header"], _SCHEMA)
    header["units"] = tuple(header["units"])
    fields = {name: header[name] for name in _HEADER} | {name: arrays.get(name) for name in _ARRAYS}
    return DoseResponse(**fields)
