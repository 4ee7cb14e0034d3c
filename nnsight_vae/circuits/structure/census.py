"""How many small patterns of edges a layered graph has: closed forms from products of its adjacency blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import combinations_with_replacement
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

Kind = Literal["fan-in", "fan-out", "chain", "bi-fan", "diamond", "feed-forward"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Cell = tuple[Kind, tuple[int, ...]]  # a motif, and the columns of the nodes it is anchored at
_Blocks = Mapping[tuple[int, int], Bool[np.ndarray, "draw source target"]]


def census(blocks: _Blocks) -> dict[Cell, Float[np.ndarray, " draw"]]:
    """Count every motif in each of a batch of layered graphs, by where it is.

    With k_in and k_out the degrees of a node, A the adjacency matrix A[source, target]:

        fan-in         a -> c <- b                   sum_v C(k_in, 2)            at the column of c
        fan-out        a <- c -> b                   sum_v C(k_out, 2)           at the column of c
        chain          a -> c -> b                   sum_v k_in k_out            at the column of c
        bi-fan         a, b -> c, d (all four)       sum_{a<b} C((A A^T)_ab, 2)  at the columns of a, b
        diamond        a -> c, d -> b                sum_ab C((A^2)_ab, 2)       at the columns of a, b
        feed-forward   a -> c -> b and a -> b        sum_ab A_ab (A^2)_ab        at the columns of a, b

    Counts are of subgraphs, not of induced subgraphs: further edges between the nodes do not matter. A feed-forward loop needs
    an edge that skips a column, so a network without skip connections has none.

    Args:
        blocks: (source column, target column) -> adjacency of each graph; edges go from lower to higher columns.

    Returns: (motif, columns) -> count; only places where the columns and edges between them leave room for the motif.

    Source: Milo et al. 2002, Science 298, 824-827 (motifs).

    Example:
        >>> full = np.ones((1, 3, 3), dtype=bool)
        >>> census({(0, 1): full})["bi-fan", (0, 0)]
        array([9.])
    """
    a = {pair: block.astype(np.float32) for pair, block in blocks.items()}  # exact below 2^24, as degrees are
    sources, targets = (sorted({pair[end] for pair in a}) for end in (0, 1))
    k_in = {v: _total(a[pair].sum(axis=1) for pair in a if pair[1] == v) for v in targets}
    k_out = {u: _total(a[pair].sum(axis=2) for pair in a if pair[0] == u) for u in sources}
    counts: dict[Cell, np.ndarray] = {}
    for v, degrees in k_in.items():
        counts["fan-in", (v,)] = _choose2(degrees).sum(axis=1)
    for u, degrees in k_out.items():
        counts["fan-out", (u,)] = _choose2(degrees).sum(axis=1)
    for c in sorted(k_in.keys() & k_out.keys()):
        counts["chain", (c,)] = (k_in[c].astype(np.float64) * k_out[c]).sum(axis=1)
    for u, w in combinations_with_replacement(sources, 2):
        common = [v for v in targets if (u, v) in a and (w, v) in a]
        if common:
            shared = _total(a[u, v] @ a[w, v].transpose(0, 2, 1) for v in common)
            pairs = _choose2(shared).sum(axis=(1, 2))
            if u == w:  # the diagonal is a node with itself, and every pair is there twice
                pairs = (pairs - _choose2(k_common(a, u, common)).sum(axis=1)) / 2
            counts["bi-fan", (u, w)] = pairs
    for u in sources:
        for w in (w for w in targets if w > u):
            middle = [c for c in range(u + 1, w) if (u, c) in a and (c, w) in a]
            if middle:
                paths = _total(a[u, c] @ a[c, w] for c in middle)
                counts["diamond", (u, w)] = _choose2(paths).sum(axis=(1, 2))
                if (u, w) in a:
                    counts["feed-forward", (u, w)] = (paths * a[u, w]).sum(axis=(1, 2), dtype=np.float64)
    return counts


def place(kind: Kind, columns: tuple[str, ...]) -> str:
    """Where a motif is, in words: the columns it is anchored at."""
    if kind in ("diamond", "feed-forward"):
        return " => ".join(columns)
    verb = {"fan-in": "into", "fan-out": "from", "chain": "through", "bi-fan": "from"}[kind]
    return f"{verb} {' and '.join(dict.fromkeys(columns))}"


def k_common(
    a: Mapping[tuple[int, int], Float[np.ndarray, "draw source target"]], u: int, targets: list[int]
) -> Float[np.ndarray, "draw source"]:
    """Out-degrees of a column's nodes into these columns."""
    return _total(a[u, v].sum(axis=2) for v in targets)


def _total(parts: Iterable[Float[np.ndarray, "draw ..."]]) -> Float[np.ndarray, "draw ..."]:
    return reduce(np.add, parts)


def _choose2(count: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    wide = count.astype(np.float64)
    return wide * (wide - 1) / 2
