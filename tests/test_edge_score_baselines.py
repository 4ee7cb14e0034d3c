"""Baselines beside edge scores: weights, correlations and chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from literal_edges import HALVES, Literal, by_edge, pairs_for
from scipy.stats import spearmanr
from vaes import ConvVAE, seeded
from wired import WiredVAE, wired

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.scoring import baselines
from nnsight_vae.errors import CircuitError

__all__ = ["wired"]  # fixtures


def test_correlation_is_that_of_mean_activity_over_both_runs(wired) -> None:
    vae, pairs, readout = wired
    scores = {edge: v[0, 0] for edge, v in by_edge(score_edges(vae, pairs, readout, method="correlation")).items()}
    x = torch.cat([pairs.base, pairs.source])
    with torch.no_grad():
        enc = WiredVAE().enc(x)
        z = WiredVAE().fc_mu(torch.relu(enc))
        out = vae(x)
    is_source = np.repeat([0.0, 1.0], 30)
    expected = {
        ("factor:f", "input[0]"): (is_source, x[:, 0]),
        ("input[0]", "enc[2]"): (x[:, 0], enc[:, 2]),
        ("input[1]", "enc[0]"): (x[:, 1], enc[:, 0]),
        ("enc[5]", "latent.z[1]"): (torch.relu(enc[:, 5]), z[:, 1]),
        ("output[0]", "readout:pixel[0]"): (out[:, 0], out[:, 0]),
    }
    for edge, (one, other) in expected.items():
        assert scores[edge] == pytest.approx(abs(np.corrcoef(np.asarray(one), np.asarray(other))[0, 1]), abs=1e-5)
    assert scores["enc[3]", "latent.z[0]"] == 0.0  # a closed gate does not vary


def test_correlation_of_channels_is_that_of_their_means() -> None:
    model = seeded(ConvVAE(), 2)
    vae, pairs = nv.VAE(model), pairs_for(model, 6)
    scores = by_edge(score_edges(vae, pairs, HALVES, method="correlation"))
    literal = Literal(model, pairs, HALVES)
    taken, given = (
        torch.cat(side)
        for side in zip(*(literal.taken_and_given(x, "encoder.2") for x in (pairs.base, pairs.source)), strict=True)
    )
    one, other = taken.mean((2, 3))[:, 1], given.mean((2, 3))[:, 4]
    assert scores["encoder.0[1]", "encoder.2[4]"][0, 0] == pytest.approx(abs(np.corrcoef(one, other)[0, 1]), abs=1e-4)


def test_what_varies_by_rounding_alone_correlates_with_nothing() -> None:
    activity = torch.stack([torch.full((7,), 0.1), torch.arange(7.0), torch.zeros(7)], dim=1)
    activity[3, 0] += 1e-9
    chunks = [activity.double()[:3], activity.double()[3:]]
    unit = torch.cat(baselines._standardised([[rows[:, :1], rows[:, 1:]] for rows in chunks]), dim=1)
    assert unit.shape == (7, 3)
    assert not unit[:, [0, 2]].any()
    torch.testing.assert_close(unit[:, 1].norm(), torch.tensor(1.0, dtype=torch.float64))


def test_baselines_are_beside_every_method_and_told_in_ranks(wired) -> None:
    scores = score_edges(*wired)
    for name in ("weight", "correlation"):
        alone = score_edges(*wired, method=name)
        np.testing.assert_allclose(scores.beside[name], alone.mean(), rtol=1e-6)
    rows = {(row.cut, row.baseline): row for row in scores.baselines(top=0.25)}
    cut = np.array(scores.cut_of) == 1
    strength = np.abs(scores.mean()[cut, 0])
    row = rows["input -> enc", "weight"]
    assert row.spearman == pytest.approx(spearmanr(strength, scores.beside["weight"][cut, 0])[0])
    assert row.top == 6
    top = set(np.argsort(-scores.beside["weight"][cut, 0], kind="stable")[:6])
    assert row.found == pytest.approx(expected_share(strength, top, 6), abs=0.01)
    everything = np.abs(scores.mean()[:, 0])
    assert rows["all", "weight"].spearman == pytest.approx(spearmanr(everything, scores.beside["weight"][:, 0])[0])
    assert rows["input -> enc", "random"][3:6] == (0.0, 6, 0.25)
    assert rows["factor:f -> input", "weight"].spearman is None
    assert "same for all edges" in rows["factor:f -> input", "weight"].reason
    with pytest.raises(CircuitError, match="top=0"):
        scores.baselines(top=0)


def expected_share(strength: np.ndarray, others: set[int], k: int) -> float:
    """Mean share of the k strongest in another set, over random orders of ties."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        order = np.lexsort((rng.random(len(strength)), -strength))
        found.append(len(others & set(order[:k])) / k)
    return float(np.mean(found))
