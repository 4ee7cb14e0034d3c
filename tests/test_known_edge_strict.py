"""The edge-strict model: what it shows, what it leaks, and the record of how it was made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnsight_vae.circuits import FDR, score_edges
from nnsight_vae.circuits.known import (
    benchmark,
    build_edge_strict,
    edge_strict,
    edge_strict_training,
    edge_strict_world,
)
from nnsight_vae.circuits.known.edge_strict import record
from nnsight_vae.circuits.selection.evidence import Evidence
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.errors import CircuitError


def test_the_edge_strict_model_shows_what_it_sees_and_lets_latents_be_exchanged() -> None:
    known, generator = edge_strict(), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, 3, generator=generator)
    images = [edge_strict_world.render(edge_strict_world.factors_from(u)) for u in noise]
    module = known.vae.module
    with torch.no_grad():
        latents = [module.encode(x)[0] for x in images]
        shown = known.readout(module.decode(latents[0]))
        assert (shown - edge_strict_world.factors_from(noise[0])).square().mean() < 0.02
        for k in range(3):
            z, mixed = latents[0].clone(), noise[0].clone()
            z[:, k], mixed[:, k] = latents[1][:, k], noise[1][:, k]
            error = known.readout(module.decode(z)) - edge_strict_world.factors_from(mixed)
            assert error.square().mean() < 0.03
        z = latents[0].clone()
        z[:, 3] = latents[1][:, 3]
        assert (known.readout(module.decode(z)) - shown).abs().mean() < 0.02


def test_the_record_says_how_it_was_made_and_what_it_leaks() -> None:
    made = record()
    assert set(made["leakage"]) == {" -> ".join(task) for task in edge_strict().tasks}
    assert 0 < max(made["leakage"].values()) < made["leakage_bound"] == build_edge_strict.LEAKAGE_BOUND
    assert build_edge_strict.__name__ in made["command"]
    assert f"--seed {made['seed']} --steps {made['steps']}" in made["command"]
    assert made["steps"] == edge_strict_training.STEPS
    (known,) = [edge_strict()]
    assert sum(map(len, made["circuit"])) == 376
    assert [len(known.truth[task]) for task in known.tasks] == [126, 194, 126, 126]
    assert [len(known.excluded.get(task, ())) for task in known.tasks] == [0, 5, 0, 0]


def test_what_is_left_undecided_is_read_from_a_latent_that_should_not_move() -> None:
    known = edge_strict()
    pairs = known.pairs("f0", 64)
    with torch.no_grad():
        change = (known.vae.module.encode(pairs.source)[0] - known.vae.module.encode(pairs.base)[0]).abs().mean(0)
    (sources,) = {frozenset(source for source, _ in edges) for edges in known.excluded.values()}
    assert sources == {"latent.z[1]"}
    assert change[1] < 0.2 * change[0]


def test_its_weights_are_not_sparse_so_the_circuit_is_a_matter_of_effects() -> None:
    weights = torch.cat(
        [w.flatten() for name, w in edge_strict().vae.module.named_parameters() if w.ndim == 2 and "logvar" not in name]
    )
    assert (weights == 0).float().mean() == 0


def test_a_model_that_leaks_is_not_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build_edge_strict, "_PAIRS", 6)
    state = torch.get_rng_state()
    with pytest.raises(CircuitError, match="nothing was written"):
        build_edge_strict.build(tmp_path / "a.safetensors", tmp_path / "a.json", steps=3)
    assert not list(tmp_path.iterdir())
    one, two, other = (edge_strict_training.train(seed, 4) for seed in (1, 1, 2))
    assert torch.equal(one.fc_mu.weight, two.fc_mu.weight)
    assert not torch.equal(one.fc_mu.weight, other.fc_mu.weight)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("min_share", "recall"), [(0.01, 0.4), (max(record()["leakage"].values()), 0.2)])
def test_above_its_leakage_no_edge_outside_the_circuit_is_selected(min_share: float, recall: float) -> None:
    rows = benchmark(("ig",), ("edge-strict",), (0, 1), min_share=min_share).rows
    whole = [row for row in rows if row.cut == "all"]
    assert len(whole) == 8
    assert all(row.fdr <= 0.05 for row in whole)
    assert np.mean([row.recall for row in whole]) > recall


@pytest.mark.slow
def test_what_is_selected_outside_the_circuit_does_carry_more_than_the_share_tested() -> None:
    known, outside, null = edge_strict(), [], []
    for factor in known.factors:
        everyone = score_edges(known.vae, known.pairs(factor, 384, 77), known.readout)
        for seed in range(4):
            scores = score_edges(known.vae, known.pairs(factor, 64, 500 + seed), known.readout)
            passed = FDR(0.05, min_share=0.001).passed(Evidence(scores, Paths.of(scores), len(scores)))
            for task in (task for task in known.tasks if task.factor == factor):
                t = scores.readouts.index(task.target)
                true = [edge in known.truth[task] for edge in zip(scores.sources, scores.targets, strict=True)]
                outside.append((passed[:, t] & ~np.array(true)).sum() / passed[:, t].sum())
                small = np.abs(everyone.mean()[:, t]) <= 0.001 * abs(everyone.total[t].mean())
                null.append((passed[:, t] & small).sum() / passed[:, t].sum())
    assert np.mean(outside) > 0.1  # the wiring calls them false
    assert np.mean(null) <= 0.01  # other pairs say that they are there


@pytest.mark.slow
def test_what_it_leaks_on_other_pairs_is_under_the_bound() -> None:
    known = edge_strict()
    other = replace(known, draw=lambda factor, n, seed: known.draw(factor, n, seed + 1))
    assert max(build_edge_strict.leakage(other).values()) < build_edge_strict.LEAKAGE_BOUND
