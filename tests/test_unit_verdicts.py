"""Verdicts for units of any layer: on models wired by hand every unit is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factor_models import factor_vae, factor_world, rotated, untrained
from linear import LinearReadout, LinearVAE, LinearWorld
from torch import nn

import nnsight_vae as nv
from nnsight_vae.causal import unit_verdicts
from nnsight_vae.causal.unit_effects import effects_of_units

WORLD, LINEAR = factor_world(0), LinearWorld()
EYE = torch.eye(3, dtype=torch.double)
MODEL = factor_vae(WORLD, spare=1)


def linear_vae(encoder: list[list[float]], decoder: list[list[float]]) -> nv.VAE:
    first, last = (torch.tensor(each, dtype=torch.double) for each in (encoder, decoder))
    return nv.VAE(
        LinearVAE(first, torch.eye(len(first)).double(), torch.eye(last.shape[1]).double(), last, logvar=-8.0)
    )


def test_every_unit_of_the_hand_built_encoder_is_its_factors():
    found = unit_verdicts(nv.VAE(MODEL), WORLD, ["encoder.1", "latent.mu"], n=100)
    for unit, verdict, named in zip(found.units, found.verdicts, found.named, strict=True):
        site, index = unit.rstrip("]").split("[")
        owners = {k: factor for factor, k in MODEL.latents.items()}
        factor = WORLD.factors[int(index) // 2] if site == "encoder.1" else owners.get(int(index))
        assert (verdict, named) == (("monosemantic", (factor,)) if factor else ("dead", ()))


def test_every_unit_of_the_hand_built_decoder_moves_its_factor_or_none():
    vae = nv.VAE(MODEL)
    found = unit_verdicts(vae, WORLD, side="decoder", n=60)
    assert set(found.verdicts) == {"dead", "monosemantic"}
    for unit, named in zip(found.units, found.named, strict=True):
        site, index = unit.rstrip("]").split("[")
        if site == "decoder.0":  # a thermometer's units cancel but for the first and the last, which is never reached
            assert named == ((WORLD.factors[int(index) // 9],) if int(index) % 9 == 0 else ())
        elif site == "latent.z":
            assert named == tuple(factor for factor, k in MODEL.latents.items() if k == int(index))


def test_units_tuned_to_a_cause_alone_are_not_called_polysemantic_as_marginal_tests_call_them():
    """30 units read the cause (and noise); its effect follows it in the world. Marginally all of them go with both."""
    rng = np.random.default_rng(0)
    weights = np.column_stack([rng.uniform(0.5, 2, 30), np.zeros(30), np.zeros(30)])
    vae = linear_vae(weights.tolist(), np.linalg.pinv(weights).tolist())
    batch = LINEAR.sample(400)
    activations = batch.factors.numpy() @ weights.T
    correlation = np.corrcoef(activations.T, batch.factors.numpy().T)[:30, 30:]
    assert (np.abs(correlation[:, 1]) > 0.7).all()  # p < 1e-60, each
    found = unit_verdicts(vae, LINEAR, ["enc"], n=200)
    assert found.verdicts == ("monosemantic",) * 30
    assert found.units_of("cause") == found.units


def test_a_units_own_sd_is_the_scale_and_half_of_each_is_two():
    found = unit_verdicts(linear_vae([[5, 0, 0], [1, 0, 1], [0, 0, 0]], EYE.tolist()), LINEAR, ["enc"], n=200)
    assert found.verdicts == ("monosemantic", "polysemantic", "dead")
    assert found.named[1] == ("cause", "other")
    sample = LINEAR.sample(256).factors.numpy()
    assert found.size[0, 0] == pytest.approx(2 / sample[:, 0].std())  # pairs of this world are 2 apart
    assert found.size[1, 2] == pytest.approx(2 / (sample[:, 0] + sample[:, 2]).std())


def test_moving_a_unit_is_by_two_of_its_sd_and_random_directions_are_as_long():
    vae = linear_vae(EYE.tolist(), [[2, 0, 0], [0, 3, 0], [1, 0, 0]])
    x = LINEAR.sample(50).images
    found = effects_of_units(vae, x, ["dec"], LINEAR.readout(), n_random=1500, seed=0)
    sd = x.flatten(1).numpy().std(0)
    want = 2 * sd[:, None] * np.array([[2, 0, 1], [0, 3, 0], [0, 0, 0]])
    np.testing.assert_allclose(found.values, np.repeat(want[:, :, None], 50, axis=2), atol=1e-12)
    # Over the sphere E v_u v_w = 1/3 where u = w, else 0; unit u is compared with a step of its own length.
    per_sd = np.array([[2, 0, 1], [0, 3, 0], [0, 0, 0]])
    moments = 4 * per_sd.T @ per_sd / 3
    for u in range(3):
        np.testing.assert_allclose(found.random[u], sd[u] ** 2 * moments, rtol=0.08, atol=0.04 * moments.max())


class Channels(nn.Module):
    """Two channels of four positions each; the decoder reads each channel's sum, and one position of the other on top."""

    def encode(self, x):
        return x.flatten(1)[:, :2], torch.full((len(x), 2), -8.0, dtype=x.dtype)

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(2, 2, 1, bias=False).double()
        with torch.no_grad():
            self.maps.weight.copy_(torch.eye(2)[:, :, None, None])

    def decode(self, z):
        maps = self.maps(z[:, :, None, None].expand(-1, -1, 2, 2))
        return torch.cat([maps.sum((2, 3)), maps[:, 1, :1, 0]], 1)


def test_channels_are_moved_everywhere_and_single_positions_can_be_asked_for():
    world = LinearWorld()
    vae = nv.VAE(Channels(), example=world.sample(2).images)
    x = world.sample(40).images
    read = LinearReadout(EYE)
    sd = x.flatten(1)[:, :2].numpy().std(0)
    both = effects_of_units(vae, x, ["maps"], read, n_random=5, seed=0).values[..., 0]
    np.testing.assert_allclose(both, 2 * sd[:, None] * np.array([[4, 0, 0], [0, 4, 1]]), atol=1e-9)
    there = effects_of_units(vae, x, ["maps@0,0"], read, n_random=5, seed=0).values[..., 0]
    np.testing.assert_allclose(there, 2 * sd[:, None] * np.array([[1, 0, 0], [0, 1, 1]]), atol=1e-9)


class Opposed(Channels):
    """What a channel shows at one position it takes away at the next: its mean over positions never varies."""

    def decode(self, z):
        signs = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=z.dtype)
        maps = self.maps(z[:, :, None, None] * signs)
        return torch.cat([maps.sum((2, 3)), maps[:, 1, :1, 0]], 1)


def test_a_channel_whose_positions_cancel_is_moved_by_the_spread_at_a_position():
    vae, x = nv.VAE(Opposed(), example=LINEAR.sample(2).images), LINEAR.sample(40).images
    sd = x.flatten(1)[:, :2].numpy().std(0)
    found = effects_of_units(vae, x, ["maps"], LinearReadout(EYE), n_random=5, seed=0).values[..., 0]
    np.testing.assert_allclose(found, 2 * sd[:, None] * np.array([[4, 0, 0], [0, 4, 1]]), atol=1e-9)


def test_random_directions_of_a_rotated_latent_are_not_declared_though_every_one_moves_several():
    found = unit_verdicts(nv.VAE(rotated(factor_vae(WORLD))), WORLD, ["latent.z"], side="decoder", n=60)
    assert (found.size > 0.1).sum(axis=1).min() > 2
    assert set(found.verdicts) == {"undetermined"}


@pytest.mark.slow
def test_no_unit_of_untrained_models_is_declared_to_stand_for_anything():
    """20 models whose output is scaled up so that units move what is read: in about one of twenty any may be declared at all."""
    families = moving = 0
    for seed in range(20):
        model = untrained(WORLD, seed)
        with torch.no_grad():
            model.decoder[2].weight.mul_(10)
        found = unit_verdicts(nv.VAE(model), WORLD, side="decoder", n=40, seed=seed)
        moving += int((found.size > 0.1).any(axis=1).sum())
        families += bool({"monosemantic", "polysemantic"} & set(found.verdicts))
    assert moving > 400  # of 1000: they do move it
    assert families <= 1


def test_observed_units_that_depend_on_one_factor_or_two_are_told_apart_given_the_rest():
    found = unit_verdicts(
        linear_vae([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], np.zeros((3, 4)).tolist()),
        LINEAR,
        ["enc"],
        side="observed",
        n=300,
        conditional=given_others,
    )
    assert found.verdicts == ("undetermined", "undetermined", "polysemantic", "undetermined")
    assert found.named[2] == ("cause", "other")
    assert found.low is None
    np.testing.assert_allclose(np.diag(found.size), [1, 1, found.size[2, 2]])
    assert "no p-value of a unit and factor is below" in str(found)
    with pytest.raises(nv.DataError, match=r"SCM\.linear"):
        unit_verdicts(nv.VAE(MODEL), LINEAR, side="observed")


def given_others(factors: np.ndarray, column: int, rng: np.random.Generator) -> np.ndarray:
    """cause ~ N(0, 1), effect = .8 cause + .6 noise: correlation .8 of two standard normals; other is on its own."""
    noise = rng.standard_normal(len(factors))
    return noise if column == 2 else 0.8 * factors[:, 1 - column] + 0.6 * noise


def test_the_metric_is_the_same_thing():
    vae = nv.VAE(MODEL)
    ours = unit_verdicts(vae, WORLD, ["latent.mu"], n=40)
    assert nv.metrics.polysemanticity(vae, WORLD, sites=["latent.mu"], n=40).verdicts == ours.verdicts
    assert ours.factors == WORLD.factors
    with pytest.raises(nv.DataError, match="data set with factors"):
        nv.metrics.polysemanticity(vae)


def test_default_sites_are_those_of_the_side():
    vae = nv.VAE(MODEL)
    sites = {
        side: {unit.split("[")[0] for unit in unit_verdicts(vae, WORLD, side=side, n=20).units}
        for side in ("encoder", "decoder")
    }
    assert sites["encoder"] == {"encoder.1", "mu", "latent.z"}
    assert sites["decoder"] == {"latent.z", "decoder.0"}


def test_images_without_a_causal_model_are_matched_and_a_factor_of_one_value_is_left_out_with_the_reason():
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2), -1).reshape(-1, 2)
    factors = np.column_stack([np.tile(grid, (8, 1)), np.ones(200)])
    images = np.pad((factors[:, None, None, :] + 1) / 2, ((0, 0), (0, 0), (0, 0), (0, 1)))  # four wide: no channels
    data = nv.datasets.from_arrays(images, factors, names=["a", "b", "still"])
    rows = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.double)
    vae = nv.VAE(LinearVAE(rows, EYE[:2, :2], EYE[:2, :2], rows.T, logvar=-8.0).float())
    found = unit_verdicts(vae, data, ["enc"], n=60)
    assert found.factors == ("a", "b")
    assert found.verdicts == ("monosemantic", "monosemantic")
    assert "still is left out" in str(found)


def test_the_model_stays_as_it_was():
    vae, before = nv.VAE(MODEL), {k: v.clone() for k, v in MODEL.state_dict().items()}
    for side in ("encoder", "decoder"):
        unit_verdicts(vae, WORLD, ["latent.z"], side=side, n=20)
    assert all(torch.equal(v, before[k]) for k, v in MODEL.state_dict().items())
    assert not any(module._forward_hooks for module in MODEL.modules())


def test_bad_input_is_refused():
    vae = nv.VAE(MODEL)
    for options, said in (
        ({"side": "both"}, "expected 'encoder', 'decoder' or 'observed'"),
        ({"n": 10}, "at least 20"),
        ({"factors": ["mass"]}, "no factors mass"),
        ({"min_effect": -1.0}, "min_effect"),
        ({"method": "holm"}, "method"),
        ({"n_random": 0}, "at least 16 random directions"),
    ):
        with pytest.raises(nv.DataError, match=said):
            unit_verdicts(vae, WORLD, **options)
    with pytest.raises(nv.SiteError, match="not a site"):
        unit_verdicts(vae, WORLD, ["decoder.99"])
    with pytest.raises(nv.AdapterError, match="wrap it first"):
        unit_verdicts(MODEL, WORLD)
