"""From a model to a circuit: score every edge, select some of them, keep what lies on a path from the factor to a readout."""

from __future__ import annotations

import networkx as nx

from nnsight_vae.circuits.checks import check_count
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.scoring.methods import BASELINES, At, Direction, Method
from nnsight_vae.circuits.scoring.scores import score_edges
from nnsight_vae.circuits.selection.circuit_graph import graph_of
from nnsight_vae.circuits.selection.finding import Progress, Selection, by_rule, screened, trimmed
from nnsight_vae.circuits.selection.pruning import Prune
from nnsight_vae.circuits.selection.rules import Mass, Rule, check_rule
from nnsight_vae.circuits.selection.screening import Screen
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

_PRUNE, _MASS = Prune(), Mass()


def extract_circuit(
    vae: VAE,
    pairs: Pairs,
    readout: Readout,
    *,
    select: Selection = _PRUNE,
    method: Method = "ig",
    nodes: int = 3,
    direction: Direction = "noising",
    at: At = "base",
    resamples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> nx.DiGraph:
    """The circuit that carries a factor's effect to a readout.

    Every edge is scored (`score_edges`), `select` chooses, and what lies on no path of chosen edges from the factor to the
    readout is dropped. Ways to choose, each a value that prints as it is written:

    - `Prune(deviation=.2)`: the smallest circuit found that does what the model does up to 20 % of the effect. Slower, and the one whose
      size means something: the others do not look at what is left of the effect once all the rest is gone.
    - `Mass(.9)`, `Mass(.9, level="nodes")`: the strongest edges (or nodes) that hold 90 % of every cut's effect.
    - `TopK(200)`: the strongest 200 edges.
    - `FDR(q=.05, min_share=.001)`: edges that carry more than 0.1 % of the total effect, at a false discovery rate.
    - `Greedy(tau=.01)`: ACDC, one forward pass an edge.
    - `Screen(.07)`: scores screen, patching one by one verifies, and a random sample bounds what that may have missed.

    Args:
        vae: the model.
        pairs: oriented pairs; two or more independent base inputs.
        readout: what effects are measured on. With several targets the graph is the union of a circuit per target.
        select: how edges are chosen.
        method: how edges are scored: `ig`, `exact`, `eap-act`, `eap` or `eap-ig`; with `Screen`, what screens (`eap-act` is nearest to patching).
        nodes: quadrature nodes of `ig` and `eap-ig`.
        direction: of `exact`, and of the verification of `Screen`.
        at: of `eap` and `eap-act`.
        resamples: bootstrap resamples of the pairs on which the selection is made again, for the `stability` of edges. None: 100
            where selection looks at scores only, and none for `Prune` and `Greedy`, where each is a whole new search.
        seed: of intervals, tests, samples and resamples.
        progress: called with (done, total), first while edges are scored, then while they are verified, pruned or visited; None: a
            bar on an interactive terminal.

    Returns: a `networkx.DiGraph` as `circuit_from` describes.

    Raises:
        CircuitError, ReadoutError, DataError: as `score_edges` and `circuit_from`.

    Example:
        >>> import torch
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Region
        >>> _ = torch.manual_seed(2)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> dark = torch.rand(12, 1, 4, 4) / 2
        >>> left = Region({"left": (slice(None), slice(0, 2))})
        >>> circuit = extract_circuit(vae, Pairs(dark, dark + 0.5, factor="light"), left)
        >>> circuit.graph["selection"]["strategy"], circuit.graph["n_candidates"]
        ('Prune(deviation=0.2, step=0.1)', 26)
        >>> circuit.graph["selection"]["targets"]["left"]["deviation"] <= 0.2
        True
    """
    if method in BASELINES:
        raise CircuitError(f"method={method!r} is a baseline without effects to test; use 'ig', 'exact' or 'eap-act'.")
    if not isinstance(select, Selection):
        raise CircuitError(
            f"select={select!r}: expected Prune(...), Mass(...), TopK(...), FDR(...), Greedy(...) or Screen(...), of "
            "nnsight_vae.circuits."
        )
    if isinstance(select, Screen) and method == "exact":
        raise CircuitError("Screen verifies by method='exact'; let it screen by 'eap-act', 'eap' or 'ig'.")
    _check_resamples(resamples)
    scores = score_edges(
        vae, pairs, readout, method=method, nodes=nodes, direction=direction, at=at, seed=seed, progress=progress
    )
    if isinstance(select, Screen):
        found = screened(select, scores, vae, pairs, readout, direction, resamples, seed, progress)
    elif isinstance(select, Rule):
        found = by_rule(select, scores, resamples, seed)
    else:
        found = trimmed(select, scores, EdgeSets.of(vae, pairs, readout), resamples or 0, seed, progress)
    return graph_of(found)


def circuit_from(
    scores: EdgeScores, select: Rule = _MASS, *, resamples: int | None = None, seed: int = 0
) -> nx.DiGraph:
    """Select edges by their scores, and keep those on a path from the factor to a readout.

    Args:
        scores: from `score_edges`. Edges of the model that were not scored count as tested without success.
        select: `Mass`, `TopK` or `FDR`.
        resamples: bootstrap resamples for the `stability` of edges; None: 100.
        seed: of intervals, tests and resamples.

    Returns: a DiGraph, nodes and edges in order from factor to readout.

        - graph: schema, estimand, method, model, pairs, readout, selection, total_effect (target -> mean, ci_low, ci_high),
          left_out (target -> why it has no circuit), cut_error (cut -> worst completeness error), n_candidates (edges of
          the model), candidates (nodes: column -> number; edges: "column -> column" -> number), versions.
        - graph["selection"]: strategy (as written), seed, n_tests (size of the family), n_significant (effects that pass the
          test), resamples, targets (target -> n_edges, and what the strategy says: `deviation` and `looks` or `runs` of
          `Prune` and `Greedy`, the bounds of `Screen.bounds`; `reason` where there is no edge).
        - node: kind, site, index, stage, layer, effect (summed score of all edges into it, on the target `readout` of
          largest share; the total effect for a factor), readout.
        - edge: effect, ci_low, ci_high; p and q of the test of the strategy, or of "no effect" where it has none; share (of the
          total effect); stability (share of the resamples of the pairs, by whole clusters, in which it is selected; None
          without resamples); estimand, method; all on the target `readout` on which its share is largest; effects
          (target -> mean, for the targets whose circuit it is in).

        Effects and intervals are those of the pairs that chose the edges: of edges that just made it they lie too far out (of 64
        Gaussian pairs and effects about as large as can be told from 0, 95 % intervals cover .90 of those chosen, .95 of all).
        `score_edges(vae, other_pairs, readout, edges=circuit.edges)` measures the chosen ones anew.

    Raises:
        CircuitError: a selection that needs the model, or no scores, or those of a baseline.
        DataError: fewer than two independent pairs.

    Source: selection frequency under resampling, Meinshausen & Buehlmann 2010, J. R. Stat. Soc. B 72, 417-473.

    Example:
        >>> import torch
        >>> from nnsight_vae.circuits import TopK
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Latents
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> dark = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
        >>> circuit = circuit_from(score_edges(vae, Pairs(dark, dark, factor="light"), Latents(2)), TopK(20))
        >>> len(circuit), circuit.graph["left_out"]["latent.mu[0]"]
        (0, 'no pair changes this readout by more than rounding')
    """
    check_rule("select", select)
    if not isinstance(scores, EdgeScores):
        raise CircuitError(f"expected the EdgeScores of score_edges, got {type(scores).__name__}.")
    if scores.method in BASELINES:
        raise CircuitError(f"these scores come from the baseline {scores.method!r} and hold no effects to test.")
    _check_resamples(resamples)
    return graph_of(by_rule(select, scores, resamples, seed))


def _check_resamples(resamples: int | None) -> None:
    if resamples is not None:
        check_count("resamples", resamples, least=0)
