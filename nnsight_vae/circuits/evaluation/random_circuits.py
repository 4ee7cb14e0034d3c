"""Random rivals of a circuit: of its shape, or the circuit with a random path more."""

from __future__ import annotations

import networkx as nx
import numpy as np

from nnsight_vae.circuits.evaluation.edge_sets import EdgeSet, EdgeSets

_TRIES = 100


def random_like(sets: EdgeSets, circuit: EdgeSet, rng: np.random.Generator) -> EdgeSet:
    """A random set with as many edges in every cut as the circuit, into as many nodes, each from a node already reached.

    Edges drawn all over a cut would hardly ever meet those of the next one, and any circuit beats what carries nothing.
    Where that leaves too few edges, all of them are taken, and the others drawn from those into any node, then from any.

    Args:
        sets: the model.
        circuit: its edges.
        rng: drawn from.
    """
    chosen = np.zeros_like(circuit)
    ends = np.array(sets.edges, dtype=object)
    reached = {source for source, _ in ends[sets.cut_of == 0]}
    for cut in range(len(sets.cuts)):
        in_cut = np.flatnonzero(sets.cut_of == cut)
        own = in_cut[circuit[in_cut]]
        open_ = in_cut[[source in reached for source, _ in ends[in_cut]]]
        goals = sorted({target for _, target in ends[open_]})
        kept = set(rng.permutation(goals)[: len({target for _, target in ends[own]})])
        pool = open_[[target in kept for _, target in ends[open_]]]
        drawn = np.zeros(0, dtype=np.intp)
        for wider in (pool, open_, in_cut):
            more = rng.permutation(np.setdiff1d(wider, drawn))[: len(own) - len(drawn)]
            drawn = np.concatenate([drawn, more])
        chosen[drawn] = True
        reached |= {target for _, target in ends[drawn]}
    return chosen


class Inflater:
    """Adds random paths from the factor to the readouts to a circuit."""

    def __init__(self, sets: EdgeSets, circuit: EdgeSet) -> None:
        self.sets, self.circuit = sets, circuit
        graph = nx.DiGraph(sets.edges)
        sinks = {cut_target.id for cut_target in sets.cuts[-1].targets}
        alive = sinks.union(*(nx.ancestors(graph, sink) for sink in sinks if sink in graph))
        self.sinks, self.start = sinks, sets.cuts[0].sources[0].id
        self.onward = {node: [v for v in graph.successors(node) if v in alive] for node in graph}
        self.index = {edge: i for i, edge in enumerate(sets.edges)}

    def draw(self, rng: np.random.Generator) -> tuple[EdgeSet, EdgeSet] | None:
        """The circuit with a random path more, and that without one step of it that is new; None where no path is new.

        The path goes from node to node at random and ends in every readout; that end is one step.
        """
        for _ in range(_TRIES):
            steps = [step for step in self._path(rng) if not self.circuit[step].all()]
            if steps:
                inflated, without = self.circuit.copy(), None
                for step in steps:
                    inflated[step] = True
                step = steps[rng.integers(len(steps))]
                without = inflated.copy()
                without[[i for i in step if not self.circuit[i]]] = False
                return inflated, without
        return None

    def _path(self, rng: np.random.Generator) -> list[list[int]]:
        node, steps = self.start, []
        while self.onward.get(node):
            to = self.onward[node]
            ends = [v for v in to if v in self.sinks]
            if ends and len(ends) == len(to):
                steps.append([self.index[node, v] for v in ends])
                break
            after = to[rng.integers(len(to))]
            steps.append([self.index[node, after]])
            node = after
        return steps
