"""What permuting latents, scaling outputs and silencing a latent do to the causal metrics, and what they must not."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy_decoder import changes, decode, displacements, hidden, linear, normal

from nnsight_vae.metrics import latent_activity
from nnsight_vae.metrics.causal import (
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
)

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
