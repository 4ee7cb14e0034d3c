"""Completeness and minimality of a circuit in the sense of the IOI paper: what happens when parts of it are knocked out.

With F the mean readout over pairs, C the circuit, M the model and K a part of C:

- completeness: |F(C - K) - F(M - K)|. A circuit that is all there is does as the model does whatever is knocked out of both;
  a K for which they part shows what the circuit missed, e.g. a backup that only speaks when the circuit is silent.
- minimality of v in C: the largest |F(C - (K + v)) - F(C - K)| over K. Near 0 for every K: v is not needed.

K is of edges between units; without the edges from the factor and into the readouts nothing is left of any model.
The largest over all K is out of reach; K = nothing, K = C and random parts of every size are tried, so a completeness gap is at
least, and a part's worth at least, what is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nnsight_vae.circuits.evaluation.edge_sets import Ablation, EdgeSet, EdgeSets, Progress, checked_circuit
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.stats import intervals
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd

Part = Literal["edge", "node"]
Ids = Shaped[np.ndarray, " pair"] | None


@dataclass(frozen=True, repr=False, eq=False)
class Knockouts:
    """What knocking parts out of a circuit does, in units of the readout.

    Attributes:
        gaps: completeness, |F(C - K) - F(M - K)|, for every K tried; the first is nothing, the second all of C but its ends.
        gaps_low, gaps_high: 95 % intervals over pairs, of each K by itself; 0 where the difference could be of either sign.
        knocked_out: size of every K, in edges.
        worth: minimality, the largest |F(C - (K + v)) - F(C - K)| found, for every part v.
        worth_low, worth_high: likewise, of the K at which it is the largest: where many K come close, it is too large by chance.
        parts: the parts: units, or edges between units as `"a -> b"`.
        total: F(M) - F(nothing).
        defined: whether the interval of that is clear of 0, so that shares of it mean something.
        readouts: names of the targets.
        ablation: what edges outside carry.
    """

    gaps: Float[np.ndarray, "k target"]
    knocked_out: Int[np.ndarray, " k"]
    worth: Float[np.ndarray, "part target"]
    parts: tuple[str, ...]
    total: Float[np.ndarray, " target"]
    defined: tuple[bool, ...]
    readouts: tuple[str, ...]
    ablation: Ablation
    gaps_low: Float[np.ndarray, "k target"]
    gaps_high: Float[np.ndarray, "k target"]
    worth_low: Float[np.ndarray, "part target"]
    worth_high: Float[np.ndarray, "part target"]

    def to_frame(self) -> pd.DataFrame:
        """One row per part and target: part, readout, worth, ci_low, ci_high, share of the total effect (missing where undefined)."""
        import pandas as pd

        rows = [
            (part, name, *values, abs(values[0] / self.total[t]) if self.defined[t] else None)
            for t, name in enumerate(self.readouts)
            for part, *values in zip(
                self.parts, self.worth[:, t], self.worth_low[:, t], self.worth_high[:, t], strict=True
            )
        ]
        columns = ["part", "readout", "worth", "ci_low", "ci_high", "share"]
        return pd.DataFrame(rows, columns=columns).astype({"share": float})

    def __str__(self) -> str:
        lines = [
            f"Knock-outs of {len(self.parts)} parts of a circuit, {len(self.gaps)} sets tried; ablation {self.ablation!r}"
        ]
        for t, name in enumerate(self.readouts):
            k, least = int(self.gaps[:, t].argmax()), int(self.worth[:, t].argmin())
            as_is, largest = (
                f"{self._with_share(self.gaps[i, t], t)} [{self.gaps_low[i, t]:.3g}, {self.gaps_high[i, t]:.3g}]"
                for i in (0, k)
            )
            lines += [
                f"  {name}  (total effect {self.total[t]:+.3g})",
                f"    completeness gap  {as_is} as it is, largest {largest} "
                f"({self.knocked_out[k]:,} edges out), mean {self._with_share(self.gaps[:, t].mean(), t)}",
                f"    worth of a part   median {self._with_share(float(np.median(self.worth[:, t])), t)}, "
                f"least {self._with_share(self.worth[least, t], t)} ({self.parts[least]})",
            ]
        return "\n".join(lines)

    def _with_share(self, value: float, t: int) -> str:
        return f"{value:.3g}" + (f" = {abs(value / self.total[t]):.1%}" if self.defined[t] else "")

    def __repr__(self) -> str:
        return (
            f"Knockouts({len(self.parts)} parts, {len(self.gaps)} sets: largest completeness gap {self.gaps.max():.3g})"
        )


def knockouts(
    vae: VAE,
    circuit: nx.DiGraph,
    pairs: Pairs,
    readout: Readout,
    *,
    parts: Part = "edge",
    ablation: Ablation = "base",
    reference: Float[Tensor, "r *image"] | None = None,
    subsets: int = 32,
    contexts: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Knockouts:
    """Completeness of a circuit, and the worth of each of its parts, by knocking parts out of it and of the model.

    Runs of the model: 2 (2 + `subsets`), and 1 + `contexts` for every part and once more.

    Args:
        vae: the model.
        circuit: from `extract_circuit`.
        pairs: with the factor of the circuit.
        readout: with its targets.
        parts: what v and K are made of: edges between units, or units (all such edges of the circuit at one go with it).
        ablation: what edges outside carry; see `faithfulness`.
        reference: as in `faithfulness`.
        subsets: random K for completeness, of every size alike.
        contexts: random K, besides nothing, in which each part is knocked out.
        seed: of the random K.
        progress: called with (done, total), counted in sets of edges x pairs.

    Returns: gaps and worths.

    Raises:
        CircuitError: no circuit, a foreign or an empty one, or an option out of range.
        DataError: as in `faithfulness`; or fewer than two independent pairs.

    Source: Wang et al. 2022 (IOI, arXiv 2211.00593), section 4; the search over K is random here, by hand or greedy there.

    Example:
        >>> import torch
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Latents
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> pairs = Pairs(torch.zeros(12, 1, 4, 4), torch.rand(12, 1, 4, 4), factor="light")
        >>> whole = nx.DiGraph(EdgeSets.of(vae, pairs, Latents(2)).edges)
        >>> found = knockouts(vae, whole, pairs, Latents(2), parts="node", subsets=4)
        >>> len(found.parts), float(found.gaps.max())
        (7, 0.0)
    """
    _check(parts, subsets, contexts)
    checked_circuit(circuit)
    sets = EdgeSets.of(vae, pairs, readout, ablation, reference)
    own = sets.set_of(circuit.edges)
    members = _members(sets, own & sets.inner, parts)
    if not members:
        raise CircuitError("the circuit has no edge between units, so there is nothing to knock out.")
    masks = np.stack(list(members.values()))
    rng = np.random.default_rng(seed)
    n_parts = len(members)
    tried = np.stack([np.zeros(n_parts, dtype=bool), np.ones(n_parts, dtype=bool), *_draw(rng, n_parts, subsets)])
    around = np.stack([tried[0], *_draw(rng, n_parts, contexts)])
    flipped = (
        around[None] ^ np.eye(n_parts, dtype=bool)[:, None]
    )  # [part, context, part]: v goes in, or comes out where it was
    out = [_union(masks, k) for k in (*tried, *around, *flipped.reshape(-1, n_parts))]
    n = len(tried)
    readings = sets.read([own & ~k for k in out] + [sets.rest_of(k) for k in out[:n]], progress)
    in_circuit, in_model = readings.sets[: len(out)], readings.sets[len(out) :]
    without = in_circuit[n : n + len(around)]
    toggled = in_circuit[n + len(around) :].reshape(n_parts, len(around), *readings.total.shape)
    ids = pairs.cluster_ids
    low, high = intervals.mean_interval(readings.total, *ids, seed=seed)
    gaps = _sizes(readings.clear(in_circuit[:n] - in_model), *ids, seed=seed)
    worths = _sizes(readings.clear(toggled - without), *ids, seed=seed)
    largest = worths[0].argmax(axis=1)[:, None]
    worth, worth_low, worth_high = (np.take_along_axis(each, largest, axis=1)[:, 0] for each in worths)
    return Knockouts(
        gaps[0],
        np.array([int(k.sum()) for k in out[:n]]),
        worth,
        tuple(members),
        readings.total.mean(axis=1),
        tuple(((low > 0) | (high < 0)).tolist()),
        tuple(readout.names),
        ablation,
        *gaps[1:],
        worth_low,
        worth_high,
    )


def _members(sets: EdgeSets, inner: EdgeSet, parts: Part) -> dict[str, EdgeSet]:
    """The parts of the circuit, each with its edges."""
    members: dict[str, EdgeSet] = {}
    for i in np.flatnonzero(inner):
        names = [" -> ".join(sets.edges[i])] if parts == "edge" else sets.edges[i]
        for name in names:
            members.setdefault(name, np.zeros_like(inner))[i] = True
    return members


def _draw(rng: np.random.Generator, n: int, times: int) -> Iterator[Bool[np.ndarray, " part"]]:
    """Random choices of parts, of any size from 0 to n with the same chance."""
    for _ in range(times):
        yield rng.permutation(n) < rng.integers(n + 1)


def _union(masks: Bool[np.ndarray, "part edge"], chosen: Bool[np.ndarray, " part"]) -> EdgeSet:
    return masks[chosen].any(axis=0)


def _sizes(
    differences: Float[np.ndarray, "*sets target pair"], groups: Ids, source_groups: Ids, *, seed: int
) -> tuple[Float[np.ndarray, "*sets target"], Float[np.ndarray, "*sets target"], Float[np.ndarray, "*sets target"]]:
    """|mean| of differences of readouts, and its interval."""
    low, high = intervals.mean_interval(differences, groups, source_groups, seed=seed)
    either = (low <= 0) & (high >= 0)
    ends = np.sort(np.abs([low, high]), axis=0)
    return np.abs(differences.mean(axis=-1)), np.where(either, 0.0, ends[0]), ends[1]


def _check(parts: str, subsets: int, contexts: int) -> None:
    if parts not in get_args(Part):
        raise CircuitError(f"parts={parts!r}: expected 'edge' or 'node'.")
    for name, count in (("subsets", subsets), ("contexts", contexts)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise CircuitError(f"{name}={count!r}: expected a number of random sets, 0 or more.")
