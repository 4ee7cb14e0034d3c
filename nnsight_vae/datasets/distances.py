"""How far apart images are in a factor: amounts in standard deviations, kinds by whether they are the same."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from .matching import CONTRAST


def coordinates(values: Float[np.ndarray, " row"], discrete: bool) -> Float[np.ndarray, "row axis"]:
    """Where images stand in one factor: two random ones are sqrt 2 apart (root mean square), whatever its unit.

    An amount is one axis, in standard deviations. A kind is an axis for each, so that any two kinds are equally far apart. A factor
    of two values is the same by both. One that never varies holds all images at one place.

    Args:
        values: of the factor, one an image.
        discrete: these are kinds and not amounts.

    Example:
        >>> coordinates(np.array([0.0, 2.0]), discrete=False).ravel().tolist()
        [0.0, 2.0]
        >>> coordinates(np.array([0.0, 1.0, 2.0, 2.0]), discrete=True).round(2).tolist()
        [[1.26, 0.0, 0.0], [0.0, 1.26, 0.0], [0.0, 0.0, 1.26], [0.0, 0.0, 1.26]]
    """
    axes = (values[:, None] == np.unique(values)).astype(float) if discrete else values[:, None]
    spread = np.sqrt(axes.var(axis=0).sum())
    return axes / (spread if spread > 0 else 1.0)


def contrasts(values: Float[np.ndarray, " row"], discrete: bool) -> Float[np.ndarray, " row"]:
    """Numbers of which two differ by `CONTRAST` or more where a pair may be made: a standard deviation, or another kind.

    Example:
        >>> contrasts(np.array([0.0, 0.0, 0.0, 9.0, 10.0]), discrete=True).tolist()
        [0.0, 0.0, 0.0, 1.0, 2.0]
    """
    return np.unique(values, return_inverse=True)[1] * CONTRAST if discrete else coordinates(values, False)[:, 0]


def distance(
    base: Float[np.ndarray, " pair"],
    source: Float[np.ndarray, " pair"],
    among: Float[np.ndarray, " row"],
    discrete: bool,
) -> float:
    """Root mean square distance of pairs in one factor, as `coordinates` of all images have it; 0 where it never varies.

    Args:
        base: the factor of the one image of each pair.
        source: that of the other.
        among: the factor of all images.
        discrete: these are kinds and not amounts.

    Example:
        >>> low, high = np.zeros(2), np.array([0.0, 2.0])
        >>> distance(low, high, np.array([0.0, 2.0]), discrete=True), distance(low, high, np.array([0.0, 2.0]), discrete=False)
        (1.4142135623730951, 1.4142135623730951)
    """
    if not discrete:
        return float(np.sqrt(np.square(source - base).mean()) / (among.std() or 1.0))
    _, counts = np.unique(among, return_counts=True)
    diversity = 1 - np.square(counts / len(among)).sum()  # chance that two random images are of different kinds
    return float(np.sqrt(2 * (source != base).mean() / (diversity or 1.0)))
