"""`Rotation`: the subspaces of a site that carry factors, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from nnsight_vae.causal.carriers import Subspace


@dataclass(frozen=True)
class Rotation:
    """Orthogonal subspaces of one site, each of which carries a factor; made by `learn_rotation`.

    Attributes:
        site: the site whose units are rotated.
        bases: factor -> orthonormal rows, one direction each; those of different factors are orthogonal too.
        validation: factor -> interchange score on pairs that were not trained on but chose when to stop. Report
            `interchange_accuracy(vae, data, rotation)` instead, whose pairs are others again.
        left_out: factors that cannot be learned -> why.
        steps: optimiser steps up to the frame that was kept.
        propagate: which counterfactual was learned: True with the factor's descendants.
        shuffled: the pairs' targets were shuffled: this is the control.
        seed: of the pairs and of the start.
        data: name of the dataset.
    """

    site: str
    bases: Mapping[str, Float[np.ndarray, "dims units"]]
    validation: Mapping[str, float]
    left_out: Mapping[str, str]
    steps: int
    propagate: bool
    shuffled: bool
    seed: int
    data: str

    def subspaces(self) -> dict[str, Subspace]:
        """Factor -> the subspace that carries it."""
        return {factor: Subspace(self.site, torch.from_numpy(basis)) for factor, basis in self.bases.items()}

    def alignment(self, factor: str) -> tuple[int, float]:
        """The unit that lies closest to a factor's subspace, and the squared length of its projection: 1 is in the subspace.

        Where it is 1 for as many units as the subspace has dimensions, nothing is rotated: those units carry the factor.
        """
        share = np.square(self.bases[factor]).sum(axis=0)
        return int(share.argmax()), float(share.max())

    def __str__(self) -> str:
        """A table: dimensions, validation score and nearest unit of each factor."""
        aim = "with its descendants" if self.propagate else "alone"
        lines = [
            f"Subspaces of {self.site} that carry factors of {self.data}, learned to change each {aim}"
            f"{', from shuffled targets (control)' if self.shuffled else ''} ({self.steps} steps)",
            "",
            f"{'factor':<18}{'dims':>4}  {'validation':>10}  nearest unit",
        ]
        for factor, basis in self.bases.items():
            unit, share = self.alignment(factor)
            score = f"{self.validation[factor]:.2f}"
            lines.append(f"{factor:<18}{len(basis):>4}  {score:>10}  {self.site}[{unit}], {share:.0%} of it")
        return "\n".join([*lines, *(f"left out: {factor}, {why}" for factor, why in self.left_out.items())])
