"""Edge scores from gradients: what a change of a node's pre-activation is worth, times the change that arrives by an edge.

Where the gradients are taken tells the methods apart: along the straight path of one column's pre-activations, the columns before
it left out (`ig`), or along that of the inputs, all columns in one pass (`eap`, `eap-ig`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.contributions import edge_products
from nnsight_vae.circuits.edges import Cut
from nnsight_vae.circuits.pair_run import PairRun, read
from nnsight_vae.circuits.quadrature import PathGradients, Rule, gradients_at, path_gradients, points_at
from nnsight_vae.engine import row_capacity
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import Write, run_from, start_for

ByTarget = list[list[Tensor]]  # for each target, its gradient in each output of a column


def along_column(
    run: PairRun, column: int, readout: Readout, rule: Rule, total: Float[Tensor, "target pair"]
) -> PathGradients:
    """Gradients of the targets in a column's pre-activations, averaged along their own path and calibrated to the total.

    Args:
        run: the pairs.
        column: which column; the one after the last is what the readout reads.
        readout: the targets.
        rule: quadrature nodes and weights.
        total: effect of each pair on each target.
    """
    if column == len(run.chain.columns):
        start, change = run.base_inputs[-1], run.change(-1)
        return path_gradients([start], [change], lambda points: read(readout, points[0]), rule, total)
    paths, vae, x = run.chain.columns[column].paths, run.base.vae, run.base.x
    starts = [run.base.outputs[path] for path in paths]
    changes = [run.source.outputs[path] - start for path, start in zip(paths, starts, strict=True)]
    start = start_for(vae, x, paths[0], run.chain.reads)

    def through(points: list[Tensor]) -> Tensor:
        writes = {path: _put(point) for path, point in zip(paths, points, strict=True)}
        return run_from(run.base, start, _rows(run, points[0]), writes, lambda out: read(readout, out), run.chain.reads)

    return path_gradients(starts, changes, through, rule, total, _at_once(run, start))


def along_inputs(run: PairRun, readout: Readout, rule: Rule) -> list[ByTarget]:
    """Gradients of the targets in every column and, last, in what the readout reads, averaged along the path of the inputs.

    One pass through the whole model for each node of the rule, and one backward pass for each target.
    """
    paths = [path for column in run.chain.columns for path in column.paths]
    base, source = (side.outputs["tap_input"] for side in (run.base, run.source))
    sums: ByTarget = []
    for i in range(0, len(rule), at_once := _at_once(run, None)):
        positions, weights = base.new_tensor(rule[i : i + at_once]).T
        with torch.enable_grad():
            values, kept = _kept(run, points_at(positions, base, source - base).requires_grad_(), paths, readout)
        for t in range(len(readout.names)):
            found = gradients_at(values[:, t], kept, len(positions), last=t + 1 == len(readout.names))
            means = [torch.tensordot(weights, gradient, 1) for gradient in found]
            if i == 0:
                sums.append(means)
            else:
                sums[t] = [a + b for a, b in zip(sums[t], means, strict=True)]
    ends = [0]
    for column in run.chain.columns:
        ends.append(ends[-1] + len(column.paths))
    return [[of_target[a:b] for of_target in sums] for a, b in zip(ends, [*ends[1:], None], strict=True)]


def _kept(run: PairRun, x: Tensor, paths: Sequence[str], readout: Readout) -> tuple[Tensor, list[Tensor]]:
    """The readout of a run on other inputs, and what the modules at some paths and the readout's site give in it."""
    kept: dict[str, Tensor] = {}

    def keep(path: str, value: Tensor) -> Tensor:
        kept[path] = value
        return value.clone()  # what follows may write into it

    def reading(out: Tensor) -> Tensor:
        kept["readout"] = out
        return read(readout, out)

    writes: dict[str, Write] = {path: lambda value, path=path: keep(path, value) for path in paths}
    writes["tap_input"] = lambda _: keep("tap_input", x)
    values = run_from(run.base, None, _rows(run, x), writes, reading, run.chain.reads)
    return values, [kept[path] for path in (*paths, "readout")]


def contracted(run: PairRun, cut: Cut, column: int, gradients: ByTarget) -> Float[Tensor, "edge target pair"]:
    """The change that arrives by each edge of a cut times the gradient where it arrives.

    Args:
        run: the pairs.
        cut: the edges.
        column: where they lead to; the one after the last is what the readout reads.
        gradients: of every target there.
    """
    chain = run.chain
    if column == len(chain.columns):
        products = [of_target[0] * run.change(-1) for of_target in gradients]
        shares = [_sums(product, 1, chain.columns[-1].ports, len(cut.sources)) for product in products]
        return into_readouts(cut, torch.stack(shares, dim=1))
    if column == 0:
        change, to = run.source.outputs["tap_input"] - run.base.outputs["tap_input"], chain.columns[0]
        products = [of_target[0] * change for of_target in gradients]
        return torch.stack([_sums(p, to.axes[0], to.owners[0], len(to.nodes)) for p in products], dim=1)
    delta, result = run.change(column - 1), []
    for of_target in gradients:
        parts = zip(chain.layers[column], of_target, cut.edge_of, strict=True)
        result.append(sum(edge_products(layer, delta, gradient, edge, len(cut)) for layer, gradient, edge in parts))
    return torch.stack(result, dim=1)


def into_readouts(cut: Cut, shares: Float[Tensor, "unit target pair"]) -> Float[Tensor, "edge target pair"]:
    """Edges unit -> readout:t carry the unit's share to target t and nothing to the others."""
    units, targets = torch.as_tensor(cut.ends, device=shares.device).T
    result = shares.new_zeros(len(cut), *shares.shape[1:])
    result[torch.arange(len(cut)), targets] = shares[units, targets]
    return result


def _sums(product: Tensor, axis: int, owners: Int[Tensor, " unit"], n_nodes: int) -> Float[Tensor, "node pair"]:
    """Sum of a tensor over each node's units and all positions."""
    per_unit = product.movedim(axis, 0).flatten(2).sum(-1) if product.ndim > 2 else product.movedim(axis, 0)
    owned = owners.to(product.device)
    real = owned >= 0
    return product.new_zeros(n_nodes, len(product)).index_add_(0, owned[real], per_unit[real])


def _put(value: Tensor) -> Write:
    return lambda _: value


def _rows(run: PairRun, points: Tensor) -> Int[Tensor, " r"]:
    """The pair of each point."""
    return torch.arange(len(run), device=points.device).repeat(len(points) // len(run))


def _at_once(run: PairRun, start: str | None) -> int:
    """How many nodes of a rule can run together."""
    return max(1, row_capacity(run.base.vae, run.base.x, start) // len(run))
