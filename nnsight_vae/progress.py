"""A progress bar for long runs: shown on an interactive terminal, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None] | None  # tells a bar how many steps were just done; None where no bar is shown


@contextmanager
def progress_bar(description: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """A bar on stderr that the yielded function advances; yields None where no bar is shown.

    Args:
        description: what is being done.
        total: steps in all.
        show: None shows the bar on an interactive terminal only.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show or total <= 0:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)
