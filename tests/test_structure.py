"""Structure across factors, all measures alike: tables, refusals, seeds and what circuits record."""

from __future__ import annotations

import networkx as nx
import pytest
from circuits_of_factors import drawn_circuit, scored

from nnsight_vae.circuits import circuit_from, hubs, modularity, motifs, overlap, separation, specificity
from nnsight_vae.circuits.graph.columns import candidates_of
from nnsight_vae.errors import CircuitError


def test_results_print_and_make_frames():
    named = {"a": drawn_circuit(0, "a"), "b": drawn_circuit(1, "b"), "c": drawn_circuit(2, "c")}
    found = overlap(named, n_null=9)
    assert len(found.to_frame()) == len(found.rows) == 3 * (1 + 3 + 1 + 2)
    assert "a & c" in str(found)
    assert found.to_frame()["p"].dtype == "Float64"
    units = specificity(named)
    assert {"effect on a", "effect on c"} <= set(units.to_frame().columns)
    assert "latent.z" in str(units)
    assert len(hubs(named).to_frame()) == sum(len(each) - 1 for each in named.values())  # without the factor
    assert set(modularity(named, n_null=9).to_frame().columns) == {"unit", "community"}
    with pytest.raises(CircuitError, match="no overlap of edges"):
        found.of("a", "x")


@pytest.mark.parametrize("function", [overlap, specificity, separation, hubs, modularity, motifs])
def test_what_is_no_circuit_is_refused(function):
    good = drawn_circuit(0, "a")
    with pytest.raises(CircuitError, match=r"expected a networkx.DiGraph|got Graph"):
        function({"a": good, "b": nx.Graph(good)} if function is not motifs else nx.Graph(good))
    if function in (overlap, specificity, separation, modularity):
        with pytest.raises(CircuitError, match=r"2 or more factors.*got 1"):
            function({"a": good})
    if function in (hubs, separation):
        with pytest.raises(CircuitError, match="q=0"):
            function({"a": good, "b": good}, q=0)


def test_the_same_seed_gives_the_same_numbers_and_circuits_are_left_alone():
    named = {"a": drawn_circuit(0, "a"), "b": drawn_circuit(1, "b")}
    before = {name: nx.DiGraph(each) for name, each in named.items()}
    assert overlap(named, n_null=49).rows == overlap(named, n_null=49).rows
    assert overlap(named, n_null=49).rows != overlap(named, n_null=49, seed=1).rows
    assert modularity(named, n_null=9) == modularity(named, n_null=9)
    specificity(named), hubs(named), separation(named)
    assert all(nx.utils.graphs_equal(named[name], before[name]) for name in named)


def test_circuits_record_how_many_nodes_and_edges_they_are_chosen_from():
    scores = scored(0, "a", (1.0, 1.0))
    expected = {"nodes": {"encoder.0": 1, "latent.z": 2}, "edges": {"encoder.0 -> latent.z": 2}}
    assert candidates_of(scores) == expected
    assert circuit_from(scores).graph["candidates"] == expected
