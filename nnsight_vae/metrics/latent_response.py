"""Latent responses: what the encoder sees of a change the decoder was asked for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.latent_activity import ACTIVE
from nnsight_vae.metrics.resampling import Form, checked, checked_like, estimate, is_raw, squared_deviations_per_unit
from nnsight_vae.metrics.scores import LatentMatrix


def latent_response_matrix(
    changes: Float[np.ndarray, "latent example response"],
    *,
    form: Form = "raw",
    base: Float[np.ndarray, "example response *position"] | None = None,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> LatentMatrix:
    """How far each re-encoded latent moves when a latent is resampled.

        raw:         R_jk = sqrt(E_n (h(z~_j)_k - h(z)_k)^2),   h(z) = mean of encode(decode(z)), z~_j: z with z_j drawn anew
        normalised:  R_jk / sd_n h(z)_k

    A perfectly idempotent autoencoder whose latents do not act on each other has a diagonal matrix. Only an active response
    has a scale to be normalised by: where the variance of h(z)_k is at most 0.01 the normalised entry is None, for it would
    divide what rounding and blur leave by next to nothing.

    Args:
        changes: h(z~_j)_k - h(z)_k for every example; with several draws or positions, their root mean square.
        form: `"raw"` (latent units) or `"normalised"` (standard deviations of the response).
        base: h(z) of the same examples; needed by the normalised form.
        level: coverage of the intervals.
        n_boot: resamples of the examples; the scales are taken anew in each.
        seed: of the resampling.

    Returns: `LatentMatrix`, latents down, responses across.

    Raises:
        DataError: wrong shape or non-finite numbers; no `base` for the normalised form.

    Source: Leeb et al. 2022, arXiv 2106.16091, latent response matrix.

    Example:
        >>> latent_response_matrix(np.array([[[3.0, 0.0], [4.0, 0.0]]])).values
        ((3.5355339059327378, 0.0),)
    """
    raw = is_raw(form)
    changes = checked(changes, "changes", ("latent", "example", "response"))
    n_latents, n_examples, n_responses = changes.shape
    base = checked_like(base, "base", ("example", "response", "*position"), (n_examples, n_responses))
    if base is None and not raw:
        raise DataError("base=None; the normalised form needs the re-encoded latents h(z) of the same examples.")
    variances = np.ones((n_examples, n_responses)) if raw or base is None else squared_deviations_per_unit(base)

    def score(means: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample cell"]:
        matrix = means[:, :-n_responses].reshape(-1, n_latents, n_responses)
        return np.sqrt(matrix / means[:, None, -n_responses:]).reshape(len(means), -1)

    squares = np.moveaxis(changes, 1, 0).reshape(n_examples, -1) ** 2
    values, ci = estimate(np.hstack([squares, variances]), score, level, n_boot, seed)
    inactive = variances.mean(axis=0) <= ACTIVE
    kept = [None if inactive[i % n_responses] else i for i in range(len(values))]

    def rows(cells: list) -> tuple[tuple, ...]:
        return tuple(tuple(cells[j * n_responses : (j + 1) * n_responses]) for j in range(n_latents))

    return LatentMatrix(
        "latent response",
        form,
        rows([None if i is None else float(values[i]) for i in kept]),
        rows([None if i is None else ci[i] for i in kept]),
        tuple(f"inactive: variance at most {ACTIVE:g}" if flag else "" for flag in inactive),
    )
