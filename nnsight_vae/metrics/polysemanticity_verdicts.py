"""Which units stand for one factor and which for several: a verdict a unit from tests with controlled error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.polysemanticity_chance import chance_pvalues
from nnsight_vae.metrics.polysemanticity_indices import INDICES, selectivity_indices
from nnsight_vae.metrics.polysemanticity_rules import VERDICTS, Judged, Verdict, judge
from nnsight_vae.stats.discovery import DiscoveryMethod
from nnsight_vae.stats.skewness import mean_interval, one_sided_pvalues
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_vae.datasets.base import Dataset

_FEWEST = 20  # examples
_SHOWN = 30  # units in a printed table
_BY_CHANCE = "random directions of its layer do as much"
_ADVICE = (
    "of them are undetermined because random directions of their layer move the factors as much, or are as much of one factor: no "
    "single unit stands out. A factor may lie along a direction that is no unit, as in a rotated latent space; nv.causal.learn_rotation "
    "looks for such directions."
)


@dataclass(frozen=True, repr=False, eq=False)
class UnitVerdicts:
    """A verdict for each unit, beside the effects that it rests on.

    With minimum effect d, and a unit's size for a factor the mean absolute effect between them:

    dead            every size is below d
    monosemantic    one size is above d, every other below
    polysemantic    two or more sizes are above d
    undetermined    the data do not decide

    Where random directions of a unit's layer are known (`polysemanticity_chance`), a monosemantic unit is also one that is more of one
    factor than they are, a polysemantic one also moves two more than they do.

    Of the units called mono- or polysemantic, and of those called dead, the expected share that are not, or that move another factor
    than is named, is at most `rate` (`nnsight_vae.metrics.polysemanticity_rules`).

    Attributes:
        units: their names.
        factors: of the columns.
        size: mean absolute effect, [unit, factor].
        low, high: 95 % interval of each; None where sizes have none.
        verdicts: one a unit.
        named: for each unit, the factors that its verdict names.
        reasons: for each undetermined unit, why; empty for the others.
        p: for each unit, the p-value of what it is nearest to being called, dead or alive, being wrong.
        q: the same, adjusted over units: given are the verdicts with q <= `rate`.
        random: root mean square effect of random directions of each unit's layer that are as long; None where not known.
        min_effect: d, in the unit of `size`.
        rate: false verdict rate asked for.
        method: `"bh"` or `"by"`.
        estimand: what a size is.
        notes: what to know when reading, e.g. which factors are left out and why.
    """

    units: tuple[str, ...]
    factors: tuple[str, ...]
    size: Float[np.ndarray, "unit factor"]
    low: Float[np.ndarray, "unit factor"] | None
    high: Float[np.ndarray, "unit factor"] | None
    verdicts: tuple[Verdict, ...]
    named: tuple[tuple[str, ...], ...]
    reasons: tuple[str, ...]
    p: Float[np.ndarray, " unit"]
    q: Float[np.ndarray, " unit"]
    random: Float[np.ndarray, "unit factor"] | None
    min_effect: float
    rate: float
    method: DiscoveryMethod
    estimand: str
    notes: tuple[str, ...] = ()

    @property
    def indices(self) -> dict[str, tuple[float | None, ...]]:
        """Index -> its value for each unit (`polysemanticity_indices`); None of a unit judged dead."""
        rows = [
            selectivity_indices(sizes, verdict != "dead")
            for sizes, verdict in zip(self.size, self.verdicts, strict=True)
        ]
        return {name: tuple(row[name] for row in rows) for name in INDICES}

    def units_of(self, factor: str) -> tuple[str, ...]:
        """The units whose verdict names a factor.

        Raises:
            DataError: no such factor.
        """
        if factor not in self.factors:
            raise DataError(f"no factor {factor!r} among the verdicts; factors are {', '.join(self.factors)}.")
        return tuple(unit for unit, named in zip(self.units, self.named, strict=True) if factor in named)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit and factor: unit, factor, size, ci_low, ci_high, random, named; of the unit verdict, reason, p, q, indices."""
        import pandas as pd

        def column(table: np.ndarray | None) -> list[float | None]:
            return [None] * self.size.size if table is None else table.ravel().tolist()

        per_unit = {"verdict": self.verdicts, "reason": self.reasons, "p": self.p, "q": self.q, **self.indices}
        k = len(self.factors)
        columns: dict[str, Any] = {
            "unit": np.repeat(self.units, k),
            "factor": np.tile(self.factors, len(self.units)),
            "size": self.size.ravel(),
            "ci_low": column(self.low),
            "ci_high": column(self.high),
            "random": column(self.random),
            "named": [factor in named for named in self.named for factor in self.factors],
        }
        columns |= {name: [value for value in values for _ in range(k)] for name, values in per_unit.items()}
        frame = pd.DataFrame(columns)
        return frame.astype(dict.fromkeys(("ci_low", "ci_high", "random", *INDICES), "Float64"))

    def __str__(self) -> str:
        counts = ", ".join(f"{self.verdicts.count(v)} {v}" for v in (*VERDICTS, "undetermined"))
        lines = [
            f"{len(self.units)} units: {counts}",
            f"size: {self.estimand}; minimum effect {self.min_effect:g}; false verdict rate {self.rate:g} ({self.method})",
            *self.notes,
            *([f"{by_chance} {_ADVICE}"] if (by_chance := self.reasons.count(_BY_CHANCE)) else []),
            "",
        ]
        order = [u for u in np.argsort(-self.size.max(axis=1), kind="stable") if self.verdicts[u] != "dead"]
        width = max([len(self.units[u]) for u in order[:_SHOWN]], default=0)
        lines += [f"{self.units[u]:<{width}}  {self.verdicts[u]:<13} {self._effects_of(u)}" for u in order[:_SHOWN]]
        more = len(order) - _SHOWN
        return "\n".join([*lines, *([f"... and {more} more; see to_frame()"] if more > 0 else [])])

    __repr__ = __str__

    def _effects_of(self, u: int) -> str:
        shown = [self.factors.index(f) for f in self.named[u]] or np.argsort(-self.size[u])[:2].tolist()
        cells = []
        for j in shown:
            cells.append(f"{self.factors[j]} {self.size[u, j]:.2f}")
            if self.low is not None and self.high is not None:
                cells[-1] += f" [{self.low[u, j]:.2f}, {self.high[u, j]:.2f}]"
        why = [self.reasons[u]] if self.reasons[u] == _BY_CHANCE else []
        return "; ".join([", ".join(cells), *why])


def polysemanticity(
    data: VAE | Float[np.ndarray, "unit factor example"], world: Dataset | None = None, **options: Any
) -> UnitVerdicts:
    """Dead, monosemantic, polysemantic or undetermined: a verdict a unit, at a controlled rate of false ones.

    Args:
        data: a VAE, with the data set `world`; or effects measured already, `[unit, factor, example]`, of independent examples
            and in one unit for all factors (their absolute values are taken).
        world: a data set with factors, for a VAE.
        options: of `nnsight_vae.causal.unit_verdicts` for a VAE (`sites`, `side`, `min_effect`, ...); of `verdicts_from_effects` for
            arrays (`min_effect` is needed).

    Returns: `UnitVerdicts`; print it.

    Raises:
        DataError: the arrays, data or options do not fit.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> effects = rng.normal([[[1.0], [0.0]], [[1.0], [1.0]], [[0.0], [0.0]]], 0.05, (3, 2, 100))
        >>> polysemanticity(effects, min_effect=0.2).verdicts
        ('monosemantic', 'polysemantic', 'dead')
    """
    if not isinstance(data, VAE):
        return verdicts_from_effects(data, **options)
    if world is None:
        raise DataError("units of a VAE are judged on a data set with factors: metrics.polysemanticity(vae, data).")
    from nnsight_vae.causal.unit_verdict import unit_verdicts

    return unit_verdicts(data, world, **options)


def verdicts_from_effects(
    effects: Float[np.ndarray, "unit factor example"],
    *,
    min_effect: float,
    rate: float = 0.05,
    method: DiscoveryMethod = "bh",
    units: Sequence[str] | None = None,
    factors: Sequence[str] | None = None,
    random: Float[np.ndarray, "unit factor factor"] | None = None,
    n_random: int = 64,
    estimand: str = "mean absolute effect",
    notes: Sequence[str] = (),
) -> UnitVerdicts:
    """Verdicts from the effect of each unit on each factor (or of each factor on each unit), example by example.

    Sizes E|effect| are tested against `min_effect` from both sides by Student's t without its skewness (Hall 1992).

    Args:
        effects: of independent examples; absolute values are taken.
        min_effect: the smallest size of interest, above 0.
        rate: false verdict rate.
        method: `"bh"` (Benjamini-Hochberg) or `"by"` (Benjamini-Yekutieli: any dependence between units).
        units: their names.
        factors: their names.
        random: second moments of the effects of random directions that are as long, E e_f e_g, for each unit.
        n_random: how many directions that is over.
        estimand: what the sizes are, for printing.
        notes: for printing.

    Raises:
        DataError: fewer than 20 examples, a shape or number that does not fit.
    """
    effects = np.asarray(effects, dtype=np.float64)
    _check(effects, min_effect, rate, method, random)
    sizes = np.abs(effects)
    above, below = one_sided_pvalues(sizes, min_effect)
    size = sizes.mean(axis=2)
    chance = None if random is None else chance_pvalues(size, random, n_random)
    low, high = mean_interval(sizes, 0.95)
    names = tuple(units) if units is not None else tuple(f"unit {i}" for i in range(len(effects)))
    columns = tuple(factors) if factors is not None else tuple(f"factor {j}" for j in range(effects.shape[1]))
    return as_verdicts(
        judge(above, below, chance, q=rate, method=method),
        names,
        columns,
        size=size,
        low=low,
        high=high,
        random=None if random is None else np.sqrt(np.diagonal(random, axis1=1, axis2=2)),
        min_effect=min_effect,
        rate=rate,
        method=method,
        estimand=estimand,
        notes=tuple(notes),
    )


def as_verdicts(
    judged: Judged,
    units: tuple[str, ...],
    factors: tuple[str, ...],
    *,
    undecided: str = "the data do not decide",
    **more: Any,
) -> UnitVerdicts:
    """Verdicts with the names of the factors in them, and the reasons of those that are none."""
    named = tuple(tuple(factors[j] for j in each) for each in judged.factors)
    reasons = tuple(
        "" if verdict != "undetermined" else _BY_CHANCE if by_chance else undecided
        for verdict, by_chance in zip(judged.verdicts, judged.by_chance, strict=True)
    )
    return UnitVerdicts(
        units, factors, verdicts=judged.verdicts, named=named, reasons=reasons, p=judged.p, q=judged.q, **more
    )


def _check(effects: np.ndarray, min_effect: float, rate: float, method: str, random: np.ndarray | None) -> None:
    if effects.ndim != 3 or 0 in effects.shape or effects.shape[2] < _FEWEST or not np.isfinite(effects).all():
        raise DataError(
            f"effects have shape {effects.shape}; expected finite numbers [unit, factor, example] of at least {_FEWEST} examples."
        )
    expected = (*effects.shape[:2], effects.shape[1])
    if random is not None and random.shape != expected:
        raise DataError(
            f"random has shape {random.shape}; expected second moments of factors for each unit, {expected}."
        )
    check_options(min_effect, rate, method)


def check_options(min_effect: float, rate: float, method: str) -> None:
    """Refuse what is no minimum effect, rate or method with a DataError."""
    if not 0 < min_effect < np.inf or not 0 < rate < 1:
        raise DataError(f"min_effect={min_effect}, rate={rate}: expected a size above 0 and a rate in (0, 1).")
    if method not in get_args(DiscoveryMethod):
        raise DataError(f"method={method!r}: expected 'bh' (Benjamini-Hochberg) or 'by' (Benjamini-Yekutieli).")
