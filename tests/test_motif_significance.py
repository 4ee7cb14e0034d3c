"""P-values of motifs: by hand, calibrated on graphs of the null, small for planted motifs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from layered import circuit_of, join, layered, planted
from scipy.stats import binom, chisquare

from nnsight_vae.circuits import motifs
from nnsight_vae.circuits.graph.columns import Block, Columns
from nnsight_vae.circuits.structure.census import KINDS, census
from nnsight_vae.circuits.structure.nulls import at_least, degree_null, density_null, sign_null, two_sided


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
