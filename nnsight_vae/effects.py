"""Effects: what interventions did to readouts, pair by pair, with intervals and tests over the pairs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from nnsight_vae import significance, statistics
from nnsight_vae.errors import DataError, NnsightVaeWarning, ReadoutError, SiteError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_CLUSTERS = 10  # below this a 95 % percentile interval covers less than about 90 % (statistics.bootstrap_interval)
_FLIPS_AT_LEAST, _FLIPS_AT_MOST = 1_999, 9_999


@dataclass(frozen=True, eq=False)
class TestResult:
    """The outcome of `Effects.significant`, kept with the units that passed.

    The q-values belong to the whole family that was tested; they are not recomputed for a selection of it, which would
    understate them.

    Attributes:
        p: sign-flip p-value of each remaining unit and target.
        q: its Benjamini-Hochberg adjusted value within the family.
        passed: q-value <= level and |mean effect| >= min_effect.
        level: the false discovery rate asked for.
        min_effect: the smallest |mean effect| of interest.
        n_tests: size of the family.
    """

    __test__ = False  # not a pytest class

    p: Float[np.ndarray, "unit target"]
    q: Float[np.ndarray, "unit target"]
    passed: Bool[np.ndarray, "unit target"]
    level: float
    min_effect: float
    n_tests: int


@dataclass(frozen=True, repr=False, eq=False)
class Effects:
    """The effect of intervening on each unit, on each target of a readout, for each pair.

    effect = readout(intervened) - readout(base), in units of the readout. Nothing is averaged away: means, intervals
    and tests are taken over pairs when asked for, by whole clusters, because pairs that share a base image are not
    independent.

    Attributes:
        values: effects, [unit, target, pair].
        units: a name per unit, `"encoder.4[7]"`.
        targets: a name per target of the readout.
        estimand: what is estimated, e.g. `"PNIE (noising)"`.
        groups: id of the base image of each pair; None: every pair has its own.
        source_groups: id of the source image of each pair, where sources are reused across bases (`Pairs.crossed`); None:
            they are not. Needs `groups`.
        provenance: where the numbers come from (model fingerprint, pairs, seed, versions ...); kept as plain JSON data.
        parts: effects that these were made from, over the same units and targets (e.g. noising and denoising).
        test: set by `significant`.

    Raises:
        DataError: shapes and names disagree, values are not finite floats, or provenance is not JSON data.

    Example:
        >>> values = np.random.default_rng(0).normal([[[1.5]], [[0.0]]], 1.0, (2, 1, 40))
        >>> effects = Effects(values, ("latent.z[0]", "latent.z[1]"), ("angle",), "PNIE (noising)")
        >>> effects
        Effects(PNIE (noising): 2 units x 1 target x 40 pairs; largest mean latent.z[0] -> angle +1.44)
        >>> effects.significant(q=0.05).units
        ('latent.z[0]',)
    """

    values: Float[np.ndarray, "unit target pair"]
    units: tuple[str, ...]
    targets: tuple[str, ...]
    estimand: str
    groups: Shaped[np.ndarray, " pair"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Effects] = field(default_factory=dict)
    test: TestResult | None = None
    source_groups: Shaped[np.ndarray, " pair"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "provenance", _plain(self.provenance))
        _check(self)

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.values.shape[2]

    @property
    def n_clusters(self) -> int:
        """Number of independent clusters of pairs (base images)."""
        return len(statistics.Clusters.of(self.n_pairs, self.groups))

    def mean(self) -> Float[np.ndarray, "unit target"]:
        """Mean effect over pairs, in float64; defined for a single pair too."""
        return self.values.mean(axis=2, dtype=np.float64)

    def ci(
        self, level: float = 0.95, n_boot: int = 2000, seed: int = 0
    ) -> tuple[Float[np.ndarray, "unit target"], Float[np.ndarray, "unit target"]]:
        """Percentile bootstrap interval of each mean effect, resampling whole clusters of pairs.

        Args:
            level: coverage aimed at.
            n_boot: resamples.
            seed: of the resampling.

        Returns:
            Lower and upper bounds. An effect that is 0 for every pair has the interval [0, 0].

        Raises:
            DataError: fewer than two clusters.

        Warns:
            NnsightVaeWarning: fewer than 10 clusters; the interval is then too narrow (statistics.bootstrap_interval).
        """
        bounds = statistics.bootstrap_interval(self.values, self.groups, level=level, n_boot=n_boot, seed=seed)
        if self.n_clusters < FEW_CLUSTERS:
            warnings.warn(
                f"{self.n_clusters} independent pairs (clusters) only: bootstrap intervals are too narrow below "
                f"{FEW_CLUSTERS}. Use more base images, or read them as indicative.",
                NnsightVaeWarning,
                stacklevel=2,
            )
        return bounds

    def pvalues(
        self, n_perm: int | None = None, seed: int = 0, *, family_wise: bool = False
    ) -> Float[np.ndarray, "unit target"]:
        """Two-sided sign-flip p-value of each mean effect, flipping whole clusters of pairs.

        p cannot be smaller than 1 / (n_perm + 1), nor than 2^(1 - clusters).

        Args:
            n_perm: sign patterns. None: enough for Benjamini-Hochberg at .05 to reject a lone true effect among all
                units x targets, but at least 1,999 and at most 9,999. All patterns are enumerated where they are
                fewer.
            seed: of the drawing.
            family_wise: adjust for all units x targets by the maximum statistic (Westfall-Young); its resolution does
                not shrink with the number of tests.

        Returns:
            One p-value per unit and target; 1 for an effect that is 0 for every pair.

        Raises:
            DataError: fewer than two clusters.
        """
        n_perm = n_perm or self._enough_flips(q=0.05)
        test = significance.max_t_pvalues if family_wise else significance.sign_flip_pvalues
        return test(self.values, self.groups, n_perm=n_perm, seed=seed)

    def significant(
        self, q: float = 0.05, min_effect: float = 0.0, *, n_perm: int | None = None, seed: int = 0
    ) -> Effects:
        """The units with an effect on some target, at false discovery rate `q` over all units x targets.

        A deterministic network makes almost every effect differ from 0 once pairs are many, so set `min_effect` to the
        smallest |mean effect| that would matter.

        Args:
            q: false discovery rate over this object's units x targets.
            min_effect: in units of the readout.
            n_perm: as in `pvalues`, with `q` in the place of .05.
            seed: of the sign flips.

        Returns:
            Effects of the units with at least one passing target, largest first; `.test` and `to_frame()`
            of `to_frame` tell which targets passed. No unit at all is a possible answer.

        Raises:
            DataError: fewer than two clusters, `q` outside (0, 1), or a negative `min_effect`.

        Warns:
            NnsightVaeWarning: effects as extreme as the p-values can show were not rejected, so a finer test might.
        """
        if not 0 < q < 1 or min_effect < 0:
            raise DataError(f"q={q}, min_effect={min_effect}: expected a rate q in (0, 1) and min_effect >= 0.")
        n_perm = n_perm or self._enough_flips(q)
        p = significance.sign_flip_pvalues(self.values, self.groups, n_perm=n_perm, seed=seed)
        adjusted = significance.benjamini_hochberg(p)
        self._warn_if_too_coarse(p, adjusted, q, n_perm)
        size = np.abs(self.mean())
        passed = (adjusted <= q) & (size >= min_effect)
        strongest = np.where(passed, size, -1.0).max(axis=1)
        kept = np.argsort(-strongest, kind="stable")[: int((strongest >= 0).sum())]
        tested = TestResult(p, adjusted, passed, q, min_effect, p.size)
        return replace(self, test=tested)._take(kept, np.arange(len(self.targets)))

    def select(self, units: str | Sequence[str] | None = None, targets: str | Sequence[str] | None = None) -> Effects:
        """The effects of some units on some targets, in the order asked for.

        Args:
            units: names of units, or of sites (all their units); None: all.
            targets: names of targets; None: all.

        Returns:
            Effects over that selection, parts and test included.

        Raises:
            SiteError: no such unit or site here.
            ReadoutError: no such target here.

        Example:
            >>> effects = Effects(np.ones((3, 2, 5)), ("fc[0]", "fc[1]", "latent.z[0]"), ("angle", "light"), "PNIE")
            >>> effects.select("fc", "light")
            Effects(PNIE: 2 units x 1 target x 5 pairs; largest mean fc[0] -> light +1)
        """
        return self._take(self._unit_rows(units), self._target_columns(targets))

    def to_frame(
        self, *, level: float = 0.95, n_boot: int = 2000, n_perm: int | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """One row per unit and target: unit, site, index, target, effect, ci_low, ci_high, p, q.

        After `significant`, only the units and targets that passed, with the p and q of the family that was tested;
        otherwise the family of q is this object's units x targets. `index` is missing for a unit that is not a single index.

        Args:
            level: of the interval.
            n_boot: resamples of the interval.
            n_perm: sign patterns of the p-values.
            seed: of both.

        Raises:
            DataError: fewer than two clusters.

        Warns:
            NnsightVaeWarning: as `ci`.
        """
        import pandas as pd

        low, high = self.ci(level, n_boot, seed)
        p = self.test.p if self.test else self.pvalues(n_perm, seed)
        q = self.test.q if self.test else significance.benjamini_hochberg(p)
        sites, indices = zip(*map(_site_and_index, self.units), strict=True) if self.units else ((), ())
        n_targets = len(self.targets)
        columns: dict[str, Any] = {
            "unit": np.repeat(np.array(self.units, dtype=object), n_targets),
            "site": np.repeat(np.array(sites, dtype=object), n_targets),
            "index": pd.array(indices, dtype="Int64").repeat(n_targets),
            "target": np.tile(np.array(self.targets, dtype=object), len(self.units)),
            "effect": self.mean().ravel(),
            "ci_low": low.ravel(),
            "ci_high": high.ravel(),
            "p": p.ravel(),
            "q": q.ravel(),
        }
        frame = pd.DataFrame(columns)
        return frame[self.test.passed.ravel()].reset_index(drop=True) if self.test else frame

    def plot(self, *, max_units: int = 40) -> tuple[Figure, Axes]:
        """Heat map of the mean effects, units down and targets across, on a symmetric colour-blind-safe scale.

        Cells that passed `significant` carry a dot. With more than `max_units` units the strongest are shown, and the
        title says so.

        Returns:
            The figure and its axes.

        Raises:
            DataError: there is no unit to draw.
        """
        from nnsight_vae.plots import plot_effects

        return plot_effects(self, top=max_units)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file (plain arrays and a JSON header, nothing pickled).

        The file appears whole or not at all: it is written beside its place under another name, then renamed.

        Raises:
            DataError: the folder does not exist or cannot be written to.
        """
        from nnsight_vae import effects_file

        effects_file.write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Effects:
        """Read effects written by `save`.

        Raises:
            DataError: the file is missing, unreadable, or not effects of a known version.
        """
        from nnsight_vae import effects_file

        return effects_file.read(Path(path))

    def __repr__(self) -> str:
        clusters = "" if self.groups is None else f" ({self.n_clusters} clusters)"
        text = (
            f"Effects({self.estimand}: {_count(len(self.units), 'unit')} x {_count(len(self.targets), 'target')} x "
            f"{_count(self.n_pairs, 'pair')}{clusters}"
        )
        if self.units:
            mean = self.mean()
            unit, target = np.unravel_index(np.abs(mean).argmax(), mean.shape)
            text += f"; largest mean {self.units[unit]} -> {self.targets[target]} {mean[unit, target]:+.3g}"
        return text + ")"

    def _enough_flips(self, q: float) -> int:
        needed = significance.permutations_needed(len(self.units) * len(self.targets), q)
        return min(max(needed, _FLIPS_AT_LEAST), _FLIPS_AT_MOST)

    def _warn_if_too_coarse(self, p: np.ndarray, adjusted: np.ndarray, q: float, n_perm: int) -> None:
        least = significance.smallest_pvalue(self.n_clusters, n_perm)
        stuck = int(((p <= least) & (adjusted > q)).sum())
        if not stuck:
            return
        remedy = "use more base images"
        if least > 2.0 ** (1 - self.n_clusters):
            remedy = f"use n_perm >= {significance.permutations_needed(p.size, q)}, or pvalues(family_wise=True)"
        warnings.warn(
            f"{stuck} of {p.size} effects have the smallest p-value possible here, {least:.2g}, which is too coarse to "
            f"be rejected at q={q} among {p.size} tests: {remedy}.",
            NnsightVaeWarning,
            stacklevel=3,
        )

    def _unit_rows(self, units: str | Sequence[str] | None) -> list[int]:
        if units is None:
            return list(range(len(self.units)))
        rows: list[int] = []
        for name in [units] if isinstance(units, str) else units:
            found = [i for i, unit in enumerate(self.units) if unit == name]
            found = found or [i for i, unit in enumerate(self.units) if _site_and_index(unit)[0] == name]
            if not found:
                sites = list(dict.fromkeys(_site_and_index(unit)[0] for unit in self.units))
                raise SiteError(f"{name!r} is not a unit or site of these effects; they have units of: {_some(sites)}.")
            rows += found
        return rows

    def _target_columns(self, targets: str | Sequence[str] | None) -> list[int]:
        if targets is None:
            return list(range(len(self.targets)))
        names = [targets] if isinstance(targets, str) else list(targets)
        unknown = [name for name in names if name not in self.targets]
        if unknown:
            raise ReadoutError(f"{unknown[0]!r} is not a target of these effects; targets: {_some(self.targets)}.")
        return [self.targets.index(name) for name in names]

    def _take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[int] | np.ndarray) -> Effects:
        at = np.ix_(np.asarray(rows, dtype=np.intp), np.asarray(columns, dtype=np.intp))
        test = self.test
        return replace(
            self,
            values=self.values[at],
            units=tuple(self.units[i] for i in rows),
            targets=tuple(self.targets[i] for i in columns),
            parts={name: part._take(rows, columns) for name, part in self.parts.items()},
            test=test and replace(test, p=test.p[at], q=test.q[at], passed=test.passed[at]),
        )


def _check(effects: Effects) -> None:
    values, shape = effects.values, (len(effects.units), len(effects.targets))
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
        got = f"{type(values).__name__} of {getattr(values, 'dtype', 'no dtype')}"
        raise DataError(f"Effects.values is {got}; expected a floating numpy array (for a tensor: .cpu().numpy()).")
    if values.ndim != 3 or values.shape[:2] != shape or 0 in values.shape[1:]:
        raise DataError(
            f"Effects.values has shape {values.shape}; expected [unit, target, pair] = [{shape[0]}, {shape[1]}, at "
            "least one pair], after the names in `units` and `targets`."
        )
    for kind, names in (("units", effects.units), ("targets", effects.targets)):
        if len(set(names)) != len(names):
            raise DataError(f"Effects.{kind} must not repeat a name; got {_some(names)}.")
    if effects.source_groups is not None and effects.groups is None:
        raise DataError("Effects.source_groups without groups; give the id of each pair's base as well.")
    for ids in (effects.groups, effects.source_groups):
        statistics.Clusters.of(values.shape[2], ids)
    if not np.isfinite(values).all():
        unit, target, pair = np.argwhere(~np.isfinite(values))[0]
        raise DataError(
            f"Effect of {effects.units[unit]} on {effects.targets[target]} for pair {pair} is "
            f"{values[unit, target, pair]}; expected finite numbers. Check the readout and the intervention's values."
        )
    for name, part in effects.parts.items():
        if part.units != effects.units or part.targets != effects.targets:
            raise DataError(f"Effects.parts[{name!r}] is over other units or targets than the whole.")


def _plain(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance as JSON data, numpy and tensor scalars included, so that saving cannot fail after a long run."""

    def scalar(value: Any) -> Any:
        if hasattr(value, "item"):
            return value.item()
        raise TypeError(f"{type(value).__name__} is not JSON data")

    try:
        return json.loads(json.dumps(provenance, default=scalar))
    except (TypeError, ValueError) as error:
        raise DataError(f"provenance must be JSON data (numbers, strings, lists, dicts): {error}.") from error


def _site_and_index(unit: str) -> tuple[str, int | None]:
    """'encoder.4[7]' -> ('encoder.4', 7); a set of units, or a whole site, has no single index."""
    site, bracket, rest = unit.partition("[")
    index = rest.rstrip("]")
    return site, int(index) if bracket and index.isdecimal() else None


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _some(names: Sequence[str], most: int = 12) -> str:
    more = "" if len(names) <= most else f" ... ({len(names)} in all)"
    return ", ".join(names[:most]) + more
