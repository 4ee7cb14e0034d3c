"""Activation level: change one unit's activation at a time, and read what that does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from nnsight_vae.arguments import require
from nnsight_vae.directions import ESTIMANDS, Direction, Way
from nnsight_vae.engine import activations, baseline
from nnsight_vae.errors import InterventionError, NnsightVaeWarning
from nnsight_vae.guards import warn_if_directions_oppose, warn_if_flat
from nnsight_vae.interventions import Intervention, Mean, Noise, Resample, Set, Swap, Zero
from nnsight_vae.levels.through import (
    Level,
    Through,
    examples_at_once,
    levels_of,
    require_before,
    run_through,
    runs_of,
)
from nnsight_vae.levels.units import Per, default_sites, experiments
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import Advance, progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.reading import Readout, reads, select
from nnsight_vae.results.effects import Effects
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

Ablation = Literal["zero", "mean", "resample"] | Zero | Mean | Resample | Noise | Set

_LARGE = 4 * 2**30  # bytes of effects above which the caller is told
_FEW_PAIRS, _FEW_TARGETS = 4, 16


def patch_activations(
    vae: VAE,
    pairs: Pairs,
    sites: Sequence[Key | tuple[Key, ...]] | Key | None = None,
    *,
    readout: Readout,
    direction: Direction = "both",
    per: Per = "unit",
    ablation: Ablation | None = None,
    through: Through | None = None,
    progress: bool | None = None,
) -> Effects:
    """The effect of each unit, from patching it alone between base and source runs, or from ablating it.

    noising    N_u = Y(base; a_u <- a_u(source)) - Y(base)       (pure natural indirect effect, PNIE)
    denoising  D_u = Y(source) - Y(source; a_u <- a_u(base))     (total natural indirect effect, TNIE)
    both       (N_u + D_u) / 2, with the two in the result's `parts`; they differ by the interaction of u with the rest.

    An ablation puts its own value v in the place of the other run's activation, in the same two formulas: N_u = Y(base; a_u <- v)
    - Y(base), D_u = Y(source) - Y(source; a_u <- v). Their mean is then half of what patching gives in a linear model, whatever
    v is; ask for one direction to see what the model does without u.

    `through` lets only what passes through named units reach the readout. With M*(u) = M(base; a_u <- a_u(source)), what u
    makes of the units M further down, N_u = Y(base; M <- M*(u)) - Y(base), and in the same way for D_u: two passes each.

    Args:
        vae: the model.
        pairs: base and source inputs; noise is shared between all runs of a pair.
        sites: keys such as `"encoder.4"`, `"latent.z[3]"`, `"decoder.2[0:8]"`, `"decoder.2[1]@3,4"`; a tuple of keys in the list is
            one set, patched together. By default every linear and convolutional layer and `latent.z`, as far as they come before
            what is read.
        readout: what is measured, e.g. `data.readout()`. Every target of every pair is kept, 8 bytes an experiment, target and
            pair, three times for both directions: all pixels of a 64 x 64 RGB image for 500 units and 256 pairs are 38 GB.
            Narrow such a readout (`readout[names]`, `nv.readouts.Region`) or the sites.
        direction: `"both"`, `"noising"` or `"denoising"`.
        per: what one experiment patches: `"unit"` each unit alone, `"site"` each key as a whole, `"position"` all units of a key
            at one position.
        ablation: `"zero"`, `"mean"` or `"resample"` (over base and source images of all pairs), or `nv.Zero()`,
            `nv.Mean(reference)`, `nv.Resample(reference, seed)`, `nv.Noise(sd, seed)`, `nv.Set(value)`. Under noise a mean is that
            of the noisy activations. Resampling and noise draw once an example: their spread is part of the effects'.
        through: the units an effect may pass, all downstream of what is patched: a list of keys, or a list of such lists for a
            path through one level after the other. With an ablation, the activations of all pairs are on their way at once.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [experiment, target, pair], in units of the readout; the estimand names direction, ablation and path.
        Where a patch changes no activation, as between two identical inputs, the effect is exactly 0, not one of rounding.

    Raises:
        SiteError, InterventionError, DataError, ReadoutError: before any work.

    Warns:
        NnsightVaeWarning: the effects take more than 4 GiB; noising and denoising are clear and of opposite sign, so that their
            mean cancels; the readout has no gradient at the base run.

    Source: Vig et al. 2020, arXiv 2004.12265 (natural effects); Roy 2025, arXiv 2505.03530 (activation patching of VAEs);
        Goldowsky-Dill et al. 2023, arXiv 2304.05969 (paths).

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> patch_activations(vae, pairs, ["latent.z"], readout=top).values.shape
        (3, 1, 12)
        >>> one = patch_activations(vae, pairs, ["latent.mu[0]"], readout=top, ablation="mean", through=["latent.z"], direction="noising")
        >>> one.estimand
        'ablation (mean), noising, through latent.z'
    """
    if direction not in get_args(Direction):
        raise InterventionError(f"direction must be 'both', 'noising' or 'denoising', got {direction!r}.")
    require(vae, pairs, readout)
    vae.checked(pairs.base)
    levels = levels_of(vae, through, readout)
    named = experiments(vae, _sites_before(vae, levels, readout) if sites is None else sites, per)
    for joint in named.values() if levels else ():
        require_before(vae, joint, levels[0])
    ablated = None if ablation is None else _ablation(ablation, pairs)
    ways: tuple[Way, ...] = ("noising", "denoising") if direction == "both" else (direction,)
    _warn_if_large(len(named) * len(readout.names) * len(pairs), len(ways))
    patching = _Patching(vae, pairs, list(named.values()), ablated, levels, readout)
    with progress_bar("patching", len(ways) * len(named) * len(pairs) * runs_of(levels), progress) as advance:
        changes = [patching.change(way, advance) for way in ways]
    (groups, source_groups), estimands = pairs.cluster_ids, _estimands(ablated, levels)
    path = [[str(each) for each in level] for level in levels] or None
    described = {"direction": direction, "per": per, "ablation": ablated and repr(ablated), "through": path}
    record = provenance(vae, pairs, readout, **described)
    if "noising" in ways:
        _warn_if_flat(vae, pairs, readout)
    if direction == "both" and ablated is None:  # the two effects of an ablation are of opposite sign by nature
        warn_if_directions_oppose(changes[0], changes[1], groups, source_groups)

    def effects(values: np.ndarray, way: Direction, parts: dict[str, Effects]) -> Effects:
        return Effects(
            values,
            tuple(named),
            tuple(readout.names),
            estimands[way],
            groups,
            record,
            parts,
            source_groups=source_groups,
        )

    parts: dict[str, Effects] = {way: effects(change, way, {}) for way, change in zip(ways, changes, strict=True)}
    return parts[direction] if direction != "both" else effects((changes[0] + changes[1]) / 2, direction, parts)


@dataclass(frozen=True)
class _Patching:
    """One set of experiments on the pairs, in either direction."""

    vae: VAE
    pairs: Pairs
    joints: list[tuple[Selection, ...]]
    ablated: Intervention | None
    levels: Sequence[Level]
    readout: Readout

    def change(self, way: Way, advance: Advance) -> Float[np.ndarray, "experiment target pair"]:
        """N or D of every experiment."""
        base, source, eps = self.pairs.base, self.pairs.source, self.pairs.eps
        receiver, donor = (base, source) if way == "noising" else (source, base)
        moved = []
        for rows in self._pairs_at_once():
            put = self.ablated or Swap(donor[rows])
            plan = [dict.fromkeys(joint, put) for joint in self.joints]
            noise = None if eps is None else eps[rows]
            moved.append(
                run_through(self.vae, receiver[rows], plan, self.levels, self.readout, eps=noise, progress=advance)
            )
        clean = baseline(self.vae, receiver, self.readout, eps=eps)
        change = torch.cat(moved, dim=1) - clean if way == "noising" else clean - torch.cat(moved, dim=1)
        return change.double().cpu().numpy().transpose(0, 2, 1)

    def _pairs_at_once(self) -> list[slice]:
        """All pairs, or as many as have their activations carried between runs within bounds."""
        n = step = len(self.pairs)
        if self.levels and self.ablated is None:  # a mean or a draw is over all pairs of a run
            step = examples_at_once(self.vae, self.pairs.base, self.levels)
        return [slice(start, start + step) for start in range(0, n, step)]


def _sites_before(vae: VAE, levels: Sequence[Level], readout: Readout) -> list[str]:
    """The default sites from which an effect can reach the first level, or what is read."""
    order, limit = vae.sites.order, reads(readout)
    found = [name for name in default_sites(vae) if order(name) <= order(limit)]
    if levels:
        limit = min((each.site for each in levels[0]), key=order)
        found = [name for name in found if order(name) < order(limit)]
    if not found:
        raise InterventionError(
            f"no linear or convolutional layer comes before {limit!r}; name what to patch in sites."
        )
    return found


def _ablation(ablation: Ablation, pairs: Pairs) -> Intervention:
    reference = torch.cat([pairs.base, pairs.source])
    known: dict[str, Intervention] = {"zero": Zero(), "mean": Mean(reference), "resample": Resample(reference)}
    if isinstance(ablation, str) and ablation in known:
        return known[ablation]
    if isinstance(ablation, Zero | Mean | Resample | Noise | Set):
        return ablation
    raise InterventionError(
        f"ablation must be 'zero', 'mean' or 'resample', or nv.Zero(), nv.Mean(...), nv.Resample(...), nv.Noise(...) or "
        f"nv.Set(...), got {ablation!r}."
    )


def _estimands(ablated: Intervention | None, levels: Sequence[Level]) -> dict[str, str]:
    """Direction -> what is estimated, in words."""
    path = " -> ".join(" + ".join(map(str, level)) for level in levels)
    passing = f", through {path}" if path else ""
    if ablated is None:
        names = ESTIMANDS | {"both": "(PNIE + TNIE) / 2 (patching, both directions)"}
    else:
        what = f"ablation ({repr(ablated) if isinstance(ablated, Set) else type(ablated).__name__.lower()})"
        names = {way: f"{what}, {way}" for way in ("noising", "denoising")}
        names["both"] = f"{what}, mean of noising and denoising"
    return {way: name + passing for way, name in names.items()}


def _warn_if_flat(vae: VAE, pairs: Pairs, readout: Readout) -> None:
    """Of a few pairs and targets, which is enough for a readout that is flat by its making."""
    few, site = pairs[:_FEW_PAIRS], reads(readout)
    names = readout.names[:_FEW_TARGETS]
    runs = [activations(vae, x, [site], eps=few.eps)[site] for x in (few.base, few.source)]
    warn_if_flat(readout if names == readout.names else select(readout, names), *runs, stacklevel=4)


def _warn_if_large(numbers: int, directions: int) -> None:
    size = 8 * numbers * (1 if directions == 1 else 3)
    if size > _LARGE:
        warnings.warn(
            f"these effects take {size / 2**30:.1f} GiB of memory (every unit, target and pair is kept); narrow the readout to "
            "fewer targets, or patch fewer units.",
            NnsightVaeWarning,
            stacklevel=3,
        )
