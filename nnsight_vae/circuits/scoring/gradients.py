"""Edge scores from gradients: what a change of a node's pre-activation is worth, times the change that arrives by an edge.

Where the gradients are taken tells the methods apart: along the straight path of one column's pre-activations, the columns before
it left out (`ig`), or along that of the inputs, all columns in one pass (`eap`, `eap-ig`). Both paths have the same ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.scoring.entering import Entry, run_entries
from nnsight_vae.circuits.wiring.contraction import ByTarget
from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.circuits.wiring.quadrature import PathAverage, PathGradients, Rule, add_along, gradients_at, points_at
from nnsight_vae.engine import row_capacity
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import POSTERIOR, Write, run_from, start_for


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
    found = [gradients_at(values, t, kept, len(run)) for t in range(values.shape[1])]
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


def along_levels(
    run: PairRun, readout: Readout, rule: Rule, total: Float[Tensor, "target pair"]
) -> Iterator[PathGradients]:
    """Gradients of the targets in what settles all that follows a level, averaged along its own path and calibrated to the total.

    That is what the columns of the level give, and, after those, the earlier columns that are still alive beside it.

    Args:
        run: the pairs.
        readout: the targets.
        rule: quadrature nodes and weights, both ends of the path among them.
        total: effect of each pair on each target.

    Returns: first those in what the readout reads, then those in each level, the last level first.
    """
    ends = at_inputs(run, readout, (0.0, 1.0))
    average = _with_ends([run.taken(-1)], rule, ends.pop())
    add_along(average, [run.base_inputs[-1]], lambda points: read(readout, points[0]), rule[1:-1], _at_once(run, None))
    yield average.calibrated(total)
    for levels, at_once in _together(run, [_Level.of(run, i, rule) for i in reversed(range(len(ends)))]):
        averages = []
        for level in levels:
            changes, of_level = [run.given(i) for i in level.columns], ends.pop()
            # where something goes past the level, the gradients at its ends have no part in that
            averages.append(PathAverage(changes, len(total)) if level.bypassed else _with_ends(changes, rule, of_level))
        for i in range(0, max(len(level.nodes) for level in levels), at_once):
            _add_along(run, readout, levels, averages, slice(i, i + at_once))
        for average in averages:
            yield average.calibrated(total)


def _with_ends(changes: Sequence[Tensor], rule: Rule, ends: ByTarget) -> PathAverage:
    """An average that has the gradients at both ends of the path, from `at_inputs`."""
    average = PathAverage(changes, len(ends))
    for t, gradients in enumerate(ends):
        average.add((rule[0][1], rule[-1][1]), t, gradients)
    return average


class _Level(NamedTuple):
    """A level whose path is to be gone along.

    Attributes:
        columns: positions of its columns, then of those that are alive beside it.
        bypassed: whether there are such.
        start: path of the module where its runs start; None: at the input.
        nodes: of the rule, those at which its gradients are not known yet.
    """

    columns: tuple[int, ...]
    bypassed: bool
    start: str | None
    nodes: Rule

    @classmethod
    def of(cls, run: PairRun, level: int, rule: Rule) -> _Level:
        """A level of which only the gradients at both ends are known, and those only where nothing goes past it."""
        vae, x, wiring = run.base.vae, run.base.x, run.wiring
        alive = wiring.alive(level)
        columns = (*wiring.levels[level], *alive)
        first = min((wiring.columns[i].path for i in columns), key=lambda path: vae.layout(x).firings[path].finished)
        return cls(columns, bool(alive), start_for(vae, x, first, wiring.reads), rule if alive else rule[1:-1])


def _together(run: PairRun, levels: Sequence[_Level]) -> Iterator[tuple[list[_Level], int]]:
    """Levels whose nodes fit into one run, or one alone; and how many nodes fit."""
    group: list[_Level] = []
    room = 0
    for level in levels:
        at_once = min(_at_once(run, level.start), room) if group else _at_once(run, level.start)
        needed = sum(len(each.nodes) for each in (*group, level))
        if group and (needed > at_once or level.start in POSTERIOR or group[-1].start in POSTERIOR):
            yield group, room
            group, at_once = [], _at_once(run, level.start)
        group.append(level)
        room = at_once
    yield group, room


def _add_along(
    run: PairRun, readout: Readout, levels: Sequence[_Level], averages: Sequence[PathAverage], nodes: slice
) -> None:
    """Take some of each level's nodes into its average, all in one run."""
    firings = run.base.vae.layout(run.base.x).firings
    entries, each, points = [], [], []
    with torch.enable_grad():
        for level, average in sorted(
            zip(levels, averages, strict=True),
            key=lambda of: -1 if of[0].start is None else firings[of[0].start].finished,
        ):
            if not level.nodes[nodes]:
                continue
            positions, weights = zip(*level.nodes[nodes], strict=True)
            paths = [run.wiring.columns[i].path for i in level.columns]
            given = [
                points_at(positions, run.base.outputs[path], change).requires_grad_()
                for path, change in zip(paths, average.changes, strict=True)
            ]
            entries.append(Entry(level.start, dict(zip(paths, given, strict=True))))
            each.append((average, weights, len(given)))
            points += given
        if not entries:
            return
        values = run_entries(run.base, entries, lambda out: read(readout, out), run.wiring.reads)
    for t in range(values.shape[1]):
        found = iter(gradients_at(values, t, points, len(run)))
        for average, weights, columns in each:
            average.add(weights, t, [next(found) for _ in range(columns)])


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


def _rows(run: PairRun, points: Tensor) -> Int[Tensor, " r"]:
    """The pair of each point."""
    return torch.arange(len(run), device=points.device).repeat(len(points) // len(run))


def _at_once(run: PairRun, start: str | None) -> int:
    """How many nodes of a rule can run together."""
    return max(1, row_capacity(run.base.vae, run.base.x, start) // len(run))
