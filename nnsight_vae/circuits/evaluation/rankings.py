"""In which order edges join a faithfulness curve: by the circuit and the scores it came from, or by a baseline that ran no intervention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.evaluation.edge_sets import EdgeSet, EdgeSets
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.errors import CircuitError

Baseline = Literal["weight", "correlation", "random"]
N_RANDOM = 5  # orders drawn for the baseline `random`, over which its effects are averaged


def check_baselines(baselines: Sequence[str], scores: EdgeScores | None) -> None:
    """Refuse baselines that cannot be ranked by.

    Raises:
        CircuitError: an unknown one, or one of a model whose edges were not scored.
    """
    unknown = [name for name in baselines if name not in get_args(Baseline)]
    if unknown or isinstance(baselines, str):
        raise CircuitError(f"baselines={baselines!r}: expected some of {', '.join(map(repr, get_args(Baseline)))}.")
    if baselines and scores is None:
        raise CircuitError("baselines= rank all edges of the model; give scores=score_edges(vae, pairs, readout) too.")
    missing = [name for name in baselines if scores and name != "random" and name not in scores.beside]
    if missing:
        raise CircuitError(
            f"the scores hold no {' and no '.join(missing)} beside them; score_edges by 'ig', 'exact' or 'eap' does."
        )


def strongest_first(circuit: nx.DiGraph, sets: EdgeSets) -> list[int]:
    """The circuit's edges by size relative to the largest of their cut: wide cuts spread the same effect over more edges."""
    size = {(a, b): abs(data.get("share", data.get("effect", 0.0)) or 0.0) for a, b, data in circuit.edges(data=True)}
    members = [i for i, edge in enumerate(sets.edges) if edge in size]
    return _ranked(members, np.array([size.get(edge, 0.0) for edge in sets.edges]), sets.cut_of)


def the_rest(scores: EdgeScores, sets: EdgeSets, own: EdgeSet) -> list[int]:
    """The model's other edges by their scores, in the same way; with several targets by the largest share of a total effect."""
    mean, total = np.abs(scores.mean()), np.abs(scores.total.mean(axis=1))
    shares = np.divide(mean, total, out=np.zeros_like(mean), where=total > 0).max(axis=1)
    return _ranked(np.flatnonzero(~own).tolist(), _in_order(scores, sets, shares), sets.cut_of)


def by_baseline(baseline: str, scores: EdgeScores, sets: EdgeSets, seed: int) -> Iterator[list[int]]:
    """All edges of the model by a baseline, in the same way; several orders where it is random."""
    everything = list(range(len(sets.edges)))
    if baseline == "random":
        rng = np.random.default_rng(seed)
        for _ in range(N_RANDOM):
            yield _ranked(everything, rng.random(len(everything)), sets.cut_of)
    else:
        yield _ranked(everything, _in_order(scores, sets, np.abs(scores.beside[baseline]).max(axis=1)), sets.cut_of)


def _in_order(scores: EdgeScores, sets: EdgeSets, sizes: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """Numbers of scored edges in the order of the model's."""
    scored = list(zip(scores.sources, scores.targets, strict=True))
    if set(scored) != set(sets.edges):
        raise CircuitError(
            f"scores= must score every edge of this model, pairs and readout ({len(sets.edges):,}), got {len(scored):,} edges, "
            f"{len(set(scored) & set(sets.edges)):,} of them this model's; make them with score_edges(vae, pairs, readout)."
        )
    by_edge = dict(zip(scored, sizes.tolist(), strict=True))
    return np.array([by_edge[edge] for edge in sets.edges])


def _ranked(members: list[int], size: np.ndarray, cut_of: np.ndarray) -> list[int]:
    largest = np.zeros(int(cut_of.max()) + 1)
    np.maximum.at(largest, cut_of[members], size[members])
    return sorted(members, key=lambda i: -size[i] / (largest[cut_of[i]] or 1.0))
