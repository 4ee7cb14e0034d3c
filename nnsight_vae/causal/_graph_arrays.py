"""Graph distances on stacks of 0/1 adjacency matrices `A[source, target]`: the arithmetic under `graphs.py`."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, Int

MAX_ENUMERATED = 8  # 8! = 40,320 relabellings take a fraction of a second
N_PERMUTATIONS = 10_000  # drawn, beyond that size
N_RANDOM = 1000


class AdjustmentOracle:
    """Which effects of a true DAG an adjustment set identifies; answers are remembered, baselines ask thousands."""

    def __init__(self, true: Bool[np.ndarray, "n n"]) -> None:
        self.descends: Bool[np.ndarray, "n n"] = transitive_closure(true)
        self._descends_or_is = self.descends | np.eye(len(true), dtype=bool)
        self._children = [np.flatnonzero(row).tolist() for row in true]
        self._parents = [np.flatnonzero(column).tolist() for column in true.T]
        self._answers: dict[tuple[int, bytes], Bool[np.ndarray, " n"]] = {}

    def valid(self, x: int, adjusted: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """For every y: is `adjusted` a valid adjustment set for the effect of x on y?

        Valid means: no member descends from a node on a causal path from x to y (x excepted), and every non-causal
        path from x to y is blocked (the generalised adjustment criterion, for a DAG and single nodes).
        """
        key = (x, adjusted.tobytes())
        if key not in self._answers:
            tainted = self.descends[x] & (self._descends_or_is & adjusted).any(1)
            forbidden = (self._descends_or_is & tainted[:, None]).any(0)
            self._answers[key] = ~(forbidden | self._open_non_causal(x, adjusted) | adjusted)
        return self._answers[key]

    def _open_non_causal(self, x: int, adjusted: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Nodes reached from x by an open path that is not directed all the way (Bayes ball that never re-enters x)."""
        opens_collider = (self._descends_or_is & adjusted).any(1)
        reached = np.zeros(len(adjusted), dtype=bool)
        to_visit = [(node, True, True) for node in self._children[x]]
        to_visit += [(node, False, False) for node in self._parents[x]]
        seen: set[tuple[int, bool, bool]] = set()
        while to_visit:
            step = node, from_parent, causal = to_visit.pop()
            if node == x or step in seen:
                continue
            seen.add(step)
            reached[node] |= not causal
            if not adjusted[node]:
                to_visit += [(child, True, causal) for child in self._children[node]]
            if opens_collider[node] if from_parent else not adjusted[node]:
                to_visit += [(parent, False, False) for parent in self._parents[node]]
        return reached


def transitive_closure(a: Bool[np.ndarray, "*batch n n"]) -> Bool[np.ndarray, "*batch n n"]:
    """Which nodes are reached by a path of one edge or more."""
    reaches = a.astype(np.uint8)
    for _ in range(max(1, a.shape[-1]).bit_length()):
        reaches = ((reaches + reaches @ reaches.astype(np.float32)) > 0).astype(np.uint8)
    return reaches.astype(bool)


def reversed_edges(a: Bool[np.ndarray, "*batch n n"], b: Bool[np.ndarray, "n n"]) -> Bool[np.ndarray, "*batch n n"]:
    """Edges of `a` that `b` has the other way round, where neither graph has both ways."""
    return a & ~np.swapaxes(a, -1, -2) & b.T & ~b


def hamming(
    a: Bool[np.ndarray, "*batch n n"], b: Bool[np.ndarray, "n n"], reversal_cost: int = 1
) -> Int[np.ndarray, "*batch"]:
    """Edges to insert, delete or flip."""
    return np.asarray((a != b).sum((-2, -1)) - (2 - reversal_cost) * reversed_edges(a, b).sum((-2, -1)))


def adjustment_errors(
    guesses: Bool[np.ndarray, "batch n n"], oracle: AdjustmentOracle, *, ancestors: bool
) -> Int[np.ndarray, " batch"]:
    """SID (`ancestors=False`) or ancestor-AID of acyclic guesses: wrong ordered pairs per guess."""
    if ancestors:
        reaches = transitive_closure(guesses)
        adjusted, no_effect = np.swapaxes(reaches, -1, -2), ~reaches
    else:
        adjusted = no_effect = np.swapaxes(guesses, -1, -2)  # [guess, x, parent of x]
    wrong = np.zeros(len(guesses), dtype=np.int64)
    for x in range(guesses.shape[-1]):
        valid = np.stack([oracle.valid(x, members) for members in adjusted[:, x]])
        mistaken = np.where(no_effect[:, x], oracle.descends[x], ~valid)
        mistaken[:, x] = False
        wrong += mistaken.sum(-1)
    return wrong


def scores(
    guesses: Bool[np.ndarray, "batch n n"], true: Bool[np.ndarray, "n n"], oracle: AdjustmentOracle
) -> dict[str, Float[np.ndarray, " batch"]]:
    """Every score of every guess; NaN where undefined. The guesses are all acyclic, or all cyclic."""
    undefined = np.full(len(guesses), np.nan)
    acyclic = not transitive_closure(guesses[:1]).diagonal(axis1=-2, axis2=-1).any()
    parents = adjustment_errors(guesses, oracle, ancestors=False) if acyclic else undefined
    found, size = (guesses & true).sum((-2, -1)), guesses.sum((-2, -1))
    upper = np.triu(np.ones_like(true))
    skeletons, skeleton = (guesses | np.swapaxes(guesses, -1, -2)) & upper, (true | true.T) & upper
    return {
        "shd": hamming(guesses, true).astype(float),
        "sid": parents.astype(float),
        "parent_aid": parents.astype(float),
        "ancestor_aid": (adjustment_errors(guesses, oracle, ancestors=True) if acyclic else undefined).astype(float),
        "precision": _ratio(found, size),
        "recall": _ratio(found, np.full(len(guesses), true.sum())),
        "f1": _ratio(2 * found, size + true.sum()),
        "skeleton_f1": _ratio(2 * (skeletons & skeleton).sum((-2, -1)), skeletons.sum((-2, -1)) + skeleton.sum()),
    }


def random_dags(n: int, n_edges: int, rng: np.random.Generator) -> Bool[np.ndarray, "batch n n"] | None:
    """DAGs with that many edges: a uniform order of the nodes, then uniform pairs. None if no DAG has that many."""
    rows, columns = np.triu_indices(n, k=1)
    if n_edges > len(rows):
        return None
    dags = np.zeros((N_RANDOM, n, n), dtype=bool)
    for dag in dags:
        order, chosen = rng.permutation(n), rng.choice(len(rows), size=n_edges, replace=False)
        dag[order[rows[chosen]], order[columns[chosen]]] = True
    return dags


def relabelled(a: Bool[np.ndarray, "n n"], rng: np.random.Generator) -> tuple[Bool[np.ndarray, "batch n n"], bool]:
    """The graph under permutations of its nodes, and whether these are all n! of them."""
    n = len(a)
    exact = n <= MAX_ENUMERATED
    if exact:
        orders = np.array(list(itertools.permutations(range(n))), dtype=np.intp).reshape(math.factorial(n), n)
    else:
        orders = np.argsort(rng.random((N_PERMUTATIONS, n)), axis=1)
    return a[orders[:, :, None], orders[:, None, :]], exact


def _ratio(part: Int[np.ndarray, " batch"], whole: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
