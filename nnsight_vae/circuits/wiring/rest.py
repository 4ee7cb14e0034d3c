"""What edges carry that do not carry a run's own values: those of the base run, of an average, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import apply, with_bias
from nnsight_vae.circuits.wiring.local_maps import LocalMap
from nnsight_vae.circuits.wiring.nodes import Column
from nnsight_vae.circuits.wiring.pair_run import PairRun


class Rest(NamedTuple):
    """What edges carry that do not carry the run's own values.

    Attributes:
        outputs: module path -> what the module gives when every edge into it is at rest, bias included; `tap_input` too.
        inputs: what each column's module takes in at rest and, last, what the readout reads (as `PairRun.base_inputs`).
        states: module path -> what the module gives where what others add to it, or make of it, is at rest.

    Leading axes are those of the run or 1.
    """

    outputs: Mapping[str, Tensor]
    inputs: tuple[Tensor, ...]
    states: Mapping[str, Tensor]

    @classmethod
    def base(cls, run: PairRun) -> Rest:
        """Each pair's own base run (resample ablation)."""
        return cls(run.base.outputs, run.base_inputs, run.base.outputs)

    @classmethod
    def mean(cls, runs: Iterable[PairRun]) -> Rest:
        """The average over all bases (mean ablation): layers are linear, so the mean contribution is that of the mean input."""
        sums: dict[str | int, Tensor] = {}
        n = 0
        for run in runs:
            paths = [column.path for column in run.wiring.columns]
            seen = {path: run.base.outputs[path] for path in paths} | dict(enumerate(run.base_inputs))
            for key, value in seen.items():
                total = value.sum(0, keepdim=True)
                sums[key] = sums[key] + total if key in sums else total
            n += len(run)
        means = {key: total / n for key, total in sums.items()}
        outputs = {key: value for key, value in means.items() if isinstance(key, str)}
        return cls(outputs, tuple(value for key, value in means.items() if isinstance(key, int)), outputs)

    @classmethod
    def zero(cls, run: PairRun) -> Rest:
        """Nothing (zero ablation): of a layer only the bias is left."""
        columns = run.wiring.columns
        states = {column.path: torch.zeros_like(run.base.outputs[column.path][:1]) for column in columns}
        outputs = {
            column.path: _made(column, torch.zeros_like(taken[:1]))
            for column, taken in zip(columns, run.base_inputs, strict=False)
        }
        return cls(outputs, tuple(torch.zeros_like(value[:1]) for value in run.base_inputs), states).of(run)

    def of(self, run: PairRun) -> Rest:
        """This rest for the examples of a run: layers at whose ports several nodes meet take in what comes of all at rest."""
        columns, inputs, outputs = run.wiring.columns, list(self.inputs), dict(self.outputs)
        for reader in range(len(inputs)):
            if not run.wiring.is_plain(reader):
                paths = [columns[route.parent].path for route in run.wiring.routes(reader)]
                states = [self.states[path].expand_as(run.base.outputs[path]) for path in paths]
                inputs[reader] = LocalMap(run.base, run.wiring, reader)(states)
                if reader < len(columns):
                    outputs[columns[reader].path] = _made(columns[reader], inputs[reader])
        return Rest(outputs, tuple(inputs), self.states)


def _made(column: Column, taken: Tensor) -> Tensor:
    """What a column's module makes of what it takes in."""
    return taken if column.layer is None else with_bias(column.layer, apply(column.layer, taken)).detach()
