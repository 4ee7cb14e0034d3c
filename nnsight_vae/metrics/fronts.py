"""The seed paper's metrics of a VAE on inputs, in front of the pure functions that compute them from arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from nnsight_vae.levels.latent_metrics import LatentMetrics, latent_metrics
from nnsight_vae.metrics import causal
from nnsight_vae.metrics.causal import Form
from nnsight_vae.metrics.scores import LatentScores, Score
from nnsight_vae.vae import VAE


def causal_effect_strength(
    data: VAE | np.ndarray, x: Tensor | None = None, *, form: Form = "raw", **options: Any
) -> LatentScores:
    """How far the output moves, on average, when a latent is clamped: CES_k = E_{n,v} || D(do(z_k = v)) - D(z) ||_2.

    Args:
        data: a VAE, with inputs `x` `[n, *image]`; or displacements `[latent, value, example]` measured already.
        x: inputs, for a VAE.
        form: `"raw"` as published, or `"normalised"`.
        options: of `nnsight_vae.metrics.causal.causal_effect_strength` (arrays) or `nv.latent_metrics` (a VAE).

    Returns: one score per latent with its interval; dead latents are flagged.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Roy 2025, arXiv 2505.03530, CES.

    Example:
        >>> causal_effect_strength(np.ones((2, 7, 3))).values
        (1.0, 1.0)
    """
    if isinstance(data, VAE):
        return _measured(data, x, form, options).effect_strength
    return causal.causal_effect_strength(data, form=form, **options)


def intervention_specificity(
    data: VAE | Iterable[np.ndarray], x: Tensor | None = None, *, form: Form = "raw", **options: Any
) -> LatentScores:
    """How few output units a latent moves: S_k = 1 / (H(p_k) + eps), p_k the shares of the squared change under do(z_k = 0).

    Args:
        data: a VAE, with inputs `x`; or for each latent the changes `[example, unit]`.
        x: inputs, for a VAE.
        form: `"raw"` as published, or `"normalised"`.
        options: of `nnsight_vae.metrics.causal.intervention_specificity` (arrays) or `nv.latent_metrics` (a VAE).

    Returns: one score per latent; None, with a flag, for a dead one in the normalised form.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Roy 2025, arXiv 2505.03530, intervention specificity.

    Example:
        >>> round(intervention_specificity(np.ones((1, 3, 10))).values[0], 2)  # ten units move alike: 1 / ln 10
        0.43
    """
    if isinstance(data, VAE):
        return _measured(data, x, form, options).specificity
    return causal.intervention_specificity(data, form=form, **options)


def circuit_modularity(data: VAE | np.ndarray, x: Tensor | None = None, *, form: Form = "raw", **options: Any) -> Score:
    """How separate the units are that different latents act through: M = 1 - mean_{i<j} | rho(Delta a_i, Delta a_j) |.

    Args:
        data: a VAE, with inputs `x`; or changes `[latent, example, unit]` of a decoder site under do(z_k).
        x: inputs, for a VAE.
        form: `"raw"` as published, or `"normalised"`.
        options: of `nnsight_vae.metrics.causal.circuit_modularity` (arrays) or `nv.latent_metrics` (a VAE), e.g. `site=`.

    Returns: one score with its interval.

    Raises:
        DataError: the arrays or inputs do not fit.

    Source: Roy 2025, arXiv 2505.03530, circuit modularity.

    Example:
        >>> apart = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> circuit_modularity(apart, form="normalised").value
        1.0
    """
    if isinstance(data, VAE):
        return _measured(data, x, form, options).modularity
    return causal.circuit_modularity(data, form=form, **options)


def _measured(vae: VAE, x: Tensor | None, form: Form, options: dict[str, Any]) -> LatentMetrics:
    return latent_metrics(vae, x, form=form, **options)  # type: ignore[arg-type]  # a missing x is refused as any bad input
