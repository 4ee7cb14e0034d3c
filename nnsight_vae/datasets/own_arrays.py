"""`from_arrays`: a dataset of your own images and factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..errors import DataError
from .array_checks import as_pixels, as_table, check_discrete, check_graph
from .arrays import Arrays

if TYPE_CHECKING:
    import networkx as nx


def from_arrays(
    images: np.ndarray | Tensor,
    factors: np.ndarray | Tensor,
    graph: nx.DiGraph | None = None,
    names: Sequence[str] | None = None,
    *,
    discrete: Sequence[str] | None = None,
    name: str = "arrays",
) -> Arrays:
    """A dataset from your own images and factors.

    Args:
        images: uint8, or float in [0, 1]; shape (n, c, h, w), (n, h, w, c) or (n, h, w), with 1 or 3 channels.
        factors: one row per image, one column per factor, in any units.
        graph: the true causal graph over the factors, if it is known; its nodes are the names.
        names: names of the factors; None: "factor_0", "factor_1", ...
        discrete: the factors that are kinds and not amounts, such as a shape coded 0, 1, 2: `readout()` learns a class a value, and
            images match in them only where they show the same kind. (): none. None: none either, but `readout()` warns where a
            factor takes a few whole numbers from 0, for those may be kinds.
        name: what the dataset is called in reports.

    Raises:
        DataError: if shapes, types or values are not as above, the names do not fit, the graph is not a DAG over them, or
            `discrete` names no factor, or one of more than 50 values.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> data = from_arrays(rng.random((60, 8, 8)), rng.normal(size=(60, 2)), names=["size", "tilt"])
        >>> data
        <arrays: 60 images, shape (1, 8, 8), factors size, tilt>
        >>> from_arrays(rng.random((60, 8, 8)), rng.integers(3, size=(60, 1)), names=["shape"], discrete=["shape"]).discrete
        ('shape',)
    """
    pixels = as_pixels(images)
    table = as_table(factors, len(pixels))
    names = tuple(f"factor_{j}" for j in range(table.shape[1])) if names is None else tuple(map(str, names))
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise DataError(
            f"from_arrays: names {names} must be {table.shape[1]} different names, one per column of factors."
        )
    if graph is not None:
        check_graph(graph, names)
    check_discrete(table, names, discrete or ())
    return Arrays(name, pixels, table, names, graph, discrete)
