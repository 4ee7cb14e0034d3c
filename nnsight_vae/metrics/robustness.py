"""Interventional metrics on tables: how steady a latent is while factors other than its own change."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.tables import FactorScore, Table, scored


def irs(
    codes: np.ndarray, factors: np.ndarray, *, quantile: float = 0.99, n_null: int = 20, seed: int = 0
) -> FactorScore:
    """Interventional robustness: how little a latent deviates within a value of its best factor, ``1 - E_v dev(v) / dev_max``.

    For each value v of factor k, latent j deviates from its mean there by at most (in that quantile) ``dev``; the largest deviation
    from its overall mean is ``dev_max``. The score of a latent is the best over factors, that of a model their mean weighted by
    ``dev_max``, so that rescaling one latent changes the score of a model (and rescaling all of them does not). Latents of pure noise
    score .35 to .45, and one example a value scores 1: read it beside its null.

    Args:
        codes: `[n, latent]`.
        factors: `[n, factor]`; continuous ones are cut into ten classes of equal size.
        quantile: of the deviations within a value; 1, their maximum, is the published form.
        n_null: permutations for the value of unrelated codes.
        seed: of the permutations.

    Returns: the score, at most 1, and a little below 0 at the least; `matrix` the robustness of each latent to all but each factor.

    Raises:
        DataError: codes or factors that do not fit, or a quantile out of range.

    Source: Suter et al. 2019 (arXiv 1811.00007), eq. 3; the quantile from Locatello et al. 2019 (arXiv 1811.12359).

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 4, (400, 2))
        >>> irs(factors + 0.0, factors, n_null=0).value
        1.0
    """
    if not 0 < quantile <= 1:
        raise DataError(f"quantile={quantile}: expected a share in (0, 1].")

    def score(table: Table) -> tuple[float | None, dict[str, float], np.ndarray | None]:
        codes = table.codes[:, np.ptp(table.codes, axis=0) > 0]
        if not codes.shape[1]:
            return None, {}, None
        furthest = np.abs(codes - codes.mean(0)).max(0)
        robust = (
            1
            - np.stack([_deviation(codes, classes, quantile) for classes in table.classes.T], axis=1)
            / furthest[:, None]
        )
        matrix = np.full((table.codes.shape[1], table.classes.shape[1]), np.nan)
        matrix[np.ptp(table.codes, axis=0) > 0] = robust
        return float(np.average(robust.max(axis=1), weights=furthest)), {}, matrix

    return scored("IRS", Table.of(codes, factors), score, n_null, seed)


def _deviation(
    codes: Float[np.ndarray, "n latent"], classes: np.ndarray, quantile: float
) -> Float[np.ndarray, " latent"]:
    """Largest deviation (in that quantile) of each code from its mean within a class, averaged over classes."""
    within = [codes[classes == c] for c in np.unique(classes)]
    return np.mean([np.percentile(np.abs(part - part.mean(0)), 100 * quantile, axis=0) for part in within], axis=0)


def unconfoundedness(
    codes: np.ndarray, factors: np.ndarray, *, per_factor: int = 1, n_null: int = 20, seed: int = 0
) -> FactorScore:
    """Unconfoundedness: how little the latents of different factors overlap, ``1 - mean_{i < j} |Z_i ^ Z_j| / |Z_i v Z_j|``.

    ``Z_i`` are the `per_factor` latents that are most robust to all factors but i (the columns of `irs`). It is 1 wherever each
    factor has another favourite, whatever that latent does besides.

    Args:
        codes: `[n, latent]`.
        factors: `[n, factor]`, two or more.
        per_factor: latents a factor.
        n_null: permutations for the value of unrelated codes.
        seed: of the permutations.

    Returns: the score in [0, 1].

    Raises:
        DataError: codes or factors that do not fit, or more latents asked for than there are.

    Source: Reddy et al. 2022 (arXiv 2112.05746), definition 4.1; their code selects other latents for more than one a factor.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 4, (400, 2))
        >>> unconfoundedness(factors + 0.0, factors, n_null=0).value
        1.0
    """
    table = Table.of(codes, factors)
    if table.factors.shape[1] < 2 or not 1 <= per_factor <= table.codes.shape[1]:
        raise DataError(
            f"{table.factors.shape[1]} factors and per_factor={per_factor} of {table.codes.shape[1]} latents: expected two factors or "
            "more, and no more latents a factor than there are."
        )

    def score(table: Table) -> tuple[float | None, dict[str, float], None]:
        matrix = irs(table.codes, table.factors, n_null=0).matrix
        if matrix is None:
            return None, {}, None
        order = np.argsort(-np.nan_to_num(matrix, nan=-1.0), axis=0, kind="stable")[:per_factor]
        chosen = [set(column.tolist()) for column in order.T]
        shared = [len(a & b) / len(a | b) for i, a in enumerate(chosen) for b in chosen[:i]]
        return 1 - float(np.mean(shared)), {}, None

    return scored("unconfoundedness", table, score, n_null, seed)
