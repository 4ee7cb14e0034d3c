"""Verdicts on units from effects: right in the clear cases, and wrong no more often than stated in the others."""

from __future__ import annotations

import numpy as np
import pytest

import nnsight_vae as nv
from nnsight_vae.metrics.polysemanticity_chance import chance_pvalues, standing_pvalues
from nnsight_vae.metrics.polysemanticity_indices import selectivity_indices
from nnsight_vae.metrics.polysemanticity_rules import judge, verdict_pvalues
from nnsight_vae.metrics.polysemanticity_verdicts import verdicts_from_effects

LEAST = 0.2


def effects(sizes: np.ndarray, rng: np.random.Generator, n: int = 60, together: float = 0.0) -> np.ndarray:
    """|effect| of gamma law with the given means; `together` is how much the units share from example to example."""
    own = rng.gamma(2.0, 0.5, (*sizes.shape, n))
    shared = rng.gamma(2.0, 0.5, (1, 1, n))
    return sizes[..., None] * ((1 - together) * own + together * shared)


def wrong(found, sizes: np.ndarray) -> tuple[list[bool], list[bool]]:
    """For each unit called alive, and for each called dead, whether that or a factor named is wrong."""
    alive, dead = [], []
    for verdict, named, size in zip(found.verdicts, found.named, sizes, strict=True):
        above = {f"factor {j}" for j in np.flatnonzero(size > LEAST)}
        truth = ("dead", "monosemantic", "polysemantic")[min(len(above), 2)]
        if (size == LEAST).any() and len(above) < 2:
            truth = "no verdict is right"
        if verdict == "dead":
            dead.append(truth != "dead")
        elif verdict != "undetermined":
            alive.append(verdict != truth or not set(named) <= above)
    return alive, dead


CLEAR = np.array([[0.02, 0.02, 0.02], [1.0, 0.02, 0.02], [0.8, 0.9, 0.02], [0.5, 0.6, 0.7]])
HARD = {
    "at the minimum in one factor": [[1.0, LEAST, 0.01], [LEAST, 0.01, 0.01]],
    "at the minimum in all": [[LEAST, LEAST, LEAST]],
    "just above and just below": [[1.0, 0.21, 0.01], [0.19, 0.19, 0.19], [0.21, 0.21, 0.01]],
}


def test_clear_units_get_their_verdict_and_their_factors():
    found = verdicts_from_effects(effects(np.tile(CLEAR, (5, 1)), np.random.default_rng(0)), min_effect=LEAST)
    assert found.verdicts == ("dead", "monosemantic", "polysemantic", "polysemantic") * 5
    assert found.named[:3] == ((), ("factor 0",), ("factor 0", "factor 1"))
    assert found.units_of("factor 2") == tuple(f"unit {i}" for i in range(3, 20, 4))


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("together", [0.0, 0.8])
def test_false_verdicts_are_no_more_than_stated(hard, together):
    """Mean false verdict proportion over 150 repetitions of 24 units, at .1; hard units among clear ones and alone."""
    rng = np.random.default_rng(1)
    alone = np.resize(np.array(HARD[hard]), (24, 3))
    for sizes in (alone, np.concatenate([alone[:12], np.resize(CLEAR, (12, 3))])):
        shares = []
        for _ in range(150):
            found = verdicts_from_effects(effects(sizes, rng, together=together), min_effect=LEAST, rate=0.1)
            shares.append([np.mean(given) if given else 0.0 for given in wrong(found, sizes)])
        for share in np.array(shares).T:
            assert share.mean() <= 0.1 + 2 * share.std() / np.sqrt(150)


def test_dependent_units_under_by_are_given_fewer_verdicts():
    sizes = np.resize(np.array([[0.27, 0.1, 0.1]]), (24, 3))
    values = effects(sizes, np.random.default_rng(0))
    counts = [
        verdicts_from_effects(values, min_effect=LEAST, method=m).verdicts.count("monosemantic") for m in ("bh", "by")
    ]
    assert 0 < counts[1] < counts[0]


def test_the_p_values_of_verdicts_written_out():
    below = np.array([[0.99, 0.03, 0.04, 0.02]])
    for least, want in (
        (0.01, 2 * 0.04),
        (0.03, 4 * 0.03),
    ):  # the others have to be shown to be below, the one to be above
        dead, mono, poly = verdict_pvalues(np.array([[least, 0.2, 0.5, 0.9]]), below)[:, 0]
        assert dead == 0.99
        assert mono == pytest.approx(want)
        assert poly == pytest.approx(4 * 0.2)
    one = verdict_pvalues(np.array([[0.01]]), np.array([[0.99]]))[:, 0]
    assert one.tolist() == [0.99, 0.01, 1.0]  # one factor: nothing else to be moved, and no second one


def test_p_values_are_valid_where_each_verdict_is_false():
    """Uniform p-values where the hypothesis just holds, however the others are: the chance of p <= a is at most a."""
    rng, n = np.random.default_rng(0), 40_000
    u = rng.random((n, 3))
    sure, never = np.zeros((n, 1)), np.ones((n, 1))
    cases = [
        (0, np.hstack([1 - u[:, :1], never, never]), np.hstack([u[:, :1], sure, sure])),  # one just not below
        (1, np.hstack([u[:, :1], never, never]), np.hstack([1 - u[:, :1], sure, sure])),  # one just not above
        (1, u, 1 - u),  # three of them
        (1, np.hstack([sure, 1 - u[:, :2]]), np.hstack([never, u[:, :2]])),  # two others just not below
        (1, np.hstack([sure, sure, never]), np.hstack([u[:, :1], 1 - u[:, :1], sure])),  # as opposed as can be
        (2, np.hstack([sure, u[:, :2]]), np.hstack([never, 1 - u[:, :2]])),  # one above, two just not
    ]
    for verdict, above, below in cases:
        p = verdict_pvalues(above, below)[verdict]
        for a in (0.02, 0.1, 0.3):
            assert (p <= a).mean() <= a + 3 * np.sqrt(a / n)


def random_layer(rng: np.random.Generator, n_factors: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Effects of 40 units of a linear layer that are random mixtures, and second moments of 64 random directions of it."""
    layer = scale * rng.normal(size=(40, n_factors))
    directions = rng.normal(size=(64, 40))
    moved = directions / np.linalg.norm(directions, axis=1, keepdims=True) @ layer
    return layer, np.tile(moved.T @ moved / 64, (40, 1, 1))


def varied(layer: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return layer[:, :, None] * rng.uniform(0.9, 1.1, (*layer.shape, 40))


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("n_factors", [2, 4])
def test_random_mixtures_are_given_no_verdict_whether_they_move_much_or_about_the_minimum(scale, n_factors):
    """20 layers: a family with any verdict other than dead is wholly wrong, so at most about one in twenty may have any."""
    rng, declared, free = np.random.default_rng(0), 0, 0
    for _ in range(20):
        layer, random = random_layer(rng, n_factors, scale)
        values = varied(layer, rng)
        found = verdicts_from_effects(values, min_effect=0.1, random=random).verdicts
        declared += "polysemantic" in found or "monosemantic" in found
        free += verdicts_from_effects(values, min_effect=0.1).verdicts.count("undetermined") < 20
    assert declared <= 3  # P(Binomial(20, .05) > 3) = .016
    assert free == 20  # by size alone most units would be given one


def test_units_that_stand_out_of_a_random_layer_are_found():
    rng = np.random.default_rng(0)
    layer, random = random_layer(rng, 4, 1.0)
    layer[3], layer[5] = [6, 6, 0, 0], [1, 0.01, 0, 0]
    found = verdicts_from_effects(varied(layer, rng), min_effect=0.05, random=random)
    assert (found.verdicts[3], found.named[3]) == ("polysemantic", ("factor 0", "factor 1"))
    assert (found.verdicts[5], found.named[5]) == ("monosemantic", ("factor 0",))  # no larger than others, but pure
    np.testing.assert_allclose(found.random[0] ** 2, np.diag(random[0]))


def test_chance_of_a_random_direction_is_uniform_in_a_wide_layer():
    rng = np.random.default_rng(0)
    square = np.square(rng.normal(size=(2000, 64))).mean(1)
    p = standing_pvalues(np.abs(rng.normal(size=(2000, 1))), square[:, None], 64)
    mixing = rng.normal(size=(3, 3))
    moments = np.tile(mixing @ mixing.T, (2000, 1, 1)) * rng.uniform(0.5, 2, (2000, 1, 1))  # whatever their length
    drawn = np.abs(rng.normal(size=(2000, 3)) @ mixing.T)
    for values in (p, chance_pvalues(drawn, moments, 64).selective):
        for a in (0.01, 0.05, 0.5):
            assert abs((values <= a).mean() - a) < 4 * np.sqrt(a / 2000)


def test_of_one_factor_chance_is_of_its_size_and_without_random_effects_anything_stands_out():
    size, square = np.array([[2.0], [0.1]]), np.ones((2, 1, 1))
    chance = chance_pvalues(size, square, 64)
    assert chance.selective.tolist() == chance.standing[:, 0].tolist()
    assert chance.standing[0, 0] == pytest.approx(0.05, abs=1e-3)
    still = chance_pvalues(np.array([[1.0, 0.0]]), np.zeros((1, 2, 2)), 64)
    assert still.standing.tolist() == [[0.0, 1.0]]
    assert still.selective[0] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ([1, 0, 0, 0, 0], (1, 1, 1, 1, 1)),
        ([3, 3, 0, 0, 0], (0.569, 2, 0.6, 0.665, 0)),
        ([2, 2, 2, 2, 2], (0, 5, 0, 0, 0)),
    ],
)
def test_indices_have_their_published_values(shape, want):
    found = selectivity_indices(np.array(shape, dtype=float))
    names = ("entropy_selectivity", "participation_ratio", "class_selectivity", "hoyer", "gap")
    assert [found[name] for name in names] == pytest.approx(want, abs=5e-4)
    assert found["top_share"] == pytest.approx(max(shape) / sum(shape))


def test_indices_of_pure_noise_are_not_0():
    noise = np.abs(np.random.default_rng(0).normal(size=(20_000, 5)))
    rows = [selectivity_indices(row) for row in noise]
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    want = {
        "entropy_selectivity": 0.149,
        "participation_ratio": 3.55,
        "class_selectivity": 0.44,
        "hoyer": 0.29,
        "gap": 0.14,
    }
    assert {name: means[name] for name in want} == pytest.approx(
        want, rel=0.02
    )  # averages over draws, of two or three digits


def test_indices_are_none_where_they_mean_nothing():
    found = verdicts_from_effects(effects(CLEAR, np.random.default_rng(0)), min_effect=LEAST)
    assert [value is None for value in found.indices["hoyer"]] == [True, False, False, False]
    assert set(selectivity_indices(np.zeros(3)).values()) == {None}
    single = selectivity_indices(np.ones(1))
    assert single["participation_ratio"] == single["top_share"] == 1
    assert single["entropy_selectivity"] is None
    frame = found.to_frame()
    assert frame["hoyer"].isna().sum() == 3
    assert frame["random"].isna().all()
    assert len(frame) == 12


def test_the_print_says_what_was_found_and_how_sure_it_is():
    text = str(verdicts_from_effects(effects(CLEAR, np.random.default_rng(0)), min_effect=LEAST, notes=["as read"]))
    for said in (
        "1 dead, 1 monosemantic, 2 polysemantic",
        "minimum effect 0.2",
        "rate 0.05 (bh)",
        "as read",
        "factor 0 1.",
    ):
        assert said in text
    assert "unit 0 " not in text  # dead ones are counted, not listed


def test_bad_input_is_refused():
    good = effects(CLEAR, np.random.default_rng(0))
    with pytest.raises(nv.DataError, match="20 examples"):
        verdicts_from_effects(good[..., :19], min_effect=LEAST)
    with pytest.raises(nv.DataError, match="finite"):
        verdicts_from_effects(good * np.nan, min_effect=LEAST)
    for bad in ({"min_effect": 0.0}, {"rate": 1.0}, {"method": "holm"}, {"random": np.ones((4, 3))}):
        with pytest.raises(nv.DataError, match=next(iter(bad))):
            verdicts_from_effects(good, **{"min_effect": LEAST} | bad)
    with pytest.raises(nv.DataError, match="no factor 'mass'"):
        verdicts_from_effects(good, min_effect=LEAST).units_of("mass")


def test_judging_needs_a_level_that_holds_for_the_whole_family():
    above = np.full((50, 3), 0.999)
    above[0] = [0.004, 0.999, 0.999]
    assert judge(above[:1], 1 - above[:1]).verdicts == ("monosemantic",)
    below = np.full((50, 3), 0.9)
    below[0] = [0.9, 0.001, 0.001]
    assert judge(above, below).verdicts[0] == "undetermined"  # one of fifty
