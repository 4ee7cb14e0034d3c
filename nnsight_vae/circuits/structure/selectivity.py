"""Specificity: how much of what a unit does in the circuits of several factors it does for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.circuits.graph.columns import OUTSIDE, circuits_by_factor, column_of, effect_on, own_circuit
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.structure.tables import number, table
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats.clusters import checked_design
from nnsight_vae.stats.resampling import design_weights

if TYPE_CHECKING:
    import pandas as pd


class UnitSpecificity(NamedTuple):
    """What one unit does for each factor.

    Attributes:
        unit: its id.
        column: the site it belongs to.
        factor: the one it does most for.
        specificity: that factor's share of all it does, in (1 / factors ... 1).
        ci_low, ci_high: 95 % bootstrap interval over pairs; None without scores.
        selectivity: 1 - entropy of the shares / log(number of factors), in [0, 1].
        effects: factor -> |effect through the unit| as a share of the factor's total effect; 0 where it is not in the circuit.
    """

    unit: str
    column: str
    factor: str
    specificity: float
    ci_low: float | None
    ci_high: float | None
    selectivity: float
    effects: dict[str, float]


@dataclass(frozen=True, repr=False)
class Specificity:
    """The specificity of every unit in the circuits of several factors.

    Attributes:
        rows: one for each unit, column by column.
        left_out: unit -> why it has no specificity.
        factors: the factors compared.
    """

    rows: tuple[UnitSpecificity, ...]
    left_out: dict[str, str]
    factors: tuple[str, ...]

    @property
    def top(self) -> dict[str, str]:
        """unit -> the factor it does most for."""
        return {row.unit: row.factor for row in self.rows}

    def to_frame(self) -> pd.DataFrame:
        """One row per unit: the attributes of `UnitSpecificity`, with a column `effect on <factor>` for each factor."""
        import pandas as pd

        records = []
        for row in self.rows:
            effects = {f"effect on {factor}": row.effects[factor] for factor in self.factors}
            records.append({k: v for k, v in row._asdict().items() if k != "effects"} | effects)
        names = [*UnitSpecificity._fields[:-1], *(f"effect on {factor}" for factor in self.factors)]
        return pd.DataFrame(records, columns=names).astype({"ci_low": "Float64", "ci_high": "Float64"})

    def __str__(self) -> str:
        by_column: dict[str, list[UnitSpecificity]] = {}
        for row in self.rows:
            by_column.setdefault(row.column, []).append(row)
        rows = []
        for column, units in by_column.items():
            shares = [unit.specificity for unit in units]
            tops = [sum(unit.factor == factor for unit in units) for factor in self.factors]
            low, high = (number(float(np.quantile(shares, at))) for at in (0.1, 0.9))
            median = number(float(np.median(shares)))
            rows.append((column, number(len(units)), median, f"[{low}, {high}]", *map(number, tops), ""))
        header = ("column", "units", "specificity", "10-90 %", *(f"for {factor}" for factor in self.factors), "")
        title = (
            f"Specificity of {len(self.rows)} units: share of what a unit does that it does for its first factor (median; "
            f"even: {1 / len(self.factors):.2f}), and for how many units each factor is the first"
        )
        return table(
            title, header, rows, [f"undefined for {len(self.left_out)} units: see .left_out"] if self.left_out else ()
        )

    def __repr__(self) -> str:
        return f"Specificity({len(self.rows)} units, {len(self.factors)} factors)"


def specificity(
    circuits: Mapping[str, nx.DiGraph],
    *,
    scores: Mapping[str, EdgeScores] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> Specificity:
    """For every unit in the circuits of several factors, how much of what it does is for one of them.

        e_uf = | sum of the effects of f's circuit's edges into u, on f |  /  | total effect of f |
        specificity = max_f e_uf / sum_f e_uf,    selectivity = 1 - H(e_u / sum_f e_uf) / log F

    A factor whose circuit u is not in counts as 0: what is not significant must not make a unit look unspecific.

    Args:
        circuits: {factor: circuit}, two or more; of each the part that reaches the factor's own readout.
        scores: {factor: the scores its circuit was selected from}, for intervals: pairs (whole clusters) are resampled, of each
            factor on its own. The first factor is held fixed, as found.
        n_boot: resamples.
        seed: of the resampling.

    Returns: one row per unit; a unit whose effects cancel to 0 for every factor has none, and a reason.

    Raises:
        CircuitError: fewer than two circuits, effects that are missing, or scores that do not belong to the circuits.
        DataError: scores of fewer than two independent pairs.

    Example:
        >>> def one(effect):
        ...     graph = nx.DiGraph(total_effect={})
        ...     graph.add_node("latent.z[0]", layer=0, site="latent.z", kind="latent")
        ...     graph.add_node("decoder.0[0]", layer=1, site="decoder.0", kind="neuron")
        ...     graph.add_edge("latent.z[0]", "decoder.0[0]", effect=effect, readout="y", effects={"y": effect})
        ...     return graph
        >>> specificity({"a": one(3.0), "b": one(-1.0)}).rows[0].specificity
        0.75
    """
    named = circuits_by_factor(circuits, 2, "specificity")
    own = {factor: own_circuit(factor, circuit) for factor, circuit in named.items()}
    columns: dict[str, tuple[int, str]] = {}
    effects: dict[str, dict[str, float]] = {}
    for factor, (graph, readout) in own.items():
        for unit, effect in node_effects(factor, graph, readout).items():
            effects.setdefault(unit, dict.fromkeys(named, 0.0))[factor] = effect
            columns[unit] = int(graph.nodes[unit]["layer"]), column_of(unit, graph.nodes[unit])
    units = sorted(effects, key=lambda unit: columns[unit])
    left_out = {unit: "its effects are 0 for every factor" for unit in units if not any(effects[unit].values())}
    units = [unit for unit in units if unit not in left_out]
    bounds = (
        dict.fromkeys(units, (None, None)) if scores is None else _bounds(units, effects, own, scores, n_boot, seed)
    )
    rows = [_row(unit, columns[unit][1], effects[unit], bounds[unit]) for unit in units]
    return Specificity(tuple(rows), left_out, tuple(named))


def node_effects(factor: str, graph: nx.DiGraph, readout: str | None) -> dict[str, float]:
    """unit -> |sum of the effects of the edges into it|, as a share of the total effect where the circuit records that.

    Raises:
        CircuitError: an edge without an effect, or effects on several readouts none of which is the factor's.
    """
    total = abs(total_effect(factor, graph, readout))
    found = {}
    for unit, data in graph.nodes(data=True):
        if data.get("kind") not in OUTSIDE and graph.in_degree(unit):
            into = sum(effect_on(edge, readout) for *_, edge in graph.in_edges(unit, data=True))
            if np.isnan(into):
                raise CircuitError(f"an edge into {unit!r} in the circuit of {factor!r} has no attribute 'effect'.")
            found[unit] = abs(into) / total
    return found


def total_effect(factor: str, graph: nx.DiGraph, readout: str | None) -> float:
    """The recorded total effect on the readout, by which effects of different factors are made comparable; 1 without a record.

    Raises:
        CircuitError: the effects are on several readouts none of which is the factor's.
    """
    record = graph.graph.get("total_effect") or {}
    if readout is None and record:
        raise CircuitError(
            f"the circuit of {factor!r} has the readouts {sorted(record)} and none of its name, so it has no one effect per unit; "
            "extract it with a readout of the factor, or call the factor by the readout's name."
        )
    return float(record[readout]["mean"]) if readout in record else 1.0


def _row(
    unit: str, column: str, effects: dict[str, float], bounds: tuple[float | None, float | None]
) -> UnitSpecificity:
    sizes = np.array(list(effects.values()))
    shares = sizes / sizes.sum()
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    selectivity = max(0.0, 1.0 + float(shares @ logs) / float(np.log(len(shares))))
    first = int(shares.argmax())
    return UnitSpecificity(unit, column, list(effects)[first], float(shares[first]), *bounds, selectivity, effects)


def _bounds(
    units: list[str],
    effects: dict[str, dict[str, float]],
    own: dict[str, tuple[nx.DiGraph, str | None]],
    scores: Mapping[str, EdgeScores],
    n_boot: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of each unit's share for its first factor."""
    missing = [factor for factor in own if factor not in scores]
    if missing:
        raise CircuitError(f"scores= has none for {missing}; give those that each circuit was selected from.")
    drawn = [_resampled(units, factor, *own[factor], scores[factor], n_boot, seed + i) for i, factor in enumerate(own)]
    sizes = np.stack(drawn)  # [factor, boot, unit]
    first = np.array([list(effects[unit].values()) for unit in units]).argmax(axis=1)
    shares = np.take_along_axis(sizes, first[None, None], axis=0)[0] / np.maximum(sizes.sum(axis=0), 1e-300)
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return {unit: (float(low[i]), float(high[i])) for i, unit in enumerate(units)}


def _resampled(
    units: list[str],
    factor: str,
    graph: nx.DiGraph,
    readout: str | None,
    scores: EdgeScores,
    n_boot: int,
    seed: int,
) -> Float[np.ndarray, "boot unit"]:
    """|effect through each unit| over |total effect| in resamples of a factor's pairs."""
    row = {edge: i for i, edge in enumerate(zip(scores.sources, scores.targets, strict=True))}
    place = {unit: i for i, unit in enumerate(units)}
    edges = [(u, v) for u, v in graph.edges if v in place]
    if readout not in scores.readouts or any(edge not in row for edge in edges):
        raise CircuitError(f"the scores of {factor!r} are not those that its circuit was selected from.")
    t = scores.readouts.index(readout)
    into = np.zeros((len(units) + 1, scores.n_pairs))
    np.add.at(into, [place[v] for _, v in edges], scores.values[[row[edge] for edge in edges], t])
    into[-1] = scores.total[t]
    design = checked_design(into, scores.groups, scores.source_groups)
    sums = design.atoms.sums(into)
    drawn = np.concatenate([weights @ sums.T for weights, _ in design_weights(design, n_boot, seed)])
    return np.abs(drawn[:, :-1]) / np.abs(drawn[:, -1:])
