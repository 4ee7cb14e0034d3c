"""Hidden confounders: factors that cause others and are not drawn. They are marked, and left out wherever images are read."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import nnsight_vae as nv
from nnsight_vae import datasets
from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.datasets import SPRITES, Procedural, linear_sprites
from nnsight_vae.datasets.procedural_readout import fit_procedural_readout
from nnsight_vae.errors import DataError, ReadoutError


def uniform(rng, n):
    return rng.random(n)


@pytest.fixture(scope="module")
def confounded():
    """A cause of both coordinates of a sprite, which is nowhere in the image."""
    scm = SCM(
        {
            "x": Mechanism(("cause",), lambda p, u: 0.7 * p["cause"] + 0.3 * u, uniform),
            "cause": Mechanism((), lambda _, u: u, uniform),
            "y": Mechanism(("cause",), lambda p, u: 0.7 * p["cause"] + 0.3 * u, uniform),
        }
    )
    return Procedural.drawn("confounded", scm, SPRITES, {"shape": 0, "scale": 1.0, "orientation": 0.0})


def test_a_variable_that_is_not_drawn_is_hidden_and_marked(confounded):
    assert confounded.hidden == ("cause",)
    assert [n for n, hidden in confounded.graph.nodes(data="hidden") if hidden] == ["cause"]
    assert linear_sprites(hidden=["size", "hue"]).hidden == ("size", "hue")
    assert datasets.load("pendulum").hidden == ()


def test_what_it_causes_is_confounded(confounded):
    observed = confounded.sample(2000).factors
    assert float(torch.corrcoef(observed.T)[0, 2]) > 0.7
    set_by_hand = confounded.do(2000, cause=0.5).factors
    assert abs(float(torch.corrcoef(set_by_hand[:, [0, 2]].T)[0, 1])) < 0.1


def test_pairs_and_doses_show_it_through_its_effects_or_not_at_all(confounded):
    pairs = confounded.pairs("cause", 6)
    assert bool((pairs.base != pairs.source).flatten(1).any(1).all())
    for make in (confounded.pairs, confounded.doses):
        with pytest.raises(DataError, match=r"'cause' is hidden, .* propagate=True"):
            make("cause", 4, propagate=False)
    assert list(confounded.pairs_by_factor(4)) == ["x", "y"]
    assert list(confounded.pairs_by_factor(4, propagate=True)) == ["x", "cause", "y"]


def test_readouts_leave_it_out_and_refuse_it_by_name(confounded):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit_procedural_readout(confounded, n=200, steps=5).names == ("x", "y")
    with pytest.raises(ReadoutError, match="cause is hidden"):
        confounded.readout("cause")
    with pytest.raises(ReadoutError, match="cause is hidden"):
        confounded.readout(["x", "cause"])


def test_measures_leave_it_out():
    data = linear_sprites(hidden=["hue"])
    assert "hue" not in data.measure(data.sample(2).images)
    shown = data.measure(data.sample(2).images, "height")["height"]
    np.testing.assert_allclose(shown, data.sample(2).factors[:, 3], atol=0.1)


def test_metrics_leave_it_out(confounded):
    module = nv.models.MLPVAE(image_shape=(1, 64, 64), latent=3, hidden=(4,))
    table = nv.metrics.disentanglement(nv.VAE(module), confounded, n=60, metrics=["irs"], n_null=0)
    assert table.scores["irs", "observational"].matrix.shape[1] == 2
