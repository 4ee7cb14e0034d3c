"""3DShapes: an object in a room, rendered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..cache import cache_folder
from ..download import located
from ..grid import Grid
from ..stored import stored_images

FACTORS = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
_URL = "https://storage.googleapis.com/3d-shapes/3dshapes.h5"
_MD5 = "099a2078d58cec4daad0702c55d06868"
_STEP = 2048  # images read at a time


def shapes3d(
    path: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Grid:
    """3DShapes: 10 floor, 10 wall and 10 object hues x 8 scales x 4 shapes x 15 orientations, 64 x 64 pixels, RGB.

    The first time, the 5.9 GB of images are unpacked into the cache folder.

    Args:
        path: the `.h5` file; None: that of the cache, downloaded (255 MB) if need be.
        cache: folder for the download and the unpacked images; None: the variable NNSIGHT_VAE_DATA or the user's cache folder.
        progress: show bars; by default on an interactive terminal.

    Raises:
        DataError: the download fails or is not what its checksum says, the file is not 3DShapes, or h5py is not installed.

    Source: Burgess and Kim 2018, 3D Shapes Dataset.
    """
    file = located("shapes3d", path, _URL, _MD5, cache, progress)
    (n, height, width, channels), table = _described(file)
    images = stored_images(
        "shapes3d", [file], (n, channels, height, width), lambda: _chunks(file), cache_folder(cache), progress
    )
    return Grid("shapes3d", images, table, FACTORS, ("shape",))


def _described(file: Path) -> tuple[tuple[int, ...], np.ndarray]:
    with _opened(file) as content:
        missing = [key for key in ("images", "labels") if key not in content]
        if missing:
            raise DataError(f"{file} has no {' and no '.join(map(repr, missing))}; it holds {sorted(content)}.")
        images, table = content["images"], content["labels"][...]
        if images.ndim != 4 or images.dtype != np.uint8 or table.shape != (len(images), len(FACTORS)):
            raise DataError(
                f"{file} is not 3DShapes: 'images' {images.dtype} {images.shape}, 'labels' {table.shape}; expected uint8 (n, height, "
                f"width, channels) and (n, {len(FACTORS)})."
            )
        return images.shape, table.astype(np.float64)


def _chunks(file: Path) -> Iterator[np.ndarray]:
    with _opened(file) as content:
        images = content["images"]
        for start in range(0, len(images), _STEP):
            try:
                yield images[start : start + _STEP].transpose(0, 3, 1, 2)
            except OSError as error:
                raise DataError(f"{file} breaks off at image {start}: {error}. Fetch it again.") from error


def _opened(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError("3DShapes is an HDF5 file: pip install 'nnsight-vae[benchmarks]' brings h5py.") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"{file} is not a whole HDF5 file: {error}. Fetch it again.") from error
