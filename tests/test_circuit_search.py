"""Searching circuits: known ones are found by every strategy, one or several factors, and what cannot be searched is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from searched import Edge, chosen, side_by_side, wired, wired_scores, with_values
from vaes import ResidualVAE, images, seeded
from wired import TRUE_EDGES

import nnsight_vae as nv
from nnsight_vae.circuits import (
    FDR,
    Greedy,
    Mass,
    Prune,
    Screen,
    TopK,
    circuit_from,
    extract_circuit,
    extract_circuits,
    faithfulness,
    score_edges,
    union,
)
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels, Region

__all__ = ["wired", "wired_scores"]  # fixtures


# ---------------------------------------------------------------------------------- a circuit known by construction
STRATEGIES = [
    Prune(),
    Mass(1.0),
    Mass(1.0, level="nodes"),
    TopK(10),
    FDR(),
    FDR(control="by"),
    FDR(control="max-t"),
    Greedy(),
    Greedy(among=TopK(40)),
    Screen(0.2, sample=20),
    Screen(0.2, TopK(10), sample=5),
]


@pytest.mark.parametrize("select", STRATEGIES, ids=repr)
def test_every_strategy_finds_the_true_circuit(wired, select) -> None:
    circuit = extract_circuit(*wired, select=select, resamples=2)
    assert set(circuit.edges) == TRUE_EDGES
    assert circuit.edges["latent.z[0]", "dec[1]"]["effect"] < 0 < circuit.edges["latent.z[0]", "dec[0]"]["effect"]
    assert circuit.edges["enc[0]", "latent.z[0]"]["ci_low"] > 0
    assert min(data["stability"] for *_, data in circuit.edges(data=True)) == pytest.approx(1.0)
    assert circuit.graph["selection"]["strategy"] == repr(select)
    assert circuit.graph["selection"]["targets"]["pixel[0]"]["n_edges"] == len(TRUE_EDGES)


@pytest.mark.parametrize("method", ["exact", "ig", "eap"])
def test_the_default_finds_the_true_circuit_by_any_scores(wired, method: str) -> None:
    assert set(extract_circuit(*wired, method=method).edges) == TRUE_EDGES


def test_several_targets_give_the_union_of_their_circuits(wired) -> None:
    vae, pairs, _ = wired
    extra = {("latent.z[0]", "dec[4]"), ("dec[4]", "output[2]"), ("output[2]", "readout:pixel[2]")}
    for select in (Mass(1.0), Prune(), TopK(10)):
        both = extract_circuit(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[2]"]], select=select, resamples=0)
        assert set(both.edges) == TRUE_EDGES | extra
        assert set(both.edges["input[0]", "enc[0]"]["effects"]) == {"pixel[0]", "pixel[2]"}
        assert both.edges["latent.z[0]", "dec[4]"]["effects"].keys() == {"pixel[2]"}
        assert both.nodes["factor:f"]["layer"] == 0
        assert both.nodes["latent.z[0]"] | {"effect": 0, "readout": ""} == {
            "kind": "latent", "site": "latent.z", "index": 0, "stage": "latent", "layer": 3, "effect": 0, "readout": "",
        }  # fmt: skip


def test_a_cap_keeps_whole_paths(wired_scores) -> None:
    scores = wired_scores
    capped = circuit_from(scores, TopK(8), resamples=0)
    assert capped.number_of_edges() == 8
    assert all(
        nx.has_path(capped, "factor:f", node) and nx.has_path(capped, node, "readout:pixel[0]") for node in capped
    )
    assert {"enc[0]", "enc[1]", "dec[0]"} < set(capped)  # the route through enc[1] carries .4 of enc[0]'s ...
    assert "dec[1]" not in capped  # ... and that through dec[1] .28 of dec[0]'s
    assert chosen(scores, TopK(9)) == set(capped.edges)
    nothing = circuit_from(scores, TopK(3), resamples=0)
    assert len(nothing) == 0
    assert "form no path" in nothing.graph["selection"]["targets"]["pixel[0]"]["reason"]


def test_a_share_of_the_total_effect_drops_the_weaker_routes(wired_scores) -> None:
    scores = wired_scores
    circuit = chosen(scores, FDR(min_share=0.39))  # dec[1] has .28 / .72 = .3889, enc[1] .4 / 1.4 = .2857
    assert circuit == {edge for edge in TRUE_EDGES if not {"enc[1]", "dec[1]"} & set(edge)}
    assert ("latent.z[0]", "dec[1]") in chosen(scores, FDR(min_share=0.38))


def test_mass_keeps_the_strongest_edges_of_each_cut_or_nodes_of_each_layer(wired_scores) -> None:
    scores = wired_scores
    strong = {edge for edge in TRUE_EDGES if not {"enc[1]", "dec[1]"} & set(edge)}
    for level in ("edges", "nodes"):
        assert chosen(scores, Mass(0.5, level=level)) == strong
    assert ("input[0]", "enc[1]") not in chosen(scores, Mass(0.7142, level="nodes"))  # enc[0] has 1 / 1.4 = .7143
    assert ("input[0]", "enc[1]") in chosen(scores, Mass(0.7144, level="nodes"))


def test_a_node_is_as_strong_as_what_comes_into_it() -> None:
    scores = side_by_side(np.outer([0.5, 0.6], np.ones(8)), np.ones(8))
    scores = with_values(scores, ("factor:f", "a[1]"), 0.1)
    assert chosen(scores, Mass(0.6, level="nodes")) == {("factor:f", "a[0]"), ("a[0]", "b[0]"), ("b[0]", "readout:r")}


def test_an_edge_speaks_of_a_target_whose_circuit_it_is_in(wired) -> None:
    vae, pairs, _ = wired
    scores = score_edges(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[2]"]])
    edge = ("input[0]", "enc[1]")
    row = list(zip(scores.sources, scores.targets, strict=True)).index(edge)
    scores.values[row, 1] = 1e4 * np.where(np.arange(30) % 2, 5.0, -4.8)  # larger, but it could be chance
    data = circuit_from(scores, FDR(), resamples=0).edges[edge]
    assert (data["readout"], list(data["effects"])) == ("pixel[0]", ["pixel[0]"])


@pytest.mark.parametrize(
    ("edge", "also"),
    [(("input[0]", "enc[1]"), ("enc[1]", "latent.z[0]")), (("dec[1]", "output[0]"), ("latent.z[0]", "dec[1]"))],
)
def test_an_edge_whose_path_is_broken_goes_with_it(wired_scores, edge: Edge, also: Edge) -> None:
    scores = with_values(wired_scores, edge, 0.0)
    for select in (Mass(1.0), TopK(50), FDR()):
        assert chosen(scores, select) == TRUE_EDGES - {edge, also}


def test_an_edge_that_could_be_chance_is_not_selected_however_large(wired_scores) -> None:
    scores = wired_scores
    noise = np.where(np.arange(30) % 2, 5.0, -4.8)
    for select in (Mass(1.0), TopK(50), FDR()):
        noisy = chosen(with_values(scores, ("input[0]", "enc[1]"), noise), select)
        assert noisy == TRUE_EDGES - {("input[0]", "enc[1]"), ("enc[1]", "latent.z[0]")}
        same_mean = chosen(with_values(scores, ("input[0]", "enc[1]"), noise.mean()), select)
        assert same_mean == TRUE_EDGES


@pytest.mark.filterwarnings("ignore:The pairs change what is read")
def test_a_target_without_a_clear_effect_is_left_out_with_its_reason(wired) -> None:
    vae, pairs, readout = wired
    flipped = Pairs(
        torch.cat([pairs.base[:15], pairs.source[15:]]), torch.cat([pairs.source[:15], pairs.base[15:]]), factor="f"
    )
    for select in (Prune(), FDR(), Screen(0.2, sample=5)):
        circuit = extract_circuit(vae, flipped, readout, select=select, resamples=0)
        assert len(circuit) == 0
        assert "contains 0" in circuit.graph["left_out"]["pixel[0]"]
    assert "none: the interval" in str(faithfulness(vae, circuit, flipped, readout))


@pytest.mark.parametrize("select", [Prune(), TopK(8), Screen(0.2, sample=20)], ids=repr)
def test_a_circuit_says_where_it_comes_from_and_survives_its_files(wired, tmp_path, select) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=select)
    assert circuit.graph["schema"] == "nnsight-vae/circuit@1"
    assert (circuit.graph["model"], circuit.graph["fingerprint"]) == ("WiredVAE", vae.fingerprint)
    assert circuit.graph["pairs"]["n"] == 30
    assert circuit.graph["selection"]["n_tests"] == circuit.graph["n_candidates"] == 74
    assert circuit.graph["total_effect"]["pixel[0]"]["ci_low"] > 0
    assert max(circuit.graph["cut_error"].values()) < 1e-5
    json.dumps(circuit.graph["selection"], allow_nan=False)
    for suffix in ("json", "graphml"):
        again = nv.read_circuit(nv.export(circuit, tmp_path / f"c.{suffix}"))
        assert nx.utils.graphs_equal(again, circuit)
        assert again.graph == circuit.graph


@pytest.mark.parametrize("select", STRATEGIES, ids=repr)
def test_a_strategy_prints_as_written(select) -> None:
    assert eval(repr(select)) == select


@pytest.mark.parametrize("select", [Prune(), TopK(9), Screen(0.1, sample=9)], ids=repr)
def test_the_same_call_finds_the_same_circuit_and_leaves_no_trace(wired, select) -> None:
    one, two = (extract_circuit(*wired, select=select, resamples=3, seed=4) for _ in range(2))
    assert nx.utils.graphs_equal(one, two)
    assert one.graph == two.graph
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in wired[0].module.modules())
    assert all(p.grad is None and p.requires_grad for p in wired[0].module.parameters())


# ---------------------------------------------------------------------------------- several factors
def test_a_circuit_per_factor_and_their_union_say_whose_is_what(wired) -> None:
    vae, pairs, _ = wired
    both = Pixels((4,))[["pixel[0]", "pixel[2]"]]
    circuits = extract_circuits(
        vae, {name: replace(pairs, factor=name) for name in both.names}, both, select=FDR(), resamples=0
    )
    assert list(circuits) == ["pixel[0]", "pixel[2]"]
    assert all(circuit.graph["total_effect"].keys() == {name} for name, circuit in circuits.items())
    assert set(circuits["pixel[0]"].edges) == {(a.replace("factor:f", "factor:pixel[0]"), b) for a, b in TRUE_EDGES}
    merged = union(circuits)
    assert set(merged.edges) == set().union(*(circuit.edges for circuit in circuits.values()))
    shared = merged.edges["enc[0]", "latent.z[0]"]
    assert shared["factors"] == {
        name: circuit.edges["enc[0]", "latent.z[0]"]["share"] for name, circuit in circuits.items()
    }
    assert merged.edges["dec[4]", "output[2]"]["factors"].keys() == {"pixel[2]"}
    assert merged.nodes["dec[0]"]["factors"] == {"pixel[0]": circuits["pixel[0]"].nodes["dec[0]"]["effect"]}
    layers = [data["layer"] for _, data in merged.nodes(data=True)]
    assert layers == sorted(layers)
    assert all(merged.nodes[a]["layer"] < merged.nodes[b]["layer"] for a, b in merged.edges)
    assert nx.is_directed_acyclic_graph(merged)


def test_the_strongest_factor_speaks_for_a_shared_edge(wired) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=FDR(), resamples=0)
    weaker = circuit.copy()
    weaker.edges["enc[0]", "latent.z[0]"]["share"] /= 2
    weaker.nodes["enc[0]"]["effect"] /= 2
    for order in (("weak", "strong"), ("strong", "weak")):
        merged = union({name: {"weak": weaker, "strong": circuit}[name] for name in order})
        assert merged.edges["enc[0]", "latent.z[0]"]["factor"] == merged.nodes["enc[0]"]["factor"] == "strong"


def test_factors_are_refused_before_any_work(wired) -> None:
    vae, pairs, readout = wired
    for own, message in (
        ({}, "at least one factor"),
        ([pairs], "at least one factor"),
        ({"g": pairs}, "are pairs of factor 'f'"),
    ):
        with pytest.raises(CircuitError, match=message):
            extract_circuits(vae, own, readout)
    with pytest.raises(CircuitError, match="no readout for factor 'f'"):
        extract_circuits(vae, {"f": pairs}, {"g": readout})
    circuit = extract_circuit(vae, pairs, readout)
    foreign = circuit.copy()
    foreign.graph["fingerprint"] = "other"
    with pytest.raises(CircuitError, match="different models"):
        union({"a": circuit, "b": foreign})


# ---------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FDR(q=0.0), "q=0.0"),
        (lambda: FDR(q=1), "q=1"),
        (lambda: FDR(min_share=-0.1), "min_share=-0.1"),
        (lambda: FDR(min_share=float("nan")), "min_share=nan"),
        (lambda: FDR(control="bonferroni"), "'bonferroni' is unknown"),
        (lambda: Mass(0.0), "share=0.0"),
        (lambda: Mass(1.5), "share=1.5"),
        (lambda: Mass("most"), "share='most'"),
        (lambda: Mass(level="heads"), "level='heads'"),
        (lambda: Mass(among=TopK(3)), "expected the test"),
        (lambda: TopK(0), "k=0"),
        (lambda: TopK(2.5), "k=2.5"),
        (lambda: TopK(True), "k=True"),
        (lambda: TopK(3, among=None), "expected the test"),
        (lambda: Prune(0.0), "deviation=0.0"),
        (lambda: Prune(1.0), "deviation=1.0"),
        (lambda: Prune(step=1.0), "step=1.0"),
        (lambda: Greedy(0.0), "tau=0.0"),
        (lambda: Greedy(among=Prune()), "among=Prune"),
        (lambda: Screen(0.0), "share=0.0"),
        (lambda: Screen(then=Prune()), "then=Prune"),
        (lambda: Screen(sample=0), "sample=0"),
        (lambda: Screen(confidence=1.0), "confidence=1.0"),
        (lambda: Screen(then=FDR(control="max-t")), "needs the effects of all edges"),
        (lambda: Screen(then=Mass(among=FDR(control="max-t"))), "needs the effects of all edges"),
    ],
)
def test_a_strategy_out_of_range_is_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "weight"}, "baseline"),
        ({"method": "correlation"}, "baseline"),
        ({"select": 0.9}, r"select=0.9: expected Prune"),
        ({"select": Prune}, "expected Prune"),
        ({"select": Screen(), "method": "exact"}, "let it screen by"),
        ({"resamples": -1}, "resamples=-1"),
        ({"resamples": True}, "resamples=True"),
    ],
)
def test_impossible_searches_are_refused_before_any_work(wired, options: dict, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        extract_circuit(*wired, **options, progress=lambda *_: pytest.fail("work was done"))


def test_scores_that_cannot_be_selected_from_are_refused(wired) -> None:
    scores = score_edges(*wired)
    with pytest.raises(CircuitError, match=r"select=Prune.*expected a selection by scores"):
        circuit_from(scores, Prune())
    with pytest.raises(CircuitError, match="baseline 'random'"):
        circuit_from(score_edges(*wired, method="random"))
    vae, pairs, readout = wired
    with pytest.raises(DataError, match="two"):
        extract_circuit(vae, pairs[:1], readout)


def test_pairs_that_do_nothing_have_no_circuit(wired) -> None:
    vae, pairs, readout = wired
    same = Pairs(pairs.base, pairs.base.clone(), factor="f")
    for select in (Prune(), FDR(), Screen(0.2, sample=5)):
        circuit = extract_circuit(vae, same, readout, select=select)
        assert len(circuit) == 0
        assert "by more than rounding" in circuit.graph["left_out"]["pixel[0]"]


def test_pairs_that_share_bases_are_resampled_and_tested_by_base(wired) -> None:
    vae, pairs, readout = wired
    grouped = replace(pairs, groups=torch.arange(30) // 6)  # five clusters: p is 1/16 at least
    nothing = extract_circuit(vae, grouped, readout, select=FDR())
    assert len(nothing) == 0
    assert "few independent pairs" in nothing.graph["selection"]["targets"]["pixel[0]"]["reason"]
    crossed = Pairs.crossed(pairs.base[:6], pairs.source[6:12], factor="f")
    for before, after in pairwise([FDR(), TopK(10), Prune()]):
        one, two = (extract_circuit(vae, crossed, readout, select=s, resamples=3) for s in (before, after))
        assert ("dec[0]", "output[0]") in one.edges
        assert ("dec[0]", "output[0]") in two.edges


# ---------------------------------------------------------------------------------- models that branch
@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("select", [Prune(0.3), TopK(40), Greedy(0.02, among=TopK(25))], ids=repr)
def test_circuits_of_a_model_with_skip_connections_lie_on_its_paths(select, sampled: bool) -> None:
    model = seeded(ResidualVAE(), 1)
    base = images(model, 8) / 2
    eps = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0)) if sampled else None
    pairs, readout = Pairs(base, base + 0.5, factor="f", eps=eps), Region({"top": (slice(0, 4), slice(None))})
    vae = nv.VAE(model, example=base)
    circuit = extract_circuit(vae, pairs, readout, select=select, resamples=0)
    assert circuit.number_of_edges() > 5
    assert all(nx.has_path(circuit, "factor:f", n) and nx.has_path(circuit, n, "readout:top") for n in circuit)
    assert any(circuit.nodes[b]["layer"] - circuit.nodes[a]["layer"] > 1 for a, b in circuit.edges) or isinstance(
        select, Greedy
    )
    score = faithfulness(vae, circuit, pairs, readout, sizes=()).score["top"].value
    note = circuit.graph["selection"]["targets"]["top"]
    if "deviation" in note:
        assert abs(1 - score) <= note["deviation"] + 1e-4
