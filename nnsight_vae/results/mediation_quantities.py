"""The quantities of a mediation from the readouts of its runs: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError

Scale = Literal["difference", "relative"]
Runs = Float[np.ndarray, "target pair"]

# of the mean |Y(base)|: below it a relative effect says more about the pair's base than about the effect
_NEAR_ZERO = 0.01


def quantities(
    runs: Mapping[str, Runs | None], resolution: Float[np.ndarray, " target"] | None
) -> dict[str, Float[np.ndarray, "target pair"]]:
    """TE, NDE, PNIE, TNIE, INT and, where the mediators were held, CDE and INTref, in float64; see `Mediation`.

    Args:
        runs: `base`, `source`, `noised`, `denoised`, and `base_held`, `source_held` or None, as in `Mediation.from_runs`.
        resolution: the largest difference between runs that rounding can make, for each target.

    Raises:
        DataError: the runs differ in shape, or one of the two held runs is missing.
    """
    given = {name: run for name, run in runs.items() if run is not None}
    shapes = {name: np.shape(run) for name, run in given.items()}
    if len(set(shapes.values())) > 1 or len(shapes["base"]) != 2 or len(given) == 5:
        raise DataError(f"The runs have shapes {shapes}; expected one shape [target, pair] for four, or six, of them.")
    y = {name: np.asarray(run, dtype=np.float64) for name, run in given.items()}
    slack = 0.0 if resolution is None else np.asarray(resolution)[:, None]
    te = _snapped(y["source"] - y["base"], slack)
    pnie = _snapped(y["noised"] - y["base"], slack, te)
    tnie = _snapped(y["source"] - y["denoised"], slack, te, pnie)
    found = {"TE": te, "NDE": te - tnie, "PNIE": pnie, "TNIE": tnie, "INT": tnie - pnie}
    if "base_held" in y:
        found["CDE"] = _snapped(y["source_held"] - y["base_held"], slack, found["NDE"])
        found["INTref"] = found["NDE"] - found["CDE"]
    return found


def _snapped(values: np.ndarray, slack: np.ndarray | float, *others: np.ndarray) -> np.ndarray:
    """Values, exactly 0 or exactly another quantity where the difference is no more than rounding.

    A test over pairs does not see how small a difference is, and rounding can have one sign in all of them.
    """
    for other in (np.zeros_like(values), *others):
        values = np.where(np.abs(values - other) <= slack, other, values)
    return values


def divisor(base: Runs, scale: str, targets: Sequence[str]) -> Float[np.ndarray, "target pair"] | float:
    """What effects are divided by on a scale.

    Raises:
        DataError: no such scale, or a pair's base is no yardstick: Y(base) changes sign between pairs, or is near 0 in some.
    """
    if scale not in get_args(Scale):
        raise DataError(f"scale must be 'difference' or 'relative', got {scale!r}.")
    if scale == "difference":
        return 1.0
    base = np.asarray(base, dtype=np.float64)
    sizes = np.abs(base)
    small = (sizes <= _NEAR_ZERO * sizes.mean(axis=1, keepdims=True)).any(axis=1)
    mixed = (np.sign(base).min(axis=1) < 0) & (np.sign(base).max(axis=1) > 0)
    for target, is_small, is_mixed in zip(targets, small, mixed, strict=False):
        if is_small or is_mixed:
            what = "changes sign between pairs" if is_mixed else "is near 0 in some pair"
            raise DataError(
                f"relative effects on {target} are undefined: Y(base) {what}. Use scale='difference', or a readout that stays "
                "clear of 0, such as a probability or an intensity."
            )
    return base
