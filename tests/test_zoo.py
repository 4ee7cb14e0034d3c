"""The bundled models of sprites, on images nobody has seen: each does what its record says, by formulas of others."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

import nnsight_vae as nv
from nnsight_vae.models import read_record
from nnsight_vae.models.build_zoo import RECIPES, results
from nnsight_vae.models.bundle import ZOO
from nnsight_vae.models.families import OBJECTIVES

SPRITES = {f"sprites-{name}" for name in OBJECTIVES}
GAUSSIAN = sorted(SPRITES - {"sprites-vq-vae"})


@cache
def images() -> torch.Tensor:
    return nv.datasets.load("independent_sprites").sample(600, seed=2024).images


@cache
def reached(name: str) -> dict[str, Any]:
    """Reconstruction, KL and total correlation on the fresh images, and the latter's values over bootstrap samples."""
    vae, x = nv.load(name), images()
    with torch.no_grad():
        posterior = vae.encode(x)
        mu, sd, decoded = posterior.mu, posterior.sd, vae(x)
    kl = kl_divergence(Normal(mu, sd), Normal(0.0, 1.0)).mean(0)
    rows = np.random.default_rng(0).integers(len(x), size=(200, len(x)))
    return {
        "nats": nats(decoded, x),
        "kl": kl,
        "total_correlation": correlated(mu.numpy(), sd.numpy()),
        "resampled": np.array([correlated(mu.numpy()[some], sd.numpy()[some]) for some in rows]),
    }


def nats(decoded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of each image."""
    return F.binary_cross_entropy(decoded, x, reduction="none").flatten(1).sum(1)


def require_reconstruction(name: str, found: torch.Tensor) -> None:
    """Within 4 standard errors of the difference of the record's 1,000 images and these."""
    held_out = read_record(name)["held_out"]["observational"]
    error = float(found.std()) * (1 / len(found) + 1 / held_out["images"]) ** 0.5
    assert error < 0.04 * held_out["reconstruction"]
    assert float(found.mean()) == pytest.approx(held_out["reconstruction"], abs=4 * error)


def correlated(mu: np.ndarray, sd: np.ndarray) -> float:
    """Total correlation of a Gaussian, from its correlations alone: ``-log det R / 2``."""
    covariance = np.cov(mu.T, dtype=float) + np.diag((sd.astype(float) ** 2).mean(0))
    scale = np.sqrt(np.diag(covariance))
    return -0.5 * float(np.linalg.slogdet(covariance / np.outer(scale, scale))[1])


def test_each_of_the_six_objectives_has_a_bundled_model_made_by_its_recipe():
    assert {name for name in nv.zoo() if name.startswith("sprites-")} == SPRITES
    for name in SPRITES:
        record = read_record(name)
        assert record["objective"]["name"] == RECIPES[name].objective.name == name.removeprefix("sprites-")
        for field, value in vars(RECIPES[name].objective).items():
            assert record["objective"][field] == (list(value) if isinstance(value, tuple) else value), (name, field)
        assert record["description"] == RECIPES[name].description == nv.zoo()[name]
        assert record["data"]["name"] == "independent_sprites"
        assert record["training"]["seed"] == 0
        assert record["training"]["steps"] == record["history"][-1]["step"] == RECIPES[name].steps


def test_all_bundled_models_together_take_less_than_ten_megabytes():
    assert sum(path.stat().st_size for path in ZOO.iterdir()) < 10_000_000


@pytest.mark.parametrize("name", GAUSSIAN)
def test_a_bundled_model_reaches_what_its_record_says(name):
    found, held_out = reached(name), read_record(name)["held_out"]["observational"]
    require_reconstruction(name, found["nats"])
    torch.testing.assert_close(found["kl"], torch.tensor(held_out["kl_per_latent"]), rtol=0.1, atol=0.05)
    assert (found["kl"] >= 0.1).nonzero().flatten().tolist() == held_out["active"]
    error = found["resampled"].std() * (1 + len(images()) / held_out["images"]) ** 0.5
    assert error < 0.07
    assert found["total_correlation"] == pytest.approx(held_out["total_correlation"], abs=4 * error)


def test_the_bundled_vq_vae_reaches_what_its_record_says():
    vae, held_out, x = nv.load("sprites-vq-vae"), read_record("sprites-vq-vae")["held_out"]["observational"], images()
    with torch.no_grad():
        z, decoded = vae.encode(x).mu, vae(x)
    require_reconstruction("sprites-vq-vae", nats(decoded, x))
    _, counts = np.unique(z.movedim(1, -1).flatten(0, -2).numpy(), axis=0, return_counts=True)
    share = counts / counts.sum()
    assert len(counts) == held_out["used"]
    assert np.exp(-(share * np.log(share)).sum()) == pytest.approx(held_out["perplexity"], rel=0.03)


@pytest.mark.parametrize(
    ("name", "equal"), [("sprites-factor-vae", 0.1), ("sprites-beta-tc-vae", 0.1), ("sprites-dip-vae-ii", 0.2)]
)
def test_penalised_latents_are_less_correlated_than_the_vaes_at_equal_reconstruction(name, equal):
    """Total correlation lower by more than sampling error, of the same images resampled; reconstruction no worse than by the share `equal`."""
    plain, found = reached("sprites-vae"), reached(name)
    assert found["nats"].mean() <= (1 + equal) * plain["nats"].mean()
    assert np.quantile(found["resampled"] - plain["resampled"], 0.999) < -0.3


@pytest.mark.parametrize("name", ["sprites-factor-vae", "sprites-beta-tc-vae"])
def test_two_of_them_pay_nothing_for_their_less_correlated_latents(name):
    saved = reached("sprites-vae")["nats"] - reached(name)["nats"]
    assert saved.mean() > 4 * saved.std() / len(saved) ** 0.5


def test_the_larger_beta_leaves_fewer_latents_and_nats():
    plain, fewer = (read_record(name)["held_out"]["observational"] for name in ("sprites-vae", "sprites-beta-vae"))
    assert fewer["kl"] < 0.7 * plain["kl"]
    assert len(fewer["active"]) < len(plain["active"])


def test_the_table_of_results_is_that_of_the_records():
    assert (ZOO / "RESULTS.md").read_text(encoding="utf-8") == results()
