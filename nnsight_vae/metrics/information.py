"""Metrics of mutual information between codes and factors: MIG and modularity."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from nnsight_vae.metrics.tables import FactorScore, Table, require_count, scored, top_two_gap


def mig(codes: np.ndarray, factors: np.ndarray, *, bins: int = 20, n_null: int = 20, seed: int = 0) -> FactorScore:
    """Mutual information gap: how far the best latent of each factor is ahead of the next, ``mean_k (I_1k - I_2k) / H(y_k)``.

    Of a single latent, which has no next one, it is all of its information.

    Args:
        codes: `[n, latent]`; each is cut into `bins` equally wide bins of its own range.
        factors: `[n, factor]`; continuous ones are cut into ten classes of equal size.
        bins: of the codes.
        n_null: permutations for the value of unrelated codes.
        seed: of the permutations.

    Returns: the score in [0, 1], with `matrix` the mutual information in nats `[latent, factor]`.

    Raises:
        DataError: codes or factors that do not fit, or no bins.

    Source: Chen et al. 2018 (arXiv 1802.04942), eq. 6; bins as in Locatello et al. 2019 (arXiv 1811.12359), appendix.

    Example:
        >>> factors = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2)
        >>> print(mig(np.repeat(factors, 20, 0), np.repeat(factors, 20, 0)).value)
        1.0
    """
    require_count("bins", bins)
    table = Table.of(codes, factors)

    def score(table: Table) -> tuple[float, dict[str, float], np.ndarray]:
        information = mutual_information(table, bins)
        return float(np.mean(top_two_gap(information) / entropies(table))), {}, information

    return scored("MIG", table, score, n_null, seed)


def modularity(
    codes: np.ndarray, factors: np.ndarray, *, bins: int = 20, n_null: int = 20, seed: int = 0
) -> FactorScore:
    """Modularity: whether each latent informs about one factor only, ``mean_j 1 - sum_{k != best} I_jk^2 / (I_j,best^2 (K - 1))``.

    Latents that inform about nearly nothing count as much as others and can score high: read it beside its null. A latent that informs
    about nothing at all, such as a constant one, counts 0.

    Args:
        codes: `[n, latent]`.
        factors: `[n, factor]`.
        bins: of the codes.
        n_null: permutations for the value of unrelated codes.
        seed: of the permutations.

    Returns: the score in [0, 1], with `matrix` the mutual information in nats; None of a single factor, or where no latent informs.

    Raises:
        DataError: codes or factors that do not fit, or no bins.

    Source: Ridgeway and Mozer 2018 (arXiv 1802.05312), section 3.1.

    Example:
        >>> factors = np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2)
        >>> print(round(modularity(np.repeat(factors, 20, 0), np.repeat(factors, 20, 0), n_null=0).value, 6))
        1.0
    """
    require_count("bins", bins)
    table = Table.of(codes, factors)

    def score(table: Table) -> tuple[float | None, dict[str, float], np.ndarray]:
        information = mutual_information(table, bins)
        squares = information**2
        best = squares.max(axis=1)
        if information.shape[1] < 2 or not best.any():
            return None, {}, information
        rest = (squares.sum(axis=1) - best) / (information.shape[1] - 1)
        each = np.where(best > 0, 1 - np.divide(rest, best, out=np.ones_like(best), where=best > 0), 0.0)
        return float(each.mean()), {}, information

    why = "there is one factor only" if table.factors.shape[1] < 2 else "no latent informs about any factor"
    return scored("modularity", table, score, n_null, seed, undefined=why)


def mutual_information(table: Table, bins: int) -> Float[np.ndarray, "latent factor"]:
    """Mutual information in nats between binned codes and classes of factors."""
    binned = np.stack([binned_code(column, bins) for column in table.codes.T])
    return np.array([[_information(code, classes) for classes in table.classes.T] for code in binned])


def entropies(table: Table) -> Float[np.ndarray, " factor"]:
    """Entropy of each factor's classes in nats."""
    return np.array([_entropy(np.bincount(classes)) for classes in table.classes.T])


def binned_code(code: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """The bin of each value, of `bins` equally wide ones over the code's range; the last one holds its largest value."""
    return np.digitize(code, np.histogram_bin_edges(code, bins)[:-1])


def _information(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]) -> float:
    joint = np.zeros((a.max() + 1, b.max() + 1), dtype=np.int64)
    np.add.at(joint, (a, b), 1)
    return max(0.0, _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.ravel()))


def _entropy(counts: Int[np.ndarray, " m"]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
