"""A circuit as matrices: its nodes column by column, and one adjacency block for each pair of columns that edges join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float

from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.errors import CircuitError

BETWEEN = " -> "
OUTSIDE = ("factor", "readout")  # kinds of the nodes that are no units of the model


@dataclass(frozen=True)
class Block:
    """All edges from one column to another.

    Attributes:
        edges: which there are.
        allowed: which the model could have; null graphs draw from these.
        effects: of each edge; 0 where there is none, NaN where an edge has no effect attribute.
    """

    edges: Bool[np.ndarray, "source target"]
    allowed: Bool[np.ndarray, "source target"]
    effects: Float[np.ndarray, "source target"]


@dataclass(frozen=True)
class Columns:
    """A circuit as matrices.

    Attributes:
        names: of the columns, from factor to readout: a site, or the kind of nodes without one.
        nodes: ids of each column's nodes.
        blocks: (source column, target column) -> the edges between them; only pairs with edges.
    """

    names: tuple[str, ...]
    nodes: tuple[tuple[str, ...], ...]
    blocks: dict[tuple[int, int], Block]

    @classmethod
    def of(cls, circuit: nx.DiGraph, within: EdgeScores | None = None, readout: str | None = None) -> Columns:
        """Read a circuit.

        Without `within`, what the model could have is told by the circuit's own record (`graph["candidates"]`): where that says
        that a model lacks edges between two columns (a grouped convolution, the tap from mu to z), which ones is not known, and
        no edges but the circuit's count as possible there. A graph without the record counts as fully connected.

        Args:
            circuit: nodes with the attribute `layer`, and `site` or `kind`.
            within: scores of all the model's edges.
            readout: only the edges in the circuit of this target, with their effects on it.

        Raises:
            CircuitError: no such graph; an edge that goes back, or that `within` does not have; an unknown readout.
        """
        check_circuit(circuit)
        graph = circuit if readout is None else of_readout(circuit, readout)
        keys: dict[str, tuple[int, str]] = {node: _column(node, data) for node, data in graph.nodes(data=True)}
        order = sorted(set(keys.values()))
        place = {key: i for i, key in enumerate(order)}
        nodes: list[list[str]] = [[] for _ in order]
        at: dict[str, int] = {}
        for node, key in keys.items():
            at[node] = len(nodes[place[key]])
            nodes[place[key]].append(node)
        effects: dict[tuple[int, int], np.ndarray] = {}
        edges: dict[tuple[int, int], np.ndarray] = {}
        for u, v, data in graph.edges(data=True):
            if not keys[u][0] < keys[v][0]:
                raise CircuitError(
                    f"edge {u!r} -> {v!r} goes from layer {keys[u][0]} to layer {keys[v][0]}, not onwards."
                )
            pair = place[keys[u]], place[keys[v]]
            if pair not in edges:
                shape = len(nodes[pair[0]]), len(nodes[pair[1]])
                edges[pair], effects[pair] = np.zeros(shape, dtype=bool), np.zeros(shape)
            edges[pair][at[u], at[v]] = True
            effects[pair][at[u], at[v]] = effect_on(data, readout)
        names = tuple(key[1] for key in order)
        columns = tuple(map(tuple, nodes))
        possible = _possible(names, columns, edges, circuit, within)
        blocks = {pair: Block(edges[pair], possible[pair], effects[pair]) for pair in sorted(edges)}
        return cls(names, columns, blocks)


def check_circuit(circuit: Any) -> None:
    """Refuse what is not a directed graph of nodes with layers.

    Raises:
        CircuitError: says what was got.
    """
    if not isinstance(circuit, nx.DiGraph) or circuit.is_multigraph():
        raise CircuitError(f"expected a networkx.DiGraph, as extract_circuit returns; got {type(circuit).__name__}.")
    for node, data in circuit.nodes(data=True):
        if isinstance(data.get("layer"), bool) or not isinstance(data.get("layer"), int | np.integer):
            raise CircuitError(
                f"node {node!r} has layer={data.get('layer')!r}; the structure of a circuit is that of its layers, so every node "
                "needs the attribute 'layer', an integer that grows from factor to readout."
            )


def of_readout(circuit: nx.DiGraph, readout: str) -> nx.DiGraph:
    """The edges that are in the circuit of one target, and their nodes.

    Raises:
        CircuitError: the circuit has no such target.
    """
    on = [(u, v) for u, v, data in circuit.edges(data=True) if readout in targets_of(data)]
    if not on:
        known = sorted({name for *_, data in circuit.edges(data=True) for name in targets_of(data)})
        raise CircuitError(f"no edge of this circuit is on readout {readout!r}; it has {known}.")
    return circuit.edge_subgraph(on)


def targets_of(edge: Mapping[str, Any]) -> tuple[str, ...]:
    """The readouts whose circuits an edge is in."""
    return tuple(edge["effects"]) if edge.get("effects") else tuple(filter(None, [edge.get("readout")]))


def effect_on(edge: Mapping[str, Any], readout: str | None) -> float:
    """The effect of an edge on a readout (None: on the one it names); NaN where it has none."""
    effects = edge.get("effects") or {}
    value = effects.get(readout) if readout in effects else edge.get("effect")
    return float("nan") if value is None else float(value)


def candidates_of(scores: EdgeScores) -> dict[str, dict[str, int]]:
    """What a circuit is chosen from: the number of nodes of each column, and of edges between each two of them."""
    names = {node.id: node.site or node.kind for node in scores.nodes}
    pairs = zip(scores.sources, scores.targets, strict=True)
    return {
        "nodes": dict(Counter(names.values())),
        "edges": dict(Counter(f"{names[u]}{BETWEEN}{names[v]}" for u, v in pairs)),
    }


def size_of_model(scores: EdgeScores) -> int:
    """Edges of the model, whether or not all of them were scored."""
    return sum(scores.sizes) or len(scores)


def circuits_by_factor(circuits: Any, least: int, what: str) -> dict[str, nx.DiGraph]:
    """The circuits of several factors, checked.

    Raises:
        CircuitError: not a mapping of at least `least` circuits.
    """
    if not isinstance(circuits, Mapping) or len(circuits) < least:
        got = f"{len(circuits)} circuit(s)" if isinstance(circuits, Mapping) else type(circuits).__name__
        raise CircuitError(f"{what} compares circuits of {least} or more factors: {{factor: circuit}}; got {got}.")
    for circuit in circuits.values():
        check_circuit(circuit)
    return {str(factor): circuit for factor, circuit in circuits.items()}


def own_circuit(factor: str, circuit: nx.DiGraph) -> tuple[nx.DiGraph, str | None]:
    """The part of a circuit by which a factor reaches its own readout, and the name of that.

    What a factor does to others (a pendulum's angle to its shadow) is not what carries the factor itself. Without a readout of
    the factor's name: the whole circuit, and the name of its readout where it has one only.
    """
    names = {name for *_, data in circuit.edges(data=True) for name in targets_of(data)}
    if factor in names:
        return of_readout(circuit, factor), factor
    return circuit, names.pop() if len(names) == 1 else None


def units_of(graph: nx.DiGraph) -> nx.DiGraph:
    """A circuit without its factors and readouts."""
    return graph.subgraph([node for node, data in graph.nodes(data=True) if data.get("kind") not in OUTSIDE])


def column_of(node: str, data: Mapping[str, Any]) -> str:
    """Name of the column a node stands in."""
    return _column(node, data)[1]


def _column(node: str, data: Mapping[str, Any]) -> tuple[int, str]:
    layer = int(data["layer"])
    return layer, str(data.get("site") or data.get("kind") or f"layer {layer}")


def _possible(
    names: tuple[str, ...],
    nodes: tuple[tuple[str, ...], ...],
    edges: dict[tuple[int, int], np.ndarray],
    circuit: nx.DiGraph,
    within: EdgeScores | None,
) -> dict[tuple[int, int], Bool[np.ndarray, "source target"]]:
    if within is None:
        record = circuit.graph.get("candidates")
        return {pair: np.ones_like(there) if is_full(record, names, pair) else there for pair, there in edges.items()}
    there = set(zip(within.sources, within.targets, strict=True))
    possible = {}
    for (a, b), present in edges.items():
        possible[a, b] = np.array([[(u, v) in there for v in nodes[b]] for u in nodes[a]], dtype=bool)
        if (present & ~possible[a, b]).any():
            i, j = np.argwhere(present & ~possible[a, b])[0]
            raise CircuitError(
                f"edge {nodes[a][i]!r} -> {nodes[b][j]!r} of this circuit is not among the edges of within=."
            )
    return possible


def is_full(record: Mapping[str, Mapping[str, int]] | None, names: tuple[str, ...], pair: tuple[int, int]) -> bool:
    """Whether, as far as is recorded, the model joins every node of one column to every node of the other."""
    if not record:
        return True
    a, b = (names[end] for end in pair)
    n_edges = record["edges"].get(f"{a}{BETWEEN}{b}")
    return n_edges is None or n_edges == record["nodes"][a] * record["nodes"][b]
