"""CelebA: 202,599 faces with forty attributes each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..arrays import Arrays
from ..cache import cache_folder
from ..download import given_folder
from ..stored import stored_images
from .pixels import picture_size, read_picture, require_size

_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_FOLDER, _TABLE = "img_align_celeba", "list_attr_celeba.txt"
_CROP = 148  # pixels of the face in the aligned pictures of 178 x 218
_STEP = 256  # images read at a time


def celeba(
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = 64,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Arrays:
    """CelebA from a folder: the middle 148 x 148 pixels of each aligned picture, resized; attributes are 0 or 1.

    Attributes are correlated annotations, not causes: there is no graph, and pairs are matched faces.

    Args:
        path: a folder with `img_align_celeba/` and `list_attr_celeba.txt`; needed, for the files are not downloaded here.
        size: pixels a side.
        cache: folder for the decoded images; None: the variable NNSIGHT_VAE_DATA or the user's cache folder.
        progress: show a bar; by default on an interactive terminal.

    Raises:
        DataError: a file is missing, is no picture, differs in size from the first, or the table is not as published.

    Source: Liu et al. 2015, Deep learning face attributes in the wild, arXiv 1411.7766 (non-commercial use; not downloaded here,
        because its host asks for agreement).
    """
    require_size("celeba", size)
    folder = given_folder("celeba", path, _PAGE)
    table_file, pictures = folder / _TABLE, folder / _FOLDER
    for needed in (table_file, pictures):
        if not needed.exists():
            raise DataError(f"celeba: no {needed}. Unpack {_FOLDER} beside {_TABLE}; both are had from {_PAGE}.")
    names, files, table = _attributes(table_file)

    def chunks() -> Iterator[np.ndarray]:
        first = picture_size(pictures / files[0])
        for start in range(0, len(files), _STEP):
            part = [pictures / file for file in files[start : start + _STEP]]
            for file in part:
                if picture_size(file) != first:
                    raise DataError(
                        f"{file} has {picture_size(file)} pixels (width, height), but {files[0]} has {first}."
                    )
            yield np.stack([read_picture(file, size, min(_CROP, *first)) for file in part])

    images = stored_images(
        f"celeba-{size}", [table_file, pictures], (len(files), 3, size, size), chunks, cache_folder(cache), progress
    )
    return Arrays("celeba", images, table, names, None)


def _attributes(file: Path) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Names of the attributes, of the pictures, and the table with 1 for present and 0 for absent."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        count, names = int(lines[0]), tuple(lines[1].split())
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise DataError(
            f"{file} does not start with a number of pictures and a line of attribute names: {error}."
        ) from error
    rows = [line.split() for line in lines[2:] if line.strip()]
    for number, row in enumerate(rows, start=3):
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"1", "-1"}:
            raise DataError(
                f"{file}, line {number}: expected a file name and {len(names)} values of 1 or -1, got {row}."
            )
    if len(rows) != count or not rows:
        raise DataError(f"{file} announces {count} pictures and lists {len(rows)}; it is cut off, or was edited.")
    return names, [row[0] for row in rows], np.array([[value == "1" for value in row[1:]] for row in rows], np.float64)
