"""Motifs: which small patterns of edges a circuit has more of, or fewer, than chance gives a graph of its layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, get_args

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.graph.columns import Columns, targets_of
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.structure.census import KINDS, Cell, Kind, census, place
from nnsight_vae.circuits.structure.nulls import Null, degree_null, density_null, sign_null, two_sided
from nnsight_vae.circuits.structure.tables import number, table
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats.significance import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

_MEANING = {
    "degree": "edges are dealt out anew within each layer pair, every unit keeps its number of them",
    "density": "edges are put anywhere within their layer pair, each keeps its number of them",
    "sign": "effects are permuted over the edges of each layer pair; counted are motifs whose edges all push one way",
}


class Motif(NamedTuple):
    """One motif, in the whole circuit or in one place.

    Attributes:
        motif: its name.
        where: the columns it is anchored at; empty for the whole circuit.
        total: how many there are.
        observed: what is tested: the same, or under the null "sign" how many of them are coherent.
        expected: mean over the null graphs.
        low, high: 2.5 % and 97.5 % quantiles of the null graphs.
        p: two-sided empirical p-value; None where there is no test.
        q: adjusted (Benjamini-Hochberg) over the motifs of the circuit, or over all places.
        reason: why there is no test, or "".
    """

    motif: Kind
    where: str
    total: int
    observed: int
    expected: float
    low: float
    high: float
    p: float | None
    q: float | None
    reason: str


@dataclass(frozen=True, repr=False)
class Motifs:
    """The motif census of a circuit beside that of null graphs.

    Attributes:
        rows: one for each motif, over the whole circuit.
        places: one for each motif and place.
        null: what the null graphs keep.
        n_null: how many there are.
        level: false discovery rate, of `significant`.
        readout: the target whose circuit it is; None: the whole graph.
    """

    rows: tuple[Motif, ...]
    places: tuple[Motif, ...]
    null: Null
    n_null: int
    level: float
    readout: str | None = None

    def __getitem__(self, motif: str) -> Motif:
        """The row of a motif over the whole circuit."""
        for row in self.rows:
            if row.motif == motif:
                return row
        raise CircuitError(f"there is no motif {motif!r}; there are {', '.join(KINDS)}.")

    @property
    def significant(self) -> tuple[Motif, ...]:
        """The rows and places that differ from the null graphs at the false discovery rate asked for."""
        return tuple(row for row in (*self.rows, *self.places) if row.q is not None and row.q <= self.level)

    def to_frame(self) -> pd.DataFrame:
        """One row per motif, then one per motif and place: the attributes of `Motif`."""
        import pandas as pd

        frame = pd.DataFrame([*self.rows, *self.places], columns=Motif._fields)
        return frame.astype({"p": "Float64", "q": "Float64"})

    def __str__(self) -> str:
        counted = "coherent" if self.null == "sign" else "count"
        rows = []
        for row in self.rows:
            shares = (number(row.total),) if self.null == "sign" else ()
            spread = f"[{number(row.low)}, {number(row.high)}]"
            numbers = (number(row.observed), *shares, number(row.expected), spread, number(row.p), number(row.q))
            rows.append((row.motif, *numbers, row.reason and f"no test: {row.reason}"))
        header = (
            "motif",
            counted,
            *(("of",) if self.null == "sign" else ()),
            "null mean",
            "95 % of null",
            "p",
            "q",
            "",
        )
        of = "" if self.readout is None else f" of {self.readout}"
        places = sum(row.q is not None and row.q <= self.level for row in self.places)
        tested = sum(row.p is not None for row in self.places)
        title = f"Motifs of a circuit{of} against {self.n_null} null graphs: {_MEANING[self.null]}"
        return table(
            title, header, rows, [f"by place: {places} of {tested} differ at q <= {self.level:g}, see .places"]
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{row.motif}={row.observed}" for row in self.rows)
        return f"Motifs({counts}; null={self.null!r}, {self.n_null} graphs)"


def motifs(
    circuit: nx.DiGraph,
    *,
    null: Null = "degree",
    n_null: int = 999,
    seed: int = 0,
    q: float = 0.05,
    readout: str | None = None,
    within: EdgeScores | None = None,
) -> Motifs:
    """Count fan-ins, fan-outs, chains, bi-fans, diamonds and feed-forward loops, and hold the counts against null graphs.

    A layered graph differs from a random acyclic graph in every motif, by its layers alone; all nulls here keep them:

        degree    every node keeps its number of edges to and from each other column. Fan-in, fan-out and chain counts are then
                  fixed, so bi-fans (units that share what they read and write: entanglement), diamonds (parallel paths) and
                  feed-forward loops are tested.
        density   each layer pair keeps its number of edges: is anything concentrated on few units? See also `hubs`.
        sign      edges stay and effects are permuted within each layer pair. Counted are coherent motifs, all of whose edges
                  carry effects of one sign: parts that push the readout the same way. (An edge's effect is on the readout and
                  not on its target, so the product of signs along a path is not the sign of the path.)

    None of them says that a motif was learned: an untrained network's circuit may have as many. `pipeline_null` answers that.

    Args:
        circuit: from `extract_circuit`, or any DiGraph whose nodes have the attribute `layer`.
        null: which null graphs.
        n_null: how many; the least p is 2 / (n_null + 1).
        seed: of the null graphs.
        q: false discovery rate.
        readout: only the circuit of this target; needed by "sign" where edges are in circuits of several.
        within: scores of all the model's edges, from which null graphs are drawn. None: what the circuit records of them, which
            keeps layer pairs fixed in which the model does not have all edges.

    Returns: counts, two-sided empirical p-values and q-values, for the whole circuit and by place. No p where a count is the same
        in every null graph.

    Raises:
        CircuitError: no circuit, an unknown null or readout, or effects that are missing or of several readouts.

    Source: Milo et al. 2002, Science 298, 824-827; nulls as in `nulls.degree_null`.

    Example:
        >>> graph = nx.DiGraph()
        >>> graph.add_nodes_from([("a", {"layer": 0}), ("b", {"layer": 0}), ("c", {"layer": 1}), ("d", {"layer": 1})])
        >>> graph.add_edges_from([("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")])
        >>> found = motifs(graph, n_null=99)
        >>> found["bi-fan"].observed, found["bi-fan"].p, found["bi-fan"].reason
        (1, None, 'constant under this null')
    """
    _check(null, n_null, q)
    columns = Columns.of(circuit, within, readout)
    if null == "sign":
        _check_effects(circuit, columns, readout)
    edges = {pair: block.edges[None] for pair, block in columns.blocks.items()}
    totals = _stacked([census(edges)])
    if null == "sign":
        signs = ({pair: (sign * b.effects > 0)[None] for pair, b in columns.blocks.items()} for sign in (1, -1))
        observed = _coherent([tuple(signs)])
        drawn = _coherent(sign_null(columns, n_null, seed))
    else:
        observed = totals
        batches = (degree_null if null == "degree" else density_null)(columns, n_null, seed)
        drawn = _stacked(map(census, batches))
    cells = [cell for kind in KINDS for cell in observed if cell[0] == kind]
    wholes = {kind: [cell for cell in cells if cell[0] == kind] for kind in KINDS}
    counted = ((totals, 1), (observed, 1), (drawn, n_null))
    rows = [_motif(kind, "", *(_sum(counts, wholes[kind], n) for counts, n in counted)) for kind in KINDS]
    places = [
        _motif(kind, place(kind, tuple(columns.names[i] for i in at)), *(counts[kind, at] for counts, _ in counted))
        for kind, at in cells
    ]
    return Motifs(_adjusted(rows), _adjusted(places), null, n_null, q, readout)


def _motif(kind: Kind, where: str, total: np.ndarray, observed: np.ndarray, drawn: np.ndarray) -> Motif:
    low, high = np.quantile(drawn, [0.025, 0.975])
    p, reason = float(two_sided(observed, drawn[:, None])[0]), ""
    if (drawn == observed).all():
        reason = "constant under this null"
    if kind == "feed-forward" and not total and not drawn.any():
        reason = "no edge skips a layer beside a path"
    numbers = (int(total[0]), int(observed[0]), float(drawn.mean()), float(low), float(high))
    return Motif(kind, where, *numbers, None if reason else p, None, reason)


def _adjusted(rows: Iterable[Motif]) -> tuple[Motif, ...]:
    rows = list(rows)
    tested = [i for i, row in enumerate(rows) if row.p is not None]
    for i, q in zip(tested, benjamini_hochberg(np.array([rows[i].p for i in tested], dtype=float)), strict=True):
        rows[i] = rows[i]._replace(q=float(q))
    return tuple(rows)


def _sum(counts: dict[Cell, np.ndarray], cells: list[Cell], n: int) -> Float[np.ndarray, " draw"]:
    return sum((counts[cell] for cell in cells), np.zeros(n))


def _stacked(batches: Iterable[dict[Cell, np.ndarray]]) -> dict[Cell, Float[np.ndarray, " draw"]]:
    found = list(batches)
    return {cell: np.concatenate([each[cell] for each in found]) for cell in found[0]}


def _coherent(batches: Iterable[tuple[dict, ...]]) -> dict[Cell, Float[np.ndarray, " draw"]]:
    """Motifs whose edges all have positive effects, and those whose edges all have negative ones."""
    counts = []
    for positive, negative in batches:
        ups, downs = census(positive), census(negative)
        counts.append({cell: ups[cell] + downs[cell] for cell in ups})
    return _stacked(counts)


def _check(null: str, n_null: int, q: float) -> None:
    if null not in get_args(Null):
        raise CircuitError(f"null={null!r} is not known; expected 'degree', 'density' or 'sign'.")
    check_draws(n_null, q)


def check_draws(n_null: int, q: float) -> None:
    """Refuse a number of null graphs or a rate that means nothing.

    Raises:
        CircuitError: says what was got.
    """
    if isinstance(n_null, bool) or not isinstance(n_null, int) or n_null < 1:
        raise CircuitError(
            f"n_null={n_null!r}: expected a positive number of null graphs, 999 or more for small p-values."
        )
    if not 0 < q < 1:
        raise CircuitError(f"q={q}: expected a false discovery rate in (0, 1).")


def _check_effects(circuit: nx.DiGraph, columns: Columns, readout: str | None) -> None:
    names = {name for *_, data in circuit.edges(data=True) for name in targets_of(data)}
    if readout is None and len(names) > 1:
        raise CircuitError(
            f"the effects of this circuit's edges are on several readouts, {sorted(names)}, and their signs cannot be compared; name "
            "one: readout=."
        )
    if any(np.isnan(block.effects).any() for block in columns.blocks.values()):
        raise CircuitError("null='sign' needs the attribute 'effect' on every edge, and some have none.")
