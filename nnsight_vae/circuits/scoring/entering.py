"""One run for what begins at different places of a model: rows enter where they begin, so that the batch grows on the way.

Runs that begin late are short, and most of their time is no arithmetic: together they take little longer than the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nnsight_vae.runs import CleanRun, Write, repeat, run_from


class Entry(NamedTuple):
    """Rows of a run: all examples, once or several times over.

    Attributes:
        start: path of the module at whose output they enter, as `start_for` finds it; None: at the input.
        values: module path -> what it gives in these rows instead.
    """

    start: str | None
    values: Mapping[str, Tensor]

    @property
    def rows(self) -> int:
        """How many."""
        return len(next(iter(self.values.values())))


def run_entries(
    clean: CleanRun, entries: Sequence[Entry], read: Callable[[Tensor], Tensor], reads: str = "output"
) -> Tensor:
    """What `read` makes of what a site gives in the rows of some entries, those of one after those of another.

    Args:
        clean: a run of the examples.
        entries: in the order in which they start; only the first may start in the posterior, whose taps grow together.
        read: as in `run_from`.
        reads: the site that is read.
    """
    writes: dict[str, Write] = {}
    begin = 0
    for entry in entries:
        values = dict(entry.values)
        if begin:
            start = entry.start or "tap_input"
            entering = values.pop(start, None)
            if entering is None:
                entering = repeat(clean.outputs[start], entry.rows // len(clean))
            _then(writes, start, partial(_enter, entering))
        for path, value in values.items():
            _then(writes, path, partial(_put, begin, value))
        begin += entry.rows
    rows = torch.arange(len(clean), device=clean.x.device).repeat(entries[0].rows // len(clean))
    return run_from(clean, entries[0].start, rows, writes, read, reads)


def _then(writes: dict[str, Write], path: str, write: Write) -> None:
    before = writes.get(path)
    writes[path] = write if before is None else lambda value: write(before(value))


def _enter(entering: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value, entering])


def _put(begin: int, rows: Tensor, value: Tensor) -> Tensor:
    stop = begin + len(rows)
    return rows if stop - begin == len(value) else torch.cat([value[:begin], rows, value[stop:]])
