"""The model's own graph over the factors, drawn from interventions on the world or on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import networkx as nx
import numpy as np
from jaxtyping import Float

from nnsight_vae.arguments import require
from nnsight_vae.causal import model_effects as effects
from nnsight_vae.causal.mapping import map_factors
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import DataError
from nnsight_vae.stats.significance import benjamini_yekutieli
from nnsight_vae.stats.skewness import mean_interval, one_sided_pvalues
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    from nnsight_vae.causal.mapping import FactorMap

Estimand = Literal["total", "direct"]
Through = Literal["latents", "inputs", "reencoded"]
_LEAST = 20  # images without which intervals mean nothing


def factor_graph(
    vae: VAE,
    data: Dataset,
    mapping: FactorMap | None = None,
    *,
    kind: Estimand = "total",
    through: Through = "latents",
    n: int = 256,
    seed: int = 0,
    min_effect: float = 0.3,
    q: float = 0.05,
) -> nx.DiGraph:
    """The model's graph over the factors: an edge i -> j where intervening on i moves j.

    Which graph is meant is said by `through`, where one intervenes and reads, and `kind`, what is held meanwhile:

    ```
    through      kind      do                                   read                  compare with
    "latents"    "total"   the latent matched to i moves across  j as it is decoded    the closure
                           its aggregate posterior
    "reencoded"  "total"   the same, then encode what is decoded the latent matched    the closure
                                                                 to j
    "inputs"     "total"   factor i in the world, its effects    j as it is decoded    the closure
                           following; then encode and decode
    "inputs"     "direct"  factor i in the world, all others but j as it is decoded    the true DAG
                           j held; then encode and decode
    ```

    "latents" is what the *decoder* does with the code, "reencoded" what the *encoder* takes that for. Latents that are
    independent knobs, as those of a plain VAE that has learned its factors perfectly, give no edge in either; edges stand where
    latents are entangled, or where the decoder carries on from cause to effect as the world does.
    "inputs" is what the model *preserves* of the world: a faithful autoencoder gives the closure of the world's graph. Its direct
    form is of controlled direct effects: j follows its own mechanism, with its own noise, and every other factor keeps the value it
    has in the image; a faithful autoencoder then gives the world's DAG itself. There is no direct form through latents: every
    other latent is held already, and what the other factors do in between cannot be.

    An edge stands where the mean absolute effect is above `min_effect`, by a two-sided test of each ordered pair of factors (t
    without its skewness) with Benjamini and Yekutieli's correction: of the edges drawn, at most a share `q` is false in
    expectation, however the pairs depend on each other. Edges are oriented by what was intervened on; both ways can stand, and
    the graph may be cyclic.

    Args:
        vae: the model.
        data: a dataset with factors.
        mapping: which latent carries which factor; found with `map_factors` where it is needed and not given.
        kind: "total", or "direct" with everything between held.
        through: where factors are intervened on and read.
        n: number of images, or of pairs per factor ("direct": per ordered pair of factors).
        seed: of the images.
        min_effect: the largest mean absolute effect that does not count, in factor standard deviations ("reencoded": in standard
            deviations of the latent's posterior mean over the images).
        q: false discovery rate of the edges.

    Returns: `networkx.DiGraph` over the factors. Edges carry `effect` (signed mean), `size` (mean absolute effect), `q` (the
        adjusted p-value) and `ci_low`, `ci_high`, bounds of `size` such that an edge stands where `ci_low > min_effect`, and that a
        share of at most `q` of them fails in expectation. Factors carry `latent` (the matched latent's index or None) where
        latents are moved. The graph carries `estimand` (the kind, which `compare` reads), `sizes` (cause -> effect -> size, of all
        pairs that could be tested), `through`, thresholds and data.

    Raises:
        DataError: an unknown `through` or `kind`, direct effects through latents, thresholds out of range, fewer than 20 images,
            data without an SCM for `through="inputs"`, or latents that are codes or have positions for `through="reencoded"`.

    Source: controlled direct effect: Pearl 2001, UAI, definition 1. FDR and the bounds: Benjamini and Yekutieli 2001, Ann. Stat. 29
        and 2005, J. Am. Stat. Assoc. 100.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> graph = factor_graph(vae, data, n=32)
        >>> sorted(graph) == sorted(data.factors), graph.graph["estimand"]
        (True, 'total')
    """
    _check(data, kind, through, n, min_effect, q)
    require(vae, data=data)
    graph = nx.DiGraph(
        estimand=kind,
        through=through,
        data=data.name,
        n=n,
        seed=seed,
        min_effect=min_effect,
        q=q,
        model=vae.fingerprint,
    )
    if through == "inputs":
        readout = data.readout()
        graph.add_nodes_from(readout.names)
        measured = effects.total_effects if kind == "total" else effects.direct_effects
        _add_edges(graph, measured(vae, data, readout, n, seed))
        return graph
    if through == "reencoded":
        effects.require_one_number_each(vae, "factor_graph(through='reencoded')")
    mapping = map_factors(vae, data, n=n, seed=seed, min_effect=min_effect) if mapping is None else mapping
    graph.add_nodes_from((factor, {"latent": mapping.assignment[factor]}) for factor in mapping.factors)
    if through == "latents":
        _add_edges(graph, effects.decoded_effects(vae, mapping))
    else:
        _add_edges(graph, effects.reencoded_effects(vae, data, mapping, n, seed))
    return graph


def _check(data: Dataset, kind: str, through: str, n: int, min_effect: float, q: float) -> None:
    if through not in ("latents", "inputs", "reencoded"):
        raise DataError(f"factor_graph got through={through!r}; expected 'latents', 'inputs' or 'reencoded'.")
    if kind not in ("total", "direct"):
        raise DataError(
            f"factor_graph got kind={kind!r}; expected 'total' or 'direct'. For causal discovery see discovered_graph."
        )
    if kind == "direct" and through != "inputs":
        raise DataError(
            f"factor_graph(kind='direct', through={through!r}): direct effects need the other factors held, and moving a latent "
            "holds the other latents only. Use through='inputs', or kind='total'."
        )
    if n < _LEAST or not min_effect > 0 or not 0 < q < 1:
        raise DataError(
            f"factor_graph needs n >= {_LEAST}, min_effect > 0 and 0 < q < 1, got {n}, {min_effect} and {q}."
        )
    if through == "inputs" and getattr(type(data), "counterfactual", None) is Dataset.counterfactual:
        raise DataError(
            f"factor_graph(through='inputs') needs do(factor), and {data.name} has no structural causal model: images matched "
            "after the fact differ in more than the factor and its effects. Use through='latents'."
        )


def _add_edges(graph: nx.DiGraph, measured: effects.PairEffects) -> None:
    sizes: dict[str, dict[str, float]] = {}
    for (cause, effect), values in measured.items():
        sizes.setdefault(cause, {})[effect] = float(np.abs(values).mean())
    graph.graph["sizes"] = sizes
    if not measured:
        return
    signed = np.stack(list(measured.values()))
    adjusted, low, high = _tested(np.abs(signed), graph.graph["min_effect"], graph.graph["q"])
    for k, (cause, effect) in enumerate(measured):
        if adjusted[k] <= graph.graph["q"]:
            graph.add_edge(
                cause,
                effect,
                effect=float(signed[k].mean()),
                size=sizes[cause][effect],
                ci_low=float(low[k]),
                ci_high=float(high[k]),
                q=float(adjusted[k]),
            )


def _tested(
    sizes: Float[np.ndarray, "pair example"], min_effect: float, q: float
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Adjusted two-sided p-values of "the mean is at most `min_effect`", and bounds that hold for the selected at rate `q`."""
    p = np.minimum(2 * one_sided_pvalues(sizes, min_effect)[0], 1.0)
    adjusted = benjamini_yekutieli(p)
    m = len(sizes)
    each = max(int((adjusted <= q).sum()), 1) * q / (m * np.sum(1 / np.arange(1, m + 1)))
    return adjusted, *mean_interval(sizes, 1 - each)
