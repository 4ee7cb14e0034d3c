"""Edge scores: how much of an effect each connection between neighbouring units of a VAE carries.

An edge u -> v of layer l stands for what unit u, as layer l sees it (after activation, norm, pooling, reshape), adds to
v's pre-activation p_v. That is linear, so moving only u from base to source changes p_v by exactly
`dc_uv = L(a(source) - a(base), restricted to u) at v`. The methods differ in what such a change is worth to the readout m:

- `exact`: edge patching. Noising, `m(base; p_v += dc_uv) - m(base)`, is the pure natural indirect effect; denoising,
  `m(source) - m(source; p_v -= dc_uv)`, the total one. One run per edge.
- `ig`: layer-wise integrated gradients, `<dc_uv, integral of dm/dp_v along p(base) + t (p(source) - p(base))>`. All edges
  of a layer from a few backward passes, and those of every cut sum to the total effect (to which the quadrature is
  calibrated: see `quadrature`). It answers how the total effect is shared out. The mean of noising and denoising it estimates only
  as well as those two agree: on trained convolutional VAEs r = .999 where a sprite moves a little, .92 over most of its range, .6
  where a pendulum swings over all of its.
- `eap`: the same with the gradient at one place only, all layers from one backward pass: at the base (edge attribution patching,
  a first-order estimate of noising), at the source (of denoising), or the mean of both.
- `eap-act`: as `eap`, with the activation of the edge's target taken exactly, `<phi(p_v + dc_uv) - phi(p_v), dm/dphi>` (see
  `activations`), and cuts of few edges (4, or 1 in 250) patched. The fast stand-in for `exact`: over all edges Pearson .98 to 1, Spearman .99,
  in either direction or the mean, in all the cases above, at a tenth of the time or less. Weakest in the first layers of an encoder,
  where a change of one channel alone is far from any image.
- `eap-ig`: with the gradient averaged along the straight path of the inputs; cuts after the first do not sum to the total effect.
- `weight` (L2 norm of the edge's weights), `correlation` (what goes together in clean runs, see `baselines`) and `random`:
  baselines that intervene on nothing.

The ends follow the same rule: `factor:f -> input unit` is the total change of that input unit, and
`output unit -> readout:t` what its change is worth to the readout itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from nnsight_vae import reading
from nnsight_vae.arguments import require
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.scoring.methods import BASELINES, Advance, At, Direction, Method, Scoring, Wanted, estimand_of
from nnsight_vae.circuits.scoring.sheet import Sheet
from nnsight_vae.circuits.wiring.cuts import Cut, cuts_of, nodes_of
from nnsight_vae.circuits.wiring.partial import edge_positions, kept_of
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.engine import checked_batch
from nnsight_vae.errors import CircuitError, ReadoutError
from nnsight_vae.guards import require_gradients, warn_if_directions_oppose, warn_if_effects_cancel
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE


def score_edges(
    vae: VAE,
    pairs: Pairs,
    readout: Readout,
    *,
    method: Method = "ig",
    nodes: int = 3,
    direction: Direction = "noising",
    at: At = "base",
    edges: Iterable[tuple[str, str]] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EdgeScores:
    """Score every edge from the factor through all layers to the readout, for every pair.

    Args:
        vae: the model; connections may skip layers, and what lies between two layers may be anything that can be differentiated.
        pairs: oriented pairs, so that effects of different pairs have one sign.
        readout: what effects are measured on.
        method: `exact`, `eap`, `eap-act`, `eap-ig`, `ig`, `weight`, `correlation` or `random`; see the module for their formulas.
        nodes: quadrature nodes of `ig` (Gauss-Lobatto, the ends of the path among them) and `eap-ig` (Gauss-Legendre); `completeness` of the result tells whether they are enough.
        direction: of `exact`: into the base run, out of the source run, or the mean of both.
        at: of `eap` and `eap-act`: the gradient at the base, at the source, or the mean of both.
        edges: (source id, target id) of the edges to score, such as those that a faster method found; None: all. Runs of `exact`
            that were interrupted go on with those that are missing.
        seed: of `random`.
        progress: called with (done, total), counted in edges x pairs; None: a bar on an interactive terminal.

    Returns: the scores, pair by pair, in units of the readout.

    Raises:
        CircuitError: no layers to score, an option is unknown or an edge is none of the model's; before any scoring.
        ReadoutError: the readout returns the wrong shape or what is not finite, or its gradient is 0 wherever `method` looks
            though it changes.
        DataError: the model cannot run the pairs; or inference mode is on, and the method takes gradients.

    Warns:
        NnsightVaeWarning: the readout's gradient is 0 in some of the pairs that change it; or effects of opposite pairs cancel, in
            the means over pairs or between noising and denoising.

    Source: edge attribution patching, Syed et al. 2023 (arXiv 2310.10348); with integrated gradients over inputs, Hanna et al. 2024
        (arXiv 2403.17806), whose sum is a left Riemann one; integrated gradients, Sundararajan et al. 2017 (arXiv 1703.01365),
        here along the path of one layer's pre-activations; PNIE and TNIE, Robins and Greenland 1992.

    Example:
        >>> import torch
        >>> from nnsight_vae import readouts
        >>> from nnsight_vae.models import MLPVAE
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> pairs = Pairs(torch.zeros(8, 1, 4, 4), torch.rand(8, 1, 4, 4), factor="light")
        >>> scores = score_edges(vae, pairs, readouts.Region({"top": (slice(0, 2), slice(None))}))
        >>> scores.cuts[0], scores.cuts[-1], len(scores)
        ('factor:light -> input', 'output -> readout:top', 26)
    """
    scoring = Scoring(method, nodes, direction, at, seed)
    require(vae, pairs, readout)
    if scoring.by_gradient:
        require_gradients()
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    wiring = Wiring.of(vae, base, eps, reading.reads(readout))
    cuts = cuts_of(wiring, pairs.factor or "intervention", readout.names)
    wanted = _wanted(edges, cuts)
    with _advancing(progress, len(scoring.parts) * sum(map(len, wanted)) * len(pairs)) as advance:
        sheet = Sheet.filled(vae, pairs, readout, wiring, cuts, wanted, scoring, advance)
    ends = [
        (cut.sources[s].id, cut.targets[t].id)
        for cut, some in zip(cuts, wanted, strict=True)
        for s, t in cut.ends[some].tolist()
    ]
    scores = EdgeScores(
        sheet.mean,
        tuple(source for source, _ in ends),
        tuple(target for _, target in ends),
        nodes_of(cuts),
        tuple(readout.names),
        np.repeat(np.arange(len(cuts)), [len(some) for some in wanted]),
        tuple(cut.name for cut in cuts),
        sheet.total,
        sheet.resolution,
        sheet.gaps,
        method,
        estimand_of(scoring.variant),
        *pairs.cluster_ids,
        provenance(vae, pairs, readout, options=scoring.options),
        bypass=sheet.bypass,
        bypassed=tuple(cut.name for cut in cuts if cut.bypassed),
        sizes=() if edges is None else tuple(map(len, cuts)),
        beside=sheet.beside,
    )
    _refuse_nonfinite(scores)
    if method not in BASELINES:
        warn_if_effects_cancel(sheet.total, sheet.resolution, *pairs.cluster_ids)
    if len(sheet.parts) == 1:
        return scores
    into_base, out_of_source = sheet.parts.values()
    warn_if_directions_oppose(into_base, out_of_source, *pairs.cluster_ids)
    parts = {part: replace(scores, values=values, estimand=estimand_of(part)) for part, values in sheet.parts.items()}
    return replace(scores, parts=parts)


def _wanted(edges: Iterable[tuple[str, str]] | None, cuts: Sequence[Cut]) -> list[Wanted]:
    """Positions of the edges asked for in each cut.

    Raises:
        CircuitError: none is asked for, or one that the model does not have.
    """
    if edges is None:
        return [np.arange(len(cut)) for cut in cuts]
    asked = list(edges)
    odd = [edge for edge in asked if not (isinstance(edge, tuple) and len(edge) == 2)]
    if odd or not asked:
        got = f"got {odd[0]!r}" if odd else "got none"
        raise CircuitError(
            f"edges: expected (source id, target id) pairs such as ('encoder.0[1]', 'encoder.2[3]'), {got}."
        )
    kept = kept_of(cuts, edge_positions(asked, cuts).values())
    return [some.nonzero().flatten().numpy() for some in kept]


@contextmanager
def _advancing(progress: Callable[[int, int], None] | None, total: int) -> Iterator[Advance]:
    """Tell of progress: the caller's function, or a bar where a person looks on."""
    if progress is None:
        with progress_bar("scoring edges", total) as advance:
            yield advance or (lambda steps: None)
        return
    done = 0

    def report(steps: int) -> None:
        nonlocal done
        done += steps
        progress(done, total)

    yield report


def _refuse_nonfinite(scores: EdgeScores) -> None:
    unknown = np.argwhere(~np.isfinite(scores.total))
    if len(unknown):
        target, pair = unknown[0]
        raise ReadoutError(
            f"readout target {scores.readouts[target]!r} is NaN or infinite in a clean run of pair {pair} ({len(unknown)} of "
            f"{scores.total.size} total effects are); read something that stays finite."
        )
    bad = np.argwhere(~np.isfinite(scores.values))
    if not len(bad):
        return
    edge, target, pair = bad[0]
    gradients = scores.method not in ("exact", *BASELINES)
    remedy = (
        "the readout, or a module on the way, has no finite gradient there (a root or a norm at 0): method='exact' needs none"
        if gradients
        else "read something that stays finite"
    )
    raise ReadoutError(
        f"readout target {scores.readouts[target]!r} is NaN or infinite when {scores.sources[edge]!r} -> {scores.targets[edge]!r} "
        f"is scored on pair {pair} ({len(bad)} of {scores.values.size} scores are); {remedy}."
    )
