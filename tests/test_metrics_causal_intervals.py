"""Intervals and bias corrections of the causal metrics, against literal bootstraps and their coverage."""

import numpy as np
import pytest
import scipy.stats
from numpy_decoder import CLAMPS, Z, changes, decode, displacements, hidden, normal

from nnsight_vae.metrics.causal import (
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
    output_spread,
)


def test_effect_strength_interval_is_scipys_percentile_bootstrap_over_examples():
    samples = displacements(decode)
    low, high = causal_effect_strength(samples, n_boot=20_000).ci[0]
    theirs = scipy.stats.bootstrap(
        (samples[0].mean(axis=0),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * theirs.standard_error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * theirs.standard_error)


def plain_modularity(moved):
    """1 - mean cosine of root mean square profiles, uncorrected."""
    profiles = np.sqrt((moved**2).mean(axis=1))
    profiles /= np.linalg.norm(profiles, axis=1, keepdims=True)
    return 1 - (profiles @ profiles.T)[np.triu_indices(len(moved), 1)].mean()


def test_specificity_and_modularity_intervals_equal_a_literal_bootstrap_over_examples():
    """Of modularity and of the entropy in specificity: the basic interval and the bias correction, 2 t - t*."""
    pixels, units = changes(decode), changes(hidden)[:3]
    rng = np.random.default_rng(2)
    entropy, modularity = [], []
    for _ in range(1500):
        drawn = rng.integers(30, size=30)
        entropy.append(scipy.stats.entropy((pixels[0, drawn] ** 2).mean(0)))
        modularity.append(plain_modularity(units[:, drawn]))
    ours, plain = circuit_modularity(units, form="normalised", n_boot=6000), plain_modularity(units)
    basic = 2 * plain - np.quantile(modularity, [0.975, 0.025])
    np.testing.assert_allclose(ours.ci, basic, atol=0.16 * np.std(modularity))
    assert ours.value == pytest.approx(2 * plain - np.mean(modularity), abs=0.1 * np.std(modularity))
    plain = scipy.stats.entropy((pixels[0] ** 2).mean(0))
    basic = 2 * plain - np.quantile(entropy, [0.025, 0.975])
    corrected = intervention_specificity(pixels, form="normalised", n_boot=6000)
    np.testing.assert_allclose(corrected.ci[0], 1 - basic / np.log(9), atol=0.16 * np.std(entropy) / np.log(9))
    literal = 1 - (2 * plain - np.mean(entropy)) / np.log(9)
    assert corrected.values[0] == pytest.approx(literal, abs=0.05 * np.std(entropy))
    raw = intervention_specificity(pixels, n_boot=6000)
    np.testing.assert_allclose(1 / np.array(raw.ci[0]) - 1e-6, basic, atol=0.16 * np.std(entropy))


def test_the_specificity_of_few_examples_is_corrected_for_the_bias_of_an_entropy():
    """1000 units, 100 examples: plain percentiles cover the truth in 5 % of samples; the corrected interval in most."""
    rng = np.random.default_rng(0)
    profile = rng.normal(size=1000)
    mean_square = profile**2 * 1.64
    truth = 1 - scipy.stats.entropy(mean_square) / np.log(1000)
    hits, off, plain_off = 0, 0.0, 0.0
    for seed in range(40):
        change = rng.normal(size=(100, 1)) * profile * (1 + 0.8 * rng.normal(size=(100, 1000)))
        found = intervention_specificity([change], form="normalised", n_boot=200, seed=seed)
        plain = 1 - scipy.stats.entropy((change**2).mean(0)) / np.log(1000)
        hits += found.ci[0][0] <= truth <= found.ci[0][1]
        off, plain_off = off + (found.values[0] - truth) / 40, plain_off + (plain - truth) / 40
    assert hits >= 34
    assert abs(off) < 0.2 * plain_off


def test_the_modularity_of_noisy_units_is_corrected_for_what_noise_takes_from_a_cosine():
    """64 units whose change is as much noise as signal, 100 examples: plain percentiles cover the truth in 55 % of samples."""
    rng = np.random.default_rng(0)
    profiles = np.abs(rng.normal(size=(4, 64)))
    truth = plain_modularity(profiles[:, None])
    hits, off, plain_off = 0, 0.0, 0.0
    for seed in range(40):
        moved = rng.normal(size=(4, 100, 1)) * profiles[:, None] * (1 + rng.normal(size=(4, 100, 64)))
        found = circuit_modularity(moved, form="normalised", n_boot=200, seed=seed)
        hits += found.ci[0] <= truth <= found.ci[1]
        off, plain_off = off + (found.value - truth) / 40, plain_off + (plain_modularity(moved) - truth) / 40
    assert hits >= 33
    assert abs(off) < 0.4 * plain_off


def test_the_intervals_of_the_normalised_forms_hold_the_sampling_error_of_their_yardsticks():
    """A literal bootstrap that takes the yardstick anew each time (about the sample's centre); with it fixed, the interval is another."""
    samples, base = displacements(decode), decode(Z)
    pixels = hidden(Z)[:, :, None] * np.array([1.0, 2.0]) + normal(30, 6, 2, seed=5)
    units = changes(hidden)[:3]
    rng = np.random.default_rng(3)
    drawn = rng.integers(30, size=(8000, 30))
    spread = np.sqrt(np.square(base - base.mean(0)).sum(1)[drawn].mean(1))
    strength = samples[0].mean(0)[drawn].mean(1) / spread
    modularity = []
    for rows in drawn[:1500]:
        sd = np.sqrt(np.square(pixels - pixels.mean((0, 2), keepdims=True))[rows].mean((0, 2)))
        modularity.append(plain_modularity(units[:, rows] / sd))
    ours = causal_effect_strength(samples, form="normalised", base=base, n_boot=6000)
    assert ours.values[0] == pytest.approx(samples[0].mean() / output_spread(base))
    np.testing.assert_allclose(ours.ci[0], np.quantile(strength, [0.025, 0.975]), atol=0.1 * np.std(strength))
    fixed = np.array(causal_effect_strength(samples, n_boot=6000).ci[0]) / output_spread(base)
    assert np.abs(fixed - ours.ci[0]).max() > 0.3 * np.std(strength)
    score = circuit_modularity(units, form="normalised", activations=pixels, n_boot=6000)
    plain = plain_modularity(units / pixels.transpose(1, 0, 2).reshape(6, -1).std(axis=1)[:, None].T)
    assert score.value == pytest.approx(2 * plain - np.mean(modularity), abs=0.1 * np.std(modularity))
    basic = 2 * plain - np.quantile(modularity, [0.975, 0.025])
    np.testing.assert_allclose(score.ci, basic, atol=0.16 * np.std(modularity))


@pytest.mark.parametrize("pixels", [1, 300])
def test_the_interval_of_the_normalised_effect_strength_covers(pixels):
    """95 % intervals of E|v - z| / sd over 300 samples of 100 examples; recentred in every resample, those of 300 pixels never cover."""
    rng = np.random.default_rng(0)
    grid = np.random.default_rng(1).normal(size=400_000)
    truth = np.abs(CLAMPS[:, None] - grid).mean() / np.sqrt(pixels)
    hits = 0
    for seed in range(300):
        z = rng.normal(size=(100, pixels))
        moved = np.abs(CLAMPS[:, None] - z[:, 0])[None]
        (low, high), *_ = causal_effect_strength(moved, form="normalised", base=z, n_boot=400, seed=seed).ci
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_corrections_stop_at_what_is_possible():
    """Uniform shares and identical profiles under noise: half of the corrected values would be beyond the end of their scale."""
    rng = np.random.default_rng(0)
    specificity, modularity = [], []
    for seed in range(20):
        noise = rng.normal(size=(2, 40, 6))
        specificity.append(intervention_specificity([noise[0]], form="normalised", n_boot=100, seed=seed))
        modularity.append(circuit_modularity(noise, form="normalised", n_boot=100, seed=seed))
    for values, lows in (
        ([found.values[0] for found in specificity], [found.ci[0][0] for found in specificity]),
        ([found.value for found in modularity], [found.ci[0] for found in modularity]),
    ):
        assert 3 <= sum(value == 0 for value in values) <= 17
        assert min(values) == min(lows) == 0


def test_one_example_has_scores_and_no_interval():
    assert causal_effect_strength(displacements(decode, Z[:1])).ci == (None,) * 4
    assert intervention_specificity(changes(decode, Z[:1])).ci == (None,) * 4
    assert circuit_modularity(changes(hidden, Z[:1]), form="normalised").ci is None
