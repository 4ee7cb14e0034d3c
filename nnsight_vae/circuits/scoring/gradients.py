"""Edge scores from gradients: what a change of a node's pre-activation is worth, times the change that arrives by an edge.

Where the gradients are taken tells the methods apart: along the straight path of one column's pre-activations, the columns before
it left out (`ig`), or along that of the inputs, all columns in one pass (`eap`, `eap-ig`). Both paths have the same ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contraction import ByTarget
from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.circuits.wiring.quadrature import PathAverage, PathGradients, Rule, add_along, gradients_at, points_at
from nnsight_vae.engine import row_capacity
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import Write, run_from, start_for


def at_inputs(run: PairRun, readout: Readout, positions: Sequence[float]) -> list[ByTarget]:
    """Gradients of the targets in every column and, last, in what the readout reads, for inputs on the way from base to source.

    One pass through the whole model for all positions, and one backward pass for each target.

    Args:
        run: the pairs.
        readout: the targets.
        positions: k of them, 0 the base and 1 the source.

    Returns: for each level, of each target and column, tensors `[k, n, ...]`.
    """
    columns = run.wiring.columns
    base, source = (side.outputs["tap_input"] for side in (run.base, run.source))
    with torch.enable_grad():
        values, kept = _kept(
            run,
            points_at(positions, base, source - base).requires_grad_(),
            [column.path for column in columns],
            readout,
        )
    found = [gradients_at(values, t, kept, len(positions)) for t in range(values.shape[1])]
    levels = [*run.wiring.levels, (len(columns),)]
    return [[[of_target[i] for i in level] for of_target in found] for level in levels]


def along_inputs(run: PairRun, readout: Readout, rule: Rule) -> list[ByTarget]:
    """The gradients of `at_inputs` averaged by a rule of quadrature: tensors `[n, ...]`."""
    sums: list[ByTarget] = []
    for i in range(0, len(rule), at_once := _at_once(run, None)):
        positions, weights = zip(*rule[i : i + at_once], strict=True)
        w = run.base.x.new_tensor(weights)
        means = [
            [[torch.tensordot(w, gradient, 1) for gradient in by_path] for by_path in by_target]
            for by_target in at_inputs(run, readout, positions)
        ]
        sums = (
            [[list(map(torch.add, *of)) for of in zip(*two, strict=True)] for two in zip(sums, means, strict=True)]
            if sums
            else means
        )
    return sums


def along_level(
    run: PairRun, level: int, readout: Readout, rule: Rule, ends: ByTarget, total: Float[Tensor, "target pair"]
) -> PathGradients:
    """Gradients of the targets in what settles all that follows a level, averaged along its own path and calibrated to the total.

    That is what the columns of the level give, and, after those, the earlier columns that are still alive beside it.

    Args:
        run: the pairs.
        level: which one; the one after the last is what the readout reads.
        readout: the targets.
        rule: quadrature nodes and weights, both ends of the path among them.
        ends: the gradients in the level at both ends, `[2, n, ...]`, from `at_inputs`.
        total: effect of each pair on each target.
    """
    vae, x, reads, wiring = run.base.vae, run.base.x, run.wiring.reads, run.wiring
    if level == len(wiring.levels):
        average = PathAverage([run.taken(-1)], len(readout.names))
        _add_ends(average, rule, ends)
        add_along(
            average, [run.base_inputs[-1]], lambda points: read(readout, points[0]), rule[1:-1], _at_once(run, None)
        )
        return average.calibrated(total)
    alive = wiring.alive(level)
    chosen = [*wiring.levels[level], *alive]
    paths = [wiring.columns[i].path for i in chosen]
    average = PathAverage([run.given(i) for i in chosen], len(readout.names))
    firings = vae.layout(x).firings
    begin = start_for(vae, x, min(paths, key=lambda path: firings[path].finished), reads)

    def through(points: list[Tensor]) -> Tensor:
        writes = {path: _put(point) for path, point in zip(paths, points, strict=True)}
        return run_from(run.base, begin, _rows(run, points[0]), writes, lambda out: read(readout, out), reads)

    if not alive:  # else `at_inputs` gives the gradients of what goes through the level too
        _add_ends(average, rule, ends)
        rule = rule[1:-1]
    add_along(average, [run.base.outputs[path] for path in paths], through, rule, _at_once(run, begin))
    return average.calibrated(total)


def _add_ends(average: PathAverage, rule: Rule, ends: ByTarget) -> None:
    for t, gradients in enumerate(ends):
        average.add((rule[0][1], rule[-1][1]), t, gradients)


def _kept(run: PairRun, x: Tensor, paths: Sequence[str], readout: Readout) -> tuple[Tensor, list[Tensor]]:
    """The readout of a run on other inputs, and what the modules at some paths and the readout's site give in it."""
    kept: dict[str, Tensor] = {}

    def keep(path: str, value: Tensor) -> Tensor:
        kept[path] = value
        return value

    def reading(out: Tensor) -> Tensor:
        kept["readout"] = out
        return read(readout, out)

    writes: dict[str, Write] = {path: partial(keep, path) for path in paths}
    writes["tap_input"] = lambda _: keep("tap_input", x)
    values = run_from(run.base, None, _rows(run, x), writes, reading, run.wiring.reads)
    return values, [kept[path] for path in (*paths, "readout")]


def _put(value: Tensor) -> Write:
    return lambda _: value


def _rows(run: PairRun, points: Tensor) -> Int[Tensor, " r"]:
    """The pair of each point."""
    return torch.arange(len(run), device=points.device).repeat(len(points) // len(run))


def _at_once(run: PairRun, start: str | None) -> int:
    """How many nodes of a rule can run together."""
    return max(1, row_capacity(run.base.vae, run.base.x, start) // len(run))
