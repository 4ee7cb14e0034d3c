"""Input level: do(factor) in the data, and what changes at every unit of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.engine import checked_batch
from nnsight_vae.errors import DataError
from nnsight_vae.levels.answers import (
    Block,
    Scale,
    UnitMeans,
    answers,
    joined,
    reference_means,
    unit_blocks,
)
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import Advance, progress_bar
from nnsight_vae.provenance import pairs_record, provenance
from nnsight_vae.results.effects import Effects
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE


def manipulate_inputs(
    vae: VAE,
    pairs: Pairs | Mapping[str, Pairs],
    sites: Sequence[Key] | None = None,
    *,
    reference: Float[Tensor, "m *image"] | None = None,
    progress: bool | None = None,
) -> Effects:
    """How much each unit answers when a factor is changed in the data, for one factor or for several side by side.

    change_u = [a_u(source) - a_u(base)] / sd(a_u), a_u averaged over positions. Each unit has one sd for all factors, so its
    changes can be compared. Units that never vary have change 0. In the result's `parts`, `"norm"` holds the root mean square
    over positions of the same difference, which also sees changes that cancel over positions; it cannot be negative, so read
    its size, not its p-value.

    The sd is over the base and source runs of all pairs together. For pairs of a data set's root factors that is the
    observational sd, for the lower and the higher of two draws together are distributed as the draws. Where pairs are made
    otherwise (a large shift, extreme values) the change is part of its own unit and its mean cannot exceed 2: give a `reference`.

    Args:
        vae: the model.
        pairs: base and source inputs that differ by do(factor); reparameterisation noise is shared. A mapping factor -> pairs
            (`data.pairs_by_factor(n)`) answers which units respond to which factor; row i of all of them is one unit of the
            world, with equal `groups`.
        sites: which units; by default those of every linear and convolutional layer and of the latent.
        reference: an observational sample of inputs, hundreds of them, over which sd(a_u) is taken instead. Where the pairs
            carry noise, it is run on noise of its own (seed 0).
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [unit, factor, pair], in standard deviations of the unit; for pairs that are not in a mapping, the one
        target is `"change"`. Its `significant()` controls the false discovery rate over units x factors.

    Raises:
        SiteError, DataError: unknown sites; pairs this model cannot run; several factors whose pairs are not of the same
            units of the world; a single pair without a reference.

    Warns:
        NnsightVaeWarning: a unit varies in the pairs but not over the reference; fewer than 10 inputs and no reference.

    Source: input intervention of Roy 2025, arXiv 2505.03530, standardised per unit.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> manipulate_inputs(vae, pairs, sites=["latent.mu"]).units
        ('latent.mu[0]', 'latent.mu[1]', 'latent.mu[2]')
        >>> manipulate_inputs(vae, {"size": pairs, "shade": pairs.reversed()}, sites=["latent.mu"]).targets
        ('size', 'shade')
    """
    by_factor = pairs if isinstance(pairs, Mapping) else {"change": pairs}
    for each in by_factor.values():
        require(vae, each)
    _refuse_different_worlds(by_factor)
    first = next(iter(by_factor.values()))
    if reference is None and len(first) < 2:
        raise DataError(
            "a single pair has no standard deviation but its own: every unit would change by 2 or -2. Pass reference=, an "
            "observational sample of inputs (hundreds, e.g. data.sample(256).images), or give more pairs."
        )
    for each in by_factor.values():
        checked_batch(vae, each.base, each.eps)
    names, blocks = unit_blocks(vae, sites)
    n_inputs = 2 * len(first) * len(by_factor) + (0 if reference is None else len(reference))
    with progress_bar("manipulating inputs", n_inputs, progress) as advance:
        usual = reference_means(vae, reference, first.eps, blocks, advance)
        runs = [_run(vae, each, blocks, advance) for each in by_factor.values()]
    shown = [means for run in runs for means in (run.base, run.source)]
    scale = Scale.of(shown, usual, names, first.base.dtype)
    record = provenance(vae, unit="standard deviations of the unit", scale=scale.record)
    record["pairs"] = _pairs_record(pairs)
    groups, source_groups = first.cluster_ids

    def effects(changes: Sequence[np.ndarray], estimand: str, **more: Effects) -> Effects:
        values = scale.standardised(np.stack(changes, axis=1))
        described = tuple(by_factor), estimand, groups, record, dict(more)
        return Effects(values, names, *described, source_groups=source_groups)

    size = effects([run.norm for run in runs], "RMS change under do(factor)")
    changes = [run.source.values - run.base.values for run in runs]
    return effects(changes, "mean change under do(factor)", norm=size)


class _Run(NamedTuple):
    """Answers to base and source, and the root mean square over positions of their difference."""

    base: UnitMeans
    source: UnitMeans
    norm: Float[np.ndarray, "unit pair"]


def _run(vae: VAE, pairs: Pairs, blocks: Sequence[Block], advance: Advance) -> _Run:
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    source, _ = checked_batch(vae, pairs.source, None)
    before, after = (UnitMeans.empty(blocks, len(pairs)) for _ in range(2))
    norm = np.empty_like(before.values)
    both = zip(*(answers(vae, x, eps, blocks, advance) for x in (base, source)), strict=True)
    for (rows, at_base), (_, at_source) in both:
        before.put(rows, at_base)
        after.put(rows, at_source)
        changes = [s.values - b.values for b, s in zip(at_base, at_source, strict=True)]
        norm[:, rows] = joined([change.square().mean(-1).sqrt() for change in changes])
    return _Run(before, after, norm)


def _refuse_different_worlds(by_factor: Mapping[str, Pairs]) -> None:
    """Pair i of every factor must be of one unit of the world, or tests over pairs would treat strangers as kin."""
    if not by_factor:
        raise DataError("no pairs given; expected Pairs, or {factor: Pairs} such as data.pairs_by_factor(n=256).")
    (name, first), *others = by_factor.items()
    for other, pairs in others:
        if len(pairs) != len(first) or not _equal(first.cluster_ids, pairs.cluster_ids):
            raise DataError(
                f"pairs of {name!r} and {other!r} are not of the same units of the world: {len(first)} and {len(pairs)} "
                "pairs, and their groups must agree row by row. Make them with data.pairs_by_factor(n), or call once a factor."
            )
        if (pairs.eps is None) != (first.eps is None):
            raise DataError(f"pairs of {name!r} and {other!r} must both carry noise (eps), or neither.")


def _equal(one: tuple[np.ndarray | None, ...], other: tuple[np.ndarray | None, ...]) -> bool:
    return all(
        np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in zip(one, other, strict=True)
    )


def _pairs_record(pairs: Pairs | Mapping[str, Pairs]) -> dict[str, Any]:
    if isinstance(pairs, Pairs):
        return pairs_record(pairs)
    return {factor: pairs_record(each) for factor, each in pairs.items()}
