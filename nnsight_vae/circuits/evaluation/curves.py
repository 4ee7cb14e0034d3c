"""Faithfulness over circuit size, and the areas that sum the curve up in one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from nnsight_vae.errors import CircuitError
from nnsight_vae.results.proportion import Proportion
from nnsight_vae.stats.clusters import checked_design
from nnsight_vae.stats.resampling import design_weights

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of all edges, as in MIB
AREAS = ("cpr", "cmd", "log_cpr", "log_cmd")

_Ids = Shaped[np.ndarray, " pair"] | None


class Areas(NamedTuple):
    """One area per target, with its percentile interval.

    Attributes:
        value: of the mean curve.
        low, high: ends of the interval; not finite where a resampled total effect is exactly 0.
    """

    value: Float[np.ndarray, " target"]
    low: Float[np.ndarray, " target"]
    high: Float[np.ndarray, " target"]

    def proportion(self, target: int) -> Proportion:
        """The area of one target, or why there is none."""
        value, low, high = (float(each[target]) for each in self)
        if not np.isfinite([low, high]).all():
            return Proportion(None, None, None, "the total effect is exactly 0 in some resample")
        return Proportion(value, low, high)


def sizes_for(n_circuit: int, n_edges: int, ranked: bool) -> tuple[int, ...]:
    """Sizes at which a curve is read: eight within the circuit, and MIB's shares of all edges where the rest is ranked.

    Example:
        >>> sizes_for(10, 1000, ranked=False)
        (1, 2, 4, 6, 8, 10)
        >>> sizes_for(10, 1000, ranked=True)
        (1, 2, 4, 5, 6, 8, 10, 20, 50, 100, 200, 500, 1000)
    """
    within = {min(n_circuit, max(1, round(n_circuit * (i / 8) ** 2))) for i in range(1, 9)} - {0}
    shares = {max(1, round(n_edges * share)) for share in SHARES} if ranked else set()
    return tuple(sorted(within | shares))


def checked_sizes(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Numbers of edges, rising and without repeats.

    Raises:
        CircuitError: one is no whole number from 1 to `most`.
    """
    wrong = [k for k in sizes if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most]
    if wrong:
        raise CircuitError(
            f"sizes={list(sizes)!r}: expected numbers of edges from 1 to the {most:,} that are ranked, got {wrong[0]!r}; "
            "scores= ranks all edges of the model."
        )
    return tuple(sorted({int(k) for k in sizes}))


def curve_areas(
    effects: Float[np.ndarray, "size target pair"],
    total: Float[np.ndarray, "target pair"],
    sizes: Sequence[int],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Areas]:
    """Area under a faithfulness curve f(k) = mean effect of the k strongest edges / mean total effect, and beside it.

    - `cpr` = integral of f over k / K from 0 to 1 (circuit performance ratio): large is good.
    - `cmd` = integral of |1 - f| (circuit-model distance): 0 is best, and overshooting is no virtue.
    - `log_cpr`, `log_cmd`: the same over log k from the first size to K, where small circuits take up most of the axis.

    K is the last size. f(0) = 0 by definition and begins the linear areas. Areas are trapezoids between the sizes, of |1 - f|
    as read at them: MIB's sizes have none between half of the edges and all, so with them a ranking that carries nothing before
    the very end has a `cpr` of .25, and that is the number to hold others against (`area_gains`).

    Args:
        effects: m(C_k) - m(nothing) for every size.
        total: m(M) - m(nothing).
        sizes: numbers of edges, rising; the last one is K.
        groups: id of the base of each pair.
        source_groups: id of the source of each pair, where sources are reused.
        level: coverage aimed at.
        n_boot: resamples of clusters; all sizes and targets share them.
        seed: of the resampling.

    Returns: name of the area -> `Areas`. With a single size the logarithmic areas are its f and |1 - f|.

    Raises:
        DataError: fewer than two clusters.

    Source: Mueller et al. 2025 (MIB, arXiv 2504.13151), section 3; there without the point at 0. The logarithmic axis is ours.

    Example:
        >>> total = np.ones((1, 4))
        >>> half = curve_areas(np.stack([total / 2, total]), total, (1, 2))
        >>> half["cpr"].value.tolist(), half["cmd"].value.tolist()
        ([0.5], [0.5])
    """
    drawn = _drawn_areas(effects, total, sizes, groups, source_groups, n_boot, seed)
    return {name: _summed_up(values, level) for name, values in drawn.items()}


def area_gains(
    effects: Float[np.ndarray, "size target pair"],
    rival: Float[np.ndarray, "size target pair"],
    total: Float[np.ndarray, "target pair"],
    sizes: Sequence[int],
    groups: _Ids = None,
    source_groups: _Ids = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Areas]:
    """What the areas of one curve are above those of another, resample by resample: both are of the same pairs.

    Args:
        effects: of the curve, as in `curve_areas`.
        rival: of the other curve, at the same sizes.
        total: as in `curve_areas`, and so on.
        sizes: of both.
        groups: of the pairs.
        source_groups: of the pairs.
        level: coverage aimed at.
        n_boot: resamples.
        seed: of the resampling.

    Raises:
        DataError: fewer than two clusters.

    Example:
        >>> total = np.ones((1, 4))
        >>> found = area_gains(np.stack([total, total]), np.stack([total / 2, total]), total, (1, 2))
        >>> found["cpr"].value.tolist()
        [0.25]
    """
    own, other = (_drawn_areas(each, total, sizes, groups, source_groups, n_boot, seed) for each in (effects, rival))
    return {name: _summed_up(values - other[name], level) for name, values in own.items()}


def _summed_up(values: Float[np.ndarray, "target draw"], level: float) -> Areas:
    low, high = np.quantile(values[:, 1:], [(1 - level) / 2, (1 + level) / 2], axis=1)
    return Areas(values[:, 0], low, high)


def _drawn_areas(
    effects: Float[np.ndarray, "size target pair"],
    total: Float[np.ndarray, "target pair"],
    sizes: Sequence[int],
    groups: _Ids,
    source_groups: _Ids,
    n_boot: int,
    seed: int,
) -> dict[str, Float[np.ndarray, "target draw"]]:
    """Each area as observed, then in every resample; the same seed resamples the same pairs."""
    design = checked_design(total, groups, source_groups)
    stacked = np.concatenate([effects, total[None]])
    sums = design.atoms.sums(stacked.reshape(-1, stacked.shape[-1]))
    observed = sums.sum(axis=1)[:, None]
    drawn = [sums @ weights.T / (weights @ design.atoms.sizes) for weights, _ in design_weights(design, n_boot, seed)]
    curves = np.concatenate([observed / design.atoms.sizes.sum(), *drawn], axis=1)
    means = curves.reshape(len(stacked), total.shape[0], -1)  # the last axis: as observed, then every resample
    with np.errstate(divide="ignore", invalid="ignore"):
        f = means[:-1] / means[-1]
    return _areas(f, np.asarray(sizes))


def _areas(f: Float[np.ndarray, "size target boot"], sizes: Int[np.ndarray, " size"]) -> dict[str, np.ndarray]:
    from_zero = np.concatenate([np.zeros_like(f[:1]), f])
    linear = np.concatenate([[0.0], sizes / sizes[-1]])
    log = np.log(sizes)
    log = np.array([1.0]) if len(sizes) == 1 else (log - log[0]) / (log[-1] - log[0])
    return {
        "cpr": _trapezoids(from_zero, linear),
        "cmd": _trapezoids(np.abs(1 - from_zero), linear),
        "log_cpr": _trapezoids(f, log),
        "log_cmd": _trapezoids(np.abs(1 - f), log),
    }


def _trapezoids(y: Float[np.ndarray, "size *rest"], x: Float[np.ndarray, " size"]) -> np.ndarray:
    if len(x) == 1:
        return y[0]
    return np.tensordot(np.diff(x), (y[1:] + y[:-1]) / 2, axes=1)
