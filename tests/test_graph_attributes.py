"""Attributes that graph files found hard: text that is more than text, and cells longer than a reader expects."""

from __future__ import annotations

import csv
import enum

import networkx as nx
import numpy as np
import pytest

from nnsight_vae import export, read_circuit

SUFFIXES = (".json", ".graphml", ".gexf", ".cyjs", ".dot", ".csv")


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_enum_comes_back_as_its_value_whether_attribute_key_or_id(tmp_path, suffix: str) -> None:
    graph = nx.DiGraph(colour=Colour.RED)
    graph.add_edge(Colour.RED, "z", of={Colour.RED: Level.HIGH}, level=Level.HIGH)
    again = read_circuit(export(graph, tmp_path / f"g{suffix}"))
    assert (list(again), again.graph) == (["red", "z"], {"colour": "red"})
    assert again.edges["red", "z"] == {"of": {"red": 3}, "level": 3}
    assert {type(node) for node in again} == {str}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_edge_may_hold_a_value_for_every_pair(tmp_path, suffix: str) -> None:
    limit = csv.field_size_limit()
    graph = nx.DiGraph([("a", "b")])
    graph.edges["a", "b"]["pairs"] = np.random.default_rng(0).normal(size=20_000)
    again = read_circuit(export(graph, tmp_path / f"g{suffix}"))
    np.testing.assert_array_equal(again.edges["a", "b"]["pairs"], graph.edges["a", "b"]["pairs"])
    assert csv.field_size_limit() == limit
