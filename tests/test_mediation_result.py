"""Mediation: the analytic fixture, the exact identities, and proportions that are refused rather than wild."""

import re
import warnings

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.colors import to_hex

from nnsight_vae.errors import DataError, NnsightVaeWarning
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.mediation import Mediation
from nnsight_vae.stats import intervals
from nnsight_vae.stats.fieller import fieller_interval
from nnsight_vae.style import LOWERS, NEUTRAL, RAISES

QUANTITIES = ("te", "nde", "pnie", "tnie", "interaction")
# M = a0 + a X + e;  Y = b0 + c X + b M + d X M + e'  (research note on mediation, analytic fixture)
A0, A, B0, B, C, D = 0.3, 0.8, -0.2, 1.2, 0.5, 0.7


def of(base, source, noised, denoised, targets=("y",), **fields):
    return Mediation.from_runs(base, source, noised, denoised, targets=targets, mediator="fc[0]", **fields)


def linear_scm(x, x_source, n=200, c=C, d=D, held=None):
    """The runs of the fixture with all noise shared, and the mediator's noise, which is 0 on average."""
    half = np.random.default_rng(0).normal(size=(2, n // 2))
    e, e_y = np.concatenate([half, -half], axis=1)

    def run(direct, mediator):
        return (B0 + c * direct + B * mediator + d * direct * mediator + e_y)[None]

    at = {value: A0 + A * value + e for value in (x, x_source)}
    runs = run(x, at[x]), run(x_source, at[x_source]), run(x, at[x_source]), run(x_source, at[x])
    more = {} if held is None else {"base_held": run(x, held), "source_held": run(x_source, held)}
    return of(*runs, **more), e


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
    means = {"TE": 4.437, "NDE": 1.401, "PNIE": 1.776, "TNIE": 3.036, "INT": 1.26}
    assert {name: effects.mean().item() for name, effects in m.quantities.items()} == pytest.approx(means)
    assert m.tde.mean().item() == pytest.approx(2.661)
    held, _ = linear_scm(x, x_source, held=0.9)
    np.testing.assert_allclose(held.cde.values[0, 0], (C + D * 0.9) * step)
    np.testing.assert_allclose(held.intref.values[0, 0], D * (A0 + A * x + e - 0.9) * step)


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
        expected = intervals.bootstrap_ratio_interval(m.tnie.values[0], m.te.values[0], ids)
        assert [share.low, share.high] == [bound.item() for bound in expected]
    assert width["clustered"] > 2 * width["naive"]


def test_intervals_are_clustered_by_source_image_too_where_sources_are_reused():
    rng = np.random.default_rng(14)
    i, j = np.divmod(np.arange(100), 10)
    y = 5 + rng.normal(size=(4, 10))[:, i] + 2 * rng.normal(size=(4, 10))[:, j]
    y[0] *= 0.1
    both = of(*y[:, None], groups=i, source_groups=j)
    frame = both.to_frame().set_index("quantity")
    for name, effects in both.quantities.items():
        low, high = effects.ci()
        assert (frame.ci_low[name], frame.ci_high[name]) == (low.item(), high.item())
    one_way = of(*y[:, None], groups=i).to_frame().set_index("quantity")
    wider = (frame.ci_high - frame.ci_low) / (one_way.ci_high - one_way.ci_low)
    assert (wider > 1.1).all()  # how much wider, the draws decide; that both ids count is what is claimed
    assert "100 pairs (10 independent)" in str(both)


def test_print_shows_every_quantity_with_its_interval_and_the_proportion():
    m, _ = linear_scm(0.4, 1.9)
    lines = str(m).splitlines()
    assert lines[0] == "Mediation through fc[0]: 200 pairs, means with 95 % intervals"
    assert lines[-1].startswith("TE = NDE (past the mediators) + TNIE (through them)")
    rows = [re.fullmatch(r"(y| ) +(\S+) +(\S+) +(\[.+\])", line).groups() for line in lines[1:-1]]
    assert [row[1] for row in rows] == ["TE", "NDE", "PNIE", "TNIE", "INT", "TNIE/TE"]
    assert [row[0] for row in rows] == ["y", *" " * 5]
    low, high = m.te.ci()
    assert rows[0][2:] == (f"{m.te.mean().item():.3g}", f"[{low.item():.3g}, {high.item():.3g}]")
    assert "[1.78, 1.78]" in lines[3]


def test_print_says_when_pairs_are_few_and_warns_of_nothing():
    y = np.random.default_rng(5).normal(size=(4, 1, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "95 % intervals, indicative with so few pairs" in str(of(*y))
        single = of(*y[..., :1])
        assert "no intervals from a single independent pair" in str(single)
        assert single.proportion["y"].reason == "one independent pair gives no interval for TE"
        assert single.to_frame().ci_low.isna().all()


def test_print_of_many_targets_points_to_the_table():
    y = np.random.default_rng(6).normal(size=(4, 30, 12))
    m = of(*y, targets=[f"pixel[{i}]" for i in range(30)])
    assert "\n... and 22 more targets: see to_frame()\n" in str(m)
    assert len(m.to_frame()) == 30 * 6


def test_the_table_warns_of_few_pairs_as_intervals_do():
    y = np.random.default_rng(7).normal(size=(4, 1, 9))
    with pytest.warns(NnsightVaeWarning, match="9 independent pairs"):
        of(*y).to_frame()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(*y.repeat(2, axis=2)).to_frame()


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
    with pytest.raises(DataError, match="for four, or six"):
        of(y, y, y, y, base_held=y)
    with pytest.raises(DataError, match=r"expected \[unit, target, pair\]"):
        of(y, y, y, y, targets=("a", "b"))
    with pytest.raises(DataError, match="expected finite numbers"):
        of(y, y * np.nan, y, y)


def test_relative_effects_are_divided_by_their_pairs_base():
    runs = np.random.default_rng(8).uniform(1, 3, (6, 2, 20))
    names = {"base_held": runs[4], "source_held": runs[5], "targets": ("a", "b")}
    plain, relative = of(*runs[:4], **names), of(*runs[:4], scale="relative", **names)
    assert (plain.scale, relative.scale) == ("difference", "relative")
    np.testing.assert_allclose(relative.te.values[0], runs[1] / runs[0] - 1)  # y_set / y_null - 1
    np.testing.assert_allclose(relative.pnie.values[0], runs[2] / runs[0] - 1)
    np.testing.assert_allclose(relative.nde.values[0], runs[3] / runs[0] - 1)
    for name, effects in plain.quantities.items():
        np.testing.assert_allclose(relative.quantities[name].values[0], effects.values[0] / runs[0])
    assert "relative to Y(base)" in str(relative)
    assert "relative" not in str(plain)


def test_relative_effects_add_up_within_a_pair_and_not_against_its_reverse():
    base, source, noised, denoised = np.random.default_rng(9).uniform(1, 3, (4, 1, 20))
    forth = values(of(base, source, noised, denoised, scale="relative"))
    back = values(of(source, base, denoised, noised, scale="relative"))
    np.testing.assert_allclose(forth["te"], forth["nde"] + forth["tnie"])
    np.testing.assert_allclose(forth["te"], forth["pnie"] + forth["nde"] + forth["interaction"])
    assert np.abs(back["te"] + forth["te"]).max() > 0.1
    assert np.abs(back["interaction"] - forth["interaction"]).max() > 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y: y * np.where(np.arange(12) == 3, 0.001, 1), "near 0"),
        (lambda y: y * np.where(np.arange(12) == 3, -1, 1), "changes sign"),
    ],
)
def test_relative_effects_on_a_base_without_a_scale_are_refused_by_name(change, reason):
    y = np.random.default_rng(10).uniform(1, 3, (4, 2, 12))
    y[0, 1] = change(y[0, 1])
    with pytest.raises(DataError, match=rf"relative effects on odd are undefined: Y\(base\) .*{reason}"):
        of(*y, scale="relative", targets=("even", "odd"))
    of(*y, targets=("even", "odd"))  # as differences they are fine
    of(*-np.abs(y[:, :1]), scale="relative")  # a readout that is negative throughout has a scale
    with pytest.raises(DataError, match="'difference' or 'relative', got 'log'"):
        of(*y, scale="log", targets=("even", "odd"))


def test_held_mediators_are_shown_beside_the_natural_ones():
    m, _ = linear_scm(0.4, 1.9, held=0.9)
    assert list(m.quantities) == ["TE", "NDE", "PNIE", "TNIE", "INT", "CDE", "INTref"]
    assert list(m.to_frame().quantity) == [*m.quantities, "TNIE/TE"]
    lines = str(m).splitlines()
    assert [line.split()[0] for line in lines[6:8]] == ["CDE", "INTref"]
    assert lines[-1] == "NDE = CDE (mediators at a value) + INTref"
    plain, _ = linear_scm(0.4, 1.9)
    assert (plain.cde, plain.intref) == (None, None)
    assert "CDE" not in str(plain)


def test_other_shares_and_other_intervals_are_asked_for_by_name():
    m, _ = linear_scm(0.4, 1.9)
    assert m.proportion_of("TNIE") == m.proportion
    assert m.proportion_of("PNIE")["y"].value == pytest.approx(1.776 / 4.437)
    low, high = fieller_interval(m.nde.values[0], m.te.values[0], level=0.9)
    share = m.proportion_of("NDE", interval="fieller", level=0.9)["y"]
    assert (share.low, share.high) == (low[0], high[0])
    with pytest.raises(DataError, match="no quantity 'NIE' here; there are TE, NDE, PNIE, TNIE, INT"):
        m.proportion_of("NIE")


def test_a_mediation_survives_its_file(tmp_path):
    y = np.random.default_rng(11).uniform(1, 3, (6, 2, 20))
    ids = {"groups": np.arange(20) // 4, "source_groups": np.arange(20) % 4}
    m = of(
        *y[:4],
        base_held=y[4],
        source_held=y[5],
        targets=("a", "b"),
        scale="relative",
        provenance={"hold": "0.5"},
        **ids,
    )
    m.save(tmp_path / "m.npz")
    back = Mediation.load(tmp_path / "m.npz")
    assert str(back) == str(m)
    assert back.scale == "relative"
    for name, effects in m.quantities.items():
        other = back.quantities[name]
        np.testing.assert_array_equal(other.values, effects.values)
        assert (other.units, other.targets, other.estimand) == (effects.units, effects.targets, effects.estimand)
        np.testing.assert_array_equal(other.source_groups, ids["source_groups"])
    assert back.te.parts == {}
    assert set(Effects.load(tmp_path / "m.npz").parts) == {"NDE", "PNIE", "TNIE", "INT", "CDE", "INTref"}
    plain, _ = linear_scm(0.4, 1.9)
    plain.save(tmp_path / "plain.npz")
    assert Mediation.load(tmp_path / "plain.npz").cde is None


def test_a_file_of_something_else_is_no_mediation(tmp_path):
    m, _ = linear_scm(0.4, 1.9)
    m.te.save(tmp_path / "effects.npz")
    with pytest.raises(DataError, match=r"holds Effects\(TE.*no mediation \('NDE' is missing\)"):
        Mediation.load(tmp_path / "effects.npz")
    with pytest.raises(DataError, match="not a readable effects file"):
        Mediation.load(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match="a folder that exists and can be written to"):
        m.save(tmp_path / "no" / "m.npz")


def test_the_forest_plot_shows_every_quantity_with_its_interval():
    y = np.random.default_rng(12).normal(np.array([0, 5, 1, 1])[:, None, None] * [[1], [0], [-1]], 1.0, (4, 3, 50))
    m = of(*y, targets=("up", "none", "do$wn"))
    figure, panels = m.plot()
    assert [axes.get_title(loc="left") for axes in panels] == ["up", "none", "do$wn"]
    assert figure.get_suptitle() == "Through fc[0]: mean and 95 % interval, 50 clusters"
    frame = m.to_frame().set_index(["target", "quantity"])
    for axes, target in zip(panels, m.targets, strict=True):
        dots, lines = axes.collections[1::2], axes.collections[::2]
        assert [dot.get_offsets()[0, 0] for dot in dots] == [frame.value[target, name] for name in m.quantities]
        spans = [line.get_segments()[0][:, 0].tolist() for line in lines]
        assert spans == [[frame.ci_low[target, name], frame.ci_high[target, name]] for name in m.quantities]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(m.quantities)
    colours = {(t, name): to_hex(dot.get_facecolor()[0]) for axes, t in zip(panels, m.targets, strict=True) for dot, name in zip(axes.collections[1::2], m.quantities, strict=True)}  # fmt: skip
    assert [colours[target, "TE"] for target in m.targets] == [RAISES, NEUTRAL, LOWERS]
    unclear = [key for key, colour in colours.items() if colour == NEUTRAL]
    assert all(frame.ci_low[key] <= 0 <= frame.ci_high[key] for key in unclear)
    assert {frame.value[key] > 0 for key in unclear} == {True, False}
    assert panels[1].get_xlabel() == "TNIE/TE: none"
    share = m.proportion["up"]
    assert panels[0].get_xlabel() == f"TNIE/TE: {share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"


def test_the_forest_plot_of_many_targets_or_one_pair_is_still_a_plot():
    y = np.random.default_rng(13).uniform(1, 2, (4, 9, 12))
    figure, panels = of(*y, targets=[f"pixel[{i}]" for i in range(9)], scale="relative").plot()
    assert len(panels) == 8
    assert (
        figure.get_suptitle()
        == "Through fc[0], relative to Y(base): mean and 95 % interval, 12 clusters (showing 8 of 9 targets)"
    )
    _, (single,) = of(*y[:, :1, :1]).plot()
    assert len(single.collections) == 5  # dots without intervals
