"""What the metrics share: checked arrays, and percentile bootstrap intervals of scores that are functions of means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.stats.intervals import resample_weights

Form = Literal["raw", "normalised"]
Interval = tuple[float, float]
Score = Callable[[Float[np.ndarray, "resample column"]], Float[np.ndarray, "resample cell"]]

_BLOCK = 4_000_000  # elements of one array of resampled profiles


def estimate(
    samples: Float[np.ndarray, "example column"],
    score: Score,
    level: float,
    n_boot: int,
    seed: int,
    *,
    bias_corrected: bool = False,
) -> tuple[Float[np.ndarray, " cell"], list[Interval | None]]:
    """Scores of the column means over examples, and a bootstrap interval of each, resampling examples.

    A score is computed anew in every resample, what it divides by included: a yardstick taken from the same examples adds
    its sampling error, and its correlation with the rest, to the interval.

    Args:
        samples: what is averaged over examples.
        score: from column means `[resample, column]` to scores `[resample, cell]`.
        level: coverage of the intervals.
        n_boot: resamples.
        seed: of the resampling.
        bias_corrected: for scores that noise in the means biases, as it does an entropy. With t the plain score and t* its
            resamples: the score is 2 t - mean t*, the interval the basic one, 2 t - quantiles of t*. Otherwise t and
                quantiles of t*.

    Returns: the scores; and for each its interval, None from a single example or where too many resamples are undefined.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, sections 10.6 (bias) and 13.3 (percentiles); Davison &
        Hinkley 1997, section 5.2 (basic intervals).
    """
    n_examples, n_columns = samples.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        values = score(samples.mean(axis=0)[None])[0]
        if n_examples < 2:
            return values, [None] * len(values)
        rows = max(1, _BLOCK // max(n_columns, n_examples))
        blocks = resample_weights(n_examples, n_boot, seed, rows=rows)
        resampled = np.concatenate([score(weights @ samples / n_examples) for weights in blocks])
        if bias_corrected:
            resampled = 2 * values - resampled
            values = resampled.mean(axis=0)
        tail = (1 - level) / 2
        bounds = np.quantile(resampled, [tail, 1 - tail], axis=0).T
    return values, [(float(low), float(high)) if np.isfinite(low + high) else None for low, high in bounds]


def squared_deviations(base: Float[np.ndarray, "example *out"]) -> Float[np.ndarray, " example"]:
    """Squared distance of each output from the mean output: the root of its mean is their spread.

    The centre is that of the whole sample in every resample. Its own error is of second order; recentring would make every
    resampled spread too small by a share 1 / 2n, which for images, whose total variance is known far better than that, is
    more than the whole width of the interval.
    """
    flat = np.asarray(base, dtype=np.float64).reshape(len(base), -1)
    return ((flat - flat.mean(axis=0)) ** 2).sum(axis=1)


def squared_deviations_per_unit(
    activations: Float[np.ndarray, "example unit *position"],
) -> Float[np.ndarray, "example unit"]:
    """Squared distance of each unit from its mean over examples and positions, mean over positions; as `squared_deviations`."""
    flat = np.asarray(activations, dtype=np.float64).reshape(*activations.shape[:2], -1)
    return ((flat - flat.mean(axis=(0, 2), keepdims=True)) ** 2).mean(axis=2)


def is_raw(form: str) -> bool:
    """Whether the form is the published one.

    Raises:
        DataError: there is no such form.
    """
    if form not in ("raw", "normalised"):
        raise DataError(f"form={form!r} is not known; expected 'raw' (as published) or 'normalised' (recommended).")
    return form == "raw"


def checked(array: np.ndarray, name: str, axes: tuple[str, ...]) -> Float[np.ndarray, "..."]:
    """The array in float64, refused where it has other axes (`"*rest"` stands for any), is empty or is not finite.

    Raises:
        DataError: says what was got.
    """
    array = np.asarray(array, dtype=np.float64)
    fits = array.ndim >= len(axes) - 1 if axes[-1].startswith("*") else array.ndim == len(axes)
    if not fits or 0 in array.shape:
        raise DataError(f"{name} has shape {array.shape}; expected [{', '.join(axes)}], none of them empty.")
    if not np.isfinite(array).all():
        raise DataError(f"{name} has {int((~np.isfinite(array)).sum())} entries that are not finite numbers.")
    return array


def checked_like(
    array: np.ndarray | None, name: str, axes: tuple[str, ...], sizes: tuple[int, ...]
) -> Float[np.ndarray, "..."] | None:
    """As `checked`, its first axes of the lengths given; None stays None.

    Raises:
        DataError: says what was got.
    """
    if array is None:
        return None
    array = checked(array, name, axes)
    if array.shape[: len(sizes)] != sizes:
        wanted = ", ".join(f"{size} {axis}s" for size, axis in zip(sizes, axes, strict=False))
        raise DataError(f"{name} has shape {array.shape}; expected {wanted}, as in what it goes with.")
    return array
