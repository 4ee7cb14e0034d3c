"""Small images as PNG data URIs, the same bytes for the same image on every machine."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nnsight_vae.errors import CircuitError

_URI = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")


def data_uri(image: Any, name: str) -> tuple[str, float]:
    """An image as a data URI, and its width relative to its height.

    Args:
        image: `[h, w]` or `[h, w, 3]`, floats in [0, 1] (clipped) or 8-bit integers; or a data URI of an image, whose shape is
            taken to be square.
        name: of what it shows, for the error.

    Raises:
        CircuitError: something else, an image without pixels, or values that are not finite.

    Example:
        >>> uri, aspect = data_uri(np.zeros((2, 4)), "z")
        >>> uri[:22], aspect
        ('data:image/png;base64,', 2.0)
    """
    if isinstance(image, str):
        if not _URI.fullmatch(image):
            raise CircuitError(
                f"the thumbnail of {name!r} is text but no data URI (data:image/png;base64,...): {image[:40]!r}"
            )
        return image, 1.0
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise CircuitError(f"the thumbnail of {name!r} has shape {array.shape}; expected [h, w] or [h, w, 3].")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise CircuitError(
                f"the thumbnail of {name!r} holds {array.dtype} values that are no finite numbers in [0, 1]."
            )
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    encoded = base64.b64encode(png(array)).decode()
    return f"data:image/png;base64,{encoded}", array.shape[1] / array.shape[0]


def png(image: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The file: grey or RGB, no interlacing, no metadata. Source: ISO/IEC 15948."""
    height, width = image.shape[:2]
    colour = 2 if image.ndim == 3 else 0
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image))  # filter 0 before every row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
