"""InfoMEC: modularity, compactness and explicitness of codes in information about factors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.information import entropies
from nnsight_vae.metrics.tables import FactorScore, Table, scored

_LEAST_RANGE = 1 / 20  # of the widest latent's: narrower ones are inactive


def infomec(codes: np.ndarray, factors: np.ndarray, *, n_null: int = 5, seed: int = 0) -> FactorScore:
    """InfoM, InfoC and InfoE: does each latent inform about one factor, each factor sit in one latent, and all of it show linearly?

    With ``N_kj = I(s_k; z_j) / H(s_k)``: ``InfoM = (mean_j max_k N_kj / sum_k N_kj - 1/K) / (1 - 1/K)``, InfoC the same over latents,
    and ``InfoE = mean_k 1 - H(s_k | z) / H(s_k)`` with the conditional entropy of a logistic regression, on the examples that it was
    fitted to. Pure noise has an InfoM of about .6 and an InfoE near 0, so no InfoM is worth reading without its InfoE; and of few
    examples and many latents neither, for the regression then tells noise apart too.

    Args:
        codes: `[n, latent]`; those that vary over less than a twentieth of the widest range are left out.
        factors: `[n, factor]`, two or more; continuous ones are cut into ten classes of equal size.
        n_null: permutations for the value of unrelated codes.
        seed: of the estimator of information, and of the permutations.

    Returns: InfoM as the value; `compactness` (InfoC) and `explicitness` (InfoE) as parts; `matrix` N `[latent, factor]`.

    Raises:
        DataError: codes or factors that do not fit, one factor only, or one example a value of a factor.

    Source: Hsu et al. 2023 (arXiv 2305.18378), section 4; information of continuous codes by nearest neighbours (Ross 2014).

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 3, (300, 2))
        >>> result = infomec(factors + np.random.default_rng(1).normal(0, 0.01, (300, 2)), factors, n_null=0)
        >>> result.value > 0.9, result.parts["compactness"] > 0.9, result.parts["explicitness"] > 0.9
        (True, True, True)
    """
    table = Table.of(codes, factors)
    if table.factors.shape[1] < 2:
        raise DataError("InfoMEC compares factors; there is one only.")
    single = [k for k, classes in enumerate(table.classes.T) if np.bincount(classes).max() < 2]
    if single:
        raise DataError(f"factors {single} (columns) show every value once, so nothing can be told of its neighbours.")

    def score(table: Table) -> tuple[float | None, dict[str, float], np.ndarray | None]:
        width = np.ptp(table.codes, axis=0)
        active = width > _LEAST_RANGE * width.max()
        if not active.any():
            return None, {}, None
        information = _normalised_information(table.codes[:, active], table, seed)
        matrix = np.full((len(active), table.classes.shape[1]), np.nan)
        matrix[active] = information
        parts = {"compactness": _focus(information), "explicitness": _explicitness(table.codes[:, active], table)}
        return _focus(information.T), parts, matrix

    return scored("InfoM", table, score, n_null, seed)


def _normalised_information(
    codes: Float[np.ndarray, "n latent"], table: Table, seed: int
) -> Float[np.ndarray, "latent factor"]:
    from sklearn.feature_selection import mutual_info_classif

    columns = [
        mutual_info_classif(codes, classes, discrete_features=False, random_state=seed) for classes in table.classes.T
    ]
    return np.stack(columns, axis=1) / entropies(table)


def _focus(information: Float[np.ndarray, "a b"]) -> float:
    """Mean over b of the share that the largest of the a's holds, from 0 (all alike) to 1; b's without information count as 0."""
    total = information.sum(axis=0)
    share = np.divide(information.max(axis=0), total, out=np.full_like(total, 1 / len(information)), where=total > 0)
    return 1.0 if len(information) == 1 else float((share.mean() - 1 / len(information)) / (1 - 1 / len(information)))


def _explicitness(codes: Float[np.ndarray, "n latent"], table: Table) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    scaled = (codes - codes.mean(0)) / codes.std(0)
    left = [
        log_loss(c, LogisticRegression(max_iter=1000).fit(scaled, c).predict_proba(scaled)) for c in table.classes.T
    ]
    return float(np.mean(1 - np.array(left) / entropies(table)))
