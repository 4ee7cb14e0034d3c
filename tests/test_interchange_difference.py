"""Differences of interchange accuracies over the same pairs: a learned rotation less single latents, with a paired interval."""

from __future__ import annotations

import numpy as np
import pytest
from factor_models import factor_vae, factor_world, rotated

import nnsight_vae as nv
from nnsight_vae.causal.interchange_difference import InterchangeDifference
from nnsight_vae.causal.interchange_result import InterchangeAccuracy, InterchangeRow

WORLD = factor_world(0)


def accuracy(model, mapping, **kwargs):
    return nv.causal.interchange_accuracy(nv.VAE(model), WORLD, mapping, **{"n": 64} | kwargs)


def result(errors, size, swap="apple", n=None):
    """What a result holds of one swap against the change of its factor alone."""
    row = InterchangeRow(swap, False, "latent.z[0]", False, 1 - errors.mean() / size.mean())
    key = (swap, False)
    return InterchangeAccuracy((row,), (), "made", n or len(size), {key: errors}, {key: size})


@pytest.fixture(scope="module")
def compared():
    model = rotated(factor_vae(WORLD), 0)
    single = accuracy(model, model.latents)
    turned = accuracy(model, nv.causal.learn_rotation(nv.VAE(model), WORLD, n=500, steps=400))
    return turned, single, turned.minus(single)


def test_a_learned_rotation_is_better_than_single_latents_by_the_difference_of_their_scores(compared):
    turned, single, gained = compared
    scores = [{(row.factor, row.propagate): row.score for row in each.rows} for each in (turned, single)]
    assert len(gained.rows) == 2 * (len(WORLD.factors) + 1)  # each factor and all at once, against both counterfactuals
    for row in gained.rows:
        key = row.factor, row.propagate
        assert row.difference == pytest.approx(scores[0][key] - scores[1][key], abs=1e-9)
        assert row.low <= row.difference <= row.high
    alone = [row for row in gained.rows if not row.propagate and not row.joint]
    assert np.mean([row.difference for row in alone]) > 0.7
    assert sum(row.low > 0 for row in alone) == len(alone)
    assert gained.left_out == ()


def test_the_interval_is_the_bootstrap_of_the_two_scores_from_the_same_resamples(compared):
    """A literal twin: pairs drawn with replacement, both scores computed in each draw, one quantile of the differences."""
    turned, single, gained = compared
    key = ("apple", False)
    own, its, size = turned.errors[key], single.errors[key], turned.sizes[key]
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(4000):
        rows = rng.integers(len(size), size=len(size))
        drawn.append((1 - own[rows].sum() / size[rows].sum()) - (1 - its[rows].sum() / size[rows].sum()))
    row = next(row for row in gained.rows if (row.factor, row.propagate) == key)
    assert [row.low, row.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_errors_that_come_and_go_together_have_a_narrow_difference():
    """Two choices that fail on the same hard pairs, one by .1 more: the scores overlap widely, the difference is certain."""
    rng = np.random.default_rng(0)
    hard, size = rng.exponential(1.0, 100), rng.uniform(0.5, 1.5, 100)
    better, worse = result(hard, size), result(hard + 0.1, size)
    (row,) = better.minus(worse).rows
    assert row.difference == pytest.approx(0.1 / size.mean())
    assert row.high - row.low < 0.02
    assert np.ptp(np.random.default_rng(1).choice(hard, (500, 100)).mean(1)) > 0.3  # what unpaired scores vary by


def test_a_result_less_itself_is_nothing_and_the_other_way_round_is_the_negative(compared):
    turned, single, gained = compared
    assert all((row.difference, row.low, row.high) == (0, 0, 0) for row in turned.minus(turned).rows)
    back = single.minus(turned)
    assert [row.difference for row in back.rows] == pytest.approx([-row.difference for row in gained.rows])
    assert [row.low for row in back.rows] == pytest.approx([-row.high for row in gained.rows])
    assert {row.units for row in back.rows} == {row.other_units for row in gained.rows}


def test_swaps_of_one_seed_are_over_the_same_pairs_whatever_the_order_of_the_mapping():
    model = factor_vae(WORLD)
    names = list(model.latents)[:3]
    there = accuracy(model, {name: model.latents[name] for name in names})
    back = accuracy(model, {name: model.latents[name] for name in names[::-1]})
    assert [row.factor for row in there.rows] == [row.factor for row in back.rows]
    assert all(row.difference == 0 for row in there.minus(back).rows)


def test_only_what_both_have_a_score_of_is_compared():
    model = factor_vae(WORLD)
    some = accuracy(model, model.latents | {"brick": None}, swaps=["apple", "cloud"])
    every = accuracy(model, model.latents, swaps=["apple", "brick"])
    gained = every.minus(some)
    assert [row.factor for row in gained.rows] == ["apple", "apple"]
    assert gained.left_out == ("brick", "cloud")
    assert "not compared: brick" in str(gained)


def test_two_models_can_be_compared_over_the_same_pairs():
    model = factor_vae(WORLD)
    gained = accuracy(model, model.latents).minus(accuracy(rotated(model, 1), model.latents))
    assert min(row.difference for row in gained.rows if not row.propagate) > 0


def test_it_is_shown_as_a_table_and_as_a_frame(compared):
    _, _, gained = compared
    assert isinstance(gained, InterchangeDifference)
    said = str(gained)
    assert "above 0 where the first units do better" in said
    assert "latent.z, 1 of 5 directions" in said
    frame = gained.to_frame()
    assert list(frame) == ["factor", "joint", "units", "other_units", "propagate", "difference", "ci_low", "ci_high"]
    assert len(frame) == len(gained.rows)


def test_results_over_other_pairs_are_refused():
    model = factor_vae(WORLD)
    one = accuracy(model, model.latents, swaps=["apple"])
    for other in (
        accuracy(model, model.latents, swaps=["apple"], seed=1),
        accuracy(model, model.latents, swaps=["apple"], n=65),
    ):
        with pytest.raises(nv.DataError, match="over other pairs: their true changes of apple differ"):
            one.minus(other)
    with pytest.raises(nv.DataError, match="no swap in common: one has scores of apple, the other of cloud"):
        one.minus(accuracy(model, model.latents, swaps=["cloud"]))
