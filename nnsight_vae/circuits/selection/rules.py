"""Selecting edges by their scores: by false discovery rate, by the share of the effect they hold, by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from nnsight_vae.circuits.checks import check_count, check_share
from nnsight_vae.circuits.selection.evidence import Evidence, Resample
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats import significance

Control = Literal["bh", "by", "max-t"]
Mask = Bool[np.ndarray, "edge target"]

_ADJUST = {"bh": significance.benjamini_hochberg, "by": significance.benjamini_yekutieli}
_ROUNDING = 1e-9  # relative slack of a cumulative sum


@dataclass(frozen=True)
class FDR:
    """Edges whose |mean effect| exceeds a share of the total effect, at a false discovery rate over all edges x targets.

    Attributes:
        q: the rate; with `max-t` the chance of any false discovery.
        min_share: d of the null hypothesis |effect| <= d |total effect|, tested as in `evidence`. At 0 about half of all edges of a
            trained model pass, for few do exactly nothing. What matters hangs on the width: 64 x 64 edges that share an
            effect evenly carry .00024 each. False discoveries are edges of that null hypothesis only: one that carries a little more
            than d is a discovery, though a person, or the design of `known.edge_strict`, may call it a leak. For a circuit without
            leaks set d above what leaks are thought to carry. The test takes the pairs' effects to lie symmetrically about their mean:
            of edges exactly at d with effects as skewed as an exponential's, 64 pairs reject .055 (a few pairs far below the mean) or
            .012 (far above it) where they should .025.
        control: `bh` (Benjamini-Hochberg), `by` (Benjamini-Yekutieli, whatever the dependence) or `max-t`
            (Westfall-Young).

    Raises:
        CircuitError: a value out of range.

    Example:
        >>> FDR(q=0.01, min_share=0.02)
        FDR(q=0.01, min_share=0.02, control='bh')
    """

    q: float = 0.05
    min_share: float = 0.001
    control: Control = "bh"

    def __post_init__(self) -> None:
        check_share("q", self.q, "a false discovery rate", below=1)
        if self.min_share != 0:
            check_share("min_share", self.min_share, "a share of the total effect", below=1)
        if self.control not in get_args(Control):
            raise CircuitError(f"control={self.control!r} is unknown; expected 'bh', 'by' or 'max-t'.")

    def adjusted(
        self, evidence: Evidence | Resample
    ) -> tuple[Float[np.ndarray, "edge target"], Float[np.ndarray, "edge target"]]:
        """p and adjusted p of every effect of interest; 1 for the others."""
        m = evidence.n_tests
        rate = self.q / float(np.sum(1 / np.arange(1, m + 1))) if self.control == "by" and m else self.q
        p = evidence.pvalues(self.min_share, self.control == "max-t", rate)
        if self.control == "max-t":
            return p, p
        family = np.ones(m)  # what was not scored is not rejected
        family[: evidence.tested.sum()] = p[evidence.tested]
        q = np.ones(p.shape)
        q[evidence.tested] = _ADJUST[self.control](family)[: evidence.tested.sum()]
        return p, q

    def passed(self, evidence: Evidence | Resample) -> Mask:
        """Which effects pass."""
        return evidence.tested & (self.adjusted(evidence)[1] <= self.q)

    def choose(self, evidence: Evidence | Resample) -> Mask:
        """Those of them on paths."""
        return evidence.paths.on_paths(self.passed(evidence))


@dataclass(frozen=True)
class Mass:
    """The strongest edges of each cut, or nodes of each layer, that first hold a share of its summed |mean effect|.

    Every cut loses something, so the whole circuit carries less than the share: see `circuits.faithfulness`.

    Attributes:
        share: in (0, 1].
        level: `edges`: the strongest edges of each cut. `nodes`: the strongest nodes of each layer, a node's effect being the
            sum over the edges into it, with all edges between them.
        among: the test that an edge must pass besides.

    Raises:
        CircuitError: a value out of range.

    Example:
        >>> Mass(0.8).among
        FDR(q=0.05, min_share=0.0, control='bh')
    """

    share: float = 0.9
    level: Literal["edges", "nodes"] = "edges"
    among: FDR = field(default=FDR(min_share=0.0))

    def __post_init__(self) -> None:
        check_share("share", self.share, "a share of the effect")
        if self.level not in ("edges", "nodes"):
            raise CircuitError(f"level={self.level!r} is unknown; expected 'edges' or 'nodes'.")
        _check_test(self.among)

    def choose(self, evidence: Evidence | Resample) -> Mask:
        """The strongest, if they pass the test and are on paths."""
        if self.level == "edges":
            held = strongest(np.abs(evidence.mean), evidence.scores.cut_of, self.share)
        else:
            paths = evidence.paths
            into = np.zeros((len(paths.layers), evidence.mean.shape[1]))
            np.add.at(into, paths.targets, evidence.mean)
            nodes = strongest(np.abs(into), paths.layers, self.share) | paths.factors[:, None] | paths.readouts
            held = nodes[paths.sources] & nodes[paths.targets]
        return evidence.paths.on_paths(held & (evidence.mean != 0) & self.among.passed(evidence))


@dataclass(frozen=True)
class TopK:
    """At most k edges for each target: the strongest, by size relative to the largest of their cut, that form paths.

    Effects spread over more edges where a layer is wide, so sizes are compared within their cut.

    Attributes:
        k: edges of one target's circuit, at most. Edges as strong as each other come and go together.
        among: the test that an edge must pass besides.

    Raises:
        CircuitError: a value out of range.

    Example:
        >>> TopK(200).k
        200
    """

    k: int
    among: FDR = field(default=FDR(min_share=0.0))

    def __post_init__(self) -> None:
        check_count("k", self.k)
        _check_test(self.among)

    def choose(self, evidence: Evidence | Resample) -> Mask:
        """The strongest that pass the test and are on paths."""
        size, cut_of = np.abs(evidence.mean), evidence.scores.cut_of
        largest = np.zeros((len(evidence.scores.cuts), size.shape[1]))
        np.maximum.at(largest, cut_of, size)
        passed = evidence.paths.on_paths(self.among.passed(evidence) & (size > 0))
        strength = np.divide(size, largest[cut_of], out=np.zeros_like(size), where=passed)
        return np.stack([self._capped(evidence, strength, t) for t in range(size.shape[1])], axis=1)

    def _capped(self, evidence: Evidence | Resample, strength: np.ndarray, t: int) -> Bool[np.ndarray, " edge"]:
        def above(level: float) -> Bool[np.ndarray, " edge"]:
            return evidence.paths.on_paths_to((strength[:, t] >= level) & (strength[:, t] > 0), t)

        levels = np.unique(strength[:, t])  # paths only grow as the level falls, so bisect
        too_many, fits = -1, len(levels)
        while fits - too_many > 1:
            middle = (fits + too_many) // 2
            if above(levels[middle]).sum() <= self.k:
                fits = middle
            else:
                too_many = middle
        return above(levels[fits] if fits < len(levels) else np.inf)


Rule = FDR | Mass | TopK


def strongest(
    size: Float[np.ndarray, "item target"], group: Int[np.ndarray, " item"], share: float
) -> Bool[np.ndarray, "item target"]:
    """The largest items of each group that first hold a share of its sum, and what is as large as the last of them.

    Example:
        >>> strongest(np.array([[5.0], [3.0], [2.0], [1.0]]), np.array([0, 0, 0, 1]), 0.7).ravel().tolist()
        [True, True, False, True]
    """
    least = np.zeros((int(group.max()) + 1, size.shape[1]))
    for g in np.unique(group):
        falling = -np.sort(-size[group == g], axis=0)
        held = np.cumsum(falling, axis=0)
        last = (held < share * held[-1] * (1 - _ROUNDING)).sum(axis=0).clip(max=len(falling) - 1)
        least[g] = np.take_along_axis(falling, last[None], axis=0)[0]
    return size >= least[group]


def check_rule(name: str, value: object) -> None:
    """Refuse what selects no edges by their scores.

    Raises:
        CircuitError: says what was got.
    """
    if not isinstance(value, Rule):
        raise CircuitError(f"{name}={value!r}: expected a selection by scores: FDR(...), Mass(...) or TopK(...).")


def _check_test(among: object) -> None:
    if not isinstance(among, FDR):
        raise CircuitError(f"among={among!r}: expected the test that edges must pass, an FDR(q, min_share).")
