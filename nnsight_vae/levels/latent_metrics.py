"""The seed paper's three metrics of a VAE: the runs they need, handed to the pure functions in `nnsight_vae.metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LatentRuns:
    """What the metrics are computed from; one set of runs serves both forms.

    Attributes:
        displacement: L2 distance of the output from the unperturbed one, per latent, clamped value and input.
        change: change of every output element under do(z_k = 0).
        unit_change: root mean square change of each unit of a decoder site under do(z_k = 0), over positions.
        unit_sd: each unit's own standard deviation at that site, over inputs and positions.
        spread: how far apart unperturbed outputs are (`nnsight_vae.metrics.causal.output_spread`).
    """

    displacement: Float[np.ndarray, "latent value example"]
    change: Float[np.ndarray, "latent example element"]
    unit_change: Float[np.ndarray, "latent example unit"]
    unit_sd: Float[np.ndarray, " unit"]
    spread: float

    def metrics(self, form: Form = "normalised", seed: int = 0) -> LatentMetrics:
        """The three metrics in one form; see `latent_metrics`."""
        unit_change, spread = self.unit_change, None
        if form == "normalised":  # each unit on its own scale, or the loudest channel is the whole profile
            scale, spread = np.where(self.unit_sd > 0, self.unit_sd, 1.0), self.spread
            unit_change = unit_change / scale
        return LatentMetrics(
            causal_effect_strength(self.displacement, form=form, spread=spread, seed=seed),
            intervention_specificity(self.change, form=form, seed=seed),
            circuit_modularity(unit_change, form=form, seed=seed),
        )


def latent_metrics(
    vae: VAE, x: Float[Tensor, "n *image"], *, form: Form = "normalised", site: str | None = None, seed: int = 0
) -> LatentMetrics:
    """Causal effect strength and intervention specificity per latent, and circuit modularity of the decoder.

    Latents are clamped to 7 values from -3 to 3 (effect strength) or to 0 (specificity, modularity), at posterior means.
    Modularity compares root mean square changes of the units of one decoder site; in the normalised form in units of each
    unit's own standard deviation over inputs.

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
    return latent_runs(vae, x, site).metrics(form, seed)


def latent_runs(vae: VAE, x: Float[Tensor, "n *image"], site: str | None = None) -> LatentRuns:
    """Clamp every latent and keep what the metrics need; arguments as for `latent_metrics`."""
    x, _ = checked_batch(vae, x, None)
    where = vae.sites[_decoder_site(vae, site)]
    whole, at_site = _Flat(vae.sites["output"].shape), _Flat(where.shape, where.name)
    base, base_at_site = baseline(vae, x, whole), baseline(vae, x, at_site)
    latents = range(vae.sites["latent.z"].n_units)

    def clamped(k: int, values: Sequence[float], read: _Flat, before: Tensor) -> Tensor:
        return run_interventions(vae, x, [{Unit("latent.z", k): Set(float(v))} for v in values], read) - before

    zeroed = [_per_unit(clamped(k, (0.0,), at_site, base_at_site)[0].cpu().numpy(), where) for k in latents]
    activation = _units_first(base_at_site.cpu().numpy(), where)
    return LatentRuns(
        displacement=np.stack([clamped(k, CLAMPS, whole, base).norm(dim=-1).cpu().numpy() for k in latents]),
        change=np.stack([clamped(k, (0.0,), whole, base)[0].cpu().numpy() for k in latents]),
        unit_change=np.stack(zeroed),
        unit_sd=np.moveaxis(activation, 1, 0).reshape(activation.shape[1], -1).std(axis=1),
        spread=output_spread(base.cpu().numpy()),
    )


def _units_first(
    values: Float[np.ndarray, "example element"], site: Site
) -> Float[np.ndarray, "example unit position"]:
    units = np.moveaxis(values.reshape(len(values), *site.shape), site.axis, 1)
    return units.reshape(*units.shape[:2], -1)


def _per_unit(change: Float[np.ndarray, "example element"], site: Site) -> Float[np.ndarray, "example unit"]:
    """Root mean square over positions: a feature that only moves leaves a channel's mean as it is."""
    return np.sqrt(np.square(_units_first(change, site)).mean(axis=2))


def _decoder_site(vae: VAE, site: str | None) -> str:
    decoder = [name for name in default_sites(vae) if vae.sites[name].stage == "decoder"]
    if site is None and decoder:
        return decoder[len(decoder) // 2]
    if site is None or vae.sites[site].stage not in ("decoder", "output"):
        raise SiteError(
            f"modularity needs a site of the decoder, got {site!r}; this VAE has: {', '.join(decoder) or 'none'}."
        )
    return site
