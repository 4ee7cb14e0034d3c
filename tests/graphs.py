"""A small circuit that the tests of graph files, pictures and pages share."""

import itertools

import networkx as nx
import numpy as np


def circuit():
    """factor -> encoder -> latent -> decoder -> readout, with a skip edge and what real circuits carry."""
    graph = nx.DiGraph(schema="nnsight-vae/circuit@1", method="ig", provenance={"seed": 0, "pairs": [1, 2]})
    for layer, (node, kind, site, index) in enumerate(
        [
            ("factor:angle", "factor", None, None),
            ("encoder.4[7]", "unit", "encoder.4", 7),
            ("latent.z[3]", "unit", "latent.z", 3),
            ("decoder.0[1]", "unit", "decoder.0", 1),
            ("readout:angle", "readout", None, None),
        ]
    ):
        graph.add_node(node, kind=kind, site=site, index=index, layer=layer, effect=0.5 - layer / 3)
    nodes = list(graph)
    for source, target in [*itertools.pairwise(nodes), (nodes[1], nodes[3])]:
        graph.add_edge(source, target, effect=-0.25, ci_low=-0.5, ci_high=0.1, estimand="PNIE", p=np.float32(0.01))
    graph.edges[nodes[0], nodes[1]].update(effect=1.5, ci_low=1.0, ci_high=2.0, q=None)
    return graph
