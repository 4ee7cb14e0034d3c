"""Large sets of images on disk: streamed once into an uncompressed file, then memory-mapped, so they never fill memory."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ..errors import DataError
from ..progress import progress_bar
from .cache import CACHE_VARIABLE

Chunks = Iterator[UInt8[np.ndarray, "k c h w"]]


def stored_images(
    name: str,
    files: list[Path],
    shape: tuple[int, int, int, int],
    chunks: Callable[[], Chunks],
    cache: Path,
    progress: bool | None = None,
) -> UInt8[Tensor, "n c h w"]:
    """The images that `chunks` yields, memory-mapped from a file in the cache that is written the first time.

    Writes go to a copy in memory and never reach the file. A run that is interrupted, or fails on a broken source, leaves no
    file behind.

    Args:
        name: what the images are called.
        files: where they come from; if one changes, the images are stored anew.
        shape: (n, channels, height, width).
        chunks: yields the images in order.
        cache: folder to store them in.
        progress: show a bar; by default on an interactive terminal.

    Raises:
        DataError: the folder cannot be written to or is too small, or `chunks` yields something else than `shape`.
    """
    target = cache / f"{name}-{_digest(files)}.npy"
    if not target.exists():
        _store(name, target, shape, chunks, progress)
    try:
        array = np.load(target, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{target} cannot be read: {error}. Remove it; it is then made again.") from error
    if array.shape != shape or array.dtype != np.uint8:
        raise DataError(
            f"{target} holds {array.dtype} {array.shape}, expected uint8 {shape}. Remove it; it is then made again."
        )
    return torch.from_numpy(array)


def _digest(files: list[Path]) -> str:
    """Changes with the path, size or time of any of the files."""
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:12]


def _store(
    name: str, target: Path, shape: tuple[int, ...], chunks: Callable[[], Chunks], progress: bool | None
) -> None:
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_space(target.parent, int(np.prod(shape)))
        done = 0
        with partial.open("xb") as file, progress_bar(f"storing {name}", shape[0], progress) as advance:
            # written, not mapped: pages of a map would count as memory of this process until the system wants them back
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for chunk in chunks():
                if done + len(chunk) > shape[0] or chunk.shape[1:] != shape[1:]:
                    raise DataError(
                        f"{name}: images {done} to {done + len(chunk)} have shape {chunk.shape[1:]}, expected {shape}."
                    )
                file.write(np.ascontiguousarray(chunk, np.uint8).data)
                done += len(chunk)
                if advance is not None:
                    advance(len(chunk))
        if done != shape[0]:
            raise DataError(f"{name}: {done} images where {shape[0]} were announced.")
        partial.replace(target)
    except OSError as error:
        raise DataError(f"{name}: cannot store images in {target.parent}: {error}. Give another cache=.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free and the images take {needed / 1e9:.1f} GB uncompressed. Give another cache=, "
            f"or set {CACHE_VARIABLE}."
        )
