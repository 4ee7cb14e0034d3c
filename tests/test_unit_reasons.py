"""Why a unit is undetermined, in words: the data do not decide, or random directions of its layer do as much."""

from __future__ import annotations

import numpy as np
import pytest
from factor_models import factor_vae, factor_world, rotated

import nnsight_vae as nv
from nnsight_vae.metrics.polysemanticity_verdicts import verdicts_from_effects

WORLD = factor_world(0)


def decoder_side(model):
    return nv.causal.unit_verdicts(nv.VAE(model), WORLD, ["latent.z"], side="decoder", n=60)


@pytest.fixture(scope="module")
def turned():
    return decoder_side(rotated(factor_vae(WORLD)))


def test_latents_of_a_rotated_model_are_said_to_be_like_random_directions_with_what_to_do(turned):
    assert set(turned.verdicts) == {"undetermined"}
    assert set(turned.reasons) == {"random directions of its layer do as much"}
    said = str(turned)
    assert "5 of them are undetermined because random directions of their layer move the factors as much" in said
    assert "rotated latent space; nv.causal.learn_rotation looks for such directions" in said
    assert said.count("; random directions of its layer do as much") == 5
    assert set(turned.to_frame()["reason"]) == {"random directions of its layer do as much"}


def test_units_with_a_verdict_have_no_reason_and_no_advice():
    found = decoder_side(factor_vae(WORLD))
    assert set(found.verdicts) == {"monosemantic"}
    assert set(found.reasons) == {""}
    assert "learn_rotation" not in str(found)


def test_the_advice_is_right_a_learned_rotation_finds_what_the_latents_share():
    model = nv.VAE(rotated(factor_vae(WORLD)))
    found = nv.causal.learn_rotation(model, WORLD, n=500, steps=400)
    scores = nv.causal.interchange_accuracy(model, WORLD, found, n=64)
    assert min(row.score for row in scores.rows if not row.propagate) > 0.98


def test_each_undetermined_unit_is_given_the_reason_that_holds_for_it():
    """One factor moved or two, by as much as random directions do or ten times that; and one at the minimum."""
    rng = np.random.default_rng(0)
    sizes = np.array([[1.0, 1.0], [10.0, 10.0], [10.0, 0.0], [1.0, 0.9], [0.2, 0.0]])
    effects = sizes[:, :, None] * rng.gamma(9.0, 1 / 9, (5, 2, 200))
    random = np.tile(np.eye(2), (5, 1, 1))  # as a step of the unit's length in a random direction does
    found = verdicts_from_effects(effects, min_effect=0.2, random=random)
    by_chance, undecided = "random directions of its layer do as much", "the data do not decide"
    assert found.verdicts == ("undetermined", "polysemantic", "monosemantic", "undetermined", "undetermined")
    assert found.reasons == (by_chance, "", "", by_chance, undecided)
    alone = verdicts_from_effects(effects, min_effect=0.2)
    assert alone.verdicts == ("polysemantic", "polysemantic", "monosemantic", "polysemantic", "undetermined")
    assert alone.reasons == ("", "", "", "", undecided)
    assert "learn_rotation" not in str(alone)


def test_dead_units_have_no_reason_however_large_random_directions_are():
    effects = np.random.default_rng(0).gamma(9.0, 0.001, (2, 2, 100))
    found = verdicts_from_effects(effects, min_effect=0.2, random=np.tile(100 * np.eye(2), (2, 1, 1)))
    assert found.verdicts == ("dead", "dead")
    assert found.reasons == ("", "")


def test_observation_says_that_it_cannot_show_a_single_dependence():
    found = nv.causal.unit_verdicts(
        nv.VAE(factor_vae(WORLD)),
        WORLD,
        ["latent.mu"],
        side="observed",
        n=60,
        conditional=lambda factors, j, rng: rng.permutation(factors[:, j]),
    )
    said = {why for why, verdict in zip(found.reasons, found.verdicts, strict=True) if verdict == "undetermined"}
    assert said == {"not two dependences are shown, and observation cannot show that there is no second one"}
