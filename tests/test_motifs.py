"""Motifs of circuits: counts against subgraph matching, what is counted, tables."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from layered import layered, planted
from networkx.algorithms.isomorphism import DiGraphMatcher

from nnsight_vae.circuits import motifs
from nnsight_vae.circuits.structure.census import KINDS, census
from nnsight_vae.errors import CircuitError

PATTERNS = {
    "fan-in": [("a", "c"), ("b", "c")],
    "fan-out": [("c", "a"), ("c", "b")],
    "chain": [("a", "c"), ("c", "b")],
    "bi-fan": [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")],
    "diamond": [("a", "c"), ("a", "d"), ("c", "b"), ("d", "b")],
    "feed-forward": [("a", "c"), ("c", "b"), ("a", "b")],
}


def matched(graph: nx.DiGraph, kind: str) -> set[frozenset]:
    """The edge sets at which a motif is, by subgraph matching."""
    pattern = PATTERNS[kind]
    matcher = DiGraphMatcher(graph, nx.DiGraph(pattern))
    found = set()
    for image in matcher.subgraph_monomorphisms_iter():
        node = {to: of for of, to in image.items()}
        found.add(frozenset((node[u], node[v]) for u, v in pattern))
    return found


def one_way(graph: nx.DiGraph, edges: frozenset) -> bool:
    return len({graph.edges[edge]["effect"] > 0 for edge in edges}) == 1


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.floats(0.2, 1.0), st.integers(0, 10_000))
def test_motif_counts_equal_subgraph_matching(sizes, share, seed):
    graph = layered(sizes, share, np.random.default_rng(seed))
    by_count, by_sign = (motifs(graph, null=null, n_null=1) for null in ("density", "sign"))
    for kind in PATTERNS:
        found = matched(graph, kind)
        assert by_count[kind].observed == by_sign[kind].total == len(found)
        assert by_sign[kind].observed == sum(one_way(graph, edges) for edges in found)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 3), min_size=3, max_size=4), st.integers(0, 10_000))
def test_places_say_where_the_matched_motifs_are(sizes, seed):
    graph = layered(sizes, 0.7, np.random.default_rng(seed))
    found = {(row.motif, row.where): row.observed for row in motifs(graph, null="density", n_null=1).places}
    expected: dict[tuple[str, str], int] = {}
    for kind in PATTERNS:
        for edges in matched(graph, kind):
            expected.setdefault((kind, where(kind, edges)), 0)
            expected[kind, where(kind, edges)] += 1
    assert {key: n for key, n in found.items() if n} == expected


def where(kind: str, edges: frozenset) -> str:
    site = lambda node: node.split("[")[0]
    starts, ends = ({edge[i] for edge in edges} for i in (0, 1))
    first = sorted({site(node) for node in starts - ends})
    last = sorted({site(node) for node in ends - starts})
    middle = [site(node) for node in starts & ends]
    return {
        "fan-in": f"into {last[0]}",
        "fan-out": f"from {first[0]}",
        "chain": f"through {middle[0] if middle else ''}",
        "bi-fan": f"from {' and '.join(first)}",
        "diamond": f"{first[0]} => {last[0]}",
        "feed-forward": f"{first[0]} => {last[0]}",
    }[kind]


def test_counts_of_a_complete_graph_by_hand():
    graph = layered([3, 3, 2], 1.0, np.random.default_rng(0))
    counts = {row.motif: row.observed for row in motifs(graph, null="density", n_null=1).rows}
    # k_in: 0, 3, 6 and k_out: 5, 2, 0; two sources of s0 share 5 targets, one of s0 and one of s1 share 2
    assert counts["fan-in"] == 3 * 3 + 2 * 15
    assert counts["fan-out"] == 3 * 10 + 3 * 1
    assert counts["chain"] == 3 * 3 * 2
    assert counts["bi-fan"] == 3 * 10 + 9 * 1 + 3 * 1
    assert counts["diamond"] == 3 * 2 * 3
    assert counts["feed-forward"] == 3 * 3 * 2


def test_counts_do_not_depend_on_the_order_or_names_of_nodes():
    graph = layered([4, 5, 3], 0.5, np.random.default_rng(1))
    other = nx.DiGraph()
    nodes = sorted(graph, key=lambda node: node[::-1], reverse=True)
    other.add_nodes_from((f"{node}x", graph.nodes[node]) for node in nodes)
    other.add_edges_from(
        (f"{u}x", f"{v}x", data) for u, v, data in sorted(graph.edges(data=True), key=str, reverse=True)
    )
    a, b = (motifs(each, null="density", n_null=1) for each in (graph, other))
    assert [row.observed for row in a.rows] == [row.observed for row in b.rows]


def test_one_readout_of_several_is_a_circuit_of_its_own():
    graph = planted(0)
    edges = list(graph.edges)
    for i, edge in enumerate(edges[::2]):
        graph.edges[edge]["effects"] = {"y": 1.0, "x": 2.0 if i % 3 else -2.0}
    found = motifs(graph, null="sign", readout="x", n_null=9)
    own = nx.DiGraph(graph.edge_subgraph(edges[::2]))
    assert found["fan-out"].total == sum(k * (k - 1) // 2 for _, k in own.out_degree())
    signs = [[i % 3 == 0 for i, (u, _) in enumerate(edges[::2]) if u == unit] for unit in own]
    assert found["fan-out"].observed == sum(
        n * (n - 1) // 2 for each in signs for n in (sum(each), len(each) - sum(each))
    )
    assert found["fan-out"].observed < found["fan-out"].total
    assert found.readout == "x"
    with pytest.raises(CircuitError, match=r"several readouts, \['x', 'y'\]"):
        motifs(graph, null="sign")
    with pytest.raises(CircuitError, match="no edge of this circuit is on readout 'w'"):
        motifs(graph, readout="w")


def test_the_same_seed_gives_the_same_numbers_and_the_graph_is_left_alone():
    graph = planted(0)
    before = nx.DiGraph(graph)
    a, b, c = (motifs(graph, n_null=49, seed=seed) for seed in (0, 0, 1))
    assert a.rows == b.rows
    assert a["bi-fan"].expected != c["bi-fan"].expected
    assert nx.utils.graphs_equal(graph, before)


def test_an_empty_circuit_has_no_motifs():
    found = motifs(nx.DiGraph(), n_null=9)
    assert [row.observed for row in found.rows] == [0] * 6
    assert all(row.p is None for row in found.rows)
    assert "bi-fan" in str(found)


def test_tables_show_every_motif_and_frames_every_place():
    found = motifs(planted(0), null="sign", n_null=19)
    assert all(kind in str(found) for kind in KINDS)
    assert "of" in str(found).splitlines()[1]
    frame = found.to_frame()
    assert len(frame) == len(found.rows) + len(found.places)
    assert frame.loc[0, "motif"] == "fan-in"
    assert frame["p"].dtype == "Float64"
    with pytest.raises(CircuitError, match="no motif 'bifan'"):
        found["bifan"]


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        (lambda g: nx.MultiDiGraph(g), {}, "expected a networkx.DiGraph"),
        (lambda g: nx.Graph(g), {}, "expected a networkx.DiGraph"),
        (lambda g: nx.DiGraph(g.edges), {}, "layer=None"),
        (lambda g: g.reverse(), {}, "not onwards"),
        (lambda g: g, {"null": "erdos"}, "null='erdos'"),
        (lambda g: g, {"n_null": 0}, "n_null=0"),
        (lambda g: g, {"n_null": True}, "n_null=True"),
        (lambda g: g, {"q": 1.0}, "q=1.0"),
    ],
)
def test_bad_input_is_refused(change, arguments, says):
    with pytest.raises(CircuitError, match=says):
        motifs(change(planted(0)), **{"n_null": 9, **arguments})


def test_signs_need_effects():
    graph = planted(0)
    del graph.edges[next(iter(graph.edges))]["effect"], graph.edges[next(iter(graph.edges))]["effects"]
    with pytest.raises(CircuitError, match="attribute 'effect'"):
        motifs(graph, null="sign", n_null=9)


def test_a_census_counts_each_graph_of_a_batch_on_its_own():
    rng = np.random.default_rng(0)
    blocks = {pair: rng.random((4, 3, 3)) < 0.6 for pair in ((0, 1), (1, 2), (0, 2))}
    together = census(blocks)
    for i in range(4):
        alone = census({pair: block[i : i + 1] for pair, block in blocks.items()})
        assert {cell: float(n[i]) for cell, n in together.items()} == {cell: float(n[0]) for cell, n in alone.items()}
