"""Latent level: clamp one latent and read what the decoder does with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.effects import Effects
from nnsight_vae.engine import activations, baseline, checked_batch, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Set
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import repeat
from nnsight_vae.sites import Unit
from nnsight_vae.vae import VAE

DRAWS = 100  # fewest draws of each latent that its quantiles are taken over
RANGE = (0.05, 0.95)  # quantiles of the aggregate posterior between which a latent is moved by default


def posterior_quantiles(
    vae: VAE, x: Float[Tensor, "n *image"], quantiles: Sequence[float] = RANGE, seed: int = 0
) -> Float[Tensor, "quantile latent"]:
    """Quantiles of each latent's aggregate posterior q(z_k) = mean over x of q(z_k | x).

    One draw from q(z|x) an example (more where examples are fewer than 100): a collapsed latent then gets the prior's spread, not the point its means collapse to, and
    clamping it to these values stays where the decoder has been trained.

    Args:
        vae: the model.
        x: inputs `[n, *image]` that stand for the data.
        quantiles: in [0, 1].
        seed: of the draws.

    Returns: `[quantile, latent]`; for a spatial latent `[quantile, channel]`, over examples and positions.
    """
    acts = activations(vae, x, ["latent.mu", "latent.logvar"])
    mu, logvar = acts["latent.mu"], acts["latent.logvar"]
    draws = math.ceil(DRAWS / len(mu))
    eps = torch.randn(draws * len(mu), *mu.shape[1:], generator=torch.Generator().manual_seed(seed)).to(mu)
    z = (repeat(mu, draws) + torch.exp(0.5 * repeat(logvar, draws)) * eps).transpose(0, 1).flatten(1)
    # numpy: torch.quantile refuses half precision and more than 16 million values
    return torch.from_numpy(np.quantile(z.double().cpu().numpy(), quantiles, axis=1)).to(mu)


def perturb_latents(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    values: Sequence[float] | None = None,
    *,
    readout: Readout,
    eps: Tensor | None = None,
    progress: bool | None = None,
) -> Effects:
    """The effect of moving each latent from a low to a high value, everything else of the code kept.

    effect_k = Y(do(z_k = last)) - Y(do(z_k = first)), per example. In the result's `parts`, each value's own effect against
    the unperturbed reconstruction, Y(do(z_k = v)) - Y(z), under the value's name.

    Args:
        vae: the model.
        x: inputs `[n, *image]` whose codes are perturbed.
        values: the same values for every latent, in latent units; by default each latent's own 5 % and 95 % quantile over the
            aggregate posterior of x, so that the decoder is asked about codes it has seen.
        readout: what is measured, e.g. `data.readout()`.
        eps: noise `[n, *latent]` of the codes; None perturbs posterior means.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [latent, target, example], in units of the readout; with one value, its effect against the unperturbed
        reconstruction.

    Raises:
        InterventionError: values is empty, not finite, or not one list for all latents.
        DataError, ReadoutError: before any work.

    Source: latent intervention of Roy 2025, arXiv 2505.03530; calibrated ranges after Roy et al. 2026, arXiv 2603.21236.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> effects = perturb_latents(vae, torch.rand(12, 1, 8, 8), readout=top)
        >>> effects.values.shape, list(effects.parts)
        ((3, 1, 12), ['q0.05', 'q0.95'])
    """
    require(vae, readout=readout)
    x, eps = checked_batch(vae, x, eps)
    n_latents = vae.sites["latent.z"].n_units
    if values is None:
        names = [f"q{q:g}" for q in RANGE]
        table = posterior_quantiles(vae, x).double().cpu().numpy()
    else:
        clamps = np.asarray(values, dtype=float)
        if clamps.ndim != 1 or len(clamps) == 0 or not np.isfinite(clamps).all():
            raise InterventionError(
                f"values must be a list of finite numbers in latent units, the same for every latent; got {values!r}."
            )
        names = [f"{v:g}" for v in clamps]
        table = np.repeat(clamps[:, None], n_latents, axis=1)
    plan = [{Unit("latent.z", k): Set(float(row[k]))} for row in table for k in range(n_latents)]
    with progress_bar("perturbing latents", len(plan) * len(x), progress) as advance:
        moved = run_interventions(vae, x, plan, readout, eps=eps, progress=advance)
    moved = moved.view(len(names), n_latents, *moved.shape[1:])
    base = baseline(vae, x, readout, eps=eps)
    units = tuple(f"latent.z[{k}]" for k in range(n_latents))
    record = provenance(
        vae, None, readout, values={name: row.tolist() for name, row in zip(names, table, strict=True)}, n=len(x)
    )

    def effects(change: Tensor, estimand: str, parts: dict[str, Effects] | None = None) -> Effects:
        array = change.double().cpu().numpy().transpose(0, 2, 1)
        return Effects(array, units, tuple(readout.names), estimand, None, record, parts or {})

    parts = {name: effects(row - base, f"do(z_k = {name})") for name, row in zip(names, moved, strict=True)}
    if len(names) == 1:
        return parts[names[0]]
    return effects(moved[-1] - moved[0], f"do(z_k = {names[-1]}) - do(z_k = {names[0]})", parts)
