"""Selected edges as a `networkx` graph: what each node and edge says about itself, and the graph about the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float

from nnsight_vae.circuits.graph.columns import candidates_of, size_of_model
from nnsight_vae.circuits.graph.records import CIRCUIT_SCHEMA
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.selection.evidence import Evidence
from nnsight_vae.stats import intervals

Values = Float[np.ndarray, "edge target"]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        evidence: the effects of edges.
        kept: which edges are in which target's circuit.
        p, q: of their tests.
        stability: share of resamples in which each was selected; None: there were none.
        record: how the search went, as JSON data.
        everything: scores of all edges of the model, where `evidence` is about some.
    """

    evidence: Evidence
    kept: Bool[np.ndarray, "edge target"]
    p: Values
    q: Values
    stability: Values | None
    record: dict[str, Any]
    everything: EdgeScores


def graph_of(found: Found) -> nx.DiGraph:
    """The circuit as a graph; its attributes are described in `circuit_from`."""
    evidence, scores = found.evidence, found.evidence.scores
    low, high = evidence.total_interval
    graph = nx.DiGraph(
        schema=CIRCUIT_SCHEMA,
        estimand=scores.estimand,
        method=scores.method,
        **scores.provenance,
        selection=found.record,
        total_effect={
            name: {"mean": float(evidence.total[t]), "ci_low": float(low[t]), "ci_high": float(high[t])}
            for t, name in enumerate(scores.readouts)
        },
        left_out=dict(evidence.left_out),
        cut_error=_cut_errors(found.everything),
        n_candidates=size_of_model(found.everything),
        candidates=candidates_of(found.everything),
    )
    share = _shares(scores)
    _add_nodes(graph, found)
    _add_edges(graph, found, share)
    return graph


def _shares(scores: EdgeScores) -> Values:
    """Mean scores as shares of the mean total effect; 0 where that is 0."""
    mean, total = scores.mean(), scores.total.mean(axis=1)[None]
    return np.divide(mean, total, out=np.zeros_like(mean), where=total != 0)


def _cut_errors(scores: EdgeScores) -> dict[str, float | None]:
    """The worst completeness error of each cut over the targets; None where none is defined."""
    worst: dict[str, float | None] = {}
    for row in scores.completeness:
        before = worst.get(row.cut)
        worst[row.cut] = row.error if before is None else max(before, row.error or 0.0)
    return worst


def _add_nodes(graph: nx.DiGraph, found: Found) -> None:
    scores, kept, everything = found.evidence.scores, found.kept, found.everything
    circuits: dict[str, np.ndarray] = {}
    for e in np.flatnonzero(kept.any(1)):
        for end in (scores.sources[e], scores.targets[e]):
            circuits[end] = circuits.get(end, False) | kept[e]
    place = {node.id: i for i, node in enumerate(everything.nodes)}
    into = np.zeros((2, len(everything.nodes), len(everything.readouts)))
    ends = np.array([place[t] for t in everything.targets], dtype=np.intp)
    np.add.at(into[0], ends, everything.mean())
    np.add.at(into[1], ends, _shares(everything))
    for node in everything.nodes:
        if node.id not in circuits:
            continue
        effects, shares = into[:, place[node.id]]
        if node.kind == "factor":
            effects, shares = scores.total.mean(axis=1), np.ones(len(scores.readouts))
        t = int(np.where(circuits[node.id], np.abs(shares), -1.0).argmax())
        graph.add_node(
            node.id,
            kind=node.kind,
            site=node.site,
            index=node.index,
            stage=node.stage,
            layer=node.layer,
            effect=float(effects[t]),
            readout=scores.readouts[t],
        )


def _add_edges(graph: nx.DiGraph, found: Found, share: Values) -> None:
    evidence, kept = found.evidence, found.kept
    scores, mean = evidence.scores, evidence.mean
    edges = np.flatnonzero(kept.any(1))
    if not len(edges):
        return
    best = np.where(kept[edges], np.abs(share[edges]), -1.0).argmax(1)
    ids = (scores.groups, scores.source_groups)
    low, high = intervals.mean_interval(scores.values[edges, best], *ids, seed=evidence.seed)
    for i, (e, t) in enumerate(zip(edges.tolist(), best.tolist(), strict=True)):
        attributes: dict[str, Any] = {
            "effect": float(mean[e, t]),
            "ci_low": float(low[i]),
            "ci_high": float(high[i]),
            "p": float(found.p[e, t]),
            "q": float(found.q[e, t]),
            "stability": None if found.stability is None else float(found.stability[e, t]),
            "share": float(share[e, t]),
            "readout": scores.readouts[t],
            "effects": {scores.readouts[k]: float(mean[e, k]) for k in np.flatnonzero(kept[e])},
            "estimand": scores.estimand,
            "method": scores.method,
        }
        graph.add_edge(scores.sources[e], scores.targets[e], **attributes)
