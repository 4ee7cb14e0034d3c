"""Rounding: how small a difference between two runs may be and still be one of arithmetic alone."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_PLACES = 16  # units in the last place that a forward pass may be off by


def resolution(values: Float[Tensor, "n target"]) -> Float[np.ndarray, " target"]:
    """The size up to which a change of each target may be rounding: 16 units in the last place of its largest value.

    Args:
        values: a readout, in the precision in which it was computed.

    Example:
        >>> resolution(torch.tensor([[0.5, 0.0], [1.0, 0.0]])).round(8)
        array([1.91e-06, 0.00e+00])
    """
    return (_PLACES * torch.finfo(values.dtype).eps * values.abs().amax(0)).double().cpu().numpy()
