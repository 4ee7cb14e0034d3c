"""Every base with every source: their ids, and effects of pairs that share images."""

from __future__ import annotations

import numpy as np


def grid(n_bases, n_sources):
    """Ids of every base with every source."""
    return np.repeat(np.arange(n_bases), n_sources), np.tile(np.arange(n_sources), n_bases)


def crossed(n_cells, n_bases, n_sources, base=1.0, source=1.0, rest=1.0, *, rng):
    """Null effects of every base with every source, each image with an effect of its own."""
    size = (n_cells, n_bases, n_sources)
    a, b = rng.normal(size=(*size[:2], 1)), rng.normal(size=(n_cells, 1, n_sources))
    return (base * a + source * b + rest * rng.normal(size=size)).reshape(n_cells, -1)
