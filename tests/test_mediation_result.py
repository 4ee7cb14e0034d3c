"""Mediation: the analytic fixture, the exact identities, and proportions that are refused rather than wild."""

import re
import warnings

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from nnsight_vae import statistics
from nnsight_vae.errors import DataError
from nnsight_vae.mediation_result import Mediation

QUANTITIES = ("te", "nde", "pnie", "tnie", "interaction")
# M = a0 + a X + e;  Y = b0 + c X + b M + d X M + e'  (research note on mediation, analytic fixture)
A0, A, B0, B, C, D = 0.3, 0.8, -0.2, 1.2, 0.5, 0.7


def of(base, source, noised, denoised, targets=("y",), **fields):
    return Mediation.from_runs(base, source, noised, denoised, targets=targets, mediator="fc[0]", **fields)


def linear_scm(x, x_source, n=200, c=C, d=D, seed=0):
    """The four runs of the fixture with all noise shared, and the mediator's noise."""
    rng = np.random.default_rng(seed)
    e, e_y = rng.normal(size=(2, n))

    def run(direct, through):
        mediator = A0 + A * through + e
        return (B0 + c * direct + B * mediator + d * direct * mediator + e_y)[None]

    runs = run(x, x), run(x_source, x_source), run(x, x_source), run(x_source, x)
    return of(*runs), e


def values(mediation):
    return {name: getattr(mediation, name).values[0] for name in QUANTITIES}


def test_the_linear_scm_with_interaction_gives_its_closed_forms():
    x, x_source = 0.4, 1.9
    step = x_source - x
    m, e = linear_scm(x, x_source)
    got = values(m)
    np.testing.assert_allclose(got["pnie"][0], (B + D * x) * A * step)  # 1.776, whatever the noise
    np.testing.assert_allclose(got["tnie"][0], (B + D * x_source) * A * step)  # 3.036
    np.testing.assert_allclose(got["interaction"][0], D * A * step**2)  # 1.26
    np.testing.assert_allclose(got["nde"][0], (C + D * (A0 + A * x + e)) * step)  # 1.401 on average
    assert m.pnie.mean()[0, 0] == pytest.approx(1.776)
    assert m.tnie.mean()[0, 0] == pytest.approx(3.036)
    large, _ = linear_scm(x, x_source, n=200_000)
    assert large.nde.mean()[0, 0] == pytest.approx(1.401, abs=0.01)
    assert large.te.mean()[0, 0] == pytest.approx(4.437, abs=0.01)


runs_of_any_network = npst.arrays(np.float64, (4, 2, 3), elements=st.floats(-1e3, 1e3))


@settings(max_examples=60, deadline=None)
@given(runs_of_any_network)
def test_identities_hold_pair_by_pair_for_any_four_runs(runs):
    base, source, noised, denoised = runs
    forward = values(of(base, source, noised, denoised, targets="ab"))
    back = values(of(source, base, denoised, noised, targets="ab"))  # base and source exchanged
    close = {"atol": 1e-12 * max(1.0, np.abs(runs).max())}
    np.testing.assert_allclose(forward["te"], forward["nde"] + forward["tnie"], **close)
    np.testing.assert_allclose(forward["te"], forward["pnie"] + forward["nde"] + forward["interaction"], **close)
    np.testing.assert_allclose(forward["nde"], denoised - base, **close)
    np.testing.assert_allclose(back["te"], -forward["te"], **close)
    np.testing.assert_allclose(back["interaction"], forward["interaction"], **close)
    np.testing.assert_allclose(forward["te"], forward["nde"] - back["pnie"], **close)
    np.testing.assert_allclose(forward["te"], forward["pnie"] - back["nde"], **close)
    np.testing.assert_allclose(back["nde"], forward["pnie"] - forward["te"], **close)


def test_a_source_equal_to_the_base_gives_exact_zeros():
    y = np.random.default_rng(0).normal(size=(1, 20))
    assert all((effect == 0).all() for effect in values(of(y, y, y, y)).values())


def test_a_vertex_cut_carries_everything_and_an_empty_set_nothing():
    base, source = np.random.default_rng(0).normal([[[0.0]], [[5.0]]], 1.0, (2, 1, 40))
    cut = of(base, source, noised=source, denoised=base)
    assert np.abs(cut.nde.values).max() < 1e-15
    assert (cut.interaction.values == 0).all()
    assert cut.proportion["y"].value == pytest.approx(1)
    empty = of(base, source, noised=base, denoised=source)
    assert (empty.pnie.values == 0).all()
    assert empty.proportion["y"].value == 0
    np.testing.assert_array_equal(empty.nde.values, empty.te.values)


def test_rescaling_the_outcome_scales_effects_and_keeps_the_proportion():
    runs = np.random.default_rng(1).normal(np.array([0, 4, 1, 2])[:, None, None], 1.0, (4, 1, 40))
    plain, scaled = of(*runs), of(*(3 - 7 * runs))
    for name in QUANTITIES:
        np.testing.assert_allclose(values(scaled)[name], -7 * values(plain)[name])
    assert scaled.proportion["y"].value == pytest.approx(plain.proportion["y"].value)
    assert scaled.proportion["y"].low == pytest.approx(plain.proportion["y"].low)


def test_proportion_is_refused_when_the_total_effect_may_be_zero():
    # d = 0, c = -.95: the direct path cancels the indirect one, and TNIE / TE would be 96
    m, _ = linear_scm(0.4, 1.9, c=-0.95, d=0)
    jitter = np.random.default_rng(2).normal(0, 0.3, (1, 200))
    m = of(np.zeros((1, 200)), m.te.values[0] + jitter, m.pnie.values[0], m.nde.values[0] + jitter)
    share = m.proportion["y"]
    assert (share.value, share.low, share.high) == (None, None, None)
    assert "contains 0" in share.reason
    assert "none: the interval of TE, [" in str(m)
    assert m.tnie.mean()[0, 0] == pytest.approx(1.44)  # the effects themselves are still there


def test_proportion_of_a_clear_effect_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    te = rng.normal(2.0, 1.0, (1000, 100))
    tnie = 0.25 * te + rng.normal(0, 0.3, te.shape)
    low, high = statistics.bootstrap_ratio_interval(tnie, te, n_boot=500)
    assert 0.92 <= ((low <= 0.25) & (high >= 0.25)).mean() <= 0.97
    m = of(0 * te[:3], te[:3], tnie[:3], te[:3] - tnie[:3], targets="abc")
    np.testing.assert_allclose([m.proportion[t].low for t in "abc"], low[:3], atol=0.02)
    np.testing.assert_allclose([m.proportion[t].value for t in "abc"], tnie[:3].mean(axis=1) / te[:3].mean(axis=1))


def test_inconsistent_mediation_may_leave_zero_to_one():
    te = np.full((1, 20), -0.3)
    m = of(0 * te, te, noised=te * 1.87, denoised=te - te * 1.87)
    assert m.proportion["y"].value == pytest.approx(1.87)


def test_intervals_are_clustered_by_base_image():
    shared = np.repeat(np.random.default_rng(4).normal(2, 1, 15), 6)[None]
    groups = np.repeat(np.arange(15), 6)
    width = {}
    for name, ids in (("clustered", groups), ("naive", None)):
        m = of(0 * shared, shared, 0.5 * shared, 0.5 * shared**2, groups=ids)
        low, high = m.te.ci()
        width[name] = (high - low).item()
        share = m.proportion["y"]
        expected = statistics.bootstrap_ratio_interval(m.tnie.values[0], m.te.values[0], ids)
        assert [share.low, share.high] == [bound.item() for bound in expected]
    assert width["clustered"] > 2 * width["naive"]


def test_print_shows_every_quantity_with_its_interval_and_the_proportion():
    m, _ = linear_scm(0.4, 1.9)
    lines = str(m).splitlines()
    assert lines[0] == "Mediation through fc[0]: 200 pairs, means with 95 % bootstrap intervals"
    rows = [re.fullmatch(r"(y| ) +(\S+) +(\S+) +(\[.+\])", line).groups() for line in lines[1:]]
    assert [row[1] for row in rows] == ["TE", "NDE", "PNIE", "TNIE", "INT", "TNIE/TE"]
    assert [row[0] for row in rows] == ["y", *" " * 5]
    low, high = m.te.ci()
    assert rows[0][2:] == (f"{m.te.mean().item():.3g}", f"[{low.item():.3g}, {high.item():.3g}]")
    assert "[1.78, 1.78]" in lines[3]


def test_print_says_when_pairs_are_few_and_warns_of_nothing():
    y = np.random.default_rng(5).normal(size=(4, 1, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "too narrow with so few pairs" in str(of(*y))
        single = of(*y[..., :1])
        assert "no intervals from a single independent pair" in str(single)
        assert single.proportion["y"].reason == "one independent pair gives no interval for TE"
        assert single.to_frame().ci_low.isna().all()


def test_print_of_many_targets_points_to_the_table():
    y = np.random.default_rng(6).normal(size=(4, 30, 12))
    m = of(*y, targets=[f"pixel[{i}]" for i in range(30)])
    assert str(m).endswith("... and 22 more targets: see to_frame()")
    assert len(m.to_frame()) == 30 * 6


def test_frame_has_one_row_per_target_and_quantity():
    y = np.random.default_rng(7).normal(np.array([0, 5, 1, 1])[:, None, None] * [[1], [0]], 1.0, (4, 2, 50))
    m = of(*y, targets=("strong", "none"))
    frame = m.to_frame().set_index(["target", "quantity"])
    assert list(frame.columns) == ["value", "ci_low", "ci_high", "note"]
    assert frame.value["strong", "INT"] == m.interaction.mean()[0, 0]
    low, high = m.nde.ci()
    assert (frame.ci_low["none", "NDE"], frame.ci_high["none", "NDE"]) == (low[0, 1], high[0, 1])
    assert frame.value["strong", "TNIE/TE"] == m.proportion["strong"].value
    assert np.isnan(frame.value["none", "TNIE/TE"])
    assert "contains 0" in frame.note["none", "TNIE/TE"]


def test_runs_of_different_shapes_are_refused_by_name():
    y = np.ones((1, 5))
    with pytest.raises(DataError, match=r"'noised': \(1, 4\)"):
        of(y, y, y[:, :4], y)
    with pytest.raises(DataError, match=r"expected one shape \[target, pair\]"):
        of(*np.ones((4, 5)))
    with pytest.raises(DataError, match=r"expected \[unit, target, pair\]"):
        of(y, y, y, y, targets=("a", "b"))
    with pytest.raises(DataError, match="expected finite numbers"):
        of(y, y * np.nan, y, y)
