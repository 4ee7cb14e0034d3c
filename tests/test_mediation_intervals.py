"""Intervals of the proportion mediated: Fieller's set against its definition and its coverage, and what the guard refuses."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nnsight_vae.errors import DataError
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.proportion import proportions
from nnsight_vae.stats import intervals
from nnsight_vae.stats.fieller import fieller_interval
from nnsight_vae.stats.standard_errors import t_interval

N_PAIRS = 100
INDIRECT = 0.5  # true mean of TNIE


def samples(total: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """TE ~ N(total, 1) and a TNIE that depends on it, `[sample, pair]`."""
    rng = np.random.default_rng(seed)
    te = rng.normal(total, 1.0, (n, N_PAIRS))
    return INDIRECT + 0.3 * (te - total) + rng.normal(0, 0.6, te.shape), te


def covers(theta: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low <= theta) & (theta <= high)


def in_the_set(theta, numerator, denominator, *ids) -> np.ndarray:
    """The definition: 0 is in the t interval of numerator - theta * denominator."""
    low, high = t_interval(numerator - np.asarray(theta)[..., None] * denominator, *ids)
    return (low <= 0) & (high >= 0)


@pytest.mark.parametrize(("total", "unbounded", "passing"), [(2.0, 0.0, 0.95), (0.3, 0.156, 0.97), (0.05, 0.921, 0.60)])
def test_fieller_covers_as_often_as_it_says_however_near_the_total_effect_is_to_0(total, unbounded, passing):
    tnie, te = samples(total, 4000)
    low, high = fieller_interval(tnie, te)
    theta = INDIRECT / total
    assert 0.94 <= in_the_set(theta, tnie, te).mean() <= 0.97
    clear = np.isfinite(low) & np.isfinite(high)
    # `unbounded` is what a noncentral t has between the critical values; its standard error here is at most .006
    assert 1 - clear.mean() == pytest.approx(unbounded, abs=3 * 0.006)
    assert (covers(theta, low, high) == in_the_set(theta, tnie, te))[clear].all()
    assert covers(theta, low, high)[~clear].all()
    # What the guard lets through: nominal where the effect is clear; near 0 only samples that overstate it, as documented.
    assert covers(theta, low, high)[clear].mean() == pytest.approx(passing, abs=0.03)


def test_the_percentile_interval_covers_where_the_total_effect_is_clear():
    tnie, te = samples(2.0, 1000)
    low, high = intervals.bootstrap_ratio_interval(tnie, te, n_boot=500)
    assert 0.925 <= covers(INDIRECT / 2, low, high).mean() <= 0.965
    both = fieller_interval(tnie, te)
    assert np.median(high - low) == pytest.approx(np.median(both[1] - both[0]), rel=0.05)


def test_clustered_pairs_widen_the_set_and_keep_its_coverage():
    rng = np.random.default_rng(1)
    n, bases, each = 2000, 25, 4
    groups = np.repeat(np.arange(bases), each)
    shared = rng.normal(size=(2, n, bases))[:, :, groups] * 0.8
    te = 2.0 + shared[0] + 0.3 * rng.normal(size=(n, bases * each))
    tnie = 0.5 + 0.4 * shared[0] + 0.5 * shared[1] + 0.3 * rng.normal(size=te.shape)
    assert 0.94 <= covers(0.25, *fieller_interval(tnie, te, groups)).mean() <= 0.97
    assert covers(0.25, *fieller_interval(tnie, te)).mean() < 0.75


@pytest.mark.parametrize(("images", "least", "most"), [(12, 0.94, 0.98), (6, 0.94, 0.99)])
def test_pairs_clustered_both_ways_keep_the_coverage_of_the_set(images, least, most):
    rng = np.random.default_rng(2)
    n = 1500
    i, j = np.divmod(np.arange(images**2), images)
    base, source = (rng.normal(size=(2, n, images))[:, :, ids] for ids in (i, j))
    noise = rng.normal(size=(2, n, images**2))
    te = 3.0 + base[0] + source[0] + noise[0]
    tnie = 0.25 * te + 0.5 * (base[1] + source[1] + noise[1])
    both_ways = covers(0.25, *fieller_interval(tnie, te, i, j)).mean()
    assert least <= both_ways <= most
    assert covers(0.25, *fieller_interval(tnie, te)).mean() < 0.75  # as if pairs were independent


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    npst.arrays(np.float64, (2, 1, 12), elements=st.floats(-10, 10)), st.sampled_from([None, "base", "both"]), st.data()
)
def test_the_set_is_what_its_definition_says(values, ids, data):
    """A grid of ratios, asked one by one: those inside the interval and only those, and none is left out beyond its ends."""
    numerator, denominator = values + np.random.default_rng(3).normal(0, 0.1, values.shape)
    ids = {None: (), "base": (np.repeat(np.arange(6), 2),), "both": (np.arange(12) // 4, np.arange(12) % 4)}[ids]
    (low,), (high,) = fieller_interval(numerator, denominator, *ids)
    (te_low,), (te_high,) = t_interval(denominator, *ids)
    assert np.isinf(low) == np.isinf(high) == (te_low <= 0 <= te_high)
    if np.isfinite(low):
        width = max(high - low, 1e-6 * max(1.0, abs(low)))
        inside = data.draw(st.floats(0.001, 0.999)) if len(ids) < 2 else 0.0
        assert in_the_set(
            [low + inside * (high - low) if inside else numerator.mean() / denominator.mean()],
            numerator,
            denominator,
            *ids,
        )
        for beyond in (1e-3, 0.5, 10.0):
            assert not in_the_set([low - beyond * width], numerator, denominator, *ids)
            assert not in_the_set([high + beyond * width], numerator, denominator, *ids)
        for end in (low, high):  # the ends belong to it and are no further out than they must be
            near = [end * (1 + s * 1e-7) + s * 1e-9 for s in (-1, 1)]
            assert in_the_set([near[0]], numerator, denominator, *ids) != in_the_set(
                [near[1]], numerator, denominator, *ids
            )


def test_the_interval_of_a_multiple_is_a_point_and_does_not_depend_on_units():
    te = np.random.default_rng(4).normal(2, 1, (3, 30))
    for low_high in zip(*fieller_interval(0.25 * te, te), strict=True):
        np.testing.assert_allclose(low_high, 0.25, atol=1e-6)
    tnie = te + np.random.default_rng(5).normal(0, 1, te.shape)
    plain, scaled = fieller_interval(tnie, te), fieller_interval(1e-6 * tnie, 1e-3 * te)
    np.testing.assert_allclose(np.stack(scaled), 1e-3 * np.stack(plain), rtol=1e-9)
    wider = fieller_interval(tnie, te, level=0.99)
    assert (wider[0] < plain[0]).all()
    assert (wider[1] > plain[1]).all()


def test_pairs_that_vary_only_within_base_and_source_leave_one_ratio():
    """Every base and every source has the same mean: both variances are 0, and their sum less that of the pairs is none."""
    rng = np.random.default_rng(8)
    i, j = np.divmod(np.arange(20), 5)
    tnie, te = rng.normal(size=(2, 3, 4, 5))
    tnie, te = (
        v - v.mean(1, keepdims=True) - v.mean(2, keepdims=True) + v.mean((1, 2), keepdims=True) for v in (tnie, te)
    )
    tnie, te = 0.5 + tnie.reshape(3, 20), 2.0 + te.reshape(3, 20)
    for ends in fieller_interval(tnie, te, i, j):
        np.testing.assert_allclose(ends, 0.25, atol=1e-6)


def effects(values: np.ndarray, name: str, **ids) -> Effects:
    targets = tuple(f"y{i}" for i in range(len(values)))
    return Effects(values[None], ("fc[0]",), targets, name, **ids)


def test_a_proportion_is_reported_with_either_interval_or_refused_with_a_reason():
    tnie, te = (np.concatenate(parts) for parts in zip(samples(2.0, 1), samples(0.0, 1, seed=1), strict=True))
    for interval, bounds in (
        ("percentile", intervals.bootstrap_ratio_interval(tnie, te)),
        ("fieller", fieller_interval(tnie, te)),
    ):
        found = proportions(effects(tnie, "TNIE"), effects(te, "TE"), interval=interval)
        assert found["y0"].value == pytest.approx(tnie[0].mean() / te[0].mean())
        assert (found["y0"].low, found["y0"].high) == (bounds[0][0], bounds[1][0])
        assert (found["y1"].value, found["y1"].low, found["y1"].high) == (None, None, None)
        low, high = intervals.mean_interval(te)
        assert found["y1"].reason == f"the interval of TE, [{low[1]:.3g}, {high[1]:.3g}], contains 0"


def test_an_unbounded_set_is_no_interval_even_where_a_bootstrap_lets_the_total_effect_pass():
    """A skewed TE whose bootstrap-t interval is clear of 0 and whose t interval is not."""
    rng = np.random.default_rng(6)
    for _ in range(300):
        te = rng.exponential(1.0, (1, 12)) - 0.45
        clear = intervals.mean_interval(te)[0][0] > 0
        if clear and np.isinf(fieller_interval(te, te)[0][0]):
            break
    else:
        pytest.fail("no such sample: the two intervals agree on all")
    share = proportions(effects(0.5 * te, "TNIE"), effects(te, "TE"), interval="fieller")["y0"]
    assert share.value is None
    assert share.reason == "Fieller's set is unbounded"
    assert proportions(effects(0.5 * te, "TNIE"), effects(te, "TE"))["y0"].value == pytest.approx(0.5)


def test_a_proportion_uses_both_clusterings():
    rng = np.random.default_rng(7)
    i, j = np.divmod(np.arange(64), 8)
    te = (3 + rng.normal(size=8)[i] + rng.normal(size=8)[j])[None]
    tnie = 0.3 * te + rng.normal(size=8)[i] + rng.normal(size=8)[j]
    ids = {"groups": i, "source_groups": j}
    for interval, bounds in (
        ("percentile", intervals.bootstrap_ratio_interval(tnie, te, i, j)),
        ("fieller", fieller_interval(tnie, te, i, j)),
    ):
        share = proportions(effects(tnie, "TNIE", **ids), effects(te, "TE", **ids), interval=interval)["y0"]
        assert (share.low, share.high) == (bounds[0][0], bounds[1][0])
    one_way = fieller_interval(tnie, te, i)
    assert share.high - share.low > 1.1 * (one_way[1] - one_way[0])[0]


def test_the_total_effect_is_held_against_0_at_the_level_asked_for_and_by_both_clusterings():
    te = (0.51 + np.resize([-1.0, 1.0, 2.0, -2.0], 40))[None]
    part, whole = effects(0.5 * te, "TNIE"), effects(te, "TE")
    assert proportions(part, whole)["y0"].reason.startswith("the interval of TE, [-0.0")
    assert proportions(part, whole, level=0.5)["y0"].value == pytest.approx(0.5)

    i, j = np.divmod(np.arange(64), 8)
    te = (0.5 + np.resize([-1.0, 1.0], 8)[j] + 0.01 * np.resize([-1.0, 1.0, 2.0], 64))[None]  # the sources' alone
    for sources, defined in ((None, True), (j, False)):
        ids = {"groups": i, "source_groups": sources}
        found = proportions(effects(0.5 * te, "TNIE", **ids), effects(te, "TE", **ids))["y0"]
        assert (found.value is not None) == defined


def test_bad_questions_are_refused():
    y = np.ones((2, 5))
    with pytest.raises(DataError, match="must have the same shape"):
        fieller_interval(y, y[:, :4])
    with pytest.raises(DataError, match="at least two clusters"):
        fieller_interval(y, y, np.zeros(5, dtype=int))
    with pytest.raises(DataError, match="level=2 is not a coverage"):
        fieller_interval(y, y, level=2)
    with pytest.raises(DataError, match="'percentile' or 'fieller', got 'bca'"):
        proportions(effects(y, "TNIE"), effects(y, "TE"), interval="bca")
    with pytest.raises(DataError, match="the same targets and the same pairs"):
        proportions(effects(y, "TNIE"), effects(y[:1], "TE"))
    several = Effects(np.ones((2, 2, 5)), ("a", "b"), ("y0", "y1"), "TE")
    with pytest.raises(DataError, match="one unit"):
        proportions(several, several)
