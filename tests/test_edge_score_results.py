"""What edge scores say of themselves: tables, estimands, parts and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_edges import SmoothVAE, by_edge, pairs_for
from vaes import seeded
from wired import wired

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.errors import DataError
from nnsight_vae.readouts import Pixels

__all__ = ["wired"]  # fixtures


def test_the_table_has_one_row_per_edge_and_target_it_can_reach(wired) -> None:
    vae, pairs, _ = wired
    scores = score_edges(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[2]"]])
    frame = scores.to_frame()
    assert list(frame.columns[:7]) == ["source", "target", "readout", "effect", "ci_low", "ci_high", "estimand"]
    into = frame[frame.target.str.startswith("readout:")]
    assert set(into.target.str.removeprefix("readout:") == into.readout) == {True}
    assert len(into) == 2 * 4
    row = frame[(frame.source == "latent.z[0]") & (frame.target == "dec[4]") & (frame.readout == "pixel[2]")].iloc[0]
    assert 0 < row.ci_low < row.effect < row.ci_high
    calls = []
    score_edges(vae, pairs, Pixels((4,)), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("method", ["exact", "ig", "eap", "eap-ig", "weight", "correlation", "random"])
def test_an_edge_into_one_target_is_0_on_the_others_and_only_there(wired, method: str) -> None:
    vae, pairs, _ = wired
    scores = score_edges(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[1]"]], method=method)
    assert not scores.values[~scores.applies].any()
    ends = by_edge(scores)
    assert ends["output[0]", "readout:pixel[0]"][0].all()
    assert ends["output[1]", "readout:pixel[1]"][1].all()


def test_every_method_says_what_it_estimates(wired) -> None:
    labels = {
        score_edges(*wired, **options).estimand
        for options in (
            {},
            {"method": "exact"},
            {"method": "exact", "direction": "denoising"},
            {"method": "exact", "direction": "both"},
            {"method": "eap"},
            {"method": "eap", "at": "source"},
            {"method": "eap", "at": "average"},
            {"method": "eap-ig"},
            {"method": "correlation"},
        )
    }
    assert labels == {
        "TE share (layer path integral)", "PNIE (noising)", "TNIE (denoising)", "mean of PNIE and TNIE", "PNIE (first order)",
        "TNIE (first order)", "mean of PNIE and TNIE (first order)", "TE share (path integral over inputs)", "none (baseline)",
    }  # fmt: skip


def test_a_mean_of_two_keeps_both() -> None:
    model = seeded(SmoothVAE())
    vae, pairs, readout = nv.VAE(model), pairs_for(model, 4), Pixels((12,))["pixel[3]"]
    both = score_edges(vae, pairs, readout, method="exact", direction="both")
    for direction, part in both.parts.items():
        alone = score_edges(vae, pairs, readout, method="exact", direction=direction)
        np.testing.assert_array_equal(part.values, alone.values)
        assert part.estimand == alone.estimand
    assert list(both.parts) == ["noising", "denoising"]
    assert list(score_edges(vae, pairs, readout, method="eap", at="average").parts) == ["base", "source"]


@pytest.mark.parametrize("options", [{}, {"method": "exact", "direction": "both", "edges": [("input[0]", "enc[1]")]}])
def test_scores_survive_their_file(wired, tmp_path, options: dict) -> None:
    vae, pairs, readout = wired
    pairs = replace(pairs, groups=torch.arange(30) // 2)
    scores = score_edges(vae, pairs, readout, **options)
    scores.save(tmp_path / "scores.npz")
    again = EdgeScores.load(tmp_path / "scores.npz")
    for name in EdgeScores.__dataclass_fields__:
        if name not in ("parts", "beside"):
            one, other = getattr(scores, name), getattr(again, name)
            assert type(one) is type(other)
            np.testing.assert_array_equal(np.asarray(one, dtype=object), np.asarray(other, dtype=object), name)
    for name, array in scores.beside.items():
        np.testing.assert_array_equal(again.beside[name], array)
    assert again.parts.keys() == scores.parts.keys()
    for name, part in scores.parts.items():
        np.testing.assert_array_equal(again.parts[name].values, part.values)
    assert repr(again) == repr(scores)
    assert again.completeness == scores.completeness


def test_files_that_are_no_edge_scores_are_refused(wired, tmp_path) -> None:
    with pytest.raises(DataError, match=r"nnsight-vae/edge-scores@1"):
        EdgeScores.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", header=np.array('{"schema": "nnsight-vae/effects@2"}'))
    with pytest.raises(DataError, match=r"schema 'nnsight-vae/effects@2'"):
        EdgeScores.load(tmp_path / "other.npz")
