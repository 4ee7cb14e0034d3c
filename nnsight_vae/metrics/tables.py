"""Codes and factors as metrics want them: checked arrays, classes of values, and what remains when they are unrelated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from nnsight_vae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_MOST_CLASSES = 50  # a factor with more values than these is continuous, and cut into `_BINS` classes of equal size
_BINS = 10


@dataclass(frozen=True, repr=False)
class FactorScore:
    """A score of how codes relate to factors, beside what unrelated codes get.

    Attributes:
        metric: its name.
        value: the score; None where it is undefined (the note says why).
        null: its mean over codes whose rows are permuted; None where none were asked for. A score means what it has above this.
        null_high: largest of those; None as `null`.
        parts: other numbers that belong to it, by name.
        matrix: `[latent, factor]` that it is made from (mutual information, importance, ...); None where there is none.
        note: what to know when reading it.

    Example:
        >>> print(FactorScore("MIG", 0.8, 0.02, 0.03))
        MIG: 0.8 (unrelated codes: 0.02, at most 0.03)
    """

    metric: str
    value: float | None
    null: float | None = None
    null_high: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    matrix: Float[np.ndarray, "latent factor"] | None = None
    note: str = ""

    def to_frame(self) -> pd.DataFrame:
        """One row: metric, value, null, null_high, a column for each part, note."""
        import pandas as pd

        row = {"metric": self.metric, "value": self.value, "null": self.null, "null_high": self.null_high, **self.parts}
        frame = pd.DataFrame([row | {"note": self.note}])
        return frame.astype(dict.fromkeys(("value", "null", "null_high"), "Float64"))

    def __str__(self) -> str:
        value = "none" if self.value is None else f"{self.value:.3g}"
        null = "" if self.null is None else f" (unrelated codes: {self.null:.3g}, at most {self.null_high:.3g})"
        parts = "".join(f"; {name}: {part:.3g}" for name, part in self.parts.items())
        return f"{self.metric}: {value}{null}{parts}{'; ' + self.note if self.note else ''}"

    __repr__ = __str__


@dataclass(frozen=True)
class Table:
    """Codes and factors of the same n examples.

    Attributes:
        codes: `[n, latent]`.
        factors: `[n, factor]`, in any units.
        classes: `[n, factor]`, 0, 1, ...: which value of a factor an example has, or which of ten equally frequent bins.
        binned: the factors (columns) that were cut into bins.
    """

    codes: Float[np.ndarray, "n latent"]
    factors: Float[np.ndarray, "n factor"]
    classes: Int[np.ndarray, "n factor"]
    binned: tuple[int, ...] = ()

    @classmethod
    def of(cls, codes: np.ndarray, factors: np.ndarray) -> Table:
        """Check codes and factors.

        Raises:
            DataError: they are not finite numbers `[n, latent]` and `[n, factor]` of the same n, or a factor takes one value only.
        """
        codes, factors = (checked_table(name, array) for name, array in (("codes", codes), ("factors", factors)))
        if len(codes) != len(factors):
            raise DataError(
                f"codes have {len(codes)} rows and factors {len(factors)}; expected one of each an example."
            )
        still = [j for j, column in enumerate(factors.T) if np.ptp(column) == 0]
        if still:
            raise DataError(
                f"factors {still} (columns) take one value only, so nothing can be told about them; leave them out."
            )
        classed = [_classes(column) for column in factors.T]
        binned = tuple(j for j, (_, cut) in enumerate(classed) if cut)
        return cls(codes, factors, np.stack([c for c, _ in classed], axis=1), binned)

    @property
    def constant(self) -> tuple[int, ...]:
        """Codes (columns) that never change."""
        return tuple(j for j, column in enumerate(self.codes.T) if np.ptp(column) == 0)

    def rows(self, rows: np.ndarray) -> Table:
        """Some of the examples."""
        return Table(self.codes[rows], self.factors[rows], self.classes[rows], self.binned)

    def permuted(self, rng: np.random.Generator) -> Table:
        """The same, the codes of one example beside the factors of another."""
        return Table(self.codes[rng.permutation(len(self.codes))], self.factors, self.classes, self.binned)


def scored(
    metric: str,
    table: Table,
    score: Callable[[Table], tuple[float | None, dict[str, float], np.ndarray | None]],
    n_null: int,
    seed: int,
    *,
    of_classes: bool = True,
    undefined: str = "all codes are constant",
) -> FactorScore:
    """A score with its value for unrelated codes.

    Args:
        metric: its name.
        table: codes and factors.
        score: gives value, parts and matrix.
        n_null: how many times the rows are permuted.
        seed: of the permutations.
        of_classes: whether it looks at classes of factors, so that it matters which were binned.
        undefined: why the score is None where it is.

    Raises:
        DataError: `n_null` is no whole number >= 0.
    """
    require_count("n_null", n_null, least=0)
    value, parts, matrix = score(table)
    rng = np.random.default_rng(seed)
    values = [v for _ in range(n_null) if (v := score(table.permuted(rng))[0]) is not None]
    notes = [] if value is not None else [f"undefined: {undefined}"]
    if of_classes and table.binned:
        notes.append(f"factors {list(table.binned)} cut into {_BINS} equally frequent classes")
    if table.constant:
        notes.append(f"codes {list(table.constant)} are constant")
    null, high = (float(np.mean(values)), max(values)) if values else (None, None)
    return FactorScore(metric, value, null, high, parts, matrix, "; ".join(notes))


def require_count(name: str, value: int, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        DataError: saying what was got.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name}={value!r}: expected a whole number >= {least}.")


def top_two_gap(matrix: Float[np.ndarray, "latent factor"]) -> Float[np.ndarray, " factor"]:
    """For each factor, by how much the strongest latent is ahead of the next; of the whole where there is one latent."""
    falling = -np.sort(-matrix, axis=0)
    return falling[0] - (falling[1] if len(falling) > 1 else 0)


def checked_table(name: str, array: np.ndarray) -> Float[np.ndarray, "n column"]:
    """A table of finite numbers, as float64.

    Raises:
        DataError: it is none.
    """
    array = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
        raise DataError(
            f"{name} are {array.dtype} {array.shape}, expected numbers with one row an example and one column each."
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"{name} hold NaN or infinite values.")
    return array


def _classes(values: Float[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], bool]:
    levels, classes = np.unique(values, return_inverse=True)
    if len(levels) <= _MOST_CLASSES:
        return classes, False
    edges = np.quantile(values, np.arange(1, _BINS) / _BINS)
    cut = np.searchsorted(edges, values, side="right")
    if np.ptp(cut) == 0:  # all edges are the least value, which most examples have: it against the rest
        cut = np.searchsorted(edges, values, side="left")
    return np.unique(cut, return_inverse=True)[1], True
