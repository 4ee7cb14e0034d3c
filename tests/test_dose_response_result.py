"""What a dose-response says it found: error rates, tables, pictures and files."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from linear import SITES, LinearWorld, linear_world
from scipy import stats

import nnsight_vae as nv
from nnsight_vae.results.dose_response import DoseResponse

WORLD = LinearWorld()


def test_false_discoveries_stay_below_the_nominal_rate_where_images_are_unrelated_to_the_dose():
    """Fresh images at every dose: over 40 worlds, the share with any discovery (all of them false) is about q."""
    vae, _ = linear_world()
    any_response, any_slope = 0, 0
    for seed in range(40):
        batches = [WORLD.sample(14, seed=1000 * seed + dose).images for dose in range(4)]
        frame = nv.dose_response(vae, nv.Doses(torch.stack(batches), [0.0, 1.0, 2.0, 3.0]), SITES).to_frame(q=0.1)
        any_response += frame["responds"].any()
        any_slope += (frame["slope_q"] <= 0.1).any()
    allowed = 0.1 + 3 * np.sqrt(0.1 * 0.9 / 40)
    assert any_response / 40 <= allowed
    assert any_slope / 40 <= allowed


def test_a_tuned_unit_has_no_slope_and_is_found_all_the_same():
    dose, world = np.linspace(-2, 2, 5), np.random.default_rng(0).normal(1.0, 0.3, 40)
    bump = (np.exp(-(dose**2)) - 0.3)[:, None] * world + 0.05 * np.random.default_rng(7).normal(size=(5, 40))
    values = np.stack([bump, -bump, np.tanh(2 * dose)[:, None] * world, np.sin(3 * dose)[:, None] * world])
    response = DoseResponse(values, ("a[0]", "a[1]", "b[0]", "b[1]"), dose, "size")
    frame = response.to_frame()
    assert frame["shape"].tolist() == ["peak", "dip", "monotone", "mixed"]
    assert (frame["slope_q"][:2] > 0.05).all()
    assert frame["peak"][0] == 0
    assert (np.sign(frame["curvature"][:2]) == [-1, 1]).all()
    assert frame["site"].tolist() == ["a", "a", "b", "b"]


def test_a_least_effect_is_part_of_what_is_tested():
    """Responses of .3 sd are found, and found to be more than .2 and not more than .4; small steps back are then no turn."""
    rng = np.random.default_rng(1)
    curve = np.array([-0.3, 0.0, -0.02, 0.3])[:, None] + 0.02 * rng.normal(size=(4, 60))
    response = DoseResponse(curve[None] - curve.mean(axis=0), ("a[0]",), np.arange(4.0), "size")
    assert response.to_frame().loc[0, "shape"] == "mixed"
    larger = response.to_frame(min_effect=0.2)
    assert (larger.loc[0, "responds"], larger.loc[0, "shape"]) == (True, "monotone")
    assert not response.to_frame(min_effect=0.4).loc[0, "responds"]
    assert response.pvalues(0.4)[0] == 1
    assert response.pvalues(0.3)[0] > 0.01


def test_a_lone_unit_is_found_at_a_strict_rate_too():
    """At .01 among 100 units its p-value must be at most 1e-4, below what 1,999 sign flips can show."""
    values = np.random.default_rng(11).normal(size=(100, 3, 40))
    values[7] += np.array([-3.0, 0.0, 3.0])[:, None]
    names = tuple(f"fc[{i}]" for i in range(100))
    frame = DoseResponse(values, names, np.array([-1.0, 0.0, 1.0]), "angle").to_frame(q=0.01)
    assert frame.unit[frame.responds].tolist() == ["fc[7]"]
    assert frame.loc[7, "shape"] in ("linear", "monotone")


def test_responses_and_steps_are_found_at_a_false_discovery_rate_over_units_and_over_units_x_steps():
    """One clear step each in half of the units: uncorrected, some of the other steps would pass as well."""
    values = 0.3 * np.random.default_rng(12).normal(size=(40, 5, 20))
    values[:20, 3:] += 1.0
    values -= values.mean(axis=1, keepdims=True)
    response = DoseResponse(values, tuple(f"a[{u}]" for u in range(40)), np.arange(5.0), "size")
    frame = response.to_frame(q=0.1)
    p, step_p = response.pvalues(), response.steps.pvalues()
    responds = stats.false_discovery_control(p) <= 0.1
    passed = stats.false_discovery_control(step_p.ravel()).reshape(step_p.shape) <= 0.1
    assert (step_p <= 0.1).sum() > passed.sum() >= 20
    assert (p <= 0.1).sum() > responds.sum() >= 20
    assert frame["responds"].tolist() == responds.tolist()
    for u in range(40):
        signs = [np.sign(step) for step, ok in zip(np.diff(values[u].mean(axis=1)), passed[u], strict=True) if ok]
        turns = sum(a != b for a, b in pairwise(signs))
        kinds = {0: ("linear", "monotone"), 1: ("peak", "dip")}.get(turns, ("mixed",)) if signs else ("undetermined",)
        assert (frame["shape"][u] in kinds) == responds[u]


def test_change_is_relative_to_a_dose_or_to_the_mean():
    vae, _ = linear_world()
    response = nv.dose_response(vae, WORLD.doses("cause", 12, values=[0.0, 1.0, 3.0]), SITES)
    from_one = response.change(reference=1.0)
    assert from_one.targets == ("0", "1", "3")
    assert np.abs(from_one.values[:, 1]).max() == 0
    np.testing.assert_allclose(from_one.values[:, 2] - from_one.values[:, 0], response.steps.values.sum(axis=1))
    np.testing.assert_allclose(response.change().values.sum(axis=1), 0, atol=1e-12)
    assert response.steps.targets == ("0 -> 1", "1 -> 3")
    with pytest.raises(nv.DataError, match=r"0.5 is not one of the doses 0, 1, 3"):
        response.change(reference=0.5)


def test_two_doses_have_a_slope_and_no_curvature_and_groups_reach_the_tests():
    vae, _ = linear_world()
    doses = WORLD.doses("cause", 12, values=[0.0, 1.0])
    grouped = nv.Doses(doses.images, doses.values, groups=torch.arange(12) // 4)
    response = nv.dose_response(vae, grouped, SITES)
    assert response.trend.targets == ("slope", "monotonicity")
    assert response.trend.n_clusters == 3
    assert response.pvalues().min() == 0.25


def test_the_picture_shows_the_curves_of_the_strongest_units_with_their_intervals():
    values = (
        np.random.default_rng(11).normal(size=(8, 3, 20))
        + np.array([0.0, 1.0, 3.0])[:, None] * np.arange(8)[:, None, None] / 8
    )
    values -= values.mean(axis=1, keepdims=True)
    response = DoseResponse(
        values, tuple(f"enc[{u}]" for u in range(8)), np.array([0.0, 1.0, 3.0]), "cause", groups=np.arange(20) // 2
    )
    _, axes = response.plot(top=3)
    strongest = np.argsort(-np.ptp(response.values.mean(axis=2), axis=1))[:3]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert [line.get_label() for line in lines] == [response.units[u] for u in strongest]
    for line, unit in zip(lines, strongest, strict=True):
        np.testing.assert_allclose(line.get_xdata(), [0, 1, 3])
        np.testing.assert_allclose(line.get_ydata(), response.values[unit].mean(axis=1))
    assert "showing 3 of 8 units" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "cause"
    low, high = response.change().ci()
    assert len(axes.collections) == 3
    for band, unit in zip(axes.collections, strongest, strict=True):
        corners = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([corners.min(), corners.max()], [low[unit].min(), high[unit].max()])
    one = DoseResponse(response.values[:, :, :1], response.units, response.doses, "cause")
    assert not one.plot()[1].collections  # one unit of the world: curves without intervals


def test_printing_says_what_was_measured():
    vae, _ = linear_world()
    doses = WORLD.doses("cause", 12, values=[0.0, 1.0, 3.0])
    assert repr(doses) == (
        "Doses(3 values of cause from 0 to 3, 12 units of the world, images (1, 1, 3), propagate=True)"
    )
    text = repr(nv.dose_response(vae, doses, SITES))
    assert text.startswith("DoseResponse(cause: 8 units x 3 doses x 12 units of the world; largest slope ")
    assert text.endswith("sd per sd of cause)")


@pytest.mark.parametrize("groups", [None, np.arange(40) // 2])
def test_a_dose_response_survives_a_file(groups, tmp_path):
    dose, world = np.array([-1.0, 0.25, 1.0]), np.random.default_rng(0).normal(1.0, 0.2, 40)
    values = np.stack([dose[:, None] * world, (dose**2)[:, None] * -world])
    said = {"doses": {"n": 40, "factor": "angle"}}
    rounding = None if groups is None else np.array([0.0, 1e-6])
    response = DoseResponse(values, ("fc[0]", "fc[1]"), dose, "angle", 0.5, groups, rounding, said)
    response.save(tmp_path / "angle.npz")
    again = DoseResponse.load(tmp_path / "angle.npz")
    assert [each.name for each in tmp_path.iterdir()] == ["angle.npz"]
    for name in ("values", "doses", "groups", "rounding"):
        np.testing.assert_array_equal(getattr(again, name), getattr(response, name))
        assert (getattr(again, name) is None) == (getattr(response, name) is None)
    for name in ("units", "factor", "factor_sd", "provenance"):
        assert getattr(again, name) == getattr(response, name)
    assert repr(again) == repr(response)
    assert again.to_frame().equals(response.to_frame())


def test_files_that_are_no_dose_response_are_refused_and_so_are_folders_that_are_not_there(tmp_path):
    response = DoseResponse(np.ones((1, 2, 5)) * [[0.0], [2.0]], ("fc[0]",), np.array([0.1, 0.4]), "angle")
    with pytest.raises(nv.DataError, match="Cannot write dose response to"):
        response.save(tmp_path / "nowhere" / "angle.npz")
    with pytest.raises(nv.DataError, match=r"not a readable dose response file .*dose-response@1"):
        DoseResponse.load(tmp_path / "angle.npz")
    response.change().save(tmp_path / "effects.npz")
    with pytest.raises(nv.DataError, match="effects@2"):
        DoseResponse.load(tmp_path / "effects.npz")
    response.save(tmp_path / "angle.npz")
    with pytest.raises(nv.DataError, match="dose-response@1"):
        nv.Effects.load(tmp_path / "angle.npz")
