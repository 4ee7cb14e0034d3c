"""SmallNORB: photographs of fifty toys on a turntable, in the format of their own that they were published in."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..arrays import Arrays
from ..cache import cache_folder
from ..download import located
from ..grid import Grid
from ..stored import stored_images
from .pixels import require_size, resized

FACTORS = ("category", "instance", "elevation", "azimuth", "lighting")
_URL = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/smallnorb-{}-{}.mat.gz"
_SPLITS = ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing")
_MD5 = {
    (0, "dat"): "66054832f9accfe74a0f4c36a75bc0a2",
    (0, "cat"): "23c8b86101fbf0904a000b43d3ed2fd9",
    (0, "info"): "51dee1210a742582ff607dfd94e332e3",
    (1, "dat"): "e4ad715691ed5a3a5f138751a4ceb071",
    (1, "cat"): "5aa791cd7e6016cf957ce9bdb93b8603",
    (1, "info"): "a9454f3864d7fd4bb3ea7fc3eb84924e",
}
_DTYPES = {0x1E3D4C55: "u1", 0x1E3D4C54: "<i4", 0x1E3D4C56: "<i2", 0x1E3D4C51: "<f4", 0x1E3D4C53: "<f8"}
_STEP = 512  # images read at a time


def small_norb(
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = 64,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Arrays:
    """SmallNORB: 5 categories x 10 instances x 9 elevations x 18 azimuths x 6 lightings, one camera of the two, grey.

    Both splits together are a grid, and so a `Grid`; one alone (a folder with the three files of one split) is that too, with five
    instances a category.

    Args:
        path: a folder with the `.mat` or `.mat.gz` files of one split or of both; None: those of the cache, downloaded if need be.
        size: pixels a side; the photographs have 96.
        cache: folder for the download and the unpacked images; None: the variable NNSIGHT_VAE_DATA or the user's cache folder.
        progress: show bars; by default on an interactive terminal.

    Raises:
        DataError: a failed download, a missing or broken file, or files that do not belong together.

    Source: LeCun, Huang and Bottou 2004, Learning methods for generic object recognition, CVPR (for research).
    """
    require_size("small_norb", size)
    splits = _downloaded(cache, progress) if path is None else _found(Path(path).expanduser())
    table = np.concatenate([_table(files) for files in splits])
    shapes = [_shape(files["dat"]) for files in splits]
    if any(len(shape) != 4 or shape[1] != 2 for shape in shapes) or sum(shape[0] for shape in shapes) != len(table):
        raise DataError(f"smallNORB: images of shape {shapes} for {len(table)} labels; expected (n, 2, 96, 96).")

    def chunks() -> Iterator[np.ndarray]:
        for files in splits:
            for chunk in _stream(files["dat"]):
                yield resized(chunk[:, :1], size)

    images = stored_images(
        f"small-norb-{size}",
        [files["dat"] for files in splits],
        (len(table), 1, size, size),
        chunks,
        cache_folder(cache),
        progress,
    )
    return Grid("small_norb", images, table, FACTORS, ("category", "instance", "lighting"))


def _downloaded(cache: str | os.PathLike[str] | None, progress: bool | None) -> list[dict[str, Path]]:
    kinds = ("dat", "cat", "info")
    return [
        {k: located("small_norb", None, _URL.format(split, k), _MD5[i, k], cache, progress) for k in kinds}
        for i, split in enumerate(_SPLITS)
    ]


def _found(folder: Path) -> list[dict[str, Path]]:
    if not folder.is_dir():
        raise DataError(f"small_norb: no folder {folder}; expected one with the smallnorb-*.mat.gz files.")
    splits = []
    for split in _SPLITS:
        files = {kind: _either(folder, f"smallnorb-{split}-{kind}.mat") for kind in ("dat", "cat", "info")}
        if any(files.values()):
            missing = [f"smallnorb-{split}-{kind}.mat.gz" for kind, file in files.items() if file is None]
            if missing:
                raise DataError(f"small_norb: {folder} has no {' and no '.join(missing)}.")
            splits.append({kind: file for kind, file in files.items() if file is not None})
    if not splits:
        raise DataError(f"small_norb: {folder} holds no smallnorb-*.mat or .mat.gz file.")
    return splits


def _either(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _table(files: dict[str, Path]) -> np.ndarray:
    category, info = (np.concatenate(list(_stream(files[kind]))) for kind in ("cat", "info"))
    if category.ndim != 1 or info.shape != (len(category), 4):
        raise DataError(
            f"{files['info']} holds {info.shape} and {files['cat']} {category.shape}, expected (n, 4) and (n,)."
        )
    instance, elevation, azimuth, lighting = info.T
    return np.stack([category, instance, elevation, azimuth // 2, lighting], axis=1).astype(np.float64)


def _shape(file: Path) -> tuple[int, ...]:
    with _opened(file) as content:
        return _header(file, content)[0]


def _stream(file: Path) -> Iterator[np.ndarray]:
    """The rows of one file in order."""
    with _opened(file) as content:
        shape, dtype = _header(file, content)
        row = int(np.prod(shape[1:])) * dtype.itemsize
        for start in range(0, shape[0], _STEP):
            count = min(_STEP, shape[0] - start)
            data = _read(file, content, count * row)
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _header(file: Path, content: gzip.GzipFile) -> tuple[tuple[int, ...], np.dtype]:
    magic, ndim = np.frombuffer(_read(file, content, 8), "<u4").tolist()
    if magic not in _DTYPES or not 1 <= ndim <= 8:
        raise DataError(f"{file} is no NORB file: it starts with {magic:#010x}.")
    # three sizes are always written, however few are meant
    sizes = np.frombuffer(_read(file, content, 4 * max(3, ndim)), "<i4")[:ndim]
    if (sizes < 0).any():
        raise DataError(f"{file} is no NORB file: its sizes are {sizes.tolist()}.")
    return tuple(sizes.tolist()), np.dtype(_DTYPES[magic])


def _opened(file: Path) -> gzip.GzipFile:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _read(file: Path, content: gzip.GzipFile, size: int) -> bytes:
    try:
        data = content.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}. Fetch it again.") from error
    if len(data) < size:
        raise DataError(f"{file} is truncated: {size - len(data)} bytes are missing. Fetch it again.")
    return data
