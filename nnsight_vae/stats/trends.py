"""How responses follow a dose: slopes, ranks, steps and shapes of curves. Arrays in, arrays out, no model in sight.

`responses` has shape [..., dose, world]: what was measured for each unit of the world at each dose, the doses rising. All of
these numbers are per unit of the world, so that intervals and tests over those (`statistics`, `significance`) apply to them.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Shaped

from nnsight_vae.stats import significance

LINEAR = 0.95  # share of a mean curve's variance over doses on a straight line, from which it is called linear


def polynomial(
    responses: Float[np.ndarray, "*cells dose world"], doses: Float[np.ndarray, " dose"], degree: int
) -> Float[np.ndarray, "*cells world"]:
    """The coefficient of dose^degree in the least-squares polynomial of that degree: 1 the slope, 2 the curvature.

    Args:
        responses: one curve per cell and unit of the world.
        doses: at least degree + 1 different numbers.
        degree: 1 or more.

    Source: least squares; for degree 2 the coefficient is that of the orthogonal quadratic contrast.

    Example:
        >>> dose = np.array([0.0, 1.0, 2.0])
        >>> curve = (3 * dose - dose**2)[:, None]
        >>> polynomial(curve, dose, 1).round(6), polynomial(curve, dose, 2).round(6)
        (array([1.]), array([-1.]))
    """
    # Centred and scaled, so that the powers are far from collinear; the leading coefficient is shifted by neither.
    width = np.ptp(doses)
    powers = np.vander((doses - doses.mean()) / width, degree + 1)
    weights = np.linalg.pinv(powers)[0] / width**degree
    return np.einsum("d,...dn->...n", weights, responses)


def monotonicity(
    responses: Float[np.ndarray, "*cells dose world"], tie: Float[np.ndarray, "*cells"] | float = 0.0
) -> Float[np.ndarray, "*cells world"]:
    """Kendall's tau-a of dose and response: the share of pairs of doses in order, minus the share out of order.

    +1: higher doses always have higher responses; -1: always lower; 0: a constant, or as often up as down.

    Args:
        responses: one curve per cell and unit of the world.
        tie: differences up to this are ties (neither in order nor out of order).

    Source: Kendall 1938, A new measure of rank correlation.

    Example:
        >>> monotonicity(np.array([[0.0], [2.0], [1.0]])).round(3)
        array([0.333])
    """
    slack = np.asarray(tie)[..., None]
    pairs = list(combinations(range(responses.shape[-2]), 2))
    total = np.zeros(responses.shape[:-2] + responses.shape[-1:])
    for low, high in pairs:
        rise = responses[..., high, :] - responses[..., low, :]
        total += np.where(np.abs(rise) > slack, np.sign(rise), 0.0)
    return total / len(pairs)


def linear_share(
    curve: Float[np.ndarray, "unit dose"], doses: Float[np.ndarray, " dose"]
) -> Float[np.ndarray, " unit"]:
    """The share of each curve's variance over doses that a straight line explains (R2); NaN for a constant.

    Example:
        >>> dose = np.array([0.0, 1.0, 2.0])
        >>> linear_share(np.stack([2 * dose, (dose - 1) ** 2]), dose).round(6)
        array([1., 0.])
    """
    centred = curve - curve.mean(axis=1, keepdims=True)
    line = (doses - doses.mean()) / np.linalg.norm(doses - doses.mean())
    total = np.square(centred).sum(axis=1)
    return np.divide(np.square(centred @ line), total, out=np.full(len(curve), np.nan), where=total > 0)


def flatness_pvalues(
    responses: Float[np.ndarray, "unit dose world"],
    groups: Shaped[np.ndarray, " world"] | None = None,
    *,
    min_effect: float = 0.0,
    n_perm: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, " unit"]:
    """For each unit, the p-value of "the mean response is the same at every dose", whatever the shape of the departure.

    With a `min_effect`, of "it is nowhere further than that from its mean over doses".

    Each response is taken relative to the mean over doses of its own unit of the world. Under the null hypothesis these curves
    are as likely as their mirror images; the largest of the doses' statistics is held against its distribution under sign flips
    of whole curves (`significance.joint_pvalues`), so a unit is one test however many doses there are.

    Args:
        responses: one curve per unit and unit of the world.
        groups: cluster id of each unit of the world.
        min_effect: the largest departure of the null hypothesis, in the units of the responses.
        n_perm: sign patterns drawn; all are enumerated when clusters are few.
        seed: of the drawing.

    Raises:
        DataError: fewer than two clusters.

    Example:
        >>> noise = np.random.default_rng(0).normal(0, 0.1, (2, 3, 12))
        >>> bump = np.array([0.0, 1.0, 0.0])[None, :, None] * np.array([1.0, 0.0])[:, None, None]
        >>> flatness_pvalues(noise + bump).round(3) < 0.05
        array([ True, False])
    """
    centred = responses - responses.mean(axis=1, keepdims=True)
    return significance.joint_pvalues(centred, groups, min_effect=min_effect, n_perm=n_perm, seed=seed)


def shape(rises: Bool[np.ndarray, " step"], falls: Bool[np.ndarray, " step"], linear: float) -> str:
    """What a curve that responds looks like, from the steps between neighbouring doses that were found to rise or to fall.

    Args:
        rises: steps found to rise.
        falls: steps found to fall.
        linear: `linear_share` of the mean curve.

    Returns: `"linear"`: one direction, and at least .95 of the curve's variance on a straight line; `"monotone"`: one direction;
        `"peak"`: rises, then falls; `"dip"`: falls, then rises; `"mixed"`: turns more than once; `"undetermined"`: no single
        step was found to rise or fall.

    Example:
        >>> up, down = np.array([True, True, False]), np.array([False, False, True])
        >>> shape(up, down, 0.1), shape(up, ~up & ~down, 0.8), shape(up & down, up & down, 0.99)
        ('peak', 'monotone', 'undetermined')
    """
    moves = np.flatnonzero(rises | falls)
    if not len(moves):
        return "undetermined"
    up = rises[moves]
    turns = int((up[1:] != up[:-1]).sum())
    if turns == 0:
        return "linear" if linear >= LINEAR else "monotone"
    if turns == 1:
        return "peak" if up[0] else "dip"
    return "mixed"
