"""Where a circuit's nodes and edges are drawn, and which of them."""

import itertools

import networkx as nx
import numpy as np
import pytest
from graphs import circuit
from hypothesis import given, settings, strategies as st

from nnsight_vae.circuits.drawing.heading import heading
from nnsight_vae.circuits.drawing.layout import _crossings, column_labels, layered, short_label
from nnsight_vae.circuits.drawing.prominence import on_paths, prominence, strongest, without_weak_edges
from nnsight_vae.circuits.drawing.scene import scene
from nnsight_vae.style import FACTORS, LOWERS, RAISES


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


def test_labels_that_would_be_the_same_in_a_column_are_told_apart_by_their_sites():
    graph = nx.DiGraph()
    for site in ("latent.mu", "latent.logvar"):
        graph.add_nodes_from([(f"{site}[{i}]", {"site": site, "layer": 1}) for i in range(2)])
    assert column_labels(graph, list(graph)) == ["mu[0]", "mu[1]", "logvar[0]", "logvar[1]"]
    assert column_labels(graph, list(graph)[:2]) == ["[0]", "[1]"]


def test_no_skip_edge_passes_behind_a_node_that_is_not_its_own():
    """A residual network: half of the edges skip a layer. Read off the picture, not off the layout."""
    rng = np.random.default_rng(0)
    graph = nx.DiGraph()
    columns = [[(layer, i) for i in range(5)] for layer in range(6)]
    for layer, nodes in enumerate(columns):
        graph.add_nodes_from(nodes, layer=layer)
    for layer in range(5):
        for a, b in itertools.product(columns[layer], columns[layer + 1]):
            if rng.random() < 0.4:
                graph.add_edge(a, b, effect=rng.normal())
        for a, b in itertools.product(columns[layer], columns[min(layer + 2, 5)]):
            if layer < 4 and rng.random() < 0.2:
                graph.add_edge(a, b, effect=rng.normal())
    drawing = scene(graph)
    t = np.linspace(0, 1, 60)[:, None]
    for curve in drawing.curves:
        others = [box for box in drawing.boxes if box.node not in (curve.source, curve.target)]
        for a, b, c, d in (np.array(segment) for segment in curve.segments):
            points = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
            for box in others:
                inside = (abs(points[:, 0] - box.x) < box.width / 2) & (abs(points[:, 1] - box.y) < 8)
                assert not inside.any(), f"{curve.source} -> {curve.target} behind {box.node}"


def test_strong_edges_decide_the_order_of_a_column():
    graph = nx.DiGraph()
    graph.add_nodes_from("ab", layer=0)
    graph.add_nodes_from("xy", layer=1)
    graph.add_weighted_edges_from([("a", "x", 0.01), ("a", "y", 1.0), ("b", "x", 1.0), ("b", "y", 0.01)])
    left, right = layered(graph).columns
    assert (left.index("a") < left.index("b")) == (right.index("y") < right.index("x"))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3)), max_size=14))
def test_crossings_are_counted_pair_by_pair_with_the_weights_of_both(triples):
    pulls = {(a, b): float(w) for a, b, w in triples}
    right = {}
    for (a, b), pull in pulls.items():
        right.setdefault(f"l{a}", []).append((f"r{b}", pull))
    columns = [[f"l{i}" for i in range(5)], [f"r{i}" for i in range(5)]]
    literal = sum(
        v * w for ((a, b), v), ((c, d), w) in itertools.combinations(pulls.items(), 2) if (a - c) * (b - d) < 0
    )
    assert _crossings(columns, right) == pytest.approx(literal)


def diamond():
    """Two paths: a strong one with a weak last step, and an even one."""
    graph = nx.DiGraph()
    for layer, nodes in enumerate(["s", "uv", "t"]):
        graph.add_nodes_from(nodes, layer=layer)
    graph.add_weighted_edges_from([("s", "u", 4.0), ("s", "v", -2.0), ("u", "t", 0.1), ("v", "t", 0.4)])
    return graph


def test_prominence_is_relative_to_the_layer_and_takes_shares_where_there_are_some():
    assert prominence(diamond()) == {("s", "u"): 1.0, ("s", "v"): 0.5, ("u", "t"): 0.25, ("v", "t"): 1.0}
    graph = diamond()
    nx.set_edge_attributes(graph, {("s", "u"): 0.1, ("s", "v"): -0.4}, "share")
    nx.set_edge_attributes(graph, {("u", "t"): None, ("v", "t"): float("nan")}, "share")
    assert prominence(graph) == {("s", "u"): 0.25, ("s", "v"): 1.0, ("u", "t"): 0.25, ("v", "t"): 1.0}


def test_an_edge_is_as_prominent_as_the_weakest_edge_of_the_best_path_through_it():
    assert on_paths(diamond()) == {("s", "u"): 0.25, ("u", "t"): 0.25, ("s", "v"): 0.5, ("v", "t"): 0.5}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 5)), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_what_is_above_a_threshold_are_the_whole_paths_above_it(triples, level):
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((min(a, b), max(a, b), w) for a, b, w in triples if a != b)
    own, threshold = prominence(graph), level / 5
    above = nx.DiGraph([edge for edge, value in own.items() if value >= threshold])
    ends = [n for n in graph if graph.in_degree(n) == 0], [n for n in graph if graph.out_degree(n) == 0]
    whole = {
        edge
        for a, b in itertools.product(*ends)
        if a in above and b in above
        for path in nx.all_simple_paths(above, a, b)
        for edge in itertools.pairwise(path)
    }
    assert {edge for edge, value in on_paths(graph).items() if value >= threshold} == whole


def test_in_a_graph_with_cycles_edges_are_as_prominent_as_themselves():
    graph = nx.DiGraph()
    graph.add_weighted_edges_from([("a", "b", 1.0), ("b", "a", 0.5)])
    assert on_paths(graph) == {("a", "b"): 1.0, ("b", "a"): 0.5}


def test_weak_edges_go_first_but_no_node_loses_its_last_edge():
    graph = diamond()
    assert set(without_weak_edges(graph, 4).edges) == set(graph.edges)
    kept = set(without_weak_edges(graph, 2).edges)
    assert kept == {("s", "v"), ("v", "t"), ("s", "u"), ("u", "t")}  # u keeps one on each side
    graph.add_edge("s", "t", weight=0.001)
    assert set(without_weak_edges(graph, 2).edges) == kept


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, ("", "")),
        ({"pairs": {"factor": "angle", "n": 3}, "total_effect": {"x": {}}}, ("angle → x", "3 pairs")),
        ({"model": "M", "estimand": "TE", "method": "ig", "pairs": None}, ("", "M · TE · ig")),
        ({"factors": ["a", "b"], "model": "M", "circuits": {"a": {"method": "ig"}}}, ("Circuits of a, b", "M · ig")),
        ({"pairs": "unlike ours", "total_effect": 3, "factors": "no list", "method": 1}, ("", "")),
    ],
)
def test_the_heading_says_what_the_graph_says_of_itself(about, expected):
    assert heading(nx.DiGraph(**about)) == expected


def test_the_heading_names_the_readouts_that_are_in_the_graph():
    graph = nx.DiGraph(pairs={"factor": "angle"}, total_effect={"angle": {}, "light": {}})
    graph.add_node("readout:angle", kind="readout")
    assert heading(graph)[0] == "angle → angle"


# Machado, Oliveira and Fernandes 2009 (IEEE TVCG 15(6)), full severity: what is seen of linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def seen(colour, blindness):
    """CIELAB of a colour as it is seen."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.clip(xyz / (0.9505, 1, 1.089), 1e-4, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", list(BLINDNESS))
@pytest.mark.parametrize(("colours", "apart"), [((RAISES, LOWERS), 80), (FACTORS[:3], 50), (FACTORS, 20)])
def test_signs_and_factors_are_told_apart_with_every_colour_blindness(blindness, colours, apart):
    pairs = itertools.combinations([seen(colour, blindness) for colour in colours], 2)
    assert min(np.linalg.norm(a - b) for a, b in pairs) > apart
