"""Input level: do(factor) in the data, and what changes at every unit of the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.effects import Effects
from nnsight_vae.engine import checked_batch, example_chunks
from nnsight_vae.levels.units import default_sites, selected_units
from nnsight_vae.pairs import Pairs
from nnsight_vae.provenance import provenance
from nnsight_vae.runs import clean_run
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE


def manipulate_inputs(vae: VAE, pairs: Pairs, sites: Sequence[Key] | None = None) -> Effects:
    """How much each unit answers when one factor is changed in the data.

    change_u = [a_u(source) - a_u(base)] / sd(a_u), a_u averaged over positions, sd over the base and source runs. Units that
    never vary have change 0. In the result's `parts`, `"norm"` holds the root mean square over positions of the same difference,
    which also sees changes that cancel over positions; it cannot be negative, so read its size, not its p-value.

    Args:
        vae: the model.
        pairs: base and source inputs that differ by do(factor); reparameterisation noise is shared.
        sites: which units; by default those of every linear and convolutional layer and of the latent.

    Returns: `Effects` [unit, 1, pair] with target `"change"`, in standard deviations of the unit.

    Raises:
        SiteError, DataError: unknown sites; pairs this model cannot run.

    Source: input intervention of Roy 2025, arXiv 2505.03530, standardised per unit.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> manipulate_inputs(vae, pairs, sites=["latent.mu"]).units
        ('latent.mu[0]', 'latent.mu[1]', 'latent.mu[2]')
    """
    require(vae, pairs)
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    source, _ = checked_batch(vae, pairs.source, pairs.eps)
    units = selected_units(vae, sites if sites is not None else default_sites(vae))
    names = list(dict.fromkeys(unit.site for unit in units))
    columns = {name: [unit.index for unit in units if unit.site == name] for name in names}
    parts: dict[str, list[Tensor]] = {"base": [], "source": [], "norm": []}
    with torch.no_grad():
        for rows in example_chunks(vae, base):
            shared = None if eps is None else eps[rows]
            runs = [_positions_last(vae, x[rows], shared, columns) for x in (base, source)]
            parts["base"].append(torch.cat([a.mean(-1) for a in runs[0].values()], dim=1))
            parts["source"].append(torch.cat([a.mean(-1) for a in runs[1].values()], dim=1))
            parts["norm"].append(torch.cat([(runs[1][n] - runs[0][n]).square().mean(-1).sqrt() for n in names], dim=1))
    before, after, norm = (torch.cat(parts[key]).double().cpu().numpy().T for key in ("base", "source", "norm"))
    spread = np.concatenate([before, after], axis=1).std(axis=1, keepdims=True)
    # Rounding alone gives a constant unit a spread of about 1e-8; such a unit does not answer.
    alive = spread > 1e-7 * (1.0 + np.abs(before).mean(axis=1, keepdims=True))
    ordered = [f"{name}[{index}]" for name in names for index in columns[name]]
    groups, source_groups = pairs.cluster_ids
    record = provenance(vae, pairs, unit="standard deviations of the unit")

    def effects(change: np.ndarray, estimand: str, **more: Effects) -> Effects:
        scaled = np.divide(change, spread, out=np.zeros_like(change), where=alive)
        names = tuple(ordered), ("change",)
        return Effects(scaled[:, None, :], *names, estimand, groups, record, dict(more), source_groups=source_groups)

    size = effects(norm, "RMS change under do(factor)")
    return effects(after - before, "mean change under do(factor)", norm=size)


def _positions_last(vae: VAE, x: Tensor, eps: Tensor | None, columns: dict[str, list[int]]) -> dict[str, Tensor]:
    """Site -> activations of the wanted units, `[n, units, positions]`."""
    layout = vae.layout(x)
    clean = clean_run(vae, x, eps, paths={layout.paths[name] for name in columns})
    found = {}
    for name, wanted in columns.items():
        activation = clean.at(name).movedim(layout.sites[name].axis, 1)[:, wanted]
        found[name] = activation.reshape(*activation.shape[:2], -1)
    return found
