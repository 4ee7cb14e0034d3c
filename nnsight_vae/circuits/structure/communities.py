"""Modularity: whether a circuit's edges keep within communities of units, such as those of one factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from jaxtyping import Float, Int

from nnsight_vae.circuits.graph.columns import Columns, check_circuit, circuits_by_factor, own_circuit, units_of
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.structure.enrichment import check_draws
from nnsight_vae.circuits.structure.nulls import degree_null, two_sided
from nnsight_vae.circuits.structure.selectivity import specificity
from nnsight_vae.circuits.structure.tables import number

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Modularity:
    """The directed modularity of a circuit.

    Attributes:
        value: Q; None where it is undefined.
        expected: its mean over graphs of the same degrees in every layer pair. Not 0: layers alone make Q differ from that.
        low, high: their 2.5 % and 97.5 % quantiles.
        p: two-sided empirical p-value.
        communities: unit -> the community it is in.
        found: how the communities came about.
        n_null: null graphs drawn.
        reason: why there is no value, or no p, or "".
    """

    value: float | None
    expected: float | None
    low: float | None
    high: float | None
    p: float | None
    communities: dict[str, str]
    found: str
    n_null: int
    reason: str = ""

    def to_frame(self) -> pd.DataFrame:
        """One row per unit: unit, community."""
        import pandas as pd

        return pd.DataFrame(self.communities.items(), columns=["unit", "community"])

    def __str__(self) -> str:
        sizes: dict[str, int] = {}
        for name in self.communities.values():
            sizes[name] = sizes.get(name, 0) + 1
        units = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items(), key=lambda each: -each[1]))
        if self.value is None:
            return f"modularity: none: {self.reason}"
        null = f"null mean {number(self.expected)} [{number(self.low)}, {number(self.high)}]"
        tail = (
            f"no test: {self.reason}"
            if self.p is None
            else f"p {number(self.p)} ({self.n_null} graphs of the same degrees)"
        )
        return f"modularity Q {number(self.value)}, {null}, {tail}\ncommunities ({self.found}): {units}"

    def __repr__(self) -> str:
        value = "None" if self.value is None else f"{self.value:.3f}"
        return f"Modularity({value}, p={self.p}, {len(set(self.communities.values()))} communities)"


def modularity(
    circuits: nx.DiGraph | Mapping[str, nx.DiGraph],
    *,
    communities: Mapping[str, str] | None = None,
    n_null: int = 199,
    seed: int = 0,
    within: EdgeScores | None = None,
) -> Modularity:
    """Directed modularity of a circuit, or of the union of several factors' circuits, against graphs of the same degrees.

        Q = 1/m sum_uv (A_uv - k_out(u) k_in(v) / m) [u and v in one community]

    The communities are those given; or, for several factors, for each unit the factor it does most for (`specificity`); or, for
    one circuit, those that the Louvain method finds, which then looks for them anew in every null graph. Null graphs keep
    every unit's degree in each layer pair, so p says whether edges keep within communities more (or less) than layers and
    degrees make them. Communities made of the factors come from the same edges, which by itself makes for a small p: take
    them from circuits of other pairs, or see `pipeline_null`, before calling a model modular.

    The seed paper's circuit modularity is another thing, a score of how separate the units are that latents act through:
    `nv.metrics.circuit_modularity`.

    Args:
        circuits: one circuit, or {factor: circuit}; of a factor's circuit the part that reaches its own readout.
        communities: unit -> name of its community; units without one are left out.
        n_null: null graphs.
        seed: of the null graphs, and of the Louvain method.
        within: scores of all the model's edges; None: as in `motifs`.

    Returns: Q, its null distribution and p; None, with a reason, where there is nothing to divide.

    Raises:
        CircuitError: no circuit, or effects that are missing.

    Source: Leicht & Newman 2008, Phys. Rev. Lett. 100, 118703; Blondel et al. 2008 (Louvain); both by networkx.

    Example:
        >>> graph = nx.DiGraph([("a0", "a1"), ("a0", "a2"), ("b0", "b1"), ("b0", "b2")])
        >>> nx.set_node_attributes(graph, {node: int(node[1] != "0") for node in graph}, "layer")
        >>> modularity(graph, communities={node: node[0] for node in graph}).value
        0.5
    """
    check_draws(n_null, 0.05)
    found = "as given"
    if isinstance(circuits, Mapping):
        named = circuits_by_factor(circuits, 2, "modularity")
        graph = nx.compose_all([own_circuit(factor, circuit)[0] for factor, circuit in named.items()])
        if communities is None:
            communities, found = specificity(named).top, "the factor each unit does most for"
    else:
        check_circuit(circuits)
        graph = circuits
    graph = units_of(graph)
    refit = communities is None
    if communities is None:
        communities, found = _louvain(graph, seed), "Louvain"
    graph = graph.subgraph([unit for unit in graph if unit in communities])
    names = {unit: communities[unit] for unit in graph}
    if not graph.number_of_edges() or len(set(names.values())) < 2:
        reason = "no edges between units" if not graph.number_of_edges() else "all units are in one community"
        return Modularity(None, None, None, None, None, names, found, n_null, reason)
    columns = Columns.of(graph, within)
    value = nx.community.modularity(graph, _sets(names), weight=None)
    drawn = _refitted(columns, n_null, seed) if refit else _fixed(columns, names, n_null, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    fixed = bool(np.abs(drawn - value).max() < 1e-12)
    p = None if fixed else float(two_sided(np.array([value]), drawn[:, None])[0])
    reason = "constant under this null" if fixed else ""
    return Modularity(value, float(drawn.mean()), float(low), float(high), p, names, found, n_null, reason)


def _louvain(graph: nx.DiGraph, seed: int) -> dict[str, str]:
    if not graph.number_of_edges():
        return dict.fromkeys(graph, "0")
    found = nx.community.louvain_communities(graph, weight=None, seed=seed)
    return {unit: str(i) for i, units in enumerate(found) for unit in units}


def _sets(names: Mapping[str, str]) -> list[set[str]]:
    return [{unit for unit, name in names.items() if name == each} for each in dict.fromkeys(names.values())]


def _fixed(columns: Columns, names: Mapping[str, str], n: int, seed: int) -> Float[np.ndarray, " draw"]:
    """Q of null graphs under the same communities: degrees are fixed, so only the edges within them are counted anew."""
    number_of = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
    of: list[Int[np.ndarray, " node"]] = [
        np.array([number_of[names[unit]] for unit in nodes]) for nodes in columns.nodes
    ]
    out, into = np.zeros(len(number_of)), np.zeros(len(number_of))
    for (a, b), block in columns.blocks.items():
        np.add.at(out, of[a], block.edges.sum(axis=1))
        np.add.at(into, of[b], block.edges.sum(axis=0))
    m = out.sum()
    same = {(a, b): of[a][:, None] == of[b][None] for a, b in columns.blocks}
    kept = [
        sum((drawn[pair] & same[pair]).sum(axis=(1, 2)) for pair in columns.blocks)
        for drawn in degree_null(columns, n, seed)
    ]
    return np.concatenate(kept) / m - out @ into / m**2


def _refitted(columns: Columns, n: int, seed: int) -> Float[np.ndarray, " draw"]:
    """Q of null graphs under the communities found in each."""
    values: list[float] = []
    for drawn in degree_null(columns, n, seed):
        for i in range(len(next(iter(drawn.values())))):
            graph = nx.DiGraph()
            graph.add_nodes_from(unit for nodes in columns.nodes for unit in nodes)
            for (a, b), edges in drawn.items():
                graph.add_edges_from((columns.nodes[a][u], columns.nodes[b][v]) for u, v in np.argwhere(edges[i]))
            found = nx.community.louvain_communities(graph, weight=None, seed=seed + len(values))
            values.append(nx.community.modularity(graph, found, weight=None))
    return np.array(values)
