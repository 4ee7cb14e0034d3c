"""From edge scores to a circuit: the edges that carry an effect for sure, pruned to the paths from factor to readout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float

from nnsight_vae.circuits.columns import candidates_of
from nnsight_vae.circuits.edges import EdgeScores
from nnsight_vae.circuits.methods import Direction, Method
from nnsight_vae.circuits.records import CIRCUIT_SCHEMA
from nnsight_vae.circuits.scores import score_edges
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.stats import intervals, significance
from nnsight_vae.stats.discovery import effect_pvalues, enough_flips
from nnsight_vae.vae import VAE

_ROUNDING = 1e-9  # relative slack of a cumulative sum
_BASELINES = ("weight", "random")


def extract_circuit(
    vae: VAE,
    pairs: Pairs,
    readout: Readout,
    *,
    method: Method = "ig",
    nodes: int = 8,
    direction: Direction = "noising",
    q: float = 0.05,
    mass: float = 0.9,
    min_effect: float = 0.0,
    top: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> nx.DiGraph:
    """The circuit that carries a factor's effect to a readout: `score_edges`, then `circuit_from`.

    Args:
        vae: the model.
        pairs: oriented pairs; two or more independent base inputs.
        readout: what effects are measured on. With several targets the graph is the union of a circuit per target.
        method: how edges are scored: `ig`, `exact` or `eap`.
        nodes: quadrature nodes of `ig`.
        direction: of `exact`.
        q: false discovery rate over all edges x targets.
        mass: share of each cut's summed |mean effect| that its strongest edges must hold; fewer edges are kept the lower it
            is. Every cut loses something, so the whole circuit carries less than this: see `circuits.faithfulness`.
        min_effect: smallest |mean effect| of interest, in units of the readout.
        top: at most this many edges; None: no cap.
        seed: of intervals and tests.
        progress: as in `score_edges`.

    Returns: a `networkx.DiGraph` as `circuit_from` describes.

    Raises:
        CircuitError, ReadoutError, DataError: as `score_edges` and `circuit_from`.

    Example:
        >>> import torch
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Latents
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> dark = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
        >>> circuit = extract_circuit(vae, Pairs(dark, dark, factor="light"), Latents(2))
        >>> len(circuit), circuit.graph["left_out"]["latent.mu[0]"]
        (0, 'no pair changes this readout by more than rounding')
    """
    if method in _BASELINES:
        raise CircuitError(f"method={method!r} is a baseline without effects to test; use 'ig', 'exact' or 'eap'.")
    _check_thresholds(q, mass, min_effect, top)
    scores = score_edges(
        vae, pairs, readout, method=method, nodes=nodes, direction=direction, seed=seed, progress=progress
    )
    return circuit_from(scores, q=q, mass=mass, min_effect=min_effect, top=top, seed=seed)


def circuit_from(
    scores: EdgeScores,
    *,
    q: float = 0.05,
    mass: float = 0.9,
    min_effect: float = 0.0,
    top: int | None = None,
    seed: int = 0,
) -> nx.DiGraph:
    """Select edges by false discovery rate and size, and keep those on a path from the factor to a readout.

    An edge is selected for a target if its sign-flip p-value over (clusters of) pairs, Benjamini-Hochberg adjusted over
    all edges x targets, is at most `q`, its |mean score| is at least `min_effect`, and it is one of the strongest edges of
    its cut, those that first hold the share `mass` of the cut's summed |mean score|. With `top`, the least of the
    selected edges (relative to the largest of their cut) go until at most `top` are left on paths.

    Args:
        scores: from `score_edges`.
        q: false discovery rate.
        mass: in (0, 1]; 1 keeps every edge that passes the other two.
        min_effect: in units of the readout.
        top: cap on the number of edges.
        seed: of intervals and tests.

    Returns: a DiGraph, nodes and edges in order from factor to readout.

        - graph: schema, estimand, method, model, pairs, readout, thresholds, total_effect (target -> mean, ci_low,
          ci_high), left_out (target -> why it has no circuit), cut_error (cut -> worst completeness error), n_candidates
          (edges scored), candidates (nodes: column -> number; edges: "column -> column" -> number), versions.
        - node: kind, site, index, stage, layer, effect (summed score of all edges into it, on the target `readout` of
          largest share; the total effect for a factor), readout.
        - edge: effect, ci_low, ci_high, p, q, share (of the total effect), estimand, method, all on the target `readout`
          on which its share is largest; effects (target -> mean, for the targets whose circuit it is in).

    Raises:
        CircuitError: a threshold out of range, or scores of a baseline.
        DataError: fewer than two independent pairs.
    """
    _check_thresholds(q, mass, min_effect, top)
    if scores.method in _BASELINES:
        raise CircuitError(f"these scores come from the baseline {scores.method!r} and hold no effects to test.")
    mean, totals = scores.mean(), scores.total.mean(axis=1)
    low, high = intervals.mean_interval(scores.total, scores.groups, scores.source_groups, seed=seed)
    left_out = {name: reason for t, name in enumerate(scores.readouts) if (reason := _undefined(scores, t, low, high))}
    live = np.array([name not in left_out for name in scores.readouts])
    least = np.maximum(_cutoffs(scores, np.abs(mean), mass), min_effect)

    tested = scores.applies & live[None]
    n_perm = enough_flips(int(tested.sum()), q)
    p, adjusted = np.ones(mean.shape), np.ones(mean.shape)
    p[tested] = effect_pvalues(scores.values[tested], scores.groups, scores.source_groups, n_perm=n_perm, seed=seed)
    adjusted[tested] = significance.benjamini_hochberg(p[tested])
    share = np.divide(mean, totals[None], out=np.zeros_like(mean), where=live[None] & (totals[None] != 0))
    selected = tested & (adjusted <= q) & (mean != 0) & (np.abs(mean) >= least[scores.cut_of])
    largest = np.stack([np.abs(mean[scores.cut_of == c]).max(axis=0) for c in range(len(scores.cuts))])
    strength = np.divide(np.abs(mean), largest[scores.cut_of], out=np.zeros_like(mean), where=selected)
    kept = _capped(scores, selected, strength, top)

    thresholds = {
        "q": q,
        "mass": mass,
        "min_effect": min_effect,
        "least_effect": {
            name: dict(zip(scores.cuts, least[:, t].tolist(), strict=True))
            for t, name in enumerate(scores.readouts)
            if live[t]
        },
        "top": top,
        "n_tests": int(tested.sum()),
        "n_selected": int(selected.any(1).sum()),
        "n_perm": n_perm,
        "seed": seed,
    }
    graph = nx.DiGraph(
        schema=CIRCUIT_SCHEMA,
        estimand=scores.estimand,
        method=scores.method,
        **scores.provenance,
        thresholds=thresholds,
        total_effect={
            name: {"mean": float(totals[t]), "ci_low": float(low[t]), "ci_high": float(high[t])}
            for t, name in enumerate(scores.readouts)
        },
        left_out=left_out,
        cut_error=_cut_errors(scores),
        n_candidates=len(scores),
        candidates=candidates_of(scores),
    )
    _add_nodes(graph, scores, mean, share, kept)
    _add_edges(graph, scores, mean, share, kept, p, adjusted, seed)
    return graph


def _cutoffs(
    scores: EdgeScores, size: Float[np.ndarray, "edge target"], mass: float
) -> Float[np.ndarray, "cut target"]:
    """Size of the weakest edge among the strongest of each cut that together hold the share `mass` of it."""
    cutoffs = []
    for c in range(len(scores.cuts)):
        falling = -np.sort(-size[scores.cut_of == c], axis=0)
        held = np.cumsum(falling, axis=0)
        last = (held < mass * held[-1] * (1 - _ROUNDING)).sum(axis=0).clip(max=len(falling) - 1)
        cutoffs.append(np.take_along_axis(falling, last[None], axis=0)[0])
    return np.stack(cutoffs)


def _undefined(scores: EdgeScores, t: int, low: np.ndarray, high: np.ndarray) -> str:
    if np.abs(scores.total[t]).mean() <= scores.resolution[t]:
        return "no pair changes this readout by more than rounding"
    if low[t] <= 0 <= high[t]:
        return f"the interval of its total effect, [{low[t]:.3g}, {high[t]:.3g}], contains 0"
    return ""


def _capped(
    scores: EdgeScores,
    selected: Bool[np.ndarray, "edge target"],
    strength: Float[np.ndarray, "edge target"],
    top: int | None,
) -> Bool[np.ndarray, "edge target"]:
    """The selected edges on paths; with a cap, of the largest set of strongest edges that fits under it."""
    kept = _on_paths(scores, selected)
    if top is None or kept.any(1).sum() <= top:
        return kept
    levels = np.unique(strength[kept])
    fits, too_many = len(levels), 0  # positions in `levels`: paths only grow as the level falls, so bisect
    best = np.zeros_like(kept)
    while fits - too_many > 1:
        middle = (fits + too_many) // 2
        candidate = _on_paths(scores, selected & (strength >= levels[middle]))
        if candidate.any(1).sum() <= top:
            fits, best = middle, candidate
        else:
            too_many = middle
    return best


def _on_paths(scores: EdgeScores, selected: Bool[np.ndarray, "edge target"]) -> Bool[np.ndarray, "edge target"]:
    """For each target, the selected edges on a path of selected edges from the factor to that target."""
    place = {node.id: i for i, node in enumerate(scores.nodes)}
    sources = np.array([place[s] for s in scores.sources], dtype=np.intp)
    targets = np.array([place[t] for t in scores.targets], dtype=np.intp)
    from_factor = np.zeros((len(scores.nodes), selected.shape[1]), dtype=bool)
    to_readout = np.zeros_like(from_factor)
    from_factor[sources[scores.cut_of == 0]] = True
    to_readout[targets[scores.cut_of == len(scores.cuts) - 1]] = True
    cuts = [np.flatnonzero(scores.cut_of == c) for c in range(len(scores.cuts))]
    for edges in cuts:
        np.logical_or.at(from_factor, targets[edges], selected[edges] & from_factor[sources[edges]])
    for edges in reversed(cuts):
        np.logical_or.at(to_readout, sources[edges], selected[edges] & to_readout[targets[edges]])
    return selected & from_factor[sources] & to_readout[targets]


def _cut_errors(scores: EdgeScores) -> dict[str, float | None]:
    """The worst completeness error of each cut over the targets; None where none is defined."""
    worst: dict[str, float | None] = {}
    for row in scores.completeness:
        before = worst.get(row.cut)
        worst[row.cut] = row.error if before is None else max(before, row.error or 0.0)
    return worst


def _add_nodes(
    graph: nx.DiGraph, scores: EdgeScores, mean: np.ndarray, share: np.ndarray, kept: Bool[np.ndarray, "edge target"]
) -> None:
    present = {end for e in np.flatnonzero(kept.any(1)) for end in (scores.sources[e], scores.targets[e])}
    place = {node.id: i for i, node in enumerate(scores.nodes)}
    into = np.zeros((2, len(scores.nodes), len(scores.readouts)))
    ends = np.array([place[t] for t in scores.targets], dtype=np.intp)
    np.add.at(into[0], ends, mean)
    np.add.at(into[1], ends, share)
    circuits: dict[str, np.ndarray] = {}
    for e in np.flatnonzero(kept.any(1)):
        for end in (scores.sources[e], scores.targets[e]):
            circuits[end] = circuits.get(end, False) | kept[e]
    for node in scores.nodes:
        if node.id not in present:
            continue
        effects, shares = into[:, place[node.id]]
        if node.kind == "factor":
            effects, shares = scores.total.mean(axis=1), np.ones(len(scores.readouts))
        t = int(np.where(circuits[node.id], np.abs(shares), -1.0).argmax())
        graph.add_node(
            node.id,
            kind=node.kind,
            site=node.site,
            index=node.index,
            stage=node.stage,
            layer=node.layer,
            effect=float(effects[t]),
            readout=scores.readouts[t],
        )


def _add_edges(
    graph: nx.DiGraph,
    scores: EdgeScores,
    mean: np.ndarray,
    share: np.ndarray,
    kept: Bool[np.ndarray, "edge target"],
    p: np.ndarray,
    adjusted: np.ndarray,
    seed: int,
) -> None:
    edges = np.flatnonzero(kept.any(1))
    if not len(edges):
        return
    best = np.where(kept[edges], np.abs(share[edges]), -1.0).argmax(1)
    low, high = intervals.mean_interval(scores.values[edges, best], scores.groups, scores.source_groups, seed=seed)
    for i, (e, t) in enumerate(zip(edges.tolist(), best.tolist(), strict=True)):
        attributes: dict[str, Any] = {
            "effect": float(mean[e, t]),
            "ci_low": float(low[i]),
            "ci_high": float(high[i]),
            "p": float(p[e, t]),
            "q": float(adjusted[e, t]),
            "share": float(share[e, t]),
            "readout": scores.readouts[t],
            "effects": {scores.readouts[k]: float(mean[e, k]) for k in np.flatnonzero(kept[e])},
            "estimand": scores.estimand,
            "method": scores.method,
        }
        graph.add_edge(scores.sources[e], scores.targets[e], **attributes)


def _check_thresholds(q: float, mass: float, min_effect: float, top: int | None) -> None:
    if not 0 < q < 1:
        raise CircuitError(f"q={q}: expected a false discovery rate in (0, 1).")
    if not 0 < mass <= 1:
        raise CircuitError(f"mass={mass}: expected a share in (0, 1].")
    if not 0 <= min_effect < float("inf"):
        raise CircuitError(f"min_effect={min_effect}: expected a size >= 0 in units of the readout.")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise CircuitError(f"top={top!r}: expected a positive number of edges, or None.")
