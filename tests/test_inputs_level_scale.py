"""What the change of a unit is divided by: references and their spread, and units that never vary."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from linear import SITES, LinearWorld, linear_world, pixels, random_linear_vae

import nnsight_vae as nv
import nnsight_vae.levels.doses
import nnsight_vae.levels.inputs

WORLD = LinearWorld()


def test_without_a_reference_the_sd_is_over_all_base_and_source_runs():
    vae, matrix = linear_world()
    by_factor = {factor: WORLD.pairs(factor, n=30, seed=2) for factor in WORLD.factors}
    found = nv.manipulate_inputs(vae, by_factor, SITES)
    shown = np.concatenate([pixels(side) for p in by_factor.values() for side in (p.base, p.source)], axis=1)
    sd = (matrix @ shown).std(axis=1)[:, None]
    assert found.targets == WORLD.factors
    for j, pairs in enumerate(by_factor.values()):
        want = matrix @ (pixels(pairs.source) - pixels(pairs.base)) / sd
        np.testing.assert_allclose(found.values[:, j], want, atol=1e-9)
        np.testing.assert_allclose(found.parts["norm"].values[:, j], np.abs(want), atol=1e-9)
    assert found.provenance["scale"] == "sd over the 180 inputs of the experiment"
    assert found.provenance["pairs"]["effect"]["factor"] == "effect"


def test_the_sd_over_pairs_of_two_draws_is_the_observational_one():
    """The lower and the higher of two draws together are distributed as the draws."""
    data = nv.datasets.load("pendulum")
    pairs = data.pairs("angle", n=1500, seed=1)
    both = torch.cat([pairs.base_factors, pairs.source_factors]).std(0)
    torch.testing.assert_close(both, data.sample(1500, seed=5).factors.std(0), rtol=0.06, atol=0)
    assert pairs.base_factors[:, 0].std() < 0.9 * both[0]  # over bases alone it would be too small


def test_a_large_shift_is_bounded_by_its_own_sd_but_not_by_a_reference():
    vae, _ = linear_world()
    base = WORLD.sample(40).images
    pairs = nv.Pairs(base, base + 1000.0)
    pooled = nv.manipulate_inputs(vae, pairs, SITES)
    apart = nv.manipulate_inputs(vae, pairs, SITES, reference=base)
    np.testing.assert_allclose(np.abs(pooled.mean()), 2.0, atol=1e-3)
    assert np.abs(apart.mean()).min() > 50
    assert apart.provenance["scale"] == "sd over 40 reference inputs"


def test_the_reference_of_noisy_pairs_runs_on_noise():
    vae, matrix = linear_world()
    pairs, reference = WORLD.pairs("cause", n=25), WORLD.sample(5000, seed=4).images
    eps = torch.randn(25, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    noisy = nv.manipulate_inputs(vae, nv.Pairs(pairs.base, pairs.source, eps=eps), ["latent.z"], reference=reference)
    still = nv.manipulate_inputs(vae, pairs, ["latent.z"], reference=reference)
    variance = (matrix[5:] @ pixels(reference)).var(axis=1)
    want = np.sqrt(variance / (variance + np.exp(-2.0)))
    np.testing.assert_allclose(noisy.mean()[:, 0] / still.mean()[:, 0], want, rtol=0.03)


def test_rounding_alone_is_no_change():
    """Every input is a permutation of the same numbers, so that their sum is constant but for rounding."""
    model = random_linear_vae()
    with torch.no_grad():
        model.enc.weight[0] = 1.0
    rows = [
        torch.arange(6.0, dtype=torch.double).sin()[torch.randperm(6, generator=torch.Generator().manual_seed(i))]
        for i in range(40)
    ]
    x = torch.stack(rows)
    vae = nv.VAE(model)
    assert nv.engine.activations(vae, x, ["enc"])["enc"][:, 0].std() > 0
    for sites in (["enc"], ["enc[0:2]"]):  # whether a unit is dead does not depend on its company
        found = nv.manipulate_inputs(vae, nv.Pairs(x[:20], x[20:]), sites)
        assert np.abs(found.values[0]).max() == 0
        assert np.abs(found.values[1]).max() > 1


@pytest.mark.parametrize("scale", [1e-17, 1.0, 1e6])
def test_whether_a_unit_is_alive_does_not_depend_on_its_unit_of_measurement(scale):
    vae, matrix = linear_world()
    with torch.no_grad():
        vae.module.enc.weight.mul_(scale)
    pairs = WORLD.pairs("cause", n=20)
    change = matrix @ (pixels(pairs.source) - pixels(pairs.base))
    sd = (matrix @ np.concatenate([pixels(pairs.base), pixels(pairs.source)], axis=1)).std(axis=1, keepdims=True)
    np.testing.assert_allclose(nv.manipulate_inputs(vae, pairs, SITES).values[:, 0], change / sd, rtol=1e-8)


def test_half_precision_neither_overflows_nor_takes_units_for_dead():
    model = random_linear_vae(0, d=3)
    with torch.no_grad():
        model.enc.weight.mul_(1000)
        model.mu.weight.mul_(1e-3)
    pairs = WORLD.pairs("cause", n=20)
    half = nv.Pairs(pairs.base.half(), pairs.source.half())
    found = nv.manipulate_inputs(nv.VAE(copy.deepcopy(model).half()), half, SITES)
    want = nv.manipulate_inputs(nv.VAE(model), pairs, SITES)
    for one, other in ((found, want), (found.parts["norm"], want.parts["norm"])):
        np.testing.assert_allclose(one.mean(), other.mean(), atol=0.02)  # sd; half has 3 digits of sums of such terms


def test_a_unit_silent_over_the_reference_is_measured_by_its_pairs_and_said_so():
    vae, _ = linear_world()
    pairs = WORLD.pairs("cause", n=20)
    silent = torch.ones(30, 1, 1, 3, dtype=torch.double)
    with pytest.warns(nv.NnsightVaeWarning, match=r"8 units never vary over the reference .* \(first enc\[0\]\)"):
        found = nv.manipulate_inputs(vae, pairs, SITES, reference=silent)
    np.testing.assert_allclose(found.values, nv.manipulate_inputs(vae, pairs, SITES).values)
    with torch.no_grad():
        vae.module.enc.weight[2] = 0
    dead = nv.manipulate_inputs(vae, pairs, ["enc[2]"], reference=WORLD.sample(30).images)
    assert np.abs(dead.values).max() == 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (WORLD.sample(1).images, "the reference is 1 example"),
        (WORLD.sample(5).images.float(), "dtype"),
        (WORLD.sample(5).images * float("nan"), "NaN"),
    ],
)
def test_references_without_a_spread_or_that_cannot_be_run_are_refused(reference, message):
    vae, _ = linear_world()
    with pytest.raises(nv.DataError, match=message):
        nv.manipulate_inputs(vae, WORLD.pairs("cause", 12), SITES, reference=reference)


def test_a_single_pair_is_refused_without_a_reference_since_every_unit_would_change_by_two():
    vae, matrix = linear_world()
    one = WORLD.pairs("cause", n=1, seed=2)
    for pairs in (one, {"cause": one, "other": WORLD.pairs("other", n=1, seed=2)}):
        with pytest.raises(nv.DataError, match="reference="):
            nv.manipulate_inputs(vae, pairs, SITES)
    reference = WORLD.sample(200, seed=9).images
    found = nv.manipulate_inputs(vae, one, SITES, reference=reference)
    sd = (matrix @ pixels(reference)).std(axis=1)
    np.testing.assert_allclose(found.values[:, 0, 0], (matrix @ pixels(one.source - one.base))[:, 0] / sd, atol=1e-9)


def test_few_inputs_without_a_reference_are_too_few_for_a_standard_deviation_and_said_to_be():
    vae, _ = linear_world()
    with pytest.warns(nv.NnsightVaeWarning, match="8 inputs of this experiment.*reference"):
        nv.manipulate_inputs(vae, WORLD.pairs("cause", n=4), SITES)
    with pytest.warns(nv.NnsightVaeWarning, match="9 inputs"):
        nv.dose_response(vae, nv.Doses(torch.rand(3, 3, 1, 1, 3, dtype=torch.float64), [0.0, 1.0, 2.0]), SITES)
    nv.manipulate_inputs(vae, WORLD.pairs("cause", n=5), SITES)  # warnings are errors here
    nv.manipulate_inputs(vae, WORLD.pairs("cause", n=4), SITES, reference=WORLD.sample(12).images)
