"""The metrics of a VAE on inputs, in front of the pure functions that compute them from arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from nnsight_vae.arguments import require
from nnsight_vae.engine import activations
from nnsight_vae.errors import DataError
from nnsight_vae.levels.latent_metrics import LatentRuns
from nnsight_vae.levels.latent_response import latent_responses
from nnsight_vae.metrics import causal, latent_activity, latent_response
from nnsight_vae.metrics.latent_activity import Activity
from nnsight_vae.metrics.resampling import Form
from nnsight_vae.metrics.scores import LatentMatrix, LatentScores, Score
from nnsight_vae.vae import VAE


def causal_effect_strength(
    data: VAE | np.ndarray, x: Tensor | None = None, *, form: Form = "raw", seed: int = 0, **options: Any
) -> LatentScores:
    """How far the output moves, on average, when a latent is clamped: CES_k = E_{n,v} || D(do(z_k = v)) - D(z) ||_2.

    Of a VAE with a codebook, the effect strength of each position under swaps of codes, weighted by how often they are used;
    `values=[...]` has the continuous one beside it, which the quantiser snaps back to next to nothing.

    Args:
        data: a VAE, with inputs `x` `[n, *image]`; or displacements `[latent, value, example]` measured already.
        x: inputs, for a VAE.
        form: `"raw"` as published; or `"normalised"`, in units of the spread of the data (with `readout=data.readout()`, in
            standard deviations of the factors), which compares across data sets.
        seed: of the bootstrap.
        options: of `nnsight_vae.metrics.causal.causal_effect_strength` (arrays), or for a VAE of `nv.perturb_latents`: `values`
            (by default the published 7 from -3 to 3), `readout`, `units`, `per`, `quantiles`.

    Returns: one score per latent with its interval; dead latents are flagged, and have no rank in `.ranked`.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Roy 2025, arXiv 2505.03530, CES.

    Example:
        >>> causal_effect_strength(np.ones((2, 7, 3))).values
        (1.0, 1.0)
    """
    _refuse_unwrapped(data)
    if isinstance(data, VAE):
        return LatentRuns(data, _inputs(x), **options).effect_strength(form, seed)
    return causal.causal_effect_strength(data, form=form, seed=seed, **options)


def intervention_specificity(
    data: VAE | Iterable[np.ndarray], x: Tensor | None = None, *, form: Form = "raw", seed: int = 0, **options: Any
) -> LatentScores:
    """How few output units a latent moves: S_k = 1 / (H(p_k) + eps), p_k the shares of the squared change under do(z_k = 0).

    Args:
        data: a VAE, with inputs `x`; or for each latent the changes `[example, unit]`.
        x: inputs, for a VAE.
        form: `"raw"` as published, or `"normalised"`.
        seed: of the bootstrap.
        options: of `nnsight_vae.metrics.causal.intervention_specificity` (arrays), or for a VAE `readout`, over whose targets
            the change is then shared out.

    Returns: one score per latent; None, with a flag, for a dead one in the normalised form.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Roy 2025, arXiv 2505.03530, intervention specificity.

    Example:
        >>> round(intervention_specificity(np.ones((1, 3, 10))).values[0], 2)  # ten units move alike: 1 / ln 10
        0.43
    """
    _refuse_unwrapped(data)
    if isinstance(data, VAE):
        return LatentRuns(data, _inputs(x), **options).specificity(form, seed)
    return causal.intervention_specificity(data, form=form, seed=seed, **options)


def circuit_modularity(
    data: VAE | np.ndarray, x: Tensor | None = None, *, form: Form = "raw", seed: int = 0, **options: Any
) -> Score:
    """How separate the units are that different latents act through: M = 1 - mean_{i<j} | rho(Delta a_i, Delta a_j) |.

    Args:
        data: a VAE, with inputs `x`; or changes `[latent, example, unit]` of a decoder site under do(z_k).
        x: inputs, for a VAE.
        form: `"raw"` as published, or `"normalised"`.
        seed: of the bootstrap.
        options: of `nnsight_vae.metrics.causal.circuit_modularity` (arrays), or for a VAE `site`, by default the middle layer
            of the decoder.

    Returns: one score with its interval.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Roy 2025, arXiv 2505.03530, circuit modularity.

    Example:
        >>> apart = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> circuit_modularity(apart, form="normalised").value
        1.0
    """
    _refuse_unwrapped(data)
    if isinstance(data, VAE):
        return LatentRuns(data, _inputs(x), **options).modularity(form, seed)
    return causal.circuit_modularity(data, form=form, seed=seed, **options)


def latent_response_matrix(
    data: VAE | np.ndarray, x: Tensor | None = None, *, form: Form = "raw", seed: int = 0, **options: Any
) -> LatentMatrix:
    """How far each re-encoded latent moves when a latent is resampled: R_jk = sqrt(E (h(z~_j)_k - h(z)_k)^2), h = encode(decode).

    Args:
        data: a VAE, with inputs `x`; or changes h(z~_j)_k - h(z)_k, `[latent, example, response]`.
        x: inputs, for a VAE.
        form: `"raw"` in latent units, or `"normalised"` by the scale of each active response.
        seed: of the draws and the bootstrap.
        options: of `nnsight_vae.metrics.latent_response.latent_response_matrix` (arrays), or for a VAE `values` (`"prior"`, as
            published, or `"posterior"`) and `draws`.

    Returns: `LatentMatrix`, latents down, responses across, each entry with its interval.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Leeb et al. 2022, arXiv 2106.16091, latent response matrix.

    Example:
        >>> latent_response_matrix(np.array([[[3.0, 0.0]], [[0.0, 1.0]]])).values
        ((3.0, 0.0), (0.0, 1.0))
    """
    _refuse_unwrapped(data)
    if not isinstance(data, VAE):
        return latent_response.latent_response_matrix(data, form=form, seed=seed, **options)
    changes, base = latent_responses(data, _inputs(x), seed=seed, **options)
    return latent_response.latent_response_matrix(changes, form=form, base=base, seed=seed)


def activity(data: VAE | np.ndarray, x: Tensor | np.ndarray | None = None, **options: Any) -> Activity:
    """KL of each latent in nats, the variance of its posterior mean over data, and how many latents are active by either.

    Args:
        data: a VAE; or posterior means `[example, latent, ...]`.
        x: inputs `[n, *image]`, for a VAE; or posterior log variances, of the means' shape.
        options: of `nnsight_vae.metrics.latent_activity.activity`: `level`, `n_boot`, `seed`.

    Returns: `Activity(kl, variance, active_units, informed_units)`, each with its interval.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Burda et al. 2016, arXiv 1509.00519 (active units: variance above 0.01).

    Example:
        >>> print(activity(np.array([[2.0, 0.0], [-2.0, 0.0]]), np.zeros((2, 2))).active_units)
        active units (variance > 0.01): 1 [1, 1]; of 2 latents
    """
    _refuse_unwrapped(data)
    if not isinstance(data, VAE):
        return latent_activity.activity(data, _inputs(x), **options)
    acts = activations(data, _inputs(x), ["latent.mu", "latent.logvar"])
    mu, logvar = (acts[name].double().cpu() for name in acts)
    nats = data.law(mu, logvar).kl().numpy()
    return latent_activity.activity(mu.numpy(), logvar.numpy(), kl=nats, **options)


def _refuse_unwrapped(data: Any) -> None:
    if isinstance(data, nn.Module):
        require(data)


def _inputs(x: Any) -> Any:
    if x is None:
        raise DataError("a VAE is measured on inputs: pass them beside it, e.g. metrics.activity(vae, images).")
    return x
