"""Tests of many effects: what a p-value is for, and the errors they promise, by simulation.

Tolerances of simulated rates are three binomial standard errors.
"""

import warnings

import numpy as np
import pytest
import scipy.stats
from designs import crossed, grid
from hypothesis import given, settings, strategies as st

from nnsight_vae.errors import DataError, NnsightVaeWarning
from nnsight_vae.stats import discovery, significance
from nnsight_vae.stats.standard_errors import t_pvalues

RATE = 0.05


def at_most(rate, measured, n):
    """measured <= rate, but for three standard errors of a share measured in n simulations."""
    return measured <= rate + 3 * np.sqrt(rate * (1 - rate) / n)


def patched_effects(n_units, n_pairs, rng):
    """Effects as patching gives them: correlated between units through what a pair shows, skewed, often exactly 0.

    The change of a random ReLU layer between two inputs, times each unit's weight on the readout.
    """
    layer = rng.normal(size=(n_units, 6))
    shown = rng.normal(size=(6, n_pairs))
    changed = shown + np.outer(rng.normal(size=6), rng.exponential(size=n_pairs))
    before, after = (np.maximum(layer @ inputs - 0.5, 0.0) for inputs in (shown, changed))
    return rng.normal(size=(n_units, 1)) * (after - before)


# ---------------------------------------------------------------- the hypothesis |mean| <= min_effect


def test_a_minimum_effect_is_tested_by_moving_every_pair_towards_zero_by_it():
    values = np.random.default_rng(0).normal([[1.0], [-1.0]], 1.0, (2, 40))
    groups = np.arange(40) // 2
    p = discovery.effect_pvalues(values, groups, min_effect=0.4, n_perm=500)
    np.testing.assert_array_equal(p, significance.sign_flip_pvalues(values - [[0.4], [-0.4]], groups, n_perm=500))
    adjusted = discovery.effect_pvalues(values, groups, min_effect=0.4, n_perm=500, family_wise=True)
    np.testing.assert_array_equal(adjusted, significance.max_t_pvalues(values - [[0.4], [-0.4]], groups, n_perm=500))
    theirs = [scipy.stats.ttest_1samp(row, end).pvalue for row, end in zip(values, (0.4, -0.4), strict=True)]
    np.testing.assert_allclose(t_pvalues(values, min_effect=0.4), theirs)


def test_unequal_clusters_are_moved_by_the_minimum_effect_of_each_of_their_pairs():
    groups = np.repeat(np.arange(12), np.resize([1, 2, 5], 12))
    values = np.random.default_rng(1).normal(1.0, 1.0, (3, groups.size))
    for test in (significance.sign_flip_pvalues, significance.max_t_pvalues):
        np.testing.assert_array_equal(test(values, groups, min_effect=0.3), test(values - 0.3, groups))


@pytest.mark.parametrize("family_wise", [False, True])
@pytest.mark.parametrize("ids", [(None, None), grid(6, 5)])
def test_a_mean_within_the_minimum_effect_has_p_one(ids, family_wise):
    values = np.array([[0.3] * 30, [-0.5] * 30, [0.0] * 30]) + 1e-3 * np.tile([1.0, -1.0], 15)
    p = discovery.effect_pvalues(values, *ids, min_effect=0.4, family_wise=family_wise)
    assert p[0] == p[2] == 1
    assert p[1] < 0.01


def test_effects_within_the_minimum_effect_keep_their_place_in_the_maximum():
    """The family is what was tested; leaving out what looks small would choose it by the data."""
    values = np.random.default_rng(27).normal(size=(30, 40))
    values -= values.mean(axis=1, keepdims=True)
    values[0] += 0.7
    alone, among = (significance.max_t_pvalues(each, min_effect=0.2)[0] for each in (values[:1], values))
    assert alone < 0.01
    assert among > 5 * alone


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_p_grows_with_the_minimum_effect(seed, both_ways, one, other):
    ids = grid(5, 4) if both_ways else (None, None)
    values = np.random.default_rng(seed).normal(0.4, 1.0, (5, 20))
    low, high = (
        discovery.effect_pvalues(values, *ids, min_effect=each, n_perm=300) for each in sorted((one, one + other))
    )
    assert (low <= high).all()


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.sampled_from([-1.0, 1e-9, 0.3, 1e9]))
def test_p_does_not_depend_on_units_of_measurement_nor_on_the_order_of_cells_and_pairs(
    seed, both_ways, family_wise, scale
):
    rng = np.random.default_rng(seed)
    ids = grid(5, 4) if both_ways else (np.repeat(np.arange(10), 2), None)
    values = rng.normal(0.4, 1.0, (5, 20))
    options = {"n_perm": 2000, "family_wise": family_wise}  # 2^9 patterns of the ten clusters: all of them
    p = discovery.effect_pvalues(values, *ids, min_effect=0.1, **options)
    cells, pairs = rng.permutation(5), rng.permutation(20)
    moved_ids = (each if each is None else each[pairs] for each in ids)
    moved = discovery.effect_pvalues(
        scale * values[cells][:, pairs], *moved_ids, min_effect=0.1 * abs(scale), **options
    )
    np.testing.assert_allclose(moved, p[cells], rtol=1e-6)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_an_impossible_minimum_effect_is_refused(bad):
    with pytest.raises(DataError, match="expected a size >= 0"):
        discovery.effect_pvalues(np.ones((2, 5)), min_effect=bad)


# ---------------------------------------------------------------- error rates of one test


@pytest.mark.parametrize("size", [(5, 5), (12, 12), (10, 40)])
@pytest.mark.parametrize("who", [(1, 1, 1), (1, 0, 1), (0, 1, 1), (0, 0, 1)])
def test_error_of_the_test_of_crossed_pairs_is_at_most_the_nominal_one(size, who):
    n = 4000
    p = discovery.effect_pvalues(crossed(n, *size, *who, rng=np.random.default_rng(2)), *grid(*size))
    for rate in (0.01, RATE):
        assert at_most(rate, (p <= rate).mean(), n)
    if who[0] and who[1]:
        assert (p <= RATE).mean() > 0.02  # not by never rejecting


def test_flips_of_bases_alone_reject_crossed_pairs_far_too_often():
    values = crossed(500, 12, 12, rng=np.random.default_rng(3))
    p = discovery.effect_pvalues(values, grid(12, 12)[0], n_perm=500)
    assert (p <= RATE).mean() > 0.1


@pytest.mark.parametrize("ids", [(np.repeat(np.arange(20), 2), None), grid(10, 10)])
def test_error_at_the_minimum_effect_is_at_most_the_nominal_one(ids):
    n = 2000
    rng = np.random.default_rng(4)
    n_pairs = len(ids[0])
    values = 1.0 + rng.normal(size=(n, 40))[:, np.unique(ids[0], return_inverse=True)[1]]
    values += rng.normal(size=(n, n_pairs))
    if ids[1] is not None:
        values += rng.normal(size=(n, 10))[:, ids[1]]
    rejected = (discovery.effect_pvalues(values, *ids, min_effect=1.0, n_perm=999) <= RATE).mean()
    assert at_most(RATE / 2, rejected, n)  # the mean exceeds its own value on one side only
    assert (discovery.effect_pvalues(values, *ids, n_perm=999) <= RATE).mean() > 2 * RATE  # and it does differ from 0


def test_power_is_that_of_the_t_test():
    """Sixteen clusters, a mean of one standard deviation: a one-sample t-test finds it with probability .962."""
    n = 1000
    exact = 1 - scipy.stats.nct.cdf(scipy.stats.t.ppf(0.975, 15), 15, 4.0)
    assert exact == pytest.approx(0.962, abs=0.001)
    values = np.random.default_rng(5).normal(1.0, 1.0, (n, 16))
    found = (discovery.effect_pvalues(values, n_perm=1999) <= RATE).mean()
    assert found == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / n))
    both_ways = crossed(n, 16, 16, base=1.0, source=0.0, rest=0.1, rng=np.random.default_rng(6)) + 1.0
    assert (discovery.effect_pvalues(both_ways, *grid(16, 16)) <= RATE).mean() > 0.9


# ---------------------------------------------------------------- error rates of many tests


def test_adjusted_values_equal_the_step_up_and_step_down_procedures_taken_literally():
    p = np.random.default_rng(7).uniform(size=(5, 8)) ** 4
    ordered, m = np.sort(p.ravel()), p.size
    harmonic = sum(1 / i for i in range(1, m + 1))
    for rate in (0.01, 0.05, 0.2):
        below = np.nonzero(ordered <= rate / harmonic * np.arange(1, m + 1) / m)[0]
        literal = p <= ordered[below[-1]] if below.size else np.zeros_like(p, dtype=bool)
        np.testing.assert_array_equal(significance.benjamini_yekutieli(p) <= rate, literal)
        kept = next((i for i in range(m) if ordered[i] > rate / (m - i)), m)  # Holm stops at the first that fails
        np.testing.assert_array_equal(significance.holm(p) <= rate, p < ordered[kept] if kept < m else True)
    np.testing.assert_allclose(significance.holm(np.array([0.022, 0.02, 0.021])), 0.06)  # never below a smaller p's
    assert significance.holm(np.zeros((0, 3))).shape == (0, 3)
    assert significance.benjamini_yekutieli(np.zeros((0, 3))).shape == (0, 3)


N_UNITS, REPEATS = 80, 120


def false_shares(method, ids, signs, shift, q, min_effect=0.0):
    """Shares of false and of found effects when the signs of `patched_effects` are flipped at random by whole images."""
    rng = np.random.default_rng(8)
    true = np.arange(N_UNITS) < 20
    false, found = [], []
    for seed in range(REPEATS):
        values = signs(patched_effects(N_UNITS, len(ids[0]), rng), rng)
        values /= values.std(axis=1, keepdims=True).clip(1e-9)
        values[true] += shift
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NnsightVaeWarning)  # "by" is coarse with this few flips
            test = discovery.discover(values[:, None], *ids, q=q, method=method, seed=seed, min_effect=min_effect)
        passed = test.passed[:, 0]
        false.append((passed & ~true).sum() / max(passed.sum(), 1))
        found.append(passed[true].mean())
    return np.array(false), np.mean(found)


CLUSTERED = (np.repeat(np.arange(30), 2), None)


def flip_bases(values, rng):
    return values * rng.choice([-1.0, 1.0], 30)[CLUSTERED[0]]


def flip_both(values, rng):
    """Every pair flipped by itself, plus the same of what its base and its source add, so that three signs are at work."""
    groups, source_groups = grid(12, 12)
    base, source = patched_effects(N_UNITS, 12, rng), patched_effects(N_UNITS, 12, rng)
    signs = [rng.choice([-1.0, 1.0], n) for n in (values.shape[1], 12, 12)]
    return values * signs[0] + (base * signs[1])[:, groups] + (source * signs[2])[:, source_groups]


@pytest.mark.parametrize("method", ["bh", "by"])
def test_false_discoveries_among_correlated_effects_of_flipped_pairs_stay_below_the_nominal_rate(method):
    q = 0.1
    false, found = false_shares(method, CLUSTERED, flip_bases, 1.5, q)
    assert false.mean() <= q * 60 / 80 + 3 * false.std() / np.sqrt(REPEATS)
    assert found > 0.9


@pytest.mark.parametrize("method", ["bh", "by"])
def test_where_nothing_is_true_any_discovery_at_all_is_as_rare_as_the_rate(method):
    false, _ = false_shares(method, CLUSTERED, flip_bases, 0.0, 0.1)
    assert at_most(0.1, (false > 0).mean(), REPEATS)


def test_false_discoveries_of_crossed_pairs_stay_below_the_nominal_rate():
    q = 0.1
    false, found = false_shares("bh", grid(12, 12), flip_both, 2.0, q)
    assert false.mean() <= q * 60 / 80 + 3 * false.std() / np.sqrt(REPEATS)
    assert found > 0.9


def test_false_discoveries_of_effects_that_are_there_but_too_small_stay_below_the_nominal_rate():
    """All effects differ from 0; the false ones are those of exactly the minimum size."""
    q = 0.1
    rng = np.random.default_rng(9)
    false = []
    for seed in range(REPEATS):
        values = 0.5 + flip_bases(patched_effects(N_UNITS, 60, rng), rng)
        false.append(discovery.discover(values[:, None], *CLUSTERED, q=q, min_effect=0.5, seed=seed).passed.any())
    assert at_most(q, np.mean(false), REPEATS)


@pytest.mark.parametrize("min_effect", [0.0, 0.3])
@pytest.mark.parametrize("both_ways", [False, True])
def test_family_wise_error_among_correlated_effects_is_at_most_the_nominal_one(both_ways, min_effect):
    rng, n = np.random.default_rng(10), 250
    ids = grid(8, 8) if both_ways else (np.repeat(np.arange(20), 2), None)
    rejected = 0
    for seed in range(n):
        values = crossed(1, 8, 8, rng=rng) if both_ways else rng.normal(size=20)[ids[0]]
        values = min_effect + values + rng.normal(size=(30, len(ids[0])))
        p = discovery.effect_pvalues(values, *ids, min_effect=min_effect, n_perm=199, seed=seed, family_wise=True)
        rejected += bool((p <= RATE).any())
    assert at_most(RATE, rejected / n, n)


# ---------------------------------------------------------------- refusals and warnings


def test_an_unknown_method_is_refused():
    with pytest.raises(DataError, match="method='bonferroni': expected 'bh'"):
        discovery.discover(np.ones((2, 1, 5)), method="bonferroni")


def test_by_needs_more_flips_than_bh_and_says_how_many():
    values = np.random.default_rng(11).normal(0, 1, (60, 1, 40))
    values[0] += 5.0
    assert discovery.discover(values, n_perm=1499).passed[0, 0]
    with pytest.warns(NnsightVaeWarning, match="n_perm >= 5615"):  # 60 (1 + 1/2 + ... + 1/60) / .05 - 1
        assert not discovery.discover(values, method="by", n_perm=1499).passed.any()
    assert discovery.discover(values, method="by").passed[0, 0]  # by default enough are drawn


def test_the_test_of_crossed_pairs_is_never_too_coarse():
    values = np.random.default_rng(12).normal(0, 1, (60, 1, 64))
    values[0] += 5.0
    assert discovery.discover(values, *grid(8, 8), n_perm=9).passed[0, 0]
