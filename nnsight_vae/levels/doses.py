"""Input level, several values of one factor: which units respond to it, and how."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnsight_vae.arguments import require
from nnsight_vae.doses import Doses
from nnsight_vae.engine import checked_batch
from nnsight_vae.errors import DataError
from nnsight_vae.levels.answers import Scale, reference_means, unit_blocks, unit_means
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import noise_record, provenance
from nnsight_vae.results.dose_response import DoseResponse
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE


def dose_response(
    vae: VAE, doses: Doses, sites: Sequence[Key] | None = None, *, progress: bool | None = None
) -> DoseResponse:
    """How each unit follows one factor: its response to the same units of the world under do(factor = v), for every v.

    response_u(v, i) = [a_u(v, i) - mean_v a_u(v, i)] / sd(a_u), for unit u of the model and unit i of the world; a_u is averaged
    over positions, sd(a_u) is taken over `doses.reference` (all images where there is none). Units that never vary respond 0.

    Args:
        vae: the model.
        doses: the images, e.g. `data.doses("angle", n=64)`, or your own in `nv.Doses`; reparameterisation noise is shared.
        sites: which units; by default those of every linear and convolutional layer and of the latent.
        progress: show a bar; by default on an interactive terminal.

    Returns: `DoseResponse`, whose `to_frame()` tells which units respond (FDR-controlled) and in which shape.

    Raises:
        SiteError, DataError: unknown sites; images this model cannot run.

    Source: tuning curves of units (Hubel & Wiesel 1962), here under interventions on one factor with all noise shared.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> images = torch.rand(12, 1, 8, 8)
        >>> shaded = torch.stack([shade * images for shade in (0.2, 0.6, 1.0)])
        >>> doses = nv.Doses(shaded, values=[0.2, 0.6, 1.0], factor="shade")
        >>> dose_response(vae, doses, sites=["latent.mu"]).values.shape
        (3, 3, 12)
    """
    require(vae)
    if not isinstance(doses, Doses):
        raise DataError(
            f"got a {type(doses).__name__} where doses belong; make them with data.doses(factor) or nv.Doses(images, values)."
        )
    checked_batch(vae, doses.images[0], doses.eps)
    names, blocks = unit_blocks(vae, sites)
    n_inputs = len(doses.images) * len(doses) + (0 if doses.reference is None else len(doses.reference))
    with progress_bar("following doses", n_inputs, progress) as advance:
        usual = reference_means(vae, doses.reference, doses.eps, blocks, advance)
        shown = [unit_means(vae, *checked_batch(vae, batch, doses.eps), blocks, advance) for batch in doses.images]
    scale = Scale.of(shown, usual, names, doses.images.dtype)
    values = np.asarray(doses.values, dtype=np.float64)
    raw = np.stack([means.values for means in shown], axis=1)
    record = provenance(vae, unit="standard deviations of the unit", scale=scale.record)
    record["doses"] = doses.record | {
        "n": len(doses),
        "factor": doses.factor,
        "values": values.tolist(),
        "propagate": doses.propagate,
        "noise": noise_record(doses.eps),
    }
    return DoseResponse(
        scale.standardised(raw - raw.mean(axis=1, keepdims=True)),
        names,
        values,
        doses.factor,
        doses.factor_sd,
        None if doses.groups is None else doses.groups.cpu().numpy(),
        scale.rounding,
        record,
    )
