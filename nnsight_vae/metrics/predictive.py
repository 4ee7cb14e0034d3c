"""Metrics of how well factors are predicted from codes: DCI, SAP and explicitness."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.tables import FactorScore, Table, scored, top_two_gap

_TINY = 1e-11  # keeps the logarithm of a share of 0
_FEWEST_TESTED = 10


def dci(codes: np.ndarray, factors: np.ndarray, *, test: float = 1 / 3, n_null: int = 3, seed: int = 0) -> FactorScore:
    """Disentanglement, completeness and informativeness, from the importance R_jk of latent j to boosted trees that predict factor k.

    ``D = sum_j rho_j (1 - H_K(R_j.))``, rho_j the latent's share of all importance; ``C`` the same by factors; informativeness is the
    accuracy (of continuous factors R^2) on examples held out.

    Args:
        codes: `[n, latent]`.
        factors: `[n, factor]`; those with at most 50 values are classified, others regressed.
        test: share of the examples that is held out, drawn at random.
        n_null: permutations for the value of unrelated codes; each fits all trees again.
        seed: of the examples held out, of trees and of permutations.

    Returns: disentanglement as the value, None of a single factor; completeness (of two latents or more), informativeness and
        train_informativeness as parts; `matrix` R.

    Raises:
        DataError: codes or factors that do not fit, or too few examples, or examples of a value, to hold some out.

    Source: Eastwood and Williams 2018 (ICLR), with gradient-boosted trees as Locatello et al. 2019 (arXiv 1811.12359).

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 3, (200, 2))
        >>> result = dci(factors + 0.0, factors, n_null=0)
        >>> round(result.value, 3), round(result.parts["informativeness"], 3)
        (1.0, 1.0)
    """
    table = Table.of(codes, factors)
    train, tested = _split(table, test, seed)

    def score(table: Table) -> tuple[float | None, dict[str, float], np.ndarray]:
        importance, fit, held_out = _boosted(table.rows(train), table.rows(tested), seed)
        completeness = _weighted(importance)
        parts = {} if completeness is None else {"completeness": completeness}
        return _weighted(importance.T), parts | {"informativeness": held_out, "train_informativeness": fit}, importance

    why = "there is one factor only"
    return scored("DCI disentanglement", table, score, n_null, seed, of_classes=False, undefined=why)


def sap(
    codes: np.ndarray,
    factors: np.ndarray,
    *,
    continuous: bool = False,
    test: float = 1 / 3,
    n_null: int = 3,
    seed: int = 0,
) -> FactorScore:
    """Separated attribute predictability: how far the best single latent predicts each factor better than the next.

    The classifier takes codes as they are, as in the program that made it common: it is penalised for steep slopes and for intercepts,
    so that a latent of small scale, or far from 0, predicts less. `continuous=True` does not depend on scales.

    Args:
        codes: `[n, latent]`.
        factors: `[n, factor]`.
        continuous: True: squared correlation over all examples. False: accuracy, on examples held out, of a linear support vector
            classifier on one latent.
        test: share of the examples that is held out, drawn at random.
        n_null: permutations for the value of unrelated codes.
        seed: of the examples held out, of classifiers and of permutations.

    Returns: the mean gap in [0, 1]; `matrix` the scores of each latent for each factor.

    Raises:
        DataError: codes or factors that do not fit, or too few examples, or examples of a value, to hold some out.

    Source: Kumar et al. 2018 (arXiv 1711.00848), section 3.

    Example:
        >>> factors = np.random.default_rng(0).normal(size=(100, 2))
        >>> sap(factors, factors, continuous=True, n_null=0).value > 0.9
        True
    """
    table = Table.of(codes, factors)
    rows = None if continuous else _split(table, test, seed)

    def score(table: Table) -> tuple[float, dict[str, float], np.ndarray]:
        matrix = _squared_correlations(table) if rows is None else _accuracies(table, *rows, seed)
        return float(top_two_gap(matrix).mean()), {}, matrix

    return scored("SAP", table, score, n_null, seed, of_classes=not continuous)


def explicitness(
    codes: np.ndarray, factors: np.ndarray, *, test: float = 1 / 3, n_null: int = 3, seed: int = 0
) -> FactorScore:
    """Explicitness: area under the ROC curve of a logistic regression from all latents to each factor, one class against the rest.

    Codes are standardised first, so that the regression's penalty does not depend on their scales (published: as they are).

    Args:
        codes: `[n, latent]`.
        factors: `[n, factor]`; continuous ones are cut into ten classes of equal size.
        test: share of the examples that is held out, drawn at random.
        n_null: permutations for the value of unrelated codes: near .5.
        seed: of the examples held out, and of the permutations.

    Returns: the mean area in [0, 1] on held-out examples; `train` as a part.

    Raises:
        DataError: codes or factors that do not fit, or too few examples, or examples of a value, to hold some out.

    Source: Ridgeway and Mozer 2018 (arXiv 1802.05312), section 3.2.

    Example:
        >>> factors = np.random.default_rng(0).integers(0, 2, (100, 2))
        >>> explicitness(factors + 0.0, factors, n_null=0).value
        1.0
    """
    table = Table.of(codes, factors)
    train, tested = _split(table, test, seed)
    _require_both(table, train, tested)

    def score(table: Table) -> tuple[float, dict[str, float], None]:
        areas = _areas(table, train, tested)
        return float(areas[:, 1].mean()), {"train": float(areas[:, 0].mean())}, None

    return scored("explicitness", table, score, n_null, seed)


def _split(table: Table, test: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to test, at random: tables are often sorted by a factor."""
    n = len(table.codes)
    held_out = round(n * test) if 0 < test < 1 else 0
    if held_out < _FEWEST_TESTED or n - held_out < _FEWEST_TESTED:
        raise DataError(
            f"test={test} of {n} examples leaves {n - held_out} to learn from and {held_out} to test; at least {_FEWEST_TESTED} each."
        )
    order = np.random.default_rng([seed, 1]).permutation(n)
    train, tested = order[held_out:], order[:held_out]
    single = [k for k, classes in enumerate(table.classes[train].T) if np.ptp(classes) == 0]
    if single:
        raise DataError(
            f"factors {single} (columns) take one value only in the {len(train)} examples to learn from; give more, or leave them out."
        )
    return train, tested


def _require_both(table: Table, train: np.ndarray, tested: np.ndarray) -> None:
    """Refuse factors of which no class that can be learned is both there and not there among the held-out examples."""
    for k, classes in enumerate(table.classes.T):
        shown = np.unique(classes[tested])
        if len(shown) < 2 or not np.isin(shown, classes[train]).any():
            raise DataError(
                f"factor {k} (column) shows too few of its values in the {len(tested)} examples held out to say how well it is told; "
                "give more examples, or leave it out."
            )


def _boosted(train: Table, tested: Table, seed: int) -> tuple[Float[np.ndarray, "latent factor"], float, float]:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    codes, tested_codes = _standardised(train.codes, train.codes), _standardised(tested.codes, train.codes)
    columns, fit, held_out = [], [], []
    state = np.random.RandomState(seed)  # one stream for all factors
    for k in range(train.factors.shape[1]):
        continuous = k in train.binned
        kind: Any = GradientBoostingRegressor if continuous else GradientBoostingClassifier
        of = (lambda t, k=k: t.factors[:, k]) if continuous else (lambda t, k=k: t.classes[:, k])
        model = kind(random_state=state).fit(codes, of(train))
        columns.append(np.abs(model.feature_importances_))
        fit.append(model.score(codes, of(train)))
        held_out.append(model.score(tested_codes, of(tested)))
    return np.stack(columns, axis=1), float(np.mean(fit)), float(np.mean(held_out))


def _standardised(codes: Float[np.ndarray, "n latent"], like: Float[np.ndarray, "m latent"]) -> np.ndarray:
    """Codes in sd from the mean of others. Trees see them in float32, which has too few digits for what varies little far from 0."""
    sd = like.std(0)
    return (codes - like.mean(0)) / np.where(sd > 0, sd, 1.0)


def _weighted(importance: Float[np.ndarray, "a b"]) -> float | None:
    """``sum_b rho_b (1 - H(importance of the a's for b) / log A)``, rho_b the share of b in all importance; None of a single a."""
    if len(importance) < 2:
        return None
    shares = importance + _TINY
    shares = shares / shares.sum(axis=0)
    focus = 1 + (shares * np.log(shares)).sum(axis=0) / np.log(len(shares))
    total = importance.sum()
    weights = importance.sum(axis=0) / total if total else np.full(importance.shape[1], 1 / importance.shape[1])
    return float((focus * weights).sum())


def _squared_correlations(table: Table) -> Float[np.ndarray, "latent factor"]:
    codes, factors = (array - array.mean(0) for array in (table.codes, table.factors))
    covariance = codes.T @ factors
    norm = np.square(codes).sum(0)[:, None] * np.square(factors).sum(0)
    return np.divide(covariance**2, norm, out=np.zeros_like(covariance), where=norm > 0)


def _accuracies(table: Table, train: np.ndarray, tested: np.ndarray, seed: int) -> Float[np.ndarray, "latent factor"]:
    from sklearn.svm import LinearSVC

    result = np.zeros((table.codes.shape[1], table.classes.shape[1]))
    for (j, k), _ in np.ndenumerate(result):
        code, classes = table.codes[:, [j]], table.classes[:, k]
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=seed).fit(code[train], classes[train])
        result[j, k] = model.score(code[tested], classes[tested])
    return result


def _areas(table: Table, train: np.ndarray, tested: np.ndarray) -> Float[np.ndarray, "factor 2"]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    codes = _standardised(table.codes, table.codes[train])
    areas = []
    for classes in table.classes.T:
        model = LogisticRegression(max_iter=1000).fit(codes[train], classes[train])
        chances = model.predict_proba(codes)
        one_of = classes[:, None] == model.classes_
        areas.append([_mean_area(one_of[rows], chances[rows], roc_auc_score) for rows in (train, tested)])
    return np.array(areas)


def _mean_area(one_of: np.ndarray, chances: np.ndarray, area: Any) -> float:
    """Over the classes that some of the examples have and some have not."""
    shown = one_of.any(0) & ~one_of.all(0)
    return float(np.mean([area(one_of[:, c], chances[:, c]) for c in np.flatnonzero(shown)]))
