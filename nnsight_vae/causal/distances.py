"""Distances between graphs over the same factors: SHD, and what they would get wrong about effects (SID, AID)."""

from __future__ import annotations

from typing import Literal

import networkx as nx
import numpy as np
from jaxtyping import Bool, Int

from nnsight_vae.causal.equivalence import is_cpdag
from nnsight_vae.causal.graph_checks import matrices, require_dag, require_simple
from nnsight_vae.errors import CircuitError

Adjust = Literal["parents", "ancestors"]


def shd(a: nx.DiGraph, b: nx.DiGraph, reversal_cost: int = 1) -> int:
    """Structural Hamming distance: edges to insert, delete or flip to turn one graph into the other.

    Defined for any two directed graphs over the same nodes, cyclic ones included, and symmetric. Directing an undirected
    edge (two arcs) costs 1.

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
    check_reversal_cost(reversal_cost)
    return int(hamming(*matrices(a, b), reversal_cost))


def sid(*, estimated: nx.DiGraph, truth: nx.DiGraph) -> int:
    """Structural intervention distance: ordered pairs (x, y) whose effect the estimate gets wrong; not symmetric.

    For each pair, Z = parents of x in the estimate. If y is in Z the estimate says "x has no effect on y", wrong if y
    descends from x in the truth; otherwise it is wrong if Z is not a valid adjustment set for (x, y) in the truth.
    Between 0 and n(n-1); 0 also for a too dense graph that respects the causal order.

    Raises:
        CircuitError: different nodes, or a graph that is not a DAG.

    Source: Peters and Bühlmann 2015, Neural Computation 27(3); computed by gadjid, as its parent adjustment distance.

    Example:
        >>> sid(estimated=nx.DiGraph([(1, 0)]), truth=nx.DiGraph([(0, 1)]))
        2
    """
    require_dag(estimated, "estimated")
    require_dag(truth, "truth")
    return parent_aid(estimated=estimated, truth=truth)


def parent_aid(*, estimated: nx.DiGraph, truth: nx.DiGraph) -> int:
    """Parent adjustment identification distance: `sid`, of CPDAGs too.

    Between CPDAGs a pair is also wrong where one graph identifies the effect and the other does not.

    Args:
        estimated: a DAG, or a CPDAG whose undirected edges are two arcs each.
        truth: a DAG or a CPDAG over the same nodes.

    Raises:
        CircuitError: different nodes, or a graph that is neither a DAG nor a CPDAG.

    Source: Henckel, Würtzen and Weichwald 2024, UAI, arXiv 2402.08616; computed by gadjid.

    Example:
        >>> chain, observed = nx.DiGraph([(0, 1)]), nx.DiGraph([(0, 1), (1, 0)])
        >>> parent_aid(estimated=observed, truth=chain), parent_aid(estimated=observed, truth=observed)
        (2, 0)
    """
    return _adjustment_distance(estimated, truth, "parents")


def ancestor_aid(*, estimated: nx.DiGraph, truth: nx.DiGraph) -> int:
    """Ancestor adjustment identification distance: as `parent_aid`, adjusting for the estimate's ancestors of x.

    The estimate says "no effect" where y does not descend from x in it. A count between 0 and n(n-1).

    Raises:
        CircuitError: different nodes, or a graph that is neither a DAG nor a CPDAG.

    Source: Henckel, Würtzen and Weichwald 2024, UAI, arXiv 2402.08616; computed by gadjid.

    Example:
        >>> chain, closure = nx.DiGraph([(0, 1), (1, 2)]), nx.DiGraph([(0, 1), (1, 2), (0, 2)])
        >>> ancestor_aid(estimated=closure, truth=chain)
        0
    """
    return _adjustment_distance(estimated, truth, "ancestors")


def _adjustment_distance(estimated: nx.DiGraph, truth: nx.DiGraph, adjust: Adjust) -> int:
    guess, true = matrices(estimated, truth)
    for role, graph, matrix in (("estimated", estimated, guess), ("truth", truth, true)):
        require_simple(graph, role)
        if not is_dag(matrix) and not is_cpdag(matrix):
            raise CircuitError(
                f"{role} must be a DAG or a CPDAG; it has the cycle {nx.find_cycle(graph)}, and no DAG has it as its CPDAG."
            )
    return int(adjustment_errors(guess[None], true, adjust)[0])


def check_reversal_cost(reversal_cost: int) -> None:
    """Refuse another cost of a reversed edge than 1 and 2.

    Raises:
        CircuitError: another cost.
    """
    if reversal_cost not in (1, 2):
        raise CircuitError(
            f"reversal_cost={reversal_cost!r}: a reversed edge costs 1, or 2 (a deletion, an insertion)."
        )


def is_dag(graph: Bool[np.ndarray, "n n"]) -> bool:
    """Whether `A[source, target]` has no directed cycle."""
    return nx.is_directed_acyclic_graph(nx.from_numpy_array(graph, create_using=nx.DiGraph))


def reversed_edges(a: Bool[np.ndarray, "*batch n n"], b: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "*batch n n"]:
    """Edges of `a` that `b` has the other way round, where neither graph has both ways."""
    return a & ~np.swapaxes(a, -1, -2) & b.T & ~b


def hamming(
    a: Bool[np.ndarray, "*batch n n"], b: Bool[np.ndarray, "n n"], reversal_cost: int = 1
) -> Int[np.ndarray, "*batch"]:
    """Edges to insert, delete or flip."""
    return np.asarray((a != b).sum((-2, -1)) - (2 - reversal_cost) * reversed_edges(a, b).sum((-2, -1)))


def adjustment_errors(
    guesses: Bool[np.ndarray, "batch n n"], true: Bool[np.ndarray, "n n"], adjust: Adjust
) -> Int[np.ndarray, " batch"]:
    """Adjustment distance of each guess. gadjid panics, past `except Exception`, on what is no DAG or CPDAG."""
    import gadjid

    if len(true) == 1:  # no pair to be wrong about; gadjid panics
        return np.zeros(len(guesses), dtype=np.int64)
    distance = gadjid.parent_aid if adjust == "parents" else gadjid.ancestor_aid
    coded = _coded(true)
    # Small graphs come up again and again among random ones.
    unique, where = np.unique(guesses.reshape(len(guesses), -1), axis=0, return_inverse=True)
    wrong = [
        distance(coded, _coded(guess.reshape(true.shape)), edge_direction="from row to column")[1] for guess in unique
    ]
    return np.asarray(wrong, dtype=np.int64)[where.ravel()]


def _coded(graph: Bool[np.ndarray, "n n"]) -> Int[np.ndarray, "n n"]:
    """As gadjid has it: 1 a directed edge, 2 an undirected one, int8."""
    return np.where(graph & graph.T, 2, graph).astype(np.int8)
