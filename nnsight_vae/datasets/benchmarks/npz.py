"""Arrays in an `.npz`, read whole or streamed; objects are never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from ...errors import DataError

_CHUNK_BYTES = 32 * 2**20


def read_array(path: Path, key: str) -> np.ndarray:
    """One array, whole.

    Raises:
        DataError: the file is broken, or has no such array of numbers.
    """
    shape, dtype = header(path, key)
    rows = list(stream_array(path, key))
    return np.concatenate(rows) if rows else np.empty(shape, dtype)


def header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without reading it."""
    with _opened(path, key) as file:
        return _header(path, key, file)


def stream_array(path: Path, key: str) -> Iterator[np.ndarray]:
    """The rows of an array in chunks of some 32 MB, in order."""
    with _opened(path, key) as file:
        shape, dtype = _header(path, key, file)
        row = int(np.prod(shape[1:])) * dtype.itemsize
        step = max(1, _CHUNK_BYTES // max(1, row))
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            data = file.read(count * row)
            if len(data) < count * row:
                raise DataError(f"{path}: {key!r} ends after {start + len(data) // max(1, row)} of {shape[0]} rows.")
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _header(path: Path, key: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or fortran or not shape:
        raise DataError(
            f"{path}: {key!r} is {dtype} of shape {shape}; expected an array of numbers in row-major order."
        )
    return shape, dtype


@contextmanager
def _opened(path: Path, key: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{key}.npy" not in names:
                held = ", ".join(name.removesuffix(".npy") for name in names)
                raise DataError(f"{path} has no array {key!r}; it holds {held or 'nothing'}.")
            with archive.open(f"{key}.npy") as file:
                yield file
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole .npz file: {error}. Fetch it again.") from error
