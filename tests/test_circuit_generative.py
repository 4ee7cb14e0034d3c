"""What a circuit makes of images and posteriors, against literal forwards and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from literal_edges import HALVES
from masked import conv, some_edges
from torch import nn
from vaes import seeded
from wired import true_circuit, wired

import nnsight_vae as nv
from nnsight_vae.circuits import faithfulness
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.evaluation.generative import generative_scores
from nnsight_vae.pairs import Pairs
from nnsight_vae.posterior import Laplace, Posterior
from nnsight_vae.readouts import Latents, Pixels

__all__ = ["conv", "true_circuit", "wired"]  # fixtures


def test_images_and_posteriors_of_a_circuit_against_literal_ones(conv) -> None:
    vae, pairs, literal = conv
    sets = EdgeSets.of(vae, pairs, HALVES)
    mask, edges = some_edges(sets)
    found = generative_scores(sets, mask)
    mine = literal.run(edges, literal.resting("base"))
    with torch.no_grad():
        (mu, logvar), (base_mu, _) = (literal.model.encode(x) for x in (pairs.source, pairs.base))
        source, base = literal.model.decode(mu), literal.model.decode(base_mu)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(mine["mu"], (logvar / 2).exp()),
            torch.distributions.Normal(mu, (logvar / 2).exp()),
        ).sum(1)
    np.testing.assert_allclose(found.mse, (mine["output"] - source).square().mean((1, 2, 3)), rtol=1e-8)
    np.testing.assert_allclose(found.mse_nothing, (base - source).square().mean((1, 2, 3)), rtol=1e-8)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-8)
    assert found.unexplained["pixels"].value is None  # four pairs
    everything = generative_scores(sets, np.ones_like(mask))
    np.testing.assert_allclose(everything.mse, 0.0, atol=1e-20)
    np.testing.assert_allclose(everything.kl, 0.0, atol=1e-12)
    assert everything.posterior == "mu"


def test_on_a_sampled_latent_the_divergence_counts_logvar_too(conv) -> None:
    vae, pairs, literal = conv
    noise = torch.randn(len(pairs), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sets = EdgeSets.of(vae, replace(pairs, eps=noise), HALVES)
    found = generative_scores(sets, np.ones(len(sets.edges), dtype=bool))
    with torch.no_grad():
        base, source = (
            torch.distributions.Normal(mu, (logvar / 2).exp())
            for mu, logvar in map(literal.model.encode, (pairs.base, pairs.source))
        )
    expected = torch.distributions.kl_divergence(base, source).sum(1)
    np.testing.assert_allclose(found.kl_nothing, expected, rtol=1e-8)
    np.testing.assert_allclose(found.kl, 0.0, atol=1e-12)
    assert found.posterior == "mu and logvar"


def test_a_readout_of_the_latent_makes_no_image(conv) -> None:
    vae, pairs, _ = conv
    sets = EdgeSets.of(vae, pairs, Latents(5))
    found = generative_scores(sets, np.zeros(len(sets.edges), dtype=bool))
    assert found.mse is None
    assert list(found.unexplained) == ["latent"]
    np.testing.assert_array_equal(found.kl, found.kl_nothing)


class PointVAE(nn.Module):
    """States a value and no spread, or a Laplace."""

    def __init__(self, law: str) -> None:
        super().__init__()
        self.law, self.enc, self.dec = law, nn.Linear(4, 3), nn.Linear(3, 4)

    def encode(self, x):
        mu = self.enc(x.flatten(1))
        return Posterior.point(mu) if self.law == "point" else Laplace(mu, torch.zeros_like(mu))

    def decode(self, z):
        return self.dec(z).view(-1, 1, 2, 2)


@pytest.mark.parametrize("law", ["point", "laplace"])
def test_posteriors_that_are_no_gaussians_with_a_spread_have_no_divergence(law: str) -> None:
    vae = nv.VAE(seeded(PointVAE(law)), example=torch.zeros(1, 1, 2, 2))
    pairs = Pairs(torch.zeros(6, 1, 2, 2), torch.rand(6, 1, 2, 2), factor="f")
    sets = EdgeSets.of(vae, pairs, Pixels((1, 2, 2)))
    made = generative_scores(sets, np.zeros(len(sets.edges), dtype=bool))
    assert made.kl is None
    assert made.kl_nothing is None
    assert list(made.unexplained) == ["pixels"]


def test_what_a_circuit_leaves_unexplained_of_the_latent_in_closed_form(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    with torch.no_grad():
        vae.module.fc_mu.weight[1] = 0.0  # only latent 0 moves; its logvar is 0
    cut = true_circuit.copy()
    cut.remove_edge("enc[1]", "latent.z[0]")
    made = faithfulness(nv.VAE(vae.module), cut, pairs, readout).generative
    np.testing.assert_allclose(made.kl, (0.4 * (pairs.source - pairs.base)[:, 0]).square() / 2, rtol=1e-4)
    assert made.unexplained["latent"].value == pytest.approx((0.4 / 1.4) ** 2, rel=1e-4)
