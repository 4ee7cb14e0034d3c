"""Mediation: how much of the effect of a factor goes through a set of units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Mean, Number, Quantize, Resample, Set, Swap, Zero
from nnsight_vae.levels.mediators import mediator_sets
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.results.mediation import Mediation
from nnsight_vae.results.mediation_quantities import Scale
from nnsight_vae.rounding import resolution
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE

_HOLDS = Set | Zero | Mean | Resample | Swap | Quantize  # what replaces an activation whatever it was


def mediate(
    vae: VAE,
    pairs: Pairs,
    mediators: Sequence[Key] | Key,
    *,
    readout: Readout,
    hold: Intervention | Number | None = None,
    scale: Scale = "difference",
    progress: bool | None = None,
) -> Mediation:
    """Decompose the effect of source against base into what goes through a set of mediators and what does not.

    With Y(a, M_b) the readout of input a while the mediators M hold what they compute on input b:

    TE = Y(s, M_s) - Y(b, M_b)      PNIE = Y(b, M_s) - Y(b, M_b)      TNIE = Y(s, M_s) - Y(s, M_b)
    NDE = TE - TNIE                 INT = TNIE - PNIE                 TE = NDE + TNIE = PNIE + NDE + INT, exactly, per pair

    and, where the mediators are also held at a value m,

    CDE(m) = Y(s, m) - Y(b, m)      INTref(m) = NDE - CDE(m)          TE = CDE + INTref + INT + PNIE

    A network is a simulator: all runs are observed, noise shared, so these are not estimates under assumptions. What rounding alone
    can make (16 units in the last place of the readout's largest value) is 0.

    Args:
        vae: the model.
        pairs: base (b) and source (s) inputs.
        mediators: the mediating set, all patched together: units, slices, sites, latents, positions.
        readout: what is measured.
        hold: what the mediators are held at for CDE: a number, or an intervention that puts a value in their place
            (`nv.Zero()`, `nv.Set(tensor)`, `nv.Mean(images)`); None leaves CDE out.
        scale: `"difference"`, in units of the readout; `"relative"`, every quantity divided by Y(b, M_b) of its pair, so
            TE = y_source / y_base - 1. See `Mediation` for what no longer holds then.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Mediation`, each quantity an `Effects` of shape [1, target, pair].

    Raises:
        SiteError, DataError, ReadoutError: before any work.
        InterventionError: before any work: no mediators, two that name the same unit, mediators that come after what is
            read, a `hold` that does not hold.
        DataError: the scale is relative and Y(b, M_b) is near 0, or changes sign.

    Source: Pearl 2001 (natural effects); VanderWeele 2014, doi 10.1097/EDE.0000000000000121 (decomposition); Vig et al. 2020,
        arXiv 2004.12265 (networks, relative scale).

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> m = mediate(vae, pairs, ["latent.z"], readout=top, hold=0.0)  # the whole latent: everything goes through it
        >>> bool(abs(m.nde.mean()).max() < 1e-6), bool(abs(m.cde.mean()).max() < 1e-6)
        (True, True)
    """
    require(vae, pairs, readout)
    held = _held(hold)
    if scale not in get_args(Scale):
        raise InterventionError(f"scale must be 'difference' or 'relative', got {scale!r}.")
    vae.checked(pairs.base)
    one_set = tuple(mediators) if isinstance(mediators, list | tuple) else (mediators,)
    if any(isinstance(each, tuple | list) for each in one_set):
        raise InterventionError(
            f"mediate takes one set of mediators, got mediators={mediators!r}: list its keys side by side. "
            "nv.shapley_mediators and nv.path_effects take several sets."
        )
    ((name, selections),) = mediator_sets(vae, [one_set], readout).items()
    patched: dict[str, tuple[Tensor, Intervention]] = {
        "noised": (pairs.base, Swap(pairs.source)),
        "denoised": (pairs.source, Swap(pairs.base)),
    }
    if held is not None:
        patched |= {"base_held": (pairs.base, held), "source_held": (pairs.source, held)}
    runs: dict[str, Tensor] = {}
    with progress_bar("mediating", len(patched) * len(pairs), progress) as advance:
        for which, (receiver, intervention) in patched.items():
            joint = dict.fromkeys(selections, intervention)
            runs[which] = run_interventions(vae, receiver, [joint], readout, eps=pairs.eps, progress=advance)[0]
    for which, x in (("base", pairs.base), ("source", pairs.source)):
        runs[which] = baseline(vae, x, readout, eps=pairs.eps)
    groups, source_groups = pairs.cluster_ids
    return Mediation.from_runs(
        **{which: _target_pair(values) for which, values in runs.items()},
        resolution=resolution(torch.cat([runs["base"], runs["source"]])),
        scale=scale,
        targets=readout.names,
        mediator=name,
        groups=groups,
        source_groups=source_groups,
        provenance=provenance(vae, pairs, readout, mediators=name, hold=None if held is None else str(hold)),
    )


def _held(hold: Intervention | Number | None) -> Intervention | None:
    """What holds the mediators; an intervention that leaves them to depend on the input does not."""
    if hold is None or isinstance(hold, _HOLDS):
        return hold
    try:
        if not isinstance(hold, Intervention):
            return Set(hold)
    except InterventionError:  # not a finite number
        pass
    raise InterventionError(
        f"hold={hold!r} does not hold the mediators at a value; use a number, nv.Zero(), nv.Set(...) or nv.Mean(...)."
    )


def _target_pair(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy().T
