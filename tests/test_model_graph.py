"""The model's graph over the factors: every kind where the right answer is known, its error rate, and what is refused."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import torch
from factor_models import factor_vae, factor_world, rotated, untrained
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, LinearVAE, LinearWorld
from scipy import stats

import nnsight_vae as nv
from nnsight_vae.causal import compare, factor_graph, map_factors
from nnsight_vae.causal.model_graph import _tested

EYE = torch.eye(3, dtype=torch.double)
PRESERVED = [("total", "inputs"), ("direct", "inputs")]


class Chain(LinearWorld):
    """cause -> effect -> other, so that the total effect on `other` is all through `effect`."""

    def __init__(self):
        normal = lambda rng, n: rng.normal(size=n)
        self.scm = nv.causal.SCM(
            {
                "cause": nv.causal.Mechanism((), lambda p, noise: noise, normal),
                "effect": nv.causal.Mechanism(("cause",), lambda p, noise: 0.8 * p["cause"] + 0.6 * noise, normal),
                "other": nv.causal.Mechanism(("effect",), lambda p, noise: -0.9 * p["effect"] + 0.4 * noise, normal),
            }
        )


def linear_vae(encoder=EYE, decoder=EYE):
    return nv.VAE(LinearVAE(EYE, encoder.double(), decoder.double(), EYE, logvar=-8.0))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "through"), PRESERVED)
def test_a_vae_whose_latents_are_the_factors_preserves_the_worlds_graph(seed, linear, kind, through):
    world = factor_world(seed, linear=linear)
    graph = factor_graph(nv.VAE(factor_vae(world)), world, kind=kind, through=through, n=80, min_effect=0.1)
    result = compare(graph, world.graph)
    assert result.kind == graph.graph["estimand"] == kind
    assert (result.f1, result.shd, result.sid, result.auroc, result.orientation) == (1.0, 0, 0, 1.0, 1.0)


def test_its_latents_are_knobs_and_draw_no_edge_decoded_or_encoded_again():
    world = factor_world(1)
    vae = nv.VAE(factor_vae(world, spare=1))
    mapping = map_factors(vae, world, n=100)
    for through in ("latents", "reencoded"):
        graph = factor_graph(vae, world, mapping, through=through, n=100, min_effect=0.01)
        assert {factor: graph.nodes[factor]["latent"] for factor in graph} == factor_vae(world, spare=1).latents
        assert graph.number_of_edges() == 0


def test_a_rotated_copy_is_tangled_through_latents_and_as_faithful_through_inputs():
    world = factor_world(1)
    vae = nv.VAE(rotated(factor_vae(world)))
    mapping = map_factors(vae, world, n=100)
    tangled = compare(factor_graph(vae, world, mapping, n=100), world.graph)
    assert len(tangled.extra) > 3
    kept = compare(factor_graph(vae, world, through="inputs", n=80, min_effect=0.1), world.graph)
    assert (kept.shd, kept.sid) == (0, 0)


def test_sizes_through_the_inputs_are_the_worlds_total_and_direct_effects():
    """One unit of the cause moves `other` by -.72, all of it through the effect."""
    world, vae = Chain(), linear_vae()
    total = factor_graph(vae, world, through="inputs", n=60)
    assert set(total.edges) == {("cause", "effect"), ("effect", "other"), ("cause", "other")}
    assert total["cause"]["other"]["effect"] == pytest.approx(2 * 0.8 * -0.9)
    direct = factor_graph(vae, world, kind="direct", through="inputs", n=60)
    assert set(direct.edges) == {("cause", "effect"), ("effect", "other")}
    edge, gaps = direct["effect"]["other"], direct.graph["sizes"]["cause"]["effect"] / 0.8
    assert edge["effect"] == pytest.approx(-edge["size"])
    assert gaps == pytest.approx(2 / math.sqrt(math.pi), rel=0.25)  # E |x - x'| of two standard normals
    assert direct.graph["sizes"]["cause"]["other"] == pytest.approx(0, abs=1e-12)
    assert compare(direct, world.graph).shd == compare(total, world.graph).shd == 0
    assert compare(direct, world.graph, kind="total").shd == 1


def test_a_direct_effect_is_of_one_unit_with_its_own_noise():
    """The model squares nothing, the world does: the effect of each pair is that of its own cause, signed low to high."""
    world = Chain()
    world.scm.mechanisms["effect"] = nv.causal.Mechanism(
        ("cause",), lambda p, noise: p["cause"] ** 2 + noise, lambda rng, n: rng.normal(size=n)
    )
    edge = factor_graph(linear_vae(), world, kind="direct", through="inputs", n=200)["cause"]["effect"]
    assert abs(edge["effect"]) < 0.5 < edge["size"]


def test_what_the_encoder_loses_is_no_edge_of_the_models():
    blind = EYE.clone()
    blind[1, 1] = 0
    graph = factor_graph(linear_vae(blind), Chain(), kind="direct", through="inputs", n=60)
    assert set(graph.edges) == {("effect", "other")}  # the image of the effect is lost, its own effect is not
    assert compare(graph, Chain().graph).missed == (("cause", "effect"),)


def test_reencoded_effects_have_their_closed_form():
    """h(z) = A B z: latent j moves by (AB)_ji times the range of latent i, in sd of mu_j."""
    encoder = torch.tensor([[1.0, 0, 0], [0, 1, 0.4], [0, 0, 1]])
    decoder = torch.tensor([[1.0, 0, 0], [0.3, 1, 0], [0, 0, 1]])
    world, vae = LinearWorld(), linear_vae(encoder, decoder)
    mapping = map_factors(vae, world, n=200)
    assert mapping.assignment == {"cause": 0, "effect": 1, "other": 2}
    graph = factor_graph(vae, world, mapping, through="reencoded", n=200, min_effect=0.1)
    assert set(graph.edges) == {("cause", "effect"), ("other", "effect")}
    assert (graph.graph["estimand"], graph.graph["through"]) == ("total", "reencoded")
    moved = nv.perturb_latents(
        vae, world.sample(200).images, "posterior", readout=LinearReadout(decoder.inverse().double())
    )
    spans = np.diagonal(moved.values.mean(-1))
    spread = (world.sample(200).factors.numpy() @ encoder.double().numpy().T).std(0)
    response = (encoder @ decoder).double().numpy()
    for i, cause in enumerate(world.factors):
        for j, effect in enumerate(world.factors):
            if i != j:
                expected = abs(response[j, i] * spans[i] / spread[j])
                assert graph.graph["sizes"][cause][effect] == pytest.approx(expected, abs=1e-9)


def test_a_factor_without_a_latent_has_a_node_and_no_row():
    off = EYE.clone()
    off[1, 1] = 0
    vae, world = linear_vae(decoder=off), LinearWorld()
    for through in ("latents", "reencoded"):
        graph = factor_graph(vae, world, through=through, n=60)
        assert graph.nodes["effect"]["latent"] is None
        assert "effect" not in graph.graph["sizes"]


@pytest.mark.parametrize("through", ["latents", "reencoded", "inputs"])
def test_where_everything_is_collapsed_there_is_no_edge(through):
    vae = nv.VAE(LinearVAE(EYE, 0 * EYE, 0 * EYE, EYE, logvar=0.0))
    graph = factor_graph(vae, LinearWorld(), through=through, n=60)
    assert set(graph) == set(LinearWorld.factors)
    assert graph.number_of_edges() == 0
    assert compare(graph, LinearWorld().graph).f1 == 0


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(1, 30), st.floats(0.01, 0.2), st.integers(0, 1000))
def test_an_edge_stands_where_its_lower_bound_is_above_the_least_effect(m, q, seed):
    rng = np.random.default_rng(seed)
    sizes = np.abs(rng.normal(rng.choice([0.1, 0.4, 0.8], (m, 1)), 0.5, (m, 60)))
    adjusted, low, high = _tested(sizes, 0.5, q)
    assert ((adjusted <= q) == (low > 0.5)).all()
    assert ((low <= sizes.mean(1)) & (sizes.mean(1) <= high)).all()


def test_the_test_is_students_with_benjamini_and_yekutielis_correction():
    sizes = np.stack([np.tile([0.4, 0.6, 0.8, 1.0], 5), np.tile([0.2, 0.3, 0.4, 0.5], 5)])  # no skewness
    adjusted, low, high = _tested(sizes, 0.5, 0.05)
    p = stats.ttest_1samp(sizes[0], 0.5).pvalue
    np.testing.assert_allclose(adjusted, [2 * (1 + 1 / 2) * p, 1.0])
    bounds = stats.t.interval(1 - 0.05 / (2 * 1.5), 19, sizes.mean(1), stats.sem(sizes, axis=1))
    np.testing.assert_allclose((low, high), bounds)


def test_of_the_edges_drawn_at_most_the_rate_is_false():
    """Twelve pairs of factors, eight of them exactly at the least effect; errors of one data set depend on each other."""
    rng = np.random.default_rng(0)
    null = math.sqrt(2 / math.pi)
    shares, powers = [], []
    for _ in range(400):
        shared = rng.normal(size=(1, 80))
        sizes = np.abs(math.sqrt(0.5) * (shared + rng.normal(size=(12, 80))))
        sizes[8:] += 0.4
        found = _tested(sizes, null, 0.1)[0] <= 0.1
        shares.append(found[:8].sum() / max(found.sum(), 1))
        powers.append(found[8:].mean())
    assert np.mean(shares) < 0.1
    assert np.mean(powers) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "through"), [*PRESERVED, ("total", "latents"), ("total", "reencoded")])
def test_of_20_untrained_vaes_none_declares_an_edge(kind, through):
    for seed in range(20):
        world = factor_world(seed)
        graph = factor_graph(nv.VAE(untrained(world, seed)), world, kind=kind, through=through, n=100)
        assert graph.number_of_edges() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"through": "walls"}, "through='walls'.*'reencoded'"),
        ({"kind": "causal"}, "kind='causal'.*discovered_graph"),
        ({"kind": "direct"}, "direct effects need the other factors held"),
        ({"kind": "direct", "through": "reencoded"}, "Use through='inputs'"),
        ({"n": 5}, "n >= 20.*got 5"),
        ({"min_effect": 0.0}, "min_effect > 0"),
        ({"q": 1.0}, "0 < q < 1"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_work(options, message):
    with pytest.raises(nv.DataError, match=message):
        factor_graph(None, LinearWorld(), **options)


@pytest.mark.parametrize("kind", ["total", "direct"])
def test_data_without_a_causal_model_cannot_be_intervened_on(kind):
    images = np.random.default_rng(0).random((60, 1, 4, 4))
    data = nv.datasets.from_arrays(images, images[:, 0, 0, :2], names=["a", "b"])
    with pytest.raises(nv.DataError, match="no structural causal model"):
        factor_graph(None, data, kind=kind, through="inputs")


def test_a_factor_that_never_varies_has_no_direct_effects_to_measure():
    world = Chain()
    world.scm.mechanisms["cause"] = nv.causal.Mechanism(
        (), lambda p, noise: 0 * noise, lambda rng, n: rng.normal(size=n)
    )
    with pytest.raises(nv.DataError, match="'cause' takes one value only"):
        factor_graph(linear_vae(), world, kind="direct", through="inputs", n=40)


def test_latents_with_positions_cannot_be_read_again_as_numbers():
    from nnsight_vae.models import VQVAE

    vae = nv.VAE(VQVAE(image_shape=(1, 8, 8)))
    with pytest.raises(nv.DataError, match="those of this model are codes"):
        factor_graph(vae, LinearWorld(), through="reencoded")


def test_a_graph_goes_through_a_file_and_still_says_what_it_is(tmp_path):
    graph = factor_graph(linear_vae(), Chain(), kind="direct", through="inputs", n=40)
    again = nv.read_circuit(nv.export(graph, tmp_path / "factors.graphml"))
    assert compare(again, Chain().graph) == compare(graph, Chain().graph)
    assert nx.utils.graphs_equal(nx.DiGraph(again.edges), nx.DiGraph(graph.edges))
