"""What the pairs say about each edge: its mean effect, and how sure it is that it exceeds a share of the total effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.stats import intervals, significance
from nnsight_vae.stats.clusters import Clusters, Design, checked_design, two_or_more
from nnsight_vae.stats.discovery import effect_pvalues, enough_flips
from nnsight_vae.stats.resampling import design_weights
from nnsight_vae.stats.standard_errors import mean_and_variance


@dataclass(frozen=True, eq=False)
class Evidence:
    """The effects of edges on some pairs, ready to be tested.

    The null hypothesis of an edge e is |mean effect of e| <= d |mean total effect|. It is about a ratio of two means, and is
    tested by their contrast: the pairs' own sign(e) e - d sign(TE) TE has a mean <= 0 under it, whatever the scale of the
    readout and however uncertain the total effect. p is 1 where that mean is <= 0, else that of a sign flip test of it.

    Attributes:
        scores: of the edges.
        paths: how they hang together.
        n_edges: edges of the model, of which those not scored count as tested without success.
        seed: of the sign flips.
    """

    scores: EdgeScores
    paths: Paths
    n_edges: int
    seed: int = 0

    @cached_property
    def mean(self) -> Float[np.ndarray, "edge target"]:
        """Mean effect of each edge."""
        return self.scores.mean()

    @cached_property
    def total(self) -> Float[np.ndarray, " target"]:
        """Mean total effect."""
        return self.scores.total.mean(axis=1)

    @cached_property
    def total_interval(self) -> tuple[Float[np.ndarray, " target"], Float[np.ndarray, " target"]]:
        """Its 95 % interval."""
        ids = (self.scores.groups, self.scores.source_groups)
        return intervals.mean_interval(self.scores.total, *ids, seed=self.seed)

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Targets without a clear total effect, so without a circuit, and why."""
        return {name: reason for t, name in enumerate(self.scores.readouts) if (reason := self._undefined(t))}

    def _undefined(self, t: int) -> str:
        low, high = (bound[t] for bound in self.total_interval)
        if not np.isfinite(self.scores.total[t]).all():
            return "its total effect is NaN or infinite in some pair"
        if np.abs(self.scores.total[t]).mean() <= self.scores.resolution[t]:
            return "no pair changes this readout by more than rounding"
        if low <= 0 <= high:
            return f"the interval of its total effect, [{low:.3g}, {high:.3g}], contains 0"
        return ""

    @cached_property
    def tested(self) -> Bool[np.ndarray, "edge target"]:
        """Which effects are of interest: those on targets that are not left out."""
        return self.scores.applies & np.array([name not in self.left_out for name in self.scores.readouts])

    @cached_property
    def n_tests(self) -> int:
        """Size of the family: effects of interest, and of edges that were not scored."""
        live = len(self.scores.readouts) - len(self.left_out)
        return int(self.tested.sum()) + (self.n_edges - len(self.scores)) * live

    def pvalues(
        self, share: float = 0.0, family_wise: bool = False, least: float = 0.05
    ) -> Float[np.ndarray, "edge target"]:
        """p of "|effect| <= share |total effect|" for each effect of interest; 1 for the others.

        Sign flips are drawn in two rounds: what is as extreme as the first can tell, yet might not be rejected for that, is
        tested anew by as many as a lone rejection among all tests needs. Either round alone gives valid p-values, and
        the second can only correct what the first put at its very end, so together they do too.

        Args:
            share: d.
            family_wise: adjusted for all tests, by the maximum statistic or (sources reused) by Holm's procedure.
            least: rate at which they will be adjusted, for the number of sign flips.
        """
        s, ids = self.scores, (self.scores.groups, self.scores.source_groups)
        values = s.values[self.tested].astype(np.float64)
        if share:
            of_target = np.nonzero(self.tested)[1]
            values *= np.sign(self.mean[self.tested])[:, None]
            values -= share * (np.sign(self.total)[:, None] * s.total)[of_target]
        within = values.mean(axis=1) <= 0 if share else np.zeros(len(values), dtype=bool)
        n_perm = enough_flips(self.n_tests, least)
        p = effect_pvalues(values, *ids, n_perm=n_perm, seed=self.seed, family_wise=family_wise)
        p[within] = 1.0
        if s.source_groups is None and not family_wise:
            n_clusters = len(two_or_more(values, s.groups))
            floor = significance.smallest_pvalue(n_clusters, n_perm)
            stuck, needed = p <= floor, significance.permutations_needed(self.n_tests, least)
            if 0 < stuck.sum() < floor * self.n_tests / least and floor > 2.0 ** (1 - n_clusters):
                p[stuck] = effect_pvalues(values[stuck], *ids, n_perm=needed, seed=self.seed + 1)
        result = np.ones(self.mean.shape)
        result[self.tested] = p
        return result

    def resampled(self, n_resamples: int) -> Iterator[Resample]:
        """The same edges on pairs drawn anew, by whole clusters."""
        s = self.scores
        design = checked_design(s.values, s.groups, s.source_groups)
        sums = design.atoms.sums(s.values[self.tested])
        totals = design.atoms.sums(s.total)
        for atoms, drawn in design_weights(design, n_resamples, self.seed):
            for i in range(len(atoms)):
                yield Resample(self, design, sums, totals, atoms[i].astype(np.intp), tuple(w[i] for w in drawn))


@dataclass(frozen=True, eq=False)
class Resample:
    """Evidence of a bootstrap resample; tested by Student's t, for a sign flip test of each would take long.

    Attributes:
        original: the evidence that was resampled.
        design: how its pairs are clustered.
        sums: of each tested effect over the pairs of an atom.
        totals: of the total effects.
        counts: how often each atom was drawn.
        drawn: how often each cluster was, way by way.
    """

    original: Evidence
    design: Design
    sums: Float[np.ndarray, "test atom"]
    totals: Float[np.ndarray, "target atom"]
    counts: Int[np.ndarray, " atom"]
    drawn: tuple[Float[np.ndarray, " _"], ...]

    @property
    def paths(self) -> Paths:
        """As in `Evidence`."""
        return self.original.paths

    @property
    def scores(self) -> EdgeScores:
        """As in `Evidence`: for what does not depend on the pairs."""
        return self.original.scores

    @property
    def tested(self) -> Bool[np.ndarray, "edge target"]:
        """As in `Evidence`."""
        return self.original.tested

    @property
    def n_tests(self) -> int:
        """As in `Evidence`."""
        return self.original.n_tests

    @cached_property
    def weights(self) -> Float[np.ndarray, " pair"]:
        """How often each pair was drawn."""
        return self.counts[self.design.atoms.labels].astype(np.float64)

    @cached_property
    def n_pairs(self) -> int:
        """Pairs drawn."""
        return int(self.counts @ self.design.atoms.sizes)

    @cached_property
    def mean(self) -> Float[np.ndarray, "edge target"]:
        """Mean effect of each edge of interest, 0 for the others."""
        result = np.zeros(self.tested.shape)
        result[self.tested] = self.sums @ self.counts / self.n_pairs
        return result

    @cached_property
    def total(self) -> Float[np.ndarray, " target"]:
        """Mean total effect."""
        return self.totals @ self.counts / self.n_pairs

    def pvalues(
        self, share: float = 0.0, family_wise: bool = False, least: float = 0.05
    ) -> Float[np.ndarray, "edge target"]:
        """As `Evidence.pvalues`, by t; family-wise by Holm's procedure."""
        from scipy.special import stdtr

        sums = self.sums
        if share:
            signs = np.sign(self.mean[self.tested])[:, None]
            sums = signs * sums - share * (np.sign(self.total)[:, None] * self.totals)[np.nonzero(self.tested)[1]]
        again = np.repeat(np.arange(len(self.counts)), self.counts)
        design = _redrawn(self.design, again, self.drawn)
        mean, _, variance = mean_and_variance(sums[:, again], design)
        with np.errstate(divide="ignore", invalid="ignore"):  # equal values for every pair: no error at all
            p = 2 * stdtr(self.design.n_clusters - 1, -np.abs(mean) / np.sqrt(variance))
        p = np.where(mean > 0 if share else mean != 0, p, 1.0)
        result = np.ones(self.tested.shape)
        result[self.tested] = significance.holm(p) if family_wise else p
        return result


def _redrawn(design: Design, again: Int[np.ndarray, " drawn"], drawn: tuple[np.ndarray, ...]) -> Design:
    """The design of drawn atoms, in which a cluster drawn twice is two clusters."""
    n = len(again)
    atoms = Clusters(np.arange(n), np.arange(n), design.atoms.sizes[again])
    if len(design.ways) == 1:
        return Design(atoms, (Clusters.of(n),))
    bases, sources = (way.labels[again] for way in design.ways)
    copy = np.arange(n) - np.searchsorted(again, again)  # which copy of its atom each one is
    of_base, of_source = np.divmod(copy, drawn[1][sources].astype(np.intp))
    ids = (bases * (n + 1) + of_base, sources * (n + 1) + of_source)
    return Design(atoms, tuple(Clusters.of(n, each) for each in ids))
