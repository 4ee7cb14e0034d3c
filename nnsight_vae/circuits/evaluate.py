"""Is a circuit enough? Runs of the model in which only the circuit's edges carry the change from base to source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float

from nnsight_vae import readouts
from nnsight_vae.arguments import require
from nnsight_vae.circuits.edges import cuts_of
from nnsight_vae.circuits.layers import Chain
from nnsight_vae.circuits.pair_run import pair_runs, read
from nnsight_vae.circuits.partial import edge_positions, kept_between, kept_of, run_with
from nnsight_vae.circuits.records import CIRCUIT_SCHEMA
from nnsight_vae.engine import checked_batch
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.stats import intervals
from nnsight_vae.vae import VAE

ABLATION = "everything outside it keeps its base value (resample ablation)"
_LEVEL = 0.95


class Score(NamedTuple):
    """A ratio of mean effects with its 95 % bootstrap interval, or why there is none."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""

    def __str__(self) -> str:
        return f"none: {self.reason}" if self.value is None else f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, repr=False, eq=False)
class Faithfulness:
    """How much of the model's effect a circuit reproduces on its own.

    f = (m(C) - m(nothing)) / (m(M) - m(nothing)): m(M) is the source run, m(nothing) the base run, and m(C) the run on the
    source in which every edge outside the circuit keeps what it contributed in the base run. 1: the circuit does what the
    model does; 0: nothing; it can exceed 1 where what was left out works against it. The node-level score, the more
    lenient and the more common one, also lets the model's other edges between the circuit's nodes through.

    Attributes:
        score: target -> faithfulness of the circuit's edges.
        node_score: target -> faithfulness of the circuit's nodes with all edges between them.
        circuit_effect: target -> mean of m(C) - m(nothing), in units of the readout.
        total_effect: target -> mean of m(M) - m(nothing).
        curve: (number of edges, target -> faithfulness) for the circuit's strongest edges alone, growing.
        n_edges, n_candidates: edges of the circuit, and of the model.
        n_pairs: pairs it was measured on.
        ablation: what happens to the rest.
    """

    score: dict[str, Score]
    node_score: dict[str, Score]
    circuit_effect: dict[str, float]
    total_effect: dict[str, float]
    curve: tuple[tuple[int, dict[str, float | None]], ...]
    n_edges: int
    n_candidates: int
    n_pairs: int
    ablation: str = ABLATION

    def __str__(self) -> str:
        width = max(len(name) for name in self.score)
        lines = [
            f"Faithfulness of a circuit of {self.n_edges:,} of {self.n_candidates:,} edges, {self.n_pairs} pairs; {self.ablation}"
        ]
        for name, score in self.score.items():
            effects = f"(effect {self.circuit_effect[name]:+.3g} of {self.total_effect[name]:+.3g})"
            lines.append(f"  {name:<{width}}  edges {score}  {effects}")
            if score.value is not None:
                lines.append(f"  {'':<{width}}  nodes {self.node_score[name]}")
            if score.value is not None and len(self.curve) > 1:
                points = ", ".join(f"{n}: {values[name]:.2f}" for n, values in self.curve if values[name] is not None)
                lines.append(f"  {'':<{width}}  strongest edges alone: {points}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name}={score.value if score.value is None else round(score.value, 3)}"
            for name, score in self.score.items()
        )
        return f"Faithfulness({scores}; {self.n_edges} of {self.n_candidates} edges, {self.n_pairs} pairs)"


def faithfulness(
    vae: VAE, circuit: nx.DiGraph, pairs: Pairs, readout: Readout, *, points: int = 8, seed: int = 0
) -> Faithfulness:
    """How faithful a circuit is to the model: any set of edges costs one forward pass.

    Pairs other than those the circuit was found on give an honest number.

    Args:
        vae: the model.
        circuit: from `extract_circuit`, or any graph over the same node ids; the attribute `share` (else `effect`) of its
            edges orders the curve.
        pairs: with the factor of the circuit.
        readout: with the targets of the circuit.
        points: of the curve over the circuit's strongest edges; 1 leaves only the whole circuit.
        seed: of the bootstrap.

    Returns: edge-level and node-level faithfulness for every target of the readout; None with a reason where the total effect is not clear of 0.

    Raises:
        CircuitError: the graph has an edge that this model does not have, or is no circuit.
        DataError: fewer than two independent pairs.

    Source: normalised faithfulness as in Marks et al. 2024 (arXiv 2403.19647) and Mueller et al. 2025 (MIB, 2504.13151).
    """
    if not isinstance(circuit, nx.DiGraph) or circuit.graph.get("schema", CIRCUIT_SCHEMA) != CIRCUIT_SCHEMA:
        raise CircuitError(f"expected a circuit (networkx.DiGraph of schema {CIRCUIT_SCHEMA!r}), got {circuit!r}.")
    if isinstance(points, bool) or not isinstance(points, int) or points < 1:
        raise CircuitError(f"points={points!r}: expected a positive number of points of the curve.")
    require(vae, pairs, readout)
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    chain = Chain.of(vae, base, eps, readouts.reads(readout))
    cuts = cuts_of(chain, pairs.factor or "intervention", readout.names)
    positions = edge_positions(circuit.edges, cuts)
    order = _strongest_first(circuit, positions)
    sizes = sorted({min(len(order), max(1, round(len(order) * (i / points) ** 2))) for i in range(1, points + 1)})
    subsets = [kept_of(cuts, [positions[edge] for edge in order[:size]]) for size in sizes]
    subsets.append(kept_between(cuts, set(circuit)))

    effects = np.empty((len(subsets) + 1, len(readout.names), len(base)))
    for rows, run in pair_runs(vae, pairs, chain):
        with torch.no_grad():
            nothing = read(readout, run.base_inputs[-1])
            for k, subset in enumerate(subsets):
                effects[k, :, rows] = (run_with(vae, run, cuts, subset, readout) - nothing).T.cpu()
            effects[-1, :, rows] = (read(readout, run.source_inputs[-1]) - nothing).T.cpu()
    scores = _scores(effects[-3], effects[-1], readout.names, pairs.cluster_ids, seed)
    means = effects.mean(axis=2)
    curve = tuple(
        (
            size,
            {
                name: None if scores[name].value is None else float(means[k, t] / means[-1, t])
                for t, name in enumerate(readout.names)
            },
        )
        for k, size in enumerate(sizes)
    )
    return Faithfulness(
        scores,
        _scores(effects[-2], effects[-1], readout.names, pairs.cluster_ids, seed),
        dict(zip(readout.names, means[-3].tolist(), strict=True)),
        dict(zip(readout.names, means[-1].tolist(), strict=True)),
        curve,
        len(order),
        sum(map(len, cuts)),
        len(base),
    )


def _scores(
    circuit: Float[np.ndarray, "target pair"],
    total: Float[np.ndarray, "target pair"],
    names: Sequence[str],
    ids: tuple[np.ndarray | None, np.ndarray | None],
    seed: int,
) -> dict[str, Score]:
    te_low, te_high = intervals.mean_interval(total, *ids, level=_LEVEL, seed=seed)
    low, high = intervals.bootstrap_ratio_interval(circuit, total, *ids, level=_LEVEL, seed=seed)
    scores = {}
    for t, name in enumerate(names):
        if te_low[t] <= 0 <= te_high[t]:
            reason = f"the interval of the total effect, [{te_low[t]:.3g}, {te_high[t]:.3g}], contains 0"
            scores[name] = Score(None, None, None, reason)
        else:
            scores[name] = Score(float(circuit[t].mean() / total[t].mean()), float(low[t]), float(high[t]))
    return scores


def _strongest_first(circuit: nx.DiGraph, positions: dict[tuple[str, str], tuple[int, int]]) -> list[tuple[str, str]]:
    """The circuit's edges by size relative to the largest of their cut: wide cuts spread the same effect over more edges."""
    size = {(a, b): abs(data.get("share", data.get("effect", 0.0)) or 0.0) for a, b, data in circuit.edges(data=True)}
    largest: dict[int, float] = {}
    for edge, (cut, _) in positions.items():
        largest[cut] = max(largest.get(cut, 0.0), size[edge])
    return sorted(positions, key=lambda edge: -size[edge] / (largest[positions[edge][0]] or 1.0))
