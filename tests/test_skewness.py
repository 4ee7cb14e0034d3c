"""Intervals and tests of means whose numbers are skewed: they keep their coverage where Student's t loses it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from nnsight_vae.stats.skewness import mean_interval, one_sided_pvalues, simultaneous_interval

LAWS = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "|normal|": (lambda rng, shape: np.abs(rng.normal(size=shape)), np.sqrt(2 / np.pi)),
    "exponential": (lambda rng, shape: rng.exponential(1.0, shape), 1.0),
}


def covered(draw, truth, interval, n: int) -> float:
    values = draw(np.random.default_rng(0), (600, 12, n))
    low, high = np.array([interval(each) for each in values]).swapaxes(0, 1)
    return float(((low <= truth) & (truth <= high)).all(axis=1).mean())


@pytest.mark.parametrize("law", LAWS)
def test_simultaneous_intervals_hold_all_at_once_within_sampling_error(law):
    """600 repetitions of a chance of .90: three standard errors are .037."""
    for n in (60, 200):
        assert 0.863 < covered(*LAWS[law], lambda values: simultaneous_interval(values, 0.9), n) < 0.96


def test_students_interval_of_the_same_numbers_does_not():
    def student(values):
        reach = stats.t.ppf(1 - 0.1 / 24, values.shape[-1] - 1) * stats.sem(values, axis=-1)
        return values.mean(-1) - reach, values.mean(-1) + reach

    assert covered(*LAWS["exponential"], student, 60) < 0.84


def test_without_skewness_it_is_students():
    half = np.random.default_rng(0).normal(size=(3, 20))
    values = np.concatenate([half, -half], axis=1) + 5
    low, high = mean_interval(values, 0.9)
    want = stats.t.interval(0.9, 39, values.mean(-1), stats.sem(values, axis=-1))
    np.testing.assert_allclose((low, high), want)
    above, below = one_sided_pvalues(values, 4.7)
    for p, side in ((above, "greater"), (below, "less")):
        np.testing.assert_allclose(p, stats.ttest_1samp(values, 4.7, axis=-1, alternative=side).pvalue)


def test_halls_transformation_written_out():
    values = np.array([0.0, 0.1, 0.4, 2.0, 5.0, 0.2])
    n, mu = len(values), 0.5
    t = np.sqrt(n) * (values.mean() - mu) / values.std(ddof=1)
    c = stats.skew(values) / np.sqrt(n)
    g = t + c * t**2 / 3 + c**2 * t**3 / 27 + c / 6
    assert one_sided_pvalues(values, mu)[0] == pytest.approx(stats.t.sf(g, n - 1))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 0.999), st.floats(0.2, 3))
def test_the_interval_holds_what_the_tests_do_not_reject(seed, level, shape):
    values = np.random.default_rng(seed).gamma(shape, 1.0, 30)
    low, high = mean_interval(values, level)
    tail = (1 - level) / 2
    assert one_sided_pvalues(values, float(low))[0] == pytest.approx(tail, rel=1e-6)
    assert one_sided_pvalues(values, float(high))[1] == pytest.approx(tail, rel=1e-6)
    assert low < values.mean() < high


def test_bonferroni_is_over_all_cells():
    values = np.random.default_rng(0).exponential(1.0, (2, 3, 40))
    np.testing.assert_allclose(simultaneous_interval(values, 0.9), mean_interval(values, 1 - 0.1 / 6))


def test_a_cell_without_spread_is_known():
    values = np.array([[0.1] * 30, [0.0] * 30, [0.1] * 30])
    assert values[2].mean() > 0.1  # by rounding
    assert np.array(mean_interval(values, 0.95)).tolist() == [[pytest.approx(0.1), 0.0, pytest.approx(0.1)]] * 2
    above, below = one_sided_pvalues(values, np.array([0.05, 0.0, 0.1]))
    assert above.tolist() == [0.0, 1.0, 1.0]
    assert below.tolist() == [1.0, 1.0, 1.0]  # exactly at the threshold it is neither above nor below
