"""What arrays of images and factors must be to make a dataset: refused with what they are, or brought into one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._factor_heads import levels_of
from ..errors import DataError

if TYPE_CHECKING:
    import networkx as nx

_CHANNELS = (1, 3)


def as_pixels(images: np.ndarray | Tensor) -> Tensor:
    """Images as uint8 or float32 in [0, 1], channels first."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"from_arrays: images are {array.dtype}, expected uint8, or float in [0, 1].")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        array = _channels_first(array)
    else:
        raise DataError(
            f"from_arrays: images have shape {array.shape}, expected (n, c, h, w), (n, h, w, c) or (n, h, w)."
        )
    if 0 in array.shape:
        raise DataError(f"from_arrays: images have shape {array.shape}: there is nothing in them.")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError("from_arrays: images hold NaN or infinite values.")
        if array.min() < 0 or array.max() > 1:
            raise DataError(
                f"from_arrays: float images span [{array.min():.3g}, {array.max():.3g}], expected [0, 1]. "
                "Rescale them, or give uint8."
            )
    return torch.from_numpy(np.ascontiguousarray(array))


def _channels_first(array: np.ndarray) -> np.ndarray:
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first == last:
        why = "both ends could be the channels" if first else "neither end is 1 or 3 channels"
        raise DataError(f"from_arrays: images have shape {array.shape}: {why}; expected (n, c, h, w) or (n, h, w, c).")
    return array if first else array.transpose(0, 3, 1, 2)


def as_table(factors: np.ndarray | Tensor, n: int) -> np.ndarray:
    """Factors as finite float64, one row for each of n images."""
    array = factors.detach().cpu().numpy() if isinstance(factors, Tensor) else np.asarray(factors)
    if array.dtype.kind not in "fiub":
        raise DataError(f"from_arrays: factors are {array.dtype}, expected numbers. Code categories as integers.")
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] == 0:
        raise DataError(f"from_arrays: factors have shape {array.shape}, expected ({n}, f): one row per image.")
    if not np.isfinite(array).all():
        raise DataError("from_arrays: factors hold NaN or infinite values; drop those images.")
    return array.astype(np.float64)


def check_graph(graph: nx.DiGraph, names: tuple[str, ...]) -> None:
    """Refuse what is not a directed acyclic graph over the names."""
    import networkx as nx

    if set(graph.nodes) != set(names):
        raise DataError(
            f"from_arrays: the graph's nodes are {sorted(map(str, graph.nodes))}, expected the names {names}."
        )
    if not graph.is_directed() or not nx.is_directed_acyclic_graph(graph):
        raise DataError("from_arrays: the graph must be a directed acyclic networkx.DiGraph.")


def check_discrete(table: np.ndarray, names: tuple[str, ...], discrete: Sequence[str]) -> None:
    """Refuse kinds that are no factors, or take more values than a readout has classes."""
    found = levels_of(torch.from_numpy(table), names, discrete)
    if isinstance(found, str):
        raise DataError(f"from_arrays: {found}.")
