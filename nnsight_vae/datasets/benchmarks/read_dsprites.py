"""dSprites: 737,280 white shapes on black."""

from __future__ import annotations

import os

import numpy as np

from ...errors import DataError
from ..cache import cache_folder
from ..download import located
from ..grid import Grid
from ..stored import stored_images
from .npz import header, read_array, stream_array

FACTORS = ("shape", "scale", "orientation", "x", "y")
_URL = "https://github.com/google-deepmind/dsprites-dataset/raw/master/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_MD5 = "7da33b31b13a06f4b04a70402ce90c2e"


def dsprites(
    path: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Grid:
    """dSprites: 3 shapes x 6 scales x 40 orientations x 32 x 32 positions, 64 x 64 pixels, black and white.

    The first time, the 3 GB of images are unpacked into the cache folder. The constant factor `color` is left out. A square looks
    alike after a quarter turn and an ellipse after half a turn, so `orientation` cannot be read from their images.

    Args:
        path: the `.npz` file; None: that of the cache, downloaded (26 MB) if need be.
        cache: folder for the download and the unpacked images; None: the variable NNSIGHT_VAE_DATA or the user's cache folder.
        progress: show bars; by default on an interactive terminal.

    Raises:
        DataError: the download fails or is not what its checksum says, or the file is not dSprites.

    Source: Matthey et al. 2017, dSprites: disentanglement testing sprites dataset.
    """
    file = located("dsprites", path, _URL, _MD5, cache, progress)
    values = read_array(file, "latents_values")
    shape, _ = header(file, "imgs")
    if values.ndim != 2 or values.shape[1] != 6 or len(shape) != 3 or shape[0] != len(values):
        raise DataError(
            f"{file} is not dSprites: 'imgs' {shape} and 'latents_values' {values.shape}, expected (n, height, width) and (n, 6)."
        )

    images = stored_images(
        "dsprites",
        [file],
        (shape[0], 1, *shape[1:]),
        lambda: (_grey(file, chunk)[:, None] for chunk in stream_array(file, "imgs")),
        cache_folder(cache),
        progress,
    )
    return Grid("dsprites", images, values[:, 1:].astype(np.float64), FACTORS, ("shape",))


def _grey(file: object, chunk: np.ndarray) -> np.ndarray:
    if chunk.dtype != np.uint8 or chunk.max(initial=0) > 1:
        raise DataError(f"{file}: 'imgs' is {chunk.dtype} up to {chunk.max()}, expected uint8 of 0 and 1.")
    return chunk * np.uint8(255)
