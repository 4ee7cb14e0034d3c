"""IOSS, IRS and Gaussian total correlation of simulated factors: the means that Wang and Jordan published over 500 runs each.

Protocol (Wang and Jordan 2021, arXiv 2109.03795, section 6): normal factors that correlate by .9, clipped at their 10 % and 90 %
quantiles and cut into as many levels as the factors of four benchmarks have; and random linear mixtures of these with noise.
"""

from __future__ import annotations

import numpy as np
import pytest

from nnsight_vae import metrics

LEVELS = {
    "dsprites": (3, 6, 40, 32, 32),
    "cars3d": (4, 24, 183),
    "smallnorb": (5, 9, 18, 6),
    "mpi3d": (4, 4, 2, 3, 3, 40, 40),
}
# (IOSS, IRS, total correlation), each (mean, standard deviation) over the 500 published runs
PUBLISHED = {
    ("dsprites", "disentangled"): ((0.7131, 0.0259), (1.0, 0.0), (3.2670, 0.0868)),
    ("dsprites", "entangled"): ((0.8109, 0.0398), (0.5716, 0.0396), (2.3578, 0.8945)),
    ("cars3d", "disentangled"): ((0.4831, 0.0245), (1.0, 0.0), (1.5283, 0.0513)),
    ("cars3d", "entangled"): ((0.5709, 0.0662), (0.7270, 0.0352), (0.7667, 0.5108)),
    ("smallnorb", "disentangled"): ((0.6029, 0.0299), (1.0, 0.0), (2.4153, 0.0688)),
    ("smallnorb", "entangled"): ((0.6998, 0.0467), (0.5386, 0.0500), (1.3722, 0.6809)),
    ("mpi3d", "disentangled"): ((0.8878, 0.0248), (1.0, 0.0), (4.2978, 0.1060)),
    ("mpi3d", "entangled"): ((1.0501, 0.0465), (0.5154, 0.0362), (5.4876, 1.1745)),
}
RUNS = 30


def factors_of(levels, rng):
    k = len(levels)
    normal = rng.multivariate_normal(np.zeros(k), 0.9 * np.ones((k, k)) + 0.1 * np.eye(k), 1000)
    clipped = normal.clip(*np.quantile(normal, [0.1, 0.9]))
    unit = (clipped - clipped.min(0)) / np.ptp(clipped, axis=0)
    return np.minimum((unit * np.array(levels)).astype(int), np.array(levels) - 1).astype(float)


def entangled(factors, rng):
    k = factors.shape[1]
    columns = np.column_stack([factors / (factors.std(0) + 1e-6) ** power for power in (1, 2, 3)])
    weights = rng.uniform(-2.5, 2.5, (k, 3 * k))
    return columns @ weights.T + rng.normal(size=factors.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_scores_of_simulated_factors_are_the_published_means(name):
    found = {"disentangled": [], "entangled": []}
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        factors = factors_of(LEVELS[name], rng)
        for kind, codes in (("disentangled", factors), ("entangled", entangled(factors, rng))):
            hole = metrics.support_distance(codes, draws=10_000, seed=seed)
            robust = metrics.irs(codes, factors, n_null=0).value
            found[kind].append((hole, robust, metrics.total_correlation(codes)))
    for kind, runs in found.items():
        means = np.mean(runs, axis=0)
        for metric, mean, (published, sd) in zip(("IOSS", "IRS", "TC"), means, PUBLISHED[name, kind], strict=True):
            if metric == "IRS" and max(LEVELS[name]) > 50:
                continue  # a factor of so many values is continuous here, and cut into ten classes
            tolerance = 3 * sd * np.sqrt(1 / RUNS + 1 / 500) + 1e-9
            assert mean == pytest.approx(published, abs=tolerance), (kind, metric)
