"""Gradients averaged along a straight path, with few nodes and a known total: calibrated Gauss-Lobatto quadrature."""

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
    """Positions and weights of Gauss-Legendre quadrature on [0, 1]: exact for polynomials of degree 2 nodes - 1.

    Example:
        >>> gauss_legendre(1)
        [(0.5, 1.0)]
    """
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    return [(float(t), float(w)) for t, w in zip((positions + 1) / 2, weights / 2, strict=True)]


def gauss_lobatto(nodes: int) -> Rule:
    """Of the rules that have both ends of [0, 1] among two or more nodes, the best: exact up to degree 2 nodes - 3.

    Source: Abramowitz and Stegun 1964, 25.4.32.

    Example:
        >>> [(round(t, 3), round(w, 3)) for t, w in gauss_lobatto(3)]  # Simpson's rule
        [(0.0, 0.167), (0.5, 0.667), (1.0, 0.167)]
    """
    last = np.polynomial.Legendre.basis(nodes - 1)
    inner: np.ndarray = last.deriv().roots() if nodes > 2 else np.empty(0)
    positions = np.array([-1.0, *inner, 1.0])
    weights = 2 / (nodes * (nodes - 1) * last(positions) ** 2)
    return [(float(t), float(w)) for t, w in zip((positions + 1) / 2, weights / 2, strict=True)]


class PathAverage:
    """sum_k w_k grad m(start + t_k change), pair by pair, with weights calibrated to the known total.

    With a_k = <change, grad m at t_k>, the integral of a over [0, 1] is m(source) - m(base), which is known. The weights
    w_k (1 + lambda a_k) with lambda = (total - sum w a) / sum w a^2 are, of all that give the known total, those closest to
    w_k; where they would differ from w_k by more than 100 % (root mean square) they go only that far, and the rest of the
    error stays visible. On a trained network with oriented pairs this takes out most of the error of few nodes, edge by edge
    and not only in the sum; where large edges cancel to a small total (random weights, random pairs) it can add as much.

    Args:
        changes: source minus base, one tensor for each of the path's starts.
        n_targets: how many numbers m is.

    Source: calibration of weights to a known total, Deville and Sarndal 1992, J. Am. Stat. Assoc. 87(418).

    Example:
        >>> change = torch.ones(1, 1)
        >>> average = PathAverage([change], 1)
        >>> for position, weight in gauss_legendre(1):
        ...     average.add([weight], 0, [3 * torch.full((1, 1, 1), position) ** 2])  # of m = x^3, from 0 to 1
        >>> means, gap = average.calibrated(torch.ones(1, 1))
        >>> means[0][0].item(), gap.item()  # the plain midpoint gives .75
        (1.0, -0.25)
    """

    def __init__(self, changes: Sequence[Float[Tensor, "n ..."]], n_targets: int) -> None:
        self.changes = changes
        self._means, self._tilted = (
            [[torch.zeros_like(d) for d in changes] for _ in range(n_targets)] for _ in range(2)
        )
        # sum_k w_k a_k and sum_k w_k a_k^2
        self._first, self._second = (
            changes[0].new_zeros(n_targets, len(changes[0]), dtype=torch.float64) for _ in range(2)
        )

    def add(self, weights: Sequence[float], target: int, gradients: Sequence[Float[Tensor, "k n ..."]]) -> None:
        """Take in a target's gradients in every start, at some nodes with their weights."""
        w = self.changes[0].new_tensor(weights, dtype=torch.float64)
        along = sum(
            (_inner(g, d) for g, d in zip(gradients, self.changes, strict=True)), torch.zeros((), device=w.device)
        )
        weighed = w[:, None] * along
        self._first[target] += weighed.sum(0)
        self._second[target] += (weighed * along).sum(0)
        for mean, tilted, by_node in zip(self._means[target], self._tilted[target], gradients, strict=True):
            for weight, by, gradient in zip(weights, weighed, by_node, strict=True):
                mean.add_(gradient, alpha=weight)
                tilted.addcmul_(gradient, _by_example(by, gradient))

    @property
    def plain(self) -> list[list[Tensor]]:
        """For each target, one tensor per start: the averages with the weights as given."""
        return self._means

    def calibrated(self, total: Float[Tensor, "target n"]) -> PathGradients:
        """The averages, and the error that plain quadrature would make in the total m(source) - m(base)."""
        gap = self._first - total
        size = self._second.sqrt()
        factor = torch.where(size > 0, -gap / self._second, 0.0)
        factor = torch.where(gap.abs() > _MOST * size, factor * _MOST * size / gap.abs(), factor)
        for means, tilted, by in zip(self._means, self._tilted, factor, strict=True):
            for mean, tilt in zip(means, tilted, strict=True):
                mean.addcmul_(tilt, _by_example(by, tilt))
        return PathGradients(self._means, gap)


def add_along(
    average: PathAverage,
    starts: Sequence[Float[Tensor, "n ..."]],
    through: Callable[[list[Tensor]], Float[Tensor, "m target"]],
    rule: Rule,
    at_once: int = 1,
) -> None:
    """Take the gradients of a function at nodes of the path into an average.

    Args:
        average: of the same path.
        starts: base activations.
        through: m as a function of the activations, one column per target; it gets the pairs at one node after those at another.
        rule: nodes and weights.
        at_once: nodes that `through` gets together.
    """
    for i in range(0, len(rule), at_once):
        positions, weights = zip(*rule[i : i + at_once], strict=True)
        with torch.enable_grad():
            points = [points_at(positions, a, d).requires_grad_() for a, d in zip(starts, average.changes, strict=True)]
            values = through(points)
        for t in range(values.shape[1]):
            average.add(weights, t, gradients_at(values, t, points, len(starts[0])))


def points_at(
    positions: Sequence[float], start: Float[Tensor, "n ..."], change: Float[Tensor, "n ..."]
) -> Float[Tensor, "k_n ..."]:
    """Points of the straight path, all pairs at one position after all at another."""
    return torch.cat([start + position * change for position in positions]).detach()


def gradients_at(
    values: Float[Tensor, "k_n target"], target: int, points: Sequence[Float[Tensor, "k_n ..."]], n: int
) -> list[Float[Tensor, "k n ..."]]:
    """Gradient of a target in each point, 0 where it does not depend on it. After the last target what was run is let go."""
    if not values.requires_grad:
        return [torch.zeros_like(point).unflatten(0, (-1, n)) for point in points]
    with torch.enable_grad():  # for callers who have switched gradients off
        total = values[:, target].sum()
    more = target + 1 < values.shape[1]
    found = torch.autograd.grad(total, points, retain_graph=more, allow_unused=True, materialize_grads=True)
    return [gradient.unflatten(0, (-1, n)) for gradient in found]


def _inner(gradient: Float[Tensor, "k n ..."], change: Float[Tensor, "n ..."]) -> Float[Tensor, "k n"]:
    product = gradient * change
    # axis by axis: flattened, what lies with its channels last would be copied
    return product.sum(tuple(range(2, product.ndim)), dtype=torch.float64) if product.ndim > 2 else product.double()


def _by_example(numbers: Float[Tensor, " n"], like: Float[Tensor, "n ..."]) -> Tensor:
    """A number for each example, shaped to multiply them."""
    return numbers.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
