"""Random graphs to hold a circuit against: the same degrees, the same number of edges, or the same edges with other signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from nnsight_vae.circuits.graph.columns import Columns

Null = Literal["degree", "density", "sign"]
Drawn = dict[tuple[int, int], Bool[np.ndarray, "draw source target"]]

_STEPS = 20  # rounds of trades between the graphs that are compared; p-values hold for any number (see `degree_null`)
_CELLS = 1_000_000  # elements of one work array


def draw_subsets(
    rng: np.random.Generator, allowed: Bool[np.ndarray, "*rows cell"], sizes: Int[np.ndarray, "*rows"]
) -> Bool[np.ndarray, "*rows cell"]:
    """For each row, `size` of its allowed cells, every such set equally likely.

    Args:
        rng: of the drawing.
        allowed: cells to choose from.
        sizes: how many, at most as many as are allowed.
    """
    keys = rng.integers(2**32, size=allowed.shape, dtype=np.uint64) << np.uint64(32)
    keys |= np.arange(allowed.shape[-1], dtype=np.uint64)  # no two alike, so the number drawn is exact
    keys[~allowed] = np.iinfo(np.uint64).max
    ranked = np.sort(keys, axis=-1)
    last = np.take_along_axis(ranked, np.maximum(sizes - 1, 0)[..., None], axis=-1)
    return (keys <= last) & (sizes > 0)[..., None]


def density_null(columns: Columns, n: int, seed: int) -> Iterator[Drawn]:
    """Graphs with as many edges in each block, anywhere the model can have them. Yields batches, `n` graphs in all."""
    rng = np.random.default_rng(seed)
    for size in _batches(columns, n):
        drawn = {}
        for pair, block in columns.blocks.items():
            allowed = np.broadcast_to(block.allowed.ravel(), (size, block.allowed.size))
            chosen = draw_subsets(rng, allowed, np.full(size, block.edges.sum()))
            drawn[pair] = chosen.reshape(size, *block.edges.shape)
        yield drawn


def degree_null(columns: Columns, n: int, seed: int, steps: int = _STEPS) -> Iterator[Drawn]:
    """Graphs in which every node keeps its number of edges to and from each other column. Yields batches, `n` graphs in all.

    A round of trades ("global curveball") pairs up the nodes of one side of a block at random; each two deal out anew, at random,
    the partners that only one of them has. It does many edge swaps at once; the rounds reach every graph with these degrees, all
    equally likely in the end, where any node can be joined to any other.

    A chain that starts at the circuit itself and is stopped early would stay too close to it. So one chain runs `steps` rounds
    from the circuit to a starting point, and every null graph is another run of `steps` rounds from there: under the null
    hypothesis the circuit and the null graphs are then exchangeable, and p-values valid, for any number of rounds.

    Source: Carstens, Hamann, Meyer, Penschuck, Tran & Wagner 2018, ESA 2018, arXiv 1804.08487 (global trades, uniformity); Besag
        & Clifford 1989, Biometrika 76, 633-642 (the parallel method).
    """
    rng = np.random.default_rng(seed)
    starts = {}
    for pair, block in columns.blocks.items():
        starts[pair] = block.edges[None].copy()
        _trade(rng, starts[pair], block.allowed, steps)
    for size in _batches(columns, n):
        drawn = {pair: np.repeat(start, size, axis=0) for pair, start in starts.items()}
        for pair, block in columns.blocks.items():
            _trade(rng, drawn[pair], block.allowed, steps)
        yield drawn


def sign_null(columns: Columns, n: int, seed: int) -> Iterator[tuple[Drawn, Drawn]]:
    """The edges of positive and of negative effect, with effects permuted over the edges of each block; `n` graphs in all."""
    rng = np.random.default_rng(seed)
    for size in _batches(columns, n):
        positive, negative = {}, {}
        for pair, block in columns.blocks.items():
            signed = np.broadcast_to((block.effects != 0).ravel(), (size, block.edges.size))
            up = draw_subsets(rng, signed, np.full(size, (block.effects > 0).sum()))
            positive[pair] = up.reshape(size, *block.edges.shape)
            negative[pair] = (signed & ~up).reshape(size, *block.edges.shape)
        yield positive, negative


def two_sided(
    observed: Float[np.ndarray, " cell"], drawn: Float[np.ndarray, "draw cell"]
) -> Float[np.ndarray, " cell"]:
    """Twice the smaller of the two one-sided empirical p-values, (1 + #at least as extreme) / (1 + #drawn); at most 1.

    Source: Phipson & Smyth 2010 (the +1).

    Example:
        >>> two_sided(np.array([9.0, 5.0]), np.tile(np.arange(9.0), (2, 1)).T).tolist()
        [0.2, 1.0]
    """
    return np.minimum(2 * np.minimum(at_least(observed, drawn), at_least(-observed, -drawn)), 1.0)


def at_least(observed: Float[np.ndarray, " cell"], drawn: Float[np.ndarray, "draw cell"]) -> Float[np.ndarray, " cell"]:
    """The one-sided empirical p-value (1 + #drawn >= observed) / (1 + #drawn); sums that only rounding tells apart are equal."""
    slack = 1e-12 * np.maximum(np.abs(observed), np.abs(drawn).max(axis=0, initial=0.0))
    return (1 + (drawn >= observed - slack).sum(axis=0)) / (1 + len(drawn))


def _batches(columns: Columns, n: int) -> Iterator[int]:
    """Numbers of graphs to draw at a time, so that no work array outgrows memory."""
    largest = max((block.edges.size for block in columns.blocks.values()), default=1)
    step = max(1, _CELLS // largest)
    for start in range(0, n, step):
        yield min(step, n - start)


def _trade(
    rng: np.random.Generator,
    edges: Bool[np.ndarray, "draw source target"],
    allowed: Bool[np.ndarray, "source target"],
    steps: int,
) -> None:
    """Rounds of trades, in place. The shorter side trades: the fewer the traders, the more each round mixes."""
    if edges.shape[1] > edges.shape[2]:
        edges, allowed = edges.transpose(0, 2, 1), allowed.T
    n, traders, _ = edges.shape
    if traders < 2 or np.array_equal(edges[0], allowed):  # nothing to trade, or nothing but what there is
        return
    draws = np.arange(n)[:, None]
    for _ in range(steps):
        order = rng.permuted(np.tile(np.arange(traders), (n, 1)), axis=1)
        one, other = order[:, 0 : traders - 1 : 2], order[:, 1::2]
        mine, yours = edges[draws, one], edges[draws, other]
        in_play = (mine != yours) & allowed[one] & allowed[other]
        dealt = draw_subsets(rng, in_play, (in_play & mine).sum(axis=-1))
        edges[draws, one] = np.where(in_play, dealt, mine)
        edges[draws, other] = np.where(in_play, ~dealt, yours)
