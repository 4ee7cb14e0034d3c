"""Pairs of images for learning what to swap: what is at a site in both runs, and what the swap of a factor should do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.causal.carriers import unit_space
from nnsight_vae.causal.swapped_worlds import true_change
from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.engine import activations, baseline
from nnsight_vae.reading import Readout, reads
from nnsight_vae.runs import clean_run, needed_for, run_from, start_for
from nnsight_vae.vae import VAE

_STREAM = (
    0xDA5  # its draws are of no seed that a person would give, so that they are never those of `interchange_accuracy`
)


@dataclass(frozen=True)
class InterchangePairs:
    """Pairs of base and source images, in each of which one factor is to be swapped.

    Attributes:
        images: of the base.
        difference: the site's activation in the source's run minus that in the base's, units on axis 1.
        before: readout of the base's reconstruction.
        truth: change of the readout that the swap should make.
        factor: which factor is swapped, by its place.
        scale: mean squared true change of each factor.
    """

    vae: VAE
    site: str
    readout: Readout
    images: Float[Tensor, "n *image"]
    difference: Float[Tensor, "n units *grid"]
    before: Float[Tensor, "n target"]
    truth: Float[Tensor, "n target"]
    factor: Int[Tensor, " n"]
    scale: Float[Tensor, " f"]

    @classmethod
    def draw(
        cls,
        vae: VAE,
        data: Dataset,
        factors: Sequence[str],
        site: str,
        n: int,
        seed: int,
        readout: Readout,
        propagate: bool,
    ) -> InterchangePairs:
        """n pairs; the factors take turns."""
        seeds = np.random.SeedSequence([seed, _STREAM]).generate_state(2).tolist()
        base, source = (data.sample(n, seed=each) for each in seeds)
        images = vae.checked(base.images)
        turn = torch.arange(n) % len(factors)
        before = baseline(vae, images, readout)
        truth = torch.zeros_like(before)
        for place, factor in enumerate(factors):
            some, donor = (_rows(batch, turn == place) for batch in (base, source))
            truth[turn == place] = true_change(data, some, {factor: donor}, readout, propagate).to(before)
        ours, theirs = (unit_space(vae, site, activations(vae, x, [site])[site]) for x in (images, source.images))
        turn = turn.to(before.device)
        scale = torch.stack([truth[turn == place].square().sum(1).mean() for place in range(len(factors))])
        return cls(vae, site, readout, images, theirs - ours, before, truth, turn, scale)

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: Tensor | slice) -> InterchangePairs:
        """Some of the pairs."""
        parts = {name: getattr(self, name)[rows] for name in ("images", "difference", "before", "truth", "factor")}
        return replace(self, **parts)

    def shuffled(self, seed: int) -> InterchangePairs:
        """The same pairs, each with the true change of another pair in which the same factor is swapped."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(len(self))
        for place in range(len(self.scale)):
            members = (self.factor.cpu() == place).nonzero().flatten()
            order[members] = members[torch.randperm(len(members), generator=generator)]
        return replace(self, truth=self.truth[order.to(self.truth.device)])

    def errors(self, step: Float[Tensor, "n units *grid"]) -> Float[Tensor, " n"]:
        """Squared error of the predicted change, as a share of the factor's mean squared true change, where the site moves by a step.

        Differentiable in the step. A factor whose true change is always 0 gives no number.
        """
        layout, target = self.vae.layout(self.images), reads(self.readout)
        path, axis = layout.paths[self.site], layout.sites[self.site].axis
        start = start_for(self.vae, self.images, path, target)
        with torch.no_grad():
            clean = clean_run(self.vae, self.images, until=needed_for(self.vae, self.images, start))
        moved = run_from(clean, start, None, {path: lambda value: value + step.movedim(1, axis)}, self.readout, target)
        return (moved - self.before - self.truth).square().sum(1) / self.scale[self.factor]


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return Batch(batch.images[rows], batch.factors[rows], None if batch.noise is None else batch.noise[rows.numpy()])
