"""Means of skewed numbers: intervals and one-sided tests with the skewness taken out of Student's t."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_ROUNDING = 1e-12  # skewness / sqrt(n) below which Hall's transformation is the identity to machine precision


def simultaneous_interval(
    values: Float[np.ndarray, "*cells example"], level: float
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Intervals of the cells' means that hold all at once: `mean_interval` with Bonferroni's correction over the cells.

    Simulated simultaneous coverage at 90 %, 12 cells of 60 | 128 | 256 examples (Student's t beside it):

    ```
                             this               Student's t
    normal              .90 | .91 | .91      .90 | .91 | .90
    |normal|            .92 | .90 | .90      .88 | .88 | .89
    exponential         .91 | .91 | .91      .80 | .86 | .87
    |normal|, 70 % 0    .97 | .95 | .93      .73 | .81 | .87
    ```

    No interval covers an effect that so few examples have that none may be in the sample.

    Args:
        values: independent examples of each cell.
        level: simultaneous coverage.

    Returns: lower and upper bounds.

    Example:
        >>> low, high = simultaneous_interval(np.random.default_rng(0).exponential(1.0, (3, 100)), 0.95)
        >>> bool((low < 1.0).all() and (high > 1.0).all())
        True
    """
    return mean_interval(values, 1 - (1 - level) / max(values[..., 0].size, 1))


def mean_interval(
    values: Float[np.ndarray, "*cells example"], level: float
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """Interval of each mean: with T = sqrt(n) (mean - mu) / s, all mu for which Student's t does not reject Hall's g(T).

        g(T) = T + c T^2 / 3 + c^2 T^3 / 27 + c / 6,      c = skewness / sqrt(n)

    g is monotone and free of the skewness that T has to order 1 / sqrt(n). Being in closed form it reaches as far into the tails
    as corrections for many tests ask, where quantiles of resamples cannot.

    Args:
        values: independent examples of each cell.
        level: coverage of each interval.

    Returns: lower and upper bounds; of a cell without spread, its value twice.

    Source: Hall 1992, J. R. Stat. Soc. B 54, 221-228.

    Example:
        >>> low, high = mean_interval(np.array([1.0, 2.0, 3.0]), 0.95)  # no skewness: Student's t
        >>> round(float(low), 3), round(float(high), 3)
        (-0.484, 4.484)
    """
    from scipy.special import stdtrit

    mean, error, c = _moments(values)
    reach = stdtrit(values.shape[-1] - 1, (1 + level) / 2)
    return mean - error * _inverse(reach, c), mean - error * _inverse(-reach, c)


def one_sided_pvalues(
    values: Float[np.ndarray, "*cells example"], threshold: float | Float[np.ndarray, "*cells"]
) -> tuple[Float[np.ndarray, "*cells"], Float[np.ndarray, "*cells"]]:
    """p-values of "mean <= threshold" (small where the mean is above) and of "mean >= threshold" (small where it is below).

    The test that `mean_interval` inverts. A cell without spread is known: its p-values are 0 or 1.

    Args:
        values: independent examples of each cell.
        threshold: one for all cells, or one each.

    Returns: the two, each of the cells' shape.

    Source: Hall 1992, as `mean_interval`.

    Example:
        >>> above, below = one_sided_pvalues(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), 1.0)
        >>> above.round(4), below.round(4)
        (array([0.1127, 1.    ]), array([0.8873, 0.    ]))
    """
    from scipy.special import stdtr

    mean, error, c = _moments(values)
    beyond = mean - threshold
    beyond = np.where(
        np.abs(beyond) <= 1e-14 * np.abs(threshold), 0.0, beyond
    )  # what rounding makes of a mean of equal numbers
    t = np.divide(beyond, error, out=np.where(beyond == 0, 0.0, np.copysign(np.inf, beyond)), where=error > 0)
    finite = np.where(np.isfinite(t), t, 0.0)
    g = np.where(np.isfinite(t), finite + c * finite**2 / 3 + c**2 * finite**3 / 27 + c / 6, t)
    freedom = values.shape[-1] - 1
    exactly = (error == 0) & (beyond == 0)
    return np.where(exactly, 1.0, stdtr(freedom, -g)), np.where(exactly, 1.0, stdtr(freedom, g))


def _moments(values: Float[np.ndarray, "*cells example"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its standard error, and skewness / sqrt(n)."""
    n = values.shape[-1]
    mean = values.mean(axis=-1, dtype=np.float64)
    apart = values - mean[..., None]
    square = np.square(apart).mean(axis=-1)
    # The mean of n equal numbers may be off by rounding; that is no spread.
    spread = square > (1e-14 * np.abs(values).max(axis=-1, initial=0.0)) ** 2
    square = np.where(spread, square, 0.0)
    cube = np.power(apart, 3).mean(axis=-1)
    skewness = np.divide(cube, square**1.5, out=np.zeros_like(cube), where=square > 0)
    return mean, np.sqrt(square / (n - 1)), skewness / np.sqrt(n)


def _inverse(y: float, c: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """The T at which Hall's transformation is y."""
    skewed = np.abs(c) > _ROUNDING
    safe = np.where(skewed, c, 1.0)
    return np.where(skewed, 3 / safe * (np.cbrt(1 + safe * (y - safe / 6)) - 1), y)
