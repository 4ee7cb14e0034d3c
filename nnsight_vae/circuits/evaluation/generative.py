"""What a circuit generates, beside what it makes of a readout: distance of images and of posteriors from those of the source run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nnsight_vae.circuits.evaluation.edge_sets import EdgeSet, EdgeSets
from nnsight_vae.circuits.wiring.pair_run import PairRun
from nnsight_vae.circuits.wiring.partial import reached_with
from nnsight_vae.posterior import POINT_MASS, Posterior
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.proportion import Proportion, proportions
from nnsight_vae.vae import VAE

_Ids = Shaped[np.ndarray, " pair"] | None


@dataclass(frozen=True, repr=False, eq=False)
class Generative:
    """How far the run of a circuit is from the source run, and how far the run with no edge is.

    Attributes:
        mse: per pair, mean squared difference of the images over all pixels and channels; None where the readout reads the
            latent, so that no image is made of the circuit.
        mse_nothing: the same of the run with no edge.
        kl: per pair, KL(q_C || q_M) between the posteriors of the two runs, summed over latents, in nats; None where they are no
            Gaussians: codes of a codebook, points, another law.
        kl_nothing: the same of the run with no edge.
        groups, source_groups: ids of the pairs' images.
        posterior: `"mu and logvar"`, or `"mu"` on the posterior-mean path: there logvar is no part of the graph, both
            posteriors have the source's, and KL is the squared shift of mu in posterior standard deviations, halved.
    """

    mse: Float[np.ndarray, " pair"] | None
    mse_nothing: Float[np.ndarray, " pair"] | None
    kl: Float[np.ndarray, " pair"] | None
    kl_nothing: Float[np.ndarray, " pair"] | None
    groups: _Ids = None
    source_groups: _Ids = None
    posterior: str = "mu"

    @property
    def unexplained(self) -> dict[str, Proportion]:
        """`"pixels"` and `"latent"`: the distance left by the circuit as a share of that left by no edge at all.

        0: the circuit generates what the source run does. 1: no better than nothing. None where the runs do not differ.
        """
        found: dict[str, Proportion] = {}
        for name, left, all_of_it in (
            ("pixels", self.mse, self.mse_nothing),
            ("latent", self.kl, self.kl_nothing),
        ):
            if left is None or all_of_it is None:
                continue
            part, whole = (
                Effects(values[None, None], ("circuit",), (name,), what, self.groups, source_groups=self.source_groups)
                for values, what in ((left, "distance of the circuit"), (all_of_it, "the distance with no edge"))
            )
            found |= proportions(part, whole)
        return found

    def __str__(self) -> str:
        lines = []
        for name, left, unit in (("pixels", self.mse, "MSE"), ("latent", self.kl, f"KL of {self.posterior}, nats,")):
            if left is not None:
                lines.append(
                    f"{name}: {unit} to the source run {left.mean():.3g}, unexplained {self.unexplained[name]}"
                )
        return "\n".join(lines) or "nothing generated is within reach of this readout"

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {share}" for name, share in self.unexplained.items())
        return f"Generative(unexplained: {shares or 'none'})"


def generative_scores(sets: EdgeSets, circuit: EdgeSet) -> Generative:
    """What the circuit generates, against the source run.

    The image is what the decoder makes, whether or not an edge leads from it on into a readout.

    Args:
        sets: the model and its pairs.
        circuit: the edges of the circuit.

    Returns: distances for every pair.
    """
    has_image = sets.wiring.reads == "output"
    n = len(sets.pairs)
    mse, kl = np.empty((2, n)), np.empty((2, n))
    has_posterior = True
    for rows, run, rest in sets.runs():
        layout = sets.vae.layout(run.base.x)
        has_posterior = _is_gaussian(sets.vae, run) and {"latent.mu", "latent.logvar"} <= layout.paths.keys()
        sites = [*(["output"] if has_image else []), *(["latent.mu", "latent.logvar"] if has_posterior else [])]
        for i, edges in enumerate((circuit, np.zeros_like(circuit))):
            with torch.no_grad():
                at = reached_with(sets.vae, run, sets.cuts, sets.kept(edges), sites, rest=rest) if sites else {}
                if has_image:
                    mse[i, rows] = _mean_square(at["output"] - run.source.at("output"))
                if has_posterior:
                    kl[i, rows] = _kl(at, run).cpu()
    posterior = "mu" if sets.pairs.eps is None else "mu and logvar"
    return Generative(
        mse[0] if has_image else None,
        mse[1] if has_image else None,
        kl[0] if has_posterior else None,
        kl[1] if has_posterior else None,
        *sets.pairs.cluster_ids,
        posterior,
    )


def _is_gaussian(vae: VAE, run: PairRun) -> bool:
    """Whether the posteriors are Gaussians with a spread: between codes, or other points, a KL divergence is no distance."""
    points = vae.adapter.codebook is not None or bool((run.source.at("latent.logvar") <= POINT_MASS).all())
    return vae.law is Posterior and not points


def _mean_square(difference: Tensor) -> np.ndarray:
    return difference.flatten(1).square().mean(1).cpu().numpy()


def _kl(at: dict[str, Tensor], run: PairRun) -> Float[Tensor, " n"]:
    mu, logvar = run.source.at("latent.mu"), run.source.at("latent.logvar")
    own = at["latent.logvar"] if run.source.eps is not None else logvar
    each = 0.5 * (logvar - own + ((own - logvar).exp()) + (at["latent.mu"] - mu).square() / logvar.exp() - 1)
    return each.flatten(1).sum(1)
