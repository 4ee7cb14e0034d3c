"""How far intervened codes are from the codes that the decoder has been trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.engine import activations, run_interventions
from nnsight_vae.errors import NnsightVaeWarning
from nnsight_vae.interventions import Quantize
from nnsight_vae.levels.codes import code_usage
from nnsight_vae.levels.latent_values import Moves, posterior_draws
from nnsight_vae.sites import Selection, Site
from nnsight_vae.vae import VAE

CLEAN_DRAWS = 1000  # fewest draws of clean codes that others are ranked among
LIMIT = 0.99  # quantile of the clean codes' own distances beyond which a code is off the manifold
_CODES_PER_CHANNEL = 5  # with fewer, a covariance matrix takes its own sample's directions for all there are
_BLOCK = 8_000_000  # distances held at once

Experiments = Mapping[str, tuple[Selection, ...]]


@dataclass(frozen=True)
class AggregatePosterior:
    """Mean and covariance of the aggregate posterior q(z) = mean over x of q(z|x), and the Mahalanobis distance they define.

    Both moments are exact for the mixture: E[z] = E[mu], Cov[z] = Cov[mu] + diag E[exp(logvar)] (law of total variance). Of a
    spatial latent they are those of the vector at one position, over examples and positions.

    Attributes:
        mean: `[channel]`, in latent units.
        whitening: the matrix W `[channel, channel]` with W'W the inverse covariance, so that d(z)^2 = || W (z - mean) ||^2.
        site: `latent.z`.
    """

    mean: Float[Tensor, " channel"]
    whitening: Float[Tensor, "channel channel"]
    site: Site

    @classmethod
    def of(cls, vae: VAE, x: Float[Tensor, "n *image"]) -> AggregatePosterior | str:
        """The aggregate posterior over x, or why it has no moments to measure distances by.

        Args:
            vae: the model.
            x: inputs `[n, *image]` that stand for the data.
        """
        acts = activations(vae, x, ["latent.mu", "latent.logvar"])
        mu, logvar = (acts[name].movedim(1, -1).flatten(0, -2).double().cpu() for name in acts)
        codes, channels = mu.shape
        if codes < _CODES_PER_CHANNEL * channels:
            return f"{codes} codes of {channels} channels are too few for a covariance; at least {_CODES_PER_CHANNEL * channels} are needed"
        covariance = torch.cov(mu.T, correction=0).view(channels, channels) + torch.diag(logvar.exp().mean(dim=0))
        scale = covariance.diagonal().sqrt()
        if not bool((scale > 0).all()):
            return f"latent.z[{int(scale.argmin())}] never varies"
        # On the scale of each latent, so that a small latent next to a large one is not taken for a singular matrix.
        factor, failed = torch.linalg.cholesky_ex(covariance / scale.outer(scale))
        if int(failed) or float(factor.diagonal().min()) < 1e-6:
            return "some latents are functions of others: their covariance is singular"
        whitening = torch.linalg.solve_triangular(factor, torch.diag(1 / scale), upper=False)
        return cls(mu.mean(dim=0), whitening, vae.sites["latent.z"])

    def squared_distance(self, z: Float[Tensor, "n channel *position"]) -> Float[Tensor, "n position"]:
        """Squared Mahalanobis distance of the vector at each position; a latent without positions has one."""
        vectors = z.movedim(1, -1).reshape(len(z), -1, z.shape[1]).double()
        return ((vectors - self.mean.to(vectors)) @ self.whitening.to(vectors).T).square().sum(dim=-1)

    # A readout of the latent, so that the engine says what the codes are under an intervention.
    reads = "latent.z"

    @property
    def names(self) -> tuple[str, ...]:
        """One target a position."""
        return tuple(map(str, self.site.positions))

    def __call__(self, z: Float[Tensor, "n channel *position"]) -> Float[Tensor, "n position"]:
        """The squared distances."""
        return self.squared_distance(z)


def off_manifold(
    vae: VAE, x: Float[Tensor, "n *image"], what: Experiments, moved: Moves, eps: Tensor | None
) -> dict[str, Any]:
    """How far every experiment takes the codes from the aggregate posterior, for a result's provenance.

    The distance of a code is the root mean square, over the positions intervened on, of the Mahalanobis distance there. Draws
    from the aggregate posterior, measured in the same way, say what is usual.

    Args:
        vae: the model.
        x: inputs whose codes are intervened on.
        what: name of each experiment -> what it acts on.
        moved: what each is set to.
        eps: noise of the codes.

    Returns: `distance`, mean over examples; `tail`, the share of clean codes that are at least as far (mean over examples);
        `beyond`, the share of examples beyond the clean codes' 99 % quantile; each name of a move -> name of an experiment ->
        number. `clean_99`: that quantile, for each experiment. Or `undefined`: why there are none. Of codes of a codebook,
        which have no distance, `usage`: the share of positions of x that have the code.

    Warns:
        NnsightVaeWarning: an experiment takes most examples beyond the clean codes' 99 %, or to a code that x never uses.
    """
    if all(isinstance(each, Quantize) for joint in moved.plan for each in joint.values()):
        return _usage(vae, x, moved)
    posterior = AggregatePosterior.of(vae, x)
    measure = "Mahalanobis distance under the aggregate posterior's mean and covariance"
    if isinstance(posterior, str):
        return {"measure": measure, "undefined": posterior}
    clean = posterior.squared_distance(posterior_draws(vae, x, CLEAN_DRAWS)).cpu().numpy()
    ranked = {name: np.sort(_touched(clean, joint, posterior.site)) for name, joint in what.items()}
    limits = {name: float(np.quantile(distances, LIMIT)) for name, distances in ranked.items()}
    record: dict[str, Any] = {"measure": measure, "clean_99": limits, "distance": {}, "tail": {}, "beyond": {}}
    step = max(1, _BLOCK // (len(x) * clean.shape[1]))
    names = [(move, name) for move in moved.names for name in what]
    for start in range(0, len(names), step):
        squared = run_interventions(vae, x, moved.plan[start : start + step], posterior, eps=eps).cpu().numpy()
        for (move, name), values in zip(names[start : start + step], squared, strict=True):
            distances = _touched(values, what[name], posterior.site)
            further = 1 - np.searchsorted(ranked[name], distances) / len(clean)
            found = {"distance": distances, "tail": further, "beyond": distances > limits[name]}
            for key, each in found.items():
                record[key].setdefault(move, {})[name] = float(each.mean())
    _warn_if_far(record["beyond"])
    return record


def _usage(vae: VAE, x: Tensor, moved: Moves) -> dict[str, Any]:
    shares = code_usage(vae, x)
    usage = {}
    for name, joints in zip(moved.names, moved.joints, strict=True):
        code = next(each.code for each in joints[0].values() if isinstance(each, Quantize))
        usage[name] = float(shares[code])
    unused = [name for name, share in usage.items() if share == 0]
    if unused:
        _warn(f"{', '.join(unused)}: never used by x, so the decoder may not have been trained on it.")
    return {"measure": "share of positions of x that have the code", "usage": usage}


def _touched(
    squared: Float[np.ndarray, "n position"], joint: tuple[Selection, ...], site: Site
) -> Float[np.ndarray, " n"]:
    """Root mean square over the positions that an experiment acts on."""
    if all(selection.position for selection in joint):
        order = {position: i for i, position in enumerate(site.positions)}
        squared = squared[:, sorted({order[selection.position] for selection in joint if selection.position})]
    return np.sqrt(squared.mean(axis=1))


def _warn_if_far(beyond: Mapping[str, Mapping[str, float]]) -> None:
    far = [(share, name, move) for move, row in beyond.items() for name, share in row.items() if share > 0.5]
    if far:
        share, name, move = max(far)
        _warn(
            f"{len(far)} of {sum(map(len, beyond.values()))} interventions take most codes further from the aggregate posterior than 99 % of "
            f"clean codes are (most: {name} <- {move}, {100 * share:.0f} % of examples). The decoder was not trained there; see "
            "effects.provenance['manifold']."
        )


def _warn(text: str) -> None:
    warnings.warn(text, NnsightVaeWarning, stacklevel=5)  # where perturb_latents was called
