"""Activation level: move one unit's activation between the two runs of a pair, and read what changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.effects import Effects
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Swap
from nnsight_vae.levels.units import default_sites, selected_units
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE

Direction = Literal["both", "noising", "denoising"]


def patch_activations(
    vae: VAE,
    pairs: Pairs,
    sites: Sequence[Key] | None = None,
    *,
    readout: Readout,
    direction: Direction = "both",
    progress: bool | None = None,
) -> Effects:
    """The effect of each unit, from patching it alone between base and source runs.

    noising    N_u = Y(base; a_u <- a_u(source)) - Y(base)       (pure natural indirect effect, PNIE)
    denoising  D_u = Y(source) - Y(source; a_u <- a_u(base))     (total natural indirect effect, TNIE)
    both       (N_u + D_u) / 2, with the two in the result's `parts`; they differ by the interaction of u with the rest.

    Args:
        vae: the model.
        pairs: base and source inputs; noise is shared between all runs of a pair.
        sites: keys such as `"encoder.4"`, `"latent.z[3]"`, `"decoder.2[0:8]"`; each unit is patched alone. By default every unit
            of every linear and convolutional layer and of `latent.z`.
        readout: what is measured, e.g. `data.readout()`.
        direction: `"both"`, `"noising"` or `"denoising"`.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [unit, target, pair], in units of the readout.

    Raises:
        SiteError, DataError, ReadoutError: before any work.

    Source: Vig et al. 2020, arXiv 2004.12265 (natural effects); Roy 2025, arXiv 2505.03530 (activation patching of VAEs).

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> patch_activations(vae, pairs, ["latent.z"], readout=top).values.shape
        (3, 1, 12)
    """
    if direction not in ("both", "noising", "denoising"):
        raise InterventionError(f"direction must be 'both', 'noising' or 'denoising', got {direction!r}.")
    require(vae, pairs, readout)
    vae.checked(pairs.base)
    units = selected_units(vae, sites if sites is not None else default_sites(vae))
    wanted = ("noising", "denoising") if direction == "both" else (direction,)
    groups, source_groups = pairs.cluster_ids
    estimands = {"noising": "PNIE (noising)", "denoising": "TNIE (denoising)"}
    record = provenance(vae, pairs, readout, direction=direction)
    parts: dict[str, Effects] = {}
    with progress_bar("patching", len(wanted) * len(units) * len(pairs), progress) as advance:
        for name in wanted:
            receiver, donor, sign = (
                (pairs.base, pairs.source, 1.0) if name == "noising" else (pairs.source, pairs.base, -1.0)
            )
            swap = Swap(donor)
            patched = run_interventions(
                vae, receiver, [{unit: swap} for unit in units], readout, eps=pairs.eps, progress=advance
            )
            change = sign * (patched - baseline(vae, receiver, readout, eps=pairs.eps))
            parts[name] = Effects(
                _unit_target_pair(change),
                tuple(map(str, units)),
                tuple(readout.names),
                estimands[name],
                groups,
                record,
                source_groups=source_groups,
            )
    if direction != "both":
        return parts[direction]
    mean = (parts["noising"].values + parts["denoising"].values) / 2
    return Effects(
        mean,
        tuple(map(str, units)),
        tuple(readout.names),
        "(PNIE + TNIE) / 2 (patching, both directions)",
        groups,
        record,
        parts,
        source_groups=source_groups,
    )


def _unit_target_pair(change: Tensor) -> np.ndarray:
    return change.double().cpu().numpy().transpose(0, 2, 1)
