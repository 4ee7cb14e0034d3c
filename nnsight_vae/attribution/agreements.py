"""Do attributions say what patching finds? Rank and linear correlation over units, and overlap of the strongest, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.attribution.aligned import Aligned, aligned
from nnsight_vae.errors import DataError
from nnsight_vae.guards import FEW_CLUSTERS
from nnsight_vae.metrics.scores import Score
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats.clusters import Design
from nnsight_vae.stats.intervals import bootstrap_interval
from nnsight_vae.stats.resampling import design_weights

if TYPE_CHECKING:
    import pandas as pd

FEWEST_UNITS = 3  # two points always lie on a line
_CONSTANT = 1e-12  # relative spread below which numbers count as all the same

Statistic = Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "*cells"]]


@dataclass(frozen=True)
class TargetAgreement:
    """How attributions of one target agree with one kind of effect on it.

    Attributes:
        target: its name.
        against: `"noising"`, `"denoising"`, `"both"` (their mean), or the effects' estimand.
        spearman: rank correlation over units of the mean attribution with the mean effect.
        pearson: linear correlation of the same.
        overlap: share of the k units with the largest |mean effect| that are among the k with the largest |mean attribution|;
            k / units by chance.
        within: rank correlation over units within one pair, mean over pairs: whether single explanations can be trusted.
    """

    target: str
    against: str
    spearman: Score
    pearson: Score
    overlap: Score
    within: Score

    @property
    def scores(self) -> tuple[Score, ...]:
        """The four scores."""
        return self.spearman, self.pearson, self.overlap, self.within


@dataclass(frozen=True, repr=False)
class Agreement:
    """What `agreement` found.

    Attributes:
        rows: one per target and kind of effect.
        attributions: what was compared.
        n_units, n_pairs: units it is over, and pairs.
        top: k of the overlap.
        level: of the intervals.
    """

    rows: tuple[TargetAgreement, ...]
    attributions: str
    n_units: int
    n_pairs: int
    top: int
    level: float

    def row(self, target: str, against: str = "both") -> TargetAgreement:
        """The agreement on one target.

        Raises:
            DataError: there is no such row; says which there are.
        """
        for each in self.rows:
            if (each.target, each.against) == (target, against):
                return each
        known = ", ".join(f"({each.target!r}, {each.against!r})" for each in self.rows)
        raise DataError(f"no agreement on {target!r} with {against!r}; there is {known}.")

    def to_frame(self) -> pd.DataFrame:
        """One row per target, kind of effect and score: target, against, metric, value, ci_low, ci_high, note."""
        import pandas as pd

        table = [
            (each.target, each.against, score.metric, score.value, *(score.ci or (None, None)), score.note)
            for each in self.rows
            for score in each.scores
        ]
        frame = pd.DataFrame(table, columns=["target", "against", "metric", "value", "ci_low", "ci_high", "note"])
        return frame.astype(dict.fromkeys(("value", "ci_low", "ci_high"), "Float64"))

    def __str__(self) -> str:
        head = (
            f"{self.attributions} against patching: {self.n_units} units, {self.n_pairs} pairs, {100 * self.level:g} % bootstrap intervals; "
            f"top {self.top} agree by chance in {self.top / self.n_units:.2f}"
        )
        names = ("Spearman", "Pearson", f"top {self.top}", "within pairs")
        table: list[tuple[str, ...]] = [("target", "against", *names)]
        table += [(each.target, each.against, *map(_short, each.scores)) for each in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        notes = dict.fromkeys(score.note for row in self.rows for score in row.scores if score.note)
        return "\n".join([head, *lines, *(f"note: {note}" for note in notes)])

    __repr__ = __str__


def agreement(
    attributions: Effects | Tensor | Float[np.ndarray, "n ..."],
    effects: Effects,
    *,
    top: int | None = None,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Hold attributions against what patching the same units does.

    Compared are the means over pairs, unit by unit, and the pairs one by one. End-points matter: an attribution from base to
    source estimates patching; the gradient at the base estimates noising, that at the source denoising, and integrated
    gradients their mean. Effects of both directions are compared as they are and part by part, and attributions that have such
    parts too (`unit_attributions(..., method="gradient x delta")`) like with like.

    Args:
        attributions: from `unit_attributions`; or what `attribute(pairs.base, baselines=pairs)` returned, a tensor
            `[n, units, *positions]` or `[n, targets, units, *positions]`, summed here over what each unit of the effects covers; or
            any array of those shapes, from base to source, with the effects' targets in their order.
        effects: from `patch_activations`, on the same pairs.
        top: k of the overlap; None: a tenth of the units, at least 1.
        level: of the percentile intervals. Resampling adds noise to both sides, so those of correlations lean low; that of an
            overlap can leave its own value out where units nearly tie for the last place.
        n_boot: resamples of the pairs, by whole clusters.
        seed: of the resampling.

    Returns: `Agreement`; scores that are undefined (fewer than 3 units, all values the same) are None, with the reason.

    Raises:
        DataError: attributions and effects are about other units, targets, pairs or models; says how to get such that are not.

    Warns:
        NnsightVaeWarning: the attributions are against another baseline than the pairs' other side.

    Source: attribution against activation patching: Kramar et al. 2024, AtP*, arXiv 2403.00745.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> values = rng.normal(size=(8, 1, 30)) + np.arange(8.0)[:, None, None]
        >>> effects = Effects(values, tuple(f"encoder.4[{i}]" for i in range(8)), ("angle",), "PNIE (noising)")
        >>> agreement(2 * values[:, 0].T, effects).row("angle", "PNIE (noising)").spearman.value
        1.0
    """
    if not isinstance(effects, Effects):
        raise DataError(f"effects must be Effects, as patch_activations returns, got {type(effects).__name__}.")
    what, comparisons = aligned(attributions, effects)
    n_units = len(comparisons[0].effects.units)
    k = max(1, round(n_units / 10)) if top is None else top
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_units:
        raise DataError(f"top={top!r}: expected a number of units from 1 to {n_units}.")
    rows = [row for each in comparisons for row in _rows(each, k, level, n_boot, seed)]
    return Agreement(tuple(rows), what, n_units, effects.n_pairs, k, level)


def _rows(found: Aligned, k: int, level: float, n_boot: int, seed: int) -> Iterator[TargetAgreement]:
    effects = found.effects
    design = Design.of(effects.n_pairs, effects.groups, effects.source_groups)
    statistics: dict[str, Statistic] = {
        "Spearman": spearman,
        "Pearson": pearson,
        "overlap": lambda a, e: top_overlap(a, e, k),
    }
    for t, target in enumerate(effects.targets):
        form = f"{target}, {found.name}"
        both = np.stack([found.attributions[:, t], effects.values[:, t]])
        means = both.mean(axis=2)
        why = _undefined(means)
        resampled = None if why or design.n_clusters < 2 else _resampled_sums(both, design, n_boot, seed)
        scores: dict[str, Score] = {}
        for name, statistic in statistics.items():
            reason = why or ("all units are among the top" if name == "overlap" and k == len(effects.units) else "")
            if reason:
                scores[name] = Score(name, form, None, note=reason)
                continue
            interval = None if resampled is None else _interval(statistic(*resampled), level)
            scores[name] = Score(name, form, float(statistic(*means)), interval, _caution(design.n_clusters))
        within = _within(both, effects, form, level, n_boot, seed)
        yield TargetAgreement(target, found.name, scores["Spearman"], scores["Pearson"], scores["overlap"], within)


def _caution(n_clusters: int) -> str:
    if n_clusters < 2:
        return "no interval: one cluster of pairs"
    return f"interval from {n_clusters} clusters of pairs only: too narrow" if n_clusters < FEW_CLUSTERS else ""


def _undefined(means: Float[np.ndarray, "2 unit"]) -> str:
    """Why no correlation of these is defined; empty where it is."""
    if means.shape[1] < FEWEST_UNITS:
        return f"{means.shape[1]} units; a correlation needs at least {FEWEST_UNITS}"
    flat = [name for name, row in zip(("attribution", "effect"), means, strict=True) if _is_constant(row)]
    return f"the mean {' and the mean '.join(flat)} is the same for every unit" if flat else ""


def _within(
    both: Float[np.ndarray, "2 unit pair"], effects: Effects, form: str, level: float, n_boot: int, seed: int
) -> Score:
    """Mean over pairs of the rank correlation over units, over the pairs in which there is one."""
    by_pair = both.transpose(0, 2, 1)
    defined = ~(_is_constant(by_pair[0]) | _is_constant(by_pair[1]))
    if both.shape[1] < FEWEST_UNITS or not defined.any():
        return Score("within pairs", form, None, note="in no pair is there a correlation over units")
    values = spearman(*by_pair[:, defined])
    note = "" if defined.all() else f"undefined in {int((~defined).sum())} of {len(defined)} pairs, left out"
    groups, sources = (None if ids is None else ids[defined] for ids in (effects.groups, effects.source_groups))
    if Design.of(len(values), groups, sources).n_clusters < 2:
        return Score("within pairs", form, float(values.mean()), note=note or "no interval: one cluster of pairs")
    low, high = bootstrap_interval(values, groups, sources, level=level, n_boot=n_boot, seed=seed)
    return Score("within pairs", form, float(values.mean()), (float(low), float(high)), note)


def spearman(a: Float[np.ndarray, "*cells unit"], b: Float[np.ndarray, "*cells unit"]) -> Float[np.ndarray, "*cells"]:
    """Rank correlation along the last axis, ties at their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def pearson(a: Float[np.ndarray, "*cells unit"], b: Float[np.ndarray, "*cells unit"]) -> Float[np.ndarray, "*cells"]:
    """Linear correlation along the last axis; NaN where one side is constant."""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.clip((a * b).sum(axis=-1) / size, -1.0, 1.0))


def top_overlap(
    a: Float[np.ndarray, "*cells unit"], b: Float[np.ndarray, "*cells unit"], k: int
) -> Float[np.ndarray, "*cells"]:
    """Share of the k largest |b| that are among the k largest |a|; its expectation where ties are broken at random."""
    first, second = (_among_largest(np.abs(x), k) for x in (a, b))
    return np.asarray((first * second).sum(axis=-1) / k)


def _among_largest(size: Float[np.ndarray, "*cells unit"], k: int) -> Float[np.ndarray, "*cells unit"]:
    """Probability of each unit to be among the k largest."""
    least = np.partition(size, -k, axis=-1)[..., -k, None]
    above, level = size > least, size == least
    places = k - above.sum(axis=-1, keepdims=True)
    return above + level * places / level.sum(axis=-1, keepdims=True)


def _is_constant(values: Float[np.ndarray, "*cells unit"]) -> Bool[np.ndarray, "*cells"]:
    return np.asarray(np.ptp(values, axis=-1) <= _CONSTANT * np.abs(values).max(axis=-1))


def _resampled_sums(
    both: Float[np.ndarray, "2 unit pair"], design: Design, n_boot: int, seed: int
) -> Float[np.ndarray, "2 boot unit"]:
    """Sums over the pairs drawn in each resample, which rank and correlate as means do; both sides of a pair are drawn together."""
    sums = design.atoms.sums(both.reshape(-1, both.shape[2]))
    blocks = [weights @ sums.T for weights, _ in design_weights(design, n_boot, seed)]
    return np.concatenate(blocks).reshape(n_boot, *both.shape[:2]).transpose(1, 0, 2)


def _interval(values: Float[np.ndarray, " boot"], level: float) -> tuple[float, float] | None:
    """Percentile interval over the resamples in which the statistic is defined; None where it is in none."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _short(score: Score) -> str:
    if score.value is None:
        return "none"
    interval = f" [{score.ci[0]:.2f}, {score.ci[1]:.2f}]" if score.ci else ""
    return f"{score.value:.2f}{interval}"
