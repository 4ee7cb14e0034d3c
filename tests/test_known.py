"""VAEs whose circuit is known: the truth against literal hooks; their tasks, readouts, graphs and seeds."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from known_models import CHAIN, GLASS, MASKED, effects_one_by_one, glass

import nnsight_vae as nv
from nnsight_vae.circuits.known import KnownCircuit, Projection, Task, edge_strict, glass_box, masked, random_dag
from nnsight_vae.circuits.known.dags import reached
from nnsight_vae.errors import DataError


def assert_truth_is_what_matters(known: KnownCircuit, layers: list, factor: str) -> None:
    found = effects_one_by_one(known, layers, factor)
    for task in (task for task in known.tasks if task.factor == factor):
        t = known.readout.names.index(task.target)
        matters = {edge for edge, effect in found.items() if effect[t] > 1e-8}
        inner = {e for e in known.truth[task] if not e[0].startswith("factor:") and not e[1].startswith("readout:")}
        assert inner == matters - known.excluded.get(task, frozenset())


@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, "f0"), ({}, "f1"), ({"camouflage": False}, "f0"), ({"dag": CHAIN, "rotation": True}, "f0")],
    ids=["f0", "f1", "plain", "rotated chain"],
)
def test_an_edge_of_a_glass_box_is_true_if_and_only_if_patching_it_does_something(options: dict, factor: str) -> None:
    assert_truth_is_what_matters(glass(**options), GLASS, factor)


def test_the_edges_around_the_groups_are_true_if_and_only_if_patching_them_does_something() -> None:
    layers = [
        (*layer[:2], *((9, 1) if layer[0] == "fc_mu" else (1, 9) if layer[0] == "decoder.2" else (1, 1)))
        for layer in GLASS
    ]
    assert_truth_is_what_matters(glass(groups=True), layers, "f0")


@pytest.mark.parametrize("hidden", [False, True])
def test_an_edge_of_a_masked_model_is_true_if_and_only_if_patching_it_does_something(hidden: bool) -> None:
    assert_truth_is_what_matters(masked(3, dag=CHAIN, hidden=hidden), MASKED, "f0")


@pytest.mark.parametrize("make", [lambda: glass(), lambda: masked(0, factors=2)], ids=["glass", "masked"])
def test_the_true_edges_alone_do_what_the_model_does_and_without_any_one_column_of_them_nothing(make) -> None:
    known = make()
    pairs = known.pairs("f0", 24)
    for task in (task for task in known.tasks if task.factor == "f0"):
        whole = nx.DiGraph(list(known.truth[task]))
        (name,) = [n for n in known.readout.names if n == task.target]
        result = nv.circuits.faithfulness(known.vae, whole, pairs, known.readout)
        assert result.circuit_effect[name] == pytest.approx(result.total_effect[name], rel=1e-4)
        cut = nx.DiGraph([e for e in whole.edges if not e[1].startswith("latent.z[")])
        assert nv.circuits.faithfulness(known.vae, cut, pairs, known.readout).circuit_effect[name] == pytest.approx(
            0, abs=1e-6
        )


def test_ids_are_those_of_score_edges_and_the_ends_are_among_them() -> None:
    for known in (glass(), masked(0, factors=2), edge_strict()):
        for factor in known.factors:
            scores = nv.score_edges(known.vae, known.pairs(factor, 4), known.readout, method="weight")
            edges = set(zip(scores.sources, scores.targets, strict=True))
            for task in (task for task in known.tasks if task.factor == factor):
                assert known.truth[task] | known.excluded.get(task, frozenset()) <= edges
                assert not known.truth[task] & known.excluded.get(task, frozenset())
                assert any(source == f"factor:{factor}" for source, _ in known.truth[task])
                assert any(target == f"readout:{task.target}" for _, target in known.truth[task])


def test_each_factor_has_a_task_for_itself_and_for_all_it_causes() -> None:
    known = glass(dag=CHAIN, rotation=True)
    assert known.tasks == (
        *(Task("f0", f) for f in ("f0", "f1", "f2")),
        Task("f1", "f1"),
        Task("f1", "f2"),
        Task("f2", "f2"),
    )


def test_readouts_give_the_factors_and_pairs_change_one_and_what_it_causes() -> None:
    for known in (glass(dag=CHAIN), edge_strict()):
        for factor in known.factors:
            pairs = known.pairs(factor, 16, 3)
            torch.testing.assert_close(known.readout(pairs.base), pairs.base_factors, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(known.readout(pairs.source), pairs.source_factors, atol=1e-4, rtol=1e-4)
            change = pairs.source_factors - pairs.base_factors
            own = known.factors.index(factor)
            assert (change[:, own] > 0).all()
            moved = {name for i, name in enumerate(known.factors) if change[:, i].abs().max() > 1e-5}
            assert moved == set(reached(known.dag)[factor])
            many = known.pairs(factor, 600, 4).base_factors  # what is set no longer follows what used to cause it
            others = torch.corrcoef(many.T)[
                own, [i for i, f in enumerate(known.factors) if f not in reached(known.dag)[factor]]
            ]
            assert others.abs().max() < 0.15 if len(others) else True


def test_graphs_that_no_decoder_can_hold_are_refused() -> None:
    for graph in (nx.DiGraph(), nx.DiGraph([("a", "b"), ("b", "a")]), nx.path_graph(6, create_using=nx.DiGraph)):
        with pytest.raises(DataError, match="acyclic"):
            masked(0, dag=graph)
    with pytest.raises(DataError, match="acyclic"):
        glass_box(0, dag=nx.DiGraph([("a", "b"), ("b", "a")]))
    with pytest.raises(DataError, match="leak"):
        glass_box(0, leakage=-0.1)


def test_random_graphs_are_acyclic_no_deeper_than_asked_and_as_dense_as_stated() -> None:
    for factors, p, depth in ((5, 0.5, 2), (6, 0.3, 1), (4, 0.8, 3)):
        graphs = [random_dag(factors, p, depth, seed) for seed in range(800)]
        assert all(nx.is_directed_acyclic_graph(g) and nx.dag_longest_path_length(g) <= depth for g in graphs)
        assert all(list(g) == [f"f{k}" for k in range(factors)] for g in graphs)
        counts = np.array([g.number_of_edges() for g in graphs])
        expected = p * factors * (factors - 1) / 2 * depth / (depth + 1)
        assert abs(counts.mean() - expected) < 4 * counts.std() / np.sqrt(len(counts))
        forward = np.mean([(a < b) for g in graphs for a, b in g.edges])
        assert abs(forward - 0.5) < 0.05  # names say nothing about the order


def test_seeds_make_graphs_and_the_ends_of_the_range_are_what_they_should_be() -> None:
    assert set(random_dag(5, 0.5, 2, 3).edges) == set(random_dag(5, 0.5, 2, 3).edges)
    assert len({frozenset(random_dag(5, 0.5, 2, seed).edges) for seed in range(20)}) > 15
    assert not random_dag(5, 0.0, 2).edges
    assert not random_dag(5, 1.0, 0).edges
    assert max(nx.dag_longest_path_length(random_dag(6, 1.0, 3, seed)) for seed in range(20)) == 3
    for wrong in ({"factors": 0}, {"edge_probability": 1.1}, {"depth": -1}):
        with pytest.raises(DataError, match="expected"):
            random_dag(**wrong)


@pytest.mark.parametrize("make", [glass_box, masked])
def test_a_seed_makes_one_model_and_leaves_the_global_generator_alone(make) -> None:
    state = torch.get_rng_state()
    one, two, other = make(5), make(5), make(6)
    assert torch.equal(state, torch.get_rng_state())
    assert one.vae.fingerprint == two.vae.fingerprint != other.vae.fingerprint
    assert one.truth == two.truth
    a, b, c = one.pairs("f0", 4, 1), two.pairs("f0", 4, 1), one.pairs("f0", 4, 2)
    assert torch.equal(a.base, b.base)
    assert torch.equal(a.source, b.source)
    assert not torch.equal(a.base, c.base)
    for wrong in (("f9", 4), ("f0", 0), ("f0", True)):
        with pytest.raises(DataError, match=r"factor|pairs"):
            one.pairs(*wrong)


def test_a_projection_reads_pixels_or_logits() -> None:
    image = torch.tensor([[[[0.5, 0.75]]]])
    weights = torch.tensor([[[[1.0, 2.0]]]])
    assert Projection(("a",), weights)(image).item() == pytest.approx(2.0)
    assert Projection(("a",), weights, torch.tensor([[[0.5, 0.5]]]))(image).item() == pytest.approx(0.5)
    assert Projection(("a",), weights, logits=True)(image).item() == pytest.approx(2 * np.log(3), rel=1e-5)
