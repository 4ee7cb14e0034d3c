"""Causal discovery on posterior means: where it must find the CPDAG, what it leaves out, its ceiling, what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from factor_models import factor_vae, factor_world, rotated, untrained
from linear import LinearVAE, LinearWorld

import nnsight_vae as nv
from nnsight_vae.causal import compare, cpdag, discovered_graph, map_factors
from nnsight_vae.causal.discovery import _arcs

pytest.importorskip("causallearn")
EYE = torch.eye(3, dtype=torch.double)


def chain_and_collider(n=3000, seed=0):
    """a -> b -> d <- c, and e apart: its CPDAG leaves a - b undirected."""
    a, b, c, d, e = np.random.default_rng(seed).normal(size=(5, n))
    b = b + a
    d = d + b + c
    return np.stack([a, b, c, d, e], axis=1)


def test_arcs_are_those_of_the_cpdag():
    arcs = _arcs(chain_and_collider(), "abcde", "variable", 0.001, "fisherz")
    assert set(arcs) == {("a", "b"), ("b", "a"), ("b", "d"), ("c", "d")}


def test_order_and_scale_of_the_variables_do_not_matter():
    order = [3, 0, 4, 2, 1]
    values = chain_and_collider()[:, order] * [1, -5, 0.1, 3, 2] + 7
    arcs = _arcs(values, [*"daecb"], "variable", 0.001, "fisherz")
    assert set(arcs) == set(_arcs(chain_and_collider(), "abcde", "variable", 0.001, "fisherz"))


def test_kernels_see_a_dependence_that_correlation_does_not():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 150)
    values = np.stack([x, x**2 + 0.05 * rng.normal(size=150)], axis=1)
    assert _arcs(values, "xy", "variable", 0.01, "fisherz") == []
    assert set(_arcs(values, "xy", "variable", 0.01, "kci")) == {("x", "y"), ("y", "x")}


@pytest.mark.parametrize("seed", [1, 2])
def test_latents_that_are_the_factors_reach_the_ceiling(seed):
    world = factor_world(seed)
    vae = nv.VAE(factor_vae(world, spare=2))
    graph = discovered_graph(vae, world, alpha=0.001)
    assert {name: graph.nodes[name]["latent"] for name in graph} == factor_vae(world, spare=2).latents
    result = compare(graph, world.graph)
    assert result.kind == "discovery"
    assert (result.shd, result.parent_aid, result.ceiling.shd) == (0, 0, 0)
    assert set(graph.edges) == set(cpdag(world.graph).edges) == {tuple(arc) for arc in graph.graph["ceiling"]}


def test_rotated_latents_fall_short_of_the_ceiling():
    world = factor_world(1)
    result = compare(discovered_graph(nv.VAE(rotated(factor_vae(world))), world, alpha=0.001), world.graph)
    assert result.ceiling.shd == 0 < result.shd


def test_collapsed_and_unmatched_latents_are_left_out_and_their_factors_stay():
    world = LinearWorld()
    vae = nv.VAE(LinearVAE(EYE, EYE, EYE, EYE, logvar=-8.0))
    mapping = map_factors(vae, world, n=100)
    mapping.kl[1] = 0.005
    graph = discovered_graph(vae, world, mapping, n=500)
    assert {name: graph.nodes[name]["latent"] for name in graph} == {"cause": 0, "effect": None, "other": 2}
    assert graph.number_of_edges() == 0
    assert graph.graph["ceiling"] == [["cause", "effect"], ["effect", "cause"]]
    mapping.kl[1] = 0.01
    assert discovered_graph(vae, world, mapping, n=500).number_of_edges() == 2


def test_an_untrained_vae_has_nothing_to_discover_and_its_ceiling_is_still_told():
    world = factor_world(1)
    graph = discovered_graph(nv.VAE(untrained(world)), world, n=1000)
    assert set(graph) == set(world.factors)
    assert graph.number_of_edges() == 0
    assert compare(graph, world.graph).ceiling.recall > 0.5


def test_the_graph_says_how_it_was_found_and_the_same_seed_finds_the_same():
    world = LinearWorld()
    vae = nv.VAE(LinearVAE(EYE, EYE, EYE, EYE, logvar=-8.0))
    mapping = map_factors(vae, world, n=100)
    one, two = (discovered_graph(vae, world, mapping, n=200, alpha=0.05, seed=3) for _ in range(2))
    assert one.graph == two.graph
    assert set(one.edges) == set(two.edges)
    assert {key: one.graph[key] for key in ("estimand", "test", "alpha", "n", "seed", "data")} == {
        "estimand": "discovery",
        "test": "fisherz",
        "alpha": 0.05,
        "n": 200,
        "seed": 3,
        "data": "linear world",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 20}, "n >= 50.*got 20"), ({"alpha": 0.0}, "0 < alpha < 1"), ({"test": "oracle"}, "'fisherz' or 'kci'")],
)
def test_settings_without_meaning_are_refused_before_any_work(options, message):
    with pytest.raises(nv.DataError, match=message):
        discovered_graph(None, LinearWorld(), **options)


def test_codes_are_not_numbers_to_test():
    from nnsight_vae.models import VQVAE

    with pytest.raises(nv.DataError, match=r"discovered_graph needs latents that are one number each.*codes"):
        discovered_graph(nv.VAE(VQVAE(image_shape=(1, 8, 8))), LinearWorld())


def test_constant_and_redundant_variables_are_refused_with_their_names():
    values = chain_and_collider(200)
    values[:, 4] = 1.0
    with pytest.raises(nv.DataError, match="the factor e is the same for all 200 images"):
        _arcs(values, "abcde", "factor", 0.01, "fisherz")
    values[:, 4] = values[:, 0] - 2 * values[:, 2]
    with pytest.raises(nv.DataError, match="a linear function of the others"):
        _arcs(values, "abcde", "factor", 0.01, "fisherz")


def test_without_causal_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "causallearn.search.ConstraintBased.PC", None)
    with pytest.raises(nv.DataError, match=r"nnsight-vae\[discovery\]"):
        _arcs(chain_and_collider(100), "abcde", "factor", 0.01, "fisherz")
