"""What circuits are not made of, and what is not evaluated: values that are not finite, graphs of another kind, part of the edges."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from wired import TRUE_EDGES, true_circuit, wired

from nnsight_vae.circuits import FDR, circuit_from, faithfulness, hypothesis_tests, knockouts, score_edges
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.errors import CircuitError, ReadoutError

__all__ = ["true_circuit", "wired"]  # fixtures


class Root:
    """The square root of a pixel: NaN wherever the pixel is negative, as with every edge at rest."""

    names = ("root",)
    reads = "output"

    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, reconstruction: torch.Tensor, /) -> torch.Tensor:
        return (reconstruction[:, :1] - self.least).sqrt()


def test_a_run_in_which_the_readout_is_not_finite_is_refused_and_not_taken_for_no_effect(wired) -> None:
    vae, pairs, readout = wired
    readings = EdgeSets.of(vae, pairs, readout).read([])
    least = {"the source run": readings.whole[0, 0] + 1e-3, "the run with no edge": readings.nothing[0].min() + 1e-3}
    assert least["the run with no edge"] < readings.whole.min()
    for run, value in least.items():
        with pytest.raises(ReadoutError, match=f"'root' is NaN or infinite for {run} on pair"):
            faithfulness(vae, nx.DiGraph(), pairs, Root(value))
    assert faithfulness(vae, nx.DiGraph(), pairs, Root(-1e3)).total.all()


@pytest.mark.parametrize("evaluate", [faithfulness, hypothesis_tests, knockouts])
def test_a_graph_with_parallel_edges_is_no_circuit(wired, true_circuit, evaluate) -> None:
    vae, pairs, readout = wired
    with pytest.raises(CircuitError, match=r"expected a circuit \(networkx.DiGraph"):
        evaluate(vae, nx.MultiDiGraph(true_circuit), pairs, readout)


def test_a_total_effect_that_is_not_finite_leaves_its_target_out_with_the_reason(wired) -> None:
    scores = score_edges(*wired)
    scores.total[0, 3] = np.nan
    circuit = circuit_from(scores, FDR(), resamples=0)
    assert len(circuit) == 0
    assert circuit.graph["left_out"] == {"pixel[0]": "its total effect is NaN or infinite in some pair"}


def test_edges_that_were_not_scored_count_as_tests_and_as_edges_of_the_model(wired) -> None:
    vae, pairs, readout = wired
    everything = circuit_from(score_edges(vae, pairs, readout), FDR(), resamples=0)
    some = circuit_from(score_edges(vae, pairs, readout, edges=sorted(TRUE_EDGES)), FDR(), resamples=0)
    assert set(some.edges) == TRUE_EDGES
    assert some.graph["n_candidates"] == everything.graph["n_candidates"] == 74
    assert some.graph["selection"]["n_tests"] == 74


def test_only_scores_of_edges_are_selected_from() -> None:
    with pytest.raises(CircuitError, match="expected the EdgeScores of score_edges, got dict"):
        circuit_from({}, FDR())  # type: ignore[arg-type]


def test_sizes_of_a_curve_may_be_an_array(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    result = faithfulness(vae, true_circuit, pairs, readout, sizes=np.array([2, 5]))
    assert result.sizes == (2, 5)
    assert all(type(size) is int for size in result.sizes)
