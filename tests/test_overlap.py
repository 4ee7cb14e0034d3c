"""Structure across factors: overlap, hubs, specificity, separation and modularity, against closed forms, enumeration and networkx."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import networkx as nx
import numpy as np
import pytest
from scipy.stats import binom, hypergeom

from nnsight_vae.circuits import EdgeScores, circuit_from, hubs, modularity, motifs, overlap, separation, specificity
from nnsight_vae.circuits.graph.columns import Columns, candidates_of, units_of
from nnsight_vae.circuits.structure.communities import _fixed
from nnsight_vae.circuits.structure.degrees import hypergeometric
from nnsight_vae.circuits.structure.nulls import degree_null, density_null
from nnsight_vae.circuits.wiring.nodes import Node
from nnsight_vae.errors import CircuitError, DataError

SIZES = {"encoder.0": 6, "latent.z": 4, "decoder.0": 8}
STAGES = dict(zip(SIZES, ("encoder", "latent", "decoder"), strict=True))
SITES = tuple(SIZES)
RECORD = {"nodes": SIZES, "edges": {f"{a} -> {b}": SIZES[a] * SIZES[b] for a, b in pairwise(SITES)}}


def circuit(
    edges: dict[tuple[str, str], float], readout: str, total: float = 1.0, record: dict | None = RECORD
) -> nx.DiGraph:
    """Edges with effects on one readout, between units `encoder.0[i]`, `latent.z[i]`, `decoder.0[i]`."""
    graph = nx.DiGraph(total_effect={readout: {"mean": total}})
    if record is not None:
        graph.graph["candidates"] = record
    for (u, v), effect in edges.items():
        for node in (u, v):
            site = None if node.startswith("factor") else node.split("[")[0]
            kind = "neuron" if site else "factor"
            graph.add_node(
                node, layer=1 + SITES.index(site) if site else 0, site=site, kind=kind, stage=STAGES.get(site, kind)
            )
        graph.add_edge(u, v, effect=effect, readout=readout, effects={readout: effect})
    return graph


def drawn_circuit(seed: int, readout: str, share: float = 0.4) -> nx.DiGraph:
    rng = np.random.default_rng(seed)
    edges = {(f"factor:{readout}", f"encoder.0[{i}]"): float(rng.normal()) for i in range(SIZES["encoder.0"])}
    for a, b in pairwise(SITES):
        reached = [i for i in range(SIZES[a]) if any(v == f"{a}[{i}]" for _, v in edges)]
        for i, j in product(reached, range(SIZES[b])):
            if rng.random() < share:
                edges[f"{a}[{i}]", f"{b}[{j}]"] = float(rng.normal())
    return circuit(edges, readout, total=2.0 + seed)


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


# ------------------------------------------------------------------ specificity


def test_specificity_by_hand():
    a = circuit({("encoder.0[0]", "latent.z[0]"): 3.0, ("encoder.0[1]", "latent.z[0]"): -1.0}, "a", total=4.0)
    b = circuit({("encoder.0[0]", "latent.z[0]"): -1.0, ("encoder.0[0]", "latent.z[1]"): 1.0}, "b", total=-2.0)
    found = specificity({"a": a, "b": b})
    rows = {row.unit: row for row in found.rows}
    assert rows["latent.z[0]"].effects == {"a": 0.5, "b": 0.5}
    assert (rows["latent.z[0]"].specificity, rows["latent.z[0]"].selectivity) == (0.5, pytest.approx(0.0))
    assert rows["latent.z[1]"].effects == {"a": 0.0, "b": 0.5}
    assert (rows["latent.z[1]"].factor, rows["latent.z[1]"].specificity, rows["latent.z[1]"].selectivity) == (
        "b",
        1.0,
        1.0,
    )
    assert found.top["latent.z[1]"] == "b"
    assert rows["latent.z[0]"].ci_low is None
    c = circuit({("encoder.0[0]", "latent.z[0]"): 1.0, ("encoder.0[1]", "latent.z[0]"): -1.0}, "c")
    cancelled = specificity({"c": c, "d": circuit({("encoder.0[0]", "latent.z[1]"): 1.0}, "d")})
    assert list(cancelled.left_out) == ["latent.z[0]"]


def test_selectivity_is_one_minus_normalised_entropy():
    effects = {"a": 0.6, "b": 0.3, "c": 0.1}
    named = {name: circuit({("encoder.0[0]", "latent.z[0]"): e}, name) for name, e in effects.items()}
    row = specificity(named).rows[0]
    p = np.array(list(effects.values()))
    assert row.selectivity == pytest.approx(1 + (p * np.log(p)).sum() / np.log(3))


def scored(seed: int, readout: str, means: tuple[float, float], n: int = 60) -> EdgeScores:
    """Two edges encoder.0[0] -> latent.z[0], [1], of given mean effects, and the total that they sum to."""
    rng = np.random.default_rng(seed)
    values = (np.array(means)[:, None] + 0.5 * rng.normal(size=(2, n)))[:, None]
    kinds = (("encoder.0[0]", "encoder.0", 0, 0), ("latent.z[0]", "latent.z", 0, 1), ("latent.z[1]", "latent.z", 1, 1))
    nodes = tuple(Node(name, "neuron", site, index, STAGES[site], layer) for name, site, index, layer in kinds)
    return EdgeScores(
        values=values,
        sources=("encoder.0[0]",) * 2,
        targets=("latent.z[0]", "latent.z[1]"),
        nodes=nodes,
        readouts=(readout,),
        cut_of=np.zeros(2, dtype=int),
        cuts=("encoder.0 -> latent.z",),
        total=values.sum(axis=0),
        resolution=np.array([1e-6]),
        gaps=np.zeros((1, 1, n)),
        method="ig",
        estimand="TE share",
    )


def selected(scores: EdgeScores) -> nx.DiGraph:
    edges = {(u, v): float(e) for u, v, e in zip(scores.sources, scores.targets, scores.mean()[:, 0], strict=True)}
    return circuit(edges, scores.readouts[0], total=float(scores.total.mean()))


def test_the_interval_of_a_units_specificity_covers_the_truth():
    a, b = (3.0, 1.0), (1.0, 1.0)  # of z[0]: .75 of a's total effect, .5 of b's: specificity .6
    covered = 0
    for i in range(60):
        scores = {"a": scored(2 * i, "a", a), "b": scored(2 * i + 1, "b", b)}
        found = specificity({name: selected(each) for name, each in scores.items()}, scores=scores, n_boot=300, seed=i)
        row = next(row for row in found.rows if row.unit == "latent.z[0]")
        assert row.ci_low < row.specificity < row.ci_high
        covered += row.ci_low <= 0.6 <= row.ci_high
    assert covered >= binom.ppf(0.001, 60, 0.95)
    assert covered < 60


def test_pairs_of_each_factor_are_resampled_on_their_own():
    scores = {
        name: scored(0, name, (1.0, 1.0)) for name in "ab"
    }  # in common resamples both factors' effects move as one
    row = specificity({name: selected(each) for name, each in scores.items()}, scores=scores, n_boot=200).rows[0]
    assert row.specificity == pytest.approx(0.5)
    assert row.ci_low < 0.49 < 0.51 < row.ci_high


def test_scores_of_other_circuits_are_refused():
    scores = {"a": scored(0, "a", (1.0, 1.0)), "b": scored(1, "b", (1.0, 1.0))}
    named = {name: selected(each) for name, each in scores.items()}
    with pytest.raises(CircuitError, match=r"none for \['b'\]"):
        specificity(named, scores={"a": scores["a"]})
    with pytest.raises(CircuitError, match="not those that its circuit"):
        specificity(named, scores={"a": scores["b"], "b": scores["b"]})
    single = {name: scored(0, name, (1.0, 1.0), n=1) for name in "ab"}
    with pytest.raises(DataError, match="two clusters"):
        specificity({name: selected(each) for name, each in single.items()}, scores=single)


def test_effects_on_readouts_of_other_names_have_no_specificity():
    graph = circuit({("encoder.0[0]", "latent.z[0]"): 1.0}, "x")
    graph.graph["total_effect"]["y"] = {"mean": 1.0}
    graph.add_edge("encoder.0[0]", "latent.z[0]", effect=1.0, readout="x", effects={"x": 1.0, "y": 2.0})
    with pytest.raises(CircuitError, match="none of its name"):
        specificity({"a": graph, "x": graph})


# ------------------------------------------------------------------ separation


def test_separation_p_values_equal_counting_all_choices_of_ends():
    a = circuit({("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in (0, 1, 2)}, "a")
    b = circuit({("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in (2, 3, 4, 5)}, "b")
    row = separation({"a": a, "b": b}).rows[0]
    every = [len(set(mine) & set(theirs)) for mine in combinations(range(8), 3) for theirs in combinations(range(8), 4)]
    assert (row.unit, row.kind, row.only_a, row.only_b, row.shared) == ("latent.z[0]", "split", 2, 3, 1)
    assert row.p == pytest.approx(np.mean(np.array(every) <= 1))
    assert row.expected == pytest.approx(np.mean(every))


def test_planted_splits_and_merges_are_found():
    record = {"nodes": {"encoder.0": 40, "latent.z": 4, "decoder.0": 40}, "edges": {}}
    halves = range(20), range(20, 40)
    split = {
        name: circuit(
            {("encoder.0[0]", "latent.z[0]"): 1.0} | {("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in half},
            name,
            record=record,
        )
        for name, half in zip("ab", halves, strict=True)
    }
    merge = {
        name: circuit(
            {(f"encoder.0[{j}]", "latent.z[0]"): 1.0 for j in half} | {("latent.z[0]", "decoder.0[3]"): 1.0},
            name,
            record=record,
        )
        for name, half in zip("ab", halves, strict=True)
    }
    for circuits, kind in ((split, "split"), (merge, "merge")):
        found = separation(circuits)
        assert [(row.unit, row.kind, row.shared, row.through) for row in found.significant] == [
            ("latent.z[0]", kind, 0, 1)
        ]
        assert kind in str(found)
        assert len(found.to_frame()) == len(found.rows)


def test_a_unit_with_the_same_edges_in_both_circuits_separates_nothing():
    graph = drawn_circuit(0, "a", 0.6)
    found = separation({"a": graph, "b": graph})
    assert found.rows
    assert found.significant == ()
    assert all(row.only_a == row.only_b == 0 for row in found.rows)
    full = circuit({("latent.z[0]", f"decoder.0[{j}]"): 1.0 for j in range(8)}, "a")
    fixed = next(row for row in separation({"a": full, "b": full}).rows if row.kind == "split")
    assert (fixed.p, fixed.reason) == (None, "the number of shared edges is fixed")
    unknown = separation({"a": circuit(dict.fromkeys(full.edges, 1.0), "a", record=None), "b": full}).rows[-1]
    assert unknown.p is None
    assert "not known" in unknown.reason
    grouped = {**RECORD, "edges": {**RECORD["edges"], "encoder.0 -> latent.z": 12}}
    into = {(f"encoder.0[{i}]", "latent.z[0]"): 1.0 for i in range(3)} | {("latent.z[0]", "decoder.0[0]"): 1.0}
    rows = separation({name: circuit(into, name, record=grouped) for name in "ab"}).rows
    assert {row.kind: row.p is None for row in rows if row.unit == "latent.z[0]"} == {"split": False, "merge": True}


# ------------------------------------------------------------------ modularity


def groups(graph: nx.DiGraph) -> dict[str, str]:
    return {unit: str(int(unit[:-1].split("[")[1]) % 2) for unit in graph}


def test_modularity_equals_networkx_in_the_circuit_and_in_every_null_graph():
    graph = units_of(drawn_circuit(0, "a", 0.5))
    names = groups(graph)
    sets = [{u for u, name in names.items() if name == each} for each in "01"]
    found = modularity(graph, communities=names, n_null=9)
    assert found.value == pytest.approx(nx.community.modularity(graph, sets, weight=None))
    columns = Columns.of(graph)
    literal = []
    for batch in degree_null(columns, 9, seed=0):
        for i in range(9):
            null = nx.DiGraph()
            null.add_nodes_from(graph)
            for (a, b), edges in batch.items():
                null.add_edges_from((columns.nodes[a][u], columns.nodes[b][v]) for u, v in np.argwhere(edges[i]))
            literal.append(nx.community.modularity(null, sets, weight=None))
    assert _fixed(columns, names, 9, seed=0) == pytest.approx(literal)
    assert found.expected == pytest.approx(np.mean(literal))


def test_planted_communities_are_found_and_layers_alone_are_none():
    within = {
        (f"{a}[{i}]", f"{b}[{j}]"): 1.0
        for a, b in pairwise(SITES)
        for i, j in product(range(SIZES[a]), range(SIZES[b]))
        if i % 2 == j % 2
    }
    graph = circuit(within, "a")
    assert modularity(graph, communities=groups(graph), n_null=99).p == 2 / 100
    other = units_of(drawn_circuit(5, "a", 0.5))
    layers = {unit: other.nodes[unit]["site"] for unit in other}
    found = modularity(other, communities=layers, n_null=19)
    assert found.value == pytest.approx(found.expected)  # far from 0, and no finding
    assert abs(found.value) > 0.1
    assert (found.p, found.reason) == (None, "constant under this null")


def test_communities_of_factors_are_those_the_units_do_most_for():
    named = {"a": drawn_circuit(0, "a"), "b": drawn_circuit(1, "b")}
    found = modularity(named, n_null=19)
    assert found.communities == specificity(named).top
    assert found.found == "the factor each unit does most for"
    union = nx.compose(*named.values())
    given = modularity(union.subgraph(found.communities), communities=found.communities, n_null=19)
    assert given.value == pytest.approx(found.value)


def test_louvain_looks_for_communities_anew_in_every_null_graph():
    within = {
        (f"{a}[{i}]", f"{b}[{j}]"): 1.0
        for a, b in pairwise(SITES)
        for i, j in product(range(SIZES[a]), range(SIZES[b]))
        if i % 2 == j % 2
    }
    found = modularity(circuit(within, "a"), n_null=39)
    assert (found.found, found.p) == ("Louvain", 2 / 40)
    chance = modularity(drawn_circuit(2, "a", 0.5), n_null=19)
    assert chance.expected > 0.05  # communities are found in random graphs too
    assert chance.p > 0.05


def test_modularity_of_too_little_is_none_with_a_reason():
    one = circuit({("latent.z[0]", "decoder.0[0]"): 1.0}, "a")
    found = modularity(one, communities=dict.fromkeys(one, "x"))
    assert (found.value, found.p, found.reason) == (None, None, "all units are in one community")
    assert modularity(nx.DiGraph()).reason == "no edges between units"
    assert "none" in str(found)


# ------------------------------------------------------------------ all of them


def test_results_print_and_make_frames():
    named = {"a": drawn_circuit(0, "a"), "b": drawn_circuit(1, "b"), "c": drawn_circuit(2, "c")}
    found = overlap(named, n_null=9)
    assert len(found.to_frame()) == len(found.rows) == 3 * (1 + 3 + 1 + 2)
    assert "a & c" in str(found)
    assert found.to_frame()["p"].dtype == "Float64"
    units = specificity(named)
    assert {"effect on a", "effect on c"} <= set(units.to_frame().columns)
    assert "latent.z" in str(units)
    assert len(hubs(named).to_frame()) == sum(len(each) - 1 for each in named.values())  # without the factor
    assert set(modularity(named, n_null=9).to_frame().columns) == {"unit", "community"}
    with pytest.raises(CircuitError, match="no overlap of edges"):
        found.of("a", "x")


@pytest.mark.parametrize("function", [overlap, specificity, separation, hubs, modularity, motifs])
def test_what_is_no_circuit_is_refused(function):
    good = drawn_circuit(0, "a")
    with pytest.raises(CircuitError, match=r"expected a networkx.DiGraph|got Graph"):
        function({"a": good, "b": nx.Graph(good)} if function is not motifs else nx.Graph(good))
    if function in (overlap, specificity, separation, modularity):
        with pytest.raises(CircuitError, match=r"2 or more factors.*got 1"):
            function({"a": good})
    if function in (hubs, separation):
        with pytest.raises(CircuitError, match="q=0"):
            function({"a": good, "b": good}, q=0)


def test_the_same_seed_gives_the_same_numbers_and_circuits_are_left_alone():
    named = {"a": drawn_circuit(0, "a"), "b": drawn_circuit(1, "b")}
    before = {name: nx.DiGraph(each) for name, each in named.items()}
    assert overlap(named, n_null=49).rows == overlap(named, n_null=49).rows
    assert overlap(named, n_null=49).rows != overlap(named, n_null=49, seed=1).rows
    assert modularity(named, n_null=9) == modularity(named, n_null=9)
    specificity(named), hubs(named), separation(named)
    assert all(nx.utils.graphs_equal(named[name], before[name]) for name in named)


def test_circuits_record_how_many_nodes_and_edges_they_are_chosen_from():
    scores = scored(0, "a", (1.0, 1.0))
    expected = {"nodes": {"encoder.0": 1, "latent.z": 2}, "edges": {"encoder.0 -> latent.z": 2}}
    assert candidates_of(scores) == expected
    assert circuit_from(scores).graph["candidates"] == expected
