"""Files of results: an `.npz` of plain arrays and one JSON header, never a pickle; whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnsight_vae._files import whole_file
from nnsight_vae.errors import DataError, NnsightVaeError

T = TypeVar("T")
Arrays = dict[str, np.ndarray]


def write(path: Path, arrays: Arrays, what: str) -> None:
    """Write arrays, whole or not at all.

    Raises:
        DataError: the folder does not exist or cannot be written to.
    """
    with whole_file(path, what) as file:
        np.savez(file, allow_pickle=False, **{name: _plain(array) for name, array in arrays.items()})


def read(path: Path, build: Callable[[Arrays], T], what: str, schema: str) -> T:
    """What `build` makes of the arrays of a file.

    Raises:
        DataError: there is no such file, or nothing can be built of it.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return build(dict(arrays))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, NnsightVaeError) as error:
        raise DataError(
            f"{path} is not a readable {what} file ({error}); expected an .npz of {schema}, as `save` writes it."
        ) from error


def header(record: dict[str, Any]) -> np.ndarray:
    """JSON data as an array."""
    return np.array(json.dumps(record))


def _plain(array: np.ndarray) -> np.ndarray:
    """Words from a table's column are an array of objects, which would have to be pickled; as text they are plain."""
    return np.array(array.tolist()) if array.dtype == object else array


def read_header(array: np.ndarray, schema: str) -> dict[str, Any]:
    """The JSON data of a header.

    Raises:
        DataError: it is of another schema.
    """
    record: dict[str, Any] = json.loads(str(array))
    if record["schema"] != schema:
        raise DataError(f"schema {record['schema']!r}")
    return record
