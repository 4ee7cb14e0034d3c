"""How pairs depend on each other: clusters that share a base image and, where sources are reused, a source image too.

`values` always has the shape [..., pair]; `groups` and `source_groups` hold one id per pair. Memory stays bounded: cells
(the leading axes, flattened) are processed in slabs, and random draws are repeated from the same seed for every slab, so
that numbers do not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from nnsight_vae.errors import DataError

BLOCK = 4_000_000  # elements of one work array (32 MB as float64)


@dataclass(frozen=True)
class Clusters:
    """How pairs fall into independent clusters.

    Attributes:
        order: a permutation of the pairs that puts each cluster's pairs side by side.
        starts: where each cluster begins in that order.
        sizes: pairs per cluster.
    """

    order: Int[np.ndarray, " pair"]
    starts: Int[np.ndarray, " cluster"]
    sizes: Int[np.ndarray, " cluster"]

    @classmethod
    def of(cls, n_pairs: int, groups: Shaped[np.ndarray, " pair"] | None = None) -> Clusters:
        """Clusters from one id per pair.

        Args:
            n_pairs: number of pairs.
            groups: one id per pair, of any sortable type; None means that every pair is independent.

        Returns:
            The clusters, in order of their ids.

        Raises:
            DataError: `groups` does not have one id per pair.

        Example:
            >>> Clusters.of(4, np.array([7, 2, 7, 2])).sizes
            array([2, 2])
        """
        if groups is None:
            return cls(np.arange(n_pairs), np.arange(n_pairs), np.ones(n_pairs, dtype=np.int64))
        groups = np.asarray(groups)
        if groups.shape != (n_pairs,):
            raise DataError(f"groups has shape {groups.shape}; expected one cluster id per pair, shape ({n_pairs},).")
        _, starts, sizes = np.unique(np.sort(groups), return_index=True, return_counts=True)
        return cls(np.argsort(groups, kind="stable"), starts, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def labels(self) -> Int[np.ndarray, " pair"]:
        """Number of the cluster that each pair is in."""
        labels = np.empty(len(self.order), dtype=np.int64)
        labels[self.order] = np.repeat(np.arange(len(self)), self.sizes)
        return labels

    def sums(self, values: Float[np.ndarray, "cell pair"]) -> Float[np.ndarray, "cell cluster"]:
        """Sum of each cell's values within every cluster, in float64."""
        wide = values.astype(np.float64)
        if len(self) == wide.shape[-1]:
            return wide[:, self.order]
        return np.add.reduceat(wide[:, self.order], self.starts, axis=1)


@dataclass(frozen=True)
class Design:
    """The clusterings of a set of pairs: by base alone, or by base and by source where sources are reused.

    Attributes:
        atoms: the pairs that share every id. Clustered by base alone, they are the clusters.
        ways: for each clustering, how it gathers the atoms.
    """

    atoms: Clusters
    ways: tuple[Clusters, ...]

    @classmethod
    def of(
        cls,
        n_pairs: int,
        groups: Shaped[np.ndarray, " pair"] | None = None,
        source_groups: Shaped[np.ndarray, " pair"] | None = None,
    ) -> Design:
        """The design that these ids describe.

        Raises:
            DataError: not one id per pair.

        Example:
            >>> crossed = Design.of(6, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2]))
            >>> len(crossed.atoms), [len(way) for way in crossed.ways], crossed.n_clusters
            (6, [2, 3], 2)
        """
        bases = Clusters.of(n_pairs, groups)
        if source_groups is None:
            return cls(bases, (Clusters.of(len(bases)),))
        sources = Clusters.of(n_pairs, source_groups)
        atoms = Clusters.of(n_pairs, bases.labels * len(sources) + sources.labels)
        one_of_each = atoms.order[atoms.starts]
        return cls(atoms, tuple(Clusters.of(len(atoms), way.labels[one_of_each]) for way in (bases, sources)))

    @property
    def n_clusters(self) -> int:
        """The number of clusters that inference rests on: the smaller one where pairs are clustered both ways."""
        return min(map(len, self.ways))


def checked_design(
    values: Float[np.ndarray, "*cells pair"],
    groups: Shaped[np.ndarray, " pair"] | None,
    source_groups: Shaped[np.ndarray, " pair"] | None = None,
) -> Design:
    """The design of these pairs, refused with a DataError where one clustering has a single cluster."""
    two_or_more(values, groups)
    if source_groups is not None:
        two_or_more(values, source_groups, "source")
    return Design.of(values.shape[-1], groups, source_groups)


def two_or_more(
    values: Float[np.ndarray, "*cells pair"], groups: Shaped[np.ndarray, " pair"] | None, what: str = "base"
) -> Clusters:
    """The clusters of these pairs, refused with a DataError when there is only one."""
    clusters = Clusters.of(values.shape[-1], groups)
    if len(clusters) < 2:
        raise DataError(
            f"{values.shape[-1]} pair(s) in {len(clusters)} independent cluster(s): an interval or test needs at least "
            f"two clusters ({what} images). Use more {what} images; the mean alone is still available."
        )
    return clusters


def slabs(
    values: Float[np.ndarray, "*cells pair"], clusters: Clusters, columns: int
) -> Iterator[Float[np.ndarray, "slab cluster"]]:
    """Cluster sums of successive cells, so many at a time that [cell, columns] and [cell, pair] stay in bound."""
    cells = values.reshape(-1, values.shape[-1])
    step = max(1, BLOCK // max(columns, values.shape[-1]))
    for start in range(0, len(cells), step):
        yield clusters.sums(cells[start : start + step])
