"""Edge scores: how much of an effect each connection between neighbouring units of a VAE carries.

An edge u -> v of layer l stands for what unit u, as layer l sees it (after activation, norm, pooling, reshape), adds to
v's pre-activation p_v. That is linear, so moving only u from base to source changes p_v by exactly
`dc_uv = L(a(source) - a(base), restricted to u) at v`. The methods differ in what such a change is worth to the readout m:

- `exact`: edge patching. Noising, `m(base; p_v += dc_uv) - m(base)`, is the pure natural indirect effect; denoising,
  `m(source) - m(source; p_v -= dc_uv)`, the total one. One run per edge.
- `ig`: layer-wise integrated gradients, `<dc_uv, integral of dm/dp_v along p(base) + t (p(source) - p(base))>`. All edges
  of a layer from a few backward passes, and those of every cut sum to the total effect (to which the quadrature is
  calibrated: see `quadrature`).
- `eap`: the same with the gradient at the base only (edge attribution patching), a first-order estimate of noising.
- `weight` (L2 norm of the edge's weights) and `random`: baselines that look at no data.

The ends follow the same rule: `factor:f -> input unit` is the total change of that input unit, and
`output unit -> readout:t` what its change is worth to the readout itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from nnsight_vae import readouts
from nnsight_vae.arguments import require
from nnsight_vae.circuits.edges import EdgeScores, cuts_of
from nnsight_vae.circuits.layers import Chain
from nnsight_vae.circuits.methods import Direction, Method, Scorer, resolution_of, total_effect
from nnsight_vae.circuits.pair_run import pair_runs
from nnsight_vae.engine import checked_batch
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

_ESTIMANDS = {
    "noising": "PNIE (noising)",
    "denoising": "TNIE (denoising)",
    "both": "mean of PNIE and TNIE",
    "ig": "TE share (layer path integral)",
    "eap": "PNIE (first order)",
    "weight": "none (baseline)",
    "random": "none (baseline)",
}


def score_edges(
    vae: VAE,
    pairs: Pairs,
    readout: Readout,
    *,
    method: Method = "ig",
    nodes: int = 8,
    direction: Direction = "noising",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EdgeScores:
    """Score every edge from the factor through all layers to the readout, for every pair.

    Args:
        vae: the model; its layers must form a chain (no skip connections yet).
        pairs: oriented pairs, so that effects of different pairs have one sign.
        readout: what effects are measured on.
        method: `exact`, `ig`, `eap`, `weight` or `random`; see the module for their formulas.
        nodes: Gauss-Legendre nodes of `ig`; `completeness` of the result tells whether they are enough.
        direction: of `exact`: into the base run, out of the source run, or the mean of both.
        seed: of `random`.
        progress: called with (done, total), counted in edges x pairs.

    Returns: the scores, pair by pair, in units of the readout.

    Raises:
        CircuitError: the layers form no chain, or an option is unknown; before any scoring.
        ReadoutError: the readout returns the wrong shape, or its gradient is 0 wherever `method` looks though it changes.
        DataError: the model cannot run the pairs.

    Source: edge attribution patching, Syed et al. 2023 (arXiv 2310.10348); integrated gradients, Sundararajan et al. 2017
        (arXiv 1703.01365), here along the path of one layer's pre-activations.

    Example:
        >>> from nnsight_vae.models import MLPVAE
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> pairs = Pairs(torch.zeros(8, 1, 4, 4), torch.rand(8, 1, 4, 4), factor="light")
        >>> scores = score_edges(vae, pairs, readouts.Region({"top": (slice(0, 2), slice(None))}))
        >>> scores.cuts[0], scores.cuts[-1], len(scores)
        ('factor:light -> input', 'output -> readout:top', 26)
    """
    _check_options(method, nodes, direction)
    require(vae, pairs, readout)
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    chain = Chain.of(vae, base, eps, readouts.reads(readout))
    cuts = cuts_of(chain, pairs.factor or "intervention", readout.names)
    score = Scorer(vae, readout, cuts, method, nodes, direction, seed)
    n_edges = sum(map(len, cuts))
    values = np.empty(
        (n_edges, len(readout.names), len(base)), dtype=np.float64 if base.dtype == torch.float64 else np.float32
    )
    total = np.empty((len(readout.names), len(base)))
    resolution = np.zeros(len(readout.names))
    gaps = np.empty((len(cuts), *total.shape))
    done = 0
    for rows, run in pair_runs(vae, pairs, chain):
        total[:, rows] = total_effect(run, readout).cpu()
        resolution = np.maximum(resolution, resolution_of(run, readout))
        stop = n_edges
        for i in reversed(range(len(cuts))):  # the readout first: what is wrong with it shows there
            scored = score.cut(run, i)
            values[stop - len(cuts[i]) : stop, :, rows] = scored.values.cpu()
            gaps[i, :, rows] = scored.gap.cpu()
            stop -= len(cuts[i])
            done += len(cuts[i]) * len(run)
            if progress is not None:
                progress(done, n_edges * len(base))
    ends = [(cut.sources[s].id, cut.targets[t].id) for cut in cuts for s, t in cut.ends.tolist()]
    return EdgeScores(
        values,
        tuple(source for source, _ in ends),
        tuple(target for _, target in ends),
        tuple(node for cut in cuts for node in cut.sources) + cuts[-1].targets,
        tuple(readout.names),
        np.repeat(np.arange(len(cuts)), [len(cut) for cut in cuts]),
        tuple(cut.name for cut in cuts),
        total,
        resolution,
        gaps,
        method,
        _ESTIMANDS[direction if method == "exact" else method],
        *pairs.cluster_ids,
        provenance(vae, pairs, readout, options=_options(method, nodes, direction, seed)),
    )


def _check_options(method: str, nodes: int, direction: str) -> None:
    known = ("exact", "ig", "eap", "weight", "random")
    if method not in known:
        raise CircuitError(f"method={method!r} is unknown; edges are scored by {', '.join(known)}.")
    if direction not in ("noising", "denoising", "both"):
        raise CircuitError(f"direction={direction!r} is unknown; expected 'noising', 'denoising' or 'both'.")
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise CircuitError(f"nodes={nodes!r}: expected a positive number of quadrature nodes.")


def _options(method: str, nodes: int, direction: str, seed: int) -> dict[str, object]:
    """Of the options, those that the method goes by."""
    options: dict[str, dict[str, object]] = {
        "ig": {"nodes": nodes, "quadrature": "Gauss-Legendre, calibrated to the total effect"},
        "exact": {"direction": direction},
        "random": {"seed": seed},
    }
    return options.get(method, {})
