"""What arrives by each edge times what it is worth there, for all edges of a cut."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import edge_products
from nnsight_vae.circuits.wiring.cuts import Block, Cut
from nnsight_vae.circuits.wiring.local_maps import Part
from nnsight_vae.circuits.wiring.pair_run import PairRun

ByTarget = list[list[Tensor]]  # for each target, its gradient in each column of a level


def contracted(run: PairRun, cut: Cut, gradients: ByTarget) -> Float[Tensor, "edge target pair"]:
    """The change that arrives by each edge of a cut times the gradient where it arrives.

    Args:
        run: the pairs.
        cut: the edges.
        gradients: of every target, in what each column of the cut's level gives; or in what the readout reads.
    """
    result = run.base.x.new_zeros(len(cut), len(gradients), len(run))
    for at, reader in enumerate(cut.readers):
        blocks = {block.route.parent: block for block in cut.blocks if block.reader == reader}
        for part in run.parts(reader):
            _add(result, blocks[part.parent], part, [of_target[at] for of_target in gradients])
    return result


def _add(result: Float[Tensor, "edge target pair"], block: Block, part: Part, gradients: list[Tensor]) -> None:
    """Add what one part of a reader's change is worth."""
    if block.layer is not None:
        entries = block.of_entries(part.owners)
        real = entries[entries >= 0]
        if not len(real):
            return
        first, stop = int(real.min()), int(real.max()) + 1
        for t, gradient in enumerate(gradients):
            products = edge_products(block.layer, part.delta, gradient, entries - first, stop - first)
            result[first:stop, t] += products
        return
    for t, gradient in enumerate(gradients):
        by_port = _by_port(part.delta * gradient)
        # an edge into readout:t carries its node's share to target t and nothing to the others
        edges = block.of_entries(part.owners) if len(block.owners) else _into(block, part.owners, t)
        real = (edges >= 0).to(by_port.device)
        result[:, t].index_add_(0, edges.to(by_port.device)[real], by_port[real])


def _into(block: Block, owners: Int[Tensor, " port"], target: int) -> Int[Tensor, " port"]:
    """The edge from each port's node to a target of the readout."""
    return torch.where(owners >= 0, block.edges[owners, target], -1)


def _by_port(product: Float[Tensor, "n port ..."]) -> Float[Tensor, "port n"]:
    return (product.flatten(2).sum(-1) if product.ndim > 2 else product).T
