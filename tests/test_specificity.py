"""How specific units are for a factor, by hand, and intervals that cover."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from circuits_of_factors import circuit, scored
from scipy.stats import binom

from nnsight_vae.circuits import EdgeScores, specificity
from nnsight_vae.errors import CircuitError, DataError


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
