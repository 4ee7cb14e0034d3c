"""Mediation: how much of the effect of a factor goes through a set of units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Swap
from nnsight_vae.mediation_result import Mediation
from nnsight_vae.pairs import Pairs
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE


def mediate(vae: VAE, pairs: Pairs, mediators: Sequence[Key] | Key, *, readout: Readout) -> Mediation:
    """Decompose the effect of source against base into what goes through a set of mediators and what does not.

    With Y(a, M_b) the readout of input a while the mediators M hold what they compute on input b:

    TE = Y(s, M_s) - Y(b, M_b)      PNIE = Y(b, M_s) - Y(b, M_b)      TNIE = Y(s, M_s) - Y(s, M_b)
    NDE = TE - TNIE                 INT = TNIE - PNIE                 TE = NDE + TNIE = PNIE + NDE + INT, exactly, per pair

    A network is a simulator: all four runs are observed, noise shared, so these are not estimates under assumptions.

    Args:
        vae: the model.
        pairs: base (b) and source (s) inputs.
        mediators: the mediating set, all patched together: units, slices, sites, latents.
        readout: what is measured.

    Returns: `Mediation`, each quantity an `Effects` of shape [1, target, pair] in units of the readout; difference scale.

    Raises:
        SiteError, DataError, ReadoutError: before any work.
        InterventionError: no mediators, or two that name the same unit.

    Source: Pearl 2001 (natural effects); VanderWeele 2014, doi 10.1097/EDE.0000000000000121 (decomposition); Vig et al. 2020.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> m = mediate(vae, pairs, ["latent.z"], readout=top)  # the whole latent: everything goes through it
        >>> bool(abs(m.nde.mean()).max() < 1e-6)
        True
    """
    keys = [mediators] if isinstance(mediators, Key) else list(mediators)
    if not keys:
        raise InterventionError("mediate needs at least one mediator, e.g. mediators=['encoder.4[0:8]'].")
    require(vae, pairs, readout)
    vae.checked(pairs.base)
    name = " + ".join(str(vae.sites.select(key)) for key in keys)

    def hold(donor: Tensor) -> dict[Key, Intervention]:
        swap = Swap(donor)
        return dict.fromkeys(keys, swap)

    def run(receiver: Tensor, joint: dict[Key, Intervention] | None) -> np.ndarray:
        if joint is None:
            values = baseline(vae, receiver, readout, eps=pairs.eps)
        else:
            values = run_interventions(vae, receiver, [joint], readout, eps=pairs.eps)[0]
        return values.double().cpu().numpy().T

    return Mediation.from_runs(
        base=run(pairs.base, None),
        source=run(pairs.source, None),
        noised=run(pairs.base, hold(pairs.source)),
        denoised=run(pairs.source, hold(pairs.base)),
        targets=readout.names,
        mediator=name,
        groups=None if pairs.groups is None else pairs.groups.cpu().numpy(),
        provenance=provenance(vae, pairs, readout, mediators=name),
    )
