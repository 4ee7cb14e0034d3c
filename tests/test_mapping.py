"""Factor maps, factor graphs and interchange accuracy on a linear world, where the right answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear import LinearVAE, LinearWorld

import nnsight_vae as nv
from nnsight_vae.metrics.polysemanticity_rules import verdict_from_bounds

EYE = torch.eye(3, dtype=torch.double)
WORLD = LinearWorld()


def knobs() -> nv.VAE:
    """One latent per factor."""
    return nv.VAE(LinearVAE(EYE, EYE, EYE, EYE, logvar=-8.0))


def rotated() -> nv.VAE:
    """Latents 0 and 1 are the first two factors turned by 45 degrees."""
    c = math.sqrt(0.5)
    turn = torch.tensor([[c, c, 0], [-c, c, 0], [0, 0, 1]], dtype=torch.double)
    return nv.VAE(LinearVAE(EYE, turn, turn.T, EYE, logvar=-8.0))


def mechanism() -> nv.VAE:
    """The latents are the world's exogenous noises: moving the cause's latent moves the effect along the SCM."""
    forward = torch.tensor([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], dtype=torch.double)
    return nv.VAE(LinearVAE(torch.linalg.inv(forward), EYE, EYE, forward, logvar=-8.0))


CODES = torch.linspace(-2.0, 2.0, 9, dtype=torch.double)[:, None]


def coded() -> nv.VAE:
    """Each factor rounded to the nearest of nine codes, one position a factor."""
    return coded_by(LinearVAE(EYE, EYE, EYE, EYE))


def coded_by(model: LinearVAE) -> nv.VAE:
    def encode(x):
        nearest = (model.encode(x)[0][:, :, None] - CODES[:, 0]).abs().argmin(-1)
        return nv.Posterior.point(CODES[nearest].movedim(-1, 1))

    return nv.adapt(
        model, encoder=encode, decoder=lambda z: model.decode(z[:, 0]), codebook=CODES, example=WORLD.sample(2).images
    )


def test_positions_of_a_code_are_mapped_by_the_codes_in_use():
    vae = coded()
    found = nv.causal.map_factors(vae, WORLD, n=200)
    assert found.effects.units == ("latent.z@0", "latent.z@1", "latent.z@2")
    assert found.verdicts == ("monosemantic",) * 3
    assert [found.unit(factor) for factor in WORLD.factors] == ["latent.z@0", "latent.z@1", "latent.z@2"]
    np.testing.assert_allclose(found.kl, math.log(9))
    z = vae.encode(WORLD.sample(200, seed=0).images).mu[:, 0].numpy()
    values, counts = np.unique(z, return_counts=True)
    moved = np.abs(values[:, None, None] - z)  # [code, example, position]
    np.testing.assert_allclose(np.diag(found.size), np.average(moved, axis=0, weights=counts).mean(0))
    assert np.abs(found.size - np.diag(np.diag(found.size))).max() < 1e-9
    for said in ("effect -> latent.z@1", "giving a position the codes in use"):
        assert said in str(found)
    assert "moving a latent across its aggregate posterior" in str(nv.causal.map_factors(knobs(), WORLD, n=200))


def test_swapped_codes_are_knobs_and_draw_no_edges():
    vae = coded()
    found = nv.causal.map_factors(vae, WORLD, n=100)
    graph = nv.causal.factor_graph(vae, WORLD, found)
    assert {factor: graph.nodes[factor]["latent"] for factor in graph} == found.assignment
    assert graph.number_of_edges() == 0
    rows = nv.causal.interchange_accuracy(vae, WORLD, found, n=100).rows
    assert {row.factor for row in rows if not row.joint} == set(WORLD.factors)
    assert all(row.score > 0.85 for row in rows if not row.propagate)  # but for rounding to a code


def test_codes_that_move_two_factors_draw_an_edge_though_their_signed_effects_cancel():
    vae = coded()
    model = vae.unwrap()
    with torch.no_grad():
        model.out.weight[1, 0] = 1.0
    found = nv.causal.map_factors(coupled := coded_by(model), WORLD, n=100)
    assert found.verdicts[0] == "polysemantic"
    assert abs(found.effects.mean()[0, 1]) < 0.2  # codes above and below cancel
    graph = nv.causal.factor_graph(coupled, WORLD, found)
    assert graph.has_edge("cause", "effect")
    assert graph["cause"]["effect"]["size"] == pytest.approx(found.size[0, 1])


def test_independent_knobs_are_monosemantic_and_matched():
    found = nv.causal.map_factors(knobs(), WORLD, n=200)
    assert found.verdicts == ("monosemantic",) * 3
    assert found.assignment == {"cause": 0, "effect": 1, "other": 2}
    assert found.unmatched == ()
    sizes = np.diag(found.size)
    low, high = np.quantile(WORLD.sample(200).factors.numpy(), [0.05, 0.95], axis=0)  # sd e^-4 of posterior noise aside
    np.testing.assert_allclose(sizes, high - low, atol=0.05)
    off = found.size - np.diag(sizes)
    assert np.abs(off).max() < 1e-9


def test_rotated_latents_are_polysemantic_and_the_rest_is_not():
    found = nv.causal.map_factors(rotated(), WORLD, n=200)
    assert found.verdicts == ("polysemantic", "polysemantic", "monosemantic")
    assert found.assignment["other"] == 2


def test_a_latent_the_decoder_ignores_is_dead_and_unmatched():
    off = EYE.clone()
    off[1, 1] = 0
    vae = nv.VAE(LinearVAE(EYE, EYE, off, EYE, logvar=-8.0))
    found = nv.causal.map_factors(vae, WORLD, n=200)
    assert found.verdicts == ("monosemantic", "dead", "monosemantic")
    assert found.assignment["effect"] is None
    assert found.unmatched == (1,)


def test_an_effect_at_the_threshold_is_undetermined():
    exact = nv.causal.map_factors(knobs(), WORLD, n=200)
    borderline = float(exact.size[0, 0])
    # Sizes vary over images only through the value range; make them vary by an input-dependent decoder.

    class Gated(LinearVAE):
        def decode(self, z):
            return super().decode(torch.cat([z[:, :1] * (1 + torch.tanh(z[:, 2:])), z[:, 1:]], 1))

    vae = nv.VAE(Gated(EYE, EYE, EYE, EYE, logvar=-8.0))
    found = nv.causal.map_factors(vae, WORLD, n=60, min_effect=borderline)
    assert found.low[0, 0] < borderline < found.high[0, 0]
    assert found.verdicts[0] == "undetermined"


def test_cancelling_effects_are_still_seen():
    """A latent that moves a factor up on half of the images and down on the other half has mean effect 0, but is not dead."""

    class Flipping(LinearVAE):
        def decode(self, z):
            return super().decode(torch.cat([z[:, :1], z[:, 1:2] * torch.sign(z[:, 2:]), z[:, 2:]], 1))

    found = nv.causal.map_factors(nv.VAE(Flipping(EYE, EYE, EYE, EYE, logvar=-8.0)), WORLD, n=200)
    assert abs(found.effects.mean()[1, 1]) < 0.6
    assert found.size[1, 1] > 2.5
    assert found.verdicts[1] == "monosemantic"


def test_graphs_of_knobs_rotations_and_mechanisms():
    edges = {
        name: set(nv.causal.factor_graph(make(), WORLD, n=150).edges)
        for name, make in (("knobs", knobs), ("mechanism", mechanism))
    }
    assert edges["knobs"] == set()
    assert edges["mechanism"] == {("cause", "effect")}
    graph = nv.causal.factor_graph(rotated(), WORLD, n=150)
    assert {("cause", "effect"), ("effect", "cause")} <= set(graph.edges)
    result = nv.causal.compare(nv.causal.factor_graph(mechanism(), WORLD, n=150), WORLD.graph)
    assert (result.shd, result.f1, result.kind) == (0, 1.0, "total")


def test_a_faithful_autoencoder_preserves_the_worlds_graph():
    graph = nv.causal.factor_graph(rotated(), WORLD, through="inputs", n=150)
    assert set(graph.edges) == {("cause", "effect")}
    assert graph["cause"]["effect"]["effect"] == pytest.approx(0.8 * 2.0)


def test_interchange_tells_knobs_from_mechanisms():
    mapping = {"cause": 0, "effect": 1, "other": 2}
    scores = {}
    for name, make in (("knobs", knobs), ("mechanism", mechanism)):
        result = nv.causal.interchange_accuracy(make(), WORLD, mapping, n=150)
        scores[name] = {(row.factor, row.propagate): row for row in result.rows}
    assert scores["knobs"]["cause", False].score == pytest.approx(1.0)
    # Nothing moved below the cause: the missing share is the effect's, 0.64 of 1 + 0.64.
    assert scores["knobs"]["cause", True].score == pytest.approx(1 - 0.64 / 1.64, abs=1e-6)
    assert scores["mechanism"]["cause", True].score == pytest.approx(1.0)
    assert scores["mechanism"]["cause", False].score == pytest.approx(1 - 0.64, abs=1e-6)
    assert scores["knobs"]["cause", False].control < 0
    row = scores["knobs"]["cause", True]
    assert row.low <= row.score <= row.high


def test_an_effect_below_the_minimum_does_not_take_a_latent_from_a_stronger_one():
    """Latent 0 moves the cause most and the effect a little less; latent 1 moves the cause by less than counts."""
    decoder = torch.tensor([[1.0, 0.08, 0], [0.96, 0, 0], [0, 0, 1]], dtype=torch.double)
    found = nv.causal.map_factors(nv.VAE(LinearVAE(EYE, EYE, decoder, EYE, logvar=-8.0)), WORLD, n=100)
    assert found.size[1, 0] + found.size[0, 1] > found.size[0, 0]  # what a matching of all sizes would prefer
    assert found.assignment == {"cause": 0, "effect": None, "other": 2}
    assert found.unmatched == (1,)


def test_fewer_latents_than_factors_leaves_factors_unmatched_and_the_control_undefined():
    vae = nv.VAE(LinearVAE(EYE, EYE[:1], EYE[:, :1], EYE, logvar=-8.0))
    found = nv.causal.map_factors(vae, WORLD, n=100)
    assert found.assignment == {"cause": 0, "effect": None, "other": None}
    result = nv.causal.interchange_accuracy(vae, WORLD, found, n=50)
    assert result.unmatched == ("effect", "other")
    assert [row.control for row in result.rows] == [None, None]
    assert "none" in str(result)


def test_the_control_is_the_mean_over_the_other_latents():
    """Swapping latent k of independent knobs moves factor k alone: against the cause it errs by both changes."""
    result = nv.causal.interchange_accuracy(knobs(), WORLD, {"cause": 0}, n=100, seed=3)
    base, source = (WORLD.sample(100, seed=seed).factors.numpy() for seed in (3, 4))
    moved = np.square(source - base).mean(0)
    expected = np.mean([1 - (moved[0] + moved[k]) / moved[0] for k in (1, 2)])
    assert result.rows[0].control == pytest.approx(expected)


def test_intervals_of_the_score_bracket_it_and_have_width():
    """The readout's other factors do not follow, so the score of the propagated swap varies over resamples."""
    weak = nv.VAE(LinearVAE(EYE, EYE, torch.diag(torch.tensor([1.0, 1, 0.5], dtype=torch.double)), EYE, logvar=-8.0))
    tangled = nv.VAE(LinearVAE(EYE, EYE, EYE + torch.roll(EYE, 1, 0) * 0.5, EYE, logvar=-8.0))
    for vae in (weak, tangled):
        for row in nv.causal.interchange_accuracy(vae, WORLD, {"other": 2, "effect": 1}, n=60).rows:
            assert row.low <= row.score <= row.high
    shifted = nv.causal.interchange_accuracy(mechanism(), WORLD, {"effect": 1}, n=60).rows[0]
    assert shifted.low < shifted.score < shifted.high


def test_bad_input_is_refused():
    with pytest.raises(nv.DataError, match="n=5"):
        nv.causal.map_factors(knobs(), WORLD, n=5)
    with pytest.raises(nv.DataError, match="min_effect"):
        nv.causal.map_factors(knobs(), WORLD, min_effect=0)
    with pytest.raises(nv.DataError, match="through"):
        nv.causal.factor_graph(knobs(), WORLD, through="walls")
    with pytest.raises(nv.DataError, match="no factors"):
        nv.causal.interchange_accuracy(knobs(), WORLD, {"mass": 0})
    for latent in (3, -1):
        with pytest.raises(nv.DataError, match="latents 0-2"):
            nv.causal.interchange_accuracy(knobs(), WORLD, {"cause": latent})


def test_only_an_intervention_in_the_world_draws_the_graph_through_inputs():
    images = np.random.default_rng(0).random((60, 1, 4, 4))
    data = nv.datasets.from_arrays(images, images[:, 0, 0, :2], names=["a", "b"])
    with pytest.raises(nv.DataError, match="no structural causal model"):
        nv.causal.factor_graph(knobs(), data, through="inputs")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ([0.0, 0.1], [0.2, 0.29], "dead"),
        ([0.4, 0.1], [0.6, 0.2], "monosemantic"),
        ([0.4, 0.2], [0.6, 0.4], "undetermined"),  # the second factor may be above
        ([0.2, 0.1], [0.4, 0.2], "undetermined"),
        ([0.4, 0.5], [0.6, 0.7], "polysemantic"),
        ([0.4, 0.5, 0.2], [0.6, 0.7, 0.4], "polysemantic"),  # whatever the third is
        ([0.4], [0.6], "monosemantic"),
    ],
)
def test_verdicts_follow_from_the_bounds(low, high, verdict):
    assert verdict_from_bounds(np.array(low), np.array(high), 0.3) == verdict


def test_an_edge_needs_its_lower_bound_above_the_minimum_and_keeps_its_sign():
    class Gated(LinearVAE):
        """Moving latent 0 moves the effect down, by more where the other factor is high."""

        def decode(self, z):
            z = super().decode(z)
            return torch.stack([z[:, 0], z[:, 1] - z[:, 0] * (1 + 0.5 * torch.tanh(z[:, 2])), z[:, 2]], 1)

    vae = nv.VAE(Gated(EYE, EYE, EYE, EYE, logvar=-8.0))
    mapping = nv.causal.map_factors(vae, WORLD, n=60)
    edge = nv.causal.factor_graph(vae, WORLD, mapping).edges["cause", "effect"]
    assert edge["effect"] == pytest.approx(mapping.effects.mean()[0, 1])
    assert edge["effect"] == pytest.approx(-edge["size"])
    assert edge["ci_low"] < edge["size"] < edge["ci_high"]
    between = (edge["ci_low"] + edge["size"]) / 2
    assert not nv.causal.factor_graph(vae, WORLD, mapping, min_effect=between).has_edge("cause", "effect")
