"""Pairs of images that differ in one factor alone, for every factor that has any."""

from __future__ import annotations

from collections.abc import Sequence

from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import DataError
from nnsight_vae.pairs import Pairs


def single_factor_pairs(
    data: Dataset, factors: Sequence[str], n: int, seed: int
) -> tuple[dict[str, Pairs], dict[str, str]]:
    """n pairs in each factor, all others held; and for the factors that have none, why.

    Of a data set without a causal model the pairs are matched images, n at most half of them.

    Example:
        >>> import nnsight_vae as nv
        >>> pairs, missing = single_factor_pairs(nv.datasets.load("pendulum"), ["angle", "mass"], 4, 0)
        >>> list(pairs), list(missing)
        (['angle'], ['mass'])
    """
    pairs, missing = {}, {}
    most = n if data.n_images is None else min(n, data.n_images // 2)
    for factor in factors:
        try:
            pairs[factor] = data.pairs(factor, most, seed=seed, propagate=False)
        except DataError as error:  # not a factor of this data set, one value only, no images that match
            missing[factor] = str(error)
    return pairs, missing
