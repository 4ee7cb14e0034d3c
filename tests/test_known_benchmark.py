"""The benchmark on known circuits: methods against the truth, and its scores against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_models import glass
from typer.testing import CliRunner

import nnsight_vae as nv
from nnsight_vae.circuits.known import Task, benchmark
from nnsight_vae.circuits.known.benchmark import ALL, judged
from nnsight_vae.cli import app
from nnsight_vae.errors import CircuitError


def assert_held(table, model: str, auroc: float, ap: float, methods: tuple[str, ...]) -> None:
    for method in methods:
        row = table.loc[(model, method)]
        assert row.auroc_min >= auroc - 1e-9
        assert row.ap_min >= ap - 1e-9
    assert table.loc[(model, "weight"), "ap"] < 0.35
    assert table.loc[(model, "weight"), "auroc_min"] < 0.85


def test_gradients_find_every_edge_of_a_camouflaged_glass_box_and_weights_are_fooled() -> None:
    assert_held(
        benchmark(("eap", "ig", "weight"), ("glass-box",), pairs=24).summary(), "glass-box", 1, 1, ("eap", "ig")
    )


def test_ig_finds_the_edges_of_a_masked_model_and_selects_no_false_ones() -> None:
    result = benchmark(("ig", "weight"), ("masked",), pairs=32)
    assert_held(result.summary(), "masked", 0.98, 0.95, ("ig",))
    chosen = [row for row in result.rows if row.method == "ig" and row.cut == ALL]
    assert all(row.fdr <= 0.05 for row in chosen)
    assert np.mean([row.recall for row in chosen]) > 0.4


def test_ig_finds_the_edges_of_the_edge_strict_model() -> None:
    assert_held(benchmark(("ig", "weight"), ("edge-strict",), pairs=32).summary(), "edge-strict", 0.95, 0.90, ("ig",))


@pytest.mark.slow
def test_five_glass_boxes() -> None:
    table = benchmark(("exact", "ig", "eap", "weight"), ("glass-box",), range(5), pairs=48).summary()
    assert_held(table, "glass-box", 1, 1, ("exact", "ig", "eap"))


@pytest.mark.slow
def test_five_masked_models_and_the_edge_strict_one() -> None:
    result = benchmark(("exact", "ig", "weight"), ("masked",), range(5), pairs=48)
    assert_held(result.summary(), "masked", 0.98, 0.95, ("exact", "ig"))
    assert all(row.fdr <= 0.05 for row in result.rows if row.fdr is not None)
    table = benchmark(("exact", "weight"), ("edge-strict",)).summary()
    assert_held(table, "edge-strict", 0.95, 0.90, ("exact",))


def test_rows_are_what_counting_by_hand_gives() -> None:
    known = glass()
    scores = nv.score_edges(known.vae, known.pairs("f0", 24), known.readout, method="ig")
    edges = list(zip(scores.sources, scores.targets, strict=True))
    true = np.array([edge in known.truth["f0", "f1"] for edge in edges])
    order = np.random.default_rng(0).normal(size=len(edges)) + 1.5 * true
    values = np.repeat(order[:, None, None], len(scores.readouts), 1) * np.ones((1, 1, 24), np.float32)
    left_out = frozenset(edges[i] for i in np.flatnonzero(true)[:3]) | frozenset(
        edges[i] for i in np.flatnonzero(~true)[:5]
    )
    judge = replace(known, excluded={Task("f0", "f1"): left_out})
    rows = [r for r in judged(judge, replace(scores, values=values), "f0") if r.target == "f1"]
    assert [r.cut for r in rows] == [ALL, *scores.cuts]
    judged_edges = scores.applies[:, 1] & np.array([edge not in left_out for edge in edges])
    for row in rows:
        here = judged_edges & (
            np.ones(len(edges), bool) if row.cut == ALL else scores.cut_of == scores.cuts.index(row.cut)
        )
        size, label = np.abs(order[here]), true[here]
        assert (row.n_edges, row.n_true) == (here.sum(), label.sum())
        if row.auroc is None:
            assert label.all() or not label.any()
            continue
        above = size[label][:, None] > size[~label][None]
        assert row.auroc == pytest.approx(above.mean())
        ranked = label[np.argsort(-size)]
        precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
        assert row.ap == pytest.approx(precision[ranked].mean())
        assert (row.fdr is None) == (row.cut != ALL)


def test_selection_is_compared_with_the_truth_and_cut_errors_are_the_worst() -> None:
    known = glass()
    scores = nv.score_edges(known.vae, known.pairs("f2", 48), known.readout, method="eap")
    circuit = nv.circuits.circuit_from(scores, nv.circuits.FDR(0.05), resamples=0)
    found = {(a, b) for a, b, data in circuit.edges(data=True) if "f2" in data["effects"]}
    (row,) = [r for r in judged(known, scores, "f2") if r.cut == ALL]
    true = known.truth["f2", "f2"]
    assert row.recall == pytest.approx(len(found & true) / len(true))
    assert row.recall > 0.9
    assert row.shd == len(found ^ true)
    assert row.fdr == len(found - true) / len(found) == 0
    lied = replace(known, truth={Task("f2", "f2"): frozenset(list(true)[:10])})
    (row,) = [r for r in judged(lied, scores, "f2") if r.cut == ALL]
    assert row.fdr == pytest.approx(len(found - lied.truth["f2", "f2"]) / len(found))
    assert row.fdr > 0.5
    more = true | set(zip(scores.sources[:20], scores.targets[:20], strict=True))
    (row,) = [r for r in judged(replace(known, truth={Task("f2", "f2"): more}), scores, "f2") if r.cut == ALL]
    assert row.shd == len(found ^ more) > 10
    assert row.cut_error == pytest.approx(max(c.error for c in scores.completeness if c.readout == "f2"))


def test_the_benchmark_says_what_it_does_not_know_and_counts_its_steps() -> None:
    for wrong in ({"methods": ("eap", "magic")}, {"models": ("glassbox",)}, {"models": ()}):
        with pytest.raises(CircuitError, match="expected some of"):
            benchmark(**wrong)
    steps = []
    result = benchmark(("weight", "random"), ("edge-strict",), (0, 1), pairs=2, progress=lambda *s: steps.append(s))
    assert steps == [(i, 12) for i in range(1, 13)]
    frame = result.to_frame()
    assert set(frame.method) == {"weight", "random"}
    assert set(frame.seed) == {0, 1}
    assert len(frame) == 2 * 2 * 4 * 9
    assert frame[frame.method == "weight"].fdr.isna().all()
    assert "edge-strict" in repr(result)


def test_the_command_prints_a_table_and_writes_every_row(tmp_path) -> None:
    out = tmp_path / "rows.csv"
    arguments = [
        "circuits-benchmark",
        "--models",
        "edge-strict",
        "--methods",
        "weight,eap",
        "--pairs",
        "8",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "edge-strict" in result.output
    assert "weight" in result.output
    assert "…" not in result.output  # whole at 80 columns
    assert "method" in result.output
    assert len(out.read_text().splitlines()) == 1 + 2 * 4 * 9
    assert CliRunner().invoke(app, ["circuits-benchmark", "--models", "nothing"]).exit_code == 2
