"""Graph files: nothing lost on the way there and back, nothing half written, nothing foreign taken for ours."""

import csv
import itertools
import json
import math
import os
import re

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nnsight_vae import CircuitError
from nnsight_vae.circuits.export import export, read_circuit
from nnsight_vae.circuits.layout import layered, short_label, strongest

EXACT = (".json", ".graphml")
ALL = (*EXACT, ".gexf", ".dot", ".csv", ".cyjs", ".html", ".svg", ".png", ".pdf")


def circuit():
    """factor -> encoder -> latent -> decoder -> readout, with a skip edge and what real circuits carry."""
    graph = nx.DiGraph(schema="nnsight-vae/circuit@1", method="ig", provenance={"seed": 0, "pairs": [1, 2]})
    for layer, (node, kind, site, index) in enumerate(
        [
            ("factor:angle", "factor", None, None),
            ("encoder.4[7]", "unit", "encoder.4", 7),
            ("latent.z[3]", "unit", "latent.z", 3),
            ("decoder.0[1]", "unit", "decoder.0", 1),
            ("readout:angle", "readout", None, None),
        ]
    ):
        graph.add_node(node, kind=kind, site=site, index=index, layer=layer, effect=0.5 - layer / 3)
    nodes = list(graph)
    for source, target in [*itertools.pairwise(nodes), (nodes[1], nodes[3])]:
        graph.add_edge(source, target, effect=-0.25, ci_low=-0.5, ci_high=0.1, estimand="PNIE", p=np.float32(0.01))
    graph.edges[nodes[0], nodes[1]].update(effect=1.5, ci_low=1.0, ci_high=2.0, q=None)
    return graph


def same(a, b):
    """Equal and of the same kind, NaN being equal to itself, inside containers too."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def same_graph(a, b):
    return (
        same(dict(a.graph), dict(b.graph))
        and list(a) == list(b)
        and list(a.edges) == list(b.edges)
        and all(same(dict(a.nodes[node]), dict(b.nodes[node])) for node in a)
        and all(same(dict(a.edges[edge]), dict(b.edges[edge])) for edge in a.edges)
    )


AWKWARD = {
    "none": None,
    "nan": math.nan,
    "infinite": -math.inf,
    "negative_zero": -0.0,
    "tiny": 5e-324,
    "huge_int": 2**80,
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
    assert same_graph(read_circuit(export(graph, tmp_path / f"c{suffix}")), plain)


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
@settings(max_examples=60, deadline=None)
@given(first=values, second=values)
def test_any_nesting_of_plain_values_round_trips(tmp_path_factory, suffix, first, second):
    graph = nx.DiGraph()
    graph.add_node("a", value=first)
    graph.add_node("b", value=second)
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


def test_networkx_reads_both_formats_without_us(tmp_path):
    graph = circuit()
    data = json.loads(export(graph, tmp_path / "c.json").read_text())
    for again in (nx.node_link_graph(data, edges="edges"), nx.read_graphml(export(graph, tmp_path / "c.graphml"))):
        assert set(again.edges) == set(graph.edges)
        assert again.edges["factor:angle", "encoder.4[7]"]["effect"] == 1.5
        assert again.nodes["latent.z[3]"]["index"] == 3
        assert again.graph["schema"] == "nnsight-vae/circuit@1"


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
    if suffix == ".html":
        assert path.read_text().count("</script>") == 2  # the data and the program: nothing else ends one
        assert "<script>alert" not in path.read_text()
    if suffix == ".gexf":
        assert set(nx.read_gexf(path).edges) == set(graph.edges)


def test_dot_quotes_every_name(tmp_path):
    graph = nx.DiGraph([('factor:a"b', "encoder.4[7]\\")])
    text = export(graph, tmp_path / "c.dot").read_text()
    assert '"factor:a\\"b" -> "encoder.4[7]\\\\"' in text
    assert text.count("{") == text.count("}")


def test_csv_is_an_edge_list_with_empty_cells_for_missing_values(tmp_path):
    with export(circuit(), tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[0]["source"] == "factor:angle"
    assert float(rows[0]["effect"]) == 1.5
    assert rows[0]["q"] == ""


def test_cyjs_keeps_ids_and_ends(tmp_path):
    elements = json.loads(export(circuit(), tmp_path / "c.cyjs").read_text())["elements"]
    ids = {node["data"]["id"] for node in elements["nodes"]}
    assert ids == set(circuit())
    assert all({edge["data"]["source"], edge["data"]["target"]} <= ids for edge in elements["edges"])


def test_the_page_draws_every_node_and_edge_and_asks_the_network_for_nothing(tmp_path):
    text = export(circuit(), tmp_path / "c.html").read_text()
    assert text.count('class="edge"') == 5
    assert text.count('class="node"') == 5
    assert not re.search(r"https?://|src=|@import|url\(", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    assert {node["name"] for node in data["nodes"]} == set(circuit())
    sizes = {edge["name"]: edge["size"] for edge in data["edges"]}
    assert sizes["factor:angle → encoder.4[7]"] == 1.5
    for edge in data["edges"]:
        assert edge["name"] == " → ".join(data["nodes"][end]["name"] for end in edge["ends"])


def test_a_dense_page_opens_with_its_200_strongest_edges(tmp_path):
    graph = nx.DiGraph()
    for i in range(20):
        for j in range(20):
            graph.add_edge(f"a[{i}]", f"b[{j}]", effect=(20 * i + j + 1) / 400)
    text = export(graph, tmp_path / "c.html").read_text()
    start = int(re.search(r'max="200" value="(\d+)"', text).group(1))
    assert sum(data["effect"] >= start / 200 for *_, data in graph.edges(data=True)) == pytest.approx(200, abs=2)


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


def test_a_name_xml_cannot_hold_is_refused_by_graphml_and_kept_by_json(tmp_path):
    graph = nx.DiGraph([("a\x00", "b")])
    with pytest.raises(CircuitError, match=r"write \.json instead"):
        export(graph, tmp_path / "c.graphml")
    assert same_graph(read_circuit(export(graph, tmp_path / "c.json")), graph)


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(CircuitError, match=r"\.json, \.graphml, \.gexf, \.dot, \.csv, \.cyjs, \.html"):
        export(circuit(), tmp_path / "c.gml")
    with pytest.raises(CircuitError, match=r"\.json and \.graphml"):
        read_circuit(tmp_path / "c.csv")


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


NODE_LINK = {"directed": True, "multigraph": False, "graph": {}, "nodes": [], "edges": []}
CIRCUIT = {"schema": "nnsight-vae/circuit@1"}
TWO = [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps(NODE_LINK), "has no schema"),
        (json.dumps(NODE_LINK | {"graph": {"schema": "nnsight-vae/circuit@9"}}), "circuit@9.*reads"),
        (json.dumps(NODE_LINK | {"graph": CIRCUIT, "directed": False}), "not a simple directed graph"),
        (json.dumps(NODE_LINK | {"graph": CIRCUIT, "nodes": [{"id": 1}]}), "not text"),
        (json.dumps(NODE_LINK | {"graph": CIRCUIT, "nodes": [{"id": "a"}] * 2}), "repeated"),
        (json.dumps(NODE_LINK | {"graph": CIRCUIT, "nodes": ["a"]}), "damaged"),
        (
            json.dumps(NODE_LINK | {"graph": CIRCUIT, "edges": [{"source": "a", "target": "b"}]}),
            "an end that is no node",
        ),
        (json.dumps(NODE_LINK | {"graph": CIRCUIT | {"x": {"$array": [], "dtype": "O", "shape": [0]}}}), "not read"),
        (
            json.dumps(
                NODE_LINK
                | {
                    "graph": CIRCUIT,
                    "nodes": TWO,
                    "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "a"}],
                }
            ),
            "cycle",
        ),
        (
            json.dumps(NODE_LINK | {"graph": CIRCUIT, "nodes": TWO, "edges": [{"source": "a", "target": "b"}] * 2}),
            "repeated",
        ),
        ("[" * 100_000, "damaged"),
    ],
)
def test_json_that_is_no_circuit_of_ours_is_refused(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(CircuitError, match=message):
        read_circuit(path)


@pytest.mark.parametrize("change", ["cut", "undirected", "foreign", "doctype", "bytes"])
def test_graphml_that_is_no_circuit_of_ours_is_refused(tmp_path, change):
    path = export(circuit(), tmp_path / "c.graphml")
    text = path.read_text()
    if change == "foreign":
        nx.write_graphml(nx.DiGraph([("a", "b")]), path)
    elif change == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        path.write_text(
            {
                "cut": text[: len(text) // 2],
                "undirected": text.replace('"directed"', '"undirected"'),
                "doctype": text.replace("<graphml", '<!DOCTYPE x [<!ENTITY a "b">]><graphml', 1),
            }[change]
        )
    with pytest.raises(CircuitError, match=re.escape(str(path))):
        read_circuit(path)


@pytest.mark.parametrize("name", ["missing.json", "folder.json"])
def test_an_unreadable_file_is_a_clear_error(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(CircuitError, match=f"Cannot read .*{name}"):
        read_circuit(tmp_path / name)


def test_layout_puts_layers_in_columns_and_long_edges_around_what_lies_between():
    layout = layered(circuit())
    assert layout.columns == [[node] for node in circuit()]
    ((column, row),) = layout.routes["encoder.4[7]", "decoder.0[1]"]
    assert column == layout.positions["latent.z[3]"][0]
    assert abs(row - layout.positions["latent.z[3]"][1]) >= 0.6 - 1e-9


def test_layout_undoes_needless_crossings_and_keeps_nodes_apart():
    graph = nx.DiGraph()
    graph.add_nodes_from("abc", layer=0)
    graph.add_nodes_from("xyz", layer=1)
    graph.add_edges_from([("a", "z"), ("b", "y"), ("c", "x")])
    layout = layered(graph)
    left, right = layout.columns
    assert [next(iter(graph.successors(node))) for node in left] == right
    for column in layout.columns:
        rows = [layout.positions[node][1] for node in column]
        assert np.diff(rows).min() >= 1 - 1e-9


def test_layout_without_layers_follows_the_edges_and_survives_cycles():
    layout = layered(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")]))
    assert [sorted(column) for column in layout.columns] == [["a"], ["b", "c"], ["d"]]
    assert layered(nx.DiGraph()).columns == []


def test_the_strongest_nodes_are_kept_factors_and_readouts_first():
    graph = circuit()
    graph.add_node("latent.z[9]", kind="unit", layer=2)
    graph.add_edge("factor:angle", "latent.z[9]", effect=9.0)
    kept = strongest(graph, 3)
    assert set(kept) == {"factor:angle", "readout:angle", "latent.z[9]"}
    assert strongest(graph, 6) is graph


def test_short_labels_drop_what_the_column_title_says():
    graph = circuit()
    labels = [short_label(node, data) for node, data in graph.nodes(data=True)]
    assert labels == ["angle", "[7]", "[3]", "[1]", "angle"]
    assert short_label("plain", {}) == "plain"
