"""Datasets from files: a folder of images with `factors.csv`, or one `.npz`. Nothing is unpickled."""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from .arrays import Arrays
from .own_arrays import from_arrays

if TYPE_CHECKING:
    import networkx as nx
    from PIL.Image import Image

_TABLE, _FILE_COLUMN = "factors.csv", "file"


def from_path(
    path: str | os.PathLike[str], graph: nx.DiGraph | None = None, *, discrete: Sequence[str] | None = None
) -> Arrays:
    """A dataset from a folder or an `.npz` file.

    A folder holds images of one size and a `factors.csv` with a column `file` (names relative to the folder) and one
    numeric column per factor::

        file,size,tilt
        0001.png,0.31,-4.0

    An `.npz` holds `images` and `factors` as `from_arrays` takes them, and optionally `names`, an array of strings.

    Args:
        path: the folder or file.
        graph: the true causal graph over the factors, if it is known.
        discrete: the factors that are kinds and not amounts, as in `from_arrays`.

    Raises:
        DataError: if something is missing, unreadable, of the wrong shape or not a number; the message names the file
            and, for a table, the line.

    Example:
        >>> import tempfile, numpy as np
        >>> file = tempfile.mkdtemp() + "/blobs.npz"
        >>> np.savez(file, images=np.zeros((60, 8, 8), np.uint8), factors=np.ones((60, 1)), names=np.array(["size"]))
        >>> from_path(file)
        <blobs: 60 images, shape (1, 8, 8), factors size>
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"No such file or folder: {path}.")
    read = _read_folder if path.is_dir() else _read_npz
    images, factors, names = read(path)
    try:
        return from_arrays(images, factors, graph, names, discrete=discrete, name=path.resolve().stem)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in ("images", "factors") if key not in file.files]
            if missing:
                raise DataError(f"{path} has no array {' and no '.join(map(repr, missing))}; it holds {file.files}.")
            names = file["names"].ravel() if "names" in file.files else None
            images, factors = file["images"], file["factors"]
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an .npz of plain arrays (pickled objects are refused): {error}"
        ) from error
    if names is not None and names.dtype.kind != "U":
        raise DataError(f"{path}: 'names' is {names.dtype}, expected an array of strings.")
    return images, factors, None if names is None else names.tolist()


def _read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    table = folder / _TABLE
    if not table.is_file():
        raise DataError(f"{folder} has no {_TABLE}; expected a column {_FILE_COLUMN!r} and one column per factor.")
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True)
            header = list(reader.fieldnames or [])
            _check_header(table, header)
            names = [column for column in header if column != _FILE_COLUMN]
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as CSV: {error}") from error
    if not rows:
        raise DataError(f"{table} has a header and no rows.")
    factors = np.array([[_number(table, line, row, column) for column in names] for line, row in rows])
    return _read_images(folder, [_file_name(table, line, row) for line, row in rows]), factors, names


def _check_header(table: Path, header: list[str]) -> None:
    if _FILE_COLUMN not in header or len(header) < 2 or len(set(header)) != len(header):
        raise DataError(
            f"{table} has columns {header}; expected {_FILE_COLUMN!r} and at least one factor, each column once."
        )


def _file_name(table: Path, line: int, row: dict[str, str]) -> str:
    if not row[_FILE_COLUMN]:
        raise DataError(f"{table}, line {line}: no file name.")
    return row[_FILE_COLUMN]


def _number(table: Path, line: int, row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError) as error:  # a short row has None here
        raise DataError(f"{table}, line {line}: {column} is {row[column]!r}, expected a number.") from error


def _read_images(folder: Path, names: list[str]) -> np.ndarray:
    first = _read_image(folder / names[0])
    images = np.empty((len(names), *first.shape), np.uint8)
    for index, name in enumerate(names):
        image = _read_image(folder / name)
        if image.shape != first.shape:
            raise DataError(
                f"{folder / name} has shape {image.shape} (height, width, channels), but {names[0]} has {first.shape}; "
                "all images of a dataset must be alike."
            )
        images[index] = image
    return images.transpose(0, 3, 1, 2)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(_grey_or_rgb(path, image))
    except (
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # SyntaxError: what PIL raises for broken PNGs
        raise DataError(f"{path} is missing or cannot be read as an image: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _grey_or_rgb(path: Path, image: Image) -> Image:
    if image.mode in ("1", "L"):
        return image.convert("L")
    opaque = image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)
    if image.mode in ("RGB", "P") or opaque:
        return image.convert("RGB")
    raise DataError(
        f"{path} is a {image.mode} image, expected 8-bit grey or RGB without transparency. Convert it first."
    )
