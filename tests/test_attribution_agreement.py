"""How far attributions agree with exact patching and with each other: statistics, matching, refusals, maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attributed import HALVES, LATENTS, pairs, vae
from hypothesis import given, settings, strategies as st
from scipy import stats
from vaes import ConvVAE, images

import nnsight_vae as nv
from nnsight_vae.attribution import LatentIntegratedGradients, LatentShapley, agreement, unit_attributions
from nnsight_vae.attribution.agreements import pearson, spearman, top_overlap
from nnsight_vae.results.effects import Effects

__all__ = ["pairs", "vae"]  # fixtures


few = settings(max_examples=20, deadline=None, derandomize=True)


# ---------------------------------------------------------------------- the statistics
@few
@given(st.integers(0, 9999), st.integers(3, 12), st.booleans())
def test_correlations_are_scipys(seed, n, ties):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4, n))
    a, b = (np.round(a), np.round(b)) if ties else (a, b)
    a[:, 0], a[:, 1], b[:, 0], b[:, 1] = 5.0, -5.0, 7.0, -6.0  # never constant
    for i in range(4):
        assert spearman(a, b)[i] == pytest.approx(stats.spearmanr(a[i], b[i])[0], abs=1e-12)
        assert pearson(a, b)[i] == pytest.approx(stats.pearsonr(a[i], b[i])[0], abs=1e-12)


def test_overlap_counts_the_strongest_of_either_sign_and_shares_out_ties():
    effects = np.array([9.0, -8.0, 1.0, 0.5, 0.0])
    assert top_overlap(np.array([1.0, -9.0, 0.0, 0.0, 0.1]), effects, 2) == 1.0
    assert top_overlap(np.array([0.0, -9.0, 1.0, 0.0, 0.1]), effects, 2) == 0.5
    assert top_overlap(np.zeros(5), effects, 2) == pytest.approx(2 / 5)  # chance
    rng = np.random.default_rng(0)
    tied, other = np.array([3.0, 1.0, -1.0, 1.0, 0.0, 1.0]), np.array([1.0, 2.0, 2.0, 0.0, 2.0, 0.0])
    drawn = [
        top_overlap(tied + 1e-6 * rng.random(6) * np.sign(tied), other + 1e-6 * rng.random(6), 3) for _ in range(4000)
    ]
    assert top_overlap(tied, other, 3) == pytest.approx(np.mean(drawn), abs=0.02)


# ---------------------------------------------------------------------- agreement
def made(values, units=None, targets=("a",), **more):
    units = units or tuple(f"encoder.4[{i}]" for i in range(len(values)))
    return Effects(np.asarray(values, dtype=float), units, targets, more.pop("estimand", "PNIE (noising)"), **more)


def ramp(seed=0, units=8, pairs=20, noise=0.5):
    rng = np.random.default_rng(seed)
    return np.arange(units)[:, None, None] + noise * rng.normal(size=(units, 1, pairs))


def test_what_is_the_same_agrees_and_what_is_opposite_disagrees():
    effects = made(ramp())
    same, opposite = (agreement(made(sign * ramp()), effects).row("a", "PNIE (noising)") for sign in (2.0, -2.0))
    assert (same.spearman.value, same.pearson.value, same.overlap.value) == (1.0, 1.0, 1.0)
    assert (opposite.spearman.value, opposite.pearson.value, opposite.overlap.value) == (-1.0, -1.0, 1.0)
    assert same.within.value == pytest.approx(1.0)
    assert same.spearman.ci == pytest.approx((1.0, 1.0))


def test_scores_are_of_the_means_and_of_the_pairs_by_themselves():
    rng = np.random.default_rng(1)
    a, e = rng.normal(size=(2, 8, 1, 20)) + np.arange(8)[:, None, None] * 0.3
    row = agreement(made(a), made(e), top=3).row("a", "PNIE (noising)")
    assert row.spearman.value == pytest.approx(stats.spearmanr(a.mean(2), e.mean(2))[0])
    assert row.pearson.value == pytest.approx(stats.pearsonr(a.mean(2)[:, 0], e.mean(2)[:, 0])[0])
    assert row.within.value == pytest.approx(np.mean([stats.spearmanr(a[:, 0, i], e[:, 0, i])[0] for i in range(20)]))
    assert row.pearson.ci[0] < row.pearson.value < row.pearson.ci[1]
    assert row.within.ci[0] < row.within.value < row.within.ci[1]


def test_pairs_are_resampled_together_and_by_whole_clusters():
    rng = np.random.default_rng(2)
    a, e = rng.normal(size=(2, 6, 1, 4)) + np.arange(6)[:, None, None] * 0.4
    groups = np.repeat(np.arange(4), 10)
    few_pairs = agreement(made(a), made(e), n_boot=400)
    copies = agreement(made(a.repeat(10, 2)), made(e.repeat(10, 2), groups=groups), n_boot=400)
    alone = agreement(made(a.repeat(10, 2)), made(e.repeat(10, 2)), n_boot=400)
    width = lambda found: np.diff(found.row("a", "PNIE (noising)").pearson.ci)[0]
    assert width(copies) == pytest.approx(width(few_pairs))
    assert width(alone) < 0.6 * width(copies)
    within = lambda found: np.diff(found.row("a", "PNIE (noising)").within.ci)[0]
    assert within(alone) < 0.6 * within(copies)
    assert "4 clusters" in str(copies)
    assert "note" not in str(alone)
    # the same noise in both: were they resampled apart, the correlation would fall
    shared = rng.normal(size=(6, 1, 40))
    low, _ = agreement(made(shared), made(shared + 1e-9)).row("a", "PNIE (noising)").pearson.ci
    assert low > 0.999


def test_crossed_sources_are_resampled_too():
    rng = np.random.default_rng(3)
    e = rng.normal(size=(6, 1, 1, 5)) + np.arange(6)[:, None, None, None] * 0.5
    e = e.repeat(5, 2).reshape(6, 1, 25)  # effects depend on the source alone
    a = made(np.arange(6.0)[:, None, None].repeat(25, 2))
    bases, sources = np.repeat(np.arange(5), 5), np.tile(np.arange(5), 5)
    width = lambda **ids: np.diff(agreement(a, made(e, **ids)).row("a", "PNIE (noising)").pearson.ci)[0]
    assert width(groups=bases, source_groups=sources) > 0.02 > width(groups=bases)


def test_the_overlap_is_of_a_tenth_of_the_units_unless_told():
    assert agreement(made(ramp(units=38)), made(ramp(units=38))).top == 4
    assert agreement(made(ramp(units=4)), made(ramp(units=4))).top == 1
    assert agreement(made(ramp(units=38)), made(ramp(units=38)), top=7).top == 7


def test_undefined_scores_are_none_with_a_reason():
    flat = agreement(made(np.ones((4, 1, 12))), made(ramp(units=4, pairs=12))).row("a", "PNIE (noising)")
    assert [score.value for score in flat.scores] == [None] * 4
    assert flat.spearman.note == "the mean attribution is the same for every unit"
    assert "no pair" in flat.within.note
    two = agreement(made(ramp(units=2)), made(ramp(units=2))).row("a", "PNIE (noising)")
    assert "2 units; a correlation needs at least 3" in two.spearman.note
    values = ramp(units=4, pairs=12)
    values[:, :, 3] = 1.0
    some = agreement(made(values), made(ramp(units=4, pairs=12))).row("a", "PNIE (noising)")
    assert "1 of 12 pairs" in some.within.note
    one = agreement(made(ramp(pairs=1)), made(ramp(pairs=1))).row("a", "PNIE (noising)")
    assert (one.spearman.value, one.spearman.ci) == (1.0, None)
    assert "one cluster" in one.spearman.note
    everything = agreement(made(ramp()), made(ramp()), top=8).row("a", "PNIE (noising)")
    assert everything.overlap.value is None


def test_parts_are_compared_like_with_like_and_the_whole_with_each_part():
    noising, denoising = ramp(1), ramp(2)[::-1]
    parts = {"noising": made(noising), "denoising": made(denoising, estimand="TNIE (denoising)")}
    effects = made((noising + denoising) / 2, parts=parts, estimand="both")
    mine = {"noising": made(3 * noising), "denoising": made(3 * denoising)}
    found = agreement(made(noising, parts=mine), effects)
    assert [row.against for row in found.rows] == ["both", "noising", "denoising"]
    assert found.row("a", "noising").spearman.value == found.row("a", "denoising").spearman.value == 1.0
    whole = agreement(made(noising), effects)
    assert whole.row("a", "noising").spearman.value == 1.0
    assert whole.row("a", "denoising").spearman.value < -0.9
    assert len(found.to_frame()) == 12
    assert set(found.to_frame().columns) == {"target", "against", "metric", "value", "ci_low", "ci_high", "note"}
    with pytest.raises(nv.DataError, match="no agreement on 'b'"):
        found.row("b")


def test_units_and_targets_are_matched_by_name():
    values = ramp()
    effects = made(np.concatenate([values, -values], 1), targets=("a", "b"))
    order = [5, 2, 7, 0, 1]
    mine = made(effects.values[order][:, ::-1], tuple(effects.units[i] for i in order), ("b", "a"))
    found = agreement(mine, effects)
    assert found.n_units == 5
    assert [(row.target, row.spearman.value) for row in found.rows] == [("a", 1.0), ("b", 1.0)]


def test_tensors_are_summed_over_what_each_unit_covers():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(20, 2, 4, 3, 5))  # [n, targets, channels, rows, columns]
    units = ("s[2]", "s[0]@1,2", "s@0,4", "s[1:3]", "s[0,3]@2,0")
    parts = [
        maps[:, :, 2].sum((2, 3)),
        maps[:, :, 0, 1, 2],
        maps[:, :, :, 0, 4].sum(2),
        maps[:, :, 1:3].sum((2, 3, 4)),
        maps[:, :, [0, 3], 2, 0].sum(2),
    ]
    effects = made(np.stack(parts).transpose(0, 2, 1), units, ("a", "b"))
    for each in (maps, torch.from_numpy(maps)):
        found = agreement(each, effects)
        assert all(
            row.pearson.value == pytest.approx(1.0) and row.within.value == pytest.approx(1.0) for row in found.rows
        )
    columns = effects.values.transpose(2, 1, 0)
    assert all(row.pearson.value == pytest.approx(1.0) for row in agreement(columns, effects).rows)
    assert agreement(maps[:, 1], effects.select(targets="b")).rows[0].pearson.value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("attributions", "message"),
    [
        (np.zeros((19, 8)), "19 attributions, 20 pairs.*baselines=pairs"),
        (np.zeros((20, 7)), "7 columns, the effects 8 units"),
        (np.zeros(20), "expected"),
        (np.full((20, 8), np.nan), "NaN"),
        (np.zeros((20, 5, 3, 3)), r"'encoder.4\[5\]' is no unit of attributions with 5 units and positions \(3, 3\)"),
        (made(ramp(), tuple(f"fc[{i}]" for i in range(8))), "none in common.*unit_attributions"),
        (made(ramp(), targets=("c",)), "targets c, the effects of a: none in common"),
        (made(ramp(), provenance={"fingerprint": "x"}), "fingerprint x, the effects of y"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_do(attributions, message):
    with pytest.raises(nv.DataError, match=message):
        agreement(attributions, made(ramp(), provenance={"fingerprint": "y"}))


def test_positions_of_the_wrong_rank_several_sites_and_a_silly_top_are_refused():
    maps = np.zeros((20, 4, 3))
    with pytest.raises(nv.DataError, match="is no unit"):
        agreement(maps, made(ramp(units=1), ("s[0]@1,2",)))
    with pytest.raises(nv.DataError, match="is no unit"):
        agreement(maps[..., None], made(ramp(units=1), ("s[0]@1",)))  # would be a sum over the other axis
    with pytest.raises(nv.DataError, match="attributions of one site"):
        agreement(maps, made(ramp(units=2), ("s[0]", "r[0]")))
    with pytest.raises(nv.DataError, match="attributions of one site"):
        agreement(maps, made(ramp(units=1), ("s[0] + r[0]",)))
    with pytest.raises(nv.DataError, match="from 1 to 8"):
        agreement(made(ramp()), made(ramp()), top=9)
    with pytest.raises(nv.DataError, match="must be Effects"):
        agreement(made(ramp()), np.zeros(3))


def test_maps_from_base_to_source_need_no_second_thought_about_their_sign(vae):
    plain = nv.Pairs(images(ConvVAE, 12), images(ConvVAE, 12, seed=1))
    effects = nv.patch_activations(vae, plain, ["input"], readout=LATENTS, per="position")
    maps = LatentIntegratedGradients(vae).attribute(plain.base, baselines=plain, n_steps=40)
    found = agreement(maps, effects, n_boot=20)
    assert found.n_units == 256
    assert min(row.pearson.value for row in found.rows if row.against == "both") > 0.95
    forth = LatentIntegratedGradients(vae).attribute(plain.source, baselines=plain.base, n_steps=40)
    assert agreement(forth, effects, n_boot=20).row("latent.mu[0]").pearson.value == pytest.approx(
        found.row("latent.mu[0]").pearson.value, abs=1e-4
    )


def test_maps_against_another_baseline_come_with_a_warning_and_maps_of_something_else_with_a_lesson(vae, pairs):
    effects = nv.patch_activations(vae, pairs, ["input"], readout=LATENTS, direction="noising")
    maps = LatentIntegratedGradients(vae).attribute(pairs.base, n_steps=40)
    with pytest.warns(nv.NnsightVaeWarning, match=r"mean of the inputs.*baselines=pairs"):
        agreement(maps, effects)
    hidden = nv.patch_activations(vae, pairs, ["encoder.3"], readout=LATENTS, direction="noising")
    with pytest.raises(
        nv.DataError,
        match=r"of 'input' cannot be compared with effects of encoder.3.*unit_attributions.*per='position'",
    ):
        agreement(maps, hidden)
    factors = nv.patch_activations(vae, pairs, ["input"], readout=HALVES, direction="noising")
    with pytest.raises(nv.DataError, match="none in common"):
        agreement(maps, factors)


def test_shapley_values_of_latents_agree_with_patching_them(vae):
    plain = nv.Pairs(images(ConvVAE, 12), images(ConvVAE, 12, seed=1))
    effects = nv.patch_activations(vae, plain, ["latent.z"], readout=HALVES)
    with torch.no_grad():
        z = vae.encode(plain.base).mu
    found = agreement(LatentShapley(vae, HALVES).attribute(z, plain), effects)
    assert min(row.within.value for row in found.rows if row.against == "both") > 0.95
    turned = agreement(LatentShapley(vae, HALVES).attribute(z, plain), effects.select(targets=["bottom", "top"]))
    assert turned.row("top").within.value == found.row("top").within.value  # matched by name, not by place


def test_on_the_bundled_model_matched_ends_and_integrated_gradients_rank_units_as_patching_does():
    vae, data = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum")
    readout = nv.readouts.Latents(8)[[f"latent.mu[{k}]" for k in (0, 1, 2, 3, 6, 7)]]  # 4 and 5 are dead
    for factor in ("angle", "light"):
        some = data.pairs(factor, n=12, seed=0)
        effects = nv.patch_activations(vae, some, ["encoder.7"], readout=readout)
        ends = agreement(
            unit_attributions(vae, some, ["encoder.7"], readout=readout, method="gradient x delta"), effects
        )
        path = agreement(unit_attributions(vae, some, ["encoder.7"], readout=readout, n_steps=10), effects)
        for target in readout.names:
            assert ends.row(target, "noising").within.value > 0.95
            assert ends.row(target, "noising").spearman.value > 0.95
            assert path.row(target, "both").within.value > 0.95
            assert path.row(target, "both").spearman.value > 0.95
