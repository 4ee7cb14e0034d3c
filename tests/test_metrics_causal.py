"""The seed paper's metrics against their formulas written out literally, and closed forms of a linear decoder."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from nnsight_vae import metrics
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.causal import (
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
    output_spread,
)

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
        return causal_effect_strength(
            displacements(decoder), form="normalised", spread=output_spread(decoder(Z).reshape(30, -1))
        )

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


def test_specificity_and_modularity_intervals_equal_a_literal_bootstrap_over_examples():
    pixels, units = changes(decode), changes(hidden)[:3]
    rng = np.random.default_rng(2)
    specificity, modularity = [], []
    for _ in range(3000):
        drawn = rng.integers(30, size=30)
        specificity.append(intervention_specificity([pixels[0, drawn]], form="normalised", n_boot=1).values[0])
        modularity.append(circuit_modularity(units[:, drawn], form="normalised", n_boot=1).value)
    for literal, ours in (
        (specificity, intervention_specificity(pixels, form="normalised", n_boot=6000).ci[0]),
        (modularity, circuit_modularity(units, form="normalised", n_boot=6000).ci),
    ):
        np.testing.assert_allclose(ours, np.quantile(literal, [0.025, 0.975]), atol=0.16 * np.std(literal))


def test_one_example_has_scores_and_no_interval():
    assert causal_effect_strength(displacements(decode, Z[:1])).ci == (None,) * 4
    assert intervention_specificity(changes(decode, Z[:1])).ci == (None,) * 4
    assert circuit_modularity(changes(hidden, Z[:1]), form="normalised").ci is None


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
    assert str(scores).splitlines()[4] == "latent.z[3]  none  dead: effect at most 1 % of the strongest latent's"
    frame = scores.to_frame()
    assert list(frame.columns) == ["latent", "value", "ci_low", "ci_high", "flag"]
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
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), form="normalised"), "spread=None"),
        (lambda: causal_effect_strength(np.ones((2, 7, 3)), form="normalised", spread=0.0), "every input alike"),
        (lambda: intervention_specificity(np.ones((2, 5))), r"expected \[example, unit\]"),
        (lambda: intervention_specificity(np.ones((2, 5, 1))), "at least two"),
        (lambda: circuit_modularity(np.ones((2, 5))), r"expected \[latent, example, unit\]"),
        (lambda: circuit_modularity(np.ones((2, 5, 3)), form="cosine"), "form='cosine' is not known"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
