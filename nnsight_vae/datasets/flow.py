"""Flow: a ball raises the water of a tank, and water and hole make the jet. 64 x 64 RGB, exact SCM, full mediation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from ..causal.scm import SCM, Mechanism
from . import moments
from .canvas import SIDE, Columns, centres, drawn, inside, overlap, paint
from .procedural import Procedural
from .rendering import Renderer

# World coordinates: x in [1, 17] to the right, y in [0, 16] upwards; the tank stands at x = 3 to 8.
_PIXEL = 16 / SIDE
_X, _Y = centres(1, 17), centres(0, 16)[::-1, None]
_LEFT, _RIGHT, _WALL, _FLOOR, _TOP = 3.0, 8.0, 0.2, 0.4, 15.0
_HALF_JET = 0.25

Parents = Mapping[str, np.ndarray]


def flow() -> Procedural:
    """The flow dataset: a ball of `ball_size` in a tank, water up to `water_height`, a `hole` at a height, a jet of length `flow`.

    ::

        ball_size      r ~ Uniform(5, 34) / 30
        water_height   h = r^3 + Uniform(1, 3.9)
        hole           d ~ Uniform(2, 14/3)
        flow           x = sqrt(1.96 h (d - .5)) * Uniform(.98, 1.02)

    The ball acts on the jet through the water only (r -> h -> x <- d): its natural direct effect on `flow` is exactly 0.

    Source: the flow of CausalVAE (Yang et al. 2021, arXiv 2004.08697), with uniform noise and the jet drawn from its own factor.

    Example:
        >>> sorted(flow().graph.edges)
        [('ball_size', 'water_height'), ('hole', 'flow'), ('water_height', 'flow')]
    """
    scm = SCM(
        {
            "ball_size": Mechanism((), lambda _, u: (5 + 29 * u) / 30, _uniform, lambda _, r: (30 * r - 5) / 29),
            "water_height": Mechanism(
                ("ball_size",),
                lambda p, u: p["ball_size"].astype(np.float64) ** 3 + 1 + 2.9 * u,
                _uniform,
                lambda p, h: (h - p["ball_size"] ** 3 - 1) / 2.9,
            ),
            "hole": Mechanism((), lambda _, u: 2 + 8 / 3 * u, _uniform, lambda _, d: (d - 2) * 3 / 8),
            "flow": Mechanism(("water_height", "hole"), _flow, _uniform, _flow_noise),
        },
        dtype=np.float32,
    )
    return Procedural.drawn("flow", scm, FLOW)


def _uniform(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n)


def _reach(parents: Parents) -> np.ndarray:
    return np.sqrt(1.96 * parents["water_height"].astype(np.float64) * (parents["hole"].astype(np.float64) - 0.5))


def _flow(parents: Parents, noise: np.ndarray) -> np.ndarray:
    return _reach(parents) * (1 + 0.04 * (noise - 0.5))


def _flow_noise(parents: Parents, flow: np.ndarray) -> np.ndarray:
    return (flow / _reach(parents) - 1) / 0.04 + 0.5


def render(factors: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 3 64 64"]:
    """Draw the tank for each row of factors (ball_size, water_height, hole, flow), anti-aliased."""
    return drawn(factors, 3, _draw)


def _draw(image: np.ndarray, columns: Columns) -> None:
    radius, height, hole, length = columns
    image[:] = 1
    water = _box(_LEFT, _RIGHT, _FLOOR, 5 + height)
    paint(image, water, (0.53, 0.81, 0.98))
    fallen = np.clip((_X - _RIGHT) / np.maximum(length, np.float32(1e-3)), 0, 1)
    centre = hole - (hole - np.float32(0.5)) * fallen * fallen
    jet = overlap(_Y, centre - _HALF_JET, centre + _HALF_JET, _PIXEL) * overlap(_X, _RIGHT, _RIGHT + length, _PIXEL)
    paint(image, jet, (0.1, 0.3, 0.9))
    ball = inside(np.hypot(_X - np.float32(5.5), _Y - np.float32(0.5) - radius) - radius, _PIXEL)
    paint(image, ball, (0.7, 0.13, 0.13))
    below, above = (
        _box(_RIGHT, _RIGHT + _WALL, _WALL, hole - _HALF_JET),
        _box(_RIGHT, _RIGHT + _WALL, hole + _HALF_JET, _TOP),
    )
    wall = _box(_LEFT - _WALL, _LEFT, _WALL, _TOP)
    paint(image, np.maximum(wall, np.maximum(below, above)), (0.0, 0.0, 0.0))
    paint(image, _box(1.0, 17.0, 0.0, 0.3), (0.3, 0.3, 0.3))


def _box(left: float, right: float, bottom: float | np.ndarray, top: float | np.ndarray) -> np.ndarray:
    return overlap(_X, left, right, _PIXEL) * overlap(_Y, bottom, top, _PIXEL)


FLOW = Renderer(
    {"ball_size": (0.1, 1.25), "water_height": (0.5, 9.5), "hole": (1.0, 6.0), "flow": (0.0, 8.5)},
    (3, SIDE, SIDE),
    render,
    measures=moments.FLOW,
)
