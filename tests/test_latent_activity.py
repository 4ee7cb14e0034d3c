"""Activity of latents and their responses to each other, against formulas written out."""

import math

import numpy as np
import pytest
import torch
from numpy_decoder import normal

from nnsight_vae.errors import DataError
from nnsight_vae.metrics import latent_activity
from nnsight_vae.metrics.latent_response import latent_response_matrix


def test_activity_is_kl_and_burdas_variance():
    mu = np.array([[1.0, 0.0, 0.05], [-1.0, 0.0, -0.05], [3.0, 0.0, 0.15]])
    logvar = np.log(np.array([[0.5, 1.0, 1.0]] * 3))
    found = latent_activity.activity(mu, logvar)
    expected = (11 / 3 + 0.5 - 1 - math.log(0.5)) / 2  # mean mu^2 is 11/3
    np.testing.assert_allclose(found.kl.values, [expected, 0.0, (0.0025 + 0.0025 + 0.0225) / 6])
    np.testing.assert_allclose(found.variance.values, [8 / 3, 0.0, 0.02 / 3])
    assert (found.active_units.value, found.informed_units.value) == (1.0, 1.0)  # 0.02 / 3 < 0.01, and 0.0046 nats
    assert found.kl.units == ("latent.z[0]", "latent.z[1]", "latent.z[2]")
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.tensor(mu), torch.tensor(logvar).mul(0.5).exp()),
        torch.distributions.Normal(0.0, 1.0),
    )
    np.testing.assert_allclose(found.kl.values, reference.mean(0), atol=1e-12)


def test_a_count_of_active_units_has_an_interval_over_examples():
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(60, 4)) * np.array([1.0, 0.1, 0.1, 0.0])  # variances 1, about .01 twice, 0
    found = latent_activity.activity(mu, np.zeros_like(mu), n_boot=4000)
    deviations = np.square(mu - mu.mean(axis=0))
    literal = np.stack([deviations[rng.integers(60, size=60)].mean(axis=0) for _ in range(4000)])
    counts = (literal > 0.01).sum(axis=1)
    assert found.active_units.ci == tuple(np.quantile(counts, [0.025, 0.975]))
    assert found.active_units.ci[0] < found.active_units.ci[1]
    low, high = np.array(found.variance.ci).T
    np.testing.assert_allclose([low, high], np.quantile(literal, [0.025, 0.975], axis=0), rtol=0.05, atol=1e-12)


def test_activity_of_a_latent_with_positions_adds_nats_and_averages_variances():
    mu, logvar = normal(20, 2, 3, 3), 0.3 * normal(20, 2, 3, 3, seed=1)
    flat = latent_activity.activity(mu.reshape(20, 18), logvar.reshape(20, 18))
    found = latent_activity.activity(mu, logvar)
    np.testing.assert_allclose(found.kl.values, np.reshape(flat.kl.values, (2, 9)).sum(1))
    np.testing.assert_allclose(found.variance.values, np.reshape(flat.variance.values, (2, 9)).mean(1))


def test_response_matrix_is_a_root_mean_square_on_the_scale_of_active_responses():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(3, 50, 2))
    base = rng.normal(size=(50, 2, 4)) * np.array([2.0, 0.05])[:, None]  # the second response is inactive
    raw = latent_response_matrix(changes)
    np.testing.assert_allclose(raw.values, np.sqrt((changes**2).mean(axis=1)))
    assert raw.flags == ("", "")
    found = latent_response_matrix(changes, form="normalised", base=base, n_boot=6000)
    sd = base[:, 0].std()
    np.testing.assert_allclose([row[0] for row in found.values], np.sqrt((changes[..., 0] ** 2).mean(axis=1)) / sd)
    assert [row[1] for row in found.values] == [None] * 3
    assert [row[1] for row in found.ci] == [None] * 3
    assert found.flags == ("", "inactive: variance at most 0.01")
    literal = []
    for _ in range(3000):
        drawn = rng.integers(50, size=50)
        sd = np.sqrt(np.square(base[:, 0] - base[:, 0].mean())[drawn].mean())
        literal.append(np.sqrt((changes[1, drawn, 0] ** 2).mean()) / sd)
    np.testing.assert_allclose(found.ci[1][0], np.quantile(literal, [0.025, 0.975]), atol=0.16 * np.std(literal))
    frame = found.to_frame()
    assert len(frame) == 6
    assert frame.value.isna().sum() == 3
    assert (frame.latent[2], frame.response[2], frame.value[2]) == (1, 0, found.values[1][0])
    assert "none" in str(found)
    assert str(found).endswith("mu[1]: inactive: variance at most 0.01")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latent_activity.activity(np.zeros((3, 2)), np.zeros((3, 1))), r"\(3, 2\) and logvar \(3, 1\)"),
        (lambda: latent_activity.activity(np.zeros(3), np.zeros(3)), r"expected \[example, latent, \*position\]"),
        (lambda: latent_response_matrix(np.zeros((3, 2))), r"expected \[latent, example, response\]"),
        (lambda: latent_response_matrix(np.zeros((3, 2, 1)), form="normalised"), "base=None"),
        (lambda: latent_response_matrix(np.zeros((3, 2, 1)), base=np.zeros((2, 2))), "2 examples, 1 responses"),
    ],
)
def test_bad_latents_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
