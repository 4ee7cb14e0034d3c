"""Hubs: units with more edges than their layer pairs give a unit by chance, and those that are hubs for several factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.graph.columns import Columns, check_circuit, circuits_by_factor, own_circuit, units_of
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.structure.tables import number, table
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd


class Hub(NamedTuple):
    """The degree of a unit in one circuit.

    Attributes:
        unit: its id.
        factor: whose circuit; empty where there is one circuit only.
        degree: edges to and from other units.
        expected: mean degree where as many edges are put anywhere within each layer pair.
        p: chance of such a degree, or a higher one, under that null; None where the degree is then fixed.
        q: adjusted (Benjamini-Hochberg) over all units and factors.
    """

    unit: str
    factor: str
    degree: int
    expected: float
    p: float | None
    q: float | None


class PolysemanticHub(NamedTuple):
    """A unit's evidence for being a hub of at least two factors.

    Attributes:
        unit: its id.
        factors: whose circuits it is in, by falling evidence.
        p: of "it is a hub in at most one of them".
        q: adjusted (Benjamini-Hochberg) over all units in two circuits or more.
    """

    unit: str
    factors: tuple[str, ...]
    p: float
    q: float


@dataclass(frozen=True, repr=False)
class Hubs:
    """The degrees of a circuit's units, or those of several factors' circuits, with tests.

    Attributes:
        rows: one for each unit and circuit it is in, the most surprising first.
        several: one for each unit in the circuits of two factors or more, likewise.
        level: false discovery rate of `significant` and `polysemantic`.
    """

    rows: tuple[Hub, ...]
    several: tuple[PolysemanticHub, ...]
    level: float

    @property
    def significant(self) -> tuple[Hub, ...]:
        """The hubs at the false discovery rate asked for."""
        return tuple(row for row in self.rows if row.q is not None and row.q <= self.level)

    @property
    def polysemantic(self) -> tuple[PolysemanticHub, ...]:
        """The hubs of at least two factors at the false discovery rate asked for."""
        return tuple(row for row in self.several if row.q <= self.level)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit and factor: the attributes of `Hub`."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=Hub._fields).astype({"p": "Float64", "q": "Float64"})

    def __str__(self) -> str:
        rows = [
            (row.unit, row.factor, number(row.degree), number(row.expected), number(row.p), number(row.q), "")
            for row in self.rows
        ]
        title = f"Degrees of units: {len(self.significant)} of {len(self.rows)} are hubs at q <= {self.level:g}"
        header = ("unit", "factor", "degree", "by chance", "p", "q", "")
        notes = []
        if self.several:
            names = ", ".join(row.unit for row in self.polysemantic[:8]) or "none"
            more = ", ..." if len(self.polysemantic) > 8 else ""
            notes = [f"hubs of two factors or more: {len(self.polysemantic)} of {len(self.several)} ({names}{more})"]
        return table(title, header, rows, notes)

    def __repr__(self) -> str:
        return f"Hubs({len(self.significant)} of {len(self.rows)} at q <= {self.level:g}; {len(self.polysemantic)} polysemantic)"


def hubs(circuits: nx.DiGraph | Mapping[str, nx.DiGraph], *, q: float = 0.05, within: EdgeScores | None = None) -> Hubs:
    """Which units have more edges than chance gives them, and which of them serve several factors.

    Null hypothesis: each layer pair keeps its number of edges, and they are anywhere between its units in the circuit. The
    degree of a unit in one layer pair is then hypergeometric, independent of the others, so p-values are exact. A unit is a
    *polysemantic hub* if it is a hub in the circuits of at least two of F factors: with p_(2) the second smallest of its
    p-values, "at most one" is tested by (F - 1) p_(2), whatever the dependence between circuits, which share their weights.

    Args:
        circuits: one circuit, or {factor: circuit}; of a factor's circuit the part that reaches its own readout.
        q: false discovery rate.
        within: scores of all the model's edges; None: as in `motifs`.

    Returns: degrees with p- and q-values; for several factors also those of serving at least two.

    Raises:
        CircuitError: no circuit, or q out of range.

    Source: Benjamini & Heller 2008, Biometrics 64, 1215-1222 (partial conjunction, Bonferroni's form).

    Example:
        >>> graph = nx.DiGraph((f"z[{i}]", f"d[{j}]") for i in range(6) for j in range(8) if i == 0 or j == i)
        >>> nx.set_node_attributes(graph, {node: int(node[0] == "d") for node in graph}, "layer")
        >>> hubs(graph).significant[0].unit
        'z[0]'
    """
    if not 0 < q < 1:
        raise CircuitError(f"q={q}: expected a false discovery rate in (0, 1).")
    if isinstance(circuits, Mapping):
        named = {
            factor: own_circuit(factor, circuit)[0]
            for factor, circuit in circuits_by_factor(circuits, 1, "hubs").items()
        }
    else:
        check_circuit(circuits)
        named = {"": circuits}
    rows = [row for factor, circuit in named.items() for row in _degrees(factor, Columns.of(units_of(circuit), within))]
    tested = [row for row in rows if row.p is not None]
    adjusted = benjamini_hochberg(np.array([row.p for row in tested], dtype=float))
    tested = [row._replace(q=float(each)) for row, each in zip(tested, adjusted, strict=True)]
    tested.sort(key=lambda row: row.p or 0.0)
    rows = tested + [row for row in rows if row.p is None]
    return Hubs(tuple(rows), _several(rows, len(named)), q)


def _degrees(factor: str, columns: Columns) -> list[Hub]:
    """The degree of every node of a graph, and its exact upper tail under the density null."""
    degree = [np.zeros(len(nodes), dtype=int) for nodes in columns.nodes]
    chance: list[list[np.ndarray]] = [[np.ones(1) for _ in nodes] for nodes in columns.nodes]
    for (a, b), block in columns.blocks.items():
        total, drawn = int(block.allowed.sum()), int(block.edges.sum())
        for column, axis in ((a, 1), (b, 0)):
            degree[column] += block.edges.sum(axis=axis)
            for i, places in enumerate(block.allowed.sum(axis=axis).tolist()):
                chance[column][i] = np.convolve(chance[column][i], hypergeometric(total, places, drawn))
    rows = []
    for column, nodes in enumerate(columns.nodes):
        for i, node in enumerate(nodes):
            d, pmf = int(degree[column][i]), chance[column][i]
            fixed = bool(pmf.max() > 1 - 1e-12)
            expected = float(pmf @ np.arange(len(pmf)))
            rows.append(Hub(node, factor, d, expected, None if fixed else float(min(pmf[d:].sum(), 1.0)), None))
    return rows


@lru_cache(maxsize=4096)
def hypergeometric(total: int, marked: int, drawn: int) -> Float[np.ndarray, " count"]:
    """P(k of the drawn are marked) for k = 0 ... `marked`."""
    from scipy.stats import hypergeom

    pmf = hypergeom(total, marked, drawn).pmf(np.arange(marked + 1))
    return np.asarray(pmf / pmf.sum())


def _several(rows: list[Hub], n_factors: int) -> tuple[PolysemanticHub, ...]:
    by_unit: dict[str, list[Hub]] = {}
    for row in rows:
        if row.p is not None:
            by_unit.setdefault(row.unit, []).append(row)
    found = []
    for unit, own in by_unit.items():
        if len(own) > 1:
            own.sort(key=lambda row: row.p or 0.0)
            p = min(1.0, (n_factors - 1) * (own[1].p or 0.0))
            found.append(PolysemanticHub(unit, tuple(row.factor for row in own), p, 1.0))
    adjusted = benjamini_hochberg(np.array([row.p for row in found], dtype=float))
    found = [row._replace(q=float(each)) for row, each in zip(found, adjusted, strict=True)]
    return tuple(sorted(found, key=lambda row: row.p))
