"""Gradients averaged along a straight path, with few nodes and a known total: calibrated Gauss-Legendre quadrature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Rule = Sequence[tuple[float, float]]  # (position on the path from base to source, weight)

_MOST = 1.0  # root mean square by which calibration may change a pair's weights, relative to them


class PathGradients(NamedTuple):
    """Gradients averaged along the path from base to source.

    Attributes:
        means: for each target, one tensor per start, shaped like it.
        gap: what the uncalibrated quadrature is off by in each pair's total effect.
    """

    means: list[list[Tensor]]
    gap: Float[Tensor, "target pair"]


def gauss_legendre(nodes: int) -> Rule:
    """Positions and weights of Gauss-Legendre quadrature on [0, 1].

    Example:
        >>> gauss_legendre(1)
        [(0.5, 1.0)]
    """
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    return [(float(t), float(w)) for t, w in zip((positions + 1) / 2, weights / 2, strict=True)]


def path_gradients(
    starts: Sequence[Float[Tensor, "n ..."]],
    changes: Sequence[Float[Tensor, "n ..."]],
    through: Callable[[list[Tensor]], Float[Tensor, "m target"]],
    rule: Rule,
    total: Float[Tensor, "target n"] | None = None,
    at_once: int = 1,
) -> PathGradients:
    """sum_k w_k grad m(start + t_k change), pair by pair, with weights calibrated to the total where it is given.

    With a_k = <change, grad m at t_k>, the integral of a over [0, 1] is m(source) - m(base), which is known. The weights
    w_k (1 + lambda a_k) with lambda = (total - sum w a) / sum w a^2 are, of all that give the known total, those closest to
    w_k; where they would differ from w_k by more than 100 % (root mean square) they go only that far, and the rest of the
    error stays visible. On a trained network with oriented pairs this takes out most of the error of few nodes, edge by edge
    and not only in the sum; where large edges cancel to a small total (random weights, random pairs) it can add as much.

    Args:
        starts: base activations.
        changes: source minus base.
        through: m as a function of the activations, one column per target; it gets the pairs at one node after those at another.
        rule: nodes and weights.
        total: m(source) - m(base); None: no calibration.
        at_once: nodes that `through` gets together.

    Returns: averaged gradients and the error of the plain quadrature (0 where no total is given).

    Source: calibration of weights to a known total, Deville and Sarndal 1992, J. Am. Stat. Assoc. 87(418).

    Example:
        >>> cube = lambda points: points[0] ** 3
        >>> out = path_gradients([torch.zeros(1, 1)], [torch.ones(1, 1)], cube, gauss_legendre(1), torch.ones(1, 1))
        >>> out.means[0][0].item(), out.gap.item()  # the plain midpoint gives .75
        (1.0, -0.25)
    """
    means: list[list[Tensor]] = []
    tilted: list[list[Tensor]] = []  # sum_k w_k a_k grad_k
    first = second = torch.zeros(())  # sum_k w_k a_k and sum_k w_k a_k^2, [target, pair]
    for i in range(0, len(rule), at_once):
        positions, weights = starts[0].new_tensor(rule[i : i + at_once]).T
        with torch.enable_grad():
            points = [points_at(positions, a, d).requires_grad_() for a, d in zip(starts, changes, strict=True)]
            values = through(points)
        n_targets = values.shape[1]
        if not means:
            means, tilted = ([[torch.zeros_like(a) for a in starts] for _ in range(n_targets)] for _ in range(2))
            first, second = (values.new_zeros(n_targets, len(starts[0]), dtype=torch.float64) for _ in range(2))
        for t in range(n_targets):
            gradients = gradients_at(values[:, t], points, len(positions), last=t + 1 == n_targets)
            along = sum((_inner(g, d) for g, d in zip(gradients, changes, strict=True)), torch.zeros_like(first[t]))
            weighed = weights.double()[:, None] * along
            first[t] += weighed.sum(0)
            second[t] += (weighed * along).sum(0)
            for j, g in enumerate(gradients):
                means[t][j] += torch.tensordot(weights, g, 1)
                if total is not None:
                    tilted[t][j] += _scaled(g, weighed).sum(0)
    if total is None:
        return PathGradients(means, torch.zeros_like(first))
    gap = first - total
    size = second.sqrt()
    factor = torch.where(size > 0, -gap / second, 0.0)
    factor = torch.where(gap.abs() > _MOST * size, factor * _MOST * size / gap.abs(), factor)
    for t, parts in enumerate(means):
        for mean, tilt in zip(parts, tilted[t], strict=True):
            mean += _scaled(tilt, factor[t])
    return PathGradients(means, gap)


def points_at(
    positions: Float[Tensor, " k"], start: Float[Tensor, "n ..."], change: Float[Tensor, "n ..."]
) -> Float[Tensor, "k_n ..."]:
    """Points of the straight path, all pairs at one position after all at another."""
    return torch.cat([start + position * change for position in positions.tolist()]).detach()


def gradients_at(
    values: Float[Tensor, " k_n"], points: Sequence[Float[Tensor, "k_n ..."]], k: int, last: bool
) -> list[Float[Tensor, "k n ..."]]:
    """Gradient of each value in its own point; 0 where it does not depend on it. `last`: no more of this pass are asked for."""
    if not values.requires_grad:
        return [torch.zeros_like(point).unflatten(0, (k, -1)) for point in points]
    found = torch.autograd.grad(values.sum(), points, retain_graph=not last, allow_unused=True, materialize_grads=True)
    return [gradient.unflatten(0, (k, -1)) for gradient in found]


def _inner(gradient: Float[Tensor, "k n ..."], change: Float[Tensor, "n ..."]) -> Float[Tensor, "k n"]:
    return (gradient * change).flatten(2).sum(2, dtype=torch.float64)


def _scaled(tensor: Tensor, by: Tensor) -> Tensor:
    """Each example (the first axes, those of `by`) times a number of its own."""
    return tensor * by.to(tensor.dtype).view(*by.shape, *[1] * (tensor.ndim - by.ndim))
