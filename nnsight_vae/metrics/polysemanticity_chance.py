"""What chance makes of a unit: whether a random direction of its layer would move as much, or be as much of one factor."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from nnsight_vae.metrics.polysemanticity_rules import Chance

_DRAWS = 99_999  # of random directions' effects: the least p-value is 1e-5


def chance_pvalues(
    size: Float[np.ndarray, "unit factor"], random: Float[np.ndarray, "unit factor factor"], n_random: int
) -> Chance:
    """p-values of "a random direction of the layer does as much", for units of a layer that acts about linearly.

    The effects e of random directions of a wide layer are then Gaussian with second moments `random`. A size has p-value
    P(F(1, n_random) >= size^2 / E e_f^2); a unit, the chance that among e the second largest |e_f| is as small a part of the largest
    as it is in the unit. In a narrow layer, or where effects change sign between examples, both are too large, not too small.

    With one factor, being of it alone is no achievement, and the first takes the place of the second.

    Args:
        size: mean absolute effects.
        random: second moments of the effects of random directions as long as the unit's step.
        n_random: number of directions that they are over.

    Example:
        >>> chance = chance_pvalues(np.array([[2.0, 0.0], [2.0, 1.0]]), np.tile(np.eye(2), (2, 1, 1)), 64)
        >>> chance.standing.round(3).tolist(), chance.selective.round(2).tolist()
        ([[0.05, 1.0], [0.05, 0.321]], [0.0, 0.59])
    """
    standing = standing_pvalues(size, np.diagonal(random, axis1=1, axis2=2), n_random)
    if size.shape[1] == 1:
        return Chance(standing, standing[:, 0])
    scale = np.trace(random, axis1=1, axis2=2)[:, None, None]
    shapes = np.divide(random, scale, out=np.zeros_like(random), where=scale > 0).round(9)  # units of a layer share one
    distinct, which = np.unique(shapes, axis=0, return_inverse=True)
    normal = np.random.default_rng(0).standard_normal((_DRAWS, size.shape[1]))
    unit, p = _second_to_first(size), np.empty(len(size))
    for i, shape in enumerate(distinct):
        values, vectors = np.linalg.eigh(shape)
        by_chance = np.sort(_second_to_first(np.abs(normal * np.sqrt(values.clip(0)) @ vectors.T)))
        of_shape = which.ravel() == i
        p[of_shape] = (1 + np.searchsorted(by_chance, unit[of_shape], side="right")) / (1 + _DRAWS)
    return Chance(standing, p)


def standing_pvalues(
    size: Float[np.ndarray, "unit factor"], square: Float[np.ndarray, "unit factor"], n_random: int
) -> Float[np.ndarray, "unit factor"]:
    """Upper tail of F(1, n_random) at size^2 / `square`, the mean square effect of random directions.

    Example:
        >>> standing_pvalues(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]), 64).round(3)
        array([[0.05, 1.  ]])
    """
    from scipy.special import fdtrc

    ratio = np.divide(size**2, square, out=np.where(size > 0, np.inf, 0.0), where=square > 0)
    return fdtrc(1, n_random, ratio)


def _second_to_first(sizes: Float[np.ndarray, "row factor"]) -> Float[np.ndarray, " row"]:
    """How large the second largest is beside the largest; 1 where all are 0."""
    second, first = np.sort(sizes, axis=1)[:, -2:].T
    return np.divide(second, first, out=np.ones_like(first), where=first > 0)
