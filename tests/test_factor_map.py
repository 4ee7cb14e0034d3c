"""Factor maps of models whose latents are known, from both sides: what a latent moves, and what changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factor_models import factor_vae, factor_world, rotated, untrained
from linear import LinearReadout, LinearVAE, LinearWorld

import nnsight_vae as nv
from nnsight_vae.causal import FactorAnswers
from nnsight_vae.datasets.rendering import Renderer
from nnsight_vae.stats.skewness import simultaneous_interval

# With few latents, moving one that goes with others leaves the manifold; that is said, and tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:.* interventions take most codes further")
EYE = torch.eye(3, dtype=torch.double)
WORLD = LinearWorld()


def linear(encoder=EYE, decoder=EYE, logvar=-8.0) -> nv.VAE:
    return nv.VAE(LinearVAE(EYE, encoder, decoder, EYE, logvar=logvar))


@pytest.mark.parametrize("kind", [(0, 5, True), (1, 4, True), (3, 5, False)], ids=str)
def test_latents_that_are_the_factors_are_matched_to_them_and_monosemantic(kind):
    world = factor_world(*kind)
    model = factor_vae(world, seed=1, spare=1)
    found = nv.causal.map_factors(nv.VAE(model), world, n=60)
    assert found.assignment == model.latents
    assert found.unmatched_factors == ()
    (spare,) = found.unmatched
    assert found.dead == (spare,)
    for k, verdict in enumerate(found.verdicts):
        assert verdict == ("dead" if k == spare else "monosemantic")
        assert found.factors_of(k) == tuple(factor for factor, place in model.latents.items() if place == k)


def test_nothing_is_declared_of_untrained_models():
    world = factor_world(0)
    for seed in range(20):
        found = nv.causal.map_factors(nv.VAE(untrained(world, seed)), world, n=24, seed=seed)
        assert set(found.assignment.values()) == {None}
        assert not {"monosemantic", "polysemantic"} & set(found.verdicts)


def test_a_latent_in_which_no_factor_leaves_a_mark_is_dead_whatever_moving_it_does():
    """The encoder's mean wanders by .005 of a latent whose posterior is as wide as the prior."""
    found = nv.causal.map_factors(
        linear(encoder=torch.diag(torch.tensor([1.0, 0.005, 1.0]).double()), logvar=0.0), WORLD, n=100
    )
    assert found.size[1, 1] > 2.5
    assert found.verdicts == ("monosemantic", "dead", "monosemantic")
    assert found.assignment == {"cause": 0, "effect": None, "other": 2}
    assert found.unmatched_factors == ("effect",)
    assert found.answers.size[1, 1] < 0.02


def test_everything_collapsed_is_dead_and_unmatched():
    found = nv.causal.map_factors(linear(encoder=0 * EYE, logvar=0.0), WORLD, n=60)
    assert found.verdicts == ("dead",) * 3
    assert found.unmatched == (0, 1, 2)
    assert found.unmatched_factors == WORLD.factors
    assert "cause by no latent" in str(found)


def test_a_latents_answer_is_its_change_in_sd_of_its_aggregate_posterior():
    encoder = torch.tensor([[1.0, 0, 0], [0, 1, 0.5], [0, 0, 1]], dtype=torch.double)
    found = nv.causal.map_factors(linear(encoder=encoder, logvar=0.0), WORLD, n=250).answers
    variance = np.array([1.0, 1.25, 1.0]) + 1.0  # of the means, and of the posterior around them
    want = (
        2 * np.array([[1, 0, 0], [0, 1, 0.5], [0, 0, 1]]) / np.sqrt(variance)[:, None]
    )  # pairs of this world are 2 apart
    np.testing.assert_allclose(found.size, want, rtol=0.1)
    np.testing.assert_allclose(found.size[1, 2], found.size[1, 1] / 2)
    assert ((found.low <= found.size) & (found.size <= found.high)).all()
    np.testing.assert_array_equal(found.q < 0.05, want > 0.1)


def test_who_carries_what_is_many_to_many_and_needs_both_sides():
    found = nv.causal.map_factors(nv.VAE(rotated(factor_vae(factor_world(0)))), factor_world(0), n=60)
    for j, factor in enumerate(found.factors):
        carriers = found.latents_of(factor)
        assert len(carriers) > 1
        assert list(found.size[list(carriers), j]) == sorted(found.size[list(carriers), j], reverse=True)
        assert all(factor in found.factors_of(k) for k in carriers)
    # The cause's latent moves the effect along, but the effect, changed alone, leaves no mark in it.
    forward = torch.tensor([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], dtype=torch.double)
    mechanism = nv.VAE(LinearVAE(torch.linalg.inv(forward), EYE, EYE, forward, logvar=-8.0))
    found = nv.causal.map_factors(mechanism, WORLD, n=100)
    assert found.verdicts[0] == "polysemantic"
    assert found.factors_of(0) == ("cause",)
    assert found.assignment == {"cause": 0, "effect": 1, "other": 2}
    assert found.answers.heard(0, "effect") is False


def test_q_values_are_over_latents_and_factors():
    found = nv.causal.map_factors(linear(), WORLD, n=100)
    np.testing.assert_array_equal(found.q < 0.05, np.eye(3, dtype=bool))
    frame = found.to_frame()
    assert list(frame.columns) == [
        *(
            "latent",
            "factor",
            "effect",
            "size",
            "ci_low",
            "ci_high",
            "q",
            "answer",
            "answer_low",
            "answer_high",
            "answer_q",
        ),
        *("carried", "assigned", "verdict", "kl"),
    ]
    assert frame["carried"].tolist() == np.eye(3, dtype=bool).ravel().tolist()
    np.testing.assert_allclose(frame["answer"].to_numpy(float), found.answers.size.ravel())


def test_all_bounds_hold_at_once_with_half_of_the_error_for_each_side():
    """5 % twice in nine cells: the bounds are those of `simultaneous_interval` at 97.5 %."""

    class Gated(LinearVAE):
        def decode(self, z):
            return super().decode(z * (1 + 0.5 * torch.tanh(z[:, 2:])))

    found = nv.causal.map_factors(nv.VAE(Gated(EYE, EYE, EYE, EYE, logvar=-8.0)), WORLD, n=60)
    assert (found.high - found.low)[0, 0] > 0.05
    np.testing.assert_allclose((found.low, found.high), simultaneous_interval(found.magnitude, 0.975))


def test_a_latent_is_silent_only_if_every_factor_was_tried_and_is_clearly_below():
    def silent(high, low=0.0, missing=()):
        table = np.array([[0.05, low]])
        bounds = (table, table, np.array([[0.05, high]]))
        return FactorAnswers(("a", "b"), dict.fromkeys(missing, "one value"), *bounds, table, 0.1).silent(0)

    assert silent(high=0.09) is True
    assert silent(high=0.2) is None
    assert silent(high=0.4, low=0.2) is False
    assert silent(high=0.09, missing=["c"]) is False


def test_factors_that_cannot_be_changed_alone_are_missing_with_the_reason_and_judged_by_what_moves_them():
    still = Renderer({"a": (-3, 3), "b": (-3, 3)}, (1, 2, 8), lambda f: np.zeros((len(f), 1, 2, 8), np.uint8))
    normal = lambda rng, n: rng.normal(size=n)
    scm = nv.causal.SCM(
        {
            "a": nv.causal.Mechanism((), lambda parents, noise: noise.clip(-3, 3), normal),
            "b": nv.causal.Mechanism((), lambda parents, noise: 0 * noise, normal),
        }
    )
    data = nv.datasets.procedural.Procedural.drawn("still", scm, still)
    model = nv.models.MLPVAE(image_shape=(1, 2, 8), latent=2)
    found = nv.causal.map_factors(nv.VAE(model), data, n=30, readout=LinearReadout(torch.ones(2, 16), ("b", "mass")))
    assert set(found.answers.missing) == {"b", "mass"}
    assert "takes one value only" in found.answers.missing["b"]
    assert found.answers.size.shape == (2, 0)
    assert found.answers.heard(0, "b") is None
    assert found.to_frame()["answer"].isna().all()
    assert "mass was not changed alone" in str(found)


def test_images_without_a_causal_model_are_changed_by_matching():
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2), -1).reshape(-1, 2)
    factors = np.tile(grid, (8, 1))
    images = np.pad((factors[:, None, None, :] + 1) / 2, ((0, 0), (0, 0), (0, 0), (0, 2))).astype(np.float64)
    data = nv.datasets.from_arrays(images, factors, names=["a", "b"])
    rows = torch.eye(4, dtype=torch.double)[:2]
    small = torch.eye(2, dtype=torch.double)
    vae = nv.VAE(LinearVAE(rows, small, small, rows.T, logvar=-8.0).float())
    found = nv.causal.map_factors(vae, data, n=60, readout=LinearReadout(2 * rows.float(), ("a", "b")))
    assert found.verdicts == ("monosemantic", "monosemantic")
    assert found.answers.match["a"]["b"] == 0
    assert found.answers.match["a"]["a"] >= 1


def test_categories_that_are_read_as_numbers_are_pointed_out():
    shape = nv.causal.Mechanism.categorical((0, 1, 2), (0.3, 0.3, 0.4))
    data = LinearWorld()
    data.scm, data.discrete = nv.causal.SCM({**data.scm.mechanisms, "other": shape}), ("other",)
    with pytest.warns(nv.NnsightVaeWarning, match=r"other \(3 values\): read as a number, .*classes\('other'\)"):
        nv.causal.map_factors(linear(), data, n=20)
    data.scm = nv.causal.SCM({**data.scm.mechanisms, "other": nv.causal.Mechanism.categorical((0, 1), (0.5, 0.5))})
    nv.causal.map_factors(linear(), data, n=20)  # of two values any numbers will do


def test_minimum_of_answers_is_refused_where_it_is_none():
    with pytest.raises(nv.DataError, match="min_answer"):
        nv.causal.map_factors(linear(), WORLD, min_answer=0.0)
