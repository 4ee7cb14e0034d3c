"""The circuit of every factor, hung into the graph of the factors: one acyclic graph, from factor to factor."""

import networkx as nx
import numpy as np
import pytest

import nnsight_vae as nv
from nnsight_vae.causal import FactorCircuits, factor_circuits
from nnsight_vae.circuits import TopK, score_edges
from nnsight_vae.circuits.drawing.prominence import on_paths, prominence, strongest

# Latents that follow others leave the data when they are moved alone.
pytestmark = pytest.mark.filterwarnings("ignore:.*further from the aggregate posterior")

FACTORS = ("angle", "shadow_length")


@pytest.fixture(scope="module")
def vae():
    return nv.load("pendulum-labelled-vae")


@pytest.fixture(scope="module")
def data():
    return nv.datasets.load("pendulum")


@pytest.fixture(scope="module")
def mapping(vae, data):
    return nv.causal.map_factors(vae, data, n=48)


@pytest.fixture(scope="module")
def model_graph(data):
    """One edge of the world, one that is not, one that is a cause the other way round."""
    graph = nx.DiGraph(estimand="total", through="inputs")
    graph.add_nodes_from(data.factors)
    graph.add_edge("angle", "shadow_length", effect=-0.1, size=0.7, ci_low=0.6, ci_high=0.8)
    graph.add_edge("angle", "light", effect=0.4, size=0.4, ci_low=0.3, ci_high=0.5)
    graph.add_edge("shadow_length", "angle", effect=0.2, size=0.2, ci_low=0.1, ci_high=0.3)
    return graph


@pytest.fixture(scope="module")
def found(vae, data, mapping, model_graph):
    return factor_circuits(vae, data, mapping, factors=FACTORS, model=model_graph, n=12, select=TopK(400))


def relations(graph, name):
    return {(a, b): data for a, b, data in graph.edges(data=True) if data["relation"] == name}


def test_each_factor_leads_through_latents_to_its_own_readout(found):
    circuit_edges = found.graph.edge_subgraph(relations(found.graph, "circuit"))
    without_latents = circuit_edges.subgraph(n for n, d in circuit_edges.nodes(data=True) if d["stage"] != "latent")
    for factor in FACTORS:
        ends = (f"factor:{factor}", f"readout:{factor}")
        assert nx.has_path(circuit_edges, *ends)
        assert not nx.has_path(without_latents, *ends)


def test_the_edges_of_the_world_are_those_of_the_true_graph_and_say_whether_the_model_has_them(found, data):
    world = relations(found.graph, "world")
    assert set(world) == {(f"factor:{i}", f"factor:{j}") for i, j in data.graph.edges}
    assert {edge: attributes["found"] for edge, attributes in world.items()} == {
        ("factor:angle", "factor:shadow_length"): True,
        ("factor:angle", "factor:shadow_position"): False,
        ("factor:light", "factor:shadow_length"): False,
        ("factor:light", "factor:shadow_position"): False,
    }
    edge = world["factor:angle", "factor:shadow_length"]
    assert (edge["effect"], edge["size"], edge["size_low"], edge["size_high"]) == (-0.1, 0.7, 0.6, 0.8)
    assert world["factor:light", "factor:shadow_length"]["size"] is None


def test_the_edges_of_the_model_lead_from_what_is_moved_to_what_is_read_and_say_whether_they_are_true(found):
    model = relations(found.graph, "model")
    assert {edge: attributes["true"] for edge, attributes in model.items()} == {
        ("factor:angle", "readout:shadow_length"): True,
        ("factor:shadow_length", "readout:angle"): False,
    }  # angle -> light has no readout of light to end at: light has no circuit here


def test_a_true_cause_may_be_a_distant_one(found, mapping):
    world = nx.DiGraph([("angle", "light"), ("light", "shadow_length")])
    graph = FactorCircuits(found.circuits, mapping, found.model, world).graph
    assert graph.edges["factor:angle", "readout:shadow_length"]["true"] is True


def test_without_a_true_graph_nothing_is_said_of_the_world(found, mapping):
    graph = FactorCircuits(found.circuits, mapping, found.model, None).graph
    assert not relations(graph, "world")
    assert {attributes["true"] for attributes in relations(graph, "model").values()} == {None}


def test_every_edge_leads_to_a_later_column_causes_before_effects(found):
    layer = nx.get_node_attributes(found.graph, "layer")
    assert all(layer[a] < layer[b] for a, b in found.graph.edges)
    assert layer["factor:angle"] == layer["factor:light"] == -1
    assert layer["factor:shadow_length"] == layer["factor:shadow_position"] == 0


def test_latents_carry_their_verdicts_and_factors_their_latents(found, mapping):
    for k, unit in enumerate(mapping.effects.units):
        if unit in found.graph:
            assert found.graph.nodes[unit]["verdict"] == mapping.verdicts[k]
    for factor in FACTORS:
        unit = mapping.unit(factor)
        assert found.graph.nodes[f"factor:{factor}"]["latent"] == unit
        assert found.graph.nodes[unit]["assigned"] == factor


def test_the_share_of_a_unit_is_what_all_edges_into_it_carry(found, vae, data):
    scores = score_edges(vae, data.pairs("angle", 12, 0, propagate=False), data.readout()["angle"])
    frame = found.to_frame().query("factor == 'angle'").set_index("unit")
    into = {unit: scores.mean()[np.array(scores.targets) == unit, 0].sum() for unit in frame.index}
    total = scores.total.mean()
    assert frame["share"].to_dict() == pytest.approx({unit: effect / total for unit, effect in into.items()}, abs=1e-9)


def test_the_matched_latent_carries_its_factor(found, mapping):
    frame = found.to_frame()
    for factor in FACTORS:
        own = frame[(frame.factor == factor) & (frame.stage == "latent")].set_index("unit").share
        assert own.idxmax() == mapping.unit(factor)
        assert own.max() > 0.8


def test_units_of_several_factors_name_them_all(found):
    frame = found.to_frame().set_index("unit")
    both = set(found.circuits["angle"]) & set(found.circuits["shadow_length"]) & set(frame.index)
    assert both
    assert set(frame.loc[sorted(both), "factors"]) == {"angle, shadow_length"}
    alone = set(frame.index) - both
    assert set(frame.loc[sorted(alone), "factors"]) <= set(FACTORS)


def test_it_tells_a_story_a_factor(found, mapping):
    lines = str(found).splitlines()
    assert [line.partition(":")[0] for line in lines] == list(FACTORS)
    assert mapping.unit("angle") in lines[0]


def test_a_factor_without_a_circuit_says_why(found, mapping):
    empty = nx.DiGraph(**found.circuits["angle"].graph | {"left_out": {"angle": "no effect is clear of 0"}})
    told = str(FactorCircuits({"angle": empty}, mapping, found.model, found.world))
    assert told == "angle: no circuit (no effect is clear of 0)"


@pytest.mark.parametrize("suffix", ["json", "graphml", "gexf", "dot", "csv", "cyjs"])
def test_it_comes_back_from_every_format(found, tmp_path, suffix):
    path = tmp_path / f"factors.{suffix}"
    nv.export(found.graph, path)
    assert nx.utils.graphs_equal(nv.read_circuit(path), found.graph)


def test_it_is_drawn_with_every_latent_that_carries_a_factor(found, mapping, tmp_path):
    shown = strongest(found.graph, 50)
    assert {mapping.unit(factor) for factor in FACTORS} <= set(shown)
    nv.export(found.graph, tmp_path / "factors.svg")
    assert "shadow_length" in (tmp_path / "factors.svg").read_text()


def test_an_edge_is_as_prominent_as_its_factor_sees_it():
    graph = nx.DiGraph()
    graph.add_nodes_from([("a", {"layer": 0}), ("b", {"layer": 1}), ("c", {"layer": 1})])
    graph.add_edge("a", "b", share=0.8, factors={"wide": 0.1, "narrow": 0.8})
    graph.add_edge("a", "c", share=0.2, factors={"wide": 0.2})
    assert prominence(graph) == {("a", "b"): 1.0, ("a", "c"): 1.0}


def test_a_factor_that_others_cause_begins_its_circuit_as_they_do():
    graph = nx.DiGraph()
    graph.add_nodes_from([("cause", {"layer": -1, "kind": "factor"}), ("effect", {"layer": 0, "kind": "factor"})])
    graph.add_node("unit", layer=1, kind="conv")
    graph.add_edge("cause", "effect")  # without a measured effect
    graph.add_edge("effect", "unit", effect=2.0)
    assert on_paths(graph)["effect", "unit"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": ["weight"]}, r"no readout of weight; it reads angle, light"),
        ({"factors": []}, r"factors=\[\]: expected at least one of angle"),
        (
            {"model": nx.DiGraph([("light", "shadow_length")])},
            r"the model graph is of the factors light, shadow_length; .*angle",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_circuit(vae, data, mapping, options, message):
    with pytest.raises(nv.DataError, match=message):
        factor_circuits(vae, data, mapping, n=10, **options)


def test_what_is_no_model_and_no_data_set_is_called_so(vae, data):
    with pytest.raises(nv.AdapterError, match="where a VAE belongs"):
        factor_circuits(vae.module, data)
    with pytest.raises(nv.DataError, match="got a DiGraph where a data set belongs"):
        factor_circuits(vae, data.graph)
