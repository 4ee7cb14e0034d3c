"""The three ways to a circuit: a rule on the scores, taking edges away from the running model, and patching what a screen let through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.graph.columns import size_of_model
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.scoring.methods import Direction
from nnsight_vae.circuits.scoring.scores import score_edges
from nnsight_vae.circuits.selection.circuit_graph import Found
from nnsight_vae.circuits.selection.evidence import Evidence
from nnsight_vae.circuits.selection.greedy import Greedy
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.circuits.selection.pruning import Prune
from nnsight_vae.circuits.selection.rules import FDR, Rule
from nnsight_vae.circuits.selection.screening import Screen
from nnsight_vae.circuits.selection.trials import Trials
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

Selection = Rule | Prune | Greedy | Screen
Progress = Callable[[int, int], None]

_RESAMPLES = 100  # of selection by scores, where each takes a fraction of a second
_NO_PATH = "the edges that were chosen form no path from the factor to this readout: choose more (a wide layer spreads the effect)"
_NO_EDGE = "no edge passes the test; few independent pairs (clusters) cannot tell one from chance among so many"
_ANY = FDR(min_share=0.0)  # the test of edges that were not selected by one


def by_rule(
    rule: Rule, scores: EdgeScores, resamples: int | None, seed: int, everything: EdgeScores | None = None
) -> Found:
    """Select by scores; `everything`: scores of all edges, where these are of some."""
    everything = scores if everything is None else everything
    evidence = Evidence(scores, Paths.of(scores), size_of_model(everything), seed)
    test = rule if isinstance(rule, FDR) else rule.among
    p, q = test.adjusted(evidence)
    kept = rule.choose(evidence)
    resamples = _RESAMPLES if resamples is None else resamples
    stability = None
    if resamples and evidence.tested.any():
        stability = np.mean([rule.choose(again) for again in evidence.resampled(resamples)], axis=0)
    n_significant = int((evidence.tested & (q <= test.q)).sum())
    return Found(
        evidence, kept, p, q, stability, _record(rule, evidence, kept, n_significant, resamples, {}), everything
    )


def trimmed(
    select: Prune | Greedy, scores: EdgeScores, sets: EdgeSets, resamples: int, seed: int, progress: Progress | None
) -> Found:
    """Take edges away from the model, one target after another."""
    evidence = Evidence(scores, Paths.of(scores), len(scores), seed)
    p, q = _ANY.adjusted(evidence)
    kept, notes = np.zeros(evidence.mean.shape, dtype=bool), {}
    stability = np.zeros(kept.shape) if resamples else None
    start = evidence.paths.on_paths(evidence.tested)
    if isinstance(select, Greedy) and select.among is not None:
        start = select.among.choose(evidence)
    trials, everyone = Trials(sets, scores), np.ones(scores.n_pairs)
    for t in np.flatnonzero(start.any(0)).tolist():
        with _told(progress, f"searching the circuit of {scores.readouts[t]}", int(start[:, t].sum())) as tell:
            kept[:, t], notes[scores.readouts[t]] = select.trim(trials, start[:, t], t, everyone, tell)
        if stability is not None:
            for again in evidence.resampled(resamples):
                stability[:, t] += select.trim(trials, start[:, t], t, again.weights)[0] / resamples
    n_significant = int((evidence.tested & (q <= _ANY.q)).sum())
    return Found(
        evidence, kept, p, q, stability, _record(select, evidence, kept, n_significant, resamples, notes), scores
    )


def screened(
    select: Screen,
    scores: EdgeScores,
    vae: VAE,
    pairs: Pairs,
    readout: Readout,
    direction: Direction,
    resamples: int | None,
    seed: int,
    progress: Progress | None,
) -> Found:
    """Patch the edges that the scores let through and a sample of the others, and select among these."""
    first, sampled = select.chosen(scores, seed)
    edges = [(scores.sources[e], scores.targets[e]) for e in np.sort(np.concatenate([first, sampled]))]
    exact = score_edges(
        vae, pairs, readout, method="exact", direction=direction, edges=edges, seed=seed, progress=progress
    )
    let_through = {(scores.sources[e], scores.targets[e]) for e in first}
    of_screen = np.array([edge in let_through for edge in zip(exact.sources, exact.targets, strict=True)])
    found = by_rule(select.then, exact, resamples, seed, scores)
    alone = _rows(exact, of_screen)
    chosen = select.then.choose(Evidence(alone, Paths.of(alone), len(scores), seed))
    size = np.abs(exact.mean())
    notes = {
        name: select.bounds(size[of_screen, t], size[~of_screen, t], chosen[:, t], len(scores))
        for t, name in enumerate(scores.readouts)
        if name not in found.evidence.left_out
    }
    n = found.record["n_significant"], found.record["resamples"]
    return replace(found, record=_record(select, found.evidence, found.kept, *n, notes))


def _rows(scores: EdgeScores, which: Bool[np.ndarray, " edge"]) -> EdgeScores:
    """The scores of some edges."""
    sources, targets = (
        tuple(np.array(ends, dtype=object)[which].tolist()) for ends in (scores.sources, scores.targets)
    )
    return replace(
        scores,
        values=scores.values[which],
        sources=sources,
        targets=targets,
        cut_of=scores.cut_of[which],
        beside={},
        parts={},
    )


def _record(
    select: Selection,
    evidence: Evidence,
    kept: Bool[np.ndarray, "edge target"],
    n_significant: int,
    resamples: int,
    notes: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """How the search went; JSON data."""
    targets = {
        name: {"n_edges": int(kept[:, t].sum())}
        | notes.get(name, {})
        | ({} if kept[:, t].any() else {"reason": _NO_PATH if n_significant else _NO_EDGE})
        for t, name in enumerate(evidence.scores.readouts)
        if name not in evidence.left_out
    }
    return {
        "strategy": repr(select),
        "seed": evidence.seed,
        "n_tests": evidence.n_tests,
        "n_significant": n_significant,
        "resamples": resamples,
        "targets": targets,
    }


@contextmanager
def _told(progress: Progress | None, what: str, total: int) -> Iterator[Progress | None]:
    """The caller's function, or a bar where a person looks on."""
    if progress is not None:
        yield progress
        return
    with progress_bar(what, total) as advance:
        shown = 0

        def tell(done: int, total: int) -> None:
            nonlocal shown
            if advance is not None:
                advance(done - shown)
            shown = done

        yield tell
