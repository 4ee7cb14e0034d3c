"""Effects: what is asked of the array comes back by name, with its uncertainty, and survives a file."""

import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import nnsight_vae as nv
from nnsight_vae.errors import DataError, NnsightVaeWarning, ReadoutError, SiteError
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats import intervals, significance
from nnsight_vae.stats.standard_errors import t_pvalues

mpl.use("Agg")

UNITS = ("encoder.4[0]", "encoder.4[1]", "latent.z[3]", "encoder.2[0:8]")
TARGETS = ("angle", "light")


def make(means, n=40, seed=0, sd=1.0, **fields):
    """Effects with these true means, [unit, target]."""
    means = np.asarray(means, dtype=float)[..., None]
    values = means + np.random.default_rng(seed).normal(0, sd, (*means.shape[:2], n))
    fields.setdefault("units", UNITS[: len(means)])
    fields.setdefault("targets", TARGETS[: means.shape[1]])
    return Effects(values, estimand="PNIE (noising)", **fields)


@pytest.fixture
def effects():
    return make([[0, 0], [1, 0.4], [0, -3], [0.02, 0]], sd=0.1, groups=np.arange(40) // 2, provenance={"seed": 0})


# ---------------------------------------------------------------- means, intervals, tests


def test_intervals_and_p_are_those_of_the_pure_functions_over_clusters(effects):
    low, high = effects.ci(level=0.9, n_boot=300, seed=5)
    expected = intervals.mean_interval(effects.values, effects.groups, level=0.9, n_boot=300, seed=5)
    np.testing.assert_array_equal([low, high], expected)
    np.testing.assert_array_equal(
        effects.pvalues(n_perm=99, seed=5),
        significance.sign_flip_pvalues(effects.values, effects.groups, n_perm=99, seed=5),
    )
    assert (effects.pvalues(family_wise=True) >= effects.pvalues()).all()


def test_reused_sources_reach_every_interval_and_test():
    ids = {"groups": np.repeat(np.arange(10), 12), "source_groups": np.tile(np.arange(12), 10)}
    effects = make([[0.3, 0], [1, -1]], n=120, **ids)
    assert effects.n_clusters == 10
    assert "(10 bases x 12 sources)" in repr(effects)
    for method in ("bootstrap-t", "t", "percentile"):
        expected = intervals.mean_interval(effects.values, *ids.values(), method=method, n_boot=99, seed=3)
        np.testing.assert_array_equal(effects.ci(n_boot=99, seed=3, method=method), expected)
    p = t_pvalues(effects.values, *ids.values(), min_effect=0.1)
    np.testing.assert_array_equal(effects.pvalues(min_effect=0.1), p)
    np.testing.assert_array_equal(effects.pvalues(min_effect=0.1, family_wise=True), significance.holm(p))
    np.testing.assert_array_equal(np.sort(effects.significant(0.9, 0.1).test.p, axis=0), np.sort(p, axis=0))
    frame = effects.to_frame()
    np.testing.assert_array_equal(frame.ci_low, effects.ci()[0].ravel())
    np.testing.assert_array_equal(frame.p, effects.pvalues().ravel())


def test_a_single_pair_has_a_mean_and_no_interval():
    single = make([[1.0, 2.0]], n=1, sd=0)
    assert single.mean().tolist() == [[1, 2]]
    for ask in (single.ci, single.pvalues, single.significant, single.to_frame):
        with pytest.raises(DataError, match="at least two clusters"):
            ask()


def test_two_pairs_of_one_base_image_are_one_cluster():
    with pytest.raises(DataError, match=r"2 pair\(s\) in 1 independent cluster"):
        make([[1.0]], n=2, groups=np.zeros(2, dtype=int)).ci()


def test_few_clusters_warn_where_the_interval_is_asked_for():
    with pytest.warns(NnsightVaeWarning, match="9 independent pairs") as caught:
        make([[1.0]], n=18, groups=np.arange(18) // 2).ci()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make([[1.0]], n=10).ci()


def test_mean_of_float32_is_accumulated_in_float64():
    values = np.full((1, 1, 100_001), 0.1, dtype=np.float32)
    assert Effects(values, ("a",), ("t",), "PNIE").mean()[0, 0] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-12)


# ---------------------------------------------------------------- significance


def test_significant_keeps_units_with_a_real_effect_strongest_first(effects):
    found = effects.significant(q=0.05, min_effect=0.3)
    assert found.units == ("latent.z[3]", "encoder.4[1]")
    assert found.test.passed.tolist() == [[False, True], [True, True]]
    np.testing.assert_array_equal(found.values, effects.values[[2, 1]])


def test_minimum_effect_drops_what_is_certain_but_tiny():
    tiny = make([[0.01]], sd=1e-4)
    assert tiny.significant().units == UNITS[:1]
    assert tiny.significant(min_effect=0.02).units == ()


def test_units_are_ranked_by_their_largest_effect_that_passed():
    loud = np.resize([15.0, -9.0], 40)  # mean 3, and far from clear
    values = np.stack([[np.linspace(0.9, 1.1, 40), loud], [np.linspace(1.9, 2.1, 40), 0 * loud]])
    found = Effects(values, UNITS[:2], TARGETS[:2], "PNIE").significant()
    assert found.test.passed.tolist() == [[True, False], [True, False]]
    assert found.units == UNITS[1::-1]


def test_minimum_effect_is_tested_not_only_exceeded():
    """A mean a little above it is no evidence that the effect is."""
    above = make([[0.25]], sd=1.0, seed=1)
    assert above.mean()[0, 0] > 0.1
    assert above.significant(q=0.2).units == UNITS[:1]
    assert above.significant(q=0.2, min_effect=0.1).units == ()
    np.testing.assert_array_equal(above.significant(q=0.9, min_effect=0.1).test.p, above.pvalues(min_effect=0.1))


def test_by_adjusts_more_than_bh(effects):
    bh, by = (effects.significant(q=0.9, method=method).test for method in ("bh", "by"))
    assert (bh.method, by.method) == ("bh", "by")
    np.testing.assert_allclose(np.sort(by.q, axis=None), np.minimum(1, np.sort(bh.q, axis=None) * 761 / 280))  # H_8


def test_q_values_of_a_selection_stay_those_of_the_family_tested(effects):
    found = effects.significant()
    whole = effects.to_frame().set_index(["unit", "target"]).q
    kept = found.select(targets="light").to_frame().set_index(["unit", "target"])
    assert (kept.q == whole[kept.index]).all()
    assert found.test.n_tests == 8
    assert len(kept) == found.select(targets="light").test.passed.sum() == 2


def test_no_discovery_is_an_empty_result_that_can_still_be_tabulated():
    nothing = make(np.zeros((4, 2)), seed=3).significant(q=0.01)
    assert nothing.units == ()
    assert len(nothing.to_frame()) == 0
    assert list(nothing.to_frame().columns)[-1] == "q"
    with pytest.raises(DataError, match="Nothing to draw"):
        nothing.plot()


def test_all_zero_effects_are_never_significant():
    zero = make(np.zeros((3, 2)), sd=0)
    assert (zero.pvalues() == 1).all()
    assert (np.stack(zero.ci()) == 0).all()
    assert zero.significant(q=0.9).units == ()


def test_too_coarse_p_values_are_reported_with_the_remedy():
    many = {"units": tuple(f"fc[{i}]" for i in range(60)), "targets": ("t",)}
    lone = np.zeros((60, 1))
    lone[0] = 5.0
    with pytest.warns(NnsightVaeWarning, match="n_perm >= 1199"):
        assert make(lone, **many).significant(n_perm=99).units == ()
    with pytest.warns(NnsightVaeWarning, match="more base images"):  # 2^-9 is the least p from 10 clusters
        assert make(lone, n=10, **many).significant().units == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(lone, **many).significant().units == ("fc[0]",)


def test_default_number_of_flips_can_reject_a_lone_effect_among_many():
    lone = np.zeros((400, 1))
    lone[7] = 5.0
    many = make(lone, units=tuple(f"fc[{i}]" for i in range(400)), targets=("t",))
    assert many.pvalues().min() == 1 / 8000
    assert many.significant().units == ("fc[7]",)


def test_permuting_units_permutes_results(effects):
    order = [2, 0, 3, 1]
    moved = effects.select([UNITS[i] for i in order])
    np.testing.assert_allclose(np.stack(moved.ci()), np.stack(effects.ci())[:, order], rtol=1e-12)
    np.testing.assert_array_equal(moved.pvalues(), effects.pvalues()[order])
    assert moved.significant().units == effects.significant().units


@pytest.mark.parametrize("bad", [{"q": 0}, {"q": 1.5}, {"min_effect": -1}])
def test_impossible_thresholds_are_refused(effects, bad):
    with pytest.raises(DataError, match=r"expected a rate q in \(0, 1\)"):
        effects.significant(**bad)


# ---------------------------------------------------------------- table and selection


def test_frame_has_one_documented_row_per_unit_and_target(effects):
    frame = effects.to_frame()
    assert list(frame.columns) == ["unit", "site", "index", "target", "effect", "ci_low", "ci_high", "p", "q"]
    assert len(frame) == 8
    row = frame.iloc[3]
    assert (row.unit, row.site, row["index"], row.target) == ("encoder.4[1]", "encoder.4", 1, "light")
    assert row.effect == effects.mean()[1, 1]
    assert row.ci_low < row.effect < row.ci_high
    assert frame["index"].isna().tolist() == [False] * 6 + [True] * 2  # encoder.2[0:8] is not a single unit
    np.testing.assert_array_equal(frame.q, significance.benjamini_hochberg(effects.pvalues()).ravel())


def test_select_takes_units_sites_and_targets_in_the_order_asked(effects):
    assert effects.select("encoder.4").units == UNITS[:2]
    assert effects.select(["latent.z[3]", "encoder.4"]).units == ("latent.z[3]", *UNITS[:2])
    keys = [nv.Unit("encoder.4", 1), nv.Selection("encoder.4", (0,)), nv.Site("latent.z", "latent", "latent", 4, (4,))]
    assert effects.select(keys).units == (UNITS[1], UNITS[0], "latent.z[3]")
    assert effects.select(keys[0]).units == UNITS[1:2]
    chosen = effects.select(UNITS[2], ["light", "angle"])
    np.testing.assert_array_equal(chosen.values, effects.values[[2]][:, [1, 0]])
    assert chosen.provenance == effects.provenance


def test_select_takes_the_slices_that_keys_take(effects):
    assert effects.select("encoder.4[0:2]").units == UNITS[:2]
    assert effects.select("encoder.4[1,0]").units == (UNITS[1], UNITS[0])
    with pytest.raises(SiteError, match=r"'encoder\.4\[0,9\]' is not a unit"):  # one of them is not there
        effects.select("encoder.4[0,9]")
    with pytest.raises(SiteError, match="cannot read the index"):
        effects.select("encoder.4[first]")


def test_select_reaches_the_parts():
    parts = {"noising": make([[1, 2], [3, 4]]), "denoising": make([[5, 6], [7, 8]], seed=1)}
    whole = make([[3, 4], [5, 6]], parts=parts).select(UNITS[1], "light")
    assert whole.parts["denoising"].units == UNITS[1:2]
    np.testing.assert_array_equal(whole.parts["denoising"].values, parts["denoising"].values[1:, 1:])


@pytest.mark.parametrize("method", ["bootstrap-t", "percentile", "bca"])
def test_no_resamples_and_no_flips_are_refused(effects, method):
    with pytest.raises(DataError, match="n_boot=0: expected a number of resamples"):
        effects.ci(n_boot=0, method=method)
    for n_perm in (0, -5):
        with pytest.raises(DataError, match=f"n_perm={n_perm}: expected a number of sign patterns"):
            effects.pvalues(n_perm)
        with pytest.raises(DataError, match=f"n_perm={n_perm}"):
            effects.significant(n_perm=n_perm)


def test_unknown_names_are_refused_with_the_known_ones(effects):
    with pytest.raises(SiteError, match=r"'encoder\.9' is not a unit or site.*encoder\.4, latent\.z, encoder\.2"):
        effects.select("encoder.9")
    with pytest.raises(ReadoutError, match="'colour' is not a target of these effects; targets: angle, light"):
        effects.select(targets="colour")
    with pytest.raises(SiteError, match="'0' is not a unit"):
        effects.select(0)
    with pytest.raises(ReadoutError, match="0 is not a target"):
        effects.select(targets=0)


def test_repr_tells_what_it_is(effects):
    assert repr(effects) == (
        "Effects(PNIE (noising): 4 units x 2 targets x 40 pairs (20 clusters); largest mean latent.z[3] -> light -3.02)"
    )


# ---------------------------------------------------------------- refusals at construction


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [[[1.0]]]}, "expected a floating numpy array"),
        ({"values": np.ones((1, 1, 3), dtype=int)}, "expected a floating numpy array"),
        ({"values": np.ones((2, 1, 3))}, r"expected \[unit, target, pair\] = \[1, 1"),
        ({"values": np.ones((1, 1, 0))}, "at least one pair"),
        ({"values": np.array([[[1.0, np.nan]]])}, r"Effect of fc\[0\] on t for pair 1 is nan"),
        ({"groups": np.zeros(2, dtype=int)}, "one cluster id per pair"),
        ({"groups": np.arange(3), "source_groups": np.arange(4)}, "one cluster id per pair"),
        ({"source_groups": np.arange(3)}, "source_groups without groups"),
        ({"units": ("a", "a"), "values": np.ones((2, 1, 3))}, "must not repeat a name"),
        ({"provenance": {"model": object()}}, "provenance must be JSON data"),
        ({"parts": {"noising": make([[1.0]])}}, "over other units or targets"),
    ],
)
def test_ill_formed_effects_are_refused(change, message):
    fields = {"values": np.ones((1, 1, 3)), "units": ("fc[0]",), "targets": ("t",), "estimand": "PNIE"} | change
    with pytest.raises(DataError, match=message):
        Effects(**fields)


def test_numpy_scalars_in_provenance_become_plain_numbers():
    effects = make([[1.0]], provenance={"n": np.int64(3), "r2": [np.float32(0.5)]})
    assert effects.provenance == {"n": 3, "r2": [0.5]}


# ---------------------------------------------------------------- files


def assert_equal(ours, theirs):
    np.testing.assert_array_equal(ours.values, theirs.values)
    assert ours.values.dtype == theirs.values.dtype
    assert (ours.units, ours.targets, ours.estimand) == (theirs.units, theirs.targets, theirs.estimand)
    assert ours.provenance == theirs.provenance
    for name in ("groups", "source_groups"):
        assert (getattr(ours, name) is None) == (getattr(theirs, name) is None)
        if getattr(ours, name) is not None:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.test is None) == (theirs.test is None)
    if ours.test:
        for name in ("p", "q", "passed", "level", "min_effect", "n_tests", "method"):
            np.testing.assert_array_equal(getattr(ours.test, name), getattr(theirs.test, name))
    assert ours.parts.keys() == theirs.parts.keys()
    for name in ours.parts:
        assert_equal(ours.parts[name], theirs.parts[name])


def test_ids_that_are_words_of_a_tables_column_survive_a_file(tmp_path):
    words = pd.Series([f"image {i // 2}" for i in range(12)]).astype(object).to_numpy()
    effects = Effects(np.random.default_rng(4).normal(size=(1, 1, 12)), ("a",), ("t",), "PNIE", groups=words)
    effects.save(tmp_path / "effects.npz")
    assert Effects.load(tmp_path / "effects.npz").groups.tolist() == words.tolist()


def test_effects_survive_a_file(tmp_path):
    parts = {"noising": make([[1, 2], [3, 4]], provenance={"eps": None}), "denoising": make([[5, 6], [7, 8]])}
    effects = make([[3, 4], [0, 0]], groups=np.arange(40) // 3, provenance={"versions": ["0.1"]}, parts=parts)
    crossed = make([[1.0]], groups=np.repeat(np.arange(8), 5), source_groups=np.tile(np.arange(5), 8))
    tested = effects.significant(q=0.01, min_effect=0.5, method="by")
    for original in (effects, tested, make([[1.0]]).select([]), crossed, crossed.select(UNITS[0])):
        original.save(tmp_path / "effects.npz")
        assert_equal(Effects.load(tmp_path / "effects.npz"), original)
    assert [path.name for path in tmp_path.iterdir()] == ["effects.npz"]


def test_float32_stays_float32_in_a_file(tmp_path):
    effects = Effects(np.ones((1, 1, 3), dtype=np.float32), ("a",), ("t",), "PNIE")
    effects.save(tmp_path / "e.npz")
    assert Effects.load(tmp_path / "e.npz").values.dtype == np.float32


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    make([[1.0]], seed=1).save(tmp_path / "e.npz")

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        make([[1.0]], seed=2).save(tmp_path / "e.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]
    assert_equal(Effects.load(tmp_path / "e.npz"), make([[1.0]], seed=1))


def test_saving_into_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="a folder that exists and can be written to"):
        make([[1.0]]).save(tmp_path / "nowhere" / "e.npz")


def test_files_that_are_not_effects_are_refused(tmp_path):
    path = tmp_path / "e.npz"
    with pytest.raises(DataError, match="not a readable effects file"):
        Effects.load(path)
    make([[1.0]]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable effects file"):
        Effects.load(path)
    np.savez(path, values=np.ones(3))
    with pytest.raises(DataError, match="not a readable effects file"):
        Effects.load(path)
    np.savez(path, header=np.array([{"schema": "pickled"}], dtype=object))
    with pytest.raises(DataError, match="allow_pickle"):
        Effects.load(path)
    np.save(tmp_path / "e.npy", np.ones(3))
    with pytest.raises(DataError, match="not a readable effects file"):
        Effects.load(tmp_path / "e.npy")


# ---------------------------------------------------------------- picture


def test_plot_draws_the_strongest_units(effects):
    _, axes = effects.significant(min_effect=0.3).plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["latent.z[3]", "encoder.4[1]"]
    means = np.zeros((50, 1))
    means[[4, 31]] = [[2.0], [-3.0]]
    _, axes = make(means, sd=0, units=tuple(f"fc[{i}]" for i in range(50)), targets=("t",)).plot(top=2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fc[4]", "fc[31]"]
