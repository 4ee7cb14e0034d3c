"""What the outputs of a factor readout's network stand for: one number of a continuous factor, one logit a value of a discrete one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOST_VALUES = 50  # of a discrete factor; more are a continuous one


@dataclass(frozen=True)
class Heads:
    """The outputs of each factor, one after another.

    Attributes:
        values: for each factor, the values that it takes if it is discrete, else None.

    Example:
        >>> heads = Heads((None, (0.0, 1.0, 2.0)))
        >>> heads.n_outputs, heads.outputs_of(1)
        (4, slice(1, 4, None))
        >>> raw = torch.tensor([[0.5, 0.0, 0.0, 9.0]])
        >>> heads.read(raw, torch.zeros(2), torch.ones(2)).round(decimals=2).tolist()
        [[0.5, 2.0]]
    """

    values: tuple[tuple[float, ...] | None, ...]

    @property
    def widths(self) -> list[int]:
        """How many outputs each factor has."""
        return [1 if levels is None else len(levels) for levels in self.values]

    @property
    def n_outputs(self) -> int:
        """How many there are in all."""
        return sum(self.widths)

    def outputs_of(self, factor: int) -> slice:
        """Where those of a factor are."""
        start = sum(self.widths[:factor])
        return slice(start, start + self.widths[factor])

    def targets(
        self, factors: Float[Tensor, "n f"], mean: Float[Tensor, " f"], sd: Float[Tensor, " f"]
    ) -> Float[Tensor, "n f"]:
        """What is learned: z-scores of continuous factors, the number of its value of a discrete one."""
        columns = [
            (column - m) / s if levels is None else torch.searchsorted(column.new_tensor(levels), column.contiguous())
            for column, m, s, levels in zip(factors.T, mean, sd, self.values, strict=True)
        ]
        return torch.stack([column.float() for column in columns], dim=1)

    def loss(self, raw: Float[Tensor, "n out"], targets: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
        """Mean over factors of the squared error, or of the cross-entropy of a discrete one."""
        if all(levels is None for levels in self.values):
            return nn.functional.mse_loss(raw, targets)
        losses = []
        for j, levels in enumerate(self.values):
            own = raw[:, self.outputs_of(j)]
            if levels is None:
                losses.append(nn.functional.mse_loss(own[:, 0], targets[:, j]))
            else:
                losses.append(nn.functional.cross_entropy(own, targets[:, j].long()))
        return torch.stack(losses).mean()

    def read(
        self, raw: Float[Tensor, "n out"], mean: Float[Tensor, " f"], sd: Float[Tensor, " f"]
    ) -> Float[Tensor, "n f"]:
        """One number a factor, in its standard deviations: of a discrete one the expected value under the class probabilities."""
        if all(levels is None for levels in self.values):
            return raw
        columns = []
        for j, levels in enumerate(self.values):
            own = raw[:, self.outputs_of(j)]
            if levels is None:
                columns.append(own[:, 0])
            else:
                expected = own.softmax(dim=1) @ raw.new_tensor(levels)
                columns.append((expected - mean[j].to(raw)) / sd[j].to(raw))
        return torch.stack(columns, dim=1)

    def accuracies(
        self, raw: Float[Tensor, "n out"], targets: Float[Tensor, "n f"]
    ) -> list[tuple[float, float] | None]:
        """Of each discrete factor, how often the likeliest value is the true one, and how often the most frequent one is."""
        found: list[tuple[float, float] | None] = []
        for j, levels in enumerate(self.values):
            if levels is None:
                found.append(None)
                continue
            told, true = raw[:, self.outputs_of(j)].argmax(dim=1), targets[:, j].long()
            found.append((float((told == true).float().mean()), float(torch.bincount(true).max()) / len(true)))
        return found

    def select(self, factors: Sequence[int]) -> tuple[Heads, list[int]]:
        """Those of some factors, and which outputs they were."""
        rows = [row for j in factors for row in range(self.n_outputs)[self.outputs_of(j)]]
        return Heads(tuple(self.values[j] for j in factors)), rows


def levels_of(factors: Float[Tensor, "n f"], names: Sequence[str], discrete: Sequence[str]) -> Heads | str:
    """The heads of factors, some of them discrete; or why they cannot be."""
    unknown = [name for name in discrete if name not in names]
    if unknown:
        return f"discrete={unknown}: no such factor; they are {', '.join(names)}"
    values: list[tuple[float, ...] | None] = []
    for name, column in zip(names, factors.T, strict=True):
        levels = column.unique().tolist() if name in discrete else None
        if levels is not None and len(levels) > _MOST_VALUES:
            return f"{name!r} takes {len(levels)} values, which is a continuous factor; leave it out of discrete="
        values.append(None if levels is None else tuple(levels))
    return Heads(tuple(values))


def looks_discrete(factors: Float[Tensor, "n f"], names: Sequence[str]) -> list[str]:
    """Factors that take three to ten whole numbers, 0, 1, 2, ...: kinds, or amounts; the numbers do not tell."""
    found = []
    for name, column in zip(names, factors.T, strict=True):
        levels = column.unique()
        if 3 <= len(levels) <= 10 and torch.equal(levels, torch.arange(len(levels), dtype=levels.dtype)):
            found.append(name)
    return found
