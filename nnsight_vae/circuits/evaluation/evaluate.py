"""Is a circuit enough? Runs of the model in which only the circuit's edges carry what is to be explained."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.evaluation.curves import checked_sizes, sizes_for
from nnsight_vae.circuits.evaluation.edge_sets import Ablation, EdgeSets, Progress, checked_circuit
from nnsight_vae.circuits.evaluation.faithfulness_result import Faithfulness
from nnsight_vae.circuits.evaluation.generative import generative_scores
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE


def faithfulness(
    vae: VAE,
    circuit: nx.DiGraph,
    pairs: Pairs,
    readout: Readout,
    *,
    ablation: Ablation = "base",
    reference: Float[Tensor, "r *image"] | None = None,
    scores: EdgeScores | None = None,
    sizes: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Faithfulness:
    """How faithful a circuit is to the model: any set of edges costs one forward pass.

    Pairs other than those the circuit was found on give an honest number.

    Args:
        vae: the model.
        circuit: from `extract_circuit`, or any graph over the same node ids; the attribute `share` (else `effect`) of its
            edges orders the curve.
        pairs: with the factor of the circuit.
        readout: with the targets of the circuit.
        ablation: what edges outside the circuit carry: what they carried in the `base` run (the circuit alone carries the
            change from base to source), their `mean` over the bases, or `zero`. `edge_sets` says it precisely; numbers
            under different ablations answer different questions and cannot be compared.
        reference: images `[r, *image]` over which `mean` is taken; None: the pairs' bases.
        scores: of all edges, from `score_edges`; ranks the rest of the model after the circuit's edges, so that the curve goes
            up to the whole model, and the areas `cpr` and `cmd` are defined.
        sizes: numbers of edges of the curve; None: eight within the circuit, and with `scores` MIB's shares of all edges;
            `()`: no curve. With `scores` the whole model is always the last.
        progress: called with (done, total), counted in sets of edges x pairs.

    Returns: faithfulness of the circuit, of its nodes and of the rest for every target, and the curve; None with a reason
        where the total effect is not clear of 0.

    Raises:
        CircuitError: the graph has an edge that this model does not have, or is no circuit; or sizes out of range.
        DataError: an unknown ablation, or a reference without use.

    Source: normalised faithfulness and completeness f(M without C) as in Marks et al. 2024 (arXiv 2403.19647); CPR and CMD as
        in Mueller et al. 2025 (MIB, 2504.13151); that scores hang on the ablation: Miller et al. 2024 (2407.08734).

    Example:
        >>> import torch
        >>> from nnsight_vae.circuits import Mass, extract_circuit
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Latents
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> pairs = Pairs(torch.zeros(12, 1, 4, 4), torch.rand(12, 1, 4, 4), factor="light")
        >>> circuit = extract_circuit(vae, pairs, Latents(2), select=Mass(1.0))
        >>> found = faithfulness(vae, circuit, pairs, Latents(2))
        >>> sorted(found.score) == ["latent.mu[0]", "latent.mu[1]"]
        True
    """
    checked_circuit(circuit)
    sets = EdgeSets.of(vae, pairs, readout, ablation, reference)
    own = sets.set_of(circuit.edges)
    order = _strongest_first(circuit, sets)
    if scores is not None:
        order += _rest(scores, sets, own)
    whole = {len(order)} if scores is not None else set()
    chosen = (
        sizes_for(int(own.sum()), len(own), scores is not None) if sizes is None else checked_sizes(sizes, len(order))
    )
    chosen = tuple(sorted({*chosen, *whole}))
    strongest = np.full(len(own), len(own))
    strongest[order] = np.arange(len(order))
    readings = sets.read(
        [own, sets.between(set(circuit)), sets.rest_of(own), *(strongest < size for size in chosen)], progress
    )
    circuit_effect, nodes, complement, *curve = readings.effects
    options = {"ablation": ablation, "reference": None if reference is None else len(reference)}
    return Faithfulness(
        circuit_effect,
        nodes,
        complement,
        readings.total,
        chosen,
        np.stack(curve) if curve else np.empty((0, *readings.total.shape)),
        tuple(readout.names),
        int(own.sum()),
        len(own),
        ablation,
        *pairs.cluster_ids,
        generative_scores(sets, own),
        provenance(vae, pairs, readout, options=options),
    )


def _strongest_first(circuit: nx.DiGraph, sets: EdgeSets) -> list[int]:
    """The circuit's edges by size relative to the largest of their cut: wide cuts spread the same effect over more edges."""
    size = {(a, b): abs(data.get("share", data.get("effect", 0.0)) or 0.0) for a, b, data in circuit.edges(data=True)}
    members = [i for i, edge in enumerate(sets.edges) if edge in size]
    return _ranked(members, np.array([size.get(edge, 0.0) for edge in sets.edges]), sets.cut_of)


def _rest(scores: EdgeScores, sets: EdgeSets, own: np.ndarray) -> list[int]:
    """The model's other edges by their scores, in the same way; with several targets by the largest share of a total effect."""
    scored = list(zip(scores.sources, scores.targets, strict=True))
    if set(scored) != set(sets.edges):
        raise CircuitError(
            f"scores= must score every edge of this model, pairs and readout ({len(sets.edges):,}), got {len(scored):,} edges, "
            f"{len(set(scored) & set(sets.edges)):,} of them this model's; make them with score_edges(vae, pairs, readout)."
        )
    mean, total = np.abs(scores.mean()), np.abs(scores.total.mean(axis=1))
    shares = np.divide(mean, total, out=np.zeros_like(mean), where=total > 0).max(axis=1)
    by_edge = dict(zip(scored, shares.tolist(), strict=True))
    return _ranked(np.flatnonzero(~own).tolist(), np.array([by_edge[edge] for edge in sets.edges]), sets.cut_of)


def _ranked(members: list[int], size: np.ndarray, cut_of: np.ndarray) -> list[int]:
    largest = np.zeros(int(cut_of.max()) + 1)
    np.maximum.at(largest, cut_of[members], size[members])
    return sorted(members, key=lambda i: -size[i] / (largest[cut_of[i]] or 1.0))
