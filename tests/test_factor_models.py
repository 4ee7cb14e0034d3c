"""The worlds and models that other tests take for known are what they say."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from factor_models import LIMIT, WIDTH, factor_vae, factor_world, rotated, untrained

import nnsight_vae as nv

STEP = 2 * LIMIT / (255 * WIDTH)  # the least change of a factor that an image of 8 bits shows
KINDS = [(0, 5, True), (1, 4, True), (2, 6, True), (3, 5, False)]


@pytest.fixture(params=KINDS, ids=str)
def world(request):
    seed, n_factors, linear = request.param
    return factor_world(seed, n_factors, linear)


def test_the_readout_reads_the_factors_of_images(world):
    batch = world.sample(200)
    assert (world.readout()(batch.images) - batch.factors).abs().max() <= STEP / 2 + 1e-5
    only = world.readout(world.factors[1])
    assert torch.equal(only(batch.images)[:, 0], world.readout()(batch.images)[:, 1])


def test_factors_have_unit_spread_and_the_graph_is_that_of_the_weights(world):
    factors = world.sample(20_000, seed=5).factors.numpy()
    np.testing.assert_allclose(factors.std(0), 1, atol=0.03)
    edges = {(world.factors[i], world.factors[j]) for i, j in np.argwhere(world.weights)}
    assert set(world.graph.edges) == edges
    assert nx.is_directed_acyclic_graph(world.graph)


def test_total_effects_are_what_interventions_do():
    world = factor_world(0)
    base = world.sample(50)
    for i, factor in enumerate(world.factors):
        moved = world.counterfactual(base, **{factor: base.factors[:, i] + 1})
        np.testing.assert_allclose(
            (moved.factors - base.factors).numpy(), np.tile(world.total_effects()[i], (50, 1)), atol=1e-5
        )


def test_a_bent_world_is_not_linear():
    world = factor_world(3, linear=False)
    cause, effect = next(iter(world.graph.edges))
    base = world.sample(200)
    j = world.factors.index(effect)
    steps = [world.counterfactual(base, **{cause: value}).factors[:, j] for value in (-1.0, 0.0, 1.0, 2.0)]
    assert ((steps[3] - steps[2]).abs() < 0.5 * (steps[2] - steps[1]).abs()).all()


def test_the_hand_built_model_is_exact_and_its_latents_are_the_factors(world):
    model = factor_vae(world, seed=1, spare=1)
    batch = world.sample(200)
    mu, logvar = model.encode(batch.images)
    assert torch.allclose(model.decode(mu), batch.images, atol=1e-5)
    for j, factor in enumerate(world.factors):
        assert (mu[:, model.latents[factor]] - batch.factors[:, j]).abs().max() <= STEP / 2 + 1e-5
    (spare,) = set(range(mu.shape[1])) - set(model.latents.values())
    assert not mu[:, spare].any()
    assert not logvar[:, spare].any()
    assert sorted(model.latents.values()) != list(model.latents.values())


def test_a_rotated_copy_computes_the_same_and_its_latents_are_mixed(world):
    model = factor_vae(world)
    turned, before = rotated(model, seed=2), model.mu.weight.clone()
    batch = world.sample(50)
    assert torch.allclose(turned.decode(turned.encode(batch.images)[0]), batch.images, atol=1e-4)
    assert torch.equal(model.mu.weight, before)
    r = turned.rotation
    assert torch.allclose(r @ r.T, torch.eye(len(r), dtype=r.dtype))
    mixed = model.encode(batch.images)[0].double() @ r.T
    assert torch.allclose(turned.encode(batch.images)[0].double(), mixed, atol=1e-4)
    assert (r.abs().max(0).values < 0.99).all()


def test_all_of_them_can_be_wrapped_and_an_untrained_one_knows_nothing(world):
    batch = world.sample(100)
    for model in (factor_vae(world, spare=1), rotated(factor_vae(world)), untrained(world)):
        vae = nv.VAE(model)
        assert vae.encode(batch.images).mu.shape == (100, model.mu.out_features)
    read = world.readout()
    shown = read(model.decode(model.encode(batch.images)[0]).detach())
    assert (shown.std(0) < 0.1).all()
