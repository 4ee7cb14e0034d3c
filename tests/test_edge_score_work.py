"""What scoring edges runs: only what is named, only the layers and pairs an edge changes; and progress."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_edges import HALVES, double, pairs_for
from vaes import ConvVAE, seeded
from wired import wired
from work import rows_run

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.scoring import exact

__all__ = ["wired"]  # fixtures


# ---------------------------------------------------------------------------------- some edges only
@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact", "direction": "both"},
        {"method": "ig"},
        {"method": "eap", "at": "average"},
        {"method": "eap-ig"},
        {"method": "weight"},
        {"method": "correlation"},
        {"method": "random"},
    ],
    ids=lambda options: options["method"],
)
def test_named_edges_score_what_they_score_among_all(options: dict) -> None:
    model = seeded(ConvVAE(), 4).double()
    vae, pairs = nv.VAE(model), double(pairs_for(model, 4))
    whole = score_edges(vae, pairs, HALVES, **options)
    chosen = np.random.default_rng(0).choice(len(whole), 40, replace=False)
    edges = [(whole.sources[i], whole.targets[i]) for i in chosen]
    some = score_edges(vae, pairs, HALVES, edges=edges, **options)
    order = np.sort(chosen)
    assert list(zip(some.sources, some.targets, strict=True)) == [(whole.sources[i], whole.targets[i]) for i in order]
    np.testing.assert_allclose(some.values, whole.values[order], rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(some.cut_of, whole.cut_of[order])
    for name in whole.beside:
        np.testing.assert_allclose(some.beside[name], whole.beside[name][order])
    for part in whole.parts:
        np.testing.assert_allclose(some.parts[part].values, whole.parts[part].values[order], rtol=1e-8, atol=1e-12)


def test_a_cut_of_which_some_edges_are_scored_has_no_completeness(wired) -> None:
    edges = [("factor:f", f"input[{u}]") for u in range(4)] + [("input[0]", "enc[1]")]
    rows = {row.cut: row for row in score_edges(*wired, edges=edges).completeness}
    assert rows["factor:f -> input"].error == pytest.approx(0.0, abs=1e-6)
    assert rows["input -> enc"].error is None
    assert rows["input -> enc"].reason == "1 of its 24 edges were scored"
    assert rows["output -> readout:pixel[0]"].reason == "0 of its 4 edges were scored"


def test_an_interrupted_run_leaves_the_model_alone_and_goes_on_with_the_missing_edges(wired) -> None:
    vae, pairs, readout = wired
    whole, training = score_edges(vae, pairs, readout, method="exact"), vae.module.training

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_edges(vae, pairs, readout, method="exact", progress=interrupt)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.module.modules())
    assert vae.module.training == training
    _, *others = zip(whole.sources, whole.targets, strict=True)
    rest = score_edges(vae, pairs, readout, method="exact", edges=others)
    np.testing.assert_allclose(rest.values, whole.values[1:], atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "ig", "eap", "weight"])
def test_progress_is_told_to_the_end(wired, method: str) -> None:
    calls = []
    scores = score_edges(*wired, method=method, progress=lambda done, total: calls.append((done, total)))
    assert {total for _, total in calls} == {len(scores) * 30}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


# ---------------------------------------------------------------------------------- what exact patching runs
def test_exact_patching_runs_no_layer_above_the_edge_and_of_the_next_only_a_part() -> None:
    model = seeded(ConvVAE(), 3)
    vae, pairs = nv.VAE(model), pairs_for(model, 6)
    edges = [("decoder.2[0]", f"decoder.3[{v}]") for v in range(3)]
    score_edges(vae, pairs, HALVES, method="exact", edges=edges)  # what is tried once a site
    idle = rows_run(model, lambda: score_edges(vae, pairs, HALVES, method="weight"))
    work = rows_run(model, lambda: score_edges(vae, pairs, HALVES, method="exact", edges=edges))
    above = ["encoder.0", "encoder.2", "encoder.5", "fc_mu", "decoder.0"]
    assert {path: work.rows[path] for path in above} == {path: idle.rows[path] for path in above}
    # decoder.3 tells once what arrives from decoder.2[0]; below it only one channel of decoder.5 is seen to change
    assert work.rows["decoder.3"] == idle.rows["decoder.3"] + 6
    assert work.rows["decoder.5"] == idle.rows["decoder.5"]
    assert 0 < work.partial["decoder.5"] <= 3 * 6


def test_pairs_that_an_edge_does_not_change_are_not_run() -> None:
    model = seeded(ConvVAE(), 3)
    vae, pairs = nv.VAE(model), pairs_for(model, 6)
    pairs = replace(pairs, source=torch.cat([pairs.base[:4], pairs.source[4:]]))
    run = {"method": "exact", "edges": [("input[0]", f"encoder.0[{v}]") for v in range(4)]}
    score_edges(vae, pairs, HALVES, **run)
    idle = rows_run(model, lambda: score_edges(vae, pairs, HALVES, method="weight"))
    work = rows_run(model, lambda: score_edges(vae, pairs, HALVES, **run))
    assert 0 < work.rows["decoder.3"] - idle.rows["decoder.3"] <= 2 * 4


def test_edges_are_patched_few_at_a_time_to_the_same_scores(wired, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = score_edges(*wired, method="exact").values
    plans = []
    of = exact.Group.of
    monkeypatch.setattr(exact.Group, "of", lambda *args: plans.append(len(args[3])) or of(*args))
    assert max(plans, default=0) == 0
    score_edges(*wired, method="exact")
    together, plans[:] = max(plans), []
    monkeypatch.setattr(exact, "CHUNK_BYTES", 1)
    np.testing.assert_allclose(score_edges(*wired, method="exact").values, scores, atol=1e-6)
    assert max(plans) == 6  # the edges of one source at a time: input unit -> six hidden ones
    assert together == 24
