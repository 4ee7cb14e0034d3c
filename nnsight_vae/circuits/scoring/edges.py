"""`EdgeScores`: what each edge of a VAE carries, pair by pair."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from nnsight_vae.circuits.scoring.comparison import Comparison, compared
from nnsight_vae.circuits.wiring.nodes import Node
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats import intervals

if TYPE_CHECKING:
    import pandas as pd

_CANCELLED = 0.01  # a mean total effect below this share of its mean size is the sum of pairs that cancel


class Completeness(NamedTuple):
    """How far the edges of one cut are from summing to the total effect on one target.

    Attributes:
        cut: name of the cut.
        readout: the target.
        error: |sum of mean edge scores - mean TE| / |mean TE|; None where undefined.
        quadrature: mean over pairs of |error of plain quadrature| / |mean TE|, which calibration then takes out; 0 for
            methods other than `ig`.
        reason: why it is undefined, or "".
    """

    cut: str
    readout: str
    error: float | None
    quadrature: float | None
    reason: str


@dataclass(frozen=True, repr=False, eq=False)
class EdgeScores:
    """The effect that each edge carries to each target of a readout, for each pair.

    Attributes:
        values: [edge, target, pair], in units of the readout. An edge into `readout:t` is 0 for every other target.
        sources, targets: node ids of each edge.
        nodes: every node, column by column.
        readouts: names of the targets.
        cut_of: the cut of each edge.
        cuts: names of the cuts, from factor to readout.
        total: total effect of each pair on each target, readout(source) - readout(base).
        resolution: the smallest total effect on each target that rounding cannot make.
        gaps: error of plain quadrature in each pair's total effect, for each cut; see `completeness`.
        method: how the scores were made.
        estimand: what they estimate.
        groups: id of the base image of each pair; None: every pair has its own.
        source_groups: id of the source image of each pair; None: sources are not reused.
        provenance: model fingerprint, pairs, readout, quadrature, versions; plain JSON data.
        bypass: effect that goes past each cut's level by skip connections, with `ig`; 0 in a chain, and with other methods.
        bypassed: names of the cuts past whose level something goes.
        sizes: edges that the model has in each cut, where only some were asked for; empty: all were scored.
        beside: scores of methods that intervene on nothing, `weight` and `correlation`; see `baselines`.
        parts: of scores that are the mean of two, both: `noising` and `denoising`, or the gradients at `base` and `source`.
    """

    values: Float[np.ndarray, "edge target pair"]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    nodes: tuple[Node, ...]
    readouts: tuple[str, ...]
    cut_of: Int[np.ndarray, " edge"]
    cuts: tuple[str, ...]
    total: Float[np.ndarray, "target pair"]
    resolution: Float[np.ndarray, " target"]
    gaps: Float[np.ndarray, "cut target pair"]
    method: str
    estimand: str
    groups: Shaped[np.ndarray, " pair"] | None = None
    source_groups: Shaped[np.ndarray, " pair"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    bypass: Float[np.ndarray, "cut target pair"] | None = None
    bypassed: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    beside: dict[str, Float[np.ndarray, "edge target"]] = field(default_factory=dict)
    parts: dict[str, EdgeScores] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.values.shape[2]

    @property
    def applies(self) -> Bool[np.ndarray, "edge target"]:
        """Whether an edge can carry an effect to a target: one into `readout:t` only to t."""
        ends = np.array(self.targets, dtype=object)[:, None]
        names = np.array([f"readout:{name}" for name in self.readouts], dtype=object)[None]
        into_readout = self.cut_of == len(self.cuts) - 1
        return ~into_readout[:, None] | (ends == names)

    def mean(self) -> Float[np.ndarray, "edge target"]:
        """Mean score over pairs."""
        return self.values.mean(axis=2, dtype=np.float64)

    def ci(
        self, level: float = 0.95, n_boot: int = 2000, seed: int = 0
    ) -> tuple[Float[np.ndarray, "edge target"], Float[np.ndarray, "edge target"]]:
        """Bootstrap-t interval of each mean score, by whole clusters of pairs (`intervals.mean_interval`).

        Raises:
            DataError: fewer than two clusters.
        """
        ids = (self.groups, self.source_groups)
        return intervals.mean_interval(self.values, *ids, level=level, n_boot=n_boot, seed=seed)

    @property
    def completeness(self) -> tuple[Completeness, ...]:
        """For every cut and target, how far its edges, with what bypasses them, are from summing to the total effect.

        For `ig`, whose scores must sum to the total effect, `error` is what calibration left and `quadrature` what it took
        out: the sum is right by construction, so judge by the latter whether more nodes are needed. For other methods
        `error` says how much interactions and saturation matter. Undefined where the total effect is 0 or cancels, for
        cuts of which only some edges were scored, and, but for `ig`, for cuts past which connections skip.
        """
        mean, rows = self.mean(), []
        for t, readout in enumerate(self.readouts):
            total, size = self.total[t].mean(dtype=np.float64), np.abs(self.total[t]).mean(dtype=np.float64)
            reason = ""
            if size <= self.resolution[t]:
                reason = "no pair changes this readout by more than rounding"
            elif abs(total) < _CANCELLED * size:
                reason = f"the pairs' total effects cancel (mean {total:.2g}, mean size {size:.2g}): orient the pairs"
            for c, cut in enumerate(self.cuts):
                scored = int((self.cut_of == c).sum())
                partial = (
                    f"{scored} of its {self.sizes[c]} edges were scored"
                    if self.sizes and scored < self.sizes[c]
                    else ""
                )
                if not partial and cut in self.bypassed and self.method != "ig":
                    partial = "connections skip this level, and only method='ig' tells what they carry"
                if reason or partial:
                    rows.append(Completeness(cut, readout, None, None, reason or partial))
                    continue
                past = 0.0 if self.bypass is None else self.bypass[c, t].mean(dtype=np.float64)
                error = float(abs(mean[self.cut_of == c, t].sum() + past - total) / abs(total))
                rows.append(Completeness(cut, readout, error, float(np.abs(self.gaps[c, t]).mean() / abs(total)), ""))
        return tuple(rows)

    def baselines(self, top: float = 0.1) -> tuple[Comparison, ...]:
        """How much of the ranking of edges is told by scores that intervene on nothing, cut by cut and over all edges.

        Weights of different layers have no common scale, and what goes together in clean runs need not act, so a method that
        finds no other edges than these has found nothing about the effect.

        Args:
            top: share of the edges that count as the strongest.

        Raises:
            CircuitError: a share out of range.

        Example:
            >>> import torch
            >>> from nnsight_vae import VAE, Pairs, readouts
            >>> from nnsight_vae.circuits import score_edges
            >>> from nnsight_vae.models import MLPVAE
            >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
            >>> pairs = Pairs(torch.zeros(8, 1, 4, 4), torch.ones(8, 1, 4, 4), factor="light")
            >>> scores = score_edges(vae, pairs, readouts.Region({"top": (slice(0, 2), slice(None))}))
            >>> [row.baseline for row in scores.baselines() if row.cut == "all"]
            ['weight', 'correlation', 'random']
        """
        if not 0 < top <= 1:
            raise CircuitError(f"top={top}: expected a share of the edges, in (0, 1].")
        return compared(self, top)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file (plain arrays and a JSON header, nothing pickled), whole or not at all.

        Raises:
            DataError: the folder does not exist or cannot be written to.
        """
        from nnsight_vae.circuits.scoring import edges_file

        edges_file.write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EdgeScores:
        """Read edge scores written by `save`.

        Raises:
            DataError: the file is missing, unreadable, or not edge scores of a known version.
        """
        from nnsight_vae.circuits.scoring import edges_file

        return edges_file.read(Path(path))

    def to_frame(self, *, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> pd.DataFrame:
        """One row per edge and target: source, target, readout, effect, ci_low, ci_high, estimand, method, cut.

        Args:
            level: of the interval.
            n_boot: resamples.
            seed: of the resampling.

        Raises:
            DataError: fewer than two clusters.
        """
        import pandas as pd

        low, high = self.ci(level, n_boot, seed)
        edge, target = np.nonzero(self.applies)
        return pd.DataFrame(
            {
                "source": np.array(self.sources, dtype=object)[edge],
                "target": np.array(self.targets, dtype=object)[edge],
                "readout": np.array(self.readouts, dtype=object)[target],
                "effect": self.mean()[edge, target],
                "ci_low": low[edge, target],
                "ci_high": high[edge, target],
                "estimand": self.estimand,
                "method": self.method,
                "cut": np.array(self.cuts, dtype=object)[self.cut_of[edge]],
            }
        )

    def __repr__(self) -> str:
        rows = [(row.error, row.quadrature) for row in self.completeness]
        errors, gaps = ([x for x in column if x is not None] for column in zip(*rows, strict=True))
        worst = f"; worst cut error {max(errors):.1e}" if errors else ""
        if any(gaps):
            worst += f", quadrature {max(gaps):.1e}"
        return (
            f"EdgeScores({self.method}, {self.estimand}: {len(self):,} edges in {len(self.cuts)} cuts x "
            f"{len(self.readouts)} targets x {self.n_pairs} pairs{worst})"
        )
