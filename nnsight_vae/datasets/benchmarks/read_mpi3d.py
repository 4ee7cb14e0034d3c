"""MPI3D: a robot arm with an object, simulated or photographed."""

from __future__ import annotations

import math
import os

import numpy as np

from ...errors import DataError
from ..cache import cache_folder
from ..download import located
from ..grid import Grid, product
from ..stored import stored_images
from .npz import header, stream_array

FACTORS = ("color", "shape", "size", "camera_height", "background", "horizontal", "vertical")
_SIZES = ((6, 6, 2, 3, 3, 40, 40), (4, 4, 2, 3, 3, 40, 40))  # the published files, and the challenge's subset
_URL = "https://storage.googleapis.com/disentanglement_dataset/Final_Dataset/mpi3d_{}.npz"
_MD5 = {
    "toy": "55889cb7c7dfc655d6e0277beee88868",
    "realistic": "59a6225b88b635365f70c91b3e52f70f",
    "real": "0f33f609918fb5c97996692f91129802",
}


def mpi3d(
    path: str | os.PathLike[str] | None = None,
    *,
    version: str = "toy",
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Grid:
    """MPI3D: 6 colours x 6 shapes x 2 sizes x 3 camera heights x 3 backgrounds x 40 x 40 arm angles, 64 x 64 pixels, RGB.

    The first time, the 12.7 GB of images are unpacked into the cache folder. The file holds no factors: they are the indices of
    its order. The subset of 460,800 images (4 colours and 4 shapes) is read as well.

    Args:
        path: the `.npz` file; None: that of the cache, downloaded if need be.
        version: `toy`, `realistic` or `real`: which one is downloaded, and the dataset's name.
        cache: folder for the download and the unpacked images; None: the variable NNSIGHT_VAE_DATA or the user's cache folder.
        progress: show bars; by default on an interactive terminal.

    Raises:
        DataError: an unknown version, a failed download, or a file that is not MPI3D.

    Source: Gondal et al. 2019, arXiv 1906.03292 (CC BY 4.0).
    """
    if version not in _MD5:
        raise DataError(f"mpi3d: version={version!r}; expected {', '.join(_MD5)}.")
    file = located(f"mpi3d {version}", path, _URL.format(version), _MD5[version], cache, progress)
    shape, dtype = header(file, "images")
    sizes = next((sizes for sizes in _SIZES if math.prod(sizes) == shape[0]), None)
    if sizes is None or len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
        expected = " or ".join(str(math.prod(sizes)) for sizes in _SIZES)
        raise DataError(
            f"{file} is not MPI3D: 'images' is {dtype} {shape}, expected uint8 ({expected}, height, width, 3)."
        )
    images = stored_images(
        f"mpi3d-{version}",
        [file],
        (shape[0], 3, *shape[1:3]),
        lambda: (chunk.transpose(0, 3, 1, 2) for chunk in stream_array(file, "images")),
        cache_folder(cache),
        progress,
    )
    table = product({name: range(size) for name, size in zip(FACTORS, sizes, strict=True)})
    return Grid(f"mpi3d-{version}", images, table, FACTORS, ("color", "shape", "background"))
