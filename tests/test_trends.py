"""Slope, curvature, monotonicity and flatness of curves against numpy, scipy and literal twins."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from nnsight_vae.stats import significance, trends

UNEVEN = np.array([-2.0, -1.0, 0.5, 1.0, 4.0])


def curves(seed: int, shape=(3, 5, 8)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(st.integers(0, 10_000), st.sampled_from([1.0, 1e-3, 1e4]), st.sampled_from([0.0, 100.0]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_slope_and_curvature_are_the_leading_coefficients_of_polyfit(seed, width, offset):
    doses, values = UNEVEN * width + offset * width, curves(seed)
    for degree in (1, 2):
        found = trends.polynomial(values, doses, degree)
        for u, i in np.ndindex(3, 8):
            want = np.polyfit(UNEVEN, values[u, :, i], degree)[0] / width**degree
            assert found[u, i] == pytest.approx(want, rel=1e-7, abs=1e-9 / width**degree)


def test_monotonicity_is_kendalls_tau_without_ties_and_counts_ties_for_neither_side():
    values = curves(1)
    found = trends.monotonicity(values)
    for u, i in np.ndindex(3, 8):
        assert found[u, i] == pytest.approx(stats.kendalltau(range(5), values[u, :, i]).statistic)
    tied = np.round(curves(2))
    slack = np.array([0.0, 1.0, 2.0])
    found = trends.monotonicity(tied, slack)
    for u, i in np.ndindex(3, 8):
        score = 0
        for low, high in combinations(range(5), 2):
            rise = tied[u, high, i] - tied[u, low, i]
            score += int(rise > slack[u]) - int(rise < -slack[u])
        assert found[u, i] == pytest.approx(score / 10)
    assert (trends.monotonicity(np.ones((2, 4, 3))) == 0).all()


def test_the_linear_share_is_the_squared_correlation_and_undefined_for_a_constant():
    curve = curves(3).mean(axis=2)
    found = trends.linear_share(np.vstack([curve, np.ones(5)]), UNEVEN)
    np.testing.assert_allclose(found[:3], [stats.pearsonr(UNEVEN, each).statistic ** 2 for each in curve])
    assert np.isnan(found[3])


def test_the_flatness_test_equals_its_literal_twin_over_all_sign_patterns():
    values = curves(4, (2, 3, 7)) + 0.4 * np.arange(3)[:, None]
    found = trends.flatness_pvalues(values)
    for u in range(2):
        centred = values[u] - values[u].mean(axis=0)

        def largest(signs, centred=centred):
            return max(abs((row * signs).sum()) / np.sqrt((row**2).sum()) for row in centred)

        observed = largest(np.ones(7))
        count = [largest(np.array(signs)) >= observed - 1e-9 for signs in product([-1, 1], repeat=7)]
        assert found[u] == pytest.approx(np.mean(count))


@pytest.mark.parametrize("groups", [None, np.arange(24) // 2])
@pytest.mark.parametrize("least", [0.0, 0.2])
def test_one_pass_for_all_units_equals_one_family_wise_test_a_unit(groups, least, monkeypatch):
    values = curves(9, (7, 3, 24))
    monkeypatch.setattr(significance, "_JOINT", 2 * 3 * 256)  # two units at a time
    found = significance.joint_pvalues(values, groups, min_effect=least, n_perm=499, seed=2)
    options = {"min_effect": least, "n_perm": 499, "seed": 2}
    each = [significance.max_t_pvalues(unit, groups, **options).min() for unit in values]
    np.testing.assert_allclose(found, each)
    assert significance.joint_pvalues(values[:0]).shape == (0,)


def test_a_constant_response_has_p_1_and_clusters_are_flipped_whole():
    values = np.concatenate([np.zeros((1, 3, 12)), curves(5, (1, 3, 12)) + np.arange(3)[:, None]])
    assert trends.flatness_pvalues(values)[0] == 1
    free, clustered = trends.flatness_pvalues(values)[1], trends.flatness_pvalues(values, np.arange(12) // 3)[1]
    assert free < 0.01
    assert clustered >= 1 / 8  # four clusters cannot say more


def test_the_flatness_test_keeps_its_level_where_nothing_responds():
    """600 units of pure noise, tested at 10 % and at 1 %, 4 standard errors allowed."""
    p = trends.flatness_pvalues(curves(6, (600, 5, 20)), n_perm=999)
    for level in (0.1, 0.01):
        assert (p <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 600)
    assert (p <= 0.1).mean() > 0.05  # and is not idle


SHAPES = [
    ("up up up", 0.99, "linear"),
    ("down down down", 0.951, "linear"),
    ("up . .", 0.7, "monotone"),
    (". down .", 0.949, "monotone"),
    ("up . down", 0.0, "peak"),
    ("down up .", 0.99, "dip"),
    ("up down up", 0.5, "mixed"),
    (". . .", 0.99, "undetermined"),
]


@pytest.mark.parametrize(("steps", "linear", "expected"), SHAPES)
def test_shapes_follow_from_the_steps_that_were_found(steps, linear, expected):
    words = np.array(steps.split())
    assert trends.shape(words == "up", words == "down", linear) == expected
