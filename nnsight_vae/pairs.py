"""`Pairs`: what every patching and mediation experiment is run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import DataError

PairIndex = int | slice | Sequence[int] | np.ndarray | Tensor

# fields with one row per pair
_PER_PAIR = ("base", "source", "eps", "groups", "source_groups", "base_factors", "source_factors")


@dataclass(frozen=True, eq=False)
class Pairs:
    """`n` base inputs, each with a source input that differs from it by one intervention on one factor.

    Row i of `base` and row i of `source` show the same unit of the world: all exogenous noise is shared, and only
    `do(factor = value)` tells them apart. Datasets orient pairs low -> high (the base has the lower value), so that
    effects of different pairs have one sign. Patching moves an activation between the two runs of a pair.

    Args:
        base: inputs as the model takes them, usually images in [0, 1].
        source: the same inputs after the intervention; shape, dtype and device of `base`.
        factor: name of the factor intervened on.
        eps: reparameterisation noise that both runs of a pair share; None means the posterior-mean path.
        groups: id of the base image of each pair; pairs that share one are not independent, and statistics treat them
            as one cluster. None means that every pair has a base of its own.
        source_groups: id of the source image of each pair, where sources are reused across bases too (`Pairs.crossed`);
            statistics are then clustered both ways. None means that they are not. Needs `groups`.
        base_factors: ground-truth factors of each base, in the factors' own units.
        source_factors: the same for each source.
        factor_names: names of the columns of `base_factors` and `source_factors`.
        propagate: True: descendants of the factor followed the SCM (total effect); False: only this factor's own
            pixels changed (what a test of one unit's meaning needs); None: unknown, as for matched real images.
        record: where the pairs are from, as JSON data, e.g. data set and seed; results keep it.
        match: for pairs that were found by matching images, how far base and source of the whole set are apart in each
            factor (`Arrays.match_quality`); results keep it. None: nothing was matched, the noise is shared.

    Raises:
        DataError: if the tensors are not floating point, not finite, empty, or do not fit each other.

    Example:
        >>> import torch
        >>> pairs = Pairs(torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8), factor="brightness")
        >>> len(pairs), len(pairs[:3]), pairs.reversed().base.mean().item()
        (4, 3, 1.0)
    """

    base: Float[Tensor, " n *image"]
    source: Float[Tensor, " n *image"]
    factor: str | None = None
    eps: Float[Tensor, " n *latent"] | None = None
    groups: Int[Tensor, " n"] | None = None
    base_factors: Float[Tensor, "n f"] | None = None
    source_factors: Float[Tensor, "n f"] | None = None
    factor_names: tuple[str, ...] = ()
    propagate: bool | None = None
    source_groups: Int[Tensor, " n"] | None = None
    match: dict[str, float] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def crossed(
        cls,
        bases: Float[Tensor, " b *image"],
        sources: Float[Tensor, " s *image"],
        *,
        factor: str | None = None,
        eps: Float[Tensor, " b *latent"] | None = None,
        base_factors: Float[Tensor, "b f"] | None = None,
        source_factors: Float[Tensor, "s f"] | None = None,
        factor_names: tuple[str, ...] = (),
        propagate: bool | None = None,
    ) -> Pairs:
        """Every base with every source, b x s pairs in the order (0, 0), (0, 1), ...

        Each image then takes part in many pairs, so both ids are set and statistics are clustered both ways: what counts
        for an interval is about min(b, s), not b x s. Pairs are oriented as the two lists are: for effects of one sign,
        give the images with the lower value of the factor as bases.

        Args:
            bases: base inputs.
            sources: source inputs, none of them a base as well: effects of (i, j) and (j, i) would depend on each other
                in a way that no clustering by bases and sources describes.
            factor: as in `Pairs`.
            eps: noise of each base, shared with whatever source it is paired with.
            base_factors: ground-truth factors of each base.
            source_factors: the same for each source.
            factor_names: as in `Pairs`.
            propagate: as in `Pairs`.

        Raises:
            DataError: an image is both base and source; or as `Pairs`.

        Example:
            >>> import torch
            >>> pairs = Pairs.crossed(torch.zeros(2, 1, 8, 8), torch.ones(3, 1, 8, 8))
            >>> pairs.groups.tolist(), pairs.source_groups.tolist()
            ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
        """
        _check_inputs("base", bases)
        _check_inputs("source", sources)
        owners = (
            ("eps", eps, bases),
            ("base_factors", base_factors, bases),
            ("source_factors", source_factors, sources),
        )
        for name, rows, images in owners:
            if rows is not None and len(rows) != len(images):
                raise DataError(
                    f"Pairs.crossed: {name} has {len(rows)} rows for {len(images)} images; expected one each."
                )
        _check_apart(bases, sources)
        i = torch.arange(len(bases)).repeat_interleave(len(sources))
        j = torch.arange(len(sources)).repeat(len(bases))
        return cls(
            bases[i],
            sources[j],
            factor,
            eps=None if eps is None else eps[i],
            groups=i,
            source_groups=j,
            base_factors=None if base_factors is None else base_factors[i],
            source_factors=None if source_factors is None else source_factors[j],
            factor_names=factor_names,
            propagate=propagate,
        )

    def __post_init__(self) -> None:
        _check_inputs("base", self.base)
        _check_inputs("source", self.source)
        for what in ("shape", "dtype", "device"):
            of_base, of_source = getattr(self.base, what), getattr(self.source, what)
            if of_base != of_source:
                raise DataError(
                    f"Pairs: base has {what} {_plain(of_base)} and source has {_plain(of_source)}; row i of both must "
                    f"be the same input before and after the intervention, with equal {what}."
                )
        if len(self.base) == 0:
            raise DataError("Pairs: got 0 pairs, expected at least one.")
        for name in _PER_PAIR[2:]:
            self._check_length(name)
        self._check_groups()
        self._check_factors()

    def _check_length(self, name: str) -> None:
        rows = getattr(self, name)
        if rows is None:
            return
        if not isinstance(rows, Tensor):
            raise DataError(f"Pairs: {name} is a {type(rows).__name__}, expected a tensor with one row per pair.")
        if rows.ndim == 0 or len(rows) != len(self.base):
            raise DataError(
                f"Pairs: {name} has shape {tuple(rows.shape)} for {len(self.base)} pairs; expected one row per pair."
            )
        if rows.is_floating_point() and not torch.isfinite(rows).all():
            raise DataError(f"Pairs: {name} holds NaN or infinite values.")

    def _check_groups(self) -> None:
        for name in ("groups", "source_groups"):
            ids = getattr(self, name)
            if ids is not None and (ids.ndim != 1 or ids.dtype not in _INTEGERS):
                raise DataError(
                    f"Pairs: {name} is {ids.dtype} of shape {tuple(ids.shape)}; "
                    f"expected one integer cluster id per pair, shape ({len(self)},)."
                )
        if self.source_groups is not None and self.groups is None:
            raise DataError(
                "Pairs: source_groups without groups. Give the id of each pair's base too; where no base is reused, "
                "groups=torch.arange(n)."
            )

    def _check_factors(self) -> None:
        for name in ("base_factors", "source_factors"):
            table = getattr(self, name)
            if table is not None and tuple(table.shape) != (len(self), len(self.factor_names)):
                raise DataError(
                    f"Pairs: {name} has shape {tuple(table.shape)}, expected {(len(self), len(self.factor_names))}: "
                    f"one row per pair and one column per name in factor_names {self.factor_names}."
                )
        if (self.base_factors is None) != (self.source_factors is None):
            raise DataError("Pairs: give base_factors and source_factors together, or neither.")
        if self.factor is not None and self.factor_names and self.factor not in self.factor_names:
            raise DataError(f"Pairs: factor {self.factor!r} is not one of factor_names {self.factor_names}.")

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: PairIndex) -> Pairs:
        """The pairs at `index`: a slice, an integer (one pair keeps its batch axis), integer indices or a mask."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Pairs: index {index} is out of range for {len(self)} pairs.")
            rows: slice | Tensor = torch.tensor([index % len(self)])
        else:
            rows = index if isinstance(index, slice) else torch.as_tensor(index)
        taken = {name: getattr(self, name) for name in _PER_PAIR}
        return replace(self, **{name: value[rows] for name, value in taken.items() if value is not None})

    def reversed(self) -> Pairs:
        """The same pairs with base and source exchanged, ids included: noising these is denoising the original pairs.

        Without `source_groups`, `groups` says which pairs belong together and stays as it is.
        """
        crossed = self.source_groups is not None
        return replace(
            self,
            base=self.source,
            source=self.base,
            base_factors=self.source_factors,
            source_factors=self.base_factors,
            groups=self.source_groups if crossed else self.groups,
            source_groups=self.groups if crossed else None,
        )

    @property
    def cluster_ids(self) -> tuple[Int[np.ndarray, " n"] | None, Int[np.ndarray, " n"] | None]:
        """`groups` and `source_groups` as numpy arrays, as results keep them; None where a pair has no such id."""
        groups, sources = (None if ids is None else ids.cpu().numpy() for ids in (self.groups, self.source_groups))
        return groups, sources

    def __repr__(self) -> str:
        what = f"do({self.factor})" if self.factor else "unnamed intervention"
        return f"Pairs({len(self)} pairs of shape {tuple(self.base.shape[1:])}, {what}, propagate={self.propagate})"


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _check_inputs(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise DataError(f"Pairs: {name} is a {type(value).__name__}, expected a float tensor with one row per pair.")
    if not value.is_floating_point():
        hint = " Divide images by 255: images.float() / 255." if value.dtype == torch.uint8 else ""
        raise DataError(f"Pairs: {name} is {value.dtype}, expected floating point.{hint}")
    if value.ndim < 2:
        raise DataError(f"Pairs: {name} has shape {tuple(value.shape)}, expected [n, ...] with one input per row.")
    if not torch.isfinite(value).all():
        rows = torch.nonzero(~torch.isfinite(value.flatten(1)).all(1)).flatten()
        raise DataError(f"Pairs: {name} holds NaN or infinite values in {len(rows)} rows, first in row {int(rows[0])}.")


def _check_apart(bases: Tensor, sources: Tensor) -> None:
    """No image may be base and source: such pairs depend on each other beyond sharing a base or a source."""
    where = {row.double().cpu().numpy().tobytes(): i for i, row in enumerate(bases)}
    for j, row in enumerate(sources):
        i = where.get(row.double().cpu().numpy().tobytes())
        if i is not None:
            raise DataError(
                f"Pairs.crossed: base {i} and source {j} are the same image. Split your images into bases and sources: "
                "where one image is both, pairs depend on each other in ways that clustering cannot account for."
            )


def _plain(value: object) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)
