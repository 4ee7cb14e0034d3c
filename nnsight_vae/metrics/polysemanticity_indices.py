"""How the effects of one unit are spread over factors, as single numbers. They describe; a verdict needs a test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def selectivity_indices(effects: Float[np.ndarray, " factor"], alive: bool = True) -> dict[str, float | None]:
    """Six indices of one unit's effects e_f >= 0 on K factors; all 1 but the second where it has a single effect.

        entropy_selectivity    1 - H(e / sum e) / log K                      (per code the D of DCI)
        participation_ratio    (sum e)^2 / sum e^2, from 1 to K: the effective number of factors
        top_share              max e / sum e
        gap                    (largest - second) / sum e
        class_selectivity      (largest - mean of the others) / (largest + mean of the others)
        hoyer                  (sqrt K - sum e / sqrt(sum e^2)) / (sqrt K - 1)

    Unrelated effects are not 0 on any: with K = 5 the absolute values of Gaussian noise have .15, 3.55, .44 (class selectivity),
    .29 (Hoyer) and .14 (gap) on average. So a unit's indices mean nothing before its verdict says that it is alive.

    Args:
        effects: sizes, in one unit for all factors.
        alive: False for a unit judged dead.

    Returns: index -> value; None of a dead unit or one without any effect, and, but for the second and third, of a single factor.

    Source: Eastwood & Williams 2018 (entropy); Morcos et al. 2018, arXiv 1803.06959 (class selectivity); Hoyer 2004, J. Mach.
        Learn. Res. 5 (sparseness).

    Example:
        >>> {name: round(value, 3) for name, value in selectivity_indices(np.array([1.0, 1, 0, 0, 0])).items()}
        {'entropy_selectivity': 0.569, 'participation_ratio': 2.0, 'top_share': 0.5, 'gap': 0.0, 'class_selectivity': 0.6, 'hoyer': 0.665}
    """
    total = float(effects.sum())
    if not alive or not total > 0:
        return dict.fromkeys(_INDICES)
    falling = np.sort(effects / total)[::-1]
    return {
        name: index(falling) if len(falling) > 1 or name in _OF_ONE_TOO else None for name, index in _INDICES.items()
    }


def _entropy_selectivity(p: Float[np.ndarray, " factor"]) -> float:
    shown = p[p > 0]
    return float(1 + (shown * np.log(shown)).sum() / np.log(len(p)))


def _class_selectivity(p: Float[np.ndarray, " factor"]) -> float:
    rest = p[1:].mean()
    return float((p[0] - rest) / (p[0] + rest))


def _hoyer(p: Float[np.ndarray, " factor"]) -> float:
    return float((np.sqrt(len(p)) - 1 / np.linalg.norm(p)) / (np.sqrt(len(p)) - 1))


# Of shares that sum to 1, falling.
_INDICES: dict[str, Callable[[Float[np.ndarray, " factor"]], float]] = {
    "entropy_selectivity": _entropy_selectivity,
    "participation_ratio": lambda p: float(1 / np.square(p).sum()),
    "top_share": lambda p: float(p[0]),
    "gap": lambda p: float(p[0] - p[1]),
    "class_selectivity": _class_selectivity,
    "hoyer": _hoyer,
}
_OF_ONE_TOO = ("participation_ratio", "top_share")
INDICES = tuple(_INDICES)
