"""Separation: units at which the circuits of two factors part, and units at which they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np

from nnsight_vae.circuits.graph.columns import circuits_by_factor, column_of, is_full, own_circuit, units_of
from nnsight_vae.circuits.structure.degrees import hypergeometric
from nnsight_vae.circuits.structure.tables import number, table
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd


class Separation(NamedTuple):
    """How far the circuits of two factors part, or come apart, at one unit.

    Attributes:
        unit: its id; it is in both circuits.
        kind: "split": its edges onwards are compared; "merge": its edges from before.
        a, b: the factors.
        only_a, only_b, shared: how many of those edges are in one circuit or in both.
        expected: of shared edges, were the ends of each circuit's edges drawn anywhere in the next column.
        through: edges on the other side of the unit that both circuits share.
        p: chance of so few shared edges, or fewer; None where unknown.
        q: adjusted (Benjamini-Hochberg) over all rows.
        reason: why there is no p, or "".
    """

    unit: str
    kind: str
    a: str
    b: str
    only_a: int
    only_b: int
    shared: int
    expected: float | None
    through: int
    p: float | None
    q: float | None
    reason: str


@dataclass(frozen=True, repr=False)
class Separations:
    """Splits and merges of the circuits of several factors.

    Attributes:
        rows: one for each unit, kind and two factors, the most surprising first.
        factors: the factors compared.
        level: false discovery rate of `significant`.
    """

    rows: tuple[Separation, ...]
    factors: tuple[str, ...]
    level: float

    @property
    def significant(self) -> tuple[Separation, ...]:
        """The splits and merges at the false discovery rate asked for."""
        return tuple(row for row in self.rows if row.q is not None and row.q <= self.level)

    def to_frame(self) -> pd.DataFrame:
        """The attributes of `Separation`, one row each."""
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=Separation._fields)
        return frame.astype(dict.fromkeys(("expected", "p", "q"), "Float64"))

    def __str__(self) -> str:
        rows = [
            (
                row.unit,
                row.kind,
                f"{row.a} | {row.b}",
                f"{row.only_a} | {row.only_b}",
                number(row.shared),
                number(row.expected),
                number(row.through),
                number(row.p),
                number(row.q),
                row.reason and f"no test: {row.reason}",
            )
            for row in self.rows
        ]
        header = ("unit", "kind", "factors", "edges of one", "shared", "by chance", "shared before/after", "p", "q", "")
        title = (
            f"Where the circuits of {len(self.factors)} factors part (split) or meet (merge): "
            f"{len(self.significant)} of {len(self.rows)} at q <= {self.level:g}"
        )
        return table(title, header, rows)

    def __repr__(self) -> str:
        return f"Separations({len(self.significant)} of {len(self.rows)} at q <= {self.level:g})"


def separation(circuits: Mapping[str, nx.DiGraph], *, q: float = 0.05) -> Separations:
    """Factor-separating motifs: units that serve two factors, with edges that serve one or the other.

    A unit *splits* two factors if fewer of its edges onwards are in both circuits than if each circuit had picked its ends
    anywhere in the next column: the shared count is then hypergeometric, and p exact. It *merges* them if the same holds for its
    edges from before: they come from different units and go on together. Edges come from a network's strong weights, so
    sharing more than by chance is the rule, and separation the finding.

    Args:
        circuits: {factor: circuit}, two or more; of each the part that reaches the factor's own readout.
        q: false discovery rate.

    Returns: one row for each unit in two circuits, kind and pair of factors.

    Raises:
        CircuitError: fewer than two circuits, or q out of range.

    Example:
        >>> def one(*ends):
        ...     graph = nx.DiGraph(candidates={"nodes": {"z": 1, "d": 20}, "edges": {"z -> d": 20}})
        ...     graph.add_node("z[0]", layer=0, site="z")
        ...     graph.add_nodes_from((f"d[{i}]", {"layer": 1, "site": "d"}) for i in ends)
        ...     graph.add_edges_from(("z[0]", f"d[{i}]") for i in ends)
        ...     return graph
        >>> found = separation({"a": one(*range(10)), "b": one(*range(10, 20))})
        >>> found.significant[0].kind, found.significant[0].shared
        ('split', 0)
    """
    if not 0 < q < 1:
        raise CircuitError(f"q={q}: expected a false discovery rate in (0, 1).")
    named = circuits_by_factor(circuits, 2, "separation")
    graphs = {factor: units_of(own_circuit(factor, circuit)[0]) for factor, circuit in named.items()}
    rows = []
    for a, b in combinations(named, 2):
        for unit in (unit for unit in graphs[a] if unit in graphs[b]):
            for kind in ("split", "merge"):
                row = _row(unit, kind, a, b, graphs[a], graphs[b])
                if row is not None:
                    rows.append(row)
    tested = [row for row in rows if row.p is not None]
    adjusted = benjamini_hochberg(np.array([row.p for row in tested], dtype=float))
    tested = [row._replace(q=float(each)) for row, each in zip(tested, adjusted, strict=True)]
    tested.sort(key=lambda row: row.p or 0.0)
    return Separations((*tested, *(row for row in rows if row.p is None)), tuple(named), q)


def _row(unit: str, kind: str, a: str, b: str, one: nx.DiGraph, other: nx.DiGraph) -> Separation | None:
    ends, before = ("successors", "predecessors") if kind == "split" else ("predecessors", "successors")
    mine, theirs = (set(getattr(graph, ends)(unit)) for graph in (one, other))
    if not mine or not theirs:
        return None
    through = len(set(getattr(one, before)(unit)) & set(getattr(other, before)(unit)))
    pmf, reason = np.ones(1), ""
    columns = {
        end: column_of(end, graph.nodes[end]) for graph, found in ((one, mine), (other, theirs)) for end in found
    }
    for column in sorted(set(columns.values())):
        n = _candidates(column_of(unit, one.nodes[unit]), column, kind, one, other)
        if n is None:
            reason = f"not known which units of {column} the model joins it to"
            break
        in_a, in_b = (sum(columns[end] == column for end in found) for found in (mine, theirs))
        pmf = np.convolve(pmf, hypergeometric(n, in_a, in_b))
    shared = len(mine & theirs)
    counts = (len(mine - theirs), len(theirs - mine), shared)
    if not reason and pmf.max() > 1 - 1e-12:
        reason = "the number of shared edges is fixed"
    if reason:
        return Separation(unit, kind, a, b, *counts, None, through, None, None, reason)
    expected, p = float(pmf @ np.arange(len(pmf))), float(min(pmf[: shared + 1].sum(), 1.0))
    return Separation(unit, kind, a, b, *counts, expected, through, p, None, "")


def _candidates(own: str, column: str, kind: str, one: nx.DiGraph, other: nx.DiGraph) -> int | None:
    """Units of a column that the model joins a unit to, where it joins all of them and both circuits say so."""
    pair = (own, column) if kind == "split" else (column, own)
    sizes = set()
    for graph in (one, other):
        record = graph.graph.get("candidates")
        sizes.add(record["nodes"].get(column) if record and is_full(record, pair, (0, 1)) else None)
    return sizes.pop() if len(sizes) == 1 else None
