"""Bootstrap resamples of pairs: whole clusters are drawn, bases and sources independently where pairs are clustered both ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.stats import clusters
from nnsight_vae.stats.clusters import Design

Counts = Float[np.ndarray, "rows _"]  # one column a cluster


def resample_weights(n_clusters: int, n_boot: int, seed: int, *, rows: int | None = None) -> Iterator[Counts]:
    """How often each cluster is drawn in every bootstrap resample, in blocks of rows.

    Args:
        n_clusters: clusters to draw from; each resample draws as many, with replacement.
        n_boot: number of resamples.
        seed: of a generator of its own; the same seed gives the same draws.
        rows: rows per block; None keeps a block within the memory bound of `clusters`.

    Yields:
        Blocks of counts, `n_boot` rows in all; every row sums to `n_clusters`.

    Example:
        >>> [block.sum(axis=1).tolist() for block in resample_weights(4, 3, seed=0, rows=2)]
        [[4.0, 4.0], [4.0]]
    """
    rng = np.random.default_rng(seed)
    rows = rows or max(1, clusters.BLOCK // n_clusters)
    for start in range(0, n_boot, rows):
        yield _draw(rng, min(rows, n_boot - start), n_clusters)


def design_weights(
    design: Design, n_boot: int, seed: int
) -> Iterator[tuple[Float[np.ndarray, "rows atom"], tuple[Counts, ...]]]:
    """How often each atom is drawn, and each cluster of each way, in every bootstrap resample, in blocks of rows.

    Clustered both ways, a pair is drawn as often as its base times as often as its source.

    Args:
        design: the clusterings.
        n_boot: number of resamples.
        seed: of the draws; the blocks, and so the draws, depend on the design alone.

    Raises:
        DataError: no resamples are asked for.

    Source: Owen 2007, The pigeonhole bootstrap, Ann. Appl. Stat. 1, 386-411.
    """
    if n_boot < 1:
        raise DataError(f"n_boot={n_boot}: expected a number of resamples, 1,000 or more for an interval.")
    rows = max(1, clusters.BLOCK // len(design.atoms))
    if len(design.ways) == 1:
        yield from ((counts, (counts,)) for counts in resample_weights(len(design.atoms), n_boot, seed, rows=rows))
        return
    rng = np.random.default_rng(seed)
    for start in range(0, n_boot, rows):
        drawn = [_draw(rng, min(rows, n_boot - start), len(way)) for way in design.ways]
        atoms = _atoms(design, drawn)
        while (empty := ~atoms.any(axis=1)).any():  # the drawn bases and sources may form no pair at all
            for counts, way in zip(drawn, design.ways, strict=True):
                counts[empty] = _draw(rng, int(empty.sum()), len(way))
            atoms = _atoms(design, drawn)
        yield atoms, tuple(drawn)


def _atoms(design: Design, drawn: Sequence[Counts]) -> Float[np.ndarray, "rows atom"]:
    bases, sources = (counts[:, way.labels] for counts, way in zip(drawn, design.ways, strict=True))
    return bases * sources


def _draw(rng: np.random.Generator, rows: int, n_clusters: int) -> Counts:
    drawn = rng.integers(n_clusters, size=(rows, n_clusters))
    drawn += np.arange(rows)[:, None] * n_clusters
    counts = np.bincount(drawn.ravel(), minlength=rows * n_clusters)
    return counts.reshape(rows, n_clusters).astype(np.float64)
