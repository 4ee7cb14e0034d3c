"""A circuit for each factor, and all of them in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx

from nnsight_vae.circuits.graph.columns import circuits_by_factor
from nnsight_vae.circuits.graph.records import CIRCUIT_SCHEMA
from nnsight_vae.circuits.selection.search import extract_circuit
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout, select
from nnsight_vae.vae import VAE

_KEPT = ("kind", "site", "index", "stage", "layer")  # what a node is, whatever the factor


def extract_circuits(
    vae: VAE, pairs: Mapping[str, Pairs], readout: Readout | Mapping[str, Readout], **options: Any
) -> dict[str, nx.DiGraph]:
    """`extract_circuit` for each factor: what `circuits.overlap`, `specificity` and `separation` compare.

    Args:
        vae: the model.
        pairs: factor -> pairs that differ by it, e.g. `{name: data.pairs(name, n=64, seed=0) for name in data.factors}`.
        readout: of every factor, or factor -> its own. One that has a target of the factor's name is narrowed to it.
        options: as in `extract_circuit`.

    Returns: factor -> circuit, in the order of `pairs`.

    Raises:
        CircuitError: no pairs, pairs of another factor than their name says, or no readout for a factor; before any work. Else as
            `extract_circuit`.

    Example:
        >>> import torch
        >>> from nnsight_vae.circuits import union
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Region
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> dark = torch.rand(12, 1, 4, 4) / 2
        >>> halves = Region({"top": (slice(0, 2), slice(None)), "left": (slice(None), slice(0, 2))})
        >>> pairs = {name: Pairs(dark, dark + 0.5, factor=name) for name in halves.names}
        >>> circuits = extract_circuits(vae, pairs, halves)
        >>> union(circuits).graph["factors"]
        ['top', 'left']
    """
    if not isinstance(pairs, Mapping) or not pairs:
        raise CircuitError(f"pairs={pairs!r}: expected a mapping from at least one factor to its pairs.")
    readouts: dict[str, Readout] = {}
    for factor, own in pairs.items():
        if getattr(own, "factor", None) not in (None, factor):
            raise CircuitError(f"pairs[{factor!r}] are pairs of factor {own.factor!r}; name them by their own factor.")
        if isinstance(readout, Mapping) and factor not in readout:
            raise CircuitError(f"no readout for factor {factor!r}; there is one for {', '.join(map(repr, readout))}.")
        found = readout[factor] if isinstance(readout, Mapping) else readout
        readouts[factor] = select(found, factor) if factor in found.names else found
    return {factor: extract_circuit(vae, own, readouts[factor], **options) for factor, own in pairs.items()}


def union(circuits: Mapping[str, nx.DiGraph]) -> nx.DiGraph:
    """The circuits of several factors as one graph that says of each node and edge whose it is.

    Args:
        circuits: factor -> circuit, of one model; from `extract_circuits`.

    Returns: a DiGraph of the schema of circuits, which every export takes.

        - graph: schema, model, fingerprint, factors (their names), circuits (factor -> the attributes of its graph).
        - node: kind, site, index, stage, layer; factors (factor -> effect); effect, readout and factor of the one of largest
          share of its total effect.
        - edge: factors (factor -> share of its total effect), and the attributes it has in the circuit of largest share,
          with `factor`.

    Raises:
        CircuitError: not a mapping of circuits, or circuits of different models.
    """
    circuits = circuits_by_factor(circuits, 1, "union")
    models = {name: circuit.graph.get("fingerprint") for name, circuit in circuits.items()}
    if len(set(models.values())) > 1:
        raise CircuitError(f"these circuits are of different models (fingerprints {models}); take those of one.")
    first = next(iter(circuits.values())).graph
    graph = nx.DiGraph(
        schema=CIRCUIT_SCHEMA,
        model=first.get("model"),
        fingerprint=first.get("fingerprint"),
        factors=list(circuits),
        circuits={factor: dict(circuit.graph) for factor, circuit in circuits.items()},
    )
    nodes = {node: data for circuit in circuits.values() for node, data in circuit.nodes(data=True)}
    for node in sorted(nodes, key=lambda node: nodes[node].get("layer", 0)):
        own = {factor: circuit.nodes[node] for factor, circuit in circuits.items() if node in circuit}
        largest = max(own, key=lambda factor: _share(circuits[factor], own[factor]))
        graph.add_node(
            node,
            **{name: nodes[node].get(name) for name in _KEPT},
            factors={factor: data.get("effect") for factor, data in own.items()},
            effect=own[largest].get("effect"),
            readout=own[largest].get("readout"),
            factor=largest,
        )
    for edge in dict.fromkeys(edge for circuit in circuits.values() for edge in circuit.edges):
        own = {factor: circuit.edges[edge] for factor, circuit in circuits.items() if circuit.has_edge(*edge)}
        largest = max(own, key=lambda factor: abs(own[factor].get("share") or 0.0))
        shares = {factor: data.get("share") for factor, data in own.items()}
        graph.add_edge(*edge, **own[largest] | {"factors": shares, "factor": largest})
    return graph


def _share(circuit: nx.DiGraph, node: Mapping[str, Any]) -> float:
    total = circuit.graph.get("total_effect", {}).get(node.get("readout"), {}).get("mean")
    return abs((node.get("effect") or 0.0) / total) if total else 0.0
