"""Dose-responses: statistics against numpy, scipy and literal twins; responses against closed forms; honest error rates."""

from __future__ import annotations

import copy
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from linear import LinearWorld, random_linear_vae
from scipy import stats
from test_engine import record
from vaes import all_vaes, images

import nnsight_vae as nv
from nnsight_vae.results.dose_response import DoseResponse
from nnsight_vae.stats import significance, trends

WORLD = LinearWorld()
SITES = ["enc", "latent.mu"]
UNEVEN = np.array([-2.0, -1.0, 0.5, 1.0, 4.0])


def curves(seed: int, shape=(3, 5, 8)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# ---------------------------------------------------------------- pure statistics


@given(st.integers(0, 10_000), st.sampled_from([1.0, 1e-3, 1e4]), st.sampled_from([0.0, 100.0]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_slope_and_curvature_are_the_leading_coefficients_of_polyfit(seed, width, offset):
    doses, values = UNEVEN * width + offset * width, curves(seed)
    for degree in (1, 2):
        found = trends.polynomial(values, doses, degree)
        for u, i in np.ndindex(3, 8):
            want = np.polyfit(UNEVEN, values[u, :, i], degree)[0] / width**degree
            assert found[u, i] == pytest.approx(want, rel=1e-7, abs=1e-9 / width**degree)


def test_monotonicity_is_kendalls_tau_without_ties_and_counts_ties_for_neither_side():
    values = curves(1)
    found = trends.monotonicity(values)
    for u, i in np.ndindex(3, 8):
        assert found[u, i] == pytest.approx(stats.kendalltau(range(5), values[u, :, i]).statistic)
    tied = np.round(curves(2))
    slack = np.array([0.0, 1.0, 2.0])
    found = trends.monotonicity(tied, slack)
    for u, i in np.ndindex(3, 8):
        score = 0
        for low, high in combinations(range(5), 2):
            rise = tied[u, high, i] - tied[u, low, i]
            score += int(rise > slack[u]) - int(rise < -slack[u])
        assert found[u, i] == pytest.approx(score / 10)
    assert (trends.monotonicity(np.ones((2, 4, 3))) == 0).all()


def test_the_linear_share_is_the_squared_correlation_and_undefined_for_a_constant():
    curve = curves(3).mean(axis=2)
    found = trends.linear_share(np.vstack([curve, np.ones(5)]), UNEVEN)
    np.testing.assert_allclose(found[:3], [stats.pearsonr(UNEVEN, each).statistic ** 2 for each in curve])
    assert np.isnan(found[3])


def test_the_flatness_test_equals_its_literal_twin_over_all_sign_patterns():
    values = curves(4, (2, 3, 7)) + 0.4 * np.arange(3)[:, None]
    found = trends.flatness_pvalues(values)
    for u in range(2):
        centred = values[u] - values[u].mean(axis=0)

        def largest(signs, centred=centred):
            return max(abs((row * signs).sum()) / np.sqrt((row**2).sum()) for row in centred)

        observed = largest(np.ones(7))
        count = [largest(np.array(signs)) >= observed - 1e-9 for signs in product([-1, 1], repeat=7)]
        assert found[u] == pytest.approx(np.mean(count))


@pytest.mark.parametrize("groups", [None, np.arange(24) // 2])
@pytest.mark.parametrize("least", [0.0, 0.2])
def test_one_pass_for_all_units_equals_one_family_wise_test_a_unit(groups, least, monkeypatch):
    values = curves(9, (7, 3, 24))
    monkeypatch.setattr(significance, "_JOINT", 2 * 3 * 256)  # two units at a time
    found = significance.joint_pvalues(values, groups, min_effect=least, n_perm=499, seed=2)
    options = {"min_effect": least, "n_perm": 499, "seed": 2}
    each = [significance.max_t_pvalues(unit, groups, **options).min() for unit in values]
    np.testing.assert_allclose(found, each)
    assert significance.joint_pvalues(values[:0]).shape == (0,)


def test_a_constant_response_has_p_1_and_clusters_are_flipped_whole():
    values = np.concatenate([np.zeros((1, 3, 12)), curves(5, (1, 3, 12)) + np.arange(3)[:, None]])
    assert trends.flatness_pvalues(values)[0] == 1
    free, clustered = trends.flatness_pvalues(values)[1], trends.flatness_pvalues(values, np.arange(12) // 3)[1]
    assert free < 0.01
    assert clustered >= 1 / 8  # four clusters cannot say more


def test_the_flatness_test_keeps_its_level_where_nothing_responds():
    """600 units of pure noise, tested at 10 % and at 1 %, 4 standard errors allowed."""
    p = trends.flatness_pvalues(curves(6, (600, 5, 20)), n_perm=999)
    for level in (0.1, 0.01):
        assert (p <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 600)
    assert (p <= 0.1).mean() > 0.05  # and is not idle


SHAPES = [
    ("up up up", 0.99, "linear"),
    ("down down down", 0.951, "linear"),
    ("up . .", 0.7, "monotone"),
    (". down .", 0.949, "monotone"),
    ("up . down", 0.0, "peak"),
    ("down up .", 0.99, "dip"),
    ("up down up", 0.5, "mixed"),
    (". . .", 0.99, "undetermined"),
]


@pytest.mark.parametrize(("steps", "linear", "expected"), SHAPES)
def test_shapes_follow_from_the_steps_that_were_found(steps, linear, expected):
    words = np.array(steps.split())
    assert trends.shape(words == "up", words == "down", linear) == expected


# ---------------------------------------------------------------- closed forms on a linear world


def linear_world(seed: int = 0):
    model = random_linear_vae(seed, d=3)
    a1, a2 = model.enc.weight.detach(), model.mu.weight.detach()
    return nv.VAE(model), torch.cat([a1, a2 @ a1]).numpy()


@pytest.mark.parametrize("values", [None, [-1.0, 0.5, 3.0]])
@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("factor", ["cause", "effect", "other"])
def test_slopes_equal_the_matrix_product_with_what_do_moves(factor, propagate, values):
    vae, matrix = linear_world()
    doses = WORLD.doses(factor, n=20, values=values, seed=3, propagate=propagate)
    response = nv.dose_response(vae, doses, SITES)
    direction = np.eye(3)[WORLD.factors.index(factor)]
    if factor == "cause" and propagate:
        direction[1] = WORLD.weight
    sd = (matrix @ WORLD.sample(256, seed=3).images.flatten(1).numpy().T).std(axis=1)
    per_unit = matrix @ direction / sd
    marginal = WORLD.sample(1024).factors[:, WORLD.factors.index(factor)].numpy()
    assert doses.factor_sd == pytest.approx(marginal.std())
    trend = response.trend
    np.testing.assert_allclose(trend.values[:, 0], np.repeat(per_unit[:, None] * doses.factor_sd, 20, 1), rtol=1e-6)
    np.testing.assert_array_equal(trend.values[:, 1], np.repeat(np.sign(per_unit)[:, None], 20, 1))
    np.testing.assert_allclose(trend.values[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(
        response.values, (per_unit[:, None] * (doses.values - doses.values.mean()))[..., None] * np.ones(20), atol=1e-9
    )
    frame = response.to_frame()
    assert frame["responds"].all()
    assert set(frame["shape"]) == {"linear"}
    assert (frame["peak"] == np.where(per_unit > 0, doses.values[-1], doses.values[0])).all()
    np.testing.assert_allclose(frame["range"], np.abs(per_unit) * np.ptp(doses.values), rtol=1e-6)


def test_doses_show_the_sampled_units_with_the_factor_set():
    batch = WORLD.sample(10, seed=4)
    doses = WORLD.doses("cause", n=10, values=[2.0, -1.0], seed=4)
    assert doses.values.tolist() == [-1.0, 2.0]
    assert torch.equal(doses.reference, WORLD.sample(256, seed=4).images)
    for value, shown in zip(doses.values, doses.images.flatten(2), strict=True):
        assert (shown[:, 0] == value).all()
        torch.testing.assert_close(shown[:, 1] - batch.factors[:, 1], WORLD.weight * (value - batch.factors[:, 0]))
        assert torch.equal(shown[:, 2], batch.factors[:, 2])
    held = WORLD.doses("cause", n=10, values=[2.0, -1.0], seed=4, propagate=False)
    assert torch.equal(held.images.flatten(2)[:, :, 1:], batch.factors[None, :, 1:].expand(2, -1, -1))
    assert (doses.propagate, held.propagate) == (True, False)
    assert len(WORLD.doses("cause", n=300).reference) == 300


def test_default_doses_are_seven_quantiles_of_the_marginal_and_all_values_of_a_coarse_factor():
    data = nv.datasets.load("pendulum")
    doses = data.doses("light", n=2)
    np.testing.assert_allclose(doses.values, 0.98 + 1.18 * (np.arange(7) + 0.5) / 7, atol=0.02)
    assert doses.factor_sd == pytest.approx(1.18 / np.sqrt(12), rel=0.02)
    table = np.array([[0], [1]]).repeat([195, 5], axis=0)
    coin = nv.datasets.from_arrays(np.zeros((200, 8, 8)), table, names=["coin"])
    assert coin.doses("coin", n=1).values.tolist() == [0, 1]
    skewed = np.concatenate([np.zeros(990), np.arange(10)])[:, None]
    rare = nv.datasets.from_arrays(np.zeros((1000, 8, 8)), skewed, names=["rare"])
    assert rare.doses("rare", n=1).values.tolist() == [0, 9]


def test_the_noise_of_a_unit_of_the_world_is_shared_by_all_doses():
    vae, matrix = linear_world()
    doses = WORLD.doses("cause", n=15, values=[0.0, 1.0, 2.0])
    eps = torch.randn(15, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    noisy = nv.Doses(doses.images, doses.values, eps=eps)
    z = nv.dose_response(vae, noisy, ["latent.z"])
    mu = np.einsum("up,dnp->udn", matrix[5:], doses.images.flatten(2).numpy())
    seen = mu + np.exp(-1.0) * eps.numpy().T[:, None]
    sd = seen.reshape(3, -1).std(axis=1)[:, None, None]
    np.testing.assert_allclose(z.values, (mu - mu.mean(axis=1, keepdims=True)) / sd, atol=1e-9)
    assert z.provenance["doses"]["noise"] == "shared eps"
    assert z.provenance["scale"] == "sd over the 45 inputs of the experiment"


def test_responses_of_units_with_positions_are_means_over_them():
    model = all_vaes()["conv"]
    vae = nv.VAE(copy.deepcopy(model))
    batches = [images(model, 6, seed=s) for s in range(3)]
    found = nv.dose_response(
        vae,
        nv.Doses(torch.stack(batches), [0.0, 1.0, 5.0]),
        ["encoder.3"] if "encoder.3" in vae.sites else ["encoder.2"],
    )
    site = found.units[0].partition("[")[0]
    seen = np.stack([record(copy.deepcopy(model), x, site).double().numpy().mean((2, 3)).T for x in batches], axis=1)
    sd = seen.reshape(len(seen), -1).std(axis=1)[:, None, None]
    alive = sd[:, 0, 0] > 0
    want = (seen - seen.mean(axis=1, keepdims=True))[alive] / sd[alive]
    np.testing.assert_allclose(found.values[alive], want, atol=1e-4)


# ---------------------------------------------------------------- error rates and invariants


def test_a_factor_that_does_nothing_to_the_image_moves_no_unit():
    vae, _ = linear_world()
    same = WORLD.sample(20).images
    response = nv.dose_response(vae, nv.Doses(torch.stack([same] * 3), [0.0, 1.0, 2.0]), SITES)
    frame = response.to_frame()
    assert not frame["responds"].any()
    assert frame["shape"].isna().all()
    assert (frame["p"] == 1).all()
    assert np.abs(response.values).max() == 0


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
    bump = (np.exp(-(dose**2)) - 0.3)[:, None] * world + 0.05 * curves(7, (5, 40))
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
    values = 0.3 * curves(12, (40, 5, 20))
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


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_units_of_the_world_have_no_order_and_reversed_doses_flip_the_slope(seed):
    vae, _ = linear_world(seed)
    rng = np.random.default_rng(seed)
    batches = torch.from_numpy(rng.normal(size=(5, 9, 1, 1, 3)))
    response = nv.dose_response(vae, nv.Doses(batches, UNEVEN), SITES)
    shuffled = nv.dose_response(vae, nv.Doses(batches[:, rng.permutation(9)], UNEVEN), SITES)
    np.testing.assert_allclose(shuffled.trend.mean(), response.trend.mean(), rtol=1e-8, atol=1e-12)
    back = nv.dose_response(vae, nv.Doses(batches.flip(0), -UNEVEN[::-1]), SITES)
    np.testing.assert_allclose(back.trend.values, response.trend.values * [[-1], [-1], [1]], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(back.pvalues(), response.pvalues())


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


def test_rounding_is_no_response():
    """In float32, a unit that sums a permutation of the same numbers is constant but for rounding; so is its rank order."""
    model = random_linear_vae().float()
    with torch.no_grad():
        model.enc.weight[0] = 1.0
    rng = np.random.default_rng(0)
    batches = torch.from_numpy(np.stack([[rng.permutation(np.sin(np.arange(6))) for _ in range(20)] for _ in range(4)]))
    batches = batches.float()
    vae = nv.VAE(model)
    assert nv.engine.activations(vae, batches.flatten(0, 1), ["enc"])["enc"][:, 0].std() > 0
    response = nv.dose_response(vae, nv.Doses(batches, [0.0, 1.0, 2.0, 3.0]), ["enc"])
    assert np.abs(response.values[0]).max() == 0
    assert np.abs(response.values[1]).max() > 0.5
    moved = batches.roll(1, 1) * 1e-7  # of rounding size: three doses that are alike, then one that is not
    moved[0], moved[3] = 0, 1
    nearly = nv.dose_response(vae, nv.Doses(batches[0] + moved, [0.0, 1.0, 2.0, 3.0]), ["enc"])
    assert (np.diff(nearly.values[:, :3], axis=1) != 0).any()
    np.testing.assert_allclose(np.abs(nearly.trend.values[:, 1]), 0.5)


# ---------------------------------------------------------------- refusals, printing, pictures


X = torch.zeros(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": [X, X]}, r"images are a list.*torch.stack"),
        ({"images": X[None]}, r"shape \(1, 4, 1, 8, 8\), expected \[dose, n, ...\] with two doses"),
        ({"images": torch.stack([X, X]).byte()}, r"images are torch.uint8.*divided by 255"),
        ({"images": torch.stack([X, X * float("nan")])}, "NaN"),
        ({"images": torch.stack([X[:0], X[:0]])}, "shape"),
        ({"images": torch.zeros(2, 4)}, "shape"),
        ({"values": [0.0, 0.0]}, "2 finite numbers that rise"),
        ({"values": [1.0, 0.0]}, "2 finite numbers that rise"),
        ({"values": [0.0, float("inf")]}, "2 finite numbers that rise"),
        ({"values": [0.0, 1.0, 2.0]}, "2 finite numbers that rise"),
        ({"values": ["low", "high"]}, "not numbers"),
        ({"factor_sd": 0.0}, "factor_sd is 0.0"),
        ({"eps": torch.zeros(3, 2)}, "eps must be a tensor with one row per unit of the world, 4"),
        ({"groups": torch.zeros(3, dtype=torch.long)}, "groups must be a tensor"),
        ({"groups": torch.zeros(4)}, "one integer cluster id"),
    ],
)
def test_ill_formed_doses_are_refused(fields, message):
    with pytest.raises(nv.DataError, match=message):
        nv.Doses(**({"images": torch.stack([X, X + 1]), "values": [0.0, 1.0]} | fields))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.doses("colour"), "no factor 'colour'"),
        (lambda d: d.doses("cause", values=[1.0]), "two or more different finite numbers"),
        (lambda d: d.doses("cause", values=[1.0, float("nan")]), "two or more different finite numbers"),
        (lambda d: d.doses("cause", values=["a", "b"]), "not numbers"),
        (lambda d: nv.datasets.load("pendulum").doses("angle", values=[0.0, 9.0]), "cannot draw angle"),
        (lambda d: nv.datasets.load("pendulum").doses("angle", n=0), "positive integer"),
    ],
)
def test_doses_that_cannot_be_made_are_refused(call, message):
    with pytest.raises(nv.DataError, match=message):
        call(WORLD)


def test_positions_are_those_of_the_images_given_not_of_an_image_the_model_was_wrapped_with():
    model = all_vaes()["residual"]
    x = images(model, 6)
    doses, pairs = nv.Doses(torch.stack([x, x + 1]), [0.0, 1.0]), nv.Pairs(x, x + 1)
    for run, data in ((nv.dose_response, doses), (nv.manipulate_inputs, pairs)):
        vae = nv.VAE(copy.deepcopy(model))
        assert vae.sites["stem"].shape == (4, 32, 32)  # guessed; for these images it is (4, 4, 4)
        with pytest.raises(nv.SiteError, match="names no position"):
            run(vae, data, ["stem@20,3"])
        assert len(run(vae, data, ["stem@3,3"]).units) == 4


def test_what_is_no_model_or_no_doses_is_refused():
    vae, _ = linear_world()
    doses = WORLD.doses("cause", 12)
    with pytest.raises(nv.AdapterError):
        nv.dose_response(vae.module, doses)
    with pytest.raises(nv.DataError, match="got a Pairs where doses belong"):
        nv.dose_response(vae, WORLD.pairs("cause", 4))
    with pytest.raises(nv.SiteError):
        nv.dose_response(vae, doses, ["nowhere"])
    with pytest.raises(nv.DataError):
        nv.dose_response(vae, nv.Doses(torch.stack([X, X]), [0, 1]))
    response = nv.dose_response(vae, doses, SITES)
    for q, min_effect in ((0, 0), (1, 0), (0.05, -1), (0.05, float("nan"))):
        with pytest.raises(nv.DataError, match="expected a rate q"):
            response.to_frame(q=q, min_effect=min_effect)
    with pytest.raises(nv.DataError, match="top=0"):
        response.plot(top=0)
    with pytest.raises(nv.DataError, match="values has shape"):
        DoseResponse(np.zeros((2, 3, 4)), ("a[0]",), np.arange(3.0), "x")


def test_the_picture_shows_the_curves_of_the_strongest_units_with_their_intervals():
    values = curves(11, (8, 3, 20)) + np.array([0.0, 1.0, 3.0])[:, None] * np.arange(8)[:, None, None] / 8
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


@pytest.mark.slow
def test_the_labelled_model_represents_each_factor_by_a_latent_that_follows_it_in_a_line():
    data, vae = nv.datasets.load("pendulum"), nv.load("pendulum-labelled-vae")
    for latent, factor in enumerate(data.factors):
        frame = nv.dose_response(vae, data.doses(factor, n=64, propagate=False), ["latent.mu"]).to_frame(min_effect=0.1)
        own = frame.loc[latent]
        assert own["shape"] == "linear"
        assert own["monotonicity"] > 0.99
        assert own["slope"] == pytest.approx(1.0, abs=0.1)
        others = frame["slope"].abs().drop(latent)[:3]
        assert (others < 0.1).all()


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
