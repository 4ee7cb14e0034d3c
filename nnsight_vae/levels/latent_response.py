"""Latent responses of a VAE: resample one latent, decode, encode again, and see which latents have moved."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.engine import baseline, checked_batch, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Set
from nnsight_vae.levels.latent_values import posterior_draws
from nnsight_vae.reencoded import Reencoded
from nnsight_vae.sites import Unit
from nnsight_vae.vae import VAE

Source = Literal["prior", "posterior"]


class Responses(NamedTuple):
    """What the latent response matrix is computed from.

    Attributes:
        changes: root mean square change of each re-encoded latent, over draws and positions.
        base: re-encoded latents without interventions.
    """

    changes: Float[np.ndarray, "latent example response"]
    base: Float[np.ndarray, "example response position"]


def latent_responses(
    vae: VAE, x: Float[Tensor, "n *image"], values: Source = "prior", *, draws: int = 4, seed: int = 0
) -> Responses:
    """Re-encoded latents with each latent resampled in turn, and without.

    Args:
        vae: the model, whose output its own encoder can read.
        x: inputs `[n, *image]`, whose posterior means are the codes z.
        values: where the resampled coordinate comes from: `"prior"`, N(0, 1), as published; or `"posterior"`, another example's
            draw from q(z|x).
        draws: of every example and latent.
        seed: of the draws; the same for every latent.

    Raises:
        InterventionError: unknown values, or no draws.
        DataError: x, or the model's own output, cannot be run.
    """
    if values not in ("prior", "posterior") or draws < 1:
        raise InterventionError(f"expected values 'prior' or 'posterior' and draws >= 1, got {values!r} and {draws!r}.")
    x, _ = checked_batch(vae, x, None)
    latent = vae.layout(x).sites["latent.z"].shape
    drawn = latent_draws(vae, x, values, draws, seed).split(len(x))
    plan: list[dict[Unit, Intervention]] = [
        {Unit("latent.z", j): Set(z[:, j : j + 1])} for j in range(latent[0]) for z in drawn
    ]
    read = Reencoded(vae)
    base = baseline(vae, x, read)
    squares = (run_interventions(vae, x, plan, read) - base).double().square()
    changes = squares.view(latent[0], draws, len(x), latent[0], -1).mean(dim=(1, 4)).sqrt()
    return Responses(changes.cpu().numpy(), base.double().view(len(x), latent[0], -1).cpu().numpy())


def latent_draws(
    vae: VAE, x: Float[Tensor, "n *image"], values: Source, draws: int, seed: int
) -> Float[Tensor, "row *latent"]:
    """What latents are set to: `draws` codes for each example, from the prior or from the aggregate posterior, in random order."""
    generator = torch.Generator().manual_seed(seed)
    if values == "prior":
        shape = vae.layout(x).sites["latent.z"].shape
        return torch.randn(draws * len(x), *shape, generator=generator, dtype=torch.float32)
    z = posterior_draws(vae, x, draws * len(x), seed)
    return z[torch.randperm(len(z), generator=generator).to(z.device)]
