"""`InterchangeDifference`: how much better one choice of units does than another when they are swapped, over the same pairs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from nnsight_vae.errors import DataError
from nnsight_vae.stats.intervals import bootstrap_ratio_interval

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_vae.causal.interchange_result import InterchangeAccuracy

_SAME = 1e-4  # relative: true changes are read twice by one network, and differ by rounding at most


@dataclass(frozen=True)
class DifferenceRow:
    """The difference of two scores of one swap against one of the two counterfactuals.

    Attributes:
        factor: the factor that is swapped, `"size + hue"` where several are.
        joint: several factors are swapped at once.
        units: what carries it in the first result.
        other_units: what carries it in the second.
        propagate: the counterfactual lets descendants follow the SCM.
        difference: score of the first less that of the second, (E err_2 - E err_1) / E|true change|^2.
        low, high: 95 % bootstrap interval over pairs, the errors of a pair drawn together.
    """

    factor: str
    joint: bool
    units: str
    other_units: str
    propagate: bool
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class InterchangeDifference:
    """Interchange accuracy of some units less that of others, over the same pairs; made by `InterchangeAccuracy.minus`.

    Attributes:
        rows: one a swap and counterfactual that both results have a score of.
        left_out: swaps that one of them has no score of.
        data: name of the dataset.
        n: number of pairs.
    """

    rows: tuple[DifferenceRow, ...]
    left_out: tuple[str, ...]
    data: str
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row per swap and counterfactual."""
        import pandas as pd

        columns = [each.name for each in fields(DifferenceRow)]
        frame = pd.DataFrame([vars(row) for row in self.rows], columns=columns)
        return frame.rename(columns={"low": "ci_low", "high": "ci_high"})

    def __str__(self) -> str:
        """A table: above 0, the first units do better."""
        lines = [
            f"Difference of interchange accuracy on {self.data}, the same {self.n} pairs: above 0 where the first units do better.",
            "",
        ]
        table = [("factor", "first", "second", "counterfactual", "difference")]
        for row in self.rows:
            units = ("", "") if row.joint else (row.units, row.other_units)
            aim = "with descendants" if row.propagate else "these factors only"
            table.append((row.factor, *units, aim, f"{row.difference:.2f} [{row.low:.2f}, {row.high:.2f}]"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([*lines, *(f"not compared: {swap}, of which one has no score" for swap in self.left_out)])


def difference(first: InterchangeAccuracy, second: InterchangeAccuracy) -> InterchangeDifference:
    """The paired differences of two results; see `InterchangeAccuracy.minus`.

    Raises:
        DataError: they are over other pairs, or have no swap in common.
    """
    others = {(row.factor, row.propagate): row for row in second.rows}
    rows = []
    for row in first.rows:
        key = row.factor, row.propagate
        if key not in first.errors or key not in second.errors:
            continue
        size, own, its = first.sizes[key], first.errors[key], second.errors[key]
        if size.shape != second.sizes[key].shape or not np.allclose(size, second.sizes[key], rtol=_SAME, atol=0):
            raise DataError(
                f"the two results are over other pairs: their true changes of {row.factor} differ ({first.data}, n={first.n}, against "
                f"{second.data}, n={second.n}). Give interchange_accuracy the same data, n, seed and readout both times."
            )
        low, high = bootstrap_ratio_interval(its - own, size)
        gain = float((its - own).mean() / size.mean())
        units = row.units, others[key].units
        rows.append(DifferenceRow(row.factor, row.joint, *units, row.propagate, gain, float(low), float(high)))
    if not rows:
        raise DataError(
            f"the two results have no swap in common: one has scores of {_swaps(first)}, the other of {_swaps(second)}."
        )
    compared = {row.factor for row in rows}
    left_out = dict.fromkeys(row.factor for row in (*first.rows, *second.rows) if row.factor not in compared)
    return InterchangeDifference(tuple(rows), tuple(left_out), first.data, first.n)


def _swaps(result: InterchangeAccuracy) -> str:
    return ", ".join(dict.fromkeys(factor for factor, _ in result.errors)) or "none"
