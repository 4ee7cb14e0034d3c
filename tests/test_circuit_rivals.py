"""Random paths that a circuit is inflated by, in models in which some units lead nowhere."""

from __future__ import annotations

from types import SimpleNamespace

import networkx as nx
import numpy as np

from nnsight_vae.circuits.evaluation.random_circuits import Inflater


def test_a_random_path_never_ends_in_a_unit_that_nothing_reads() -> None:
    edges = [("f", "a"), ("f", "dead"), ("a", "b"), ("dead", "deader"), ("b", "r"), ("a", "c"), ("c", "r")]
    of = lambda name: SimpleNamespace(id=name)
    cuts = (SimpleNamespace(sources=[of("f")]), SimpleNamespace(targets=[of("r")]))
    own = np.array([edge in {("f", "a"), ("a", "b"), ("b", "r")} for edge in edges])
    inflater = Inflater(SimpleNamespace(edges=edges, cuts=cuts), own)
    rng = np.random.default_rng(0)
    for _ in range(30):
        inflated, without = inflater.draw(rng)
        assert {edges[i] for i in np.flatnonzero(inflated & ~own)} == {("a", "c"), ("c", "r")}
        assert nx.has_path(nx.DiGraph([edges[i] for i in np.flatnonzero(inflated)]), "c", "r")
        assert (inflated ^ without).sum() == 1
