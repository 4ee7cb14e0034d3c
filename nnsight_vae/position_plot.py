"""Effects of every position of one site as a map: where in a feature map, or in the picture, an effect sits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nnsight_vae._canvas import (
    diverging,
    name_ticks,
    new_figure,
    power_of_ten,
    quiet,
    scaled_ticks,
    title,
    write_numbers,
)
from nnsight_vae.stats.intervals import mean_interval
from nnsight_vae.style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_vae.results.effects import Effects

_WRITTEN = 64  # positions up to which cells show their numbers
_AT = re.compile(r"(?P<where>[^@]+)@(?P<row>\d+),(?P<column>\d+)")


class Positions(NamedTuple):
    """A grid of positions.

    Attributes:
        where: the site, or the unit of it, whose positions they are.
        shape: rows and columns.
    """

    where: str
    shape: tuple[int, int]

    @classmethod
    def of(cls, units: Sequence[str]) -> Positions | None:
        """The grid that these units are, row by row; None where they are anything else.

        Example:
            >>> Positions.of(["encoder.4@0,0", "encoder.4@0,1"])
            Positions(where='encoder.4', shape=(1, 2))
            >>> Positions.of(["encoder.4@0,0", "encoder.4@1,1"]) is None
            True
        """
        found = [_AT.fullmatch(unit) for unit in units]
        last = found[-1]
        if last is None:
            return None
        where, shape = last["where"], (int(last["row"]) + 1, int(last["column"]) + 1)
        grid = [f"{where}@{i},{j}" for i, j in itertools.product(*map(range, shape))]
        return cls(where, shape) if len(units) > 1 and list(units) == grid else None


def plot_positions(effects: Effects, positions: Positions) -> tuple[Figure, Axes]:
    """The mean effect on the one target at every position; small maps show the numbers, pale where the interval covers 0.

    Args:
        effects: of the units of `positions`, on one target.
        positions: where they are.

    Returns: the figure and its axes.
    """
    rows, columns = positions.shape
    values = effects.mean()[:, 0].reshape(rows, columns)
    limit = float(np.abs(values).max()) or 1.0
    cell = max(3.2 / max(rows, columns), 0.055)  # inches
    figure = new_figure(1.6 + cell * columns, 1.1 + cell * rows)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=diverging(), vmin=-limit, vmax=limit, interpolation="nearest")
    scale, named = power_of_ten(limit, effects.provenance.get("unit"))
    written = values.size <= _WRITTEN
    if written:
        write_numbers(axes, values, _clear(effects).reshape(values.shape), limit, scale)
        name_ticks(axes.xaxis, [str(j) for j in range(columns)])
        name_ticks(axes.yaxis, [str(i) for i in range(rows)])
    quiet(axes)
    axes.set_xlabel(f"column of {positions.where}", fontsize=8, color=FAINT, parse_math=False)
    axes.set_ylabel("row", fontsize=8, color=FAINT)
    how = "pale: 95 % interval covers 0" if written and effects.n_clusters > 1 else "means"
    note = f"{how}; {effects.n_clusters:,} clusters" if effects.n_clusters > 1 else how
    title(axes, effects.estimand, note, width=1.2 + cell * columns)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.formatter = scaled_ticks(scale)
    bar.set_label(
        f"effect on {effects.targets[0]}{named}\n(lowers | raises)", fontsize=8, color=FAINT, parse_math=False
    )
    quiet(bar.ax)
    return figure, axes


def _clear(effects: Effects) -> np.ndarray:
    """Which units have an interval clear of 0; all of them where there is none."""
    if effects.n_clusters < 2:
        return np.ones(len(effects.units), dtype=bool)
    low, high = mean_interval(effects.values[:, 0], effects.groups, effects.source_groups)
    return (low > 0) | (high < 0)
