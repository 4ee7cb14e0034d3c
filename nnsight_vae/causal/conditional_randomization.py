"""Which units depend on a factor given all other factors, from observed images alone: conditional randomisation tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from nnsight_vae.causal.scm import SCM
from nnsight_vae.errors import DataError

Conditional = Callable[[Float[np.ndarray, "n factor"], int, np.random.Generator], Float[np.ndarray, " n"]]
"""(factors, column, generator) -> a new draw of that column of every row, given the other columns of the row."""

_FIT = 100_000  # draws of a linear SCM that its covariance is taken over: conditional means are then known to .3 % of an sd
_MOST = 9_999


def conditional_pvalues(
    activations: Float[np.ndarray, "unit n"],
    factors: Float[np.ndarray, "n factor"],
    conditional: Conditional,
    *,
    columns: Sequence[int] | None = None,
    n_draws: int = 999,
    seed: int = 0,
) -> Float[np.ndarray, "unit factor"]:
    """p-value of "unit u is independent of factor f given all other factors", for each u and f.

    Factor f is drawn anew given the others, R times. Under the hypothesis the drawn and the observed column are exchangeable for
    the unit, so with T = |sum_i r_i (f_i - mean over all R + 1 columns of f_i)|, r the activation less its regression on the
    other factors, p = (1 + #draws with T as large) / (1 + R) is valid whatever the unit does. T has power against units that
    rise or fall with f; one that answers to f with a peak in the middle may go unnoticed.

    Permuting f instead is not valid where factors cause each other: a unit of a parent is then dependent on the child too.

    Args:
        activations: one number a unit and image.
        factors: of the same images.
        conditional: draws a factor given the others.
        columns: which factors are tested; None: all.
        n_draws: R; no p-value is below 1 / (R + 1).
        seed: of the drawing.

    Raises:
        DataError: lengths disagree, a factor has one value, or the conditional returns something else than n finite numbers.

    Source: Candes et al. 2018, J. R. Stat. Soc. B 80, 551-577, section 4 (model-X conditional randomisation test).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 2))
        >>> p = conditional_pvalues(x.T[:1], x, lambda factors, j, rng: rng.normal(size=len(factors)), n_draws=99)
        >>> p.shape, float(p[0, 0])
        ((1, 2), 0.01)
    """
    n, n_factors = factors.shape
    if activations.ndim != 2 or activations.shape[1] != n or n_draws < 1:
        raise DataError(
            f"activations have shape {activations.shape} for {n} images and n_draws={n_draws}; expected [unit, {n}] and at least 1."
        )
    if constant := np.flatnonzero(np.ptp(factors, axis=0) == 0).tolist():
        raise DataError(f"factors in columns {constant} have one value, so nothing can depend on them.")
    tested = list(range(n_factors)) if columns is None else list(columns)
    p = np.empty((len(activations), len(tested)))
    for place, j in enumerate(tested):
        rng = np.random.default_rng([seed, j])
        versions = np.stack([factors[:, j], *(_drawn(conditional, factors, j, rng) for _ in range(n_draws))])
        rest = _unexplained(activations, factors, j)
        statistic = np.abs(rest @ (versions - versions.mean(axis=0)).T)
        as_large = statistic[:, 1:] >= statistic[:, :1] * (1 - 1e-9)  # a unit that never varies has p = 1
        p[:, place] = (1 + as_large.sum(axis=1)) / (1 + n_draws)
    return p


def partial_correlations(
    activations: Float[np.ndarray, "unit n"], factors: Float[np.ndarray, "n factor"], columns: Sequence[int]
) -> Float[np.ndarray, "unit column"]:
    """|correlation| of what is left of a unit and of a factor after their regression on the other factors; 0 where nothing is.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 2))
        >>> partial_correlations((x[:, :1] + 3 * x[:, 1:]).T, x, [0, 1]).round(6)
        array([[1., 1.]])
    """
    found = []
    for j in columns:
        unit, factor = _unexplained(activations, factors, j), _unexplained(factors[:, j][None], factors, j)
        length = np.linalg.norm(unit, axis=1) * np.linalg.norm(factor)
        found.append(np.divide(np.abs(unit @ factor[0]), length, out=np.zeros(len(unit)), where=length > 0))
    return np.stack(found, axis=1)


def _unexplained(values: Float[np.ndarray, "row n"], factors: np.ndarray, column: int) -> Float[np.ndarray, "row n"]:
    """Residuals of the regression of each row on all factors but one; 0 where only rounding is left."""
    others = np.column_stack([np.ones(len(factors)), np.delete(factors, column, axis=1)])
    fitted, *_ = np.linalg.lstsq(others, values.T, rcond=None)
    rest = values - (others @ fitted).T
    left = np.linalg.norm(rest, axis=1, keepdims=True) > 1e-12 * np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(left, rest, 0.0)


def _drawn(conditional: Conditional, factors: np.ndarray, column: int, rng: np.random.Generator) -> np.ndarray:
    drawn = np.asarray(conditional(factors, column, rng), dtype=np.float64)
    if drawn.shape != (len(factors),) or not np.isfinite(drawn).all():
        raise DataError(
            f"the conditional of factor {column} returned shape {drawn.shape}; expected {len(factors)} finite numbers, one a row."
        )
    return drawn


def draws_needed(n_units: int, n_factors: int, rate: float) -> int:
    """Draws with which a unit of two factors can be told among `n_units` by `judge`; at most 9,999.

    Example:
        >>> draws_needed(8, 4, 0.05)
        1279
    """
    return min(int(np.ceil(2 * n_factors * n_units / rate - 1e-9)) - 1, _MOST)


def linear_conditional(scm: SCM) -> Conditional:
    """The conditional of each variable of `SCM.linear` given all others: Gaussian, with the regression of the joint law.

    Covariances are those of 100,000 draws of the model.

    Raises:
        DataError: the model is not linear; its conditional has to be given.

    Example:
        >>> scm = SCM.linear({("x", "y"): 2.0}, {"x": 1.0, "y": 1.0})
        >>> draw = linear_conditional(scm)
        >>> values = draw(np.array([[9.0, 2.0]] * 20_000), 0, np.random.default_rng(0))  # x | y = 2: N(.8, .2)
        >>> bool(abs(values.mean() - 0.8) < 0.02), bool(abs(values.var() - 0.2) < 0.02)
        (True, True)
    """
    if scm.weights is None:
        raise DataError(
            "only of a model made by SCM.linear is the law of a factor given the others known in closed form; pass conditional=, "
            "a function (factors [n, f], column, generator) -> n draws of that column given the others."
        )
    values, _ = scm.sample(_FIT, np.random.default_rng(0))
    mean, precision = values.mean(axis=0), np.linalg.inv(np.cov(values.T).reshape(len(scm.names), -1))

    def draw(factors: Float[np.ndarray, "n factor"], column: int, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
        others = np.delete(np.arange(len(mean)), column)
        pull = (factors[:, others] - mean[others]) @ precision[others, column]
        variance = 1 / precision[column, column]
        return mean[column] - variance * pull + np.sqrt(variance) * rng.standard_normal(len(factors))

    return draw
