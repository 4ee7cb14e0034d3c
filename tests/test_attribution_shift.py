"""Latent shift: the first step along the gradient that moves the target far enough, and what is said where there is none."""

from __future__ import annotations

import pytest
import torch
from attributed import HALVES, vae
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, random_linear_vae

import nnsight_vae as nv
from nnsight_vae.attribution import LatentShift, Shift
from nnsight_vae.attribution.shift import find_shift

__all__ = ["vae"]  # fixtures

few = settings(max_examples=25, deadline=None, derandomize=True)


@few
@given(st.integers(0, 999), st.floats(0.1, 3.0), st.booleans())
def test_of_a_linear_target_the_distance_is_amount_over_slope(seed, amount, down):
    slope = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.double)
    found = find_shift(lambda z: z @ slope, z, -amount if down else amount, farthest=1e3)
    assert found.reached.all()
    assert torch.allclose(found.distance, amount / slope.norm().expand(3), atol=1e-4)
    sign = -1 if down else 1
    assert torch.allclose(found.direction, (sign * slope / slope.norm()).expand(3, 4))


def test_the_first_crossing_is_found_not_a_later_one():
    value = lambda z: torch.sin(2 * z[:, 0])  # reaches .5 at pi/12, and again and again
    found = find_shift(value, torch.zeros(1, 1, dtype=torch.double), 0.5, farthest=6.0)
    assert found.distance.item() == pytest.approx(torch.pi / 12, abs=1e-5)


def test_what_cannot_be_reached_ends_where_the_target_moved_most():
    value = lambda z: torch.sin(z[:, 0])
    z = torch.tensor([[0.0], [1.0]], dtype=torch.double)
    found = find_shift(value, z, 0.9, farthest=4.0)
    assert found.reached.tolist() == [True, False]
    assert found.distance[1].item() == pytest.approx(torch.pi / 2 - 1, abs=4 / 32)


def test_a_target_that_only_moves_the_other_way_stays_where_it_is():
    value = lambda z: z[:, 0] - 50 * z[:, 0] ** 2  # rises for a hundredth, then falls
    found = find_shift(value, torch.zeros(1, 1), 1.0, farthest=4.0)
    assert (found.reached.tolist(), found.distance.tolist()) == ([False], [0.0])


def test_a_target_that_does_not_depend_on_z_goes_nowhere():
    for value in (lambda z: torch.ones(len(z)), lambda z: 0 * z.sum(1)):
        found = find_shift(value, torch.randn(2, 3), 1.0, farthest=4.0)
        assert found.reached.tolist() == [False, False]
        assert found.distance.tolist() == [0.0, 0.0]
        assert not found.direction.any()


def test_of_a_linear_vae_the_frames_are_a_straight_line_of_images():
    model = random_linear_vae(1)
    vae = nv.VAE(model, example=torch.zeros(1, 6, dtype=torch.double))
    readout = LinearReadout(torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double))
    z = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    shift = LatentShift(vae, readout).path(z, "y1", -0.7, n_steps=4, farthest=50.0)
    weight = (model.out.weight @ model.dec.weight).detach()
    slope = readout.c[1] @ weight
    end = z - 0.7 * slope / slope.square().sum()
    steps = torch.linspace(0, 1, 5, dtype=torch.double)[None, :, None]
    assert torch.allclose(shift.latents, z[:, None] + steps * (end - z)[:, None], atol=1e-4)
    assert torch.allclose(shift.frames, shift.latents @ weight.T, atol=1e-12)
    assert torch.allclose(
        shift.readout[:, -1] - shift.readout[:, 0], torch.full((3,), -0.7, dtype=torch.double), atol=1e-4
    )
    assert torch.allclose(shift.distance, 0.7 / slope.norm().expand(3), atol=1e-4)


def test_codes_frames_and_readout_of_a_path_belong_together(vae):
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    shift = LatentShift(vae, HALVES).path(z, "top", 0.01, n_steps=3)
    assert torch.equal(shift.latents[:, 0], z)
    for i in range(4):
        frame = vae.decode(shift.latents[:, i]).detach()
        assert torch.allclose(shift.frames[:, i], frame, atol=1e-6)
        assert torch.allclose(shift.readout[:, i], HALVES(frame)[:, 0], atol=1e-6)
    moved = shift.readout[:, -1] - shift.readout[:, 0]
    assert torch.allclose(moved[shift.reached], torch.tensor(0.01), atol=1e-4)
    lengths = (shift.latents[:, -1] - z).norm(dim=1)
    assert torch.allclose(lengths, shift.distance, atol=1e-5)
    assert repr(shift).startswith("Shift(top by +0.01: 4 frames of 3 examples, reached in ")


def test_maps_say_where_frames_differ():
    frames = torch.tensor([[[0.0, 0.0], [2.0, -1.0], [1.0, -3.0]]])
    shift = Shift(frames, frames, torch.zeros(1, 3), "t", 1.0, torch.ones(1), torch.ones(1, dtype=torch.bool))
    assert shift.map().tolist() == [[2.0, 3.0]]
    assert shift.map("range").tolist() == [[2.0, 3.0]]
    assert shift.map("signed").tolist() == [[1.0, -3.0]]
    with pytest.raises(nv.DataError, match="'max', 'range' or 'signed'"):
        shift.map("mean")


def test_range_and_max_differ_where_frames_go_both_ways():
    frames = torch.tensor([[[0.0], [2.0], [-1.0]]])
    shift = Shift(frames, frames, torch.zeros(1, 3), "t", 1.0, torch.ones(1), torch.ones(1, dtype=torch.bool))
    assert (shift.map("max").item(), shift.map("range").item(), shift.map("signed").item()) == (2.0, 3.0, -1.0)


def test_attribute_is_the_map_of_the_path(vae):
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    method = LatentShift(vae, HALVES)
    for summary in ("max", "range", "signed"):
        expected = method.path(z, 1, -0.01, n_steps=3).map(summary)
        assert torch.equal(method.attribute(z, "bottom", -0.01, n_steps=3, summary=summary), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": None}, nv.ReadoutError, "one target; name it: top, bottom"),
        ({"target": "left"}, nv.ReadoutError, "left"),
        ({"target": 0, "amount": 0.0}, nv.DataError, "other than 0"),
        ({"target": 0, "amount": float("nan")}, nv.DataError, "finite amount"),
        ({"target": 0, "farthest": 0.0}, nv.DataError, "above 0"),
        ({"target": 0, "n_steps": 0}, nv.DataError, "at least one step"),
    ],
)
def test_what_cannot_be_meant_is_refused(vae, arguments, error, message):
    with pytest.raises(error, match=message):
        LatentShift(vae, HALVES).path(torch.zeros(1, 5), **arguments)


def test_on_the_bundled_model_most_shadows_can_be_lengthened():
    vae, data = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum")
    with torch.no_grad():
        z = vae.encode(data.sample(8, seed=0).images).mu
    shift = LatentShift(vae, data.readout()).path(z, "shadow_length", 0.5, n_steps=4)
    assert int(shift.reached.sum()) >= 6
    moved = shift.readout[:, -1] - shift.readout[:, 0]
    assert torch.allclose(moved[shift.reached], torch.tensor(0.5), atol=1e-3)
