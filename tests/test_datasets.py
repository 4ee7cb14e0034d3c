"""Datasets: what is drawn can be read back, interventions do what the SCM says, and a bundled readout reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nnsight_vae.datasets as datasets
from nnsight_vae._regressor import r_squared
from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.datasets.build_readouts import build
from nnsight_vae.datasets.pendulum import render
from nnsight_vae.errors import DataError
from nnsight_vae.readouts import Factors

ROWS = {"light": slice(0, 16), "angle": slice(16, 56), "shadow": slice(56, 64)}  # who owns which rows of the pendulum


@pytest.fixture(scope="module")
def pendulum():
    return datasets.load("pendulum")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def measure_pendulum(images):
    """The four factors by first moments of each object's own colour: no learning, no renderer."""
    images = images.double().numpy()
    red, green, blue = images[:, 0], images[:, 1], images[:, 2]
    x = -2 + (np.arange(64) + 0.5) * 24 / 64
    y = (21 - (np.arange(64) + 0.5) * 24 / 64)[:, None]

    def centre(mass):
        total = mass.sum((1, 2))
        return (mass * x).sum((1, 2)) / total, (mass * y).sum((1, 2)) / total

    ball_x, ball_y = centre((red - green) * (y < 15) * (y > 0))
    light_x, _ = centre((1 - blue) * (y > 16))
    shadow = (1 - red) * (y < -0.5)
    position, _ = centre(shadow)
    length = shadow.sum((1, 2)) * (24 / 64) ** 2  # the strip is one unit high
    return np.stack([np.arctan2(ball_x - 10, 10.5 - ball_y), np.arctan2(10, light_x - 10), length, position], axis=1)


# ---------------------------------------------------------------- pendulum


@pytest.mark.parametrize("draw", ["sample", "sample_independent"])
def test_moments_of_the_image_recover_every_factor_of_the_pendulum(pendulum, draw):
    batch = getattr(pendulum, draw)(500, seed=3)
    inside = (batch.factors[:, 3] - batch.factors[:, 2] / 2 > -2) & (batch.factors[:, 3] + batch.factors[:, 2] / 2 < 22)
    assert inside.double().mean() > 0.9
    scores = r_squared(torch.from_numpy(measure_pendulum(batch.images[inside])), batch.factors[inside])
    assert min(scores) >= 0.999


def test_the_pendulum_follows_its_equations(pendulum):
    batch = pendulum.sample(200, seed=1)
    a, light, length, position = batch.factors.double().numpy().T
    noise = batch.noise
    bare_length = np.maximum(3, 9.5 * np.abs(np.cos(a - light)) / np.sin(light))
    np.testing.assert_allclose(length, bare_length * np.exp(0.3 * np.clip(noise[:, 2], -2, 2)), rtol=1e-6)
    bare_position = 10 + 4.75 * np.sin(a) - (11 - 4.75 * np.cos(a)) / np.tan(light)
    np.testing.assert_allclose(position, bare_position + 1.25 * np.clip(noise[:, 3], -2.5, 2.5), rtol=1e-5)
    assert set(pendulum.graph.edges) == {
        (c, e) for c in ("angle", "light") for e in ("shadow_length", "shadow_position")
    }


def test_every_effect_owns_at_least_a_seventh_of_its_variance(pendulum):
    values, noise = pendulum.scm.sample(20_000, np.random.default_rng(0))
    redrawn = noise.copy()
    redrawn[:, 2:] = np.random.default_rng(1).standard_normal((20_000, 2))
    again = pendulum.scm.counterfactual(redrawn)
    share = ((again - values) ** 2).mean(0) / 2 / values.var(0)  # E Var(x | parents) / Var(x)
    assert (share[2:] >= 0.14).all()
    assert (share[:2] == 0).all()


def test_an_image_depends_on_its_own_factors_only_to_the_bit(pendulum):
    factors = pendulum.sample(150, seed=0).factors.numpy()
    together = render(factors)
    for start, stop in ((0, 1), (60, 70), (149, 150)):
        np.testing.assert_array_equal(render(factors[start:stop]), together[start:stop])


def supersampled(angle, light, length, position, fine=16):
    """One pendulum drawn with hard edges on a fine grid and averaged: what anti-aliasing approximates."""
    x = -2 + (np.arange(64 * fine) + 0.5) * 24 / 64 / fine
    y = (21 - (np.arange(64 * fine) + 0.5) * 24 / 64 / fine)[:, None]
    image = np.ones((3, 64 * fine, 64 * fine))

    def paint(where, colour):
        image[:, where] = np.array(colour)[:, None]

    ball_x, ball_y = 10 + 8 * np.sin(angle), 10.5 - 8 * np.cos(angle)
    along = ((x - 10) * (ball_x - 10) + (y - 10.5) * (ball_y - 10.5)) / 64
    along = np.clip(along, 0, 1)
    paint(np.hypot(x - 10 - along * (ball_x - 10), y - 10.5 - along * (ball_y - 10.5)) < 0.25, (0.5, 0.5, 0.5))
    paint(np.hypot(x - ball_x, y - ball_y) < 1.5, (0.7, 0.13, 0.13))
    paint(np.hypot(x - 10 - 10 / np.tan(light), y - 19) < 1.8, (1, 0.65, 0))
    paint((np.abs(x - position) < length / 2) & (y > -2.2) & (y < -1.2), (0, 0, 0))
    return image.reshape(3, 64, fine, 64, fine).mean((2, 4))


def test_the_drawing_is_the_anti_aliased_scene_in_every_pixel_and_channel(pendulum):
    batch = pendulum.sample(4, seed=11)
    for image, factors in zip(batch.images.double().numpy(), batch.factors.double().numpy(), strict=True):
        error = np.abs(image - supersampled(*factors))
        assert error.max() < 0.08
        assert (error.mean((1, 2)) < 7e-4).all()


def test_images_are_floats_of_what_is_stored_as_uint8(pendulum):
    batch = pendulum.sample(10, seed=4)
    stored = pendulum.images_u8(10, seed=4)
    assert stored.dtype == torch.uint8
    assert batch.images.dtype == batch.factors.dtype == torch.float32
    assert batch.images.shape == (10, *pendulum.image_shape)
    assert torch.equal(batch.images, stored / 255)
    assert (batch.images.min(), batch.images.max()) == (0, 1)


def test_seeds_fix_images_factors_and_noise(pendulum):
    one, two, other = pendulum.sample(5, 7), pendulum.sample(5, 7), pendulum.sample(5, 8)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.factors, two.factors)
    np.testing.assert_array_equal(one.noise, two.noise)
    assert not torch.equal(one.factors, other.factors)


def test_do_gives_the_units_of_sample_and_moves_descendants_only(pendulum):
    batch, moved = pendulum.sample(20, seed=2), pendulum.do(n=20, seed=2, angle=0.4)
    np.testing.assert_array_equal(batch.noise, moved.noise)
    assert torch.equal(moved.factors[:, 0], torch.full((20,), 0.4))
    assert torch.equal(moved.factors[:, 1], batch.factors[:, 1])
    assert (moved.factors[:, 3] != batch.factors[:, 3]).all()
    assert torch.equal(moved.images[:, :, ROWS["light"]], batch.images[:, :, ROWS["light"]])


def test_doing_an_effect_leaves_its_causes_and_siblings_bit_identical(pendulum):
    batch = pendulum.sample(20, seed=2)
    moved = pendulum.counterfactual(batch, shadow_length=6.0)
    assert torch.equal(moved.factors[:, [0, 1, 3]], batch.factors[:, [0, 1, 3]])
    assert torch.equal(moved.images[:, :, :56], batch.images[:, :, :56])


@pytest.mark.parametrize("names", [["angle"], ["light"], ["angle", "light"], ["shadow_length", "shadow_position"]])
def test_a_counterfactual_with_the_factual_values_is_the_identity(pendulum, names):
    batch = pendulum.sample(30, seed=5)
    again = pendulum.counterfactual(batch, **{name: batch.factors[:, pendulum.factors.index(name)] for name in names})
    assert torch.equal(again.factors, batch.factors)
    assert torch.equal(again.images, batch.images)


def test_a_counterfactual_undone_is_the_identity(pendulum):
    batch = pendulum.sample(30, seed=5)
    moved = pendulum.counterfactual(batch, light=1.2)
    assert torch.equal(pendulum.counterfactual(moved).images, batch.images)


def test_independent_factors_keep_their_marginals_and_lose_their_dependence(pendulum):
    observed = pendulum.sample(4000, seed=0).factors.double()
    independent = pendulum.sample_independent(4000, seed=0).factors.double()
    assert abs(torch.corrcoef(observed.T)[1, 3]) > 0.5
    assert (torch.corrcoef(independent.T) - torch.eye(4)).abs().max() < 0.06
    for level in (0.1, 0.5, 0.9):
        gap = observed.quantile(level, dim=0) - independent.quantile(level, dim=0)
        assert (gap.abs() < 0.1 * observed.std(0)).all()


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("factor", ["angle", "light", "shadow_length", "shadow_position"])
def test_pairs_are_oriented_and_one_side_is_the_sampled_image(pendulum, factor, propagate):
    pairs = pendulum.pairs(factor, n=40, seed=3, propagate=propagate)
    column = pendulum.factors.index(factor)
    assert (pairs.base_factors[:, column] < pairs.source_factors[:, column]).all()
    assert (pairs.factor, pairs.propagate, pairs.factor_names) == (factor, propagate, pendulum.factors)
    assert pairs.groups.tolist() == list(range(40))
    factual, _ = pendulum.scm.sample(40, np.random.default_rng([3, 0]))
    at_base = (pairs.base_factors.numpy() == factual).all(1)
    at_source = (pairs.source_factors.numpy() == factual).all(1)
    assert (at_base ^ at_source).all()
    assert 0 < at_base.sum() < 40


def test_pairs_that_propagate_follow_the_scm_with_shared_noise(pendulum):
    pairs = pendulum.pairs("angle", n=40, seed=3)
    _, noise = pendulum.scm.sample(40, np.random.default_rng([3, 0]))
    for factors in (pairs.base_factors, pairs.source_factors):
        expected = pendulum.scm.counterfactual(noise, {"angle": factors[:, 0].numpy()})
        np.testing.assert_array_equal(factors.numpy(), expected)
    assert (pairs.base_factors[:, 3] != pairs.source_factors[:, 3]).all()


@pytest.mark.parametrize("factor", ["angle", "light", "shadow_length", "shadow_position"])
def test_pairs_that_do_not_propagate_change_only_this_factor_and_its_pixels(pendulum, factor):
    pairs = pendulum.pairs(factor, n=40, seed=3, propagate=False)
    others = [j for j, name in enumerate(pendulum.factors) if name != factor]
    assert torch.equal(pairs.base_factors[:, others], pairs.source_factors[:, others])
    changed = (pairs.base != pairs.source).any(1).any(2)  # pair x row
    own = torch.zeros(64, dtype=torch.bool)
    own[ROWS["shadow" if factor.startswith("shadow") else factor]] = True
    assert changed.any(1).all()
    assert not changed[:, ~own].any()


def test_propagating_or_not_changes_descendants_and_nothing_else(pendulum):
    with_, without = pendulum.pairs("angle", 40, 3, propagate=True), pendulum.pairs("angle", 40, 3, propagate=False)
    assert torch.equal(with_.base_factors[:, :2], without.base_factors[:, :2])
    assert torch.equal(with_.source_factors[:, :2], without.source_factors[:, :2])


def test_the_same_seed_gives_the_same_pairs(pendulum):
    one, two, other = (pendulum.pairs("light", 6, seed) for seed in (1, 1, 2))
    assert torch.equal(one.base, two.base)
    assert torch.equal(one.source, two.source)
    assert not torch.equal(one.base_factors, other.base_factors)


def test_objects_at_the_limits_stay_in_the_image(pendulum):
    for factor in ("angle", "light"):
        images = pendulum.do(n=2, seed=0, **{factor: np.array(pendulum.limits[factor])}).images
        middle = pendulum.do(n=2, seed=0, **{factor: sum(pendulum.limits[factor]) / 2}).images
        ink, expected = ((1 - side[:, 2, :56]).sum((1, 2)) for side in (images, middle))
        torch.testing.assert_close(ink, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": 1.0}, "no factor 'colour'. Its factors: angle"),
        ({"angle": 2.0}, r"cannot draw angle = 2.0; expected numbers in \[-1.5, 1.5\]"),
        ({"light": float("nan")}, "cannot draw light"),
        ({"shadow_length": -1}, "cannot draw shadow_length"),
        ({"angle": "left"}, "cannot draw angle"),
        ({"angle": np.zeros(3)}, "shape"),
    ],
)
def test_interventions_that_cannot_be_drawn_are_refused(pendulum, values, message):
    with pytest.raises(DataError, match=message):
        pendulum.do(n=5, seed=0, **values)
    with pytest.raises(DataError, match=message):
        pendulum.counterfactual(pendulum.sample(5), **values)


@pytest.mark.parametrize("n", [0, -3, 1.5, True, None])
def test_a_number_of_images_that_is_no_positive_integer_is_refused(pendulum, digits, n):
    calls = (pendulum.sample, pendulum.images_u8, pendulum.sample_independent, digits.sample, digits.images_u8)
    for call in calls:
        with pytest.raises(DataError, match="positive integer"):
            call(n)
    for data in (pendulum, digits):
        with pytest.raises(DataError, match="positive integer"):
            data.pairs(data.factors[0], n)


def test_a_counterfactual_without_noise_is_refused(pendulum):
    with pytest.raises(DataError, match="carries no noise"):
        pendulum.counterfactual(pendulum.sample_independent(3), angle=0.1)


def test_pairs_of_an_unknown_or_constant_factor_are_refused():
    def draw(values):
        return np.zeros((len(values), 1, 8, 8), np.uint8)

    constant = SCM({"c": Mechanism((), lambda _, noise: 0 * noise, lambda rng, n: rng.random(n))})
    data = datasets.Procedural("flat", constant, draw, (1, 8, 8), {"c": (0, 1)})
    with pytest.raises(DataError, match="takes one value only"):
        data.pairs("c", 4)
    with pytest.raises(DataError, match="no factor 'd'"):
        data.pairs("d", 4)


def test_pairs_of_a_two_valued_factor_always_differ():
    coin = SCM({"coin": Mechanism((), lambda _, noise: (noise > 0.5) * 1.0, lambda rng, n: rng.random(n))})
    data = datasets.Procedural(
        "coin",
        coin,
        lambda v: np.tile((v * 255).astype(np.uint8)[:, :, None, None], (8, 8)),
        (1, 8, 8),
        {"coin": (0, 1)},
    )
    pairs = data.pairs("coin", 100)
    assert (pairs.base == 0).all()
    assert (pairs.source == 1).all()


# ---------------------------------------------------------------- the bundled readout


def test_the_bundled_readout_reads_every_factor_also_independent_and_blurred(pendulum):
    readout = pendulum.readout()
    assert readout.names == pendulum.factors
    stated = readout.record["r2"]
    assert set(stated) == {"observational", "independent", "blur_1.5px"}
    assert all(score >= 0.97 for scores in stated.values() for score in scores.values())
    assert all(score >= 0.97 for score in readout.reliability.values())
    fresh = pendulum.sample_independent(400, seed=77)
    for name, score in readout.reliability_on(fresh.images, fresh.factors).items():
        assert score == pytest.approx(stated["independent"][name], abs=0.01)


@pytest.mark.parametrize("factor", ["angle", "light", "shadow_length", "shadow_position"])
def test_the_bundled_readout_does_not_read_a_factor_off_another(pendulum, factor):
    pairs = pendulum.pairs(factor, n=100, seed=0, propagate=False)
    readout = pendulum.readout()
    moved = (readout(pairs.source) - readout(pairs.base)).abs().mean(0)
    own = pendulum.factors.index(factor)
    assert moved[own] > 0.5
    others = [j for j in range(4) if j != own]
    assert (moved[others] < 0.1 * moved[own]).all()


def test_the_bundled_readout_is_in_observational_standard_deviations(pendulum):
    spread = pendulum.sample(2000, seed=0).factors.std(0)
    torch.testing.assert_close(pendulum.readout().sd, spread, rtol=0.05, atol=0)


def test_the_command_that_makes_readouts_writes_a_loadable_file_that_states_its_scores(pendulum, tmp_path):
    path = build(pendulum, tmp_path / "new", n=200, steps=5, n_test=50)
    readout = Factors.load(path, allow_unreliable=True)
    assert path.name == "pendulum.safetensors"
    assert readout.names == pendulum.factors
    assert readout.record["dataset"] == "pendulum"
    assert readout.record["r2"]["independent"].keys() == set(pendulum.factors)
