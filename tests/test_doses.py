"""Dose-responses of units: closed forms on a linear world, invariants, and what no dose-response can be made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hooks import record
from hypothesis import given, settings, strategies as st
from linear import SITES, LinearWorld, linear_world, random_linear_vae
from vaes import all_vaes, images

import nnsight_vae as nv
from nnsight_vae.results.dose_response import DoseResponse

WORLD = LinearWorld()

UNEVEN = np.array([-2.0, -1.0, 0.5, 1.0, 4.0])


# ---------------------------------------------------------------- closed forms on a linear world


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


def test_a_dose_response_says_where_its_doses_are_from():
    vae, _ = linear_world()
    response = nv.dose_response(vae, WORLD.doses("cause", n=15, values=[0.0, 1.0], seed=7), ["latent.z"])
    record = response.provenance["doses"]
    assert (record["dataset"], record["drawn"], record["seed"], record["n"]) == ("linear world", 15, 7, 15)
    own = nv.Doses(torch.zeros(2, 6, 1, 1, 3, dtype=torch.double), [0.0, 1.0], record={"dataset": "mine", "n": 99})
    record = nv.dose_response(vae, own, ["latent.z"]).provenance["doses"]
    assert (record["dataset"], record["n"]) == ("mine", 6)  # what the record says of the doses themselves is counted


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


# ---------------------------------------------------------------- invariants


def test_a_factor_that_does_nothing_to_the_image_moves_no_unit():
    vae, _ = linear_world()
    same = WORLD.sample(20).images
    response = nv.dose_response(vae, nv.Doses(torch.stack([same] * 3), [0.0, 1.0, 2.0]), SITES)
    frame = response.to_frame()
    assert not frame["responds"].any()
    assert frame["shape"].isna().all()
    assert (frame["p"] == 1).all()
    assert np.abs(response.values).max() == 0


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


# ---------------------------------------------------------------- refusals, a trained model

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
    with pytest.raises(nv.AdapterError, match="got a LinearVAE where a VAE belongs"):
        nv.dose_response(vae.module, doses)
    with pytest.raises(nv.DataError, match="got a Pairs where doses belong"):
        nv.dose_response(vae, WORLD.pairs("cause", 4))
    with pytest.raises(nv.SiteError, match="'nowhere' is not a site"):
        nv.dose_response(vae, doses, ["nowhere"])
    with pytest.raises(nv.DataError, match=r"x has dtype torch\.float32, this model computes in torch\.float64"):
        nv.dose_response(vae, nv.Doses(torch.stack([X, X]), [0, 1]))
    response = nv.dose_response(vae, doses, SITES)
    for q, min_effect in ((0, 0), (1, 0), (0.05, -1), (0.05, float("nan"))):
        with pytest.raises(nv.DataError, match="expected a rate q"):
            response.to_frame(q=q, min_effect=min_effect)
    with pytest.raises(nv.DataError, match="top=0"):
        response.plot(top=0)
    with pytest.raises(nv.DataError, match="values has shape"):
        DoseResponse(np.zeros((2, 3, 4)), ("a[0]",), np.arange(3.0), "x")


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
