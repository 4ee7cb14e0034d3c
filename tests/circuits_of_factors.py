"""Circuits of several factors between units of three sites, with given or drawn edges, and scores of two edges."""

from __future__ import annotations

from itertools import pairwise, product

import networkx as nx
import numpy as np

from nnsight_vae.circuits import EdgeScores
from nnsight_vae.circuits.wiring.nodes import Node

SIZES = {"encoder.0": 6, "latent.z": 4, "decoder.0": 8}
STAGES = dict(zip(SIZES, ("encoder", "latent", "decoder"), strict=True))
SITES = tuple(SIZES)
RECORD = {"nodes": SIZES, "edges": {f"{a} -> {b}": SIZES[a] * SIZES[b] for a, b in pairwise(SITES)}}


def circuit(
    edges: dict[tuple[str, str], float], readout: str, total: float = 1.0, record: dict | None = RECORD
) -> nx.DiGraph:
    """Edges with effects on one readout, between units `encoder.0[i]`, `latent.z[i]`, `decoder.0[i]`."""
    graph = nx.DiGraph(total_effect={readout: {"mean": total}})
    if record is not None:
        graph.graph["candidates"] = record
    for (u, v), effect in edges.items():
        for node in (u, v):
            site = None if node.startswith("factor") else node.split("[")[0]
            kind = "neuron" if site else "factor"
            graph.add_node(
                node, layer=1 + SITES.index(site) if site else 0, site=site, kind=kind, stage=STAGES.get(site, kind)
            )
        graph.add_edge(u, v, effect=effect, readout=readout, effects={readout: effect})
    return graph


def drawn_circuit(seed: int, readout: str, share: float = 0.4) -> nx.DiGraph:
    rng = np.random.default_rng(seed)
    edges = {(f"factor:{readout}", f"encoder.0[{i}]"): float(rng.normal()) for i in range(SIZES["encoder.0"])}
    for a, b in pairwise(SITES):
        reached = [i for i in range(SIZES[a]) if any(v == f"{a}[{i}]" for _, v in edges)]
        for i, j in product(reached, range(SIZES[b])):
            if rng.random() < share:
                edges[f"{a}[{i}]", f"{b}[{j}]"] = float(rng.normal())
    return circuit(edges, readout, total=2.0 + seed)


def scored(seed: int, readout: str, means: tuple[float, float], n: int = 60) -> EdgeScores:
    """Two edges encoder.0[0] -> latent.z[0], [1], of given mean effects, and the total that they sum to."""
    rng = np.random.default_rng(seed)
    values = (np.array(means)[:, None] + 0.5 * rng.normal(size=(2, n)))[:, None]
    kinds = (("encoder.0[0]", "encoder.0", 0, 0), ("latent.z[0]", "latent.z", 0, 1), ("latent.z[1]", "latent.z", 1, 1))
    nodes = tuple(Node(name, "neuron", site, index, STAGES[site], layer) for name, site, index, layer in kinds)
    return EdgeScores(
        values=values,
        sources=("encoder.0[0]",) * 2,
        targets=("latent.z[0]", "latent.z[1]"),
        nodes=nodes,
        readouts=(readout,),
        cut_of=np.zeros(2, dtype=int),
        cuts=("encoder.0 -> latent.z",),
        total=values.sum(axis=0),
        resolution=np.array([1e-6]),
        gaps=np.zeros((1, 1, n)),
        method="ig",
        estimand="TE share",
    )
