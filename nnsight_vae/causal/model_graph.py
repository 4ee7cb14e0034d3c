"""The model's own graph over the factors, drawn from interventions on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from nnsight_vae.causal.mapping import FactorMap, map_factors, simultaneous_interval
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import baseline
from nnsight_vae.errors import DataError
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import networkx as nx

Through = Literal["latents", "inputs"]


def factor_graph(
    vae: VAE,
    data: Dataset,
    mapping: FactorMap | None = None,
    *,
    through: Through = "latents",
    n: int = 256,
    seed: int = 0,
    min_effect: float = 0.3,
    level: float = 0.95,
) -> nx.DiGraph:
    """The model's graph over the factors: an edge i -> j where intervening on i moves j in what the model decodes.

    through="latents"   do(z of i): the latent matched to i is moved across its aggregate posterior. This is what the *decoder*
                        does with the code; a VAE whose latents are independent knobs gives no edges.
    through="inputs"    do(factor i) in the data, descendants following the world's SCM, then encode and decode. This is what
                        the model *preserves* of the world; a faithful autoencoder gives the world's own graph.

    An edge stands where the lower simultaneous bound (level `level` over all pairs of factors) of the mean absolute effect is
    above `min_effect`. These are *total* effects: compare with the transitive closure of the true graph, which
    `nv.causal.compare` does when it reads the graph's `estimand`.

    Args:
        vae: the model.
        data: a dataset with factors.
        mapping: a map made before; found with `map_factors` where needed and not given.
        through: where factors are intervened on.
        n: number of images, or of pairs per factor.
        seed: of the images.
        min_effect: the smallest mean absolute effect that counts, in factor standard deviations.
        level: simultaneous coverage.

    Returns: `networkx.DiGraph` over the factors; edges carry `effect` (signed mean), `size`, `ci_low`, `ci_high`; factors carry
        `latent` (the matched latent's index or None); the graph carries `estimand="total"`, `through`, thresholds and data.

    Raises:
        DataError: an unknown `through`, or data without an SCM for `through="inputs"`.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> graph = factor_graph(vae, data, n=32)
        >>> sorted(graph) == sorted(data.factors), graph.graph["estimand"]
        (True, 'total')
    """
    import networkx as nx

    if through not in ("latents", "inputs"):
        raise DataError(f"factor_graph got through={through!r}; expected 'latents' or 'inputs'.")
    if through == "inputs" and type(data).counterfactual is Dataset.counterfactual:
        raise DataError(
            f"factor_graph(through='inputs') needs do(factor), and {data.name} has no structural causal model: images matched "
            "after the fact differ in more than the factor and its effects. Use through='latents'."
        )
    graph = nx.DiGraph(
        estimand="total",
        through=through,
        data=data.name,
        n=n,
        seed=seed,
        min_effect=min_effect,
        level=level,
        model=vae.fingerprint,
    )
    if through == "latents":
        mapping = (
            map_factors(vae, data, n=n, seed=seed, min_effect=min_effect, level=level) if mapping is None else mapping
        )
        graph.add_nodes_from((factor, {"latent": mapping.assignment[factor]}) for factor in mapping.factors)
        coded = vae.adapter.codebook is not None  # signed effects of different codes would cancel
        effects = mapping.magnitude if coded else mapping.effects.values
        rows = {factor: effects[k] for factor, k in mapping.assignment.items() if k is not None}
        names = mapping.factors
    else:
        readout = data.readout()
        names = tuple(readout.names)
        graph.add_nodes_from(names)
        rows = {factor: _input_effects(vae, data, factor, readout, n, seed) for factor in names}
    _add_edges(graph, names, rows, min_effect, level)
    return graph


def _input_effects(
    vae: VAE, data: Dataset, factor: str, readout: Readout, n: int, seed: int
) -> Float[np.ndarray, "factor pair"]:
    """Readout of the reconstruction under do(factor) minus without, per pair."""
    pairs = data.pairs(factor, n, seed=seed, propagate=True)
    change = baseline(vae, pairs.source, readout) - baseline(vae, pairs.base, readout)
    return change.double().cpu().numpy().T


def _add_edges(
    graph: nx.DiGraph,
    names: tuple[str, ...],
    rows: dict[str, Float[np.ndarray, "factor example"]],
    min_effect: float,
    level: float,
) -> None:
    cells = [(cause, j) for cause in rows for j, effect in enumerate(names) if effect != cause]
    if not cells:
        return
    values = np.stack([rows[cause][j] for cause, j in cells])
    low, high = simultaneous_interval(np.abs(values), level)
    for (cause, j), effects, lower, upper in zip(cells, values, low, high, strict=True):
        if lower > min_effect:
            size = float(np.abs(effects).mean())
            graph.add_edge(
                cause, names[j], effect=float(effects.mean()), size=size, ci_low=float(lower), ci_high=float(upper)
            )
