"""Sprites: one white shape on black, all five factors independent, on the grid of values of dSprites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from jaxtyping import Float, UInt8

from ..causal.scm import SCM, Mechanism
from .canvas import SIDE, Columns, centres, drawn, inside, paint
from .procedural import Procedural
from .rendering import Renderer

SIZES = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # signed, from an outline
SHAPES = ("square", "ellipse", "heart")

# World coordinates are pixels, y upwards; a shape's radius at scale 1 keeps it in the image at every place and angle.
_X, _Y = centres(0, SIDE), centres(0, SIDE)[::-1, None]
_MARGIN = 16.0
_HALF_SQUARE, _LONG, _SHORT, _HEART = 10.5, 14.0, 7.0, 19.0


def independent_sprites() -> Procedural:
    """Sprites whose factors are independent and take the values of dSprites: 3 x 6 x 40 x 32 x 32 combinations, rendered.

    ::

        shape         0 square, 1 ellipse, 2 heart
        scale         .5, .6, ... 1
        orientation   0, 2 pi / 40, ... radians, counter-clockwise
        x, y          0, 1/31, ... 1 from left to right and from bottom to top

    A square looks the same after a quarter turn and an ellipse after half a turn, so no readout can tell every orientation. Other
    values within the limits can be set by `do` (except of the shape).

    Source: the factors of dSprites (Matthey et al. 2017), drawn anew and anti-aliased: not its images.

    Example:
        >>> data = independent_sprites()
        >>> data.factors, len(data.graph.edges)
        (('shape', 'scale', 'orientation', 'x', 'y'), 0)
    """
    values = {
        "shape": np.arange(3),
        "scale": np.linspace(0.5, 1, 6),
        "orientation": 2 * np.pi * np.arange(40) / 40,
        "x": np.linspace(0, 1, 32),
        "y": np.linspace(0, 1, 32),
    }
    return Procedural.drawn(
        "independent_sprites",
        SCM({name: Mechanism((), _choice(levels), _uniform) for name, levels in values.items()}, dtype=np.float32),
        SPRITES,
    )


def _choice(levels: np.ndarray) -> Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]:
    return lambda parents, noise: levels[(noise * len(levels)).astype(int)]


def _uniform(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n)


def render(factors: Float[np.ndarray, "n 5"]) -> UInt8[np.ndarray, "n 1 64 64"]:
    """Draw a sprite for each row of factors (shape, scale, orientation, x, y), anti-aliased."""
    images = np.empty((len(factors), 1, SIDE, SIDE), np.uint8)
    for shape, distance in enumerate((_square, _ellipse, _heart)):
        rows = factors[:, 0] == shape
        images[rows] = drawn(factors[rows, 1:], 1, partial(_draw, distance=distance))
    return images


def _draw(image: np.ndarray, columns: Columns, distance: Distance) -> None:
    scale, turn, x, y = columns
    right, up = _X - (_MARGIN + (SIDE - 2 * _MARGIN) * x), _Y - (_MARGIN + (SIDE - 2 * _MARGIN) * y)
    along, across = right * np.cos(turn) + up * np.sin(turn), up * np.cos(turn) - right * np.sin(turn)
    paint(image, inside(distance(along / scale, across / scale) * scale, 1), (1.0,))


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x) - np.float32(_HALF_SQUARE), np.abs(y) - np.float32(_HALF_SQUARE)
    return np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0)


def _ellipse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # the implicit function over its gradient: exact to first order at the outline, which is where it counts
    x, y = x / np.float32(_LONG), y / np.float32(_SHORT)
    value, slope = np.hypot(x, y), np.hypot(x / np.float32(_LONG), y / np.float32(_SHORT))
    return value * (value - 1) / np.maximum(slope, np.float32(1e-6))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # two quarter turns of a circle on a square that stands on its corner (0, 0); centred on its middle
    x, y = np.abs(x) / np.float32(_HEART), y / np.float32(_HEART) + np.float32(0.55)
    arc = np.hypot(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(np.sqrt(2) / 4)
    diagonal = np.maximum(x + y, 0) / 2
    below = np.minimum(np.hypot(x, y - 1), np.hypot(x - diagonal, y - diagonal)) * np.sign(x - y)
    return np.where(x + y > 1, arc, below) * np.float32(_HEART)


SPRITES = Renderer(
    {"shape": (0, 2), "scale": (0.25, 1.0), "orientation": (-2 * np.pi, 2 * np.pi), "x": (0, 1), "y": (0, 1)},
    (1, SIDE, SIDE),
    render,
    integers=("shape",),
)
