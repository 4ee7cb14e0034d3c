"""The pendulum: an angle and a light cause the length and the position of a shadow. 64 x 64 RGB, exact SCM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from ..causal.scm import SCM, Mechanism
from . import moments
from .canvas import SIDE, inside, overlap, to_u8
from .procedural import Procedural

FACTORS = ("angle", "light", "shadow_length", "shadow_position")

# World coordinates: x in [-2, 22] to the right, y in [-3, 21] upwards; the pivot is at (10, 10.5).
_PIXEL = 24 / SIDE
_X = (-2 + (np.arange(SIDE) + 0.5) * _PIXEL).astype(np.float32)
_Y = (21 - (np.arange(SIDE) + 0.5) * _PIXEL).astype(np.float32)
_PIVOT_X, _PIVOT_Y, _ROD = 10.0, 10.5, 8.0
_LIGHT_Y, _LIGHT_RADIUS, _BALL_RADIUS, _ROD_HALF_WIDTH = 19.0, 1.8, 1.5, 0.25
_SHADOW_BOTTOM, _SHADOW_TOP = -2.2, -1.2

# The rows and columns each object can reach within its limits. They are disjoint, so a factor owns its pixels.
_LIGHT_ROWS = slice(0, 11)
_SWING_ROWS, _SWING_COLUMNS = slice(24, 55), slice(5, 59)
_SHADOW_ROWS = slice(59, 62)

_LIMITS = {
    "angle": (-1.5, 1.5),
    "light": (0.78, 2.36),
    "shadow_length": (0.0, 24.0),
    "shadow_position": (-2.0, 22.0),
}
_CHUNK = 64  # images drawn at once: small enough for the temporaries to stay in cache

Parents = Mapping[str, np.ndarray]


def pendulum() -> Procedural:
    """The pendulum dataset.

    A ball hangs from a pivot at `angle` (radians from the vertical, to the right), a light stands at the angle `light`
    (radians, seen from the pivot), and the ball throws a shadow of `shadow_length` centred at `shadow_position`
    (world units; the image is 24 wide)::

        angle            a ~ Uniform(-.63, .63)
        light            l ~ Uniform(.98, 2.16)
        shadow_length    = max(3, 9.5 |cos(a - l)| / sin l) * exp(.3 clip(N(0, 1), -2, 2))
        shadow_position  = 10 + 4.75 sin a - (11 - 4.75 cos a) / tan l + 1.25 clip(N(0, 1), -2.5, 2.5)

    The two effects have noise of their own (about .34 and .15 of their variance), so that each is a factor a model can
    represent and an intervention can set; the shadow is drawn from its two factors, not from the causes. Every factor
    owns its pixels: no pixel depends on two of (angle), (light), (the shadow).

    `readout()` is bundled: held-out R2 at least .97 for every factor, on images with independent factors too; the
    numbers are in `readout().record`.

    Source: the pendulum of CausalVAE (Yang et al. 2021, arXiv 2004.08697), with mechanism noise added and the shadow
        drawn from its own factors; the equations of the noiseless parts are theirs.

    Example:
        >>> data = pendulum()
        >>> sorted(data.graph.edges)[:2]
        [('angle', 'shadow_length'), ('angle', 'shadow_position')]
        >>> pairs = data.pairs("angle", n=8, seed=0)
        >>> bool((pairs.base_factors[:, 0] < pairs.source_factors[:, 0]).all())
        True
    """
    return Procedural(
        "pendulum",
        # float32, so that factors given back to do() or counterfactual() reproduce their descendants to the bit
        SCM(
            {
                "angle": Mechanism((), lambda _, u: -0.63 + 1.26 * u, _uniform, lambda _, a: (a + 0.63) / 1.26),
                "light": Mechanism((), lambda _, u: 0.98 + 1.18 * u, _uniform, lambda _, light: (light - 0.98) / 1.18),
                "shadow_length": Mechanism(("angle", "light"), _shadow_length, _normal, _length_noise),
                "shadow_position": Mechanism(("angle", "light"), _shadow_position, _normal, _position_noise),
            },
            dtype=np.float32,
        ),
        render,
        image_shape=(3, SIDE, SIDE),
        limits=_LIMITS,
        readout_file=Path(__file__).parent / "readouts" / "pendulum.safetensors",
        measures=moments.PENDULUM,
    )


def _uniform(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n)


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _bare_length(parents: Parents) -> np.ndarray:
    angle, light = parents["angle"].astype(np.float64), parents["light"].astype(np.float64)
    return np.maximum(3, 9.5 * np.abs(np.cos(angle - light)) / np.sin(light))


def _bare_position(parents: Parents) -> np.ndarray:
    angle, light = parents["angle"].astype(np.float64), parents["light"].astype(np.float64)
    return 10 + 4.75 * np.sin(angle) - (11 - 4.75 * np.cos(angle)) / np.tan(light)


def _shadow_length(parents: Parents, noise: np.ndarray) -> np.ndarray:
    # multiplicative, so that a length stays positive; clipped, so that it fits the image
    return _bare_length(parents) * np.exp(0.3 * noise.clip(-2, 2))


def _length_noise(parents: Parents, length: np.ndarray) -> np.ndarray:
    return np.log(length.clip(min=1e-9) / _bare_length(parents)) / 0.3


def _shadow_position(parents: Parents, noise: np.ndarray) -> np.ndarray:
    return _bare_position(parents) + 1.25 * noise.clip(-2.5, 2.5)


def _position_noise(parents: Parents, position: np.ndarray) -> np.ndarray:
    return (position - _bare_position(parents)) / 1.25


def render(factors: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 3 64 64"]:
    """Draw the pendulum for each row of factors (angle, light, shadow_length, shadow_position), anti-aliased.

    Each image depends on its own row only, to the last bit.
    """
    factors = factors.astype(np.float32)
    images = np.full((len(factors), 3, SIDE, SIDE), 255, np.uint8)
    for start in range(0, len(factors), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        angle, light, length, position = factors[chunk, :, None, None].transpose(1, 0, 2, 3)
        _draw_light(images[chunk], light)
        _draw_swing(images[chunk], angle)
        _draw_shadow(images[chunk], length, position)
    return images


def _draw_light(images: np.ndarray, light: np.ndarray) -> None:
    x, y = _X, _Y[_LIGHT_ROWS, None]
    covered = inside(np.hypot(x - (10 + 10 / np.tan(light)), y - np.float32(_LIGHT_Y)) - _LIGHT_RADIUS, _PIXEL)
    images[:, 1, _LIGHT_ROWS] = to_u8(1 - 0.35 * covered)  # orange on white: (1, .65, 0)
    images[:, 2, _LIGHT_ROWS] = to_u8(1 - covered)


def _draw_swing(images: np.ndarray, angle: np.ndarray) -> None:
    x, y = _X[_SWING_COLUMNS] - _PIVOT_X, _Y[_SWING_ROWS, None] - _PIVOT_Y
    sin, cos = np.sin(angle), np.cos(angle)
    along = np.clip(x * sin - y * cos, 0, _ROD)  # foot of the pixel on the rod
    rod = inside(np.hypot(x - along * sin, y + along * cos) - _ROD_HALF_WIDTH, _PIXEL)
    ball = inside(np.hypot(x - _ROD * sin, y + _ROD * cos) - _BALL_RADIUS, _PIXEL)
    behind = 1 - 0.5 * rod  # grey on white
    red, other = behind + (0.7 - behind) * ball, behind + (0.13 - behind) * ball
    images[:, 0, _SWING_ROWS, _SWING_COLUMNS] = to_u8(red)
    images[:, 1:, _SWING_ROWS, _SWING_COLUMNS] = to_u8(other)[:, None]


def _draw_shadow(images: np.ndarray, length: np.ndarray, position: np.ndarray) -> None:
    columns = overlap(_X, position - length / 2, position + length / 2, _PIXEL)
    rows = overlap(_Y[_SHADOW_ROWS, None], _SHADOW_BOTTOM, _SHADOW_TOP, _PIXEL)
    images[:, :, _SHADOW_ROWS] = to_u8(1 - rows * columns)[:, None]
