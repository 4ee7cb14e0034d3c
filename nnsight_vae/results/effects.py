"""Effects: what interventions did to readouts, pair by pair, with intervals and tests over the pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.errors import DataError
from nnsight_vae.guards import warn_if_few
from nnsight_vae.results import effects_names
from nnsight_vae.results.effects_checks import check, plain
from nnsight_vae.sites import Key
from nnsight_vae.stats import discovery, intervals
from nnsight_vae.stats.clusters import Design
from nnsight_vae.stats.discovery import DiscoveryMethod, TestResult
from nnsight_vae.stats.intervals import IntervalMethod

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        source_groups: id of the source image of each pair; None: sources are not reused (`Pairs.crossed` reuses them).
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
        >>> print(effects.significant(q=0.05))
        PNIE (noising): means of 40 pairs with 95 % intervals over 40 clusters
        1 of 2 larger than 0 at false discovery rate 0.05
        unit         target  effect  95 % interval   q
        latent.z[0]  angle   +1.44   [+1.18, +1.69]  0.001
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
        object.__setattr__(self, "provenance", plain(self.provenance))
        check(self.values, self.units, self.targets, *self._ids)
        for name, part in self.parts.items():
            if part.units != self.units or part.targets != self.targets:
                raise DataError(f"Effects.parts[{name!r}] is over other units or targets than the whole.")

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.values.shape[2]

    @property
    def n_clusters(self) -> int:
        """Number of independent clusters of pairs: of base images, or of source images where those are reused and fewer."""
        return self._design.n_clusters

    def mean(self) -> Float[np.ndarray, "unit target"]:
        """Mean effect over pairs, in float64; defined for a single pair too."""
        return self.values.mean(axis=2, dtype=np.float64)

    def ci(
        self, level: float = 0.95, n_boot: int = 2000, seed: int = 0, *, method: IntervalMethod = "bootstrap-t"
    ) -> tuple[Float[np.ndarray, "unit target"], Float[np.ndarray, "unit target"]]:
        """Interval of each mean effect, by whole clusters of pairs: by base, and by source where sources are reused.

        Args:
            level: coverage aimed at.
            n_boot: resamples.
            seed: of the resampling.
            method: `"bootstrap-t"`, whose coverage holds best; `"t"`, `"percentile"` or `"bca"`. Measured coverages are in
                `intervals.mean_interval`.

        Returns:
            Lower and upper bounds. An effect that is 0 for every pair has the interval [0, 0].

        Raises:
            DataError: fewer than two clusters, `level` outside (0, 1), no resamples, or a method that does not exist or fit.

        Warns:
            NnsightVaeWarning: fewer than 10 clusters.
        """
        bounds = intervals.mean_interval(self.values, *self._ids, method=method, level=level, n_boot=n_boot, seed=seed)
        warn_if_few(self._design)
        return bounds

    def pvalues(
        self, n_perm: int | None = None, seed: int = 0, *, family_wise: bool = False, min_effect: float = 0.0
    ) -> Float[np.ndarray, "unit target"]:
        """Two-sided p-value of "|mean effect| <= min_effect", by whole clusters of pairs.

        The signs of clusters are flipped at random; p cannot then be smaller than 1 / (n_perm + 1), nor than
        2^(1 - clusters). Where sources are reused no flip is valid, and the test is Student's t clustered both ways.

        Args:
            n_perm: sign patterns, all of them where they are fewer. None: enough for Benjamini-Hochberg at .05 to reject a
                lone true effect among all units x targets, but at least 1,999 and at most 9,999.
            seed: of the drawing.
            family_wise: adjust for all units x targets by the maximum statistic (Westfall-Young); its resolution does
                not shrink with the number of tests. By Holm's procedure where sources are reused.
            min_effect: the largest |mean effect| of the null hypothesis, in units of the readout.

        Returns:
            One p-value per unit and target; 1 for an effect that is 0 for every pair.

        Raises:
            DataError: fewer than two clusters, a negative `min_effect`, or `n_perm` below 1.
        """
        return discovery.effect_pvalues(
            self.values, *self._ids, min_effect=min_effect, n_perm=n_perm, seed=seed, family_wise=family_wise
        )

    def significant(
        self,
        q: float = 0.05,
        min_effect: float = 0.0,
        *,
        method: DiscoveryMethod = "bh",
        n_perm: int | None = None,
        seed: int = 0,
    ) -> Effects:
        """The units with an effect larger than `min_effect` on some target, at false discovery rate `q` over all units x targets.

        A deterministic network makes almost every effect differ from 0 once pairs are many, so set `min_effect` to the
        smallest |mean effect| that would matter. It is part of the hypothesis that is tested, |mean effect| <= min_effect,
        not a filter on the estimate: what passes is larger than it, at the rate asked for.

        Args:
            q: false discovery rate over this object's units x targets.
            min_effect: in units of the readout.
            method: `"bh"`, Benjamini-Hochberg, or `"by"`, Benjamini-Yekutieli, which holds under any dependence between
                effects and finds fewer.
            n_perm: as in `pvalues`, with `q` in the place of .05.
            seed: of the sign flips.

        Returns:
            Effects of the units with at least one passing target, largest first; `.test` and the rows of `to_frame` tell
            which targets passed. No unit at all is a possible answer.

        Raises:
            DataError: fewer than two clusters, `q` outside (0, 1), a negative `min_effect`, `n_perm` below 1, or an unknown method.

        Warns:
            NnsightVaeWarning: effects as extreme as the p-values can show were not rejected, so a finer test might.
        """
        test = discovery.discover(
            self.values, *self._ids, q=q, min_effect=min_effect, method=method, n_perm=n_perm, seed=seed
        )
        strongest = np.where(test.passed, np.abs(self.mean()), -1.0).max(axis=1)
        kept = np.argsort(-strongest, kind="stable")[: int((strongest >= 0).sum())]
        return replace(self, test=test)._take(kept, np.arange(len(self.targets)))

    def select(self, units: Key | Sequence[Key] | None = None, targets: str | Sequence[str] | None = None) -> Effects:
        """The effects of some units on some targets, in the order asked for.

        Args:
            units: keys: units, sites (all their units), or slices such as `"encoder.4[0:8]"`; None: all.
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
        rows = range(len(self.units)) if units is None else effects_names.rows(units, self.units)
        columns = range(len(self.targets)) if targets is None else effects_names.columns(targets, self.targets)
        return self._take(rows, columns)

    def to_frame(
        self, *, level: float = 0.95, n_boot: int = 2000, n_perm: int | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """One row per unit and target: unit, site, index, target, effect, ci_low, ci_high, p, q.

        After `significant`, only the units and targets that passed, with the p and q of the family that was tested;
        otherwise the family of q is this object's units x targets. `index` is missing for a unit that is not a single index.

        Args: as of `ci` and `pvalues`; `seed` is of both.

        Raises:
            DataError: fewer than two clusters.

        Warns:
            NnsightVaeWarning: as `ci`.
        """
        from nnsight_vae.results import effects_frame

        table = effects_frame.frame(self, level=level, n_boot=n_boot, n_perm=n_perm, seed=seed)
        warn_if_few(self._design)
        return table

    def plot(self, top: int = 40) -> tuple[Figure, Axes]:
        """The mean effects: a heat map; of one target dots with 95 % intervals, or a map where units are all places of a site.

        See `nv.plots.plot_effects`. With more than `top` units the strongest are shown, and the title says so.

        Returns: the figure and its axes.

        Raises:
            DataError: there is no unit to draw.
        """
        from nnsight_vae.plots import plot_effects

        return plot_effects(self, top)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file (plain arrays and a JSON header, nothing pickled).

        The file appears whole or not at all: it is written beside its place under another name, then renamed.

        Raises:
            DataError: the folder does not exist or cannot be written to.
        """
        from nnsight_vae.results import effects_file

        effects_file.write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Effects:
        """Read effects written by `save`.

        Raises:
            DataError: the file is missing, unreadable, or not effects of a known version.
        """
        from nnsight_vae.results import effects_file

        return effects_file.read(Path(path))

    def __str__(self) -> str:
        from nnsight_vae.results import effects_text

        return effects_text.table(self)

    def __repr__(self) -> str:
        from nnsight_vae.results import effects_text

        return effects_text.line(self)

    @property
    def _ids(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        return self.groups, self.source_groups

    @cached_property
    def _design(self) -> Design:
        return Design.of(self.n_pairs, *self._ids)

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
