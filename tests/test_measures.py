"""Closed-form measures: right on rendered images whatever the factors, and what learned readouts are held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnsight_vae import datasets
from nnsight_vae._regressor import r_squared
from nnsight_vae.errors import DataError

WORLDS = {
    "pendulum": ("angle", "light", "shadow_length", "shadow_position"),
    "flow": ("ball_size", "water_height", "hole", "flow"),
    "linear_sprites": ("backdrop", "size", "hue", "height", "satellite_size", "satellite_angle"),
    "room": ("wall_hue", "floor_hue", "object_hue"),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("draw", ["sample", "sample_independent"])
def test_measures_are_the_factors(name, draw):
    data = datasets.load(name)
    batch = getattr(data, draw)(300, seed=5)
    found = data.measure(batch.images)
    assert tuple(found) == WORLDS[name]
    table = torch.stack(list(found.values()), dim=1)
    true = batch.factors[:, [data.factors.index(factor) for factor in found]]
    scores = r_squared(table, true)
    assert min(scores) >= 0.999, dict(zip(found, scores, strict=True))
    for column in range(len(scores)):
        slope, intercept = np.polyfit(true[:, column].double(), table[:, column], 1)
        assert slope == pytest.approx(1, abs=0.02)
        assert intercept == pytest.approx(0, abs=0.02 * float(true[:, column].abs().max()))


def test_the_learned_readout_agrees_with_the_measures():
    data = datasets.load("pendulum")
    readout = data.readout()
    for images in (data.sample(300, seed=6).images, data.sample_independent(300, seed=7).images):
        measured = torch.stack(list(data.measure(images, readout.names).values()), dim=1)
        assert min(r_squared(readout.predict(images), measured)) > 0.96


def test_measures_take_bytes_and_names_and_say_where_nothing_is_to_be_seen():
    data = datasets.load("pendulum")
    images = data.sample(3).images
    as_bytes = (images * 255).round().to(torch.uint8)
    assert torch.equal(data.measure(as_bytes, "light")["light"], data.measure(images, ["light"])["light"])
    blank = torch.ones(2, 3, 64, 64)
    found = data.measure(blank)
    assert found["shadow_length"].tolist() == [0, 0]
    for factor in ("angle", "light", "shadow_position"):
        assert found[factor].isnan().all(), factor


def test_what_cannot_be_measured_is_refused():
    room, sprites = datasets.load("room"), datasets.load("independent_sprites")
    with pytest.raises(DataError, match="no closed form for light; there is for: wall_hue, floor_hue, object_hue"):
        room.measure(room.sample(1).images, "light")
    with pytest.raises(DataError, match="no closed form for any factor; there is for: none"):
        sprites.measure(sprites.sample(1).images)
    with pytest.raises(DataError, match=r"shape \(1, 1, 64, 64\), expected \(n, 3, 64, 64\)"):
        room.measure(torch.zeros(1, 1, 64, 64))


# ------------------------------------------------------------------ noise told from factors
@pytest.mark.parametrize("name", ["pendulum", "flow", "linear_sprites"])
def test_a_counterfactual_needs_no_noise_where_mechanisms_can_be_inverted(name):
    data = datasets.load(name)
    batch = data.sample(40, seed=3)
    bare = datasets.Batch(batch.images, batch.factors)
    inside = np.abs(batch.noise).max(1) < 2 if name == "pendulum" else np.ones(40, dtype=bool)  # others are clipped
    np.testing.assert_allclose(data.scm.abduct(batch.factors.numpy())[inside], batch.noise[inside], atol=2e-3)
    cause = data.factors[0]
    value = float(batch.factors[:, 0].median())
    known, told = data.counterfactual(batch, **{cause: value}), data.counterfactual(bare, **{cause: value})
    torch.testing.assert_close(told.factors, known.factors, rtol=1e-4, atol=1e-4)
    assert (told.images - known.images).abs().max() < 0.02


def test_noise_of_a_discrete_factor_cannot_be_told():
    room = datasets.load("room")
    batch = room.sample(3)
    with pytest.raises(DataError, match=r"carries no noise, .* has no inverse"):
        room.counterfactual(datasets.Batch(batch.images, batch.factors), light=0.0)
