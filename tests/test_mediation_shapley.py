"""Sharing an indirect effect out: the axioms of Shapley's value, brute force over orders, sampling with its error."""

from __future__ import annotations

import copy
from functools import cache
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from linear import LinearReadout, linear, random_linear_vae
from mediated import MODELS, TwoPixels
from torch import Tensor, nn
from vaes import images

import nnsight_vae as nv
from nnsight_vae.levels import shapley

KEYS = ["enc1[0:3]", ["enc1[5]", "dec1[0:3]"], "latent.z[0]", "latent.z[2]"]


def mlp(n: int = 5) -> tuple[nv.VAE, nv.Pairs]:
    vae, x = nv.VAE(copy.deepcopy(MODELS["mlp"])), images(MODELS["mlp"], 2 * n, seed=1).double()
    eps = torch.randn(vae.encode(x[:n]).mu.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    return vae, nv.Pairs(x[:n], x[n:], eps=eps)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_shares_equal_the_formula_over_sets_measured_one_by_one(direction):
    """phi_i = sum over S without i of the weighted gain, each v(S) by `mediate` of its own."""
    vae, pairs = mlp()
    quantity = {"noising": "pnie", "denoising": "tnie"}[direction]

    @cache
    def worth(chosen: tuple[int, ...]) -> np.ndarray | float:
        keys = [key for i in chosen for key in (KEYS[i] if isinstance(KEYS[i], list) else [KEYS[i]])]
        return getattr(nv.mediate(vae, pairs, keys, readout=TwoPixels(0, 1)), quantity).values[0] if keys else 0.0

    found = nv.shapley_mediators(vae, pairs, KEYS, readout=TwoPixels(0, 1), direction=direction)
    k = len(KEYS)
    for i in range(k):
        others = [j for j in range(k) if j != i]
        expected = sum(
            (worth(tuple(sorted((*s, i)))) - worth(s)) / (k * comb(k - 1, size))
            for size in range(k)
            for s in combinations(others, size)
        )
        np.testing.assert_allclose(found.values[i], expected, atol=1e-12)
    assert found.units == ("enc1[0:3]", "enc1[5] + dec1[0:3]", "latent.z[0]", "latent.z[2]")
    estimand = {"noising": "PNIE (noising)", "denoising": "TNIE (denoising)"}[direction]
    assert found.estimand == f"Shapley share of {estimand}"
    in_order = nv.sequential_mediators(vae, pairs, KEYS, readout=TwoPixels(0, 1), direction=direction)
    for i in range(k):
        np.testing.assert_allclose(in_order.values[i], worth(tuple(range(i + 1))) - worth(tuple(range(i))), atol=1e-12)
    assert in_order.estimand == f"sequential share of {estimand}"
    assert np.abs(in_order.values - found.values).max() > 1e-4  # the order matters here


class Symmetric(nn.Module):
    """y = z0 z1 + z2, z = x; z3 is not read: z0 and z1 alike where their changes are, z3 a dummy."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = linear(torch.eye(4))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.heads(x)
        return mu, torch.zeros_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        return (z[:, :1] * z[:, 1:2] + z[:, 2:3]).expand(-1, 4)


def test_alike_mediators_share_alike_and_a_dummy_gets_nothing():
    b, s = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    b[:, 1], s[:, 1] = b[:, 0], s[:, 0]
    read = LinearReadout(torch.tensor([[1.0, 0, 0, 0]], dtype=torch.double))
    found = nv.shapley_mediators(
        nv.VAE(Symmetric()), nv.Pairs(b, s), [f"latent.z[{i}]" for i in range(4)], readout=read
    ).values[:, 0]
    np.testing.assert_allclose(found[0], (s[:, 0] ** 2 - b[:, 0] ** 2).numpy() / 2, atol=1e-12)
    np.testing.assert_allclose(found[0], found[1], atol=1e-14)
    np.testing.assert_allclose(found[2], (s - b)[:, 2].numpy(), atol=1e-12)
    assert np.abs(found[3]).max() < 1e-15


def test_without_interactions_each_share_is_the_effect_alone_in_any_order():
    model = random_linear_vae(0)
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    vae, pairs, read = nv.VAE(model), nv.Pairs(x[:6], x[6:]), LinearReadout(torch.eye(6, dtype=torch.double))
    keys = ["latent.z[0]", "latent.z[1]", "latent.z[2]"]
    alone = nv.patch_activations(vae, pairs, ["latent.z"], readout=read, direction="noising").values
    for found in (
        nv.shapley_mediators(vae, pairs, keys, readout=read),
        nv.shapley_mediators(vae, pairs, keys, readout=read, n_permutations=4),
        nv.sequential_mediators(vae, pairs, keys, readout=read),
    ):
        np.testing.assert_allclose(found.values, alone, atol=1e-10)


def test_sampled_shares_are_efficient_and_as_far_off_as_their_error_says():
    vae, pairs = mlp()
    exact = nv.shapley_mediators(vae, pairs, KEYS, readout=TwoPixels(0, 1))
    assert exact.parts == {}
    whole = exact.values.sum(0)
    for seed in range(3):
        found = nv.shapley_mediators(vae, pairs, KEYS, readout=TwoPixels(0, 1), n_permutations=24, seed=seed)
        np.testing.assert_allclose(found.values.sum(0), whole, atol=1e-12)
        error = found.parts["standard error"]
        assert error.estimand == "standard error"
        off = np.abs(found.values - exact.values)
        assert (off <= 5 * error.values + 1e-12).all()
        assert (error.values > 0).any()
        assert (error.values < 0.5 * np.abs(exact.values).max()).all()
    again = nv.shapley_mediators(vae, pairs, KEYS, readout=TwoPixels(0, 1), n_permutations=24, seed=2)
    np.testing.assert_array_equal(again.values, found.values)
    assert found.provenance["n_permutations"] == 24


def test_beyond_ten_mediators_orders_are_sampled(monkeypatch):
    monkeypatch.setattr(shapley, "_ORDERS", 8)
    vae, pairs = mlp(n=2)
    keys = [f"dec1[{i}]" for i in range(11)]
    found = nv.shapley_mediators(vae, pairs, keys, readout=TwoPixels(0, 1))
    assert found.provenance["n_permutations"] == 8
    joint = nv.mediate(vae, pairs, keys, readout=TwoPixels(0, 1)).pnie
    np.testing.assert_allclose(found.values.sum(0), joint.values[0], atol=1e-12)
    ten = nv.shapley_mediators(vae, pairs, keys[:10], readout=TwoPixels(0, 1))
    assert ten.provenance["n_permutations"] is None
    assert ten.parts == {}


def test_one_mediator_gets_all():
    vae, pairs = mlp()
    alone = nv.mediate(vae, pairs, "latent.z[0]", readout=TwoPixels(0, 1))
    for share_out in (nv.shapley_mediators, nv.sequential_mediators):
        found = share_out(vae, pairs, "latent.z[0]", readout=TwoPixels(0, 1))
        np.testing.assert_allclose(found.values, alone.pnie.values, atol=1e-14)
    sampled = nv.shapley_mediators(vae, pairs, "latent.z[0]", readout=TwoPixels(0, 1), n_permutations=4)
    np.testing.assert_allclose(sampled.values, alone.pnie.values, atol=1e-14)
    assert (sampled.parts["standard error"].values == 0).all()
