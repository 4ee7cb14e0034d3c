"""How the procedural worlds are drawn: pixels of a world, and the share of each that a shape covers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

SIDE = 64
_CHUNK = 64  # images drawn at once: small enough for the temporaries to stay in cache

Columns = tuple[Float[np.ndarray, "n 1 1"], ...]
Draw = Callable[[np.ndarray, Columns], None]  # paints images in place


def centres(low: float | int, high: float | int) -> Float[np.ndarray, " 64"]:
    """Centres of the pixels of one axis over [low, high] of the world, rising."""
    return (low + (np.arange(SIDE) + 0.5) * ((high - low) / SIDE)).astype(np.float32)


def inside(signed_distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of a pixel that an edge at this distance (negative: inside the shape) leaves covered, to first order."""
    return np.clip(0.5 - signed_distance / np.float32(pixel), 0, 1)


def overlap(center: np.ndarray, low: float | np.ndarray, high: float | np.ndarray, pixel: float) -> np.ndarray:
    """Share of each pixel, along one axis, that the interval [low, high] covers; exact."""
    half = np.float32(pixel / 2)
    return np.clip((np.minimum(center + half, high) - np.maximum(center - half, low)) / np.float32(pixel), 0, 1)


def paint(image: np.ndarray, share: np.ndarray, colour: tuple[float | np.ndarray, ...]) -> None:
    """Lay a colour over an image `[n, c, h, w]`, as opaque as the share of each pixel that it covers, in place."""
    for channel, value in enumerate(colour):
        image[:, channel] += (value - image[:, channel]) * share


def hue(turn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Red, green and blue of a fully saturated colour; hue in turns, 0 is red, 1/3 green.

    Example:
        >>> [float(channel) for channel in hue(np.array(1 / 3))]
        [0.0, 1.0, 0.0]
    """
    red, green, blue = (np.clip(np.abs((turn * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2))
    return red, green, blue


def drawn(factors: Float[np.ndarray, "n f"], channels: int, draw: Draw) -> UInt8[np.ndarray, "n c 64 64"]:
    """Images, a few at a time: `draw` paints them in place from the factors' columns. Each depends on its own row only."""
    images = np.empty((len(factors), channels, SIDE, SIDE), np.uint8)
    for start in range(0, len(factors), _CHUNK):
        chunk = factors[start : start + _CHUNK].astype(np.float32)
        part = np.zeros((len(chunk), channels, SIDE, SIDE), np.float32)
        draw(part, tuple(chunk[:, :, None, None].transpose(1, 0, 2, 3)))
        images[start : start + _CHUNK] = to_u8(part)
    return images


def to_u8(intensity: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Intensities in [0, 1] as bytes, rounded."""
    return (intensity * 255 + np.float32(0.5)).astype(np.uint8)
