"""Intervals and tests: closed forms, literal twins, and what they promise, by simulation."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from nnsight_vae.errors import DataError
from nnsight_vae.stats import clusters, intervals, significance


def clustered(n_cells, n_clusters, per_cluster, between=1.0, within=0.3, *, rng):
    """Null data whose pairs share a cluster effect."""
    shared = rng.normal(0, between, (n_cells, n_clusters, 1))
    values = shared + rng.normal(0, within, (n_cells, n_clusters, per_cluster))
    return values.reshape(n_cells, -1), np.repeat(np.arange(n_clusters), per_cluster)


def covers_zero(low, high):
    return ((low <= 0) & (high >= 0)).mean()


# ---------------------------------------------------------------- bootstrap


def test_interval_covers_a_gaussian_mean_as_often_as_it_says():
    values = np.random.default_rng(1).normal(size=(3000, 100))
    assert 0.93 <= covers_zero(*intervals.bootstrap_interval(values, n_boot=1000)) <= 0.97
    assert 0.77 <= covers_zero(*intervals.bootstrap_interval(values, n_boot=1000, level=0.8)) <= 0.83


@pytest.mark.parametrize(("n", "stated"), [(5, 0.84), (10, 0.90), (20, 0.92), (40, 0.935)])
def test_coverage_with_few_clusters_is_what_the_docstring_states(n, stated):
    values = np.random.default_rng(2).normal(size=(4000, n))
    assert covers_zero(*intervals.bootstrap_interval(values, n_boot=1000)) == pytest.approx(stated, abs=0.015)


def test_pairs_that_share_a_base_image_need_the_clustered_interval():
    values, groups = clustered(1500, 60, 5, rng=np.random.default_rng(3))
    assert covers_zero(*intervals.bootstrap_interval(values, n_boot=500)) < 0.75
    assert 0.92 <= covers_zero(*intervals.bootstrap_interval(values, groups, n_boot=500)) <= 0.97


def test_interval_equals_scipys_percentile_bootstrap_within_monte_carlo_error():
    values = np.random.default_rng(4).gamma(2.0, size=(3, 80))
    low, high = intervals.bootstrap_interval(values, n_boot=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, axis=1, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    )
    error = 0.06 * theirs.standard_error  # about 3 Monte-Carlo standard errors of a 2.5 % quantile of 20,000
    np.testing.assert_array_less(np.abs(low - theirs.confidence_interval.low), error)
    np.testing.assert_array_less(np.abs(high - theirs.confidence_interval.high), error)


def test_ratio_interval_equals_scipys_paired_bootstrap_within_monte_carlo_error():
    rng = np.random.default_rng(6)
    bottom = rng.normal(2.0, 1.0, 80)
    top = 0.5 * bottom + rng.normal(0, 0.3, 80)
    low, high = intervals.bootstrap_ratio_interval(top, bottom, n_boot=20_000)
    theirs = scipy.stats.bootstrap(
        (top, bottom),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(7),
    )
    error = 0.06 * theirs.standard_error
    assert low == pytest.approx(theirs.confidence_interval.low, abs=error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=error)


def test_unequal_clusters_equal_a_literal_resampling_of_whole_clusters():
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(12), rng.integers(1, 8, 12))
    values = rng.normal(size=12)[groups] + rng.normal(size=groups.size)
    members = [values[groups == g] for g in range(12)]
    means = [np.concatenate([members[c] for c in rng.integers(12, size=12)]).mean() for _ in range(10_000)]
    low, high = intervals.bootstrap_interval(values, groups, n_boot=10_000)
    error = 0.1 * np.std(means)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=error)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=error)


def test_an_effect_of_zero_for_every_pair_has_the_interval_zero_zero_and_p_one():
    values = np.vstack([np.zeros(30), np.ones(30)])
    low, high = intervals.bootstrap_interval(values)
    assert (low[0], high[0], low[1], high[1]) == (0, 0, 1, 1)
    for test in (significance.sign_flip_pvalues, significance.max_t_pvalues):
        assert test(values, n_perm=199).tolist() == [1.0, 1 / 200]


def test_results_do_not_depend_on_how_the_cells_are_cut_into_slabs(monkeypatch):
    values, groups = clustered(23, 17, 3, rng=np.random.default_rng(9))
    values = values.reshape(1, 23, -1) + 0.3
    calls = {
        "interval": lambda: np.stack(intervals.bootstrap_interval(values, groups, n_boot=50)),
        "ratio": lambda: np.stack(intervals.bootstrap_ratio_interval(values, values**2, groups, n_boot=50)),
        "p": lambda: significance.sign_flip_pvalues(values, groups, n_perm=600),
        "max-T": lambda: significance.max_t_pvalues(values, groups, n_perm=600),
    }
    whole = {name: call() for name, call in calls.items()}
    monkeypatch.setattr(clusters, "BLOCK", 300)
    for name, call in calls.items():
        np.testing.assert_allclose(call(), whole[name], rtol=1e-12, err_msg=name)


def test_the_order_of_pairs_does_not_matter():
    values, groups = clustered(5, 20, 3, rng=np.random.default_rng(10))
    order = np.random.default_rng(11).permutation(values.shape[1])
    for call in (intervals.bootstrap_interval, significance.sign_flip_pvalues, significance.max_t_pvalues):
        np.testing.assert_allclose(call(values[:, order], groups[order]), call(values, groups), rtol=1e-10)


def test_memory_stays_bounded_for_many_cells():
    values = np.ones((20_000, 16), dtype=np.float32)  # all resamples at once would take 320 MB
    tracemalloc.start()
    try:
        intervals.bootstrap_interval(values, n_boot=2000)
        significance.sign_flip_pvalues(values, n_perm=999)
        assert tracemalloc.get_traced_memory()[1] < 130e6
    finally:
        tracemalloc.stop()


def test_resample_weights_are_multinomial_counts():
    weights = np.concatenate(list(intervals.resample_weights(6, 4000, seed=0, rows=7)))
    assert weights.shape == (4000, 6)
    assert (weights.sum(axis=1) == 6).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(weights.var(axis=0), 5 / 6, atol=0.1)


# ---------------------------------------------------------------- sign flips


def test_p_is_uniform_under_the_null():
    values, groups = clustered(2000, 24, 4, rng=np.random.default_rng(12))
    p = significance.sign_flip_pvalues(values, groups, n_perm=1999)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.05
    naive = significance.sign_flip_pvalues(values, n_perm=1999)
    assert (naive <= 0.05).mean() > 0.2  # what ignoring the clusters would claim
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_few_clusters_are_enumerated_exactly_as_by_hand():
    rng = np.random.default_rng(13)
    groups = np.repeat(np.arange(6), [1, 3, 2, 1, 1, 2])
    values = rng.normal(0.5, 1.0, (4, groups.size))
    patterns = np.array(list(itertools.product([-1, 1], repeat=6)))
    flipped = np.abs(values @ patterns[:, groups].T)
    by_hand = (flipped >= np.abs(values.sum(axis=1))[:, None] - 1e-12).mean(axis=1)
    np.testing.assert_allclose(significance.sign_flip_pvalues(values, groups), by_hand)
    np.testing.assert_allclose(significance.sign_flip_pvalues(values, groups, n_perm=31), by_hand)  # 2^5 - 1: as many
    assert significance.smallest_pvalue(6, 9999) == 2 / 64


def test_drawn_flips_approach_the_exact_p():
    values = np.random.default_rng(14).normal(0.4, 1.0, (20, 12))
    exact = significance.sign_flip_pvalues(values, n_perm=9999)  # 2^11 patterns, enumerated
    drawn = significance.sign_flip_pvalues(values, n_perm=2000)
    assert not np.array_equal(drawn, exact)
    np.testing.assert_allclose(drawn, exact, atol=0.04)


def test_p_does_not_depend_on_units_of_measurement():
    values = np.random.default_rng(15).integers(-2, 4, (20, 30)).astype(float)  # many flips tie exactly
    for test in (significance.sign_flip_pvalues, significance.max_t_pvalues):
        p = test(values, n_perm=499)
        for scale in (-1.0, 0.1, 1e-15, 1e12 / 3):  # and must still tie after rounding
            np.testing.assert_array_equal(test(scale * values, n_perm=499), p)


def test_max_t_keeps_the_family_wise_error_among_correlated_effects_of_any_scale():
    rng = np.random.default_rng(16)
    scales = np.logspace(-3, 3, 40)[:, None]
    rejected = 0
    for seed in range(400):
        values = scales * (rng.normal(size=25) + rng.normal(size=(40, 25)))
        rejected += bool((significance.max_t_pvalues(values, n_perm=199, seed=seed) <= 0.05).any())
    assert 0.02 <= rejected / 400 <= 0.08  # .05 +- 2.75 standard errors


def test_max_t_equals_its_literal_definition_and_is_never_below_the_single_p():
    values = np.random.default_rng(17).normal(0.4, 1.0, (7, 8))
    patterns = np.array(list(itertools.product([-1, 1], repeat=8)))
    t = np.abs((values[None] * patterns[:, None]).sum(-1)) / np.sqrt((values**2).sum(-1))
    literal = (t.max(axis=1)[:, None] >= t[-1] - 1e-12).mean(axis=0)  # the last pattern flips nothing
    adjusted = significance.max_t_pvalues(values)
    np.testing.assert_allclose(adjusted, literal)
    assert (adjusted >= significance.sign_flip_pvalues(values)).all()


# ---------------------------------------------------------------- many tests at once


def test_q_values_equal_the_step_up_procedure():
    p = np.random.default_rng(18).uniform(size=(6, 5)) ** 3
    ordered = np.sort(p.ravel())
    for q in (0.01, 0.05, 0.2):
        below = np.nonzero(ordered <= q * np.arange(1, 31) / 30)[0]
        literal = p <= ordered[below[-1]] if below.size else np.zeros_like(p, bool)
        np.testing.assert_array_equal(significance.benjamini_hochberg(p) <= q, literal)


def test_realised_false_discovery_rate_is_at_most_the_nominal_one():
    rng = np.random.default_rng(19)
    true = np.arange(120) < 30
    false_shares, found = [], []
    for seed in range(60):
        values, groups = clustered(120, 30, 2, rng=rng)
        values[true] += 1.0
        rejected = (
            significance.benjamini_hochberg(significance.sign_flip_pvalues(values, groups, n_perm=2399, seed=seed))
            <= 0.1
        )
        false_shares.append((rejected & ~true).sum() / max(rejected.sum(), 1))
        found.append(rejected[true].mean())
    assert np.mean(false_shares) <= 0.1 * 90 / 120 + 3 * np.std(false_shares) / np.sqrt(60)
    assert np.mean(found) > 0.9


def test_resolution_is_just_enough_for_one_rejection():
    n_perm = significance.permutations_needed(180, 0.05)
    assert n_perm == 3599  # research: 180 tests at q = .05
    lone = np.ones(180)
    for flips, rejects in ((n_perm, True), (n_perm - 1, False)):
        lone[0] = significance.smallest_pvalue(100, flips)
        assert (significance.benjamini_hochberg(lone)[0] <= 0.05 + 1e-12) == rejects


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "call",
    [
        intervals.bootstrap_interval,
        lambda v, g: intervals.bootstrap_ratio_interval(v, v, g),
        significance.sign_flip_pvalues,
        significance.max_t_pvalues,
    ],
)
def test_one_cluster_is_refused(call):
    with pytest.raises(DataError, match="at least two clusters"):
        call(np.ones((2, 3)), np.zeros(3, dtype=int))
    with pytest.raises(DataError, match="one cluster id per pair"):
        call(np.ones((2, 3)), np.arange(4))


def test_impossible_levels_and_unequal_shapes_are_refused():
    with pytest.raises(DataError, match="level=95"):
        intervals.bootstrap_interval(np.ones(5), level=95)
    with pytest.raises(DataError, match="same shape"):
        intervals.bootstrap_ratio_interval(np.ones(5), np.ones(6))


@pytest.mark.parametrize("n_units", [0, 3])
def test_no_cells_give_empty_results_of_the_right_shape(n_units):
    values = np.ones((n_units, 0, 5))
    assert intervals.bootstrap_interval(values)[0].shape == (n_units, 0)
    assert significance.sign_flip_pvalues(values).shape == (n_units, 0)
    assert significance.max_t_pvalues(values).shape == (n_units, 0)
    assert significance.benjamini_hochberg(values[..., 0]).shape == (n_units, 0)
