"""Where the nodes and edges of a circuit go on the page: columns by layer, few crossings, long edges routed around."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import networkx as nx

from nnsight_vae.circuits.drawing.prominence import prominence

_SWEEPS = 12
NODE_GAP, WAYPOINT_GAP = 1.0, 0.6  # rows between neighbours in a column

_LEAST_PULL, _CENTRE_PULL = (
    0.02,
    0.1,
)  # of an edge without effect, and to the middle, beside 1 of the strongest of a layer

Point = tuple[float, float]
_Neighbours = defaultdict[Any, list[tuple[Any, float]]]


class Waypoint(NamedTuple):
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
        stacks: the same with the `Waypoint`s of passing edges among them.
    """

    positions: dict[Any, Point]
    routes: dict[tuple[Any, Any], list[Point]]
    columns: list[list[Any]]
    stacks: list[list[Any]]


def layered(graph: nx.DiGraph) -> Placement:
    """Lay a graph out in columns by the node attribute `layer`, or by longest path where a node has none.

    Cycles are allowed: nodes of a cycle share a column when there are no layers. Columns are ordered by barycentre
    sweeps (the sweep with fewest crossings is kept), then each row is set as close to its neighbours as the gaps allow.
    Strong edges pull more than weak ones: where weak edges are hidden, what is left is in order.

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
    left: _Neighbours = defaultdict(list)
    right: _Neighbours = defaultdict(list)
    pull = prominence(graph)
    chains: dict[tuple[Any, Any], list[Waypoint]] = {}
    for source, target in graph.edges:
        first, last = sorted((source, target), key=lambda node: rank[node])
        chain = [Waypoint(source, target, column) for column in range(rank[first] + 1, rank[last])]
        for waypoint in chain:
            columns[waypoint.column].append(waypoint)
        if rank[first] < rank[last]:
            stops = [first, *chain, last]
            for a, b in itertools.pairwise(stops):
                weight = _LEAST_PULL + pull[source, target]
                right[a].append((b, weight))
                left[b].append((a, weight))
        chains[source, target] = chain if first == source else chain[::-1]
    columns = _least_crossings(columns, left, right)
    row = _rows(columns, left, right)
    return Placement(
        positions={node: (float(rank[node]), row[node]) for node in graph},
        routes={edge: [(float(w.column), row[w]) for w in chain] for edge, chain in chains.items()},
        columns=[[item for item in column if not isinstance(item, Waypoint)] for column in columns],
        stacks=columns,
    )


def column_title(graph: nx.DiGraph, nodes: Sequence[Any]) -> str:
    """What the nodes of one column have in common: their site, "factors" or "readouts"."""
    titles = dict.fromkeys(_title(graph.nodes[node]) for node in nodes)
    return " / ".join(title for title in titles if title)


def column_labels(graph: nx.DiGraph, nodes: Sequence[Any]) -> list[str]:
    """Names of the nodes of one column: each is short as `short_label` has it, or longer where two would be called the same.

    Example:
        >>> graph = nx.DiGraph()
        >>> graph.add_node("latent.mu[0]", site="latent.mu")
        >>> graph.add_node("latent.logvar[0]", site="latent.logvar")
        >>> column_labels(graph, list(graph))
        ['mu[0]', 'logvar[0]']
    """
    labels = [short_label(node, graph.nodes[node]) for node in nodes]
    if len(set(labels)) == len(labels):
        return labels
    sites = [str(graph.nodes[node].get("site") or "") for node in nodes]
    return [
        site.rpartition(".")[2] + label if label.startswith("[") else label
        for site, label in zip(sites, labels, strict=True)
    ]


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


def _least_crossings(columns: list[list[Any]], left: _Neighbours, right: _Neighbours) -> list[list[Any]]:
    columns = [list(column) for column in columns]
    best, fewest = [list(column) for column in columns], _crossings(columns, right)
    for sweep in range(_SWEEPS):
        neighbours, order = (left, columns) if sweep % 2 == 0 else (right, columns[::-1])
        place = {item: i for column in columns for i, item in enumerate(column)}
        for column in order:
            centre = {item: _centre(neighbours.get(item, ()), place, place[item]) for item in column}
            column.sort(key=centre.__getitem__)
            place.update({item: i for i, item in enumerate(column)})
        crossings = _crossings(columns, right)
        if crossings < fewest:
            best, fewest = [list(column) for column in columns], crossings
    return best


def _crossings(columns: Sequence[Sequence[Any]], right: _Neighbours) -> float:
    """Sum over the crossings of two edges of the product of their pulls: strong edges may not cross, weak ones may."""
    place = {item: i for column in columns for i, item in enumerate(column)}
    total = 0.0
    for column, following in itertools.pairwise(columns):
        ended = _Sums(len(following))  # pulls of the edges from above, by where they end
        for item in column:
            edges = [(place[target], pull) for target, pull in right.get(item, ())]
            total += sum(pull * (ended.whole - ended.up_to(end)) for end, pull in edges)
            for end, pull in edges:
                ended.add(end, pull)
    return total


class _Sums:
    """Sums of the first entries of a list that changes. Source: Fenwick 1994, Software: Practice and Experience 24(3)."""

    def __init__(self, length: int) -> None:
        self._tree = [0.0] * (length + 1)
        self.whole = 0.0

    def add(self, place: int, value: float) -> None:
        self.whole += value
        place += 1
        while place < len(self._tree):
            self._tree[place] += value
            place += place & -place

    def up_to(self, place: int) -> float:
        total, place = 0.0, place + 1
        while place:
            total += self._tree[place]
            place -= place & -place
        return total


def _rows(columns: Sequence[Sequence[Any]], left: _Neighbours, right: _Neighbours) -> dict[Any, float]:
    row: dict[Any, float] = {}
    offsets = []
    for column in columns:
        places = [0.0]
        for a, b in itertools.pairwise(column):
            both_nodes = not isinstance(a, Waypoint) and not isinstance(b, Waypoint)
            places.append(places[-1] + (NODE_GAP if both_nodes else WAYPOINT_GAP))
        offsets.append(places)
        row.update({item: place - places[-1] / 2 for item, place in zip(column, places, strict=False)})
    for sweep in range(2 * _SWEEPS):
        for i in range(len(columns)) if sweep % 2 == 0 else reversed(range(len(columns))):
            wished = []
            for item, place in zip(columns[i], offsets[i], strict=False):
                beside = (*left.get(item, ()), *right.get(item, ()))
                pull = sum(weight for _, weight in beside) + _CENTRE_PULL
                wished.append(sum(row[other] * weight for other, weight in beside) / pull - place)
            row.update(
                {
                    item: value + place
                    for item, value, place in zip(columns[i], _nondecreasing(wished), offsets[i], strict=False)
                }
            )
    return row


def _centre(
    neighbours: Sequence[tuple[Any, float]], place: Mapping[Any, int | float], otherwise: int | float
) -> int | float:
    """Where the neighbours are, on average, each with the weight of its edge."""
    weight = sum(pull for _, pull in neighbours)
    return sum(place[item] * pull for item, pull in neighbours) / weight if neighbours else otherwise


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
