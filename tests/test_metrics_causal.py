"""The seed paper's metrics against their formulas written out literally, and closed forms of a linear decoder."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from numpy_decoder import CLAMPS, Z, changes, decode, displacements, hidden, linear, normal

from nnsight_vae import metrics
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.causal import (
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
    output_spread,
)

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


# ---------------------------------------------------------------- dead latents, numbers by hand


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
