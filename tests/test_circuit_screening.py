"""Screen, then verify: exact effects, and bounds on what was missed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, hypergeom
from searched import side_by_side, wired, wired_scores
from vaes import ConvVAE, images, seeded
from wired import TRUE_EDGES

import nnsight_vae as nv
from nnsight_vae.circuits import FDR, Screen, TopK, extract_circuit, score_edges
from nnsight_vae.circuits.selection.missed import missed_at_most
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout, Region

__all__ = ["wired", "wired_scores"]  # fixtures


# ---------------------------------------------------------------------------------- screening
@pytest.mark.parametrize(("n", "sampled", "confidence"), [(30, 10, 0.9), (47, 12, 0.95), (25, 25, 0.95), (40, 1, 0.8)])
def test_the_bound_on_what_was_missed_covers_every_truth(n: int, sampled: int, confidence: float) -> None:
    for hits in range(n + 1):
        seen = np.arange(max(0, hits - (n - sampled)), min(hits, sampled) + 1)
        covers = np.array([hits - x <= missed_at_most(n, sampled, int(x), confidence) for x in seen])
        chance = hypergeom.pmf(seen, n, hits, sampled)
        assert chance[covers].sum() >= confidence - 1e-9
    assert missed_at_most(n, sampled, 0, confidence) <= n - sampled


def test_the_bound_becomes_clopper_pearson_where_there_is_no_end_of_edges() -> None:
    for hits in (0, 1, 7):
        share = (missed_at_most(2_000_000, 100, hits, 0.95) + hits) / 2_000_000
        assert share == pytest.approx(beta.ppf(0.95, hits + 1, 100 - hits), rel=1e-3)


def test_the_bounds_of_a_screen_are_about_what_was_never_patched() -> None:
    screened, sampled = np.array([0.9, 0.5, 0.45, 0.4]), np.array([0.6, 0.45, 0.1])
    note = Screen(0.1, confidence=0.9).bounds(screened, sampled, np.array([True, False, False, True]), 50)
    assert note == {
        "n_screened": 4, "n_sampled": 3, "n_never_patched": 43, "confidence": 0.9, "weakest": 0.4,
        "sampled_above": 2, "missed_above": missed_at_most(46, 3, 2, 0.9),
        "largest_sampled": 0.6, "missed_above_largest": missed_at_most(46, 3, 0, 0.9),
    }  # fmt: skip
    none = Screen().bounds(screened, sampled, np.zeros(4, dtype=bool), 50)
    assert (none["weakest"], none["sampled_above"], none["missed_above"]) == (None, None, None)
    everything = Screen(1.0).bounds(screened, np.zeros(0), np.ones(4, dtype=bool), 4)
    assert (everything["largest_sampled"], everything["missed_above"], everything["missed_above_largest"]) == (
        None,
        0,
        0,
    )


def conv_case() -> tuple[nv.VAE, Pairs, Readout]:
    model = seeded(ConvVAE(), 5)
    pairs = Pairs(images(model, 8) / 2, images(model, 8) / 2 + 0.5, factor="f")
    return nv.VAE(model), pairs, Region({"top": (slice(0, 8), slice(None))})


def test_a_screen_s_effects_are_exact_and_what_it_missed_is_within_its_bounds() -> None:
    vae, pairs, readout = conv_case()
    exact = score_edges(vae, pairs, readout, method="exact")
    effect = dict(zip(zip(exact.sources, exact.targets, strict=True), exact.mean()[:, 0], strict=True))
    attributed, broken = score_edges(vae, pairs, readout, method="eap"), 0
    for seed in range(3):
        select = Screen(0.1, TopK(60, among=FDR(0.5, 0.0)), sample=30, confidence=0.9)
        circuit = extract_circuit(vae, pairs, readout, select=select, seed=seed, method="eap", resamples=0)
        note = circuit.graph["selection"]["targets"]["top"]
        for a, b, data in circuit.edges(data=True):
            assert data["effect"] == pytest.approx(effect[a, b], rel=1e-3, abs=1e-6)
        assert (circuit.graph["method"], circuit.graph["n_candidates"]) == ("exact", len(exact))
        screened, sampled = select.chosen(attributed, seed)
        assert (note["n_screened"], note["n_sampled"]) == (len(screened), len(sampled))
        assert not set(screened) & set(sampled)
        rest = np.setdiff1d(np.arange(len(exact)), np.concatenate([screened, sampled]))
        assert note["n_never_patched"] == len(rest)
        size = np.abs(exact.mean()[:, 0])
        assert note["largest_sampled"] == pytest.approx(size[sampled].max(), rel=1e-3)
        broken += (size[rest] > note["largest_sampled"]).sum() > note["missed_above_largest"]
        if note["weakest"] is not None:
            assert note["sampled_above"] == (size[sampled] > note["weakest"]).sum()
            broken += (size[rest] > note["weakest"]).sum() > note["missed_above"]
    assert broken <= 1


def test_a_screen_takes_what_is_largest_anywhere_and_what_is_largest_in_its_cut() -> None:
    rng = np.random.default_rng(7)
    scores = side_by_side(0.01 * rng.random((20, 4)), np.ones(4))
    attributed = replace(scores, values=scores.values * np.linspace(1, 2, 60)[:, None, None])
    screened, sampled = Screen(0.2, sample=7).chosen(attributed, 0)
    size = np.abs(attributed.mean()[:, 0])
    assert len(screened) == 12
    assert size.argmax() in screened  # of all; those of the middle cut are a hundredth of it
    assert 20 + size[20:40].argmax() in screened
    assert set(np.argsort(-size)[:9]) <= set(screened)  # three of four are chosen by size
    assert len(set(sampled)) == 7
    assert not set(sampled) & set(screened)
    assert set(Screen(0.2, sample=7).chosen(attributed, 1)[1]) != set(sampled)


def test_what_the_sample_finds_joins_the_circuit_but_does_not_move_its_own_threshold(wired) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=Screen(0.1, sample=70))
    note = circuit.graph["selection"]["targets"]["pixel[0]"]
    assert note["n_screened"] == 8  # of ten true edges
    assert note["n_sampled"] == 66  # all others
    assert set(circuit.edges) == TRUE_EDGES
    assert note["missed_above"] in (None, 0)
    assert note["missed_above_largest"] == 0
