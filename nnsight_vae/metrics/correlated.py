"""Metrics of codes alone, and of their best match with factors: total correlation, support, and the mean correlation coefficient."""

from __future__ import annotations

from typing import Literal

import numpy as np

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.tables import FactorScore, Table, checked_table, require_count, scored
from nnsight_vae.wording import count


def mcc(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    kind: Literal["pearson", "spearman"] = "pearson",
    n_null: int = 20,
    seed: int = 0,
) -> FactorScore:
    """Mean correlation coefficient: |correlation| of each factor with the latent that a one-to-one assignment gives it.

    Args:
        codes: `[n, latent]`; of fewer latents than factors the score is undefined, for some factor has none.
        factors: `[n, factor]`.
        kind: of correlation; ranks for `spearman`.
        n_null: permutations for the value of unrelated codes.
        seed: of the permutations.

    Returns: the mean in [0, 1]; parts `latent of factor k`; `matrix` of |correlations|.

    Raises:
        DataError: codes or factors that do not fit, or another kind.

    Source: Hyvarinen and Morioka 2016 (arXiv 1605.06336), section 5.

    Example:
        >>> factors = np.random.default_rng(0).normal(size=(50, 2))
        >>> result = mcc(-factors[:, ::-1], factors, n_null=0)
        >>> round(result.value, 6), result.parts
        (1.0, {'latent of factor 0': 1.0, 'latent of factor 1': 0.0})
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import rankdata

    if kind not in ("pearson", "spearman"):
        raise DataError(f"kind={kind!r}: expected 'pearson' or 'spearman'.")
    table = Table.of(codes, factors)
    few = table.codes.shape[1] < table.factors.shape[1]

    def score(table: Table) -> tuple[float | None, dict[str, float], np.ndarray]:
        pair = (table.codes, table.factors)
        a, b = (rankdata(array, axis=0) if kind == "spearman" else array for array in pair)
        a, b = a - a.mean(0), b - b.mean(0)
        norm = np.sqrt(np.square(a).sum(0)[:, None] * np.square(b).sum(0))
        matrix = np.abs(np.divide(a.T @ b, norm, out=np.zeros_like(norm), where=norm > 0))
        if few:
            return None, {}, matrix
        latents, order = linear_sum_assignment(-matrix)
        chosen = dict(sorted((f"latent of factor {k}", float(j)) for j, k in zip(latents, order, strict=True)))
        return float(matrix[latents, order].mean()), chosen, matrix

    sizes = count(table.codes.shape[1], "latent"), count(table.factors.shape[1], "factor")
    why = f"{' for '.join(sizes)}, no latent is left for some; leave factors out"
    return scored("MCC", table, score, n_null, seed, of_classes=False, undefined=why)


def total_correlation(codes: np.ndarray) -> float:
    """Total correlation in nats as if codes were Gaussian: ``(sum_j log C_jj - log det C) / 2``, C their covariance.

    Args:
        codes: `[n, latent]`; constant ones are left out.

    Raises:
        DataError: codes that are no table, or are a linear function of one another.

    Source: Watanabe 1960; as an unsupervised score, Locatello et al. 2019 (arXiv 1811.12359).

    Example:
        >>> round(total_correlation(np.random.default_rng(0).normal(size=(10_000, 3))), 2)
        0.0
    """
    covariance = _covariance(codes)
    root = np.sqrt(np.diag(covariance))
    spectrum = np.linalg.eigvalsh(covariance / root / root[:, None])  # of the correlations, whatever the codes' units
    if spectrum[0] <= len(spectrum) * np.finfo(float).eps:
        raise DataError(
            f"codes are linear functions of one another, or as few as {len(codes)} examples make them so, so their total correlation "
            "is infinite."
        )
    return float(-np.log(spectrum).sum() / 2)


def wasserstein_correlation(codes: np.ndarray, *, normalised: bool = False) -> float:
    """Squared Wasserstein distance of codes, as if Gaussian, from independent ones: ``2 tr C - 2 tr (C^1/2 D C^1/2)^1/2``, D = diag C.

    Args:
        codes: `[n, latent]`; constant ones are left out.
        normalised: divide by tr C.

    Raises:
        DataError: codes that are no table.

    Source: Locatello et al. 2019 (arXiv 1811.12359), appendix; the distance of two Gaussians, Dowson and Landau 1982.

    Example:
        >>> round(wasserstein_correlation(np.random.default_rng(0).normal(size=(10_000, 3))), 2)
        0.0
    """
    covariance = _covariance(codes)
    root = np.sqrt(np.diag(covariance))
    spectrum = np.linalg.eigvalsh(root[:, None] * covariance * root)  # of D^1/2 C D^1/2, which is that of C^1/2 D C^1/2
    distance = 2 * np.trace(covariance) - 2 * np.sqrt(spectrum.clip(min=0)).sum()
    return float(distance / np.trace(covariance) if normalised else distance)


def support_distance(codes: np.ndarray, *, draws: int = 10_000, seed: int = 0) -> float:
    """How far the joint support of codes is from the product of their ranges: the largest hole, as IOSS.

    Codes are scaled to [0, 1]; the result is the largest distance of uniform draws from the unit cube to the nearest code. It grows
    with the number of latents and falls with the number of examples, so compare at equal numbers.

    Args:
        codes: `[n, latent]`; constant ones are left out.
        draws: of the uniform distribution.
        seed: of the draws.

    Raises:
        DataError: codes that are no table, or no draws.

    Source: Wang and Jordan 2021 (arXiv 2109.03795), section 3, IOSS.

    Example:
        >>> grid = np.stack(np.meshgrid(np.linspace(0, 1, 30), np.linspace(0, 1, 30)), -1).reshape(-1, 2)
        >>> support_distance(grid) < 0.03 < support_distance(grid[grid.sum(1) < 1])
        True
    """
    from scipy.spatial import cKDTree

    require_count("draws", draws)
    codes = _varying(codes)
    scaled = (codes - codes.min(0)) / np.ptp(codes, axis=0)
    points = np.random.default_rng(seed).random((draws, scaled.shape[1]))
    return float(cKDTree(scaled).query(points)[0].max())


def _covariance(codes: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.cov(_varying(codes).T))


def _varying(codes: np.ndarray) -> np.ndarray:
    checked = checked_table("codes", codes)
    varying = checked[:, np.ptp(checked, axis=0) > 0]
    if not varying.shape[1]:
        raise DataError("all codes are constant, so there is nothing to compare.")
    return varying
