"""How much each factor moves each other one in a model, example by example: what `factor_graph` tests."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.causal.mapping import FactorMap
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import activations, baseline
from nnsight_vae.errors import DataError
from nnsight_vae.levels.latents import perturb_latents
from nnsight_vae.readouts import Readout, Reencoded
from nnsight_vae.vae import VAE

PairEffects = dict[tuple[str, str], Float[np.ndarray, " example"]]  # (cause, effect) -> signed effect of each example


def decoded_effects(vae: VAE, mapping: FactorMap) -> PairEffects:
    """Of moving the latent matched to the cause, on the effect as it is decoded; of codes, their size only."""
    coded = vae.adapter.codebook is not None  # signed effects of different codes would cancel
    values = mapping.magnitude if coded else mapping.effects.values
    return {
        (cause, effect): values[k, j]
        for cause, k in mapping.assignment.items()
        for j, effect in enumerate(mapping.factors)
        if k is not None and effect != cause
    }


def reencoded_effects(vae: VAE, data: Dataset, mapping: FactorMap, n: int, seed: int) -> PairEffects:
    """Of moving the latent matched to the cause, on the latent matched to the effect when the moved picture is encoded again.

    In standard deviations of the latter's posterior mean over the images.
    """
    x = data.sample(n, seed=seed).images
    matched = {factor: k for factor, k in mapping.assignment.items() if k is not None}
    if len(matched) < 2:
        return {}
    means = activations(vae, x, ["latent.mu"])["latent.mu"].double().cpu().numpy()
    spread = means.std(axis=0)
    units = [mapping.effects.units[k] for k in matched.values()]
    moved = perturb_latents(vae, x, "posterior", readout=Reencoded(vae), units=units, progress=False).values
    return {
        (cause, effect): moved[row, k] / spread[k]
        for row, cause in enumerate(matched)
        for effect, k in matched.items()
        if effect != cause and spread[k] > 0
    }


def require_one_number_each(vae: VAE, who: str) -> None:
    """Refuse latents that are codes, or have positions: what is inferred of one is not one number.

    Raises:
        DataError: naming which.
    """
    if vae.adapter.codebook is not None or any(vae.sites["latent.mu"].positions):
        what = "are codes" if vae.adapter.codebook is not None else "have positions"
        raise DataError(
            f"{who} needs latents that are one number each, and those of this model {what}. "
            "Use factor_graph(through='latents')."
        )


def total_effects(vae: VAE, data: Dataset, readout: Readout, n: int, seed: int) -> PairEffects:
    """Of do(cause) in the world, its effects following, on the effect as the model decodes it."""
    found: PairEffects = {}
    for cause in readout.names:
        pairs = data.pairs(cause, n, seed=seed, propagate=True)
        change = _array(baseline(vae, pairs.source, readout) - baseline(vae, pairs.base, readout))
        found |= {(cause, effect): change[:, j] for j, effect in enumerate(readout.names) if effect != cause}
    return found


def direct_effects(vae: VAE, data: Dataset, readout: Readout, n: int, seed: int) -> PairEffects:
    """Of do(cause) in the world, on the effect as the model decodes it, while all other factors keep their values.

    The cause is set to what it is in another image; the effect follows its own mechanism, with its own noise.
    """
    batch = data.sample(n, seed=seed)
    factual = baseline(vae, batch.images, readout)
    rng = np.random.default_rng([seed, 1])
    found: PairEffects = {}
    for cause in readout.names:
        own = batch.factors[:, data.factors.index(cause)]
        other = _others(own, cause, data, rng)
        for j, effect in enumerate(readout.names):
            if effect != cause:
                held = {f: batch.factors[:, c] for c, f in enumerate(data.factors) if f not in (cause, effect)}
                images = data.counterfactual(batch, **held, **{cause: other}).images
                change = baseline(vae, images, readout)[:, j] - factual[:, j]
                found[cause, effect] = _array(change * torch.sign(other - own).to(change))  # oriented low -> high
    return found


def _others(own: Float[Tensor, " n"], factor: str, data: Dataset, rng: np.random.Generator) -> Float[Tensor, " n"]:
    """For each image, the factor's value in another one, in which it differs."""
    choices = [torch.nonzero(own != value).flatten() for value in own]
    if not len(choices[0]):
        raise DataError(f"factor_graph: {factor!r} takes one value only in {len(own)} images of {data.name}.")
    return own[torch.stack([others[rng.integers(len(others))] for others in choices])]


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
