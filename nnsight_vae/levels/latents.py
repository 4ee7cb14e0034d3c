"""Latent level: set one latent, one position or one code, and read what the decoder does with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.engine import baseline, checked_batch, run_interventions
from nnsight_vae.interventions import Quantize
from nnsight_vae.levels.latent_values import RANGE, Moves, Values, moves
from nnsight_vae.levels.manifold import off_manifold
from nnsight_vae.levels.units import Per, experiments
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import noise_record, provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.results.effects import Effects
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE


def perturb_latents(
    vae: VAE,
    x: Float[Tensor, "n *image"],
    values: Values | None = None,
    *,
    readout: Readout,
    units: Sequence[Key | tuple[Key, ...]] | Key | None = None,
    per: Per | None = None,
    quantiles: Sequence[float] = RANGE,
    eps: Tensor | None = None,
    progress: bool | None = None,
) -> Effects:
    """The effect of moving each latent from a low to a high value, everything else of the code kept.

    effect_k = Y(do(z_k = last)) - Y(do(z_k = first)), per example. In the result's `parts`, each value's own effect against
    the unperturbed reconstruction, Y(do(z_k = v)) - Y(z), under the value's name. With a single value, that is the whole
    result; with `"codes"`, their mean weighted by how often each code is used: the effect of a code drawn anew.

    Args:
        vae: the model.
        x: inputs `[n, *image]` whose codes are perturbed.
        values: what latents are set to, one after the other.

            - `"posterior"` (default): each latent's own `quantiles` over the aggregate posterior of x, so that the decoder is
              asked about values it has seen; parts `"q0.05"`, `"q0.95"`.
            - `"prior"`: the `quantiles` of N(0, 1).
            - numbers, in latent units, the same for every latent; parts `"-3"`, `"0.5"`, ...
            - `nv.Swap(others)`: the counterfactual, each latent as it is for another input, noise shared; part `"swap"`.
            - `"codes"` (default of a VAE with a codebook): every code that x uses, or 32 drawn by usage where there are more;
              parts `"code 3"`, ... A continuous value would be snapped back by the quantiser.
            - any interventions, such as `[nv.Quantize(3), nv.Quantize(5)]` or `nv.Add(1.0)`.

        readout: what is measured, e.g. `data.readout()`, `nv.readouts.Pixels(shape)` or `nv.readouts.Reencoded(vae)`.
        units: keys at `latent.z`, a tuple of keys being moved together; by default all of it.
        per: what is moved at once: `"unit"` (a latent, or a channel of a spatial latent, everywhere), `"position"` (all
            channels at one position, each to its own value), `"site"` (each key as a whole). By default units, for codes
            positions.
        quantiles: of `"posterior"` and `"prior"`, in the order in which they are moved through.
        eps: noise `[n, *latent]` of the codes; None perturbs posterior means.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [latent, target, example], in units of the readout. `provenance["values"]` has what each was set to, by
        value and unit, `provenance["manifold"]` how far that takes the codes from those of the data
        (`nnsight_vae.levels.manifold`): under `tail`, for each value and unit, the share of clean codes that are at least as far.

    Raises:
        InterventionError: values are empty, repeated, not finite, unknown, or do not fit the units.
        SiteError, DataError, ReadoutError: before any work.

    Warns:
        NnsightVaeWarning: most codes leave the 99 % region of the aggregate posterior.

    Source: latent intervention of Roy 2025, arXiv 2505.03530; calibrated ranges after Roy et al. 2026, arXiv 2603.21236.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> effects = perturb_latents(vae, torch.rand(40, 1, 8, 8), readout=top)
        >>> effects.values.shape, list(effects.parts)
        ((3, 1, 40), ['q0.05', 'q0.95'])
        >>> sorted(effects.provenance["manifold"]["tail"]["q0.95"])
        ['latent.z[0]', 'latent.z[1]', 'latent.z[2]']
    """
    require(vae, readout=readout)
    x, eps = checked_batch(vae, x, eps)
    what, moved = latent_moves(vae, x, values, units, per, quantiles)
    manifold = off_manifold(vae, x, what, moved, eps)
    with progress_bar("perturbing latents", len(moved.plan) * len(x), progress) as advance:
        read = run_interventions(vae, x, moved.plan, readout, eps=eps, progress=advance)
    read = read.view(len(moved.names), len(what), *read.shape[1:])
    record = provenance(
        vae, None, readout, values=moved.record(what), n=len(x), noise=noise_record(eps), manifold=manifold
    )
    change = (read - baseline(vae, x, readout, eps=eps)).double().cpu().numpy().transpose(0, 1, 3, 2)

    def effects(array: np.ndarray, estimand: str, **more: Any) -> Effects:
        return Effects(array, tuple(what), tuple(readout.names), estimand, provenance=record, **more)

    parts = {name: effects(row, f"do(z_k = {name})") for name, row in zip(moved.names, change, strict=True)}
    first, last = moved.names[0], moved.names[-1]
    if moved.weights is not None:
        mean = np.tensordot(moved.weights, change, axes=1)
        return effects(mean, "do(z = code), mean over codes as used", parts=parts)
    if len(parts) == 1:
        return parts[first]
    return effects(change[-1] - change[0], f"do(z_k = {last}) - do(z_k = {first})", parts=parts)


def latent_moves(
    vae: VAE,
    x: Tensor,
    values: Values | None,
    units: Sequence[Key | tuple[Key, ...]] | Key | None = None,
    per: Per | None = None,
    quantiles: Sequence[float] = RANGE,
) -> tuple[dict[str, tuple[Selection, ...]], Moves]:
    """The experiments, and what each is set to, that the arguments of `perturb_latents` stand for."""
    if values is None:
        values = "posterior" if vae.adapter.codebook is None else "codes"
    if per is None:
        listed = [values] if isinstance(values, str | Quantize) else values
        discrete = isinstance(listed, Sequence) and any(isinstance(v, Quantize) or v == "codes" for v in listed)
        per = "position" if discrete else "unit"
    what = experiments(vae, "latent.z" if units is None else units, per)
    return what, moves(vae, x, values, what, quantiles)
