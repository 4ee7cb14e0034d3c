"""The document of the file format says what real circuits hold."""

import re
from importlib import resources

import pytest
import torch
from vaes import ConvVAE, seeded

import nnsight_vae as nv
from nnsight_vae.circuits import TopK, union
from nnsight_vae.circuits.graph.attributes import encode
from nnsight_vae.circuits.graph.records import _CIRCUIT_TYPES, CIRCUIT_SCHEMA

FORMAT = resources.files("nnsight_vae.circuits.files").joinpath("FORMAT.md").read_text(encoding="utf-8")


def documented(section):
    """Names in the first column of the table under a heading, and in the text below it."""
    body = re.search(rf"### {section}\n(.*?)(?=\n##|\Z)", FORMAT, re.S).group(1)
    return set(re.findall(r"`([a-z_]+)`", body))


@pytest.fixture(scope="module")
def circuits():
    vae = nv.VAE(seeded(ConvVAE()))
    dark = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) / 2
    left = torch.zeros(16).index_fill(0, torch.arange(8), 0.5)
    readout = nv.readouts.Region({"top": (slice(0, 8), slice(None)), "left": (slice(None), slice(0, 8))})
    found = {}
    for factor, more in (("light", torch.tensor(0.5)), ("left", left)):
        found[factor] = nv.extract_circuit(vae, nv.Pairs(dark, dark + more, factor=factor), readout, select=TopK(40))
    return [found["light"], found["left"], union(found)]


def test_every_attribute_of_extracted_circuits_and_their_union_is_documented(circuits):
    for circuit in circuits:
        assert circuit.number_of_edges() > 0
        assert {name for _, data in circuit.nodes(data=True) for name in data} <= documented("Nodes") | documented(
            "Edges"
        )
        assert {name for *_, data in circuit.edges(data=True) for name in data} <= documented("Edges")
        assert set(circuit.graph) <= documented("The graph")


def test_extracted_circuits_and_their_union_round_trip_in_every_format(circuits, tmp_path):
    for circuit in circuits:
        for suffix in (".json", ".graphml", ".gexf", ".cyjs", ".dot", ".csv"):
            again = nv.read_circuit(nv.export(circuit, tmp_path / f"c{suffix}"))
            assert dict(again.nodes) == dict(circuit.nodes)
            assert dict(again.edges) == dict(circuit.edges)
            assert encode(dict(again.graph), "graph") == encode(dict(circuit.graph), "graph")
        nv.export(circuit, tmp_path / "c.html", thumbnails={})


def test_every_checked_attribute_is_documented_and_the_schema_named():
    names = documented("Nodes") | documented("Edges")
    assert set(_CIRCUIT_TYPES) - {"weight"} <= names
    assert CIRCUIT_SCHEMA in FORMAT
