"""Graph files: nothing lost on the way there and back, nothing half written, names and values that trip other writers."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from graphs import circuit
from hypothesis import given, settings, strategies as st

from nnsight_vae import CircuitError
from nnsight_vae.circuits.files.export import export, read_circuit
from nnsight_vae.style import LOWERS, RAISES

EXACT = (".json", ".graphml", ".gexf", ".cyjs", ".dot", ".csv")
CLEAN_NAMES = (".graphml", ".gexf", ".dot", ".csv")
ALL = (*EXACT, ".html", ".svg", ".png", ".pdf")


def same(a, b, ordered=True):
    """Equal and of the same kind, NaN being equal to itself, inside containers too."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        keys = list(a) == list(b) if ordered else set(a) == set(b)
        return keys and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def same_graph(a, b, ordered=True):
    """Of nodes, edges, attributes and their order; a .csv does not keep the order of an edge's attributes."""
    return (
        same(dict(a.graph), dict(b.graph))
        and list(a) == list(b)
        and list(a.edges) == list(b.edges)
        and all(same(dict(a.nodes[node]), dict(b.nodes[node])) for node in a)
        and all(same(dict(a.edges[edge]), dict(b.edges[edge]), ordered) for edge in a.edges)
    )


AWKWARD = {
    "none": None,
    "nan": math.nan,
    "infinite": -math.inf,
    "negative_zero": -0.0,
    "tiny": 5e-324,
    "huge_int": 2**80,
    "just_too_long": 2**63,
    "text_like_a_number": "12",
    "text_like_json": '{"a": [1]}',
    "text_like_a_flag": "true",
    "text_like_nothing": "null",
    "padded": " 1",
    "flag": True,
    "tuple": (0.1, (None, "x"), [1]),
    "list": [1, 2.0, (3,)],
    "nested": {"a": {"b": (1,)}, "c": math.nan},
    "odd_keys": {1: "one", (2, 3): None, "$tuple": "not a tag"},
    "like_a_tag": {"$tuple": [1]},
    "text": "µ→θ 潜在",
    "control": "a\x00b\x1b\x85\ufffe",
    "line_ends": "a\r\nb\tc\n ",
    "surrogate": "\ud800",
    "empty": "",
    "markup": "<b>&amp;</b> ]]> \"'",
    "array": np.array([[1.5, np.nan]], dtype=np.float32),
    "no_elements": np.zeros((0, 3)),
    "words": np.array(["a", "bc"]),
    "$order": "a name like a tag",
    "nnsight_vae": "the name of the extra column",
}


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("name", list(AWKWARD))
def test_every_kind_of_attribute_comes_back_exactly(tmp_path, suffix, name):
    graph = circuit()
    value = AWKWARD[name]
    graph.graph[name] = value
    graph.nodes["latent.z[3]"][name] = value
    graph.edges["latent.z[3]", "decoder.0[1]"][name] = value
    graph.nodes["factor:angle"][name] = 1  # the same name with another type elsewhere
    graph.nodes["readout:angle"][name] = 0.5
    graph.edges["encoder.4[7]", "latent.z[3]"]["p"] = 0.01
    plain = graph.copy()
    for edge in plain.edges:
        plain.edges[edge]["p"] = float(plain.edges[edge]["p"])
    assert same_graph(read_circuit(export(graph, tmp_path / f"c{suffix}")), plain, ordered=suffix != ".csv")


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(0.1), 0.1),
        (np.int64(-7), -7),
        (np.bool_(True), True),
        (np.str_("z"), "z"),
        (np.float32("nan"), math.nan),
        (np.array(3), 3),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(2.5, dtype=torch.bfloat16, requires_grad=True), 2.5),
        (torch.tensor([1, 2]), np.array([1, 2])),
    ],
)
def test_scalars_of_numpy_and_torch_come_back_as_python_numbers_of_equal_value(tmp_path, suffix, scalar, expected):
    graph = nx.DiGraph([("a", "b")])
    graph.edges["a", "b"]["value"] = scalar
    again = read_circuit(export(graph, tmp_path / f"c{suffix}"))
    assert same(again.edges["a", "b"]["value"], expected)


RESERVED = ("id", "source", "target", "schema")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("suffix", EXACT)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(first=values, second=values, whole=values)
def test_any_nesting_of_plain_values_round_trips(tmp_path_factory, suffix, first, second, whole):
    graph = nx.DiGraph(value=whole)
    graph.add_node("a", value=first)
    graph.add_node("b", value=second)
    graph.add_edge("a", "b", value=first, other=second)
    graph.add_edge("b", "a", value=second)
    path = tmp_path_factory.mktemp("files") / f"c{suffix}"
    assert same_graph(read_circuit(export(graph, path)), graph)


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize(
    "name", ["a\nb", "a\tb", "a\\nb", "a\\", 'a"b', "a -> b", "a;b,c", " a ", "12", "<a>&amp;", "潜在"]
)
def test_names_with_marks_of_the_formats_come_back(tmp_path, suffix, name):
    graph = nx.DiGraph([(name, "node"), ("node", "graph")])
    graph.nodes[name][name] = 1
    graph.edges[name, "node"][name] = "text"
    assert same_graph(read_circuit(export(graph, tmp_path / f"c{suffix}")), graph)


names = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1)


@pytest.mark.parametrize("suffix", EXACT)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(ids=st.lists(names, min_size=2, max_size=3, unique=True), attribute=names.filter(lambda n: n not in RESERVED))
def test_any_names_of_nodes_and_attributes_round_trip(tmp_path_factory, suffix, ids, attribute):
    graph = nx.DiGraph()
    graph.add_nodes_from((node, {attribute: 1}) for node in ids)
    graph.add_edge(ids[0], ids[1])
    graph.edges[ids[0], ids[1]][attribute] = "text"
    path = tmp_path_factory.mktemp("files") / f"c{suffix}"
    assert same_graph(read_circuit(export(graph, path)), graph)


@pytest.mark.parametrize("suffix", EXACT)
def test_a_factor_graph_goes_through_the_same_door_even_when_cyclic(tmp_path, suffix):
    graph = nx.DiGraph([("angle", "shadow"), ("shadow", "angle")], estimand="total")
    graph.add_node("alone")
    graph.edges["angle", "shadow"]["weight"] = 0.7
    again = read_circuit(export(graph, tmp_path / f"factors{suffix}"))
    assert same_graph(again, graph)
    assert type(again) is nx.DiGraph


def test_networkx_reads_the_formats_it_knows_without_us(tmp_path):
    graph = circuit()
    data = json.loads(export(graph, tmp_path / "c.json").read_text())
    for again in (
        nx.node_link_graph(data, edges="edges"),
        nx.read_graphml(export(graph, tmp_path / "c.graphml")),
        nx.read_gexf(export(graph, tmp_path / "c.gexf")),
    ):
        assert set(again.edges) == set(graph.edges)
        assert again.edges["factor:angle", "encoder.4[7]"]["effect"] == 1.5
        assert again.nodes["latent.z[3]"]["index"] == 3
    assert nx.read_graphml(tmp_path / "c.graphml").graph["schema"] == "nnsight-vae/circuit@1"


def test_gexf_is_drawn_positive_weights_thickness_and_columns_left_to_right(tmp_path):
    again = nx.read_gexf(export(circuit(), tmp_path / "c.gexf"))
    assert again.edges["latent.z[3]", "decoder.0[1]"]["weight"] == 0.25
    viz = {node: data["viz"] for node, data in again.nodes(data=True)}
    x = [viz[node]["position"]["x"] for node in circuit()]
    assert x == sorted(set(x))
    space = "{http://www.gexf.net/1.2draft"
    strong, weak = list(ET.parse(tmp_path / "c.gexf").iter(space + "}edge"))[:2]
    assert float(strong.find(space + "/viz}thickness").get("value")) == 4.5
    assert float(weak.find(space + "/viz}thickness").get("value")) == pytest.approx(0.5 + 4 / 6, abs=1e-3)
    for edge, colour in ((strong, RAISES), (weak, LOWERS)):
        found = edge.find(space + "/viz}color")
        assert bytes(int(found.get(name)) for name in "rgb").hex() == colour[1:]


@pytest.mark.parametrize("suffix", EXACT)
def test_provenance_is_inside_every_format(tmp_path, suffix):
    again = read_circuit(export(circuit(), tmp_path / f"c{suffix}"))
    assert again.graph["provenance"] == {"seed": 0, "pairs": [1, 2]}
    assert again.graph["method"] == "ig"


@pytest.mark.parametrize("suffix", EXACT)
def test_what_was_read_is_written_as_the_same_bytes(tmp_path, suffix):
    first = export(circuit(), tmp_path / f"a{suffix}")
    second = export(read_circuit(first), tmp_path / f"b{suffix}")
    assert first.read_bytes() == second.read_bytes()


def test_integers_beyond_the_longs_of_other_tools_are_not_in_their_columns(tmp_path):
    graph = nx.DiGraph()
    for i, value in enumerate((2**63 - 1, -(2**63) + 1, 2**63, -(2**63) - 1)):
        graph.add_node(f"n{i}", value=value)
    for suffix, pattern in ((".graphml", r'<data key="n\d">(-?\d+)</data>'), (".gexf", r'for="n0" value="(-?\d+)"')):
        text = export(graph, tmp_path / f"c{suffix}").read_text()
        assert re.findall(pattern, text) == [str(2**63 - 1), str(-(2**63) + 1)]


def test_graphml_columns_are_typed_and_unmixed(tmp_path):
    graph = circuit()
    for node in ("factor:angle", "encoder.4[7]", "latent.z[3]"):
        graph.nodes[node]["effect"] = 1  # integers among floats, and more of them
    graph.nodes["readout:angle"]["effect"] = math.nan
    text = export(graph, tmp_path / "c.graphml").read_text()
    keys = re.findall(r'for="node" attr.name="(\w+)" attr.type="(\w+)"', text)
    assert len(keys) == len(dict(keys))
    assert dict(keys)["effect"] == "double"
    assert dict(keys)["layer"] == dict(keys)["index"] == "long"
    assert ">nan<" not in text


@pytest.mark.parametrize("suffix", ALL)
def test_every_suffix_writes_and_the_same_graph_gives_the_same_bytes(tmp_path, suffix):
    first, second = export(circuit(), tmp_path / f"a{suffix}"), export(circuit(), tmp_path / f"b{suffix.upper()}")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 100


@pytest.mark.parametrize("suffix", ALL)
def test_awkward_names_and_values_do_not_break_a_view(tmp_path, suffix):
    graph = circuit()
    graph.graph["note"] = "</script><script>alert(1)</script> <!-- $price$"
    graph.nodes["latent.z[3]"].update(label='$x$ "quoted" \\ <b>&', type="t", viz="v", weight=2, name="n")
    graph.edges["latent.z[3]", "decoder.0[1]"].update(effect=None, type="t", label="l", note="\x07</script>")
    path = export(graph, tmp_path / f"c{suffix}")
    if suffix in EXACT:
        graph.edges["factor:angle", "encoder.4[7]"]["p"] = float(np.float32(0.01))
        again = read_circuit(path)
        assert again.nodes["latent.z[3]"] == graph.nodes["latent.z[3]"]
        assert again.edges["latent.z[3]", "decoder.0[1]"] == graph.edges["latent.z[3]", "decoder.0[1]"]
    if suffix == ".gexf":
        assert set(nx.read_gexf(path).edges) == set(graph.edges)


def test_dot_quotes_every_name(tmp_path):
    graph = nx.DiGraph([('factor:a"b', "encoder.4[7]\\")])
    text = export(graph, tmp_path / "c.dot").read_text()
    assert '"factor:a\\"b" -> "encoder.4[7]\\\\"' in text
    assert set(read_circuit(tmp_path / "c.dot").edges) == set(graph.edges)


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
def test_dot_that_graphviz_laid_out_and_wrote_is_read_back(tmp_path):
    path = export(circuit(), tmp_path / "c.dot")
    laid_out = subprocess.run(["dot", "-Tdot", str(path)], capture_output=True, check=True).stdout
    (tmp_path / "again.dot").write_bytes(laid_out)
    again, graph = read_circuit(tmp_path / "again.dot"), read_circuit(path)
    assert dict(again.nodes) == dict(graph.nodes)
    assert dict(again.edges) == dict(graph.edges)
    assert again.graph == graph.graph


def test_csv_is_an_edge_list_with_empty_cells_for_missing_values(tmp_path):
    with export(circuit(), tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[0]["source"] == "factor:angle"
    assert float(rows[0]["effect"]) == 1.5
    assert rows[0]["q"] == "null"
    assert rows[1]["q"] == ""
    frame = pd.read_csv(tmp_path / "c.csv")
    assert frame["effect"].dtype == float
    assert frame["q"].isna().all()


def test_a_csv_needs_the_nodes_that_were_written_beside_it(tmp_path):
    path = export(circuit(), tmp_path / "c.csv")
    (tmp_path / "c.nodes.json").unlink()
    with pytest.raises(CircuitError, match=r"nodes were written to c\.nodes\.json"):
        read_circuit(path)


def test_cyjs_keeps_ids_and_ends(tmp_path):
    elements = json.loads(export(circuit(), tmp_path / "c.cyjs").read_text())["elements"]
    ids = {node["data"]["id"] for node in elements["nodes"]}
    assert ids == set(circuit())
    assert all({edge["data"]["source"], edge["data"]["target"]} <= ids for edge in elements["edges"])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (nx.Graph([("a", "b")]), "got Graph"),
        (nx.MultiDiGraph([("a", "b")]), "got MultiDiGraph"),
        ("circuit", "got str"),
        (nx.DiGraph([(1, 2)]), "string ids"),
        (nx.DiGraph([("a", "b"), ("b", "a")], schema="nnsight-vae/circuit@1"), "cycle"),
        (nx.DiGraph(schema="nnsight-vae/circuit@2"), "circuit@2"),
        (nx.DiGraph(callback=print), "attribute 'callback' of the graph is a builtin_function_or_method"),
        (nx.DiGraph(value={1, 2}), "a set"),
        (nx.DiGraph(value=np.array([None])), "ndarray"),
    ],
)
def test_a_graph_no_file_can_hold_is_refused_before_writing(tmp_path, graph, message):
    with pytest.raises(CircuitError, match=re.escape(message)):
        export(graph, tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def test_reserved_attribute_names_are_refused(tmp_path):
    graph = nx.DiGraph()
    graph.add_node("a")
    graph.nodes["a"]["id"] = 3
    with pytest.raises(CircuitError, match="node 'a' has an attribute called 'id'"):
        export(graph, tmp_path / "c.json")


@pytest.mark.parametrize("suffix", CLEAN_NAMES)
@pytest.mark.parametrize("where", ["node", "attribute"])
def test_a_name_a_format_cannot_hold_is_refused_by_it_and_kept_by_json(tmp_path, suffix, where):
    graph = nx.DiGraph([("a\x00" if where == "node" else "a", "b")])
    graph.nodes["b"].update({"c\r": 1} if where == "attribute" else {})
    with pytest.raises(CircuitError, match=r"write \.json instead"):
        export(graph, tmp_path / f"c{suffix}")
    assert not list(tmp_path.iterdir())
    assert same_graph(read_circuit(export(graph, tmp_path / "c.json")), graph)


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(CircuitError, match=r"\.json, \.graphml, \.gexf, \.dot, \.csv, \.cyjs, \.html"):
        export(circuit(), tmp_path / "c.gml")
    with pytest.raises(CircuitError, match=r"\.json, \.graphml, \.gexf, \.cyjs, \.dot, \.csv files only"):
        read_circuit(tmp_path / "c.svg")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = export(circuit(), tmp_path / "c.json")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(CircuitError, match="disk full"):
        export(nx.DiGraph([("a", "b")]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(CircuitError, match="Choose a folder that exists"):
        export(circuit(), tmp_path / "nowhere" / "c.json")


def test_a_link_is_written_through_and_stays_a_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    export(circuit(), link)
    assert link.is_symlink()
    assert same_graph(read_circuit(real), read_circuit(link))
