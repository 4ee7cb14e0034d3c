"""`Doses`: the same units of the world, shown with one factor set to each of several values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DataError
from .inputs import require_finite
from .wording import count


@dataclass(frozen=True, eq=False)
class Doses:
    """`n` units of the world, each shown under `do(factor = value)` for every one of some values.

    Image i of all doses shows the same unit of the world: its exogenous noise is shared, and only the value of the factor (and
    what follows from it) differs. `Pairs` are two doses that differ from pair to pair; here every unit gets the same doses, so
    that the shape of a response can be seen.

    Args:
        images: one batch per dose, `[dose, n, *image]`; `torch.stack(batches)` makes them of a list.
        values: the factor's value at each dose, rising, in the factor's own units.
        factor: name of the factor.
        factor_sd: the factor's standard deviation in the world, for slopes per standard deviation; None: slopes are per unit of
            the factor.
        reference: images from the observational distribution, over which units are standardised; None: all images of all doses.
        eps: reparameterisation noise `[n, *latent]` that all doses share; None means the posterior-mean path.
        groups: cluster of each unit of the world, where they are not independent.
        propagate: True: descendants of the factor followed the SCM; False: only this factor's own pixels change; None: unknown.
        record: where the images are from, as JSON data, e.g. data set and seed; results keep it.

    Raises:
        DataError: images that are not finite floats or too few; values that do not rise or do not fit them.

    Example:
        >>> import torch
        >>> dark, grey, bright = (torch.full((4, 1, 8, 8), shade) for shade in (0.1, 0.5, 0.9))
        >>> Doses(torch.stack([dark, grey, bright]), values=[0.1, 0.5, 0.9], factor="brightness")
        Doses(3 values of brightness from 0.1 to 0.9, 4 units of the world, images (1, 8, 8), propagate=None)
    """

    images: Float[Tensor, "dose n *image"]
    values: Float[np.ndarray, " dose"] | Sequence[float]
    factor: str = "dose"
    factor_sd: float | None = None
    reference: Float[Tensor, "m *image"] | None = None
    eps: Float[Tensor, "n *latent"] | None = None
    groups: Int[Tensor, " n"] | None = None
    propagate: bool | None = None
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_images(self.images)
        object.__setattr__(self, "values", _rising(self.values, len(self.images)))
        if self.factor_sd is not None and not 0 < self.factor_sd < np.inf:
            raise DataError(f"Doses: factor_sd is {self.factor_sd}, expected a positive number, or None.")
        for name in ("eps", "groups"):
            rows = getattr(self, name)
            if rows is not None and (not isinstance(rows, Tensor) or rows.shape[:1] != self.images.shape[1:2]):
                raise DataError(f"Doses: {name} must be a tensor with one row per unit of the world, {len(self)}.")
        if self.groups is not None and (self.groups.ndim != 1 or self.groups.is_floating_point()):
            raise DataError("Doses: groups holds one integer cluster id per unit of the world.")

    def __len__(self) -> int:
        """Number of units of the world."""
        return self.images.shape[1]

    def __repr__(self) -> str:
        low, high = self.values[0], self.values[-1]
        return (
            f"Doses({len(self.values)} values of {self.factor} from {low:g} to {high:g}, {count(len(self), 'unit')} of the world, "
            f"images {tuple(self.images.shape[2:])}, propagate={self.propagate})"
        )


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else f"a {type(images).__name__}"
        hint = "torch.stack(batches), divided by 255 where they are 8-bit"
        raise DataError(f"Doses: images are {got}, expected one tensor of floats [dose, n, ...]: {hint}.")
    if images.ndim < 3 or len(images) < 2 or images.shape[1] == 0:
        raise DataError(
            f"Doses: images have shape {tuple(images.shape)}, expected [dose, n, ...] with two doses or more; image i of every "
            "dose shows the same unit of the world."
        )
    require_finite(images.flatten(0, 1), "Doses: images")


def _rising(values: np.ndarray | Sequence[float], n: int) -> Float[np.ndarray, " dose"]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Doses: values are not numbers: {error}.") from error
    if array.shape != (n,) or not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise DataError(
            f"Doses: values are {array.tolist()}, expected {n} finite numbers that rise, one per batch of images."
        )
    return array
