"""Results that would be computed as asked and yet mislead: each is warned of, or refused, with why and what to do instead."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nnsight_vae.errors import DataError, NnsightVaeWarning
from nnsight_vae.readouts import Readout
from nnsight_vae.stats.clusters import Design
from nnsight_vae.stats.significance import holm
from nnsight_vae.stats.standard_errors import t_pvalues
from nnsight_vae.wording import some

# below this the coverage of an interval hangs on how skewed the effects are (stats.intervals.mean_interval)
FEW_CLUSTERS = 10
_CLEAR = 0.05  # family-wise level at which an effect counts as clear
_FLAT = 1e-4  # gradient at the base beside the gradient at the source; rounding alone gives about 1e-7

_Ids = Shaped[np.ndarray, " pair"] | None


def require_gradients() -> None:
    """Refuse inference mode, in which every gradient would silently be 0.

    Raises:
        DataError: it is on.
    """
    if torch.is_inference_mode_enabled():
        raise DataError(
            "this takes gradients, and torch.inference_mode() makes every one of them 0; call it outside "
            "(torch.no_grad() is no obstacle)."
        )


def warn_if_few(design: Design, *, stacklevel: int = 3) -> None:
    """Warn of an interval from fewer than 10 clusters.

    Args:
        design: how the pairs are clustered.
        stacklevel: of the warning; 3 names the line that called the caller.
    """
    if design.n_clusters >= FEW_CLUSTERS:
        return
    counts = [len(way) for way in design.ways]
    what = f"{counts[0]} independent pairs (clusters) only"
    if len(counts) == 2:
        what = f"Pairs of {counts[0]} bases and {counts[1]} sources, of which the smaller number counts"
    warnings.warn(
        f"{what}: below {FEW_CLUSTERS} an interval is too narrow where effects are skewed. Use more images, or read it as "
        "indicative.",
        NnsightVaeWarning,
        stacklevel=stacklevel,
    )


def warn_if_directions_oppose(
    noising: Float[np.ndarray, "unit target pair"],
    denoising: Float[np.ndarray, "unit target pair"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    stacklevel: int = 3,
) -> None:
    """Warn where noising and denoising are both clear and mostly opposite in sign, so that their mean cancels.

    Exchanging base and source turns the noising effect of a pair into minus its denoising effect, N(b, s) = -D(s, b). Over
    pairs that are not oriented, where either image might as well have been the base, the means are therefore opposite.
    Clear is: both differ from 0 by Student's t, family-wise at .05 (Holm).

    Args:
        noising: effects of noising.
        denoising: effects of denoising, of the same units on the same targets over the same pairs.
        groups: id of the base of each pair.
        source_groups: id of the source of each pair.
        stacklevel: of the warning; 3 names the line that called the caller.
    """
    if not noising.size or Design.of(noising.shape[2], groups, source_groups).n_clusters < 2:
        return
    p = [holm(t_pvalues(values, groups, source_groups)) for values in (noising, denoising)]
    clear = np.maximum(*p) <= _CLEAR
    opposite = clear & (noising.mean(axis=2) * denoising.mean(axis=2) < 0)
    if opposite.sum() <= clear.sum() / 2:
        return
    warnings.warn(
        f"Noising and denoising are of opposite sign in {opposite.sum()} of the {clear.sum()} effects that are clear in both, "
        "so their mean cancels. That is what pairs give whose base and source might as well be exchanged: orient them (the "
        "base with the lower value of the factor), or read noising and denoising apart in `.parts`.",
        NnsightVaeWarning,
        stacklevel=stacklevel,
    )


def warn_if_effects_cancel(
    total: Float[np.ndarray, "target pair"],
    resolution: Float[np.ndarray, " target"],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    stacklevel: int = 3,
) -> None:
    """Warn where pairs change what is read, but no target's total effect has a clear sign, so that opposite pairs cancel in every mean.

    Clear is: different from 0 by Student's t at .05 in at least one target. Below 10 clusters nothing can be said.

    Args:
        total: total effect of each pair.
        resolution: the smallest effect on each target that rounding cannot make.
        groups: id of the base of each pair.
        source_groups: id of the source of each pair.
        stacklevel: of the warning; 3 names the line that called the caller.
    """
    changes = np.abs(total).mean(axis=1) > resolution
    if not changes.any() or Design.of(total.shape[1], groups, source_groups).n_clusters < FEW_CLUSTERS:
        return
    if (t_pvalues(total[changes], groups, source_groups) <= _CLEAR).any():
        return
    mean, size = (float(f(total[changes]).mean()) for f in (np.asarray, np.abs))
    warnings.warn(
        f"The pairs change what is read by {size:.2g} on average, but in no clear direction (mean {mean:+.2g}): effects of opposite "
        "pairs cancel in the means. Orient the pairs (the base with the lower value of the factor), or read something that the "
        "factor moves one way.",
        NnsightVaeWarning,
        stacklevel=stacklevel,
    )


def warn_if_flat(
    readout: Readout, base: Float[Tensor, "n *out"], source: Float[Tensor, "n *out"], *, stacklevel: int = 3
) -> None:
    """Warn of targets without gradient at the base, as a squared distance to the base's own output has none.

    Every noising effect on such a target is of second order and has one sign, whatever the unit does, and every gradient
    method gives exactly 0. A target counts as flat where, for each pair, the norm of its gradient with respect to what it
    reads is below 1e-4 of the norm at the source, and the latter is not 0. A readout that cannot be differentiated is passed over.

    Args:
        readout: what is measured.
        base: what the readout reads in the base run; a few pairs are enough.
        source: the same of the source run.
        stacklevel: of the warning; 3 names the line that called the caller.
    """
    try:
        slopes = [_slopes(readout, values) for values in (base, source)]
    except RuntimeError:  # torch's own, of a readout that leaves torch, or detaches
        return
    flat = (slopes[0] < _FLAT * slopes[1]).all(dim=0)  # never where both are 0
    if not flat.any():
        return
    names = [name for name, is_flat in zip(readout.names, flat.tolist(), strict=True) if is_flat]
    warnings.warn(
        f"The readout has no gradient at the base run for: {some(names, 5)}. Noising effects on it are then of "
        "second order and one sign for every unit, as with a squared distance to the base's own output. Read something that "
        "changes in proportion, such as a factor, a region or a signed difference, or use direction='denoising'.",
        NnsightVaeWarning,
        stacklevel=stacklevel,
    )


def _slopes(readout: Readout, values: Tensor) -> Float[Tensor, "n target"]:
    """Norm of each target's gradient with respect to what the readout reads."""
    with torch.enable_grad():
        read = values.detach().clone().requires_grad_(True)
        columns = readout(read).sum(dim=0)
        slopes = [
            torch.autograd.grad(column, read, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in columns
        ]
    return torch.stack([slope.flatten(1).norm(dim=1) for slope in slopes], dim=1)
