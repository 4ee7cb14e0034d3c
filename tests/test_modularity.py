"""Communities of circuits, against networkx in the circuit and in every null graph."""

from __future__ import annotations

from itertools import pairwise, product

import networkx as nx
import numpy as np
import pytest
from circuits_of_factors import SITES, SIZES, circuit, drawn_circuit

from nnsight_vae.circuits import modularity, specificity
from nnsight_vae.circuits.graph.columns import Columns, units_of
from nnsight_vae.circuits.structure.communities import _fixed
from nnsight_vae.circuits.structure.nulls import degree_null


def groups(graph: nx.DiGraph) -> dict[str, str]:
    return {unit: str(int(unit[:-1].split("[")[1]) % 2) for unit in graph}


def test_modularity_equals_networkx_in_the_circuit_and_in_every_null_graph():
    graph = units_of(drawn_circuit(0, "a", 0.5))
    names = groups(graph)
    sets = [{u for u, name in names.items() if name == each} for each in "01"]
    found = modularity(graph, communities=names, n_null=9)
    assert found.value == pytest.approx(nx.community.modularity(graph, sets, weight=None))
    columns = Columns.of(graph)
    literal = []
    for batch in degree_null(columns, 9, seed=0):
        for i in range(9):
            null = nx.DiGraph()
            null.add_nodes_from(graph)
            for (a, b), edges in batch.items():
                null.add_edges_from((columns.nodes[a][u], columns.nodes[b][v]) for u, v in np.argwhere(edges[i]))
            literal.append(nx.community.modularity(null, sets, weight=None))
    assert _fixed(columns, names, 9, seed=0) == pytest.approx(literal)
    assert found.expected == pytest.approx(np.mean(literal))


def test_planted_communities_are_found_and_layers_alone_are_none():
    within = {
        (f"{a}[{i}]", f"{b}[{j}]"): 1.0
        for a, b in pairwise(SITES)
        for i, j in product(range(SIZES[a]), range(SIZES[b]))
        if i % 2 == j % 2
    }
    graph = circuit(within, "a")
    assert modularity(graph, communities=groups(graph), n_null=99).p == 2 / 100
    other = units_of(drawn_circuit(5, "a", 0.5))
    layers = {unit: other.nodes[unit]["site"] for unit in other}
    found = modularity(other, communities=layers, n_null=19)
    assert found.value == pytest.approx(found.expected)  # far from 0, and no finding
    assert abs(found.value) > 0.1
    assert (found.p, found.reason) == (None, "constant under this null")


def test_communities_of_factors_are_those_the_units_do_most_for():
    named = {"a": drawn_circuit(0, "a"), "b": drawn_circuit(1, "b")}
    found = modularity(named, n_null=19)
    assert found.communities == specificity(named).top
    assert found.found == "the factor each unit does most for"
    union = nx.compose(*named.values())
    given = modularity(union.subgraph(found.communities), communities=found.communities, n_null=19)
    assert given.value == pytest.approx(found.value)


def test_louvain_looks_for_communities_anew_in_every_null_graph():
    within = {
        (f"{a}[{i}]", f"{b}[{j}]"): 1.0
        for a, b in pairwise(SITES)
        for i, j in product(range(SIZES[a]), range(SIZES[b]))
        if i % 2 == j % 2
    }
    found = modularity(circuit(within, "a"), n_null=39)
    assert (found.found, found.p) == ("Louvain", 2 / 40)
    chance = modularity(drawn_circuit(2, "a", 0.5), n_null=19)
    assert chance.expected > 0.05  # communities are found in random graphs too
    assert chance.p > 0.05


def test_modularity_of_too_little_is_none_with_a_reason():
    one = circuit({("latent.z[0]", "decoder.0[0]"): 1.0}, "a")
    found = modularity(one, communities=dict.fromkeys(one, "x"))
    assert (found.value, found.p, found.reason) == (None, None, "all units are in one community")
    assert modularity(nx.DiGraph()).reason == "no edges between units"
    assert "none" in str(found)
