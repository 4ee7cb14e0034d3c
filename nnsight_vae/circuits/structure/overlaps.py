"""Overlap: how much the circuits of two factors have in common, beside circuits of their sizes anywhere in the same layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.graph.columns import (
    BETWEEN,
    circuits_by_factor,
    column_of,
    effect_on,
    own_circuit,
    units_of,
)
from nnsight_vae.circuits.structure.enrichment import check_draws
from nnsight_vae.circuits.structure.nulls import two_sided
from nnsight_vae.circuits.structure.selectivity import node_effects, total_effect
from nnsight_vae.circuits.structure.tables import number, table
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

_NO_RECORD = "the circuits do not record what they were chosen from (graph['candidates'])"
_CELLS = 2_000_000  # elements of one work array


class Overlap(NamedTuple):
    """What two circuits share in one stage.

    Attributes:
        a, b: the factors.
        of: "nodes" or "edges"; factors and readouts are left out.
        stage: of the units (of an edge: where it ends); "all" for the whole circuits.
        n_a, n_b, shared: how many there are in each and in both.
        jaccard: shared / in either.
        expected: mean over circuits of the same sizes in every layer (pair), anywhere in it.
        p: two-sided empirical p-value; None without a record of what the circuits were chosen from.
        q: adjusted (Benjamini-Hochberg) over all rows of the result.
        weighted: sum of the smaller over sum of the larger |effect|, effects as shares of the total effect; None where an edge
            has no effect.
        weighted_expected, weighted_p, weighted_q: the same for it.
        reason: why something is missing, or "".
    """

    a: str
    b: str
    of: str
    stage: str
    n_a: int
    n_b: int
    shared: int
    jaccard: float | None
    expected: float | None
    p: float | None
    q: float | None
    weighted: float | None
    weighted_expected: float | None
    weighted_p: float | None
    weighted_q: float | None
    reason: str


@dataclass(frozen=True, repr=False)
class Overlaps:
    """The overlap of every two circuits, overall and stage by stage.

    Attributes:
        rows: overall first, then by stage.
        factors: the factors compared.
        n_null: null circuits drawn.
        level: false discovery rate.
    """

    rows: tuple[Overlap, ...]
    factors: tuple[str, ...]
    n_null: int
    level: float

    def of(self, a: str, b: str, of: str = "edges", stage: str = "all") -> Overlap:
        """The row of two factors."""
        for row in self.rows:
            if {row.a, row.b} == {a, b} and row.of == of and row.stage == stage:
                return row
        raise CircuitError(
            f"no overlap of {of} of {a!r} and {b!r} in stage {stage!r}; factors: {', '.join(self.factors)}."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of factors, nodes or edges, and stage: the attributes of `Overlap`."""
        import pandas as pd

        numbers = list(Overlap._fields[7:-1])
        return pd.DataFrame(self.rows, columns=Overlap._fields).astype(dict.fromkeys(numbers, "Float64"))

    def __str__(self) -> str:
        rows = [
            (
                f"{row.a} & {row.b}",
                row.of,
                f"{number(row.shared)} of {number(row.n_a)}, {number(row.n_b)}",
                number(row.jaccard),
                number(row.expected),
                number(row.q),
                number(row.weighted),
                number(row.weighted_expected),
                number(row.weighted_q),
                row.reason,
            )
            for row in self.rows
            if row.stage == "all"
        ]
        header = ("factors", "of", "shared", "Jaccard", "by chance", "q", "weighted", "by chance", "q", "")
        title = f"Overlap of the circuits of {len(self.factors)} factors; by chance: {self.n_null} circuits of the same sizes per layer"
        return table(title, header, rows, ["by stage: see .rows"])

    def __repr__(self) -> str:
        return f"Overlaps({len(self.factors)} factors, {len(self.rows)} rows, {self.n_null} null circuits)"


class _Part(NamedTuple):
    """The nodes of one column, or the edges between two: what each circuit has there, and out of how many."""

    of: str
    stage: str
    size: int | None
    weights: Float[np.ndarray, "circuit item"]  # over the items of either circuit; NaN without effects
    present: Float[np.ndarray, "circuit item"]


def overlap(circuits: Mapping[str, nx.DiGraph], *, n_null: int = 999, seed: int = 0, q: float = 0.05) -> Overlaps:
    """Jaccard and weighted Jaccard overlap of every two factors' circuits, on nodes and on edges, with tests.

        J = |A and B| / |A or B|,    J_w = sum min(w_A, w_B) / sum max(w_A, w_B)

    w: |effect| of an edge, or |summed effect of the circuit's edges into a unit|, as shares of the factor's total effect.
    The null circuits have as many nodes in every column, and edges in every layer pair, with the same effects, anywhere among those the model has. Circuits
    of any two factors share a network's strong weights, so most overlaps are far above that; few are below. Whether sharing was
    learned is for `pipeline_null` to say.

    Args:
        circuits: {factor: circuit}, two or more; of each the part that reaches the factor's own readout.
        n_null: null circuits per pair of factors; the least p is 2 / (n_null + 1).
        seed: of the null circuits.
        q: false discovery rate.

    Returns: rows for the whole circuits and for each stage.

    Raises:
        CircuitError: fewer than two circuits.

    Source: Jaccard 1901; Ruzicka 1958 (weighted).

    Example:
        >>> def one(*units):
        ...     graph = nx.DiGraph(candidates={"nodes": {"latent.z": 8}, "edges": {}})
        ...     graph.add_nodes_from((f"latent.z[{i}]", {"layer": 0, "site": "latent.z"}) for i in units)
        ...     return graph
        >>> found = overlap({"a": one(0, 1, 2), "b": one(2, 3)}, n_null=99)
        >>> found.of("a", "b", "nodes").jaccard
        0.25
    """
    check_draws(n_null, q)
    named = circuits_by_factor(circuits, 2, "overlap")
    rng = np.random.default_rng(seed)
    items = {factor: _items(factor, circuit) for factor, circuit in named.items()}
    rows = []
    for a, b in combinations(named, 2):
        parts = _parts(items[a], items[b], named[a].graph.get("candidates"), named[b].graph.get("candidates"))
        drawn = [_drawn(part, n_null, rng) for part in parts]
        for of in ("nodes", "edges"):
            stages = dict.fromkeys(part.stage for part in parts if part.of == of)
            for stage in ("all", *(stages if any(stages) else ())):
                chosen = [i for i, part in enumerate(parts) if part.of == of and stage in ("all", part.stage)]
                rows.append(_row(a, b, of, stage, [parts[i] for i in chosen], [drawn[i] for i in chosen]))
    rows.sort(key=lambda row: row.stage != "all")
    return Overlaps(_adjusted(rows), tuple(named), n_null, q)


_Items = dict[tuple[str, str, str], dict[object, float]]  # (nodes or edges, column(s), stage) -> item -> weight


def _items(factor: str, circuit: nx.DiGraph) -> _Items:
    graph, readout = own_circuit(factor, circuit)
    units = units_of(graph)
    try:
        sizes = node_effects(factor, graph, readout)
        total = abs(total_effect(factor, graph, readout))
    except CircuitError:  # no comparable effects: presence alone is compared
        sizes, total = {}, float("nan")
    found: _Items = {}
    for node, data in units.nodes(data=True):
        key = ("nodes", column_of(node, data), str(data.get("stage") or ""))
        found.setdefault(key, {})[node] = sizes.get(node, float("nan"))
    for u, v, edge in units.edges(data=True):
        ends = f"{column_of(u, units.nodes[u])}{BETWEEN}{column_of(v, units.nodes[v])}"
        key = ("edges", ends, str(units.nodes[v].get("stage") or ""))
        found.setdefault(key, {})[u, v] = abs(effect_on(edge, readout)) / total
    return found


def _parts(a: _Items, b: _Items, record_a: Mapping | None, record_b: Mapping | None) -> list[_Part]:
    parts = []
    for key in sorted(a.keys() | b.keys()):
        of, name, stage = key
        one, other = a.get(key, {}), b.get(key, {})
        either = list(dict.fromkeys([*one, *other]))
        weights = np.array([[each.get(item, 0.0) for item in either] for each in (one, other)])
        present = np.array([[float(item in each) for item in either] for each in (one, other)])
        sizes = [record[of].get(name) for record in (record_a, record_b) if record]
        size = sizes[0] if len(sizes) == 2 and sizes[0] == sizes[1] else None
        parts.append(_Part(of, stage, size, weights, present))
    return parts


def _common(weights: np.ndarray, present: np.ndarray) -> Float[np.ndarray, "2"]:
    """What two circuits share: how many items, and the sum of the smaller weights."""
    return np.array([(present[0] * present[1]).sum(), np.minimum(weights[0], weights[1]).sum()])


def _drawn(part: _Part, n_null: int, rng: np.random.Generator) -> Float[np.ndarray, "draw 2"] | None:
    """The same for circuits in which the first one's items are anywhere in the layer; None where its size is not known."""
    if part.size is None:
        return None
    theirs = part.present[1] > 0
    mine = np.zeros((2, part.size))
    mine[0, : part.present.shape[1]], mine[1, : part.present.shape[1]] = part.weights[0], part.present[0]
    found = []
    step = max(1, _CELLS // part.size)
    for start in range(0, n_null, step):
        order = rng.permuted(np.tile(np.arange(part.size), (min(step, n_null - start), 1)), axis=1)[:, : theirs.sum()]
        smaller = np.minimum(mine[0][order], part.weights[1][theirs])
        found.append(np.stack([mine[1][order].sum(axis=1), smaller.sum(axis=1)], axis=1))
    return np.concatenate(found)


def _row(a: str, b: str, of: str, stage: str, parts: list[_Part], drawn: list[np.ndarray | None]) -> Overlap:
    n_a, n_b = (int(sum(part.present[k].sum() for part in parts)) for k in (0, 1))
    sums = sum((part.weights.sum(axis=1) for part in parts), np.zeros(2)).sum()
    common = sum((_common(part.weights, part.present) for part in parts), np.zeros(2))
    known = [each for each in drawn if each is not None]
    null = np.sum(known, axis=0) if parts and len(known) == len(parts) else None
    reason = "" if null is not None else _NO_RECORD
    jaccard = _tested(common[:1], n_a + n_b, None if null is None else null[:, :1])
    weighted = _tested(common[1:], sums, None if null is None else null[:, 1:])
    if jaccard[0] is None:
        reason = f"neither circuit has {of} here"
    elif weighted[0] is None:
        reason = f"no weighted overlap: effects are missing, 0, or of several readouts{reason and '; ' + reason}"
    return Overlap(a, b, of, stage, n_a, n_b, int(common[0]), *jaccard, None, *weighted, None, reason)


def _tested(
    common: Float[np.ndarray, "1"], both: float, null: Float[np.ndarray, "draw 1"] | None
) -> tuple[float | None, float | None, float | None]:
    """common / (both - common), its mean under the null, and p."""
    if not both > 0:  # NaN is not
        return None, None, None
    value = common / (both - common)
    if null is None:
        return float(value[0]), None, None
    drawn = null / (both - null)
    return float(value[0]), float(drawn.mean()), float(two_sided(value, drawn)[0])


def _adjusted(rows: list[Overlap]) -> tuple[Overlap, ...]:
    plain, weighted = (_q_values([getattr(row, name) for row in rows]) for name in ("p", "weighted_p"))
    return tuple(row._replace(q=a, weighted_q=b) for row, a, b in zip(rows, plain, weighted, strict=True))


def _q_values(p: list[float | None]) -> list[float | None]:
    """Adjusted p-values of the tests there are."""
    found = iter(benjamini_hochberg(np.array([each for each in p if each is not None], dtype=float)).tolist())
    return [None if each is None else next(found) for each in p]
