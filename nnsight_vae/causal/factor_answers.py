"""Encoder side of a map: by how much each factor, changed alone in the data, changes each latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.causal.single_factor_pairs import single_factor_pairs
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import activations
from nnsight_vae.levels.latent_values import posterior_draws
from nnsight_vae.stats.significance import benjamini_hochberg
from nnsight_vae.stats.skewness import one_sided_pvalues, simultaneous_interval
from nnsight_vae.vae import VAE

_DRAWS = 1000  # of the aggregate posterior: its sd is then known to 2 %
_ROUNDING = 4.0  # units of least precision that a latent that never varies may still spread over


@dataclass(frozen=True)
class FactorAnswers:
    """How much each latent answers to each factor: E |change of mu_k| under do(factor) alone, in sd of the aggregate posterior.

    That sd counts what the encoder is unsure of: a collapsed latent, whose mean wanders by a hundredth of its noise, has size .01,
    one that is a Gaussian factor and nothing else 1.1. Of a latent with positions it is the root mean square over them, of a code
    over the channels at its position.

    Attributes:
        factors: those that could be changed alone.
        missing: factor -> why it could not.
        size: mean over pairs, [latent, factor].
        low: lower simultaneous bounds.
        high: upper simultaneous bounds.
        q: Benjamini-Hochberg-adjusted p-values of "size is at most the minimum", over latents x factors.
        min_effect: the smallest size of interest.
        match: factor -> how far apart its pairs are in each factor, where they were matched and not rendered.
    """

    factors: tuple[str, ...]
    missing: dict[str, str]
    size: Float[np.ndarray, "latent factor"]
    low: Float[np.ndarray, "latent factor"]
    high: Float[np.ndarray, "latent factor"]
    q: Float[np.ndarray, "latent factor"]
    min_effect: float
    match: dict[str, dict[str, float]] = field(default_factory=dict)

    def heard(self, latent: int, factor: str) -> bool | None:
        """Whether a latent answers to a factor by more than the minimum; None where the factor could not be changed alone."""
        if factor not in self.factors:
            return None
        return bool(self.low[latent, self.factors.index(factor)] > self.min_effect)

    def silent(self, latent: int) -> bool | None:
        """True: no factor changes the latent by the minimum. False: one does, or was not tried. None: the data do not decide."""
        if self.missing or (self.low[latent] > self.min_effect).any():
            return False
        return True if (self.high[latent] < self.min_effect).all() else None


def factor_answers(
    vae: VAE, data: Dataset, factors: Sequence[str], n: int, seed: int, min_effect: float, level: float
) -> FactorAnswers:
    """Change each factor alone, in n pairs of images, and see what the latents make of it.

    Args:
        vae: the model.
        data: the data set.
        factors: names; one that the data set does not have, or that has one value, is missing with the reason.
        n: pairs per factor.
        seed: of the pairs.
        min_effect: the smallest size of interest, in sd of the latent.
        level: simultaneous coverage over latents x factors.
    """
    pairs, missing = single_factor_pairs(data, factors, n, seed)
    reference = data.sample(min(n, data.n_images or n), seed).images
    spread, floor = _spread(vae, reference)
    cells = np.zeros((len(spread), 0, n))
    if pairs:
        changes = []
        for each in pairs.values():
            means = [activations(vae, x, ["latent.mu"])["latent.mu"] for x in (each.base, each.source)]
            changes.append(_by_latent(vae, means[1] - means[0]).square().mean(-1).sqrt().double().cpu().numpy())
        change = np.stack(changes, axis=1)
        known = (spread > floor)[:, None, None] & (change > floor[:, None, None])
        cells = np.divide(change, spread[:, None, None], out=np.zeros_like(change), where=known)
    low, high = simultaneous_interval(cells, level)
    above, _ = one_sided_pvalues(cells, min_effect)
    match = {factor: each.match for factor, each in pairs.items() if each.match is not None}
    q = benjamini_hochberg(above)
    return FactorAnswers(tuple(pairs), missing, cells.mean(axis=2), low, high, q, min_effect, match)


def _by_latent(vae: VAE, z: Float[Tensor, "n channel *position"]) -> Float[Tensor, "latent n part"]:
    """A latent's numbers side by side: the positions of a channel, or the channels of a code."""
    parts = z.unsqueeze(-1).flatten(2)
    return parts.permute(2, 0, 1) if vae.adapter.codebook is not None else parts.transpose(0, 1)


def _spread(vae: VAE, x: Tensor) -> tuple[Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
    """Sd of each latent's aggregate posterior, root mean square over its parts, and what rounding alone can make of it."""
    z = _by_latent(vae, posterior_draws(vae, x, _DRAWS))
    spread = z.var(1, correction=0).mean(-1).sqrt()
    size = z.square().mean((1, 2)).sqrt()
    floor = _ROUNDING * torch.finfo(z.dtype).eps * (size + z.square().mean().sqrt())
    return spread.double().cpu().numpy(), floor.double().cpu().numpy()
