"""How far circuits of several factors overlap and which nodes are hubs, against sets written out and closed forms."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from circuits_of_factors import RECORD, circuit, drawn_circuit
from scipy.stats import binom, hypergeom

from nnsight_vae.circuits import hubs, overlap, specificity
from nnsight_vae.circuits.graph.columns import Columns, units_of
from nnsight_vae.circuits.structure.degrees import hypergeometric
from nnsight_vae.circuits.structure.nulls import density_null

# ------------------------------------------------------------------ overlap


def test_overlap_equals_sets_and_sums_written_out():
    a, b = drawn_circuit(0, "a"), drawn_circuit(1, "b")
    found = overlap({"a": a, "b": b}, n_null=9)
    for stage in ("all", "encoder", "latent", "decoder"):
        of_stage = lambda g, n: g.nodes[n]["kind"] != "factor" and stage in ("all", g.nodes[n]["stage"])
        nodes = [{n for n in g if of_stage(g, n)} for g in (a, b)]
        row = found.of("b", "a", "nodes", stage)
        assert row.jaccard == pytest.approx(len(nodes[0] & nodes[1]) / len(nodes[0] | nodes[1]))
        sizes = [
            {n: abs(sum(e["effect"] for *_, e in g.in_edges(n, data=True))) / t for n in g if g.in_degree(n)}
            for g, t in ((a, 2.0), (b, 3.0))
        ]
        assert row.weighted == pytest.approx(ruzicka(list(nodes[0] | nodes[1]), *sizes))
        edges = [{e for e in g.edges if of_stage(g, e[0] if stage == "all" else e[1])} for g in (a, b)]
        if stage == "encoder":
            continue
        row = found.of("a", "b", "edges", stage)
        assert (row.n_a, row.n_b, row.shared) == (len(edges[0]), len(edges[1]), len(edges[0] & edges[1]))
        assert row.jaccard == pytest.approx(row.shared / len(edges[0] | edges[1]))
        weights = [
            {e: abs(g.edges[e]["effect"]) / t for e in found_edges}
            for g, t, found_edges in zip((a, b), (2.0, 3.0), edges, strict=True)
        ]
        assert row.weighted == pytest.approx(ruzicka(list(edges[0] | edges[1]), *weights))


def ruzicka(items: list, a: dict, b: dict) -> float:
    smaller, larger = (sum(f(a.get(i, 0.0), b.get(i, 0.0)) for i in items) for f in (min, max))
    return smaller / larger


def test_null_overlap_has_the_hypergeometric_mean_and_tail():
    one = circuit(
        {(f"latent.z[{i}]", f"decoder.0[{j}]"): 1.0 for i, j in [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4)]}, "a"
    )
    two = circuit({(f"latent.z[{i}]", f"decoder.0[{j}]"): 1.0 for i, j in [(0, 0), (0, 1), (1, 2), (2, 5)]}, "b")
    row = overlap({"a": one, "b": two}, n_null=20_000).of("a", "b", "edges")
    law = hypergeom(32, 5, 4)
    jaccard = lambda k: k / (9 - k)
    assert row.shared == 3
    assert row.expected == pytest.approx(sum(law.pmf(k) * jaccard(k) for k in range(5)), abs=0.003)
    assert row.p == pytest.approx(2 * law.sf(2), abs=0.002)
    assert row.weighted == row.jaccard  # all weights are 1
    assert row.weighted_p == pytest.approx(row.p, abs=0.002)


def test_overlap_of_unrelated_circuits_is_calibrated():
    n = 100
    p = np.array(
        [
            overlap({"a": drawn_circuit(2 * i, "a"), "b": drawn_circuit(2 * i + 1, "b")}, n_null=39).of("a", "b").p
            for i in range(n)
        ]
    )
    assert (p <= 0.05).sum() <= binom.ppf(0.999, n, 0.05)
    assert (p <= 0.5).mean() > 0.2


def test_circuits_that_share_all_or_nothing_are_told_from_chance():
    a, b = drawn_circuit(0, "a", 0.5), drawn_circuit(0, "a", 0.5)
    same = overlap({"a": a, "b": b}, n_null=199).of("a", "b")
    assert (same.jaccard, same.weighted) == (1.0, pytest.approx(1.0))
    assert same.p == same.weighted_p == 2 / 200
    every = {(f"latent.z[{i}]", f"decoder.0[{j}]"): 1.0 for i, j in product(range(4), range(8))}
    halves = [dict(list(every.items())[:16]), dict(list(every.items())[16:])]
    apart = overlap({"a": circuit(halves[0], "a"), "b": circuit(halves[1], "b")}, n_null=199).of("a", "b")
    assert (apart.jaccard, apart.p) == (0.0, 2 / 200)


def test_overlap_has_no_p_value_where_what_circuits_were_chosen_from_is_unknown():
    edges = {("latent.z[0]", "decoder.0[0]"): 1.0}
    found = overlap({"a": circuit(edges, "a", record=None), "b": circuit(edges, "b")}, n_null=9)
    row = found.of("a", "b")
    assert (row.jaccard, row.p, row.expected, row.q) == (1.0, None, None, None)
    assert "candidates" in row.reason
    other = {**RECORD, "edges": {"latent.z -> decoder.0": 31}}
    assert overlap({"a": circuit(edges, "a", record=other), "b": circuit(edges, "b")}, n_null=9).of("a", "b").p is None


def test_a_record_of_some_columns_gives_p_values_for_those_stages():
    record = {"nodes": {"latent.z": 4}, "edges": {"latent.z -> decoder.0": 32}}
    edges = {("latent.z[0]", "decoder.0[0]"): 1.0, ("encoder.0[0]", "latent.z[0]"): 1.0}
    found = overlap({name: circuit(edges, name, record=record) for name in "ab"}, n_null=9)
    assert found.of("a", "b", "nodes", "latent").p is not None
    assert found.of("a", "b", "edges", "decoder").p is not None
    assert found.of("a", "b", "nodes", "decoder").p is found.of("a", "b", "edges", "latent").p is None
    assert found.of("a", "b", "nodes").p is found.of("a", "b", "edges").p is None


def test_a_circuit_counts_by_the_edges_that_reach_its_own_factor():
    graph = circuit({("latent.z[0]", "decoder.0[0]"): 1.0, ("latent.z[1]", "decoder.0[1]"): 1.0}, "a")
    graph.edges["latent.z[1]", "decoder.0[1]"].update(readout="b", effects={"b": 5.0})
    other = circuit({("latent.z[1]", "decoder.0[1]"): 1.0}, "b")
    assert overlap({"a": graph, "b": other}, n_null=9).of("a", "b").shared == 0
    assert [row.unit for row in specificity({"a": graph, "b": other}).rows if row.factor == "b"] == ["decoder.0[1]"]


def test_missing_effects_leave_the_unweighted_overlap():
    edges = {("latent.z[0]", "decoder.0[0]"): 1.0}
    a, b = circuit(edges, "a"), circuit(edges, "b")
    a.edges["latent.z[0]", "decoder.0[0]"].update(effect=None, effects={})
    row = overlap({"a": a, "b": b}, n_null=9).of("a", "b")
    assert (row.jaccard, row.weighted, row.weighted_p) == (1.0, None, None)
    assert "no weighted overlap" in row.reason


# ------------------------------------------------------------------ hubs


def test_hub_p_values_equal_the_tail_of_the_density_null():
    graph = units_of(drawn_circuit(3, "a", 0.5))
    columns = Columns.of(graph)
    n = 40_000
    degrees = {unit: np.zeros(n) for unit in graph}
    start = 0
    for batch in density_null(columns, n, seed=0):
        size = len(next(iter(batch.values())))
        for (a, b), edges in batch.items():
            for k, axis in ((a, 2), (b, 1)):
                for i, unit in enumerate(columns.nodes[k]):
                    degrees[unit][start : start + size] += edges.sum(axis)[:, i]
        start += size
    found = {row.unit: row for row in hubs(graph).rows}
    assert set(found) == set(graph)
    for unit, row in found.items():
        assert row.degree == graph.degree(unit)
        assert row.expected == pytest.approx(degrees[unit].mean(), abs=0.05)
        assert row.p == pytest.approx((degrees[unit] >= row.degree).mean(), abs=0.012)


def test_hypergeometric_equals_counting_all_draws():
    for total, marked, drawn in [(6, 3, 2), (5, 5, 3), (7, 1, 4)]:
        counts = np.zeros(marked + 1)
        for chosen in combinations(range(total), drawn):
            counts[sum(i < marked for i in chosen)] += 1
        assert hypergeometric(total, marked, drawn) == pytest.approx(counts / counts.sum())


def test_a_planted_hub_is_found_and_others_are_not():
    edges = [(i, j) for i, j in product(range(4), range(8)) if i == 1 or j % 4 == i]
    graph = circuit({(f"latent.z[{i}]", f"decoder.0[{j}]"): 1.0 for i, j in edges}, "a")
    assert [row.unit for row in hubs(graph).significant] == ["latent.z[1]"]


def test_hubs_of_random_circuits_are_calibrated():
    n = 60
    found = [bool(hubs(drawn_circuit(i, "a", 0.4), q=0.1).significant) for i in range(n)]
    assert sum(found) <= binom.ppf(0.999, n, 0.1)


def test_a_polysemantic_hub_is_one_in_two_circuits_by_the_partial_conjunction_rule():
    star = lambda k, readout: circuit(
        {(f"latent.z[{i}]", f"decoder.0[{j}]"): 1.0 for i in range(4) for j in range(8) if i == k or j == i}, readout
    )
    found = hubs({"a": star(0, "a"), "b": star(0, "b"), "c": star(1, "c")})
    p = {(row.unit, row.factor): row.p for row in found.rows}
    several = {row.unit: row for row in found.several}
    for unit in ("latent.z[0]", "latent.z[1]"):
        second = sorted(p[unit, factor] for factor in "abc")[1]
        assert several[unit].p == pytest.approx(min(1.0, 2 * second))
    assert [row.unit for row in found.polysemantic] == ["latent.z[0]"]
    assert set(several["latent.z[0]"].factors[:2]) == {"a", "b"}
    assert "latent.z[1]" in {row.unit for row in found.significant}
    assert "1 of" in str(found).splitlines()[-1]


def test_a_degree_that_cannot_be_otherwise_has_no_p_value():
    full = circuit({(f"latent.z[{i}]", f"decoder.0[{j}]"): 1.0 for i, j in product(range(4), range(8))}, "a")
    found = hubs(full)
    assert {row.p for row in found.rows} == {None}
    assert found.significant == ()
