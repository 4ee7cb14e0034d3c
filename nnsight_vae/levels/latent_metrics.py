"""The seed paper's three metrics of a VAE: the runs they need, handed to the pure functions in `nnsight_vae.metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.engine import baseline, checked_batch, run_interventions
from nnsight_vae.errors import SiteError
from nnsight_vae.interventions import Set
from nnsight_vae.levels.units import default_sites
from nnsight_vae.metrics.causal import (
    Form,
    causal_effect_strength,
    circuit_modularity,
    intervention_specificity,
    output_spread,
)
from nnsight_vae.metrics.scores import LatentScores, Score
from nnsight_vae.sites import Site, Unit
from nnsight_vae.vae import VAE

CLAMPS = tuple(np.linspace(-3.0, 3.0, 7))  # the values of the published estimator


class LatentMetrics(NamedTuple):
    """The three metrics of one VAE."""

    effect_strength: LatentScores
    specificity: LatentScores
    modularity: Score

    def __str__(self) -> str:
        return "\n".join(map(str, self))


class _Flat:
    """Every element at a site, one number each."""

    def __init__(self, shape: tuple[int, ...], reads: str = "output") -> None:
        self.names = tuple(map(str, range(int(torch.Size(shape).numel()))))
        self.reads = reads

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten(1)


def latent_metrics(
    vae: VAE, x: Float[Tensor, "n *image"], *, form: Form = "normalised", site: str | None = None, seed: int = 0
) -> LatentMetrics:
    """Causal effect strength and intervention specificity per latent, and circuit modularity of the decoder.

    Latents are clamped to 7 values from -3 to 3 (effect strength) or to 0 (specificity, modularity), at posterior means.

    Args:
        vae: the model.
        x: inputs `[n, *image]`; the published estimator uses up to 200.
        form: `"raw"` as published, or `"normalised"` (unit-free, dead latents left out).
        site: the decoder site whose units modularity is about; by default the middle layer of the decoder.
        seed: of the bootstrap.

    Returns: `LatentMetrics(effect_strength, specificity, modularity)`, each with 95 % intervals over inputs.

    Raises:
        SiteError: `site` is not a site of the decoder.
        DataError: x cannot be run.

    Source: Roy 2025, arXiv 2505.03530, as published by an independent re-implementation; see `nnsight_vae.metrics`.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> len(latent_metrics(vae, torch.rand(12, 1, 8, 8)).effect_strength.values)
        3
    """
    x, _ = checked_batch(vae, x, None)
    site = _decoder_site(vae, site)
    whole = _Flat(vae.sites["output"].shape)
    at_site = _Flat(vae.sites[site].shape, site)
    base = baseline(vae, x, whole)
    n_latents = vae.sites["latent.z"].n_units

    def displacement(k: int) -> Float[np.ndarray, "value example"]:
        moved = run_interventions(vae, x, [{Unit("latent.z", k): Set(float(v))} for v in CLAMPS], whole)
        return (moved - base).norm(dim=-1).cpu().numpy()

    def zeroed(read: _Flat, before: Tensor) -> Iterator[Float[np.ndarray, "example unit"]]:
        for k in range(n_latents):
            yield (run_interventions(vae, x, [{Unit("latent.z", k): Set(0.0)}], read)[0] - before).cpu().numpy()

    changes = np.stack([_per_unit(change, vae.sites[site]) for change in zeroed(at_site, baseline(vae, x, at_site))])
    spread = output_spread(base.cpu().numpy()) if form == "normalised" else None
    return LatentMetrics(
        causal_effect_strength(
            np.stack([displacement(k) for k in range(n_latents)]), form=form, spread=spread, seed=seed
        ),
        intervention_specificity(zeroed(whole, base), form=form, seed=seed),
        circuit_modularity(changes, form=form, seed=seed),
    )


def _per_unit(change: Float[np.ndarray, "example element"], site: Site) -> Float[np.ndarray, "example unit"]:
    """Root mean square over positions: a feature that only moves leaves a channel's mean as it is."""
    units = np.moveaxis(change.reshape(len(change), *site.shape), site.axis, 1)
    return np.sqrt(np.square(units.reshape(*units.shape[:2], -1)).mean(axis=2))


def _decoder_site(vae: VAE, site: str | None) -> str:
    decoder = [name for name in default_sites(vae) if vae.sites[name].stage == "decoder"]
    if site is None and decoder:
        return decoder[len(decoder) // 2]
    if site is None or vae.sites[site].stage not in ("decoder", "output"):
        raise SiteError(
            f"modularity needs a site of the decoder, got {site!r}; this VAE has: {', '.join(decoder) or 'none'}."
        )
    return site
