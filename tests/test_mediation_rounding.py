"""What rounding alone can make of a mediation is exactly 0, or exactly equal, and every sum still holds to the bit."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from vaes import all_vaes, images

import nnsight_vae as nv
from nnsight_vae.results.mediation_quantities import quantities
from nnsight_vae.rounding import resolution

NAMES = ("base", "source", "noised", "denoised", "base_held", "source_held")
# Whole numbers a tenth of a resolution apart: differences of every size around it, each exact in float64
RUNS = npst.arrays(np.int64, (6, 2, 4), elements=st.integers(-40, 40))
RESOLUTION = np.array([10.0, 3.0])


@settings(max_examples=100, deadline=None)
@given(RUNS)
def test_sums_hold_to_the_bit_and_no_quantity_moves_by_more_than_rounding(runs):
    runs = dict(zip(NAMES, runs.astype(float), strict=True))
    raw, found = quantities(runs, None), quantities(runs, RESOLUTION)
    np.testing.assert_array_equal(found["TE"], found["NDE"] + found["TNIE"])
    np.testing.assert_array_equal(found["TE"], found["PNIE"] + found["NDE"] + found["INT"])
    np.testing.assert_array_equal(found["TE"], found["CDE"] + found["INTref"] + found["INT"] + found["PNIE"])
    slack = RESOLUTION[:, None]
    for name in ("TE", "PNIE", "TNIE", "CDE"):
        # To 0, to TE that has moved itself, to PNIE that has moved to it: at most once each
        assert (np.abs(found[name] - raw[name]) <= 3 * slack).all(), name
        assert ((found[name] == 0) | (np.abs(found[name]) > slack)).all(), name
    for one, other in (("PNIE", "TE"), ("TNIE", "PNIE"), ("CDE", "NDE")):
        apart = np.abs(found[one] - found[other])
        assert ((apart == 0) | (apart > slack)).all(), (one, other)


def test_each_difference_that_is_rounding_is_none_and_any_larger_one_is_kept():
    """One pair a column: nothing mediated, all mediated, additive, no effect at all; each off by just under the resolution."""
    te, off = 5.0, 0.9e-6
    base = np.zeros((1, 4))
    source = np.array([[te, te, te, off]])
    noised = np.array([[off, te - off, 2.0, off]])
    denoised = np.array([[te - off, off, te - 2.0 - off, 0.0]])
    runs = {"base": base, "source": source, "noised": noised, "denoised": denoised}
    found = quantities(runs, np.array([1e-6]))
    expected = {
        "TE": [te, te, te, 0],
        "PNIE": [0, te, 2, 0],
        "TNIE": [0, te, 2, 0],
        "NDE": [te, 0, te - 2, 0],
        "INT": [0] * 4,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name][0], values, err_msg=name)
    kept = quantities(runs, np.array([0.8e-6]))
    assert (kept["PNIE"][0, 0], kept["TE"][0, 3]) == (off, off)
    assert kept["NDE"][0, 1] == kept["INT"][0, 2] == pytest.approx(off)


def test_a_bias_of_the_last_place_looks_clear_and_is_none():
    rng = np.random.default_rng(0)
    base, source = rng.normal([[[0.0]], [[1.0]]], 0.1, (2, 1, 40))
    denoised = base + rng.uniform(1e-8, 2e-8, (1, 40))  # what a whole cut leaves of the direct effect, of one sign
    runs = {"base": base, "source": source, "noised": source, "denoised": denoised}
    for floor, clear in ((None, True), (resolution(torch.tensor(source.T, dtype=torch.float32)), False)):
        m = nv.Mediation.from_runs(**runs, resolution=floor, targets=("y",), mediator="z")
        assert bool(m.nde.ci()[0][0, 0] > 0) is clear
        assert bool(m.nde.significant().units) is clear


def test_the_resolution_follows_the_size_and_the_precision_of_each_target():
    values = torch.tensor([[0.5, -8.0, 0.0], [0.25, 1.0, 0.0]])
    np.testing.assert_array_equal(resolution(values), 16 * 2.0**-23 * np.array([0.5, 8.0, 0.0]))
    np.testing.assert_array_equal(resolution(values.double()), 16 * 2.0**-52 * np.array([0.5, 8.0, 0.0]))


class Drifting:
    """A pixel that comes out one place further up on every other call, as on kernels that depend on the batch."""

    names = ("pixel",)

    def __init__(self, places: int) -> None:
        self.calls, self.places = 0, places

    def __call__(self, reconstruction):
        self.calls += 1
        return reconstruction.flatten(1)[:, :1] * (1 + self.places * 2**-23 * (self.calls % 2))


@pytest.mark.parametrize(("places", "clear"), [(2, False), (200, True)])
def test_mediate_takes_no_rounding_for_an_effect(places, clear):
    model = all_vaes()["mlp"]
    vae = nv.VAE(model)
    pairs = nv.Pairs(images(model, 30), images(model, 30, seed=1))
    m = nv.mediate(vae, pairs, "latent.z", readout=Drifting(places))
    assert np.abs(m.te.values).max() > 1e-3
    assert bool((m.nde.values != 0).any()) is clear
