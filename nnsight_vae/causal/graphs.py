"""A model's graph over factors held against the true one: distances, edge scores, and what guessing would score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import networkx as nx
import numpy as np
from jaxtyping import Bool

from nnsight_vae.causal import _graph_arrays as arrays
from nnsight_vae.errors import CircuitError

Kind = Literal["total", "direct"]
_COMPARED_WITH: dict[Kind, str] = {
    "total": "the transitive closure of the true graph (total effects)",
    "direct": "the true graph itself (direct effects)",
}
_LABELS = {
    "shd": "SHD (0 is best)",
    "sid": "SID (0 is best)",
    "parent_aid": "parent AID",
    "ancestor_aid": "ancestor AID",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "skeleton_f1": "skeleton F1",
}


@dataclass(frozen=True)
class GraphScores:
    """Scores of one graph (or their mean over many graphs) against a true graph; `None` where a score is undefined.

    Attributes:
        shd: structural Hamming distance: edges to insert, delete or flip.
        sid: structural intervention distance: ordered pairs (x, y), of n(n-1), whose effect the graph gets wrong.
        parent_aid: parent adjustment distance; on DAGs the same number as `sid`.
        ancestor_aid: the same count when the graph's ancestors of x, not its parents, are adjusted for.
        precision: share of the graph's edges that are true.
        recall: share of the true edges that the graph has.
        f1: 2 TP / (2 TP + FP + FN) over directed edges; 0 for an empty graph against a non-empty one.
        skeleton_f1: the same over adjacencies, directions ignored.
    """

    shd: int | float
    sid: int | float | None
    parent_aid: int | float | None
    ancestor_aid: int | float | None
    precision: float | None
    recall: float | None
    f1: float | None
    skeleton_f1: float | None


@dataclass(frozen=True)
class GraphComparison(GraphScores):
    """An estimated graph against the true one, beside three guesses: no edges, random edges, shuffled names.

    A distance alone says little on few nodes: read it against `empty`, `random` and `permuted`. SHD favours the empty
    graph; SID and AID favour dense graphs that respect the causal order.

    Attributes:
        kind: what the estimated edges mean ("total" or "direct" effects), which decides the graph compared with.
        compared_with: that graph, in words.
        n_nodes: nodes of both graphs.
        n_true: edges of the graph compared with.
        n_estimated: edges of the estimate.
        missed: true edges the estimate has in neither direction.
        extra: estimated edges that are true in neither direction.
        reversed: estimated edges that are true the other way round.
        reasons: for every score that is `None`, why.
        empty: scores of the graph without edges.
        random: mean scores of 1,000 random DAGs with as many edges as the estimate; `None` if no DAG has that many.
        permuted: mean scores of the estimate with its node names permuted (beyond 8 nodes, over 1,000 draws).
        p_value: share of the n! relabellings whose SHD is no larger than the estimate's.
        p_exact: all relabellings were enumerated (8 nodes or fewer); otherwise (1 + hits) / (1 + draws), 10,000 draws.
        p_floor: no estimate can reach a smaller p: automorphisms of the true graph / n!, or 1 / (1 + draws).
    """

    kind: Kind
    compared_with: str
    n_nodes: int
    n_true: int
    n_estimated: int
    missed: tuple[tuple[Any, Any], ...]
    extra: tuple[tuple[Any, Any], ...]
    reversed: tuple[tuple[Any, Any], ...]
    empty: GraphScores
    random: GraphScores | None
    permuted: GraphScores
    p_value: float
    p_exact: bool
    p_floor: float
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        """A table: one score a row, the estimate beside its baselines; then p, the wrong edges and the reasons."""
        columns = {"estimate": self, "empty": self.empty, "random": self.random, "permuted": self.permuted}
        lines = [
            f"Estimated graph against {self.compared_with}",
            f"{self.n_nodes} nodes, {self.n_true} true edges, {self.n_estimated} estimated",
            "",
            " " * 16 + "".join(f"{name:>10}" for name in columns),
        ]
        for name, label in _LABELS.items():
            row = [None if column is None else getattr(column, name) for column in columns.values()]
            lines.append(f"{label:<16}" + "".join(f"{_number(value):>10}" for value in row))
        how = "all relabellings" if self.p_exact else "sampled relabellings"
        lines += ["", f"permutation p = {self.p_value:.3g} ({how}; it cannot be below {self.p_floor:.3g} here)"]
        for name in ("missed", "extra", "reversed"):
            edges = getattr(self, name)
            lines.append(f"{name}: " + (", ".join(f"{a} -> {b}" for a, b in edges) or "none"))
        lines += [f"{name} is undefined: {reason}" for name, reason in self.reasons.items()]
        lines.append("random: mean of DAGs with as many edges; permuted: mean over shuffled node names.")
        return "\n".join(lines)


def compare(estimated: nx.DiGraph, truth: nx.DiGraph, *, kind: Kind | None = None, seed: int = 0) -> GraphComparison:
    """Hold an estimated graph against the true DAG, beside what guessing would score.

    A total effect links every ancestor to every descendant, so a total-effect graph is compared with the transitive
    closure of `truth`; a direct-effect graph is compared with `truth` itself.

    Args:
        estimated: directed graph over the same nodes; may be cyclic (then SID and AID are `None`). An edge counts
            whatever its weight. `estimated.graph["estimand"]` may say "total" or "direct".
        truth: the true DAG.
        kind: "total" or "direct"; overrides the graph's own estimand. Without either, "direct" is assumed and said.
        seed: of the random DAGs, and of the relabellings beyond 8 nodes.

    Returns: the scores, the edges in error, the three baselines and the permutation p-value; `print` shows a table.

    Raises:
        CircuitError: not directed simple graphs over the same nodes, a self-loop, a cyclic truth, an unknown kind.

    Source: SID: Peters and Bühlmann 2015, Neural Computation 27(3). AID: Henckel, Würtzen and Weichwald 2024, UAI.

    Example:
        >>> truth = nx.DiGraph([("angle", "shadow"), ("light", "shadow")])
        >>> flipped = nx.DiGraph([("shadow", "angle"), ("light", "shadow")])
        >>> result = compare(flipped, truth)
        >>> result.shd, result.sid, result.precision, result.reversed
        (1, 3, 0.5, (('shadow', 'angle'),))
    """
    chosen, assumed = _kind(estimated, kind)
    target = compared_truth(estimated, truth, kind=kind)
    guess, true = _matrices(estimated, target)
    nodes, rng, oracle = list(target), np.random.default_rng(seed), arrays.AdjustmentOracle(true)
    own = _own_scores(guess, true, oracle)
    random = arrays.random_dags(len(nodes), int(guess.sum()), rng)
    relabelled, exact = arrays.relabelled(guess, rng)
    hits, draws = int((arrays.hamming(relabelled, true) <= own.shd).sum()), len(relabelled)
    automorphisms = int((arrays.relabelled(true, rng)[0] == true).all((-2, -1)).sum()) if exact else 0
    flipped = arrays.reversed_edges(guess, true)
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
        empty=_own_scores(np.zeros_like(true), true, oracle),
        random=None if random is None else _mean_scores(random, true, oracle),
        permuted=_mean_scores(relabelled if exact else relabelled[: arrays.N_RANDOM], true, oracle),
        p_value=hits / draws if exact else (1 + hits) / (1 + draws),
        p_exact=exact,
        p_floor=automorphisms / draws if exact else 1 / (1 + draws),
        reasons=_reasons(own, guess, true),
    )


def compared_truth(estimated: nx.DiGraph, truth: nx.DiGraph, *, kind: Kind | None = None) -> nx.DiGraph:
    """The graph `compare` holds `estimated` against: the closure of `truth` for total effects, else `truth`.

    Raises:
        CircuitError: as `compare`.

    Example:
        >>> chain = nx.DiGraph([("a", "b"), ("b", "c")])
        >>> sorted(compared_truth(chain, chain, kind="total").edges)
        [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    chosen, _ = _kind(estimated, kind)
    _require_dag(truth, "truth")
    return nx.transitive_closure(truth) if chosen == "total" else truth


def shd(a: nx.DiGraph, b: nx.DiGraph, reversal_cost: int = 1) -> int:
    """Structural Hamming distance: edges to insert, delete or flip to turn one graph into the other.

    Defined for any two directed graphs over the same nodes, cyclic ones included, and symmetric.

    Args:
        a: a directed graph.
        b: a directed graph over the same nodes.
        reversal_cost: what a flip costs: 1 (gadjid, causal-learn), or 2 (cdt), a deletion and an insertion.

    Raises:
        CircuitError: different nodes, a self-loop, or another cost.

    Example:
        >>> forward, backward = nx.DiGraph([(0, 1)]), nx.DiGraph([(1, 0)])
        >>> shd(forward, backward), shd(forward, backward, reversal_cost=2)
        (1, 2)
    """
    if reversal_cost not in (1, 2):
        raise CircuitError(
            f"reversal_cost={reversal_cost!r}: a reversed edge costs 1, or 2 (a deletion, an insertion)."
        )
    return int(arrays.hamming(*_matrices(a, b), reversal_cost))


def sid(*, estimated: nx.DiGraph, truth: nx.DiGraph) -> int:
    """Structural intervention distance: ordered pairs (x, y) whose effect the estimate gets wrong; not symmetric.

    For each pair, Z = parents of x in the estimate. If y is in Z the estimate says "x has no effect on y", wrong if y
    descends from x in the truth; otherwise it is wrong if Z is not a valid adjustment set for (x, y) in the truth.
    Between 0 and n(n-1); 0 also for a too dense graph that respects the causal order. Equals gadjid's parent-AID.

    Raises:
        CircuitError: different nodes, or a graph that is not a DAG.

    Source: Peters and Bühlmann 2015, Neural Computation 27(3).

    Example:
        >>> sid(estimated=nx.DiGraph([(1, 0)]), truth=nx.DiGraph([(0, 1)]))
        2
    """
    return _adjustment_distance(estimated, truth, ancestors=False)


def ancestor_aid(*, estimated: nx.DiGraph, truth: nx.DiGraph) -> int:
    """Ancestor adjustment identification distance: as `sid`, adjusting for the estimate's ancestors of x.

    The estimate says "no effect" where y does not descend from x in it. A count between 0 and n(n-1).

    Raises:
        CircuitError: different nodes, or a graph that is not a DAG.

    Source: Henckel, Würtzen and Weichwald 2024, UAI, arXiv 2402.08616.

    Example:
        >>> chain, closure = nx.DiGraph([(0, 1), (1, 2)]), nx.DiGraph([(0, 1), (1, 2), (0, 2)])
        >>> ancestor_aid(estimated=closure, truth=chain)
        0
    """
    return _adjustment_distance(estimated, truth, ancestors=True)


def _adjustment_distance(estimated: nx.DiGraph, truth: nx.DiGraph, *, ancestors: bool) -> int:
    _require_dag(estimated, "estimated")
    _require_dag(truth, "truth")
    guess, true = _matrices(estimated, truth)
    return int(arrays.adjustment_errors(guess[None], arrays.AdjustmentOracle(true), ancestors=ancestors)[0])


def _kind(estimated: nx.DiGraph, kind: str | None) -> tuple[Kind, bool]:
    """The kind of the estimated edges, and whether it had to be assumed."""
    _require_simple(estimated, "estimated")
    named = kind if kind is not None else estimated.graph.get("estimand")
    if named is None:
        return "direct", True
    for known in _COMPARED_WITH:
        if named == known:
            return known, False
    where = "kind" if kind is not None else 'estimated.graph["estimand"]'
    raise CircuitError(f'{where} is {named!r}; expected "total" or "direct". Pass kind= to say which is meant.')


def _require_simple(graph: nx.DiGraph, role: str) -> None:
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise CircuitError(f"{role} must be a networkx.DiGraph, got {type(graph).__name__}.")
    if not graph:
        raise CircuitError(f"{role} has no nodes; add one node per factor.")
    loops = [node for node in graph if graph.has_edge(node, node)]
    if loops:
        raise CircuitError(f"{role} has self-loops at {loops}; remove them, a factor's effect on itself is no edge.")


def _require_dag(graph: nx.DiGraph, role: str) -> None:
    _require_simple(graph, role)
    if not nx.is_directed_acyclic_graph(graph):
        raise CircuitError(f"{role} must be a DAG; it has the cycle {nx.find_cycle(graph)}. Remove an edge of it.")


def _matrices(a: nx.DiGraph, b: nx.DiGraph) -> tuple[Bool[np.ndarray, "n n"], Bool[np.ndarray, "n n"]]:
    """Adjacency matrices [source, target] of both graphs, in the node order of `b`."""
    _require_simple(a, "the first graph")
    _require_simple(b, "the second graph")
    if set(a) != set(b):
        only_a, only_b = sorted(map(str, set(a) - set(b))), sorted(map(str, set(b) - set(a)))
        raise CircuitError(
            f"both graphs must have the same nodes: only the first has {only_a}, only the second has {only_b}. "
            "Rename with networkx.relabel_nodes, and add factors without edges as nodes."
        )
    return tuple(nx.to_numpy_array(graph, nodelist=list(b), weight=None, dtype=bool) for graph in (a, b))


def _own_scores(
    graph: Bool[np.ndarray, "n n"], true: Bool[np.ndarray, "n n"], oracle: arrays.AdjustmentOracle
) -> GraphScores:
    """Scores of one graph: as the mean of one, the distances being whole numbers."""
    mean = _mean_scores(graph[None], true, oracle)
    counts: dict[str, Any] = {}
    for name in ("shd", "sid", "parent_aid", "ancestor_aid"):
        count = getattr(mean, name)
        counts[name] = None if count is None else int(count)
    return replace(mean, **counts)


def _mean_scores(
    graphs: Bool[np.ndarray, "batch n n"], true: Bool[np.ndarray, "n n"], oracle: arrays.AdjustmentOracle
) -> GraphScores:
    means = {name: float(values.mean()) for name, values in arrays.scores(graphs, true, oracle).items()}
    shd = means.pop("shd")
    return GraphScores(shd=shd, **{name: None if np.isnan(mean) else mean for name, mean in means.items()})


def _reasons(own: GraphScores, guess: Bool[np.ndarray, "n n"], true: Bool[np.ndarray, "n n"]) -> dict[str, str]:
    cyclic = "the estimated graph is cyclic, and this distance exists for DAGs only"
    neither = "neither graph has an edge"
    why = {
        "precision": "the estimated graph has no edge",
        "recall": "the graph compared with has no edge",
        "f1": neither,
        "skeleton_f1": neither,
    }
    return {f.name: why.get(f.name, cyclic) for f in fields(GraphScores) if getattr(own, f.name) is None}


def _edges(mask: Bool[np.ndarray, "n n"], nodes: list[Any]) -> tuple[tuple[Any, Any], ...]:
    return tuple((nodes[i], nodes[j]) for i, j in np.argwhere(mask))


def _number(value: int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value == round(value) and value >= 2 else f"{value:.2f}".rstrip("0").rstrip(".")
