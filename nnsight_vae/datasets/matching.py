"""Which rows of a table of factors differ in one factor and agree in others. Arrays in, row numbers out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

CONTRAST = 1.0  # least difference of a pair in its factor, in standard deviations
_SLACK = 1e-9  # relative: a difference of exactly that size may come out smaller by rounding


def match_pairs(
    value: Float[np.ndarray, " row"],
    rest: Float[np.ndarray, "row matched"],
    n: int,
    rng: np.random.Generator,
    anchors: Int[np.ndarray, " n"] | None = None,
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Up to n pairs of rows that differ by at least `CONTRAST` in `value` and are as near as can be in `rest`; no row twice.

    First every row (in random order) that has a partner which agrees in all of `rest` is paired with one, then rows are paired
    with the nearest partner left (greedy). Partners that are equally near are equally likely, wherever they stand in the table.

    Args:
        value: the factor that differs, in standard deviations.
        rest: the factors that are matched, in standard deviations; no columns: every row matches every other.
        n: number of pairs.
        rng: fixes the order and the choice among equals.
        anchors: one row of each pair, and of that pair only; None: any row.

    Returns: the one and the other row of each pair: with anchors in their order, those without a partner left out.

    Source: nearest-neighbour matching without replacement, exact matches first (Stuart 2010, Matching methods for causal
        inference, section 3).

    Example:
        >>> value, rest = np.array([0.0, 2.0, 0.0, 2.0]), np.array([[0.0], [5.0], [5.0], [0.1]])
        >>> one, other = match_pairs(value, rest, 2, np.random.default_rng(0))
        >>> sorted(sorted(pair) for pair in zip(one.tolist(), other.tolist()))
        [[0, 3], [1, 2]]
    """
    shuffled = rng.permutation(len(value))
    value, rest = value[shuffled], rest[shuffled]  # so that the first of equals is any of them
    place = np.argsort(shuffled)
    free = np.ones(len(value), dtype=bool)  # to be a partner
    queue = np.arange(len(value))
    if anchors is not None:
        queue = place[anchors]
        free[queue] = False
    members = rows_by_cell(rest)
    partner: dict[int, int] = {}
    for exactly in (True, False):
        for row in queue.tolist():
            if len(partner) == n:
                break
            if row in partner or (anchors is None and not free[row]):
                continue
            pool = members[row] if exactly else np.flatnonzero(free)
            pool = pool[free[pool] & (np.abs(value[pool] - value[row]) >= CONTRAST * (1 - _SLACK))]
            if len(pool):
                best = 0 if exactly else np.square(rest[pool] - rest[row]).sum(axis=1).argmin()
                partner[row] = int(pool[best])
                free[row] = free[pool[best]] = False
    found = list(partner) if anchors is None else [row for row in queue.tolist() if row in partner]
    return shuffled[np.array(found, dtype=np.intp)], shuffled[np.array([partner[r] for r in found], dtype=np.intp)]


def match_doses(
    value: Float[np.ndarray, " row"],
    rest: Float[np.ndarray, "row matched"],
    levels: Float[np.ndarray, " dose"],
    n: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "dose world"]:
    """Rows that agree in all of `rest` and show every level of `value`: up to n sets of them, one row a level, chosen at random.

    Example:
        >>> value, rest = np.array([1.0, 2.0, 1.0, 2.0, 1.0]), np.array([[0.0], [0.0], [5.0], [5.0], [7.0]])
        >>> rows = match_doses(value, rest, np.array([1.0, 2.0]), 9, np.random.default_rng(0))
        >>> sorted(rows.T.tolist())
        [[0, 1], [2, 3]]
    """
    cell, shuffled = cells(rest), rng.permutation(len(value))
    chosen = []
    for level in levels:
        rows = shuffled[np.isclose(value[shuffled], level, rtol=1e-6, atol=1e-9 * np.ptp(levels))]
        chosen.append(dict(zip(cell[rows].tolist(), rows.tolist(), strict=True)))  # any one row of each cell
    complete = sorted(set.intersection(*map(set, chosen)))
    picked = rng.permutation(complete)[:n]
    return np.array([[rows[each] for each in picked] for rows in chosen], dtype=np.int64).reshape(len(levels), -1)


def cells(rest: Float[np.ndarray, "row matched"]) -> Int[np.ndarray, " row"]:
    """A number for each row that is equal for rows that agree in every column, and for no others."""
    numbers = np.zeros(len(rest), dtype=np.int64)
    for column in rest.T:
        _, codes = np.unique(column, return_inverse=True)
        _, numbers = np.unique(
            numbers * (codes.max() + 1) + codes, return_inverse=True
        )  # stays below the number of rows
    return numbers


def rows_by_cell(rest: Float[np.ndarray, "row matched"]) -> list[Int[np.ndarray, " _"]]:
    """For each row, the rows that agree with it in every column, itself included, rising."""
    numbers = cells(rest)
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    return [groups[number] for number in numbers]
