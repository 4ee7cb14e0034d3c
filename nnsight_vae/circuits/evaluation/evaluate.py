"""Is a circuit enough? Runs of the model in which only the circuit's edges carry what is to be explained."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.evaluation.curves import checked_sizes, sizes_for
from nnsight_vae.circuits.evaluation.edge_sets import Ablation, EdgeSet, EdgeSets, Progress, checked_circuit, found_on
from nnsight_vae.circuits.evaluation.faithfulness_result import Faithfulness
from nnsight_vae.circuits.evaluation.generative import generative_scores
from nnsight_vae.circuits.evaluation.rankings import Baseline, by_baseline, check_baselines, strongest_first, the_rest
from nnsight_vae.circuits.scoring.edges import EdgeScores
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
    baselines: Sequence[Baseline] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Faithfulness:
    """How faithful a circuit is to the model: any set of edges costs one forward pass.

    Pairs other than those the circuit was found on give an honest number. With `scores` and `baselines` the result has all that a
    figure of a circuit shows: its curve and areas with their intervals, beside those of rankings that know nothing of effects.

    Args:
        vae: the model.
        circuit: from `extract_circuit`, or any graph over the same node ids; the attribute `share` (else `effect`) of its
            edges orders the curve.
        pairs: with the factor of the circuit.
        readout: with the targets of the circuit. Where it has several, the circuit of all of them runs, so the score of each counts
            edges that are there for another; extract and evaluate one target by itself (`readout["angle"]`) where that matters.
        ablation: what edges outside the circuit carry: what they carried in the `base` run (the circuit alone carries the
            change from base to source), their `mean` over the bases, or `zero`. `edge_sets` says it precisely; numbers
            under different ablations answer different questions and cannot be compared.
        reference: images `[r, *image]` over which `mean` is taken; None: the pairs' bases.
        scores: of all edges, from `score_edges`; ranks the rest of the model after the circuit's edges, so that the curve goes
            up to the whole model, and the areas `cpr` and `cmd` are defined.
        sizes: numbers of edges of the curve; None: eight within the circuit, and with `scores` MIB's shares of all edges;
            `()`: no curve. With `scores` the whole model is always the last.
        baselines: rankings of all edges whose curves, of the same sizes, are drawn beside it: `weight`, `correlation`, and `random`,
            the mean of five orders drawn at random. They need `scores`.
        seed: of the random orders.
        progress: called with (done, total), counted in sets of edges x pairs.

    Returns: faithfulness of the circuit, of its nodes and of the rest for every target, and the curve; None with a reason
        where the total effect is not clear of 0.

    Raises:
        CircuitError: the graph has an edge that this model does not have, or is no circuit; sizes out of range, or baselines that
            are unknown or without scores.
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
    check_baselines(baselines, scores)
    sets = EdgeSets.of(vae, pairs, readout, ablation, reference)
    own = sets.set_of(circuit.edges)
    order = strongest_first(circuit, sets)
    if scores is not None:
        order += the_rest(scores, sets, own)
    whole = {len(order)} if scores is not None else set()
    chosen = (
        sizes_for(int(own.sum()), len(own), scores is not None) if sizes is None else checked_sizes(sizes, len(order))
    )
    chosen = tuple(sorted({*chosen, *whole}))
    orders = {"": [order]} | {
        name: list(by_baseline(name, scores, sets, seed)) for name in baselines if scores is not None
    }
    asked = [own, sets.between(set(circuit)), sets.rest_of(own)]
    asked += [_first(size, each, len(own)) for drawn in orders.values() for each in drawn for size in chosen]
    readings = sets.read(asked, progress)
    circuit_effect, nodes, complement = readings.effects[:3]
    shape = (len(chosen), *readings.total.shape)
    curves, start = {}, 3
    for name, drawn in orders.items():
        stop = start + len(drawn) * len(chosen)
        curves[name] = readings.effects[start:stop].reshape(len(drawn), *shape).mean(axis=0)
        start = stop
    options = {"ablation": ablation, "reference": None if reference is None else len(reference)}
    return Faithfulness(
        circuit_effect,
        nodes,
        complement,
        readings.total,
        chosen,
        curves.pop(""),
        tuple(readout.names),
        int(own.sum()),
        len(own),
        ablation,
        *pairs.cluster_ids,
        generative_scores(sets, own),
        provenance(vae, pairs, readout, options=options),
        curves,
        found_on(circuit, readings, readout),
    )


def _first(size: int, order: Sequence[int], n_edges: int) -> EdgeSet:
    chosen = np.zeros(n_edges, dtype=bool)
    chosen[list(order[:size])] = True
    return chosen
