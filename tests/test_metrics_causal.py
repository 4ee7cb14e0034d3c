"""The seed paper's metrics against their formulas written out literally, and closed forms of a linear decoder."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st

from nnsight_vae import metrics
from nnsight_vae.errors import DataError
from nnsight_vae.metrics import latent_activity
from nnsight_vae.metrics.causal import (
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
    output_spread,
)
from nnsight_vae.metrics.latent_response import latent_response_matrix

CLAMPS = np.linspace(-3, 3, 7)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


Z = normal(30, 4, seed=1)  # codes of 30 examples
INNER, OUTER = normal(4, 6, seed=2), normal(6, 9, seed=3)
INNER[3] = 0  # latent 3 is dead


def hidden(z):
    return np.tanh(z @ INNER)


def decode(z):
    return hidden(z) @ OUTER


def linear(weights):
    return lambda z: z @ weights


def clamped(z, latent, value):
    z = z.copy()
    z[:, latent] = value
    return z


def displacements(decoder, z=Z):
    base = decoder(z)
    return np.array(
        [[np.linalg.norm(decoder(clamped(z, k, v)) - base, axis=1) for v in CLAMPS] for k in range(z.shape[1])]
    )


def changes(decoder, z=Z):
    return np.array([decoder(clamped(z, k, 0.0)) - decoder(z) for k in range(z.shape[1])])


# ---------------------------------------------------------------- as published, literally


def test_raw_effect_strength_is_the_published_estimator():
    scores = causal_effect_strength(displacements(decode))
    for k in range(4):
        total = 0.0
        for value in CLAMPS:
            for z in Z:
                moved = z.copy()
                moved[k] = value
                total += math.sqrt(sum((a - b) ** 2 for a, b in zip(decode(moved), decode(z), strict=True)))
        assert scores.values[k] == pytest.approx(total / (7 * len(Z)), rel=1e-12, abs=1e-15)


def test_raw_specificity_is_the_published_estimator_in_nats_with_eps_1e_6():
    scores = intervention_specificity(changes(decode))
    for k in range(3):
        per_unit = [0.0] * 9
        for z in Z:
            moved = z.copy()
            moved[k] = 0
            per_unit = [s + (a - b) ** 2 / len(Z) for s, a, b in zip(per_unit, decode(moved), decode(z), strict=True)]
        shares = [s / sum(per_unit) for s in per_unit]
        entropy = -sum(p * math.log(p) for p in shares if p > 0)
        assert scores.values[k] == pytest.approx(1 / (entropy + 1e-6), rel=1e-12)


def test_raw_modularity_is_the_published_estimator_on_encoder_weights():
    weights = normal(5, 8)
    pairs = list(itertools.combinations(range(5), 2))
    literal = 1 - sum(abs(scipy.stats.pearsonr(weights[i], weights[j]).statistic) for i, j in pairs) / len(pairs)
    score = circuit_modularity(weights[:, None, :])
    assert score.value == pytest.approx(literal, rel=1e-12)
    assert score.ci is None  # weights are no sample: no interval


def test_raw_specificity_keeps_the_published_artefact_of_a_dead_latent_but_flags_it():
    scores = intervention_specificity(changes(decode))
    assert scores.values[3] == pytest.approx(1e6)
    assert scores.flags[3].startswith("dead")
    assert scores.flags[:3] == ("", "", "")
    assert scores.alive == (0, 1, 2)


# ---------------------------------------------------------------- closed forms of a linear decoder


def test_linear_decoder_closed_forms():
    weights = normal(4, 9)
    scores = causal_effect_strength(displacements(linear(weights)))
    reach = np.abs(CLAMPS[:, None, None] - Z).mean(axis=(0, 1))  # E |v - z_k|
    np.testing.assert_allclose(scores.values, reach * np.linalg.norm(weights, axis=1))

    shares = weights**2 / (weights**2).sum(axis=1, keepdims=True)
    entropy = scipy.stats.entropy(shares, axis=1)
    specificity = changes(linear(weights))
    np.testing.assert_allclose(intervention_specificity(specificity).values, 1 / (entropy + 1e-6))
    normalised = intervention_specificity(specificity, form="normalised")
    np.testing.assert_allclose(normalised.values, 1 - entropy / np.log(9))

    score = circuit_modularity(specificity)
    upper = np.triu_indices(4, 1)
    assert score.value == pytest.approx(1 - np.abs(np.corrcoef(weights))[upper].mean())
    size = np.abs(weights) / np.linalg.norm(weights, axis=1, keepdims=True)
    assert circuit_modularity(specificity, form="normalised").value == pytest.approx(1 - (size @ size.T)[upper].mean())


# ---------------------------------------------------------------- the normalised forms


def test_normalised_effect_strength_does_not_depend_on_units_or_image_size():
    def score(decoder):
        return causal_effect_strength(displacements(decoder), form="normalised", base=decoder(Z))

    plain = score(decode)
    larger = score(lambda z: np.repeat(255 * decode(z) + 7, 4, axis=1))
    np.testing.assert_allclose(larger.values, plain.values)
    np.testing.assert_allclose(larger.ci, plain.ci)
    raw = causal_effect_strength(displacements(decode))
    np.testing.assert_allclose(plain.values, np.array(raw.values) / output_spread(decode(Z)))


def test_output_spread_is_the_root_of_the_total_variance():
    base = normal(20, 3, 4, 4)
    assert output_spread(base) == pytest.approx(np.sqrt(base.reshape(20, -1).var(axis=0).sum()))


def test_normalised_specificity_runs_from_zero_to_one_and_is_undefined_for_dead_latents():
    rows = [np.eye(5)[2], np.ones(5), np.zeros(5), 1e-3 * np.eye(5)[0]]
    scores = intervention_specificity([row * np.array([[1.0], [-2.0]]) for row in rows], form="normalised")
    assert scores.values == pytest.approx((1.0, 0.0, None, None))
    assert scores.ci[2:] == (None, None)
    assert all(flag.startswith("dead") for flag in scores.flags[2:])


def test_specificity_streams_latents():
    array = changes(decode)
    assert intervention_specificity(change for change in array) == intervention_specificity(array)


def test_modularity_of_disjoint_halves_is_one_where_the_raw_form_says_zero():
    halves = np.zeros((2, 1, 10))
    halves[0, 0, :5] = halves[1, 0, 5:] = 1
    assert circuit_modularity(halves).value == pytest.approx(0)
    assert circuit_modularity(halves, form="normalised").value == pytest.approx(1)
    same = np.tile(normal(1, 6, 10), (3, 1, 1)) * np.array([1.0, -2.0, 5.0])[:, None, None]
    assert circuit_modularity(same, form="normalised").value == pytest.approx(0)
    assert circuit_modularity(same).value == pytest.approx(0)


def test_dead_latents_are_left_out_of_the_normalised_modularity_and_undo_the_raw_one():
    hidden_changes = changes(hidden)
    raw = circuit_modularity(hidden_changes)
    assert raw.value is None
    assert "0 / 0" in raw.note
    score = circuit_modularity(hidden_changes, form="normalised")
    assert score.value == pytest.approx(circuit_modularity(hidden_changes[:3], form="normalised").value)
    assert score.note == "left out dead latents: 3"


def test_a_constant_change_has_no_correlation():
    constant = np.array([[0.1] * 3, [0.7] * 3])[:, None, :]
    assert np.ptp(constant - constant.mean(axis=2, keepdims=True)) > 0  # rounding leaves something to be misread
    assert circuit_modularity(constant).value is None
    assert circuit_modularity(constant, form="normalised").value == pytest.approx(0)


def test_modularity_needs_two_live_latents():
    score = circuit_modularity(changes(hidden)[[0, 3]], form="normalised")
    assert score.value is None
    assert "1 latents alive" in score.note


# ---------------------------------------------------------------- dead latents, intervals


@pytest.mark.parametrize(("share", "dead"), [(0.0, True), (0.009, True), (0.011, False)])
def test_a_latent_is_dead_below_one_percent_of_the_strongest(share, dead):
    alive = normal(8, 5)
    latents = np.array([alive, share * alive])
    assert bool(intervention_specificity(latents).flags[1]) == dead
    assert bool(causal_effect_strength(np.abs(latents).transpose(0, 2, 1)).flags[1]) == dead
    assert circuit_modularity(latents, form="normalised").note.endswith("left out dead latents: 1") == dead


def test_dead_is_told_by_the_yardstick_and_the_kl_not_by_the_strongest_latent():
    base = normal(40, 6)
    spread = output_spread(base)
    sizes = spread * np.array([0.009, 0.009, 0.011, 0.0, 0.5])
    samples = np.repeat(sizes[:, None, None], 40, axis=2)
    kl = np.array([0.001, 0.5, 0.001, 3.0, 1.0])
    alone = causal_effect_strength(samples[:2], base=base, kl=kl[:2])
    assert alone.alive == (1,)  # relative to each other both are strong
    flags = causal_effect_strength(samples, form="normalised", base=base, kl=kl).flags
    assert [flag.split(":")[0] for flag in flags] == ["dead", "", "collapsed", "dead", ""]
    assert flags[0] == "dead: effect at most 1 % of the spread, KL 0.001 nats"
    assert flags[2] == "collapsed: KL 0.001 nats"
    assert flags[3] == "dead: no effect, KL 3 nats"
    unknown = causal_effect_strength(samples, base=base).flags  # without a KL the effect alone decides
    assert [flag.split(":")[0] for flag in unknown] == ["dead", "dead", "", "dead", ""]
    changes = np.stack([np.full((40, 6), size / np.sqrt(6)) for size in sizes])
    assert intervention_specificity(changes, spread=spread, kl=kl).alive == (1, 2, 4)
    units = normal(40, 3, 50)
    moved = np.stack([np.full((40, 3), share) * units.std(axis=(0, 2)) for share in (0.009, 0.009, 0.011, 0.0, 0.5)])
    score = circuit_modularity(moved, form="normalised", activations=units, kl=kl)
    assert score.note == "left out dead latents: 0, 3"


def test_a_fully_collapsed_model_is_all_dead():
    assert causal_effect_strength(np.zeros((3, 7, 5))).alive == ()
    assert intervention_specificity(np.zeros((3, 5, 4)), form="normalised").values == (None, None, None)
    assert circuit_modularity(np.zeros((3, 5, 4)), form="normalised").value is None


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


def test_a_unit_that_varies_by_rounding_alone_keeps_its_scale():
    rng = np.random.default_rng(0)
    steady = np.float32(0.1) * (1 + 1e-7 * rng.normal(size=(20, 1)))
    activations = np.hstack([steady, rng.normal(size=(20, 2))])
    moved = np.ones((2, 20, 3))
    moved[0, :, 1] = 0
    found = circuit_modularity(moved, form="normalised", activations=activations)
    assert found.value > 0.01  # divided by the rounding, that unit would be all there is, and all alike
    constant = circuit_modularity(moved, form="normalised", activations=np.hstack([0 * steady, activations[:, 1:]]))
    assert found.value == pytest.approx(constant.value)


def test_golden_numbers_by_hand():
    """Two latents, two clamps, three examples; base outputs 0, 3 and 6, whose spread is sqrt(6)."""
    moved = np.array([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], [[0.0, 0.0, 6.0], [0.0, 0.0, 0.0]]])
    assert causal_effect_strength(moved).values == (2.0, 1.0)
    normalised = causal_effect_strength(moved, form="normalised", base=np.array([[0.0], [3.0], [6.0]]))
    assert normalised.values == pytest.approx((2 / math.sqrt(6), 1 / math.sqrt(6)))
    # mean squares 1 and 3 of 4: H = ln 4 - 3/4 ln 3
    change = np.array([[1.0, 3.0], [1.0, 0.0], [1.0, 0.0]])
    entropy = math.log(4) - 0.75 * math.log(3)
    assert intervention_specificity([change]).values[0] == pytest.approx(1 / (entropy + 1e-6))
    alike = np.array([[1.0, math.sqrt(3)]] * 3)  # no example differs, so that there is no bias to correct
    assert intervention_specificity([alike], form="normalised").values[0] == pytest.approx(1 - entropy / math.log(2))
    # root mean squares (1, sqrt 3) and (1, 0): cosine 1/2; in units of sds 1 and sqrt 3, (1, 1) and (1, 0): 1 / sqrt 2
    pair = np.stack([alike, np.array([[1.0, 0.0]] * 3)])[:, :2]
    assert circuit_modularity(pair, form="normalised").value == pytest.approx(0.5)
    activations = np.array([[-1.0, -math.sqrt(3)], [1.0, math.sqrt(3)]])
    scaled = circuit_modularity(pair, form="normalised", activations=activations)
    assert scaled.value == pytest.approx(1 - 1 / math.sqrt(2))


def test_one_example_has_scores_and_no_interval():
    assert causal_effect_strength(displacements(decode, Z[:1])).ci == (None,) * 4
    assert intervention_specificity(changes(decode, Z[:1])).ci == (None,) * 4
    assert circuit_modularity(changes(hidden, Z[:1]), form="normalised").ci is None


decoders = st.integers(0, 10_000).map(lambda seed: normal(4, 5, seed=seed))


@given(decoders, st.permutations(range(4)))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_permuting_latents_permutes_every_score(weights, order):
    codes = normal(12, 4, seed=7)

    def scores(weights, z):
        moved, change = displacements(linear(weights), z), changes(linear(weights), z)
        base = z @ weights
        activity = latent_activity.activity(z, np.log(0.1 + z**2), n_boot=50)
        return (
            causal_effect_strength(moved, form="normalised", base=base, n_boot=50),
            intervention_specificity(change, n_boot=50),
            activity.kl,
            activity.variance,
        ), circuit_modularity(change, form="normalised", n_boot=50)

    (plain, apart), (permuted, apart_too) = scores(weights, codes), scores(weights[order], codes[:, order])
    for before, after in zip(plain, permuted, strict=True):
        np.testing.assert_allclose(after.values, np.array(before.values)[order])
        np.testing.assert_allclose(after.ci, np.array(before.ci)[order])
    assert apart_too.value == pytest.approx(apart.value)


@given(decoders, st.floats(1e-3, 1e3))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_scaling_the_outputs_scales_the_raw_effect_strength_and_nothing_else(weights, scale):
    codes = normal(12, 4, seed=7)

    def scores(weights):
        moved, change, base = displacements(linear(weights), codes), changes(linear(weights), codes), codes @ weights
        return causal_effect_strength(moved, n_boot=50), (
            *causal_effect_strength(moved, form="normalised", base=base, n_boot=50).values,
            *intervention_specificity(change, n_boot=50).values,
            circuit_modularity(change, form="normalised", activations=base, n_boot=50).value,
        )

    (raw, free), (scaled, free_too) = scores(weights), scores(scale * weights)
    np.testing.assert_allclose(scaled.values, scale * np.array(raw.values))
    np.testing.assert_allclose(scaled.ci, scale * np.array(raw.ci))
    np.testing.assert_allclose(free_too, free)


@given(decoders, st.integers(0, 3))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_dead_latent_has_exactly_no_effect_and_never_ranks(weights, dead):
    weights[dead] = 0.0
    codes = normal(12, 4, seed=7)
    moved, base = displacements(linear(weights), codes), codes @ weights
    for found in (causal_effect_strength(moved), causal_effect_strength(moved, form="normalised", base=base)):
        assert found.values[dead] == 0
        assert found.ci[dead] == (0, 0)
        assert set(found.ranked) == set(range(4)) - {dead}
        assert list(found.ranked) == sorted(found.ranked, key=lambda k: -found.values[k])
    assert (
        dead not in intervention_specificity(changes(linear(weights), codes)).ranked
    )  # its raw score is the largest, 1e6


# ---------------------------------------------------------------- activity and responses


def test_activity_is_kl_and_burdas_variance():
    mu = np.array([[1.0, 0.0, 0.05], [-1.0, 0.0, -0.05], [3.0, 0.0, 0.15]])
    logvar = np.log(np.array([[0.5, 1.0, 1.0]] * 3))
    found = latent_activity.activity(mu, logvar)
    expected = (11 / 3 + 0.5 - 1 - math.log(0.5)) / 2  # mean mu^2 is 11/3
    np.testing.assert_allclose(found.kl.values, [expected, 0.0, (0.0025 + 0.0025 + 0.0225) / 6])
    np.testing.assert_allclose(found.variance.values, [8 / 3, 0.0, 0.02 / 3])
    assert (found.active_units.value, found.informed_units.value) == (1.0, 1.0)  # 0.02 / 3 < 0.01, and 0.0046 nats
    assert found.kl.units == ("latent.z[0]", "latent.z[1]", "latent.z[2]")
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(mu), torch.tensor(logvar).mul(0.5).exp()),
        torch.distributions.Normal(0.0, 1.0),
    )
    np.testing.assert_allclose(found.kl.values, reference.mean(0), atol=1e-12)


def test_a_count_of_active_units_has_an_interval_over_examples():
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(60, 4)) * np.array([1.0, 0.1, 0.1, 0.0])  # variances 1, about .01 twice, 0
    found = latent_activity.activity(mu, np.zeros_like(mu), n_boot=4000)
    deviations = np.square(mu - mu.mean(axis=0))
    literal = np.stack([deviations[rng.integers(60, size=60)].mean(axis=0) for _ in range(4000)])
    counts = (literal > 0.01).sum(axis=1)
    assert found.active_units.ci == tuple(np.quantile(counts, [0.025, 0.975]))
    assert found.active_units.ci[0] < found.active_units.ci[1]
    low, high = np.array(found.variance.ci).T
    np.testing.assert_allclose([low, high], np.quantile(literal, [0.025, 0.975], axis=0), rtol=0.05, atol=1e-12)


def test_activity_of_a_latent_with_positions_adds_nats_and_averages_variances():
    mu, logvar = normal(20, 2, 3, 3), 0.3 * normal(20, 2, 3, 3, seed=1)
    flat = latent_activity.activity(mu.reshape(20, 18), logvar.reshape(20, 18))
    found = latent_activity.activity(mu, logvar)
    np.testing.assert_allclose(found.kl.values, np.reshape(flat.kl.values, (2, 9)).sum(1))
    np.testing.assert_allclose(found.variance.values, np.reshape(flat.variance.values, (2, 9)).mean(1))


def test_response_matrix_is_a_root_mean_square_on_the_scale_of_active_responses():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(3, 50, 2))
    base = rng.normal(size=(50, 2, 4)) * np.array([2.0, 0.05])[:, None]  # the second response is inactive
    raw = latent_response_matrix(changes)
    np.testing.assert_allclose(raw.values, np.sqrt((changes**2).mean(axis=1)))
    assert raw.flags == ("", "")
    found = latent_response_matrix(changes, form="normalised", base=base, n_boot=6000)
    sd = base[:, 0].std()
    np.testing.assert_allclose([row[0] for row in found.values], np.sqrt((changes[..., 0] ** 2).mean(axis=1)) / sd)
    assert [row[1] for row in found.values] == [None] * 3
    assert [row[1] for row in found.ci] == [None] * 3
    assert found.flags == ("", "inactive: variance at most 0.01")
    literal = []
    for _ in range(3000):
        drawn = rng.integers(50, size=50)
        sd = np.sqrt(np.square(base[:, 0] - base[:, 0].mean())[drawn].mean())
        literal.append(np.sqrt((changes[1, drawn, 0] ** 2).mean()) / sd)
    np.testing.assert_allclose(found.ci[1][0], np.quantile(literal, [0.025, 0.975]), atol=0.16 * np.std(literal))
    frame = found.to_frame()
    assert len(frame) == 6
    assert frame.value.isna().sum() == 3
    assert (frame.latent[2], frame.response[2], frame.value[2]) == (1, 0, found.values[1][0])
    assert "none" in str(found)
    assert str(found).endswith("mu[1]: inactive: variance at most 0.01")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latent_activity.activity(np.zeros((3, 2)), np.zeros((3, 1))), r"\(3, 2\) and logvar \(3, 1\)"),
        (lambda: latent_activity.activity(np.zeros(3), np.zeros(3)), r"expected \[example, latent, \*position\]"),
        (lambda: latent_response_matrix(np.zeros((3, 2))), r"expected \[latent, example, response\]"),
        (lambda: latent_response_matrix(np.zeros((3, 2, 1)), form="normalised"), "base=None"),
        (lambda: latent_response_matrix(np.zeros((3, 2, 1)), base=np.zeros((2, 2))), "2 examples, 1 responses"),
    ],
)
def test_bad_latents_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_permuting_latents_permutes_scores_and_repeats_are_identical():
    order = [2, 0, 3, 1]
    samples = displacements(decode)
    assert causal_effect_strength(samples[order]).values == tuple(
        causal_effect_strength(samples).values[i] for i in order
    )
    assert causal_effect_strength(samples) == causal_effect_strength(samples)
    again = changes(hidden)[[2, 0, 1]]
    assert circuit_modularity(again, form="normalised").value == pytest.approx(
        circuit_modularity(changes(hidden)[:3], form="normalised").value
    )


# ---------------------------------------------------------------- results and refusals


def test_latent_scores_read_well_and_tabulate():
    scores = intervention_specificity(changes(decode), form="normalised")
    assert str(scores).splitlines()[0] == "intervention specificity (normalised)"
    assert str(scores).splitlines()[4] == "latent.z[3]  none  dead: no effect"
    frame = scores.to_frame()
    assert list(frame.columns) == ["latent", "unit", "value", "ci_low", "ci_high", "flag"]
    assert frame.value.isna().tolist() == [False] * 3 + [True]
    assert (frame.ci_low[0], frame.ci_high[0]) == scores.ci[0]


def test_metrics_are_found_in_the_package():
    assert metrics.causal_effect_strength(np.ones((2, 7, 3))) == causal_effect_strength(np.ones((2, 7, 3)))
    assert {"circuit_modularity", "intervention_specificity", "LatentScores"} <= set(dir(metrics))
    with pytest.raises(AttributeError, match="ces"):
        _ = metrics.ces


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_effect_strength(np.ones((2, 7))), r"expected \[latent, value, example\]"),
        (lambda: causal_effect_strength(-np.ones((2, 7, 3))), "negative"),
        (lambda: causal_effect_strength(np.ones((2, 7, 0))), "none of them empty"),
        (lambda: causal_effect_strength(np.full((2, 7, 3), np.nan)), "42 entries that are not finite"),
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), form="relative"), "form='relative' is not known"),
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), form="normalised"), "base=None"),
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), form="normalised", base=np.ones((3, 4))), "all alike"),
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), base=np.ones((4, 4))), "3 examples"),
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), kl=np.ones(3)), "2 latents"),
        (lambda: intervention_specificity(np.ones((2, 5, 3)), kl=np.ones(3)), "2 latents"),
        (lambda: circuit_modularity(np.ones((2, 5, 3)), activations=np.ones((5, 4))), "5 examples, 3 units"),
        (lambda: intervention_specificity(np.ones((2, 5))), r"expected \[example, unit\]"),
        (lambda: intervention_specificity(np.ones((2, 5, 1))), "at least two"),
        (lambda: circuit_modularity(np.ones((2, 5))), r"expected \[latent, example, unit\]"),
        (lambda: circuit_modularity(np.ones((2, 5, 3)), form="cosine"), "form='cosine' is not known"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
