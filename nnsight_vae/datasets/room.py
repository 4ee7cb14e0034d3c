"""The room: an object between floor and wall, lit from one side, with the shadow that it casts. 64 x 64 RGB, exact SCM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from jaxtyping import Float, UInt8

from ..causal.scm import SCM, Mechanism
from . import moments
from .canvas import SIDE, Columns, centres, drawn, hue as rgb, inside, paint
from .procedural import Procedural
from .rendering import Renderer

SHAPES = ("sphere", "cylinder", "cube")

# World coordinates are pixels, y upwards; the object stands at (_MIDDLE, _GROUND).
_X, _Y = centres(0, SIDE), centres(0, SIDE)[::-1, None]
_MIDDLE, _GROUND, _HORIZON = 32.0, 16.0, 26.0
_RADIUS = 13.0  # of an object of scale 1
_TILT = 0.3  # height of a circle on the floor over its width
_AMBIENT = 0.35  # brightness of a surface that faces away from the light

# The rows and columns that shadow and object can reach within their limits.
_SHADOW_ROWS = slice(41, 55)
_OBJECT_ROWS, _OBJECT_COLUMNS = slice(14, 55), slice(16, 48)

Parents = Mapping[str, np.ndarray]
Vector = tuple[np.ndarray, np.ndarray, np.ndarray]
# x and y from the foot, radius, direction of the light -> share of each pixel that is covered, and its brightness
ObjectOf = Callable[[np.ndarray, np.ndarray, np.ndarray, Vector], tuple[np.ndarray, np.ndarray]]


def room() -> Procedural:
    """The room dataset: hues of floor, wall and object, the object's shape and scale, and the light that casts its shadow.

    ::

        light        l ~ Uniform(-1, 1), from left to right; the shadow falls to the other side
        wall_hue     w ~ Uniform(0, .8) in turns
        floor_hue    f = .8 frac(w / .8 + .35 + .2 U)      floors are chosen to go with walls
        shape        0 sphere, 1 cylinder, 2 cube, equally often
        scale        s = .55 + .1 shape + .25 U            cubes are larger
        object_hue   o = .8 frac(shape / 3 + .3 U)         kinds have their colours

    The causal graph is wall_hue -> floor_hue, shape -> scale, shape -> object_hue. The light changes the shading of the object and
    the place of its shadow; neither is a factor of its own.

    Example:
        >>> sorted(room().graph.edges)
        [('shape', 'object_hue'), ('shape', 'scale'), ('wall_hue', 'floor_hue')]
    """
    scm = SCM(
        {
            "light": Mechanism((), lambda _, u: 2 * u - 1, _uniform),
            "wall_hue": Mechanism((), lambda _, u: 0.8 * u, _uniform),
            "floor_hue": Mechanism(
                ("wall_hue",), lambda p, u: 0.8 * _turn(p["wall_hue"] / 0.8 + 0.35 + 0.2 * u), _uniform
            ),
            "shape": Mechanism((), lambda _, u: np.floor(3 * u), _uniform),
            "scale": Mechanism(("shape",), lambda p, u: 0.55 + 0.1 * p["shape"] + 0.25 * u, _uniform),
            "object_hue": Mechanism(("shape",), lambda p, u: 0.8 * _turn(p["shape"] / 3 + 0.3 * u), _uniform),
        },
        dtype=np.float32,
    )
    return Procedural.drawn("room", scm, ROOM)


def _uniform(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n)


def _turn(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, np.float64) % 1


def render(factors: Float[np.ndarray, "n 6"]) -> UInt8[np.ndarray, "n 3 64 64"]:
    """Draw the room for each row of factors (light, wall_hue, floor_hue, shape, scale, object_hue), anti-aliased."""
    images = np.empty((len(factors), 3, SIDE, SIDE), np.uint8)
    for shape, object_of in enumerate((_sphere, _cylinder, _cube)):
        rows = factors[:, 3] == shape
        images[rows] = drawn(factors[rows][:, [0, 1, 2, 4, 5]], 3, partial(_draw, object_of=object_of))
    return images


def _draw(image: np.ndarray, columns: Columns, object_of: ObjectOf) -> None:
    light, wall, floor, scale, turn = columns
    radius = _RADIUS * scale
    rows = np.ones((len(image), 3, SIDE, 1), np.float32)  # floor and wall are the same all along a row
    paint(rows, np.ones_like(_Y + light), _pastel(wall, 0.75 + 0.004 * (_Y - _HORIZON)))
    paint(rows, inside(_Y - np.float32(_HORIZON), 1) + 0 * light, _pastel(floor, 0.9 - 0.012 * _Y))
    image[:] = rows
    on_floor, near = image[:, :, _SHADOW_ROWS], image[:, :, _OBJECT_ROWS, _OBJECT_COLUMNS]
    aside = (_X - _MIDDLE + 1.3 * light * radius) / (1.15 * radius)
    deep = (_Y[_SHADOW_ROWS] - np.float32(_GROUND)) / (1.15 * _TILT * radius)
    on_floor *= 1 - 0.55 * inside((np.hypot(aside, deep) - 1) * _TILT * radius, 1)[:, None]
    x, y = _X[_OBJECT_COLUMNS] - _MIDDLE, _Y[_OBJECT_ROWS] - np.float32(_GROUND)
    outline, brightness = object_of(x, y, radius, _direction(light))
    red, green, blue = rgb(turn)
    shade = np.clip(brightness, _AMBIENT, 1)
    paint(near, outline, (red * shade, green * shade, blue * shade))


def _direction(light: np.ndarray) -> Vector:
    """Unit vector to the light: right, up, towards us."""
    length = np.sqrt(light**2 + 0.5 + 0.5)
    return light / length, np.sqrt(0.5) / length, np.sqrt(0.5) / length


def _pastel(turn: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(value * (0.45 + 0.55 * channel) for channel in rgb(turn))


def _lit(normal: tuple[np.ndarray | float, ...], light: Vector) -> np.ndarray:
    return _AMBIENT + (1 - _AMBIENT) * np.maximum(sum(n * d for n, d in zip(normal, light, strict=True)), 0)


def _sphere(x: np.ndarray, y: np.ndarray, radius: np.ndarray, light: Vector) -> tuple[np.ndarray, np.ndarray]:
    right, up = x / radius, (y - radius) / radius
    away = np.hypot(right, up)
    return inside((away - 1) * radius, 1), _lit((right, up, np.sqrt(np.maximum(1 - away**2, 0))), light)


def _cylinder(x: np.ndarray, y: np.ndarray, radius: np.ndarray, light: Vector) -> tuple[np.ndarray, np.ndarray]:
    half, top = 0.8 * radius, 1.7 * radius
    sag = _TILT * np.sqrt(np.maximum(half**2 - x**2, 0))  # the round of its lower and upper edge
    outline = inside(np.abs(x) - half, 1) * inside(-sag - y, 1) * inside(y - top - sag, 1)
    lid = inside((np.hypot(x / half, (y - top) / (_TILT * half)) - 1) * _TILT * half, 1)
    right = np.clip(x / half, -1, 1)
    side = _lit((right, 0.0, np.sqrt(1 - right**2)), light)
    return outline, side + (_lit((0.0, 1.0, 0.0), light) - side) * lid


def _cube(x: np.ndarray, y: np.ndarray, radius: np.ndarray, light: Vector) -> tuple[np.ndarray, np.ndarray]:
    # seen with one edge in front: a left face, a right face and the lid
    half, height = np.float32(0.95) * radius, np.float32(1.35) * radius
    slope = _TILT * (half - np.abs(x))  # the lower edges rise to both sides, the upper ones fall
    outline = inside(np.abs(x) - half, 1) * inside(-slope - y, 1) * inside(y - height - slope, 1)
    lid = inside((np.abs(x) / half + np.abs(y - height) / (_TILT * half) - 1) * _TILT * half, 1)
    left, right = (_lit((s * np.sqrt(0.5), 0.0, np.sqrt(0.5)), light) for s in (-1, 1))
    side = right + (left - right) * inside(x, 1)
    return outline, side + (_lit((0.0, 1.0, 0.0), light) - side) * lid


ROOM = Renderer(
    {
        "light": (-1.2, 1.2),
        "wall_hue": (0, 1),
        "floor_hue": (0, 1),
        "shape": (0, 2),
        "scale": (0.4, 1.05),
        "object_hue": (0, 1),
    },
    (3, SIDE, SIDE),
    render,
    integers=("shape",),
    measures=moments.ROOM,
)
