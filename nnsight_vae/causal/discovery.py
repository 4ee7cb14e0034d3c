"""Causal discovery on what a model infers: the PC algorithm on posterior means, beside its ceiling on the true factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float

from nnsight_vae.arguments import require
from nnsight_vae.causal.mapping import FactorMap, map_factors
from nnsight_vae.causal.model_effects import require_one_number_each
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import activations
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.dead import COLLAPSED
from nnsight_vae.vae import VAE

IndependenceTest = Literal["fisherz", "kci"]
_LEAST = 50  # images without which a test of independence means nothing


def discovered_graph(
    vae: VAE,
    data: Dataset,
    mapping: FactorMap | None = None,
    *,
    test: IndependenceTest = "fisherz",
    alpha: float = 0.01,
    n: int = 2000,
    seed: int = 0,
) -> nx.DiGraph:
    """The graph over the factors that causal discovery finds in the posterior means of the latents matched to them.

    Nothing is intervened on. The answer is at best the CPDAG of the world's graph, which `compare` holds it against; in it, an
    undirected edge is its two arcs. What the same algorithm finds on the true factors of the same images is kept beside it: no
    latents can be expected to do better than that ceiling.

    Latents that no factor is matched to, and collapsed ones (KL under .01 nats), are left out: what they have in common with others
    is noise. Their factors stay as nodes without edges.

    Args:
        vae: the model.
        data: a dataset with factors.
        mapping: which latent carries which factor; found with `map_factors` where not given.
        test: of independence: `"fisherz"`, partial correlation, blind to what is not monotone; `"kci"`, kernel-based, sees any
            dependence but takes minutes beyond a few hundred images.
        alpha: level of each test; PC gives no error rate over the edges.
        n: number of images.
        seed: of the images.

    Returns: `networkx.DiGraph` over the factors. Factors carry `latent` (the matched latent's index, or None where it was left
        out). The graph carries `estimand="discovery"`, `ceiling` (the arcs found on the true factors), `test`, `alpha` and data.

    Raises:
        DataError: causal-learn is not installed; fewer than 50 images, `alpha` outside (0, 1), an unknown test, latents that are codes or
            have positions; factors or latents that are constant or functions of each other.

    Source: Spirtes, Glymour and Scheines 2000, Causation, Prediction, and Search (PC); stable version: Colombo and Maathuis 2014,
        JMLR 15. KCI: Zhang et al. 2011, UAI, arXiv 1202.3775. Run by causal-learn.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> graph = discovered_graph(vae, data, nv.causal.map_factors(vae, data, n=32), n=100)
        >>> graph.graph["estimand"], sorted(graph) == sorted(data.factors)
        ('discovery', True)
    """
    _check(n, alpha, test)
    require(vae, data=data)
    require_one_number_each(vae, "discovered_graph")
    mapping = map_factors(vae, data, seed=seed) if mapping is None else mapping
    batch = data.sample(n, seed=seed)
    means = activations(vae, batch.images, ["latent.mu"])["latent.mu"].double().cpu().numpy()
    active = {
        f: k
        for f, k in mapping.assignment.items()
        if k is not None and (mapping.kl is None or mapping.kl[k] >= COLLAPSED)
    }
    factors = [data.factors.index(factor) for factor in mapping.factors]
    arcs = _arcs(means[:, list(active.values())], list(active), "latent of", alpha, test)
    ceiling = _arcs(batch.factors.double().numpy()[:, factors], mapping.factors, "factor", alpha, test)
    graph = nx.DiGraph(
        estimand="discovery",
        ceiling=[list(arc) for arc in ceiling],
        test=test,
        alpha=alpha,
        data=data.name,
        n=n,
        seed=seed,
        model=vae.fingerprint,
    )
    graph.add_nodes_from((factor, {"latent": active.get(factor)}) for factor in mapping.factors)
    graph.add_edges_from(arcs)
    return graph


def _check(n: int, alpha: float, test: str) -> None:
    if n < _LEAST or not 0 < alpha < 1:
        raise DataError(f"discovered_graph needs n >= {_LEAST} and 0 < alpha < 1, got {n} and {alpha}.")
    if test not in ("fisherz", "kci"):
        raise DataError(f"discovered_graph got test={test!r}; expected 'fisherz' or 'kci'.")


def _arcs(
    values: Float[np.ndarray, "n variable"], names: Sequence[str], what: str, alpha: float, test: IndependenceTest
) -> list[tuple[str, str]]:
    """Arcs of the CPDAG that PC finds, two for an undirected edge."""
    if values.shape[1] < 2:
        return []
    constant = [name for name, spread in zip(names, values.std(axis=0), strict=True) if not spread > 0]
    if constant:
        raise DataError(f"discovered_graph: the {what} {', '.join(constant)} is the same for all {len(values)} images.")
    if np.linalg.matrix_rank(np.corrcoef(values.T), tol=1e-8) < values.shape[1]:
        raise DataError(
            f"discovered_graph: of the {what} {', '.join(names)} one is a linear function of the others, so no test can tell "
            "whether they are independent given these."
        )
    return [(names[i], names[j]) for i, j in np.argwhere(_pc(values, alpha, test))]


def _pc(
    values: Float[np.ndarray, "n variable"], alpha: float, test: IndependenceTest
) -> Bool[np.ndarray, "variable variable"]:
    """Arcs `A[source, target]`; an edge that rules direct both ways, or neither, has both."""
    try:
        from causallearn.search.ConstraintBased.PC import pc
    except ImportError as error:
        raise DataError(
            "discovered_graph needs causal-learn: pip install 'nnsight-vae[discovery]' brings it."
        ) from error
    ends = pc(
        values, alpha, test, show_progress=False
    ).G.graph  # i -> j: ends[i, j] = -1 (tail), ends[j, i] = 1 (arrow)
    points_back = (ends == 1) & (ends.T == -1)
    return (ends != 0) & ~points_back
