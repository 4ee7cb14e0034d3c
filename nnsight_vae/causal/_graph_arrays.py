"""Scores of stacks of 0/1 adjacency matrices `A[source, target]`, and the graphs they are held against: under `graphs.py`."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from nnsight_vae.causal.distances import adjustment_errors, hamming, is_dag
from nnsight_vae.causal.equivalence import complete, is_cpdag

MAX_ENUMERATED = 8  # 8! = 40,320 relabellings take a fraction of a second
N_PERMUTATIONS = 10_000  # drawn, beyond that size
N_BASELINE = 1000  # graphs that the mean scores of a baseline are over


def identifies(graph: Bool[np.ndarray, "n n"], *, observational: bool) -> bool:
    """Whether adjustment distances of a graph are defined. Two arcs are a cycle, unless they stand for an undirected edge."""
    return is_dag(graph) or (observational and is_cpdag(graph))


def scores(
    guesses: Bool[np.ndarray, "batch n n"], true: Bool[np.ndarray, "n n"], *, observational: bool, reversal_cost: int
) -> dict[str, Float[np.ndarray, " batch"]]:
    """Every score of every guess; NaN where undefined. Adjustment distances of all the guesses are defined, or of none.

    Args:
        guesses: graphs.
        true: the graph they are held against.
        observational: these are CPDAGs.
        reversal_cost: of `hamming`.
    """
    parents = ancestors = undefined = np.full(len(guesses), np.nan)
    if identifies(guesses[0], observational=observational):
        parents = adjustment_errors(guesses, true, "parents").astype(float)
        ancestors = adjustment_errors(guesses, true, "ancestors").astype(float)
    found, size, n_true = (guesses & true).sum((-2, -1)), guesses.sum((-2, -1)), np.full(len(guesses), true.sum())
    upper = np.triu(np.ones_like(true))
    skeletons, skeleton = (guesses | np.swapaxes(guesses, -1, -2)) & upper, (true | true.T) & upper
    common = skeletons & skeleton
    same = common & (guesses == true) & np.swapaxes(guesses == true, -1, -2)
    linked, n_linked = skeletons.sum((-2, -1)), np.full(len(guesses), skeleton.sum())
    n_common = common.sum((-2, -1))
    return {
        "shd": hamming(guesses, true, reversal_cost).astype(float),
        "sid": undefined if observational else parents,
        "parent_aid": parents,
        "ancestor_aid": ancestors,
        "precision": _ratio(found, size),
        "recall": _ratio(found, n_true),
        "f1": _ratio(2 * found, size + n_true),
        "skeleton_precision": _ratio(n_common, linked),
        "skeleton_recall": _ratio(n_common, n_linked),
        "skeleton_f1": _ratio(2 * n_common, linked + n_linked),
        "orientation": _ratio(same.sum((-2, -1)), n_common),
    }


def random_dags(n: int, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "batch n n"] | None:
    """DAGs with that many edges: a uniform order of the nodes, then uniform pairs. None if no DAG has that many."""
    rows, columns = np.triu_indices(n, k=1)
    if n_edges > len(rows):
        return None
    dags = np.zeros((N_BASELINE, n, n), dtype=bool)
    for dag in dags:
        order, chosen = rng.permutation(n), rng.choice(len(rows), size=n_edges, replace=False)
        dag[order[rows[chosen]], order[columns[chosen]]] = True
    return dags


def random_cpdags(n: int, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "batch n n"] | None:
    """CPDAGs of `random_dags`."""
    dags = random_dags(n, n_edges, rng)
    return None if dags is None else np.stack([complete(dag) for dag in dags])


def relabelled(a: Bool[np.ndarray, "n n"], rng: np.random.Generator) -> tuple[Bool[np.ndarray, "batch n n"], bool]:
    """The graph under permutations of its nodes, and whether these are all n! of them."""
    n = len(a)
    exact = n <= MAX_ENUMERATED
    if exact:
        orders = np.array(list(itertools.permutations(range(n))), dtype=np.intp).reshape(math.factorial(n), n)
    else:
        orders = np.argsort(rng.random((N_PERMUTATIONS, n)), axis=1)
    return a[orders[:, :, None], orders[:, None, :]], exact


def some(graphs: Bool[np.ndarray, "batch n n"], rng: np.random.Generator) -> Bool[np.ndarray, "some n n"]:
    """All of them, or `N_BASELINE` drawn without replacement."""
    return graphs if len(graphs) <= N_BASELINE else graphs[rng.choice(len(graphs), size=N_BASELINE, replace=False)]


def ranking(sizes: Float[np.ndarray, "n n"], true: Bool[np.ndarray, "n n"]) -> tuple[float, float]:
    """AUROC and average precision of sizes as scores of "is a true edge", over all ordered pairs."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    off = ~np.eye(len(true), dtype=bool)
    return float(roc_auc_score(true[off], sizes[off])), float(average_precision_score(true[off], sizes[off]))


def _ratio(part: Int[np.ndarray, " batch"], whole: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
