"""Gradients averaged along a path: rules of quadrature, and calibration to a known total."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnsight_vae.circuits.wiring.quadrature import (
    PathAverage,
    PathGradients,
    Rule,
    add_along,
    gauss_legendre,
    gauss_lobatto,
)


def averaged(start: Tensor, change: Tensor, through, rule: Rule, total: Tensor, at_once: int = 1) -> PathGradients:
    average = PathAverage([change], total.shape[0])
    add_along(average, [start], through, rule, at_once)
    return average.calibrated(total)


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8])
def test_rules_are_exact_up_to_their_degree_and_no_further(nodes: int) -> None:
    for rule, degree in ((gauss_legendre(nodes), 2 * nodes - 1), (gauss_lobatto(nodes), 2 * nodes - 3)):
        assert len(rule) == nodes
        for power in range(degree + 2):
            integral = sum(w * t**power for t, w in rule)
            assert (abs(integral - 1 / (power + 1)) < 1e-12) == (power <= degree)


@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_lobatto_nodes_begin_and_end_the_path(nodes: int) -> None:
    positions = [t for t, _ in gauss_lobatto(nodes)]
    assert (positions[0], positions[-1]) == (0.0, 1.0)
    assert positions == sorted(positions)


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_calibration_is_exact_where_one_gate_opens_on_the_way(nodes: int) -> None:
    weight, start, change = torch.tensor([[1.0, -2.0]]), torch.tensor([[-0.3, 0.0]]), torch.tensor([[1.0, 0.1]])
    opens = 0.375  # -0.3 + 0.8 t = 0

    def gated(points: list[Tensor]) -> Tensor:
        return torch.relu((points[0] * weight).sum(1, keepdim=True))

    total = gated([start + change]).T
    rule = gauss_legendre(nodes)
    fitted = averaged(start, change, gated, rule, total)
    torch.testing.assert_close(fitted.means[0][0], weight * (1 - opens))
    plain = sum(w * weight * float(gated([start + t * change]) > 0) for t, w in rule)
    assert (plain - weight * (1 - opens)).abs().max() > 0.01
    assert float(fitted.gap) == pytest.approx(float((plain * change).sum() - total), abs=1e-6)


def test_calibration_at_most_doubles_weights_and_leaves_the_rest_visible() -> None:
    start, change = torch.zeros(2, 1), torch.ones(2, 1)
    total = torch.tensor([[1.0, 2e-3]])
    step = averaged(start, change, lambda p: 1e-3 * p[0], gauss_legendre(2), total)
    assert step.means[0][0].flatten().tolist() == pytest.approx([2e-3, 2e-3])
    assert step.gap.flatten().tolist() == pytest.approx([1e-3 - 1.0, -1e-3])


def test_nodes_taken_together_give_what_they_give_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    start, change = torch.randn(2, 3, 4, generator=generator)
    weight = torch.randn(4, 2, generator=generator)

    def through(points: list[Tensor]) -> Tensor:
        return torch.tanh(points[0] @ weight)

    total = (through([start + change]) - through([start])).T
    one, other = (averaged(start, change, through, gauss_legendre(5), total, at_once) for at_once in (1, 3))
    torch.testing.assert_close(one.gap, other.gap)
    for a, b in zip(one.means, other.means, strict=True):
        torch.testing.assert_close(a[0], b[0])


def test_what_does_not_depend_on_the_path_has_gradient_0() -> None:
    start, change = torch.zeros(2, 1), torch.ones(2, 1)
    constant = averaged(start, change, lambda p: torch.ones(len(p[0]), 1), gauss_legendre(2), torch.zeros(1, 2))
    assert not constant.means[0][0].any()
    assert not constant.gap.any()


def test_an_average_is_what_its_formula_says_for_changes_of_either_sign_and_any_memory_order() -> None:
    generator = torch.Generator().manual_seed(0)
    nodes, n, weights = 3, 4, (0.2, 0.5, 0.3)
    changes = [torch.randn(n, 2, 3, 3, generator=generator), torch.randn(n, 5, generator=generator)]
    gradients = [torch.randn(nodes, *change.shape, generator=generator) for change in changes]
    total = torch.randn(1, n, generator=generator)
    average = PathAverage([changes[0].to(memory_format=torch.channels_last), changes[1]], 1)
    average.add(weights[:2], 0, [gradient[:2] for gradient in gradients])
    average.add(weights[2:], 0, [gradient[2:] for gradient in gradients])
    means, gap = average.calibrated(total)
    w, known = torch.tensor(weights, dtype=torch.float64)[:, None], total[0].double()
    a = sum((g * d).double().flatten(2).sum(2) for g, d in zip(gradients, changes, strict=True))
    first, second = (w * a).sum(0), (w * a * a).sum(0)
    tilt = (known - first) / second
    most = second.rsqrt()  # so that weights change by no more than 100 % in the root mean square
    tilted = w * (1 + tilt.clamp(-most, most) * a)
    torch.testing.assert_close(gap[0], first - known)
    for mean, gradient in zip(means[0], gradients, strict=True):
        by = tilted.view(nodes, n, *[1] * (gradient.ndim - 2))
        torch.testing.assert_close(mean, (by * gradient).sum(0).float(), rtol=1e-5, atol=1e-5)
