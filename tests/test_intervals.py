"""Intervals, clustered one way and both: closed forms, literal twins, published code and invariants."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from designs import grid
from hypothesis import given, settings, strategies as st

from nnsight_vae.errors import DataError
from nnsight_vae.stats import clusters, intervals
from nnsight_vae.stats.clusters import Design
from nnsight_vae.stats.resampling import design_weights
from nnsight_vae.stats.standard_errors import mean_and_variance, t_pvalues

METHODS = ("bootstrap-t", "t", "percentile", "bca")
TWO_WAY = METHODS[:3]


def sparse(seed, n_pairs=30, n_bases=7, n_sources=6):
    """Ids of pairs drawn at random: some bases and sources meet twice, most never."""
    rng = np.random.default_rng(seed)
    return rng.integers(n_bases, size=n_pairs), rng.integers(n_sources, size=n_pairs)


# ---------------------------------------------------------------- standard errors


def literal_variance(values, groups, source_groups=None):
    """Sum of products of deviations over all couples of pairs that share an id, the diagonal of shared both taken once."""
    deviations = values - values.mean()

    def one(ids):
        same = np.equal.outer(ids, ids)
        n = len(np.unique(ids))
        return n / (n - 1) * (np.outer(deviations, deviations) * same).sum() / len(values) ** 2

    if source_groups is None:
        return one(groups)
    both = np.array([f"{g} {s}" for g, s in zip(groups, source_groups, strict=True)])
    base, source = one(groups), one(source_groups)
    return max(base + source - one(both), base, source)


def test_without_clusters_the_t_interval_and_p_are_students():
    values = np.random.default_rng(0).gamma(2.0, size=(5, 12))
    theirs = scipy.stats.ttest_1samp(values, 1.5, axis=1)
    low, high = intervals.mean_interval(values, method="t", level=0.9)
    np.testing.assert_allclose(low, theirs.confidence_interval(0.9).low)
    np.testing.assert_allclose(high, theirs.confidence_interval(0.9).high)
    np.testing.assert_allclose(t_pvalues(values - 1.5), theirs.pvalue)


@pytest.mark.parametrize("ids", [grid(5, 4), sparse(0), sparse(1)])
def test_standard_errors_equal_the_sum_over_all_couples_of_pairs_that_share_an_image(ids):
    values = np.random.default_rng(1).normal(size=(3, len(ids[0]))) + 0.5 * ids[0] + 0.3 * ids[1]
    for given_ids in (ids, ids[:1]):
        design = Design.of(values.shape[1], *given_ids)
        mean, _, variance = mean_and_variance(design.atoms.sums(values), design)
        np.testing.assert_allclose(mean, values.mean(axis=1))
        np.testing.assert_allclose(variance, [literal_variance(row, *given_ids) for row in values])


def test_standard_error_of_a_full_grid_follows_from_its_analysis_of_variance():
    values = np.random.default_rng(2).normal(size=(6, 5)) + np.arange(6)[:, None] + 2 * np.arange(5)
    mean_squares = 5 * values.mean(axis=1).var(ddof=1), 6 * values.mean(axis=0).var(ddof=1)
    expected = (sum(mean_squares) - values.var(ddof=1)) / 30
    design = Design.of(30, *grid(6, 5))
    np.testing.assert_allclose(mean_and_variance(values.reshape(1, -1), design)[2], expected)


def test_sources_that_are_never_reused_change_nothing():
    groups = np.repeat(np.arange(12), 3)
    values = np.random.default_rng(3).normal(size=(4, 36)) + np.random.default_rng(4).normal(size=12)[groups]
    both = np.stack(intervals.mean_interval(values, groups, np.arange(36), method="t"))
    np.testing.assert_allclose(both, intervals.mean_interval(values, groups, method="t"))


# ---------------------------------------------------------------- resamples, drawn literally


def drawn_pairs(groups, source_groups, bases, sources):
    """Pairs of a resample: (pair, copy of its base, copy of its source), all copies told apart."""
    labels = [np.unique(ids, return_inverse=True)[1] for ids in (groups, source_groups)]
    for pair, (base, source) in enumerate(zip(*labels, strict=True)):
        for i, j in itertools.product(range(int(bases[base])), range(int(sources[source]))):
            yield pair, f"{base}.{i}", f"{source}.{j}"


@pytest.mark.parametrize("ids", [grid(5, 6), sparse(5), sparse(6)])
def test_bootstrap_t_clustered_both_ways_equals_resampled_data_sets_taken_literally(ids):
    values = np.random.default_rng(7).exponential(size=(2, len(ids[0]))) * (1 + ids[0]) + ids[1]
    design, n_boot = Design.of(len(ids[0]), *ids), 60
    blocks = list(design_weights(design, n_boot, seed=3))
    draws = [np.concatenate([block[1][way] for block in blocks]) for way in (0, 1)]
    low, high = intervals.mean_interval(values, *ids, level=0.8, n_boot=n_boot, seed=3)
    for cell, row in enumerate(values):
        roots = []
        for bases, sources in zip(*draws, strict=True):
            pairs, base_ids, source_ids = map(np.array, zip(*drawn_pairs(*ids, bases, sources), strict=True))
            variance = _resampled_variance(row[pairs], base_ids, source_ids, design)
            roots.append((row[pairs].mean() - row.mean()) / np.sqrt(variance))
        error = np.sqrt(literal_variance(row, *ids))
        ends = row.mean() - np.quantile(roots, [0.9, 0.1]) * error
        np.testing.assert_allclose([low[cell], high[cell]], ends)


def _resampled_variance(values, base_ids, source_ids, design):
    """`literal_variance` with the factors C / (C - 1) of as many clusters as were drawn, those without a pair included."""
    deviations = values - values.mean()

    def one(ids, n):
        sums = np.array([deviations[ids == each].sum() for each in np.unique(ids)])
        return n / (n - 1) * (sums**2).sum() / len(values) ** 2

    both = np.char.add(np.char.add(base_ids, " "), source_ids)
    base, source = one(base_ids, len(design.ways[0])), one(source_ids, len(design.ways[1]))
    n_atoms = len(np.unique(both))
    return max(base + source - one(both, n_atoms), base, source)


@pytest.mark.parametrize("outlier", [0.0, 1e4])  # without it, a resample varies a millionth as much, and still varies
def test_bootstrap_t_of_unequal_clusters_equals_resampled_data_sets_taken_literally(outlier):
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(9), rng.integers(1, 6, 9))
    values = rng.exponential(size=9)[groups] + rng.normal(size=groups.size) + outlier * (groups == 3)
    design = Design.of(groups.size, groups)
    roots = []
    for (counts,) in (block[1] for block in design_weights(design, 80, seed=1)):
        for draw in counts:
            clusters_drawn = np.repeat(np.arange(9), draw.astype(int))
            data = [values[groups == c] for c in clusters_drawn]
            ids = np.repeat(np.arange(9), [len(each) for each in data])
            resampled = np.concatenate(data)
            roots.append((resampled.mean() - values.mean()) / np.sqrt(literal_variance(resampled, ids)))
    ends = values.mean() - np.quantile(roots, [0.95, 0.05]) * np.sqrt(literal_variance(values, groups))
    assert np.isfinite(roots).all()
    np.testing.assert_allclose(intervals.mean_interval(values, groups, level=0.9, n_boot=80, seed=1), ends)


def test_percentiles_clustered_both_ways_are_those_of_products_of_draws():
    ids = sparse(9)
    values = np.random.default_rng(10).normal(size=len(ids[0]))
    design = Design.of(len(values), *ids)
    means = []
    for _, (bases, sources) in design_weights(design, 50, seed=2):
        for b, s in zip(bases, sources, strict=True):
            pairs = [pair for pair, *_ in drawn_pairs(*ids, b, s)]
            means.append(values[pairs].mean())
    expected = np.quantile(means, [0.05, 0.95])
    np.testing.assert_allclose(intervals.bootstrap_interval(values, *ids, level=0.9, n_boot=50, seed=2), expected)
    ratio = intervals.bootstrap_ratio_interval(3 * values + 6, values + 2, *ids, level=0.9, n_boot=50, seed=2)
    np.testing.assert_allclose(ratio, (3, 3))


def test_a_resample_without_any_pair_is_drawn_again():
    design = Design.of(3, np.arange(3), np.arange(3))  # three bases, each with a source of its own: often none meet
    blocks = list(design_weights(design, 500, seed=0))
    assert all(atoms.any(axis=1).all() for atoms, _ in blocks)
    assert sum(len(atoms) for atoms, _ in blocks) == 500
    assert np.isfinite(intervals.bootstrap_interval(np.array([1.0, 2.0, 4.0]), np.arange(3), np.arange(3))).all()


def test_bca_equals_scipys_within_monte_carlo_error_and_differs_from_percentiles():
    values = np.random.default_rng(11).lognormal(size=(3, 40))
    ours = np.stack(intervals.mean_interval(values, method="bca", n_boot=20_000))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, axis=1, n_resamples=20_000, method="BCa", rng=np.random.default_rng(12)
    )
    error = (
        0.08 * theirs.standard_error
    )  # about 3 Monte-Carlo standard errors of a quantile, of the bias, and of scipy's own
    assert (np.abs(ours - np.stack(theirs.confidence_interval)) < error).all()
    percentile = np.stack(intervals.mean_interval(values, method="percentile", n_boot=20_000))
    assert (np.abs(ours - percentile) > error).any()


def test_bca_of_unequal_clusters_equals_scipys_over_cluster_sums_and_sizes():
    rng = np.random.default_rng(13)
    groups = np.repeat(np.arange(25), np.resize([1, 2, 3, 1, 20], 25))
    values = 20 + rng.exponential(size=25)[groups] + rng.normal(size=groups.size)
    sums, sizes = np.bincount(groups, values), np.bincount(groups).astype(float)
    theirs = scipy.stats.bootstrap(
        (sums, sizes),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(14),
    )
    ours = intervals.mean_interval(values, groups, method="bca", n_boot=20_000)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.08 * theirs.standard_error)


def test_bca_counts_resamples_equal_to_the_mean_as_half_below_it():
    values = np.repeat([0.0, 1.0], [12, 8])  # of the resamples, .18 have the very mean of the sample
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(15))
    ours = intervals.mean_interval(values, method="bca", n_boot=20_000)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.01)


# ---------------------------------------------------------------- invariants


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_effects_are_summed_in_double_precision(method):
    values = (1000 + np.random.default_rng(16).normal(size=(2, 60))).astype(np.float32)
    groups = np.repeat(np.arange(20), 3)
    np.testing.assert_array_equal(
        intervals.mean_interval(values, groups, method=method, n_boot=99),
        intervals.mean_interval(values.astype(np.float64), groups, method=method, n_boot=99),
    )


@pytest.mark.parametrize("method", METHODS)
def test_equal_effects_have_an_interval_without_width(method):
    values = np.vstack([np.zeros(30), np.full(30, 0.5)])
    assert np.stack(intervals.mean_interval(values, method=method)).tolist() == [[0, 0.5], [0, 0.5]]
    if method != "bca":
        both = intervals.mean_interval(values, *grid(5, 6), method=method)
        assert np.stack(both).tolist() == [[0, 0.5], [0, 0.5]]
    assert t_pvalues(values, *grid(5, 6)).tolist() == [1, 0]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("both_ways", [False, True])
def test_below_five_clusters_bootstrap_t_is_students_t(n, both_ways):
    ids = grid(n, 9) if both_ways else (np.arange(n), None)
    values = np.random.default_rng(15).exponential(size=(3, len(ids[0])))
    np.testing.assert_array_equal(
        intervals.mean_interval(values, *ids), intervals.mean_interval(values, *ids, method="t")
    )


def test_resamples_without_variance_widen_the_interval_and_never_end_it_at_infinity():
    rare = np.zeros((3, 12))
    rare[0, 0], rare[1, :2], rare[2] = 1.0, 1.0, 1e-3 * np.arange(12)
    low, high = intervals.mean_interval(rare)
    assert np.isfinite([low, high]).all()
    assert (high[:2] > intervals.mean_interval(rare, method="t")[1][:2]).all()
    # Away from 0, rounding leaves such a resample a variance of its own, by which its mean must not be divided.
    np.testing.assert_allclose(np.stack(intervals.mean_interval(rare + 0.1)), np.stack([low, high]) + 0.1, rtol=1e-6)


def test_resamples_that_neither_vary_nor_move_count_on_neither_side():
    values = np.array([-1.0, 1.0, *np.zeros(8)])
    low, high = intervals.mean_interval(np.stack([values, -values]))
    np.testing.assert_allclose(low, -high[::-1])


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(METHODS), st.booleans(), st.floats(1e-6, 1e6), st.booleans())
def test_scaling_and_order_of_pairs_and_cells_pass_through(seed, method, both_ways, scale, flip):
    rng = np.random.default_rng(seed)
    both_ways = both_ways and method != "bca"
    ids = list(sparse(seed)) if both_ways else [sparse(seed)[0], None]
    values = rng.normal(size=(4, 30)) + ids[0]
    low, high = intervals.mean_interval(values, *ids, method=method, n_boot=99)
    cells, pairs = rng.permutation(4), rng.permutation(30)
    sign = -1.0 if flip and method == "t" else 1.0  # the resampled ones have quantiles of finitely many draws
    moved = intervals.mean_interval(
        sign * scale * values[cells][:, pairs], *(i if i is None else i[pairs] for i in ids), method=method, n_boot=99
    )
    expected = np.stack([low, high])[:, cells] * scale * sign
    np.testing.assert_allclose(np.sort(moved, axis=0), np.sort(expected, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "both_ways"), [*((method, False) for method in METHODS), *((method, True) for method in TWO_WAY)]
)
def test_results_do_not_depend_on_how_the_cells_are_cut_into_slabs(monkeypatch, method, both_ways):
    ids = sparse(16) if both_ways else (sparse(16)[0], None)
    values = np.random.default_rng(17).normal(size=(11, 30))
    monkeypatch.setattr(clusters, "BLOCK", 3_000)  # a few cells a slab; all resamples in one block
    cut = intervals.mean_interval(values, *ids, method=method, n_boot=50)
    monkeypatch.setattr(clusters, "BLOCK", 10**7)
    np.testing.assert_allclose(cut, intervals.mean_interval(values, *ids, method=method, n_boot=50), rtol=1e-10)


@pytest.mark.parametrize("ids", [(None, None), grid(8, 8)])
def test_memory_stays_bounded_for_many_cells(ids):
    values = np.random.default_rng(18).normal(size=(2000, 64)).astype(np.float32)
    intervals.mean_interval(values[:1], *ids)  # what is imported once is not counted
    tracemalloc.start()
    try:
        intervals.mean_interval(
            values, *ids, n_boot=1000
        )  # the roots of all cells alone would take 32 MB, squares 256 MB
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("method", METHODS)
def test_one_cluster_a_level_that_is_none_and_missing_ids_are_refused(method):
    with pytest.raises(DataError, match="two clusters \\(base images\\)"):
        intervals.mean_interval(np.ones((2, 3)), np.zeros(3, dtype=int), method=method)
    with pytest.raises(DataError, match="level=95"):
        intervals.mean_interval(np.arange(12.0), method=method, level=95)
    with pytest.raises(DataError, match="one cluster id per pair"):
        intervals.mean_interval(np.ones((2, 3)), np.arange(4), method=method)


@pytest.mark.parametrize("method", TWO_WAY)
def test_a_single_source_is_refused(method):
    with pytest.raises(DataError, match="two clusters \\(source images\\)"):
        intervals.mean_interval(np.ones((2, 12)), np.arange(12), np.zeros(12, dtype=int), method=method)


def test_methods_that_do_not_exist_or_do_not_fit_are_refused():
    with pytest.raises(DataError, match="method='studentized' is unknown; intervals are 'bootstrap-t', 't'"):
        intervals.mean_interval(np.arange(9.0), method="studentized")
    with pytest.raises(DataError, match="'bca' is not defined for pairs clustered by base and source"):
        intervals.mean_interval(np.arange(30.0), *grid(5, 6), method="bca")


@pytest.mark.parametrize("method", METHODS)
def test_no_cells_give_empty_results_of_the_right_shape(method):
    assert intervals.mean_interval(np.ones((3, 0, 5)), method=method)[1].shape == (3, 0)
    if method != "bca":
        assert intervals.mean_interval(np.ones((3, 0, 30)), *grid(5, 6), method=method)[0].shape == (3, 0)
    assert t_pvalues(np.ones((3, 0, 5))).shape == (3, 0)
