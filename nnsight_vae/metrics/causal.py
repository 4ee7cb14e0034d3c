"""The three metrics of the seed paper: how strongly, how narrowly and how separately each latent acts.

`D` is the decoder, `z` the code of an example, `z~_k` the code with latent k intervened on. Each metric has two forms:

- `"raw"`, as published by an independent re-implementation that cites the paper (the paper's own formulas were not read).
- `"normalised"`, the form we recommend: free of units and safe for dead latents.

Intervals are percentile bootstraps over examples; in the normalised forms the yardstick is taken anew in every resample, so
that its sampling error is in the interval. Which latents are dead, `nnsight_vae.metrics.dead` says; they are flagged, and left
out where their score would be an artefact.

Source: Roy 2025, arXiv 2505.03530.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.dead import dead_flags
from nnsight_vae.metrics.resampling import (
    Form,
    checked,
    checked_like,
    estimate,
    is_raw,
    squared_deviations,
    squared_deviations_per_unit,
)
from nnsight_vae.metrics.scores import LatentScores, Score

_STEADY = 1e-12  # share of a unit's mean square at which its variance is what rounding (to float32) leaves of none


def output_spread(base: Float[np.ndarray, "example *out"]) -> float:
    """Root mean squared distance of outputs from their mean: the yardstick of the normalised effect strength.

    Args:
        base: outputs, one per example: the data's own images, or readouts of them.

    Returns: sqrt(E_n || D_n - mean D ||^2), in output units.

    Example:
        >>> output_spread(np.array([[0.0, 0.0], [6.0, 8.0]]))
        5.0
    """
    return float(np.sqrt(squared_deviations(base).mean()))


def causal_effect_strength(
    displacements: Float[np.ndarray, "latent value example"],
    *,
    form: Form = "raw",
    base: Float[np.ndarray, "example *out"] | None = None,
    kl: Float[np.ndarray, " latent"] | None = None,
    units: tuple[str, ...] = (),
    dead_below: float = 0.01,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> LatentScores:
    """How far the output moves, on average, when a latent is clamped.

        raw:         CES_k = E_{n,v} || D(do(z_k = v)) - D(z) ||_2            in output units (L2 norm over the output)
        normalised:  CES_k / output_spread(base)                             1: as far as a typical example of the data is
                                                                              from the mean example

    The raw form grows with image size, channels and the range of v, so compare it within one data set and one set of
    values only. Published values: 7 clamps, linspace(-3, 3). With images as outputs and `base` the data's images, the
    normalised form is in units of the data's standard deviation; with factor readouts, in units of the factors'.

    Args:
        displacements: || D(do(z_k = v)) - D(z) ||_2 for latent k, value v and each example; at least 0.
        form: `"raw"` or `"normalised"`.
        base: what the yardstick is the spread of, one output per example, in the same order: the data's images, or the
            readouts of them. Needed by the normalised form; in the raw form it only says which latents are dead.
        kl: KL of each latent in nats, for the flags.
        units: a name per latent, where they are not `latent.z[0]`, `latent.z[1]`, ...
        dead_below: share of the yardstick at or below which a latent (of no KL) is dead.
        level: coverage of the intervals.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns: one score per latent.

    Raises:
        DataError: wrong shape, negative or non-finite displacements; no `base` for the normalised form, or one without spread.

    Example:
        >>> displacements = np.abs(np.linspace(-3, 3, 7))[None, :, None] * np.array([[[1.0, 2.0, 3.0]], [[0.0] * 3]])
        >>> print(causal_effect_strength(displacements))
        causal effect strength (raw)
        latent.z[0]  3.43 [1.71, 5.14]
        latent.z[1]  0 [0, 0]  dead: no effect
    """
    raw = is_raw(form)
    displacements = checked(displacements, "displacements", ("latent", "value", "example"))
    if (displacements < 0).any():
        raise DataError("displacements has negative entries; expected L2 norms, which are at least 0.")
    n_latents, _, n_examples = displacements.shape
    base = checked_like(base, "base", ("example", "*out"), (n_examples,))
    kl = checked_like(kl, "kl", ("latent",), (n_latents,))
    samples = displacements.mean(axis=1).T
    spread = None if base is None else output_spread(base)
    if raw:
        values, ci = estimate(samples, lambda means: means, level, n_boot, seed)
    else:
        if base is None or not spread:
            raise DataError(
                f"base={'None' if base is None else 'outputs that are all alike'}; the normalised form needs outputs with a "
                "spread to be measured against: base= the data's images (or readouts of them), one an example."
            )

        def score(means: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample latent"]:
            return means[:, :-1] / np.sqrt(means[:, -1:])

        values, ci = estimate(np.column_stack([samples, squared_deviations(base)]), score, level, n_boot, seed)
    flags = dead_flags(samples.mean(axis=0), below=dead_below, scale=spread, kl=kl)
    return LatentScores("causal effect strength", form, tuple(values.tolist()), tuple(ci), flags, units)


def intervention_specificity(
    changes: Iterable[Float[np.ndarray, "example unit"]],
    *,
    form: Form = "raw",
    eps: float = 1e-6,
    spread: float | None = None,
    kl: Float[np.ndarray, " latent"] | None = None,
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

    From few examples the shares look more uneven than they are, so H comes out too small. The normalised form and both
    intervals are corrected for that (bootstrap estimate of the bias); the raw form is as published, and may lie above its
    interval.

    Args:
        changes: for each latent, the change of every output unit for every example; published with z_k set to 0. Any
            iterable of [example, unit] arrays, so that latents can be streamed; a [latent, example, unit] array is one.
        form: `"raw"` or `"normalised"`.
        eps: of the raw form.
        spread: `output_spread` of the data, against which a latent is called dead; None: the strongest latent's change.
        kl: KL of each latent in nats, for the flags.
        dead_below: share of the yardstick at or below which a latent (of no KL) is dead.
        level: coverage of the intervals.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns: one score per latent; None, with a flag, for a dead latent in the normalised form.

    Raises:
        DataError: wrong shape, non-finite changes, or fewer than two units.

    Example:
        >>> one_unit, all_units, dead = np.eye(4)[:1], np.ones((1, 4)), np.zeros((1, 4))
        >>> intervention_specificity([one_unit, all_units, dead], form="normalised").values
        (1.0, 0.0, None)
    """
    raw = is_raw(form)

    def form_of(entropy: float, n_units: int) -> float:
        entropy = min(max(entropy, 0.0), float(np.log(n_units)))
        return 1 / (entropy + eps) if raw else 1 - entropy / float(np.log(n_units))

    values: list[float | None] = []
    ci: list[tuple[float, float] | None] = []
    sizes = []
    for change in changes:
        squares = checked(change, "each latent's changes", ("example", "unit")) ** 2
        if squares.shape[1] < 2:
            raise DataError("changes has a single output unit; specificity needs at least two.")
        sizes.append(np.sqrt(squares.mean(axis=0).sum()))
        n_units = squares.shape[1]
        (entropy,), (bounds,) = estimate(squares, _entropy, level, n_boot, seed, bias_corrected=True)
        values.append(form_of(float(_entropy(squares.mean(axis=0)[None])[0, 0] if raw else entropy), n_units))
        ci.append(bounds and (form_of(bounds[1], n_units), form_of(bounds[0], n_units)))
    kl = checked_like(kl, "kl", ("latent",), (len(sizes),))
    flags = dead_flags(np.array(sizes), below=dead_below, scale=spread, kl=kl)
    scores = LatentScores("intervention specificity", form, tuple(values), tuple(ci), flags)
    return scores if raw else scores.without_dead()


def circuit_modularity(
    changes: Float[np.ndarray, "latent example unit"],
    *,
    form: Form = "raw",
    activations: Float[np.ndarray, "example unit *position"] | None = None,
    kl: Float[np.ndarray, " latent"] | None = None,
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
    identical profiles; dead latents are left out. Noise makes profiles look less alike than they are; the normalised form and
    its interval are corrected for that (bootstrap estimate of the bias).

    Args:
        changes: change of each unit of a decoder site under do(z_i), for every example. The re-implementation used the
            encoder's last weights instead: pass `fc_mu_weight[:, None, :]` for its numbers.
        form: `"raw"` or `"normalised"`.
        activations: the same units' activations without interventions. Given, the normalised form takes each unit's change in
            units of its own standard deviation (over examples and positions), or the loudest unit is the whole profile; a
            unit that never varies keeps its scale.
        kl: KL of each latent in nats, for which latents are dead.
        dead_below: share of the yardstick at or below which a latent (of no KL) is dead. The yardstick is the unit's own spread
            where `activations` are given (root mean square over units), else the largest latent's change.
        level: coverage of the interval.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns: one score; None with a note where a correlation is undefined (raw), or fewer than two latents are alive.

    Raises:
        DataError: wrong shape or non-finite numbers.

    Example:
        >>> halves = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])[:, None, :]
        >>> circuit_modularity(halves).value, circuit_modularity(halves, form="normalised").value
        (0.0, 1.0)
    """
    raw = is_raw(form)
    changes = checked(changes, "changes", ("latent", "example", "unit"))
    n_latents, n_examples, n_units = changes.shape
    activations = checked_like(activations, "activations", ("example", "unit", "*position"), (n_examples, n_units))
    kl = checked_like(kl, "kl", ("latent",), (n_latents,))
    variances = np.ones((n_examples, n_units))
    if activations is not None:
        variances = squared_deviations_per_unit(activations)
        power = (activations.reshape(n_examples, n_units, -1) ** 2).mean(axis=(0, 2))
        variances[:, variances.mean(axis=0) <= _STEADY * power] = 1.0
    sizes = np.sqrt(((changes**2).mean(axis=1) / variances.mean(axis=0)).mean(axis=1))
    flags = dead_flags(sizes, below=dead_below, scale=None if activations is None else 1.0, kl=kl)
    dead = [k for k, flag in enumerate(flags) if flag.startswith("dead")]
    note = f"dead latents: {', '.join(map(str, dead))}" if dead else ""
    kept, note = (changes, note) if raw else (np.delete(changes, dead, axis=0), note and f"left out {note}")
    if len(kept) < 2:
        few = f"undefined with {len(kept)} latents alive"
        return Score("circuit modularity", form, None, None, f"{few}; {note}" if note else few)

    def score(means: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample 1"]:
        profiles = means[:, :-n_units].reshape(-1, len(kept), n_units)
        if raw:
            return 1 - _mean_overlap(profiles, centre=True)
        return 1 - _mean_overlap(np.sqrt(profiles / means[:, None, -n_units:]), centre=False)

    averaged = np.moveaxis(kept if raw else kept**2, 1, 0).reshape(n_examples, -1)
    (value,), (interval,) = estimate(
        np.hstack([averaged, variances]), score, level, n_boot, seed, bias_corrected=not raw
    )
    if not np.isfinite(value):
        reason = "undefined: some latent changes every unit alike, so its correlation is 0 / 0"
        return Score("circuit modularity", form, None, None, f"{reason}; {note}" if note else reason)
    if not raw:  # a correction may overshoot what is possible
        value = np.clip(value, 0.0, 1.0)
        interval = interval and (max(interval[0], 0.0), min(interval[1], 1.0))
    return Score("circuit modularity", form, float(value), interval, note)


def _mean_overlap(
    profiles: Float[np.ndarray, "resample latent unit"], *, centre: bool
) -> Float[np.ndarray, "resample 1"]:
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
    return cosines[:, first, second].mean(axis=1, keepdims=True)


def _entropy(masses: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, "row 1"]:
    """Entropy in nats of each row after normalising it; 0 for a row of zeros."""
    totals = masses.sum(axis=1, keepdims=True)
    shares = np.divide(masses, totals, out=np.zeros_like(masses), where=totals > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.abs((shares * logs).sum(axis=1, keepdims=True))  # abs: -0.0 would print as a negative zero
