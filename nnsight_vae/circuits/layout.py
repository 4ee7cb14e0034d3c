"""Where the nodes and edges of a circuit go on the page: columns by layer, few crossings, long edges routed around."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

_SWEEPS = 12
_NODE_GAP, _WAYPOINT_GAP = 1.0, 0.6  # rows between neighbours in a column

Point = tuple[float, float]


class _Waypoint(NamedTuple):
    """A place holder where an edge passes a column, so that it bends around the nodes there."""

    source: Hashable
    target: Hashable
    column: int


@dataclass(frozen=True)
class Placement:
    """A drawing of a directed graph, left to right.

    Attributes:
        positions: node -> (column, row); rows grow downwards, node neighbours in a column are at least 1 apart.
        routes: edge -> the points it passes from source to target.
        columns: the nodes of each column, top to bottom.
    """

    positions: dict[Any, Point]
    routes: dict[tuple[Any, Any], list[Point]]
    columns: list[list[Any]]


def layered(graph: nx.DiGraph) -> Placement:
    """Lay a graph out in columns by the node attribute `layer`, or by longest path where a node has none.

    Cycles are allowed: nodes of a cycle share a column when there are no layers. Columns are ordered by barycentre
    sweeps (the sweep with fewest crossings is kept), then each row is set as close to its neighbours as the gaps allow.

    Source: Sugiyama, Tagawa and Toda 1981, IEEE Trans. SMC 11(2).

    Example:
        >>> layout = layered(nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")]))
        >>> layout.columns
        [['a'], ['b'], ['c']]
        >>> [column for column, row in layout.routes["a", "c"]]
        [1.0]
    """
    rank = _ranks(graph)
    columns: list[list[Any]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node in graph:
        columns[rank[node]].append(node)
    left: dict[Any, list[Any]] = defaultdict(list)
    right: dict[Any, list[Any]] = defaultdict(list)
    chains: dict[tuple[Any, Any], list[_Waypoint]] = {}
    for source, target in graph.edges:
        first, last = sorted((source, target), key=lambda node: rank[node])
        chain = [_Waypoint(source, target, column) for column in range(rank[first] + 1, rank[last])]
        for waypoint in chain:
            columns[waypoint.column].append(waypoint)
        if rank[first] < rank[last]:
            stops = [first, *chain, last]
            for a, b in itertools.pairwise(stops):
                right[a].append(b)
                left[b].append(a)
        chains[source, target] = chain if first == source else chain[::-1]
    columns = _least_crossings(columns, left, right)
    row = _rows(columns, left, right)
    return Placement(
        positions={node: (float(rank[node]), row[node]) for node in graph},
        routes={edge: [(float(w.column), row[w]) for w in chain] for edge, chain in chains.items()},
        columns=[[item for item in column if not isinstance(item, _Waypoint)] for column in columns],
    )


def strength(data: Mapping[str, Any]) -> float | None:
    """The signed strength of an edge or node: its `effect`, else its `weight`; None where neither is a finite number."""
    for name in ("effect", "weight"):
        value = data.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if isinstance(value, np.number) and np.isfinite(value):
            return float(value)
    return None


def strongest(graph: nx.DiGraph, max_nodes: int) -> nx.DiGraph:
    """The subgraph of the `max_nodes` nodes with most |effect|, factors and readouts first, no layer left out.

    A node's strength is the largest |effect| of its edges, or its own where it has no edge with one. Half of the nodes are
    shared out evenly among the layers: wide layers spread an effect thinly, and a circuit drawn without them falls apart.
    """
    if len(graph) <= max_nodes:
        return graph

    def importance(node: Any) -> tuple[bool, float]:
        data = graph.nodes[node]
        edges = [*graph.in_edges(node, data=True), *graph.out_edges(node, data=True)]
        strengths = [abs(s) for _, _, edge in edges if (s := strength(edge)) is not None]
        return data.get("kind") in ("factor", "readout"), max(strengths, default=abs(strength(data) or 0.0))

    ranked = sorted(graph, key=importance, reverse=True)
    layers: dict[Any, list[Any]] = {}
    for node in ranked:
        layers.setdefault(graph.nodes[node].get("layer"), []).append(node)
    share = max_nodes // (2 * len(layers))
    first = [node for members in layers.values() for node in members[:share]]
    return graph.subgraph(list(dict.fromkeys([*first, *ranked]))[:max_nodes])


def column_title(graph: nx.DiGraph, nodes: Sequence[Any]) -> str:
    """What the nodes of one column have in common: their site, "factors" or "readouts"."""
    titles = dict.fromkeys(_title(graph.nodes[node]) for node in nodes)
    return " / ".join(title for title in titles if title)


def short_label(node: Any, data: Mapping[str, Any]) -> str:
    """A node's name in its column: its `label`, else its id without the site or kind that the column's title shows."""
    if isinstance(data.get("label"), str):
        return data["label"]
    text = str(node)
    for prefix in (data.get("site"), f"{data.get('kind')}:"):
        if isinstance(prefix, str) and text.startswith(prefix) and len(text) > len(prefix):
            return text[len(prefix) :]
    return text


def _title(data: Mapping[str, Any]) -> str:
    kind = data.get("kind")
    if kind in ("factor", "readout"):
        return f"{kind}s"
    return str(data.get("site") or data.get("stage") or "")


def _ranks(graph: nx.DiGraph) -> dict[Any, int]:
    layers = {node: data.get("layer") for node, data in graph.nodes(data=True)}
    if all(isinstance(layer, (int, float)) and math.isfinite(layer) for layer in layers.values()):
        order = {layer: i for i, layer in enumerate(sorted(set(layers.values())))}
        return {node: order[layer] for node, layer in layers.items()}
    components = nx.condensation(graph)
    ranks = {}
    for i, generation in enumerate(nx.topological_generations(components)):
        ranks.update({node: i for component in generation for node in components.nodes[component]["members"]})
    return ranks


def _least_crossings(
    columns: list[list[Any]], left: Mapping[Any, list[Any]], right: Mapping[Any, list[Any]]
) -> list[list[Any]]:
    columns = [list(column) for column in columns]
    best, fewest = [list(column) for column in columns], _crossings(columns, right)
    for sweep in range(_SWEEPS):
        neighbours, order = (left, columns) if sweep % 2 == 0 else (right, columns[::-1])
        place = {item: i for column in columns for i, item in enumerate(column)}
        for column in order:
            centre = {item: _mean([place[n] for n in neighbours.get(item, ())], place[item]) for item in column}
            column.sort(key=centre.__getitem__)
            place.update({item: i for i, item in enumerate(column)})
        crossings = _crossings(columns, right)
        if crossings < fewest:
            best, fewest = [list(column) for column in columns], crossings
    return best


def _crossings(columns: Sequence[Sequence[Any]], right: Mapping[Any, list[Any]]) -> int:
    place = {item: i for column in columns for i, item in enumerate(column)}
    total = 0
    for column in columns:
        seen: list[int] = []
        for item in column:
            ends = sorted(place[target] for target in right.get(item, ()))
            total += sum(len(seen) - bisect.bisect_right(seen, end) for end in ends)
            for end in ends:
                bisect.insort(seen, end)
    return total


def _rows(
    columns: Sequence[Sequence[Any]], left: Mapping[Any, list[Any]], right: Mapping[Any, list[Any]]
) -> dict[Any, float]:
    row: dict[Any, float] = {}
    offsets = []
    for column in columns:
        places = [0.0]
        for a, b in itertools.pairwise(column):
            both_nodes = not isinstance(a, _Waypoint) and not isinstance(b, _Waypoint)
            places.append(places[-1] + (_NODE_GAP if both_nodes else _WAYPOINT_GAP))
        offsets.append(places)
        row.update({item: place - places[-1] / 2 for item, place in zip(column, places, strict=False)})
    for sweep in range(2 * _SWEEPS):
        for i in range(len(columns)) if sweep % 2 == 0 else reversed(range(len(columns))):
            wished = []
            for item, place in zip(columns[i], offsets[i], strict=False):
                beside = [row[neighbour] for neighbour in (*left.get(item, ()), *right.get(item, ()))]
                wished.append(_mean(beside, row[item]) - place)
            row.update(
                {
                    item: value + place
                    for item, value, place in zip(columns[i], _nondecreasing(wished), offsets[i], strict=False)
                }
            )
    return row


def _mean(values: Sequence[int | float], otherwise: int | float) -> int | float:
    return sum(values) / len(values) if values else otherwise


def _nondecreasing(values: Sequence[int | float]) -> list[float]:
    """The closest non-decreasing sequence in least squares (pool adjacent violators)."""
    blocks: list[tuple[int | float, int]] = []
    for value in values:
        total, size = value, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / size:
            previous, count = blocks.pop()
            total, size = total + previous, size + count
        blocks.append((total, size))
    return [total / size for total, size in blocks for _ in range(size)]
