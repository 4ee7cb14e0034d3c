"""What a target and a baseline of an attribution may be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from attributed import B, X, conv, explained
from captum.attr import IntegratedGradients
from vaes import ConvVAE, ResidualVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import (
    DecoderIntegratedGradients,
    Direction,
    Distribution,
    LatentConductance,
    LatentIntegratedGradients,
    captum_forward,
)


# ---------------------------------------------------------------------- targets
def test_a_target_is_named_in_any_of_these_ways():
    every = explained(None)
    for target, expected in (
        (2, every[:, 2]),
        (-1, every[:, 4]),
        (np.int64(1), every[:, 1]),
        (torch.tensor(3), every[:, 3]),
        ((3,), every[:, 3]),
        ("latent.mu[3]", every[:, 3]),
        (slice(1, 3), every[:, 1:3].mean(1)),
        ([0, 1, 4, 1], every[range(4), [0, 1, 4, 1]]),
        (torch.tensor([0, 1, 4, 1]), every[range(4), [0, 1, 4, 1]]),
        (lambda mu: mu[:, 1] - mu[:, 0], every[:, 1] - every[:, 0]),
        (Direction(torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0])), 2 * every[:, 1] - every[:, 3]),
        (Direction(torch.eye(5)[[0, 1, 4, 1]]), every[range(4), [0, 1, 4, 1]]),
    ):
        torch.testing.assert_close(explained(target), expected, atol=1e-6, rtol=1e-4)


def test_a_spatial_latent_is_named_by_channel_or_element():
    model = seeded(ResidualVAE())
    vae, x, b = nv.VAE(model), images(model, 3), images(model, 3, seed=1)
    element = lambda *index: explained(index, vae, x, b)
    grid = list(itertools.product(range(4), range(4)))
    pooled = torch.stack([element(1, i, j) for i, j in grid]).mean(0)
    for target, expected in (
        (1, pooled),
        (slice(1, 2), pooled),
        ("latent.mu[1]", pooled),
        ((1, 2, slice(0, 2)), (element(1, 2, 0) + element(1, 2, 1)) / 2),
        (
            [(0, 1, 2), (1, 0, 0), (1, 3, 3)],
            torch.stack([element(0, 1, 2)[0], element(1, 0, 0)[1], element(1, 3, 3)[2]]),
        ),
        (lambda mu: mu[:, 1, 2, 0], element(1, 2, 0)),
    ):
        torch.testing.assert_close(explained(target, vae, x, b), expected, atol=1e-6, rtol=1e-4)
    every = explained(None, vae, x, b)
    assert every.shape == (3, 2, 1, 8, 8)
    torch.testing.assert_close(every[:, 1], pooled, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, r"\[5\] is out of range.*\(5,\)"),
        (-6, "out of range"),
        (True, "int"),
        (1.0, "callable; got float"),
        ("angle", "has no target 'angle'.*latent.mu"),
        ((0, 0), "has 2 indices"),
        (slice(3, 3), "is empty"),
        ([0, 1], "one entry per example: got 2 for 4"),
        ([0, 1, 2, 5], "out of range"),
        (["a", "b", "c", "d"], "out of range"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "one integer"),
        (torch.zeros(4, 1, dtype=torch.long), "one integer"),
        (lambda mu: mu, "one number a row"),
        (Direction(torch.zeros(4)), r"a Direction has shape \(5,\)"),
    ],
)
def test_a_target_that_is_none_is_refused(target, message):
    with pytest.raises(nv.ReadoutError, match=message):
        explained(target)


def test_a_reconstruction_is_explained_pixel_by_pixel():
    vae = conv()
    z = vae.encode(X).mu
    with pytest.raises(nv.ReadoutError, match="has 768; pick one by index"):
        DecoderIntegratedGradients(vae).attribute(z, target=None)
    with pytest.raises(nv.ReadoutError, match="no named targets"):
        DecoderIntegratedGradients(vae).attribute(z, target="angle")
    moved = vae.decode(z) - vae.decode(0 * z)
    c, i, j = np.unravel_index(int(moved.abs().mean(0).argmax()), moved.shape[1:])
    parts = DecoderIntegratedGradients(vae).attribute(z, target=(c, i, j), n_steps=200)
    torch.testing.assert_close(parts.sum(1), moved[:, c, i, j], atol=1e-3, rtol=1e-2)


# ---------------------------------------------------------------------- baselines
def test_baselines_are_what_their_names_say():
    vae, reference = conv(), images(ConvVAE, 9, seed=3)
    for spec, value, name in (
        (None, X.mean(0, keepdim=True), "mean of the inputs"),
        ("mean", X.mean(0, keepdim=True), "mean of the inputs"),
        ("black", torch.zeros(1, 3, 16, 16), "black"),
        ("prior", vae.decode(torch.zeros(1, 5)), "prior mean, decoded"),
        (0.25, torch.full((1, 3, 16, 16), 0.25), "constant 0.25"),
        (B[0], B[:1], "given"),
        (B[:1], B[:1], "given"),
        (B, B, "given"),
        (nv.Pairs(X, B), B, "source of each pair"),
    ):
        method = LatentIntegratedGradients(vae)
        maps = method.attribute(X, baselines=spec, target=1, n_steps=60)
        expected = IntegratedGradients(captum_forward(vae)).attribute(X, value.detach(), 1, n_steps=60)
        torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)
        assert method.record.baseline == name
    method = LatentIntegratedGradients(vae, reference=reference)
    expected = method.attribute(X, baselines=reference.mean(0), target=1, n_steps=60)
    torch.testing.assert_close(method.attribute(X, target=1, n_steps=60), expected)
    assert method.record.baseline == "mean of the reference"


def test_latents_start_at_the_prior_mean_or_at_the_code_of_the_source():
    vae = conv()
    z, region = vae.encode(X).mu.detach(), nv.readouts.Region({"top": (slice(0, 8), slice(0, 16))})
    method, eps = DecoderIntegratedGradients(vae, region), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for spec, value, name in (
        (None, torch.zeros(1, 5), "prior mean"),
        ("prior", torch.zeros(1, 5), "prior mean"),
        ("mean", z.mean(0, keepdim=True), "mean of the inputs"),
        (nv.Pairs(X, B), vae.encode(B).mu, "source of each pair"),
        (nv.Pairs(X, B, eps=eps), vae.encode(B).rsample(eps), "source of each pair"),
    ):
        captum = IntegratedGradients(captum_forward(vae, region, of="z"))
        expected = captum.attribute(z, value.detach(), 0, n_steps=60)
        torch.testing.assert_close(method.attribute(z, spec, "top", n_steps=60), expected, atol=1e-6, rtol=1e-4)
        assert method.record.baseline == name


@pytest.mark.parametrize("make", [LatentIntegratedGradients, lambda v: LatentConductance(v, "encoder.2")])
def test_a_distribution_of_baselines_is_their_mean(make):
    method = make(conv())
    maps, delta = method.attribute(X, Distribution(B), 1, n_steps=60, return_convergence_delta=True)
    each = [method.attribute(X, b, 1, n_steps=60, return_convergence_delta=True) for b in B]
    torch.testing.assert_close(maps, torch.stack([m for m, _ in each]).mean(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(delta, torch.stack([d for _, d in each]).mean(0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (B[:3], "3 rows for 4 examples.*Distribution"),
        (B[:, :2], "baselines: .*"),
        (B[:, :, :8], "baselines: .*"),
        (B.double(), "baselines: .*float64"),
        ((B * 255).byte(), "baselines: .*uint8"),
        (B * float("nan"), "baselines: .*NaN"),
        (float("inf"), "not finite"),
        ("white", "not known"),
        ("source", "baselines=pairs"),
        (nv.Pairs(X[:2], B[:2]), "2 pairs for 4 examples"),
        ([0.0], "got list"),
        ((B, B), "tuple of 2"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(baseline, message):
    with pytest.raises(nv.DataError, match=message):
        LatentIntegratedGradients(conv()).attribute(X, baselines=baseline, target=0)


@pytest.mark.parametrize(
    ("baseline", "reference"),
    [(lambda x: x[..., :4], None), (lambda x: nv.Pairs(x[..., :4], x[..., :4]), None), (lambda x: "mean", 4)],
)
def test_a_convolutional_vae_refuses_a_baseline_of_another_size_and_keeps_its_own(baseline, reference):
    model = seeded(ResidualVAE())
    vae, x = nv.VAE(model), images(model, 4)
    method = LatentIntegratedGradients(vae, reference=None if reference is None else x[..., :reference])
    with pytest.raises(
        nv.DataError, match=r"baselines: shape \(4, 1, 8, 4\) does not fit inputs of shape \('n', 1, 8, 8\)"
    ):
        method.attribute(x, baselines=baseline(x), target=0)
    assert vae.sites["input"].shape == (1, 8, 8)


def test_the_mean_of_one_image_is_refused_rather_than_explained_as_nothing():
    with pytest.raises(nv.DataError, match="reference=images"):
        LatentIntegratedGradients(conv()).attribute(X[:1], target=0)
