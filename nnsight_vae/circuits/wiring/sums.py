"""Sums of rows by whom they belong to."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def sums_by(owners: Int[Tensor, " row"], rows: Float[Tensor, "row n"], n_owners: int) -> Float[Tensor, "owner n"]:
    """The sum of each owner's rows, 0 where there are none; rows of a negative owner belong to nobody.

    `index_add_` does the same, row by row, and takes ten times as long where there are tens of thousands.

    Example:
        >>> sums_by(torch.tensor([1, -1, 1]), torch.tensor([[1.0], [2.0], [3.0]]), 2).tolist()
        [[0.0], [4.0]]
    """
    owners = owners.to(rows.device)
    sizes = counts_by(owners, n_owners)
    order = owners.argsort(stable=True)[len(owners) - int(sizes.sum()) :]
    return F.embedding_bag(order, rows, sizes.cumsum(0) - sizes, mode="sum")


def counts_by(owners: Int[Tensor, " row"], n_owners: int) -> Int[Tensor, " owner"]:
    """How many rows each owner has."""
    return torch.bincount(owners.clamp(min=-1) + 1, minlength=n_owners + 1)[1:]
