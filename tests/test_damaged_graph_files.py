"""Graph files that are damaged, foreign or of another version: refused, with the file, the place and what to do."""

import json
import re

import networkx as nx
import pytest
from graphs import circuit

from nnsight_vae import CircuitError
from nnsight_vae.circuits.files.export import export, read_circuit

READ = (".json", ".graphml", ".gexf", ".cyjs", ".dot", ".csv")
NODE_LINK = {
    "directed": True,
    "multigraph": False,
    "graph": {"schema": "nnsight-vae/circuit@1"},
    "nodes": [],
    "edges": [],
}
TWO = [{"id": "a"}, {"id": "b"}]
AB, BA = {"source": "a", "target": "b"}, {"source": "b", "target": "a"}


def node_link(**changes):
    return json.dumps(NODE_LINK | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"line 1 column 1"),
        ("{", r"line 1 column 2"),
        ("[]", r"the file is no object"),
        ("{}", r"not a simple directed graph"),
        ("[" * 100_000, r"damaged"),
        (node_link(graph={}), r"has no schema; this version reads"),
        (node_link(graph={"schema": "nnsight-vae/circuit@9"}), r"circuit@9.*later version: update"),
        (node_link(graph=None), r"'graph' is missing"),
        (node_link(directed=False), r"not a simple directed graph"),
        (node_link(multigraph=True), r"not a simple directed graph"),
        (json.dumps({**{k: v for k, v in NODE_LINK.items() if k != "edges"}, "links": []}), r"no list 'edges'"),
        (node_link(nodes={"a": {}}), r"no list 'nodes'"),
        (node_link(nodes=["a"]), r"nodes\[0\] is no object: 'a'"),
        (node_link(nodes=[{"label": "a"}]), r"node 0 has the id None; ids are text"),
        (node_link(nodes=[{"id": 1}]), r"node 0 has the id 1; ids are text"),
        (node_link(nodes=[{"id": "a"}] * 2), r"the node id 'a' is repeated"),
        (node_link(nodes=TWO, edges=[[0, 1]]), r"edges\[0\] is no object"),
        (node_link(nodes=TWO[:1], edges=[AB]), r"edge 0, 'a' -> 'b', has the end 'b', which is no node"),
        (node_link(nodes=TWO, edges=[{"source": "a"}]), r"has the end None"),
        (node_link(nodes=TWO, edges=[{"source": ["a"], "target": "b"}]), r"has the end \['a'\]"),
        (node_link(nodes=TWO, edges=[AB, AB]), r"the edge 'a' -> 'b' is repeated"),
        (node_link(nodes=TWO, edges=[AB, BA]), r"cycle \[\('a', 'b'\), \('b', 'a'\)\]"),
        (
            node_link(nodes=[{"id": "a", "x": {"$array": [], "dtype": "O", "shape": [0]}}]),
            r"'x' of node 'a' is damaged",
        ),
        (
            node_link(nodes=[{"id": "a", "x": {"$array": [1], "dtype": "<f4", "shape": [7]}}]),
            r"'x' of node 'a' is damaged",
        ),
        (node_link(nodes=TWO, edges=[AB | {"x": {"$float": "much"}}]), r"'x' of edge 'a' -> 'b' is damaged"),
        (node_link(nodes=[{"id": "a", "layer": "first"}]), r"'layer' of node 'a' is 'first'.*a number or None"),
        (node_link(nodes=[{"id": "a", "kind": 3}]), r"'kind' of node 'a' is 3.*text or None"),
        (node_link(nodes=TWO, edges=[AB | {"effect": True}]), r"'effect' of edge 'a' -> 'b' is True"),
        (
            node_link(nodes=TWO, edges=[AB | {"effects": [1]}]),
            r"'effects' of edge 'a' -> 'b' is \[1\].*a dict of numbers",
        ),
        (node_link(nodes=TWO, edges=[AB | {"effects": {"t": "x"}}]), r"'effects' of edge"),
    ],
)
def test_json_that_is_no_circuit_of_ours_is_refused_with_the_place(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(CircuitError, match=re.escape(str(path)) + r".*" + message):
        read_circuit(path)


@pytest.mark.parametrize("suffix", READ)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9, 0.97])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, suffix, part):
    path = export(circuit(), tmp_path / f"c{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CircuitError, match=re.escape(str(path))):
        read_circuit(path)


@pytest.mark.parametrize("suffix", READ)
def test_a_file_that_is_no_text_is_refused(tmp_path, suffix):
    path = export(circuit(), tmp_path / f"c{suffix}")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CircuitError, match=f"Cannot read {re.escape(str(path))}"):
        read_circuit(path)


def test_an_edge_list_without_its_last_line_is_refused(tmp_path):
    path = export(circuit(), tmp_path / "c.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CircuitError, match=r"it holds 4 edges and c\.nodes\.json says 5"):
        read_circuit(path)


def replaced(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("suffix", "old", "new", "message"),
    [
        (".graphml", '"directed"', '"undirected"', r"no <graph edgedefault='directed'>"),
        (".graphml", "<graphml", '<!DOCTYPE x [<!ENTITY a "b">]><graphml', r"document type"),
        (".graphml", '<node id="latent.z[3]">', "<node>", r"node 2 has no 'id'"),
        (".graphml", 'target="latent.z[3]"', 'target="gone"', r"has the end 'gone', which is no node"),
        (".graphml", "attr.name=", "name=", r"which no <key> declares"),
        (".graphml", ">1.5<", ">strong<", r"attribute 'effect': could not convert string to float: 'strong'"),
        (".graphml", 'attr.type="double"', 'attr.type="vector"', r"columns of type 'vector' are not read"),
        (".gexf", '"directed"', '"undirected"', r"no <graph defaultedgetype='directed'>"),
        (".gexf", "<gexf", '<!DOCTYPE x [<!ENTITY a "b">]><gexf', r"document type"),
        (".gexf", '<node id="latent.z[3]"', "<node", r"node 2 has no 'id'"),
        (".gexf", 'target="latent.z[3]"', 'target="gone"', r"has the end 'gone', which is no node"),
        (".gexf", "<description>", "<description>x", r"Expecting value"),
        (".cyjs", '"elements"', '"parts"', r"'elements' is missing"),
        (".cyjs", '"nodes"', '"points"', r"'elements' has no list of nodes"),
        (".cyjs", '"target": "latent.z[3]"', '"target": "gone"', r"has the end 'gone', which is no node"),
        (".dot", "digraph", "graph", r"does not begin with 'digraph'"),
        (".dot", "digraph circuit {", "digraph circuit {\n <b>", r"line 2 holds '<b>"),
        (".dot", "\n}\n", "\n", r"ends within a statement"),
        (".dot", '-> "latent.z[3]"', '-> "gone"', r"has the end 'gone', which is no node"),
        (".csv", "source,target", "from,to", r"line 1 begins with \['from', 'to'\]"),
        (".csv", "factor:angle,", "factor:angle,,", r"line 2 has 9 cells and the header 8"),
        (".csv", "factor:angle,", "gone,", r"has the end 'gone', which is no node"),
    ],
)
def test_what_is_wrong_with_a_changed_file_is_said_with_its_place(tmp_path, suffix, old, new, message):
    path = export(circuit(), tmp_path / f"c{suffix}")
    path.write_text(replaced(path.read_text(), old, new))
    with pytest.raises(CircuitError, match=re.escape(str(path)) + r".*" + message):
        read_circuit(path)


@pytest.mark.parametrize("suffix", READ)
def test_a_version_of_the_schema_that_is_not_known_is_refused(tmp_path, suffix):
    path = export(circuit(), tmp_path / f"c{suffix}")
    holder = tmp_path / "c.nodes.json" if suffix == ".csv" else path
    holder.write_text(holder.read_text().replace("nnsight-vae/circuit@1", "nnsight-vae/circuit@2"))
    with pytest.raises(
        CircuitError, match=r"circuit@2'; this version reads nnsight-vae/circuit@1, nnsight-vae/graph@1"
    ):
        read_circuit(path)


@pytest.mark.parametrize(("suffix", "write"), [(".graphml", nx.write_graphml), (".gexf", nx.write_gexf)])
def test_a_graph_of_networkx_is_not_taken_for_ours(tmp_path, suffix, write):
    path = tmp_path / f"c{suffix}"
    write(nx.DiGraph([("a", "b")]), path)
    with pytest.raises(CircuitError, match=r"has no schema.*networkx"):
        read_circuit(path)


def test_a_columns_value_that_another_tool_changed_is_read_as_it_is_now(tmp_path):
    path = export(circuit(), tmp_path / "c.gexf")
    path.write_text(replaced(path.read_text(), 'value="1.5"', 'value="1.25"'))
    assert read_circuit(path).edges["factor:angle", "encoder.4[7]"]["effect"] == 1.25


def test_extra_content_of_other_tools_does_no_harm(tmp_path):
    path = export(circuit(), tmp_path / "c.graphml")
    before = read_circuit(path)
    path.write_text(path.read_text().replace("<graph ", "<desc>mine</desc><graph ", 1))
    assert dict(read_circuit(path).edges) == dict(before.edges)


@pytest.mark.parametrize("name", ["missing.json", "folder.json", "missing.csv"])
def test_an_unreadable_file_is_a_clear_error(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(CircuitError, match=f"Cannot read .*{name.replace('.csv', '.nodes.json')}"):
        read_circuit(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.nodes["latent.z[3]"].update(layer="third"), r"'layer' of node 'latent.z\[3\]' is 'third'"),
        (lambda g: g.edges["latent.z[3]", "decoder.0[1]"].update(effect="weak"), r"'effect' of edge .* is 'weak'"),
        (lambda g: g.add_edge("readout:angle", "factor:angle"), r"is called a circuit and has the cycle"),
    ],
)
@pytest.mark.parametrize("suffix", [*READ, ".html", ".png"])
def test_a_circuit_that_is_none_is_not_written(tmp_path, suffix, change, message):
    graph = circuit()
    change(graph)
    with pytest.raises(CircuitError, match=message):
        export(graph, tmp_path / f"c{suffix}")
    assert not list(tmp_path.iterdir())
