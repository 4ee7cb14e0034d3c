"""`EdgeScores`: what each edge of a VAE carries, pair by pair; and the edges there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nnsight_vae.circuits.contributions import weight_grid
from nnsight_vae.circuits.layers import Chain, Node
from nnsight_vae.stats import intervals

if TYPE_CHECKING:
    import pandas as pd

_CANCELLED = 0.01  # a mean total effect below this share of its mean size is the sum of pairs that cancel


@dataclass(frozen=True)
class Cut:
    """All edges between one column of nodes and the next: together they carry everything.

    Attributes:
        name: `"encoder.0 -> encoder.2"`.
        sources, targets: the nodes on both sides.
        ends: (source, target) positions of each edge.
        edge_of: for each layer of the cut, the edge of every entry of its weight; -1 for none.
    """

    name: str
    sources: tuple[Node, ...]
    targets: tuple[Node, ...]
    ends: Int[np.ndarray, "edge 2"]
    edge_of: tuple[Int[Tensor, "a b"], ...] = ()

    def __len__(self) -> int:
        return len(self.ends)


def cuts_of(chain: Chain, factor: str, readouts: Sequence[str]) -> tuple[Cut, ...]:
    """The cuts of a chain: factor to input units, layer by layer, last units to readouts."""
    columns = chain.columns
    source = (Node(f"factor:{factor}", "factor", None, None, "factor", 0),)
    last = len(columns) + 1
    sinks = tuple(Node(f"readout:{name}", "readout", None, None, "readout", last) for name in readouts)
    cuts = [_cut(source, columns[0].nodes, _all_pairs(1, len(columns[0].nodes)))]
    for i in range(1, len(columns)):
        before, after = columns[i - 1], columns[i]
        keys, n_after = [], len(after.nodes)
        for layer, owners in zip(chain.layers[i], after.owners, strict=True):
            units, ports = weight_grid(layer)
            sources, targets = before.ports[ports], owners[units]
            keys.append(torch.where((sources >= 0) & (targets >= 0), sources * n_after + targets, -1))
        present = torch.cat([key.flatten() for key in keys]).unique()
        present = present[present >= 0]
        edge_of = tuple(torch.where(key >= 0, torch.searchsorted(present, key), -1) for key in keys)
        ends = torch.stack([present // n_after, present % n_after], dim=1).numpy()
        cuts.append(_cut(before.nodes, after.nodes, ends, edge_of))
    cuts.append(_cut(columns[-1].nodes, sinks, _all_pairs(len(columns[-1].nodes), len(sinks))))
    return tuple(cuts)


def _cut(sources: tuple[Node, ...], targets: tuple[Node, ...], ends: np.ndarray, *edge_of: Any) -> Cut:
    return Cut(f"{_column_name(sources)} -> {_column_name(targets)}", sources, targets, ends, *edge_of)


def _column_name(nodes: tuple[Node, ...]) -> str:
    if not nodes:
        return "nothing"
    return nodes[0].site or (nodes[0].id if len(nodes) == 1 else f"{nodes[0].kind}s")


def _all_pairs(n: int, m: int) -> Int[np.ndarray, "edge 2"]:
    return np.stack(np.meshgrid(np.arange(n), np.arange(m), indexing="ij"), axis=-1).reshape(-1, 2)


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
        """For every cut and target, how far its edges are from summing to the total effect.

        For `ig`, whose scores must sum to the total effect, `error` is what calibration left and `quadrature` what it took
        out: the sum is right by construction, so judge by the latter whether more nodes are needed. For other methods
        `error` says how much interactions and saturation matter. Undefined where the total effect is 0 or cancels, and for
        cuts of which only some edges were scored.
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
                if reason or partial:
                    rows.append(Completeness(cut, readout, None, None, reason or partial))
                    continue
                error = float(abs(mean[self.cut_of == c, t].sum() - total) / abs(total))
                rows.append(Completeness(cut, readout, error, float(np.abs(self.gaps[c, t]).mean() / abs(total)), ""))
        return tuple(rows)

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
