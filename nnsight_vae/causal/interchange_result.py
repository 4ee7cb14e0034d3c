"""`InterchangeAccuracy`: the scores of swaps against the world's counterfactuals, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from nnsight_vae.causal.interchange_difference import InterchangeDifference, difference

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class InterchangeRow:
    """The score of one swap against one of the two counterfactuals.

    Attributes:
        factor: the factor that is swapped, `"size + hue"` where several are.
        joint: several factors are swapped at once, each from a source image of its own.
        units: what carries it, `"latent.z[3]"`.
        propagate: the counterfactual lets descendants follow the SCM.
        score: 1 - E|predicted change - true change|^2 / E|true change|^2; 1 is perfect, 0 is what changing nothing scores.
        low, high: 95 % bootstrap interval over pairs.
        control: mean score of other sets of as many units of the same sites swapped in its place (all of them, or 16 at random),
            or of 16 random subspaces of the same dimension.
        best_control: the best of those.
        everything: score of swapping all units of those sites, from one source.
        reason: why a number of this row is None.
    """

    factor: str
    joint: bool
    units: str
    propagate: bool
    score: float | None
    low: float | None = None
    high: float | None = None
    control: float | None = None
    best_control: float | None = None
    everything: float | None = None
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class InterchangeAccuracy:
    """How well swapped units reproduce the world's counterfactuals; see `interchange_accuracy`.

    Attributes:
        rows: two per swap: first against the change of the swapped factors only, then with their descendants.
        unmatched: factors that nothing carries, which have no score.
        data: name of the dataset.
        n: number of pairs.
        errors: (factor, propagate) -> |predicted change - true change|^2 of every pair, for the rows that have a score.
        sizes: the same of |true change|^2.
    """

    rows: tuple[InterchangeRow, ...]
    unmatched: tuple[str, ...]
    data: str
    n: int
    errors: Mapping[tuple[str, bool], Float[np.ndarray, " pair"]] = field(
        default_factory=dict, repr=False, compare=False
    )
    sizes: Mapping[tuple[str, bool], Float[np.ndarray, " pair"]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def minus(self, other: InterchangeAccuracy) -> InterchangeDifference:
        """How much better these units do than others, pair by pair: such as a learned rotation than single latents.

        Both results are over the same pairs (data set, `n`, `seed`, `readout`), of one model or of two. The errors of a pair go
        together, so that the interval of the difference is narrower than those of the two scores make believe.

        Returns: `InterchangeDifference`; print it for a table.

        Raises:
            DataError: the results are over other pairs, or have no swap in common.

        Example:
            >>> import nnsight_vae as nv
            >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
            >>> right, wrong = (nv.causal.interchange_accuracy(vae, data, {"angle": k}, n=32) for k in (0, 1))
            >>> right.minus(wrong).rows[0].low > 0
            True
        """
        return difference(self, other)

    def to_frame(self) -> pd.DataFrame:
        """One row per swap and counterfactual: the attributes of `InterchangeRow`, with ci_low and ci_high for `low` and `high`."""
        import pandas as pd

        columns = [each.name for each in fields(InterchangeRow)]
        frame = pd.DataFrame([vars(row) for row in self.rows], columns=columns)
        return frame.rename(columns={"low": "ci_low", "high": "ci_high"})

    def __repr__(self) -> str:
        alone = [row for row in self.rows if not row.propagate]
        scores = ", ".join(f"{row.factor} {'none' if row.score is None else f'{row.score:.2f}'}" for row in alone)
        return f"InterchangeAccuracy({self.data}, {self.n} pairs, these factors only: {scores})"

    def __str__(self) -> str:
        """A table, propagated and unpropagated scores side by side."""
        lines = [
            f"Interchange accuracy on {self.data}, {self.n} pairs: 1 = the swap does what the SCM says, 0 = no better than changing",
            "nothing. Beside it: other sets of as many units (mean, best), and all units of the site; both for these factors only.",
            "",
        ]
        pairs = list(zip(self.rows[::2], self.rows[1::2], strict=True))
        table: list[tuple[str, ...]] = [
            ("factor", "carried by", "these factors only", "with their descendants", "others", "best", "all")
        ]
        for alone, propagated in pairs:
            beside = [_plain(x) for x in (alone.control, alone.best_control, alone.everything)]
            carried = "each from its own source" if alone.joint else alone.units
            table.append((alone.factor, carried, _interval(alone), _interval(propagated), *beside))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        if self.unmatched:
            lines.append(f"matched to nothing, so not swapped: {', '.join(self.unmatched)}")
        lines += dict.fromkeys(f"undefined: {row.reason}" for row in self.rows if row.score is None)
        return "\n".join(lines)


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _interval(row: InterchangeRow) -> str:
    return "undefined" if row.score is None else f"{row.score:.2f} [{row.low:.2f}, {row.high:.2f}]"
