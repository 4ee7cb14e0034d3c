"""Pairs at which a readout has no slope where a gradient method looks, so that it sees nothing of what changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.errors import NnsightVaeWarning, ReadoutError
from nnsight_vae.readouts import Readout

_FLAT = 1e-4  # of the mean slope; rounding alone gives about 1e-7
_REMEDIES = {
    "base": (
        "at the base run, where it was taken, as that of a distance to the base's own output is",
        "use method='ig' or at='source', or a readout that changes in proportion (a factor, a region, a signed difference)",
    ),
    "source": (
        "at the source run, where it was taken, as that of a distance to the source's own output is",
        "use method='ig' or at='base', or a readout that changes in proportion (a factor, a region, a signed difference)",
    ),
}
_ANYWHERE = (
    "wherever it was taken: it is not differentiable (a threshold, an argmax, a detached tensor)",
    "use method='exact', or a readout that changes in proportion",
)


class FlatPairs:
    """Looks at the readout's gradient in every pair, and says in the end where it was flat wherever a method looked.

    From base to source a target changes by TE = <mean gradient on the way, change of what is read>, so the mean gradient is at least
    |TE| / |change| long. A pair counts as flat where the gradient that is used is below 1e-4 of that.

    Args:
        readout: what is measured.
        where: gradients are taken: at `base`, at `source`, or at several points of a path.
    """

    def __init__(self, readout: Readout, where: str) -> None:
        self.names = readout.names
        self.readout = readout
        self.what, self.remedy = _REMEDIES.get(where, _ANYWHERE)
        # part of the method -> what it saw, some pairs at a time
        self._changes: dict[str, list[Bool[Tensor, "target pair"]]] = {}
        self._flat: dict[str, list[Bool[Tensor, "target pair"]]] = {}

    @torch.no_grad()
    def add(self, part: str, run: PairRun, gradients: Sequence[Tensor]) -> None:
        """Take in each target's gradient with respect to what the readout reads, as one part of the method takes it."""
        ends = [read(self.readout, inputs[-1]) for inputs in (run.base_inputs, run.source_inputs)]
        effect = (ends[1] - ends[0]).T.abs()
        rounding = 16 * torch.finfo(effect.dtype).eps * ends[0].abs().amax(0)[:, None]
        least = _FLAT * effect / run.taken(-1).flatten(1).norm(dim=1)
        slopes = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
        self._changes.setdefault(part, []).append(effect > rounding)
        self._flat.setdefault(part, []).append((effect > rounding) & (slopes < least))

    def report(self) -> None:
        """Say which targets are flat, if any.

        Raises:
            ReadoutError: a target is flat in every pair that changes it: all edges would score 0.

        Warns:
            NnsightVaeWarning: a target is flat in some pairs.
        """
        changes, flat = (
            torch.stack([torch.cat(chunks, dim=1) for chunks in seen.values()]).all(0).sum(1).cpu().numpy()
            for seen in (self._changes, self._flat)
        )
        blind = [name for name, some, all_ in zip(self.names, flat, changes, strict=True) if 0 < some == all_]
        if blind:
            raise ReadoutError(
                f"readout target {', '.join(map(repr, blind[:5]))} changes between base and source, but its gradient is 0 "
                f"{self.what}, so every edge would score 0; {self.remedy}."
            )
        if flat.any():
            worst = int(np.argmax(flat / np.maximum(changes, 1)))
            warnings.warn(
                f"The gradient of readout target {self.names[worst]!r} is 0 {self.what}, in {flat[worst]} of the {changes[worst]} "
                f"pairs that change it: there every edge scores 0. To see those pairs too, {self.remedy}.",
                NnsightVaeWarning,
                stacklevel=3,
            )
