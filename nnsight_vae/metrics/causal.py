"""The three metrics of the seed paper: how strongly, how narrowly and how separately each latent acts.

`D` is the decoder, `z` the code of an example, `z~_k` the code with latent k intervened on. Each metric has two forms:

- `"raw"`, as published by an independent re-implementation that cites the paper (the paper's own formulas were not read).
- `"normalised"`, the form we recommend: free of units and safe for dead latents.

Intervals are percentile bootstraps over examples. A latent is called dead when its effect is at most `dead_below` times
that of the strongest latent; dead latents are flagged, and left out where their score would be an artefact.

Source: Roy 2025, arXiv 2505.03530.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.scores import LatentScores, Score
from nnsight_vae.statistics import bootstrap_interval, resample_weights

Form = Literal["raw", "normalised"]

_BLOCK = 4_000_000  # elements of one array of resampled profiles


def output_spread(base: Float[np.ndarray, "example *out"]) -> float:
    """Root mean squared distance of the reconstructions from their mean: the yardstick of the normalised CES.

    Args:
        base: decoded reconstructions D(z), one per example.

    Returns:
        sqrt(E_n || D(z_n) - mean D ||^2), in output units.

    Example:
        >>> output_spread(np.array([[0.0, 0.0], [6.0, 8.0]]))
        5.0
    """
    flat = np.asarray(base, dtype=np.float64).reshape(len(base), -1)
    return float(np.sqrt(((flat - flat.mean(axis=0)) ** 2).sum(axis=1).mean()))


def causal_effect_strength(
    displacements: Float[np.ndarray, "latent value example"],
    *,
    form: Form = "raw",
    spread: float | None = None,
    dead_below: float = 0.01,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> LatentScores:
    """How far the output moves, on average, when a latent is clamped.

        raw:         CES_k = E_{n,v} || D(do(z_k = v)) - D(z) ||_2            in output units (L2 norm over the output)
        normalised:  CES_k / output_spread(D(z))                             1: as far apart as two typical outputs are
                                                                              from their mean

    The raw form grows with image size, channels and the range of v, so compare it within one data set and one set of
    values only. Published values: 7 clamps, linspace(-3, 3).

    Args:
        displacements: || D(do(z_k = v)) - D(z) ||_2 for latent k, value v and each example; at least 0.
        form: `"raw"` or `"normalised"`.
        spread: `output_spread` of the unperturbed reconstructions; needed by (and only used for) the normalised form,
            where its own sampling error is not part of the interval.
        dead_below: a latent at or below this share of the strongest is flagged as dead.
        level: coverage of the intervals.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns:
        One score per latent.

    Raises:
        DataError: wrong shape, negative or non-finite displacements; no positive `spread` for the normalised form.

    Example:
        >>> displacements = np.abs(np.linspace(-3, 3, 7))[None, :, None] * np.array([[[1.0, 2.0, 3.0]], [[0.0] * 3]])
        >>> print(causal_effect_strength(displacements))
        causal effect strength (raw)
        latent.z[0]  3.43 [1.71, 5.14]
        latent.z[1]  0 [0, 0]  dead: effect at most 1 % of the strongest latent's
    """
    displacements = _checked(displacements, "displacements", ("latent", "value", "example"))
    if (displacements < 0).any():
        raise DataError("displacements has negative entries; expected L2 norms, which are at least 0.")
    scale = 1.0 if _is_raw(form) else _positive(spread)
    per_example = displacements.mean(axis=1) / scale
    values = per_example.mean(axis=1)
    ci: list[tuple[float, float] | None] = [None] * len(values)
    if per_example.shape[1] > 1:
        low, high = bootstrap_interval(per_example, level=level, n_boot=n_boot, seed=seed)
        ci = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    flags = _dead_flags(values, dead_below)
    return LatentScores("causal effect strength", form, tuple(values.tolist()), tuple(ci), flags)


def intervention_specificity(
    changes: Iterable[Float[np.ndarray, "example unit"]],
    *,
    form: Form = "raw",
    eps: float = 1e-6,
    dead_below: float = 0.01,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> LatentScores:
    """How few output units a latent moves.

        p_k(u) = E_n c_k(n, u)^2 / sum_u' E_n c_k(n, u')^2,   c_k = D(z~_k) - D(z)
        raw:         S_k = 1 / (H(p_k) + eps)                 H in nats; between 1 / ln U and 1 / eps
        normalised:  S_k = 1 - H(p_k) / ln U                  0: all U units move alike; 1: a single unit moves

    In the raw form an exactly dead latent has p = 0, H = 0 and so the largest score of all, 1 / eps: an artefact, kept as
    published but flagged. The normalised form is undefined for a dead latent. Units can be pixels or readout targets.

    Args:
        changes: for each latent, the change of every output unit for every example; published with z_k set to 0. Any
            iterable of [example, unit] arrays, so that latents can be streamed; a [latent, example, unit] array is one.
        form: `"raw"` or `"normalised"`.
        eps: of the raw form.
        dead_below: a latent whose root mean squared change is at or below this share of the largest is dead.
        level: coverage of the intervals.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns:
        One score per latent; None, with a flag, for a dead latent in the normalised form.

    Raises:
        DataError: wrong shape, non-finite changes, or fewer than two units.

    Example:
        >>> one_unit, all_units, dead = np.eye(4)[:1], np.ones((1, 4)), np.zeros((1, 4))
        >>> intervention_specificity([one_unit, all_units, dead], form="normalised").values
        (1.0, 0.0, None)
    """
    raw = _is_raw(form)

    def score(mean_squares: Float[np.ndarray, "resample unit"]) -> Float[np.ndarray, " resample"]:
        entropy = _entropy(mean_squares)
        return 1 / (entropy + eps) if raw else 1 - entropy / np.log(mean_squares.shape[1])

    values: list[float | None] = []
    ci: list[tuple[float, float] | None] = []
    sizes = []
    for change in changes:
        squares = _checked(change, "each latent's changes", ("example", "unit")) ** 2
        if squares.shape[1] < 2:
            raise DataError("changes has a single output unit; specificity needs at least two.")
        sizes.append(np.sqrt(squares.mean(axis=0).sum()))
        values.append(float(score(squares.mean(axis=0)[None])[0]))
        ci.append(_bootstrap(squares, score, level, n_boot, seed))
    flags = _dead_flags(np.array(sizes), dead_below)
    if not raw:
        values = [None if flag else value for value, flag in zip(values, flags, strict=True)]
        ci = [None if flag else interval for interval, flag in zip(ci, flags, strict=True)]
    return LatentScores("intervention specificity", form, tuple(values), tuple(ci), flags)


def circuit_modularity(
    changes: Float[np.ndarray, "latent example unit"],
    *,
    form: Form = "raw",
    dead_below: float = 0.01,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> Score:
    """How separate the units are that different latents act through.

        raw:         M = 1 - mean_{i<j} | rho(Delta a_i, Delta a_j) |,   Delta a_i = E_n change, rho Pearson's correlation
        normalised:  M = 1 - mean_{i<j} cos(r_i, r_j),                   r_i = root mean squared change, per unit

    In the raw form two latents that act through disjoint halves of a layer are *anti*-correlated, rho = -1, and score 0,
    as if they shared every unit. The cosine of non-negative profiles is 0 there: M = 1 for disjoint units, 0 for
    identical profiles; dead latents are left out.

    Args:
        changes: change of each unit of a decoder site under do(z_i), for every example. The re-implementation used the
            encoder's last weights instead: pass `fc_mu_weight[:, None, :]` for its numbers.
        form: `"raw"` or `"normalised"`.
        dead_below: a latent whose root mean squared change is at or below this share of the largest is dead.
        level: coverage of the interval.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns:
        One score; None with a note where a correlation is undefined (raw), or fewer than two latents are alive.

    Raises:
        DataError: wrong shape or non-finite changes.

    Example:
        >>> halves = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])[:, None, :]
        >>> circuit_modularity(halves).value, circuit_modularity(halves, form="normalised").value
        (0.0, 1.0)
    """
    raw = _is_raw(form)
    changes = _checked(changes, "changes", ("latent", "example", "unit"))
    dead = [k for k, flag in enumerate(_dead_flags(np.sqrt((changes**2).mean(axis=1).sum(axis=1)), dead_below)) if flag]
    note = f"dead latents: {', '.join(map(str, dead))}" if dead else ""
    if raw:
        kept = changes
    else:
        kept = np.delete(changes, dead, axis=0) ** 2
        note = note and f"left out {note}"
    n_latents, n_examples, n_units = kept.shape
    if n_latents < 2:
        return Score("circuit modularity", form, None, None, f"undefined with {n_latents} latents alive; {note}")

    def score(means: Float[np.ndarray, "resample latent_unit"]) -> Float[np.ndarray, " resample"]:
        profiles = means.reshape(-1, n_latents, n_units)
        return 1 - (_mean_overlap(profiles, centre=True) if raw else _mean_overlap(np.sqrt(profiles), centre=False))

    samples = np.moveaxis(kept, 1, 0).reshape(n_examples, -1)
    value = float(score(samples.mean(axis=0)[None])[0])
    if not np.isfinite(value):
        reason = "undefined: some latent changes every unit alike, so its correlation is 0 / 0"
        return Score("circuit modularity", form, None, None, f"{reason}; {note}" if note else reason)
    return Score("circuit modularity", form, value, _bootstrap(samples, score, level, n_boot, seed), note)


def _mean_overlap(
    profiles: Float[np.ndarray, "resample latent unit"], *, centre: bool
) -> Float[np.ndarray, " resample"]:
    """Mean over pairs of latents of |cosine|, or of |Pearson's rho| when centred; not a number where one is 0 / 0."""
    sizes = np.linalg.norm(profiles, axis=2, keepdims=True)
    if centre:
        profiles = profiles - profiles.mean(axis=2, keepdims=True)
    norms = np.linalg.norm(profiles, axis=2, keepdims=True)
    # centring leaves ~1e-17 of a constant profile; dividing by that would invent a direction
    norms[norms <= 1e-12 * sizes] = np.nan
    directions = profiles / norms
    cosines = np.abs(directions @ directions.transpose(0, 2, 1))
    first, second = np.triu_indices(profiles.shape[1], k=1)
    return cosines[:, first, second].mean(axis=1)


def _entropy(masses: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, " row"]:
    """Entropy in nats of each row after normalising it; 0 for a row of zeros."""
    totals = masses.sum(axis=1, keepdims=True)
    shares = np.divide(masses, totals, out=np.zeros_like(masses), where=totals > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.abs((shares * logs).sum(axis=1))  # abs: -0.0 would print as a negative zero


def _bootstrap(
    samples: Float[np.ndarray, "example column"],
    score: Callable[[Float[np.ndarray, "resample column"]], Float[np.ndarray, " resample"]],
    level: float,
    n_boot: int,
    seed: int,
) -> tuple[float, float] | None:
    """Percentile interval of a score of the column means, resampling examples; None from a single example."""
    n_examples, n_columns = samples.shape
    if n_examples < 2:
        return None
    rows = max(1, _BLOCK // max(n_columns, n_examples))
    blocks = resample_weights(n_examples, n_boot, seed, rows=rows)
    resampled = np.concatenate([score(weights @ samples / n_examples) for weights in blocks])
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def _dead_flags(sizes: Float[np.ndarray, " latent"], dead_below: float) -> tuple[str, ...]:
    limit = dead_below * sizes.max(initial=0.0)
    reason = f"dead: effect at most {100 * dead_below:g} % of the strongest latent's"
    return tuple(reason if size <= limit else "" for size in sizes)


def _is_raw(form: str) -> bool:
    if form not in ("raw", "normalised"):
        raise DataError(f"form={form!r} is not known; expected 'raw' (as published) or 'normalised' (recommended).")
    return form == "raw"


def _positive(spread: float | None) -> float:
    if spread is None or not (np.isfinite(spread) and spread > 0):
        raise DataError(
            f"spread={spread}; the normalised form needs the positive spread of the unperturbed reconstructions: "
            "output_spread(base). A spread of 0 means that the model reconstructs every input alike."
        )
    return float(spread)


def _checked(array: np.ndarray, name: str, axes: tuple[str, ...]) -> Float[np.ndarray, "..."]:
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != len(axes) or 0 in array.shape:
        raise DataError(f"{name} has shape {array.shape}; expected [{', '.join(axes)}], none of them empty.")
    if not np.isfinite(array).all():
        raise DataError(f"{name} has {int((~np.isfinite(array)).sum())} entries that are not finite numbers.")
    return array
