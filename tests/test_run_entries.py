"""Rows that enter one run at different places get what they would in runs of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from branching_vaes import SkipVAE
from torch import Tensor
from vaes import all_vaes, images, seeded, wrapped_with_pairs

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.scoring import gradients
from nnsight_vae.circuits.scoring.entering import Entry, run_entries
from nnsight_vae.runs import clean_run, run_from, start_for

PLACES = {
    "conv": ("tap_input", "model.encoder.0", "model.encoder.5", "latent.z", "model.decoder.0", "model.decoder.5"),
    "mlp": ("model.enc1", "model.enc2", "model.heads", "model.dec1", "model.dec2"),
    "batchnorm": ("tap_input", "model.encoder.1", "model.decoder.3", "model.decoder.6"),
    "residual": ("model.stem", "model.block.first", "model.block.second", "model.refine.first", "model.out"),
    "skip": ("tap_input", "tap_input", "model.down1", "model.fc_mu", "model.up1", "model.up2", "model.out"),
}
MODELS = all_vaes() | {"skip": seeded(SkipVAE())}


def flat(out: Tensor) -> Tensor:
    return out.flatten(1)


@pytest.mark.parametrize("noisy", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("name", PLACES)
def test_rows_that_enter_one_run_at_different_places_get_what_they_would_in_runs_of_their_own(name: str, noisy: bool):
    vae, pairs = wrapped_with_pairs(MODELS[name], 3)
    with torch.no_grad():
        clean, other = (clean_run(vae, x, pairs.eps if noisy else None) for x in (pairs.base, pairs.source))

        def entry(copies: int, *paths: str) -> Entry:
            values = {
                path: copies * other.outputs[path].repeat(copies, *[1] * (other.outputs[path].ndim - 1))
                for path in paths
            }
            return Entry(start_for(vae, clean.x, paths[0]), values)

        *single, late, latest = PLACES[name]
        entries = [entry(1, single[0], latest), *(entry(1 + i % 2, path) for i, path in enumerate(single))]
        entries += [entry(1, late, latest), entry(2, latest)]
        together = run_entries(clean, entries, flat).split([entry.rows for entry in entries])
        for entered, rows in zip(entries, together, strict=True):
            writes = {path: lambda _, value=value: value for path, value in entered.values.items()}
            alone = run_from(clean, entered.start, torch.arange(3).repeat(entered.rows // 3), writes, flat)
            torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-5)
            assert not torch.allclose(rows[:3], flat(clean.at("output")), atol=1e-3)


@pytest.mark.parametrize(("rows", "runs"), [(3, 16), (6, 8), (15, 4), (47, 2), (48, 1)])
def test_levels_run_together_as_far_as_their_rows_fit(monkeypatch, rows: int, runs: int) -> None:
    model = all_vaes()["conv"]
    vae, pairs = nv.VAE(model), nv.Pairs(images(model, 3), images(model, 3, seed=1), factor="f")
    readout = nv.readouts.Region({"left": (slice(None), slice(0, 8))})
    expected = score_edges(vae, pairs, readout, nodes=4).values  # 8 levels, with 2 inner nodes of 3 pairs each
    counted = []

    def counting(clean, entries, *rest):
        counted.append(sum(entry.rows for entry in entries))
        return run_entries(clean, entries, *rest)

    monkeypatch.setattr(gradients, "run_entries", counting)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)
    monkeypatch.setattr(engine, "MIN_ROWS", rows)
    got = score_edges(vae, pairs, readout, nodes=4).values
    assert (sum(counted), len(counted)) == (48, runs)
    assert max(counted) <= rows
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())
