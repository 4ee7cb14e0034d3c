"""`Doses`: the same units of the world, shown with one factor set to each of several values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DataError
from .inputs import require_finite


@dataclass(frozen=True, eq=False)
class Doses:
    """`n` units of the world, each shown under `do(factor = value)` for every one of some values.

    Image i of all doses shows the same unit of the world: its exogenous noise is shared, and only the value of the factor (and
    what follows from it) differs. `Pairs` are two doses that differ from pair to pair; here every unit gets the same doses, so
    that the shape of a response can be seen.

    Args:
        images: one batch per dose, of equal shape: `[dose, n, *image]`, or a list of batches.
        values: the factor's value at each dose, rising, in the factor's own units.
        factor: name of the factor.
        factor_sd: the factor's standard deviation in the world, for slopes per standard deviation; None: slopes are per unit of
            the factor.
        reference: images from the observational distribution, over which units are standardised; None: all images of all doses.
        eps: reparameterisation noise `[n, *latent]` that all doses share; None means the posterior-mean path.
        groups: cluster of each unit of the world, where they are not independent.
        propagate: True: descendants of the factor followed the SCM; False: only this factor's own pixels change; None: unknown.

    Raises:
        DataError: batches that differ in shape, are not finite floats or too few; values that do not rise or do not fit them.

    Example:
        >>> dark, grey, bright = (torch.full((4, 1, 8, 8), shade) for shade in (0.1, 0.5, 0.9))
        >>> Doses([dark, grey, bright], values=[0.1, 0.5, 0.9], factor="brightness")
        Doses(3 values of brightness from 0.1 to 0.9, 4 units of the world, images (1, 8, 8), propagate=None)
    """

    images: Float[Tensor, "dose n *image"] | Sequence[Float[Tensor, "n *image"]]
    values: Float[np.ndarray, " dose"] | Sequence[float]
    factor: str = "dose"
    factor_sd: float | None = None
    reference: Float[Tensor, "m *image"] | None = None
    eps: Float[Tensor, "n *latent"] | None = None
    groups: Int[Tensor, " n"] | None = None
    propagate: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", _stacked(self.images))
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
            f"Doses({len(self.values)} values of {self.factor} from {low:g} to {high:g}, {len(self)} units of the world, "
            f"images {tuple(self.images.shape[2:])}, propagate={self.propagate})"
        )


def _stacked(images: Tensor | Sequence[Tensor]) -> Tensor:
    batches = list(images)
    for i, batch in enumerate(batches):
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            got = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            hint = " Divide images by 255: images.float() / 255." if got == torch.uint8 else ""
            raise DataError(f"Doses: images[{i}] is {got}, expected a batch of floats [n, ...] per dose.{hint}")
        if batch.ndim < 2 or len(batch) == 0 or batch.shape != batches[0].shape:
            raise DataError(
                f"Doses: images[{i}] has shape {tuple(batch.shape)} and images[0] {tuple(batches[0].shape)}; expected equal "
                "shapes [n, ...]: image i of every batch shows the same unit of the world."
            )
        require_finite(batch, f"Doses: images[{i}]")
    if len(batches) < 2:
        raise DataError(f"Doses: images of {len(batches)} doses; a response needs two or more.")
    return images if isinstance(images, Tensor) else torch.stack(batches)


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
