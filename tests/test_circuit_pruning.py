"""Searches that take edges away: pruning and ACDC against literal runs, edge by edge."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from searched import Edge, side_by_side, tiny, wired, wired_scores
from torch import Tensor, nn
from wired import TRUE_EDGES

import nnsight_vae as nv
from nnsight_vae.circuits import EdgeScores, Greedy, Prune, extract_circuit, score_edges
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.circuits.selection.trials import Trials
from nnsight_vae.errors import ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout

__all__ = ["wired", "wired_scores"]  # fixtures


# ---------------------------------------------------------------------------------- taking edges away
def literal_run(vae: nv.VAE, pairs: Pairs, edges: set[Edge]) -> Tensor:
    """The mean output of the source run in which edges outside the set carry what they carried in the base run, unit by unit."""
    model = vae.module
    layers = [
        ("input", model.enc, "enc"), ("enc", model.fc_mu, "latent.z"), ("latent.z", model.dec, "dec"), ("dec", model.out, "output"),
    ]  # fmt: skip
    base, x = pairs.base, pairs.base.clone()
    for i in range(3):
        if ("factor:f", f"input[{i}]") in edges:
            x[:, i] = pairs.source[:, i]
    for before, layer, after in layers:
        next_base, new = layer(base), layer(base).clone()
        for u in range(x.shape[1]):
            for v in range(new.shape[1]):
                if (f"{before}[{u}]", f"{after}[{v}]") in edges:
                    new[:, v] = new[:, v] + layer.weight[v, u] * (x[:, u] - base[:, u])
        act = model.act if after in ("enc", "dec") else nn.Identity()
        base, x = act(next_base), act(new)
    kept = torch.tensor([(f"output[{i}]", "readout:mean") in edges for i in range(3)])
    return torch.where(kept, x, base).mean(1).detach()


def literal_acdc(vae: nv.VAE, pairs: Pairs, scores: EdgeScores, tau: float) -> set[Edge]:
    """Algorithm 1 of the ACDC paper, with nothing remembered between runs."""
    edges = set(zip(scores.sources, scores.targets, strict=True))
    everything, nothing = literal_run(vae, pairs, edges), literal_run(vae, pairs, set())

    def deviation(kept: set[Edge]) -> float:
        run = literal_run(vae, pairs, kept)
        return float((run - everything).abs().mean() / (everything - nothing).abs().mean())

    strength = dict(zip(zip(scores.sources, scores.targets, strict=True), np.abs(scores.mean()[:, 0]), strict=True))
    names = [node.id for node in scores.nodes]
    for node in reversed(names):
        for edge in sorted((e for e in set(edges) if e[1] == node), key=lambda e: (strength[e], names.index(e[0]))):
            if deviation(edges - {edge}) - deviation(edges) < tau:
                edges.remove(edge)
    graph = nx.DiGraph(list(edges))
    graph.add_nodes_from(["factor:f", "readout:mean"])
    on = (nx.descendants(graph, "factor:f") | {"factor:f"}) & (nx.ancestors(graph, "readout:mean") | {"readout:mean"})
    return {edge for edge in edges if set(edge) <= on}


@pytest.mark.parametrize("tau", [0.005, 0.03, 0.1])
def test_greedy_search_equals_a_literal_acdc(tau: float) -> None:
    vae, pairs, readout = tiny()
    expected = literal_acdc(vae, pairs, score_edges(vae, pairs, readout), tau)
    visits: list[tuple[int, int]] = []
    circuit = extract_circuit(vae, pairs, readout, select=Greedy(tau), progress=lambda *at: visits.append(at))
    assert set(circuit.edges) == expected
    assert 3 < len(expected) < 46
    assert visits[-1] == (46, 46)
    note = circuit.graph["selection"]["targets"]["mean"]
    run, whole, nothing = (
        literal_run(vae, pairs, e) for e in (expected, set(zip(*_ends(vae, pairs, readout), strict=True)), set())
    )
    assert note["deviation"] == pytest.approx(float((run - whole).abs().mean() / (whole - nothing).abs().mean()))
    assert 1 < note["runs"] <= 47


def _ends(vae: nv.VAE, pairs: Pairs, readout: Readout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    scores = score_edges(vae, pairs, readout)
    return scores.sources, scores.targets


def test_an_edge_s_worth_is_what_its_loss_would_change_where_the_model_is_linear() -> None:
    vae, pairs, readout = tiny(linear=True)
    scores = score_edges(vae, pairs, readout)
    ends = list(zip(scores.sources, scores.targets, strict=True))
    trials = Trials(EdgeSets.of(vae, pairs, readout), scores)
    kept, weights = np.random.default_rng(0).random(len(ends)) < 0.8, np.array([1.0, 0.0, 2.0, 1.0, 3.0, 0.0])
    worth = trials.worth(kept, 0, weights)
    now = {ends[e] for e in np.flatnonzero(kept)}
    for e, edge in enumerate(ends):
        lost = (literal_run(vae, pairs, now) - literal_run(vae, pairs, now - {edge})).numpy()
        assert worth[e] == pytest.approx(abs(np.average(lost, weights=weights)), rel=1e-6, abs=1e-9)
    assert (worth[~kept] == 0).all()


def test_the_deviation_is_that_of_the_literal_run_pair_by_pair() -> None:
    vae, pairs, readout = tiny()
    scores = score_edges(vae, pairs, readout)
    ends = list(zip(scores.sources, scores.targets, strict=True))
    trials = Trials(EdgeSets.of(vae, pairs, readout), scores)
    kept, weights = np.random.default_rng(1).random(len(ends)) < 0.7, np.array([1.0, 0.0, 2.0, 1.0, 3.0, 0.0])
    run, whole, nothing = (
        literal_run(vae, pairs, {ends[e] for e in np.flatnonzero(each)}).numpy()
        for each in (kept, np.ones_like(kept), np.zeros_like(kept))
    )
    expected = (weights * np.abs(run - whole)).sum() / (weights * np.abs(whole - nothing)).sum()
    assert trials.deviation(kept, 0, weights) == pytest.approx(expected)
    assert trials.deviation(np.ones_like(kept), 0, weights) == pytest.approx(0.0, abs=1e-12)
    assert trials.deviation(np.zeros_like(kept), 0, weights) == pytest.approx(1.0)


@pytest.mark.parametrize("allowed", [0.05, 0.2, 0.35, 0.5])
def test_pruning_takes_as_much_as_is_allowed(allowed: float) -> None:
    vae, pairs, readout = tiny()
    circuit = extract_circuit(vae, pairs, readout, select=Prune(allowed, step=0.05))
    note = circuit.graph["selection"]["targets"]["mean"]
    scores = score_edges(vae, pairs, readout)
    whole, nothing = (
        literal_run(vae, pairs, set(zip(*_ends(vae, pairs, readout), strict=True))),
        literal_run(vae, pairs, set()),
    )
    deviation = float(
        (literal_run(vae, pairs, set(circuit.edges)) - whole).abs().mean() / (whole - nothing).abs().mean()
    )
    assert note["deviation"] == pytest.approx(deviation)
    assert deviation <= allowed
    assert all(nx.has_path(circuit, "factor:f", n) and nx.has_path(circuit, n, "readout:mean") for n in circuit)
    trials = Trials(EdgeSets.of(vae, pairs, readout), scores)
    ends = list(zip(scores.sources, scores.targets, strict=True))
    kept, everyone = np.array([edge in circuit.edges for edge in ends]), np.ones(6)
    worth = trials.worth(kept, 0, everyone)
    kept[np.where(kept, worth, np.inf).argmin()] = False
    assert trials.deviation(trials.paths.on_paths_to(kept, 0), 0, everyone) > allowed


def test_pruning_keeps_both_routes_of_the_wired_model_until_they_may_go(wired) -> None:
    """Alone, the loss of enc[1] deviates by .4 / 1.4 = .286; that of both routes by 1 - 1 / (1.4 * .72) = .008."""
    for allowed, gone in ((0.28, set()), (0.29, {"enc[1]", "dec[1]"})):
        circuit = extract_circuit(*wired, select=Prune(allowed, step=0.01))
        assert set(circuit.edges) == {edge for edge in TRUE_EDGES if not gone & set(edge)}


def test_what_the_last_step_strands_goes_too() -> None:
    """Four routes of equal worth; two fifths of the effect may go, one route in four is all that fits."""
    scores = side_by_side(np.ones((4, 3)), np.ones(3))
    paths = Paths.of(scores)

    class Routes:
        paths = Paths.of(scores)

        def worth(self, kept: np.ndarray, t: int, weights: np.ndarray) -> np.ndarray:
            return np.where(kept, np.arange(12.0) + 1, 0.0)

        def deviation(self, kept: np.ndarray, t: int, weights: np.ndarray) -> float:
            return 1 - kept.reshape(3, 4).all(axis=0).mean()

    kept, note = Prune(0.4, step=0.5).trim(Routes(), np.ones(12, dtype=bool), 0, np.ones(3))  # type: ignore[arg-type]
    assert kept.reshape(3, 4).tolist() == [[False, True, True, True]] * 3
    assert (note["deviation"], note["looks"]) == (0.25, 1)
    assert (paths.on_paths_to(kept, 0) == kept).all()


def test_what_goes_too_far_in_one_pair_does_not_make_up_for_another() -> None:
    vae, pairs, readout = tiny()
    trials = Trials(EdgeSets.of(vae, pairs, readout), score_edges(vae, pairs, readout))
    both = np.random.default_rng(1).random(46) < 0.7
    alone = [trials.deviation(both, 0, np.eye(6)[i]) for i in range(6)]
    total = np.abs(trials._whole - trials._nothing)[0]
    assert trials.deviation(both, 0, np.ones(6)) == pytest.approx(np.average(alone, weights=total))


def test_a_readout_without_a_gradient_cannot_be_pruned_by_it(wired) -> None:
    class Bright:
        names = ("bright",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return (reconstruction[:, :1] > 0.35).float()

    vae, pairs, _ = wired
    with pytest.raises(ReadoutError, match=r"'bright' has no gradient.*Greedy"):
        extract_circuit(vae, pairs, Bright(), method="exact")
    circuit = extract_circuit(vae, pairs, Bright(), method="exact", select=Greedy(0.05))
    assert {(a, b) for a, b in circuit.edges if b != "readout:bright"} < TRUE_EDGES
    assert len(circuit)
