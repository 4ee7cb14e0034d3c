"""Metrics by votes over small batches in which one factor is fixed: the scores of FactorVAE and beta-VAE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.tables import FactorScore, checked_table, require_count

Sampler = Callable[[int, "int | None", np.random.Generator], Float[np.ndarray, "n latent"]]
"""`(n, factor, rng)`: codes of n examples that share one random value of that factor; None: of any n examples."""

_REFERENCE = 10_000  # examples that the spread of each latent is over


def factor_vae_score(
    sampler: Sampler, n_factors: int, *, batch: int = 64, train: int = 800, test: int = 400, seed: int = 0
) -> FactorScore:
    """FactorVAE score: accuracy of the vote "the latent that varies least, relative to its spread, tells which factor is fixed".

    Args:
        sampler: draws codes with one factor fixed; see `grid_sampler`.
        n_factors: how many factors.
        batch: examples a vote.
        train: votes from which each latent learns its factor.
        test: votes that are scored.
        seed: of everything drawn.

    Returns: accuracy in [0, 1]; as null the share of the factor drawn most, which is what constant votes get.

    Raises:
        DataError: the sampler returns no such codes, or a number is not positive.

    Source: Kim and Mnih 2018 (arXiv 1802.05983), section 4; latents that do not vary have no vote.

    Example:
        >>> table = np.stack(np.meshgrid(range(3), range(4)), -1).reshape(-1, 2)
        >>> factor_vae_score(grid_sampler(table + 0.0, table), 2, train=50, test=50).value
        1.0
    """
    rng = _generator(seed, n_factors=n_factors, batch=batch, train=train, test=test)
    spread = _drawn(sampler, _REFERENCE, None, rng).var(0, ddof=1)
    active = spread > 0
    if not active.any():
        return FactorScore("FactorVAE score", None, note="undefined: all codes are constant")
    votes = np.zeros((active.sum(), n_factors), dtype=int)

    def vote() -> tuple[int, int]:
        factor = int(rng.integers(n_factors))
        varying = _drawn(sampler, batch, factor, rng)[:, active].var(0, ddof=1) / spread[active]
        return int(varying.argmin()), factor

    for _ in range(train):
        votes[vote()] += 1
    told = votes.argmax(axis=1)
    tested = [vote() for _ in range(test)]
    value = float(np.mean([told[latent] == factor for latent, factor in tested]))
    return _against_chance("FactorVAE score", value, [factor for _, factor in tested], n_factors)


def beta_vae_score(
    sampler: Sampler, n_factors: int, *, batch: int = 64, train: int = 800, test: int = 400, seed: int = 0
) -> FactorScore:
    """beta-VAE score: accuracy of a linear classifier that tells the shared factor of two batches from their mean |difference|.

    Codes are taken as they are, as published: rescaling a latent changes how much of it the (penalised) classifier can use.

    Args:
        sampler: draws codes with one factor fixed; see `grid_sampler`. Each pair of codes shares one value.
        n_factors: how many factors.
        batch: pairs a point.
        train: points to learn from.
        test: points that are scored.
        seed: of everything drawn.

    Returns: accuracy in [0, 1]; as null the share of the factor drawn most.

    Raises:
        DataError: the sampler returns no such codes, a number is not positive, or there is one factor only.

    Source: Higgins et al. 2017 (ICLR), section 3.

    Example:
        >>> table = np.stack(np.meshgrid(range(3), range(4)), -1).reshape(-1, 2)
        >>> beta_vae_score(grid_sampler(table + 0.0, table), 2, batch=16, train=100, test=50).value
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    rng = _generator(seed, n_factors=n_factors, batch=batch, train=train, test=test)

    def points(n: int) -> tuple[np.ndarray, np.ndarray]:
        factors = rng.integers(n_factors, size=n)
        return np.stack([_difference(sampler, batch, int(k), rng) for k in factors]), factors

    features, factors = points(train)
    if len(np.unique(factors)) < 2:
        few = (
            "there is one factor only" if n_factors < 2 else f"train={train} points hold one factor only; ask for more"
        )
        raise DataError(f"{few}: a classifier needs two to tell apart.")
    model = LogisticRegression(max_iter=1000).fit(features, factors)
    features, factors = points(test)
    return _against_chance("beta-VAE score", float(model.score(features, factors)), factors.tolist(), n_factors)


def grid_sampler(codes: Float[np.ndarray, "n latent"], factors: Float[np.ndarray, "n factor"]) -> Sampler:
    """A sampler that draws rows of a table, with replacement, that share a value of a factor.

    Raises:
        DataError: codes and factors are no tables of one length.

    Example:
        >>> sampler = grid_sampler(np.arange(4.0)[:, None], np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
        >>> sampler(3, 0, np.random.default_rng(0)).ravel() // 2  # one value of factor 0
        array([1., 1., 1.])
    """
    codes, factors = checked_table("codes", codes), checked_table("factors", factors)
    if len(codes) != len(factors):
        raise DataError(f"codes have {len(codes)} rows and factors {len(factors)}; expected one of each an example.")
    rows_of = [[np.flatnonzero(column == value) for value in np.unique(column)] for column in factors.T]

    def sampler(n: int, factor: int | None, rng: np.random.Generator) -> np.ndarray:
        rows = np.arange(len(codes)) if factor is None else rows_of[factor][rng.integers(len(rows_of[factor]))]
        return codes[rng.choice(rows, n)]

    return sampler


def _difference(sampler: Sampler, batch: int, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Mean |difference| of pairs; each pair shares a value of its own."""
    pairs = np.stack([_drawn(sampler, 2, factor, rng) for _ in range(batch)])
    return np.abs(pairs[:, 0] - pairs[:, 1]).mean(0)


def _drawn(sampler: Sampler, n: int, factor: int | None, rng: np.random.Generator) -> Float[np.ndarray, "n latent"]:
    codes = np.asarray(sampler(n, factor, rng), dtype=np.float64)
    if codes.ndim != 2 or len(codes) != n or not np.isfinite(codes).all():
        raise DataError(
            f"the sampler returned {codes.shape} for n={n}, factor={factor}; expected finite codes ({n}, latent)."
        )
    return codes


def _generator(seed: int, **counts: int) -> np.random.Generator:
    for name, count in counts.items():
        require_count(name, count)
    return np.random.default_rng(seed)


def _against_chance(metric: str, value: float, factors: list[int], n_factors: int) -> FactorScore:
    chance = float(np.bincount(factors, minlength=n_factors).max() / len(factors))
    return FactorScore(metric, value, chance, chance)
