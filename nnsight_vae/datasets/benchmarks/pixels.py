"""Pictures from files: decoded, cropped and resized by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ...errors import DataError


def require_size(name: str, size: int) -> None:
    """Refuse a side of no pixels.

    Raises:
        DataError: size is no whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataError(f"{name}: size={size!r}, expected a whole number of pixels.")


def resized(images: UInt8[np.ndarray, "k 1 h w"], size: int) -> UInt8[np.ndarray, "k 1 size size"]:
    """Grey pictures at another size, averaged over what each pixel covers."""
    if images.shape[2:] == (size, size):
        return images
    from PIL import Image

    box = Image.Resampling.BOX if images.shape[2] % size == 0 else Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), box)) for image in images[:, 0]])[:, None]


def read_picture(file: Path, size: int, crop: int | None = None) -> UInt8[np.ndarray, "3 size size"]:
    """An RGB picture: its middle square of `crop` pixels a side (None: of its shorter side), resized.

    Raises:
        DataError: it is missing, no picture, or smaller than the crop.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            side = min(width, height) if crop is None else crop
            if side > min(width, height):
                raise DataError(
                    f"{file} has {width} x {height} pixels, fewer than the square of {side} that is cut out."
                )
            left, top = (width - side) // 2, (height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's of a broken PNG
        raise DataError(f"{file} is missing or cannot be read as an image: {error}") from error


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height, without decoding the picture.

    Raises:
        DataError: it is missing or no picture.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, SyntaxError) as error:
        raise DataError(f"{file} is missing or cannot be read as an image: {error}") from error
