"""Linear sprites: six factors under a linear-Gaussian SCM of any weights, so every total effect is known. 64 x 64 RGB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Float, UInt8

from ..causal.scm import SCM, Mechanism
from ..errors import DataError
from . import moments
from .canvas import SIDE, Columns, centres, drawn, hue as rgb, inside, paint
from .procedural import Procedural
from .rendering import Renderer

FACTORS = ("backdrop", "size", "hue", "height", "satellite_size", "satellite_angle")
WEIGHTS = {
    ("backdrop", "hue"): 0.7,
    ("size", "hue"): -0.6,
    ("size", "height"): 0.8,
    ("size", "satellite_size"): 0.5,
    ("height", "satellite_size"): -0.7,
    ("hue", "satellite_size"): 0.4,
    ("satellite_size", "satellite_angle"): 0.8,
}
NOISE = {"backdrop": 1.0, "size": 1.0, "hue": 0.6, "height": 0.6, "satellite_size": 0.5, "satellite_angle": 0.6}

_RANGES = {
    "backdrop": (0.15, 0.85),
    "size": (5.0, 10.0),
    "hue": (0.0, 0.7),
    "height": (22.0, 42.0),
    "satellite_size": (2.0, 5.0),
    "satellite_angle": (-1.2, 1.2),
}
_STEEPNESS = 1.2  # of the curve from scores to what is drawn: two standard deviations lie at .08 and .92 of the range
_X, _Y = centres(0, SIDE), centres(0, SIDE)[::-1, None]

Weights = Mapping[tuple[str, str], float]


class LinearSprites(Procedural):
    """Sprites under a linear SCM; see `linear_sprites`.

    Attributes:
        weights: (cause, effect) -> weight, in scores.
    """

    weights: dict[tuple[str, str], float]
    _scales: dict[str, float]

    def scores(self, factors: Float[np.ndarray, "n 6"]) -> Float[np.ndarray, "n 6"]:
        """The unbounded scores u, in which the model is linear, of factors as they are drawn."""
        return np.stack([_unsquash(f, factors[:, j], self._scales[f]) for j, f in enumerate(self.factors)], axis=1)

    def total_effects(self) -> Float[np.ndarray, "6 6"]:
        """What one unit more of the score of factor i adds to that of factor j: `(I - W)^-1`, 1 on the diagonal.

        Example:
            >>> linear_sprites().total_effects()[1].round(2).tolist()  # of the size
            [0.0, 1.0, -0.6, 0.8, -0.3, -0.24]
        """
        return np.linalg.inv(np.eye(len(self.factors)) - _matrix(self.weights))


def linear_sprites(
    weights: Weights | None = None, noise: Mapping[str, float] | None = None, hidden: Iterable[str] = ()
) -> LinearSprites:
    """The linear sprites dataset: a disc (size, hue, height) and a white satellite (size, angle) before a grey backdrop.

    Each factor is a monotone curve of a score, and scores are linear in one another::

        u_j = sum_i W_ij u_i + s_j N(0, 1)
        factor_j = low_j + (high_j - low_j) sigmoid(1.2 u_j / sd(u_j))

    The default graph has a chain, a collider, a feed-forward triangle, effects that cancel in part (size acts on satellite_size by
    +.5 directly and by -.8 through others) and no automorphism, so a permutation test over its 720 labellings can reach p = .0014.

    Args:
        weights: (cause, effect) -> weight W_ij; None: the default graph.
        noise: factor -> standard deviation s_j of its own noise; None, or left out: the default.
        hidden: factors that act on others and are not drawn: hidden confounders. The image has their middle value.

    Raises:
        DataError: an unknown factor, a cycle, a weight or a standard deviation that is no positive finite number.

    Example:
        >>> data = linear_sprites()
        >>> batch = data.sample(4, seed=0)
        >>> u, moved = data.scores(batch.factors.numpy()), data.counterfactual(batch, size=7.5)  # a score of 0
        >>> effect = data.scores(moved.factors.numpy())[:, 3] - u[:, 3]
        >>> bool(np.allclose(effect, -0.8 * u[:, 1], atol=1e-4))
        True
    """
    weights = dict(WEIGHTS if weights is None else weights)
    spread = NOISE | dict(noise or {})
    _check(weights, spread)
    parents = {f: tuple(cause for cause, effect in weights if effect == f and weights[cause, effect]) for f in FACTORS}
    # a mechanism that is never called settles whether the parents form a cycle, before anything is inverted
    SCM({f: Mechanism(parents[f], lambda p, u: u, _normal) for f in FACTORS})
    through = np.linalg.inv(np.eye(len(FACTORS)) - _matrix(weights))
    sd = np.sqrt(np.square(np.array([spread[f] for f in FACTORS])[:, None] * through).sum(0))
    scales = dict(zip(FACTORS, sd.tolist(), strict=True))
    scm = SCM(
        {f: Mechanism(parents[f], *_mechanism(f, weights, spread[f], scales)) for f in FACTORS},
        dtype=np.float32,
    )
    unknown = [f for f in hidden if f not in FACTORS]
    if unknown:
        raise DataError(f"linear_sprites: hidden={unknown}; factors are {', '.join(FACTORS)}.")
    data = LinearSprites.drawn("linear_sprites", scm, LINEAR_SPRITES, {f: sum(_RANGES[f]) / 2 for f in hidden})
    data.weights, data._scales = weights, scales
    return data


def _check(weights: Weights, spread: Mapping[str, float]) -> None:
    unknown = sorted(
        {str(f) for pair in weights for f in pair if f not in FACTORS} | {f for f in spread if f not in FACTORS}
    )
    if unknown:
        raise DataError(f"linear_sprites: unknown factors {unknown}; they are {', '.join(FACTORS)}.")
    if not np.isfinite(list(weights.values())).all():
        raise DataError("linear_sprites: weights must be finite numbers.")
    if not all(np.isfinite(s) and s > 0 for s in spread.values()):
        raise DataError("linear_sprites: standard deviations of the noise must be positive finite numbers.")


def _matrix(weights: Weights) -> Float[np.ndarray, "6 6"]:
    matrix = np.zeros((len(FACTORS), len(FACTORS)))
    for (cause, effect), weight in weights.items():
        matrix[FACTORS.index(cause), FACTORS.index(effect)] = weight
    return matrix


def _mechanism(
    factor: str, weights: Weights, spread: float, scales: Mapping[str, float]
) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """The mechanism, its noise, and what tells the noise from values."""
    low, high = _RANGES[factor]

    def caused(parents: Mapping[str, np.ndarray]) -> np.ndarray | float:
        return sum(
            (weights[p, factor] * _unsquash(p, drawn_value, scales[p]) for p, drawn_value in parents.items()), 0.0
        )

    def value(parents: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return low + (high - low) / (1 + np.exp(-_STEEPNESS * (spread * noise + caused(parents)) / scales[factor]))

    def noise_of(parents: Mapping[str, np.ndarray], drawn_value: np.ndarray) -> np.ndarray:
        return (_unsquash(factor, drawn_value, scales[factor]) - caused(parents)) / spread

    return value, _normal, noise_of


def _unsquash(factor: str, value: np.ndarray, scale: float) -> np.ndarray:
    low, high = _RANGES[factor]
    share = ((np.asarray(value, np.float64) - low) / (high - low)).clip(1e-6, 1 - 1e-6)
    return np.log(share / (1 - share)) * scale / _STEEPNESS


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def render(factors: Float[np.ndarray, "n 6"]) -> UInt8[np.ndarray, "n 3 64 64"]:
    """Draw the sprites for each row of the six factors, anti-aliased. Disc and satellite never touch."""
    return drawn(factors, 3, _draw)


def _draw(image: np.ndarray, columns: Columns) -> None:
    backdrop, size, turn, height, satellite, angle = columns
    image[:] = backdrop[:, None]
    paint(image, inside(np.hypot(_X - np.float32(22), _Y - height) - size, 1), rgb(turn))
    x, y = 44 + 8 * np.sin(angle), 32 + 16 * np.sin(angle)
    paint(image, inside(np.hypot(_X - x, _Y - y) - satellite, 1), (1.0, 1.0, 1.0))


LINEAR_SPRITES = Renderer(_RANGES, (3, SIDE, SIDE), render, measures=moments.LINEAR_SPRITES)
