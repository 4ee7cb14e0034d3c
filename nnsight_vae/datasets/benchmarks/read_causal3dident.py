"""Causal3DIdent: rendered objects whose class, place, rotation and colours cause one another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import numpy as np

from ...errors import DataError
from ..array_checks import check_graph
from ..arrays import Arrays
from ..cache import cache_folder
from ..download import given_folder
from ..stored import stored_images
from .pixels import picture_size, read_picture, require_size

FACTORS = (
    "class",
    *(f"position_{axis}" for axis in "xyz"),
    *(f"rotation_{axis}" for axis in ("phi", "theta", "psi")),
    "spotlight_position",
    "object_hue",
    "spotlight_hue",
    "background_hue",
)
_PAGE = "https://doi.org/10.5281/zenodo.4784282"
_STEP = 256  # images read at a time


def causal3dident(
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = 64,
    graph: nx.DiGraph | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Arrays:
    """Causal3DIdent from one of its folders (`trainset` or `testset`): seven classes, ten continuous factors in [-1, 1].

    Args:
        path: a folder with `raw_latents_0.npy`, `images_0/00000.png`, ... for some or all of the classes;
            needed, for the files are not downloaded here.
        size: pixels a side; the renderings have 224.
        graph: the causal graph over the factors, if the set was made with a known one.
        cache: folder for the decoded images; None: the variable NNSIGHT_VAE_DATA or the user's cache folder.
        progress: show a bar; by default on an interactive terminal.

    Raises:
        DataError: a file is missing, broken, or differs in size from the first.

    Source: von Kuegelgen et al. 2021, arXiv 2106.04619. The images are had from the DOI 10.5281/zenodo.4784282.
    """
    require_size("causal3dident", size)
    folder = given_folder("causal3dident", path, _PAGE)
    latents = sorted(folder.glob("raw_latents_*.npy"), key=_number)
    if not latents:
        raise DataError(f"causal3dident: {folder} holds no raw_latents_*.npy; the images are had from {_PAGE}.")
    tables, pictures = [], []
    for file in latents:
        values = _latents(file)
        shown = sorted((folder / f"images_{_number(file)}").glob("*.png"), key=_number)
        if len(shown) != len(values):
            raise DataError(f"{file} has {len(values)} rows, but images_{_number(file)} holds {len(shown)} pictures.")
        tables.append(np.column_stack([np.full(len(values), float(_number(file))), values]))
        pictures += shown

    def chunks() -> Iterator[np.ndarray]:
        first = picture_size(pictures[0])
        for start in range(0, len(pictures), _STEP):
            part = pictures[start : start + _STEP]
            for file in part:
                if picture_size(file) != first:
                    raise DataError(
                        f"{file} has {picture_size(file)} pixels (width, height), but {pictures[0].name} has {first}."
                    )
            yield np.stack([read_picture(file, size) for file in part])

    images = stored_images(
        f"causal3dident-{size}",
        [*latents, *sorted({picture.parent for picture in pictures})],
        (len(pictures), 3, size, size),
        chunks,
        cache_folder(cache),
        progress,
    )
    if graph is not None:
        check_graph(graph, FACTORS)
    return Arrays("causal3dident", images, np.concatenate(tables), FACTORS, graph)


def _latents(file: Path) -> np.ndarray:
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read as an array of numbers: {error}") from error
    if values.ndim != 2 or values.shape[1] != len(FACTORS) - 1 or not np.isfinite(values).all():
        raise DataError(f"{file} holds {values.dtype} {values.shape}, expected finite numbers (n, {len(FACTORS) - 1}).")
    return values.astype(np.float64)


def _number(file: Path) -> int:
    digits = re.findall(r"\d+", file.stem)
    if not digits:
        raise DataError(f"{file} has no number in its name.")
    return int(digits[-1])
