"""A model's graph over factors held against the true one: distances, edge scores, and what guessing would score."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Bool

from nnsight_vae.causal import _graph_arrays as arrays
from nnsight_vae.causal.distances import check_reversal_cost, hamming, reversed_edges
from nnsight_vae.causal.equivalence import cpdag
from nnsight_vae.causal.graph_checks import matrices, require_dag, require_simple
from nnsight_vae.causal.graph_scores import GraphComparison, GraphScores, Kind
from nnsight_vae.errors import CircuitError

_COMPARED_WITH: dict[Kind, str] = {
    "total": "the transitive closure of the true graph (total effects)",
    "direct": "the true graph itself (direct effects)",
    "discovery": "the CPDAG of the true graph (what observation can tell)",
}
_DISTANCES = ("shd", "sid", "parent_aid", "ancestor_aid")


def compare(
    estimated: nx.DiGraph,
    truth: nx.DiGraph,
    *,
    kind: Kind | None = None,
    reversal_cost: int = 1,
    seed: int = 0,
) -> GraphComparison:
    """Hold an estimated graph against the true DAG, beside what guessing would score.

    Like is compared with like. A total effect links every ancestor to every descendant, so a total-effect graph is held
    against the transitive closure of `truth`; a direct-effect graph against `truth` itself; a graph discovered from
    observations alone against the CPDAG of `truth` (`cpdag`), which is the best that it could be.

    Args:
        estimated: directed graph over the same nodes; may be cyclic (then SID and AID are `None`). An edge counts
            whatever its weight. An undirected edge of a discovered graph is its two arcs. `estimated.graph` may have
            `estimand` (a kind), `sizes` (cause -> effect -> size of the effect, found significant or not; a pair left out
            counts as 0) and `ceiling`.
        truth: the true DAG.
        kind: "total", "direct" or "discovery"; overrides the graph's own estimand. Without either, "direct" is assumed and
            said.
        reversal_cost: what a reversed edge costs in SHD: 1, or 2.
        seed: of the random graphs, and of the relabellings where they are drawn.

    Returns: the scores, the edges in error, the baselines and the permutation p-value; `print` shows a table.

    Raises:
        CircuitError: not directed simple graphs over the same nodes, a self-loop, a cyclic truth, an unknown kind or cost,
            sizes or a ceiling of other nodes.

    Source: SID: Peters and Bühlmann 2015, Neural Computation 27(3). AID: Henckel, Würtzen and Weichwald 2024, UAI.

    Example:
        >>> truth = nx.DiGraph([("angle", "shadow"), ("light", "shadow")])
        >>> flipped = nx.DiGraph([("shadow", "angle"), ("light", "shadow")])
        >>> result = compare(flipped, truth)
        >>> result.shd, result.sid, result.precision, result.orientation, result.reversed
        (1, 3, 0.5, 0.5, (('shadow', 'angle'),))
    """
    chosen, assumed = _kind(estimated, kind)
    check_reversal_cost(reversal_cost)
    target = compared_truth(estimated, truth, kind=kind)
    guess, true = matrices(estimated, target)
    nodes, rng = list(target), np.random.default_rng(seed)
    against = _Against(true, chosen == "discovery", reversal_cost)
    own, ceiling = against.own(guess), _ceiling(estimated, nodes)
    draw = arrays.random_cpdags if against.observational else arrays.random_dags
    random = draw(len(nodes), int(np.triu(guess | guess.T).sum() if against.observational else guess.sum()), rng)
    relabelled, exact = arrays.relabelled(guess, rng)
    hits, draws = int((hamming(relabelled, true, reversal_cost) <= own.shd).sum()), len(relabelled)
    automorphisms = int((arrays.relabelled(true, rng)[0] == true).all((-2, -1)).sum()) if exact else 0
    flipped = reversed_edges(guess, true)
    auroc, auprc, unranked = _ranking(estimated, nodes, true)
    return GraphComparison(
        **asdict(own),
        kind=chosen,
        compared_with=_COMPARED_WITH[chosen] + ("; assumed, the estimate names no estimand" if assumed else ""),
        n_nodes=len(nodes),
        n_true=int(true.sum()),
        n_estimated=int(guess.sum()),
        missed=_edges(true & ~guess & ~flipped.T, nodes),
        extra=_edges(guess & ~true & ~flipped, nodes),
        reversed=_edges(flipped, nodes),
        reversal_cost=reversal_cost,
        auroc=auroc,
        auprc=auprc,
        base_rate=float(true.sum() / (true.size - len(nodes))) if len(nodes) > 1 else None,
        empty=against.own(np.zeros_like(true)),
        random=None if random is None else against.mean(random),
        permuted=against.mean(arrays.some(relabelled, rng)),
        ceiling=None if ceiling is None else against.own(ceiling),
        p_value=hits / draws if exact else (1 + hits) / (1 + draws),
        p_exact=exact,
        p_floor=automorphisms / draws if exact else 1 / (1 + draws),
        reasons=_reasons(own, chosen) | unranked,
    )


def compared_truth(estimated: nx.DiGraph, truth: nx.DiGraph, *, kind: Kind | None = None) -> nx.DiGraph:
    """The graph `compare` holds `estimated` against: `truth`, its transitive closure for total effects, its CPDAG for discovery.

    Raises:
        CircuitError: as `compare`.

    Example:
        >>> chain = nx.DiGraph([("a", "b"), ("b", "c")])
        >>> sorted(compared_truth(chain, chain, kind="total").edges)
        [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    chosen, _ = _kind(estimated, kind)
    require_dag(truth, "truth")
    if chosen == "direct":
        return truth
    return nx.transitive_closure(truth) if chosen == "total" else cpdag(truth)


@dataclass(frozen=True)
class _Against:
    """What graphs are scored against, and how."""

    true: Bool[np.ndarray, "n n"]
    observational: bool
    reversal_cost: int

    def own(self, graph: Bool[np.ndarray, "n n"]) -> GraphScores:
        """Scores of one graph: as the mean of one, the distances being whole numbers."""
        mean = self.mean(graph[None])
        whole = {name: None if (value := getattr(mean, name)) is None else int(value) for name in _DISTANCES}
        return GraphScores(**asdict(mean) | whole)

    def mean(self, graphs: Bool[np.ndarray, "batch n n"]) -> GraphScores:
        """Mean scores of many graphs: each over the graphs that it is defined for."""
        all_scores = arrays.scores(
            graphs, self.true, observational=self.observational, reversal_cost=self.reversal_cost
        )
        defined = {name: values[~np.isnan(values)] for name, values in all_scores.items()}
        shd = float(defined.pop("shd").mean())
        return GraphScores(shd=shd, **{name: float(v.mean()) if len(v) else None for name, v in defined.items()})


def _kind(estimated: nx.DiGraph, kind: str | None) -> tuple[Kind, bool]:
    """The kind of the estimated edges, and whether it had to be assumed."""
    require_simple(estimated, "estimated")
    named = kind if kind is not None else estimated.graph.get("estimand")
    if named is None:
        return "direct", True
    for known in _COMPARED_WITH:
        if named == known:
            return known, False
    where = "kind" if kind is not None else 'estimated.graph["estimand"]'
    raise CircuitError(
        f'{where} is {named!r}; expected "total", "direct" or "discovery". Pass kind= to say which is meant.'
    )


def _ceiling(estimated: nx.DiGraph, nodes: list[Any]) -> Bool[np.ndarray, "n n"] | None:
    arcs = estimated.graph.get("ceiling")
    if arcs is None:
        return None
    graph = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from(tuple(arc) for arc in arcs)
    if len(graph) > len(nodes):
        raise CircuitError(
            f'estimated.graph["ceiling"] links {list(graph)[len(nodes) :]}, which are no nodes of the graphs.'
        )
    return matrices(graph, graph)[0]


def _ranking(
    estimated: nx.DiGraph, nodes: list[Any], true: Bool[np.ndarray, "n n"]
) -> tuple[float | None, float | None, dict[str, str]]:
    """AUROC, AUPRC, and why they are not defined."""
    sizes = estimated.graph.get("sizes")
    pairs = true.size - len(nodes)
    if sizes is None or true.sum() in (0, pairs):
        why = (
            "the estimate has no sizes of all effects"
            if sizes is None
            else "the graph compared with links all pairs or none"
        )
        return None, None, {"auroc": why, "auprc": why}
    known = {name for cause, row in sizes.items() for name in (cause, *row)}
    if not known <= set(nodes):
        raise CircuitError(
            f'estimated.graph["sizes"] names {sorted(map(str, known - set(nodes)))}, no nodes of the graphs.'
        )
    table = np.array([[float(sizes.get(cause, {}).get(effect, 0.0)) for effect in nodes] for cause in nodes])
    return *arrays.ranking(table, true), {}


def _reasons(own: GraphScores, kind: Kind) -> dict[str, str]:
    neither = "neither graph has an edge"
    cyclic = "the estimated graph is cyclic, and this distance exists for DAGs only"
    if kind == "discovery":
        cyclic = "no DAG has the estimated graph as its CPDAG, and this distance exists for DAGs and CPDAGs only"
    why = dict.fromkeys(_DISTANCES, cyclic) | {
        "precision": "the estimated graph has no edge",
        "skeleton_precision": "the estimated graph has no edge",
        "recall": "the graph compared with has no edge",
        "skeleton_recall": "the graph compared with has no edge",
        "f1": neither,
        "skeleton_f1": neither,
        "orientation": "the graphs have no adjacency in common",
    }
    if kind == "discovery":
        why["sid"] = "it exists for DAGs only; parent AID extends it to CPDAGs"
    return {f.name: why[f.name] for f in fields(GraphScores) if getattr(own, f.name) is None}


def _edges(mask: Bool[np.ndarray, "n n"], nodes: list[Any]) -> tuple[tuple[Any, Any], ...]:
    return tuple((nodes[i], nodes[j]) for i, j in np.argwhere(mask))
