"""Calibration of intervals, by simulation: how often they cover.

Tolerances are three standard errors of the simulated share. One call draws the same resamples for all its cells, whose errors
would then go together, so the simulations are spread over calls with seeds of their own.
"""

import numpy as np
import pytest
from designs import crossed, grid

from nnsight_vae.stats import intervals

SIMULATED = 2000


def coverage(values, *ids, truth=0.0, n_boot=600, **options):
    """Share of the rows of `values` whose interval holds the truth."""
    held = []
    for seed, rows in enumerate(np.array_split(values, 20)):
        low, high = intervals.mean_interval(rows, *ids, n_boot=n_boot, seed=seed, **options)
        held.append((low <= truth) & (truth <= high))
    return np.concatenate(held).mean()


def within(low, high, measured, n):
    """low <= measured <= high, but for three standard errors of a share measured in n simulations."""
    low_error, high_error = (3 * np.sqrt(p * (1 - p) / n) for p in (low, high))
    return low - low_error <= measured <= high + high_error


# ---------------------------------------------------------------- coverage, by simulation

SIMULATED = 4000


@pytest.mark.parametrize(
    ("n", "method", "gaussian", "exponential"),
    [
        (5, "bootstrap-t", 0.95, 0.93),
        (10, "bootstrap-t", 0.95, 0.94),
        (20, "bootstrap-t", 0.94, 0.94),
        (40, "bootstrap-t", 0.95, 0.94),
        (10, "t", 0.95, 0.90),
        (20, "t", 0.95, 0.92),
        (10, "percentile", 0.90, 0.86),
        (10, "bca", 0.90, 0.87),
        (40, "bca", 0.94, 0.92),
    ],
)
def test_coverage_of_independent_clusters_is_what_the_docstring_states(n, method, gaussian, exponential):
    rng = np.random.default_rng(100 + n)
    for stated, draw, truth in ((gaussian, rng.normal, 0.0), (exponential, rng.exponential, 1.0)):
        measured = coverage(draw(size=(SIMULATED, n)), truth=truth, method=method)
        error = 0.005 + 3 * np.sqrt(
            stated * (1 - stated) / SIMULATED
        )  # rounding of what is stated, and of the simulation
        assert measured == pytest.approx(stated, abs=error)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
@pytest.mark.parametrize("n", [10, 20, 40, 100])
def test_the_default_interval_covers_93_to_97_percent_from_ten_clusters_on(n, draw):
    values = getattr(np.random.default_rng(n), draw)(size=(SIMULATED, n))
    measured = coverage(values, truth=float(draw == "exponential"))
    assert within(0.93, 0.97, measured, SIMULATED)


def test_the_default_interval_covers_93_to_97_percent_for_twenty_clusters_of_unequal_size():
    rng = np.random.default_rng(18)
    groups = np.repeat(np.arange(20), np.resize([1, 2, 3, 4, 5], 20))
    shared = rng.normal(size=(SIMULATED, 20))[:, groups]
    values = shared + 0.5 * rng.normal(size=(SIMULATED, groups.size))
    assert within(0.93, 0.97, coverage(values, groups), SIMULATED)
    assert coverage(values) < 0.8  # what ignoring the clusters would claim


CROSSINGS = {
    "base and source": (1, 1, 1),
    "base alone": (1, 0, 1),
    "source alone": (0, 1, 1),
    "neither": (0, 0, 1),
}


@pytest.mark.parametrize("size", [(12, 12), (10, 20)])
@pytest.mark.parametrize("who", CROSSINGS)
def test_the_default_interval_of_crossed_pairs_covers_93_to_97_percent_whichever_image_matters(size, who):
    n = 1000
    values = crossed(n, *size, *CROSSINGS[who], rng=np.random.default_rng(19))
    assert within(0.93, 0.97, coverage(values, *grid(*size)), n)


def test_the_default_interval_covers_crossed_products_of_skewed_effects_where_t_does_not():
    rng, n, size = np.random.default_rng(20), 1000, (12, 12)
    factors = (rng.exponential(size=shape) for shape in ((n, 12, 1), (n, 1, 12), (n, 12, 12)))
    values = np.prod(np.broadcast_arrays(*factors), axis=0).reshape(n, -1)
    assert within(0.93, 0.97, coverage(values, *grid(*size), truth=1.0), n)
    assert coverage(values, *grid(*size), truth=1.0, method="t") < 0.89


@pytest.mark.parametrize(
    ("n", "method", "sums", "products", "neither"),
    [
        (5, "bootstrap-t", 0.95, 0.93, 0.97),
        (12, "bootstrap-t", 0.95, 0.94, 0.96),
        (12, "t", 0.95, 0.85, 0.97),
        (12, "percentile", 0.93, 0.88, 1.0),
    ],
)
def test_coverage_of_crossed_pairs_is_what_the_docstring_states(n, method, sums, products, neither):
    rng = np.random.default_rng(200 + n)
    shapes = ((1000, n, 1), (1000, 1, n), (1000, n, n))
    effects = {
        sums: crossed(1000, n, n, rng=rng),
        products: np.prod(np.broadcast_arrays(*(rng.exponential(size=s) for s in shapes)), axis=0).reshape(1000, -1)
        - 1,
        neither: rng.normal(size=(1000, n * n)),
    }
    for stated, values in effects.items():
        error = 0.005 + 3 * np.sqrt(max(stated * (1 - stated), 0.001) / 1000)
        measured = coverage(values, *grid(n, n), method=method)
        assert measured == pytest.approx(stated, abs=error)


def test_crossed_pairs_taken_as_independent_or_clustered_one_way_are_covered_far_too_rarely():
    values = crossed(1000, 12, 12, rng=np.random.default_rng(21))
    groups, source_groups = grid(12, 12)
    assert coverage(values, method="t") < 0.55
    assert coverage(values, groups, method="t") < 0.88
    assert coverage(values, source_groups, method="t") < 0.88
    percentile = coverage(values, groups, source_groups, method="percentile")
    assert percentile < 0.945  # products of draws fall short of the 95 % as well


def test_coverage_of_sparse_crossings():
    """Not every base meets every source: 60 pairs of 20 bases and 20 sources."""
    n, rng = 1000, np.random.default_rng(23)
    groups, source_groups = rng.integers(20, size=(2, 60))
    values = rng.normal(size=(n, 20))[:, groups] + rng.normal(size=(n, 20))[:, source_groups] + rng.normal(size=(n, 60))
    for method in ("bootstrap-t", "t"):
        assert within(0.93, 0.97, coverage(values, groups, source_groups, method=method), n)
