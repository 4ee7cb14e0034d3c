"""Motif counts against subgraph matching, null graphs against enumeration, and p-values against simulation."""

from __future__ import annotations

from itertools import combinations, product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from networkx.algorithms.isomorphism import DiGraphMatcher
from scipy.stats import binom, chisquare

from nnsight_vae.circuits import motifs
from nnsight_vae.circuits.graph.columns import Block, Columns
from nnsight_vae.circuits.structure import nulls
from nnsight_vae.circuits.structure.census import KINDS, census
from nnsight_vae.circuits.structure.nulls import at_least, degree_null, density_null, draw_subsets, sign_null, two_sided
from nnsight_vae.errors import CircuitError

PATTERNS = {
    "fan-in": [("a", "c"), ("b", "c")],
    "fan-out": [("c", "a"), ("c", "b")],
    "chain": [("a", "c"), ("c", "b")],
    "bi-fan": [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")],
    "diamond": [("a", "c"), ("a", "d"), ("c", "b"), ("d", "b")],
    "feed-forward": [("a", "c"), ("c", "b"), ("a", "b")],
}


def layered(sizes: list[int], share: float, rng: np.random.Generator, *, skips: bool = True) -> nx.DiGraph:
    """A random circuit: `share` of all possible edges, with effects of either sign on one readout."""
    graph = nx.DiGraph()
    nodes = [[f"s{k}[{i}]" for i in range(size)] for k, size in enumerate(sizes)]
    for k, column in enumerate(nodes):
        graph.add_nodes_from(column, layer=k, site=f"s{k}", kind="neuron", stage="encoder")
    for k, m in combinations(range(len(sizes)), 2):
        if skips or m == k + 1:
            for u, v in product(nodes[k], nodes[m]):
                if rng.random() < share:
                    join(graph, u, v, float(rng.normal()))
    return graph


def join(graph: nx.DiGraph, u: str, v: str, effect: float, readout: str = "y") -> None:
    graph.add_edge(u, v, effect=effect, readout=readout, effects={readout: effect})


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


# ------------------------------------------------------------------ null graphs


def enumerated(rows: list[int], columns: list[int], allowed: np.ndarray) -> list[bytes]:
    """All 0/1 matrices with these margins and nothing outside `allowed`."""
    found = []
    for cells in product((False, True), repeat=allowed.size):
        matrix = np.array(cells).reshape(allowed.shape)
        if (matrix.sum(1) == rows).all() and (matrix.sum(0) == columns).all() and not (matrix & ~allowed).any():
            found.append(matrix.tobytes())
    return found


def circuit_of(matrix: np.ndarray) -> nx.DiGraph:
    graph = nx.DiGraph()
    for k, size in enumerate(matrix.shape):
        graph.add_nodes_from((f"s{k}[{i}]" for i in range(size)), layer=k, site=f"s{k}")
    for i, j in np.argwhere(matrix):
        join(graph, f"s0[{i}]", f"s1[{j}]", 1.0)
    return graph


def blocks_of(drawn: list, pair: tuple[int, int] = (0, 1)) -> np.ndarray:
    return np.concatenate([each[pair] for each in drawn])


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]],  # three traders: one sits out each round
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]],
        [[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]],
    ],
)
def test_every_graph_with_the_same_degrees_is_equally_likely(matrix):
    matrix = np.array(matrix, dtype=bool)
    every = enumerated(matrix.sum(1), matrix.sum(0), np.ones_like(matrix))
    drawn = blocks_of(list(degree_null(Columns.of(circuit_of(matrix)), 60 * len(every), seed=3)))
    counts = dict.fromkeys(every, 0)
    for each in drawn:
        counts[np.ascontiguousarray(each).tobytes()] += 1
    assert len(every) > 5
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_null_graphs_never_use_an_edge_the_model_does_not_have():
    matrix = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    allowed = np.ones_like(matrix)
    allowed[0, 3] = allowed[1, 3] = allowed[3, 0] = False
    columns = Columns.of(circuit_of(matrix))
    block = columns.blocks[0, 1]
    masked = Columns(columns.names, columns.nodes, {(0, 1): type(block)(block.edges, allowed, block.effects)})
    every = enumerated(matrix.sum(1), matrix.sum(0), allowed)
    drawn = blocks_of(list(degree_null(masked, 3000, seed=0)))
    counts = dict.fromkeys(every, 0)
    for each in drawn:
        counts[np.ascontiguousarray(each).tobytes()] += 1
    assert 1 < len(every) < len(enumerated(matrix.sum(1), matrix.sum(0), np.ones_like(matrix)))
    assert chisquare(list(counts.values())).pvalue > 0.01
    free = blocks_of(list(density_null(masked, 500, seed=0)))
    assert (free.sum((1, 2)) == matrix.sum()).all()
    assert not (free & ~allowed).any()
    assert (free.any(0) == allowed).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_null_graphs_keep_what_they_promise(sizes, share, seed):
    columns = Columns.of(layered(sizes, share, np.random.default_rng(seed)))
    for pair, block in columns.blocks.items():
        degree = blocks_of(list(degree_null(columns, 7, seed)), pair)
        assert (degree.sum(1) == block.edges.sum(0)).all()
        assert (degree.sum(2) == block.edges.sum(1)).all()
        assert (blocks_of(list(density_null(columns, 7, seed)), pair).sum((1, 2)) == block.edges.sum()).all()
        up, down = (blocks_of([each[i] for each in sign_null(columns, 7, seed)], pair) for i in (0, 1))
        assert ((up | down) == block.edges).all()
        assert not (up & down).any()
        assert (up.sum((1, 2)) == (block.effects > 0).sum()).all()


def test_batches_bound_memory_and_leave_the_number_of_graphs(monkeypatch):
    columns = Columns.of(layered([5, 6, 4], 0.5, np.random.default_rng(0)))
    monkeypatch.setattr(nulls, "_CELLS", 100)
    batches = list(degree_null(columns, 10, seed=0))
    assert [len(each[0, 1]) for each in batches] == [3, 3, 3, 1]
    assert len({blocks_of(batches)[i].tobytes() for i in range(10)}) > 5  # batches do not repeat each other


def test_subsets_are_uniform_and_of_the_size_asked_for():
    allowed = np.tile([True, True, False, True, True], (60_000, 1))
    drawn = draw_subsets(np.random.default_rng(0), allowed, np.full(60_000, 2))
    assert (drawn.sum(1) == 2).all()
    assert not drawn[:, 2].any()
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 6
    assert chisquare(counts).pvalue > 0.01
    assert not draw_subsets(np.random.default_rng(0), allowed, np.zeros(60_000, dtype=int)).any()


# ------------------------------------------------------------------ p-values


def test_empirical_p_values_by_hand():
    drawn = np.array([[1.0], [2.0], [3.0], [4.0]])
    assert at_least(np.array([3.0]), drawn)[0] == 3 / 5
    assert two_sided(np.array([5.0]), drawn)[0] == 2 / 5
    assert two_sided(np.array([0.0]), drawn)[0] == 2 / 5
    assert two_sided(np.array([2.5]), drawn)[0] == 1.0
    assert at_least(np.array([0.1 + 0.2]), np.full((4, 1), 0.3))[0] == 1.0  # equal but for rounding
    assert at_least(np.zeros(1), np.zeros((4, 1)))[0] == 1.0


NULLS = {"degree": degree_null, "density": density_null, "sign": sign_null}


def from_the_null(null: str, n: int) -> list[Columns]:
    """Graphs drawn from a null: of random degrees, densities or signs."""
    start = Columns.of(layered([6, 7, 5], 0.4, np.random.default_rng(7)))
    found = []
    for batch in NULLS[null](start, n, 11):
        up, down = batch if null == "sign" else (batch, {pair: np.zeros_like(edges) for pair, edges in batch.items()})
        for i in range(len(up[0, 1])):
            blocks = {
                pair: Block(up[pair][i] | down[pair][i], block.allowed, 1.0 * up[pair][i] - down[pair][i])
                for pair, block in start.blocks.items()
            }
            found.append(Columns(start.names, start.nodes, blocks))
    return found


def graph_of(columns: Columns) -> nx.DiGraph:
    graph = nx.DiGraph()
    for k, nodes in enumerate(columns.nodes):
        graph.add_nodes_from(nodes, layer=k, site=f"s{k}")
    for (a, b), block in columns.blocks.items():
        for u, v in np.argwhere(block.edges):
            join(graph, columns.nodes[a][u], columns.nodes[b][v], float(block.effects[u, v]))
    return graph


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_graph_of_the_null_ranks_anywhere_among_its_null_graphs_however_few_rounds_are_traded(steps):
    """Exchangeability: ranks (ties broken at random) are uniform. A chain that starts at the circuit itself fails this."""
    rng, ranks = np.random.default_rng(0), []
    for i, columns in enumerate(from_the_null("degree", 240)):
        drawn = list(degree_null(columns, 19, seed=i, steps=steps))
        counts = [total({pair: block.edges[None] for pair, block in columns.blocks.items()}), *map(total, drawn)]
        counts = np.concatenate([*counts], axis=1)
        noise = rng.random(counts.shape)
        ranks.append(((counts < counts[:, :1]) | ((counts == counts[:, :1]) & (noise < noise[:, :1]))).sum(axis=1))
    for kind in np.array(ranks).T:  # bi-fan, diamond, feed-forward
        assert chisquare(np.bincount(kind // 4, minlength=5)).pvalue > 0.01


def total(edges: dict) -> np.ndarray:
    cells = census(edges)
    return np.array([sum(n for (kind, _), n in cells.items() if kind == each) for each in KINDS[3:]])


@pytest.mark.parametrize("null", ["degree", "density", "sign"])
def test_at_most_one_in_twenty_graphs_of_the_null_is_significant_at_5_percent(null):
    n = 60
    found = [motifs(graph_of(g), null=null, n_null=39, seed=i) for i, g in enumerate(from_the_null(null, n))]
    p = np.array([[each[kind].p or np.nan for kind in KINDS] for each in found], dtype=float)
    tested = p[:, ~np.isnan(p).all(axis=0)]
    assert tested.shape[1] == (3 if null == "degree" else 6)
    assert ((tested <= 0.05).sum(axis=0) <= binom.ppf(0.999, n, 0.05)).all()
    assert (tested <= 0.5).mean() > 0.2  # nor are p-values all 1


def planted(seed: int) -> nx.DiGraph:
    """Two groups of sources with targets of their own, and some noise: many bi-fans at ordinary degrees."""
    matrix = np.zeros((10, 12), dtype=bool)
    matrix[:5, :6] = matrix[5:, 6:] = True
    flips = np.random.default_rng(seed).random(matrix.shape) < 0.15
    return circuit_of(matrix ^ flips)


def test_planted_bi_fans_are_found():
    row = motifs(planted(0), n_null=199)["bi-fan"]
    assert row.p == 2 / 200
    assert row.observed > row.high > row.expected
    assert motifs(planted(0), n_null=199).significant[0].motif == "bi-fan"


def test_a_planted_hub_shows_in_fan_outs_and_only_against_the_density_null():
    matrix = np.random.default_rng(0).random((10, 20)) < 0.15
    matrix[3] = True
    by_density, by_degree = (motifs(circuit_of(matrix), null=null, n_null=199) for null in ("density", "degree"))
    assert by_density["fan-out"].p == 2 / 200
    assert by_degree["fan-out"].p is None


def test_coherent_motifs_are_found_where_signs_are_sorted_by_target():
    graph = planted(1)
    for _, v, data in graph.edges(data=True):
        sign = 1.0 if int(v[3:-1]) % 2 else -1.0
        data["effect"], data["effects"] = sign, {"y": sign}
    found = motifs(graph, null="sign", n_null=199)
    assert found["fan-in"].p == 2 / 200
    assert found["fan-in"].observed == found["fan-in"].total > found["fan-in"].high


def test_what_a_null_keeps_has_no_p_value_but_a_reason():
    graph = layered([4, 5, 4], 0.5, np.random.default_rng(2))
    found = motifs(graph, n_null=19)
    for kind in ("fan-in", "fan-out", "chain"):
        assert (found[kind].p, found[kind].q, found[kind].reason) == (None, None, "constant under this null")
        assert found[kind].low == found[kind].high == found[kind].observed
    assert found["feed-forward"].p is not None
    chain = motifs(layered([4, 5, 4], 0.5, np.random.default_rng(2), skips=False), n_null=19)
    assert chain["feed-forward"].p is None
    assert "skips" in chain["feed-forward"].reason
    assert chain["bi-fan"].p is not None


def test_false_discoveries_are_controlled_over_motifs_and_over_places_apart():
    found = motifs(planted(0), null="density", n_null=99)
    for rows in (found.rows, found.places):
        tested = [row for row in rows if row.p is not None]
        order = sorted(range(len(tested)), key=lambda i: tested[i].p)
        running = 1.0
        for rank in range(len(order), 0, -1):  # Benjamini-Hochberg, literally
            row = tested[order[rank - 1]]
            running = min(running, row.p * len(tested) / rank)
            assert row.q == pytest.approx(running)


def test_an_incomplete_layer_pair_is_held_fixed_unless_the_models_edges_are_given():
    graph = nx.DiGraph(candidates={"nodes": {"latent.mu": 4, "latent.z": 4}, "edges": {"latent.mu -> latent.z": 4}})
    for i in range(3):
        graph.add_node(f"latent.mu[{i}]", layer=0, site="latent.mu")
        graph.add_node(f"latent.z[{i}]", layer=1, site="latent.z")
        join(graph, f"latent.mu[{i}]", f"latent.z[{i}]", 1.0)
    for null in (degree_null, density_null):
        assert (blocks_of(list(null(Columns.of(graph), 20, 0))) == np.eye(3, dtype=bool)).all()
    del graph.graph["candidates"]
    assert not (blocks_of(list(degree_null(Columns.of(graph), 20, 0))) == np.eye(3, dtype=bool)).all()

    class Scores:
        sources = ("latent.mu[0]", "latent.mu[1]", "latent.mu[2]", "latent.mu[0]", "latent.mu[1]")
        targets = ("latent.z[0]", "latent.z[1]", "latent.z[2]", "latent.z[1]", "latent.z[0]")

    drawn = blocks_of(list(degree_null(Columns.of(graph, Scores), 50, 0)))
    assert {each.tobytes() for each in drawn} == {
        np.eye(3, dtype=bool)[list(o)].tobytes() for o in ((0, 1, 2), (1, 0, 2))
    }
    Scores.sources, Scores.targets = Scores.sources[1:], Scores.targets[1:]
    with pytest.raises(CircuitError, match="not among the edges of within="):
        Columns.of(graph, Scores)


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
