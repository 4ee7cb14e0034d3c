"""Targets: which numbers of what is explained an attribution is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.errors import ReadoutError
from nnsight_vae.reading import check_targets

Index: TypeAlias = int | slice
Target: TypeAlias = "int | slice | str | tuple[Index, ...] | Sequence[int] | Sequence[tuple[int, ...]] | Tensor | Direction | Callable[..., Any] | None"


@dataclass(frozen=True)
class Direction:
    """A target: the inner product of what is explained with a direction, e.g. a probe's weights or a difference of class means.

    Args:
        weights: `[*latent]`, the same for all examples, or `[n, *latent]`, one an example.

    Source: Brocki and Chung 2019, Concept Saliency Maps, arXiv 1910.13140.

    Example:
        >>> Direction(torch.tensor([1.0, -1.0])).weights.shape
        torch.Size([2])
    """

    weights: Float[Tensor, "..."]


@dataclass(frozen=True)
class Targets:
    """Targets resolved against an output.

    Attributes:
        names: one per target, as shown in records.
        all: every target at once: results have an axis of targets after the batch.
        channels: for each target the channel of the output that it reads, where it reads one.
        read: the output `[r, ...]` and the examples its rows belong to, `[r]` -> `[r, targets]`.
    """

    names: tuple[str, ...]
    all: bool
    channels: tuple[int | None, ...]
    read: Callable[[Tensor, Tensor], Tensor]


def resolve_targets(target: Target, shape: tuple[int, ...], names: tuple[str, ...] | None, n: int) -> Targets:
    """Read what a user passed as `target`.

    Args:
        target: None: all channels at once. An int or a name: one channel (its mean over positions, where the latent has
            positions). A slice: the mean over those channels. A tuple of ints and slices: an element, or the mean over a part,
            of what is explained. A list of ints or tuples, or a 1-D integer tensor: one per example. A `Direction`. A callable
            from the output `[n, ...]` to one number a row, `[n]`.
        shape: of one example's output.
        names: of its channels.
        n: number of examples.

    Raises:
        ReadoutError: it names nothing that the output has; says what there is.
    """
    if target is None:
        return _all(shape, names)
    if isinstance(target, Tensor):
        target = _from_tensor(target)
    target = _plain(target)
    if isinstance(target, str):
        if names is None:
            raise ReadoutError(
                f"the output has no named targets, got {target!r}; pick an element by index, (channel, row, column), or explain a readout."
            )
        check_targets(target, names)
        target = names.index(target)
    if isinstance(target, Direction):
        return _direction(target.weights, shape, n)
    if isinstance(target, list):
        return _per_example(target, shape, n)
    if isinstance(target, int | slice | tuple) and not isinstance(target, bool):
        index = target if isinstance(target, tuple) else (target,)
        channel = _require_index(index, shape)
        label = names[channel] if names is not None and channel is not None and len(index) == 1 else _written(index)
        return Targets((label,), False, (channel,), lambda output, rows: _mean_of(output, index)[:, None])
    if callable(target):
        return Targets((getattr(target, "__name__", type(target).__name__),), False, (None,), _called(target))
    raise ReadoutError(
        f"target must be None, an int, a slice, a tuple, a name, a list or 1-D tensor with one entry per example, a Direction or a "
        f"callable; got {type(target).__name__}."
    )


def _plain(target: Any) -> Any:
    """numpy's integers, as argmax and unravel_index give them, as Python's."""
    if isinstance(target, tuple | list):
        return type(target)(_plain(part) for part in target)
    return int(target) if isinstance(target, np.integer) else target


def _all(shape: tuple[int, ...], names: tuple[str, ...] | None) -> Targets:
    if names is None:
        raise ReadoutError(
            f"target=None means every target at once, and a reconstruction has {torch.Size(shape).numel()}; pick one by index, e.g. "
            "target=(0, 10, 12), or explain a readout such as nv.readouts.Region({...})."
        )

    def read(output: Tensor, rows: Tensor) -> Tensor:
        return output.flatten(2).mean(2) if output.ndim > 2 else output

    return Targets(names, True, tuple(range(len(names))), read)


def _from_tensor(target: Tensor) -> int | list[int]:
    if target.is_floating_point() or target.dtype == torch.bool or target.ndim > 1:
        raise ReadoutError(
            f"a target tensor holds one integer, or one an example; got {target.dtype} of shape {tuple(target.shape)}."
        )
    return int(target) if target.numel() == 1 else target.tolist()


def _require_index(index: tuple[Any, ...], shape: tuple[int, ...]) -> int | None:
    """The channel an index picks, if it is one; refused where the output has no such element."""
    if not 1 <= len(index) <= len(shape):
        raise ReadoutError(
            f"target {_written(index)} has {len(index)} indices, one example's output has shape {shape}."
        )
    for part, length in zip(index, shape, strict=False):
        if isinstance(part, slice):
            if not range(*part.indices(length)):
                raise ReadoutError(f"target {_written(index)} is empty in an output of shape {shape} per example.")
        elif isinstance(part, bool) or not isinstance(part, int) or not -length <= part < length:
            raise ReadoutError(f"target {_written(index)} is out of range: one example's output has shape {shape}.")
    return index[0] if isinstance(index[0], int) else None


def _mean_of(output: Tensor, index: tuple[Index, ...]) -> Float[Tensor, " r"]:
    part = output[(slice(None), *index)]
    return part.flatten(1).mean(1) if part.ndim > 1 else part


def _per_example(target: list[Any], shape: tuple[int, ...], n: int) -> Targets:
    indices = [entry if isinstance(entry, tuple) else (entry,) for entry in target]
    if len(indices) != n:
        raise ReadoutError(
            f"a list of targets has one entry per example: got {len(indices)} for {n} examples. For one target use an int, for all None."
        )
    if len({len(index) for index in indices}) != 1 or any(isinstance(i, slice) for index in indices for i in index):
        raise ReadoutError("per-example targets are ints, or tuples of ints of one length.")
    for index in indices:
        _require_index(index, shape)
    table = torch.tensor(indices)

    def read(output: Tensor, rows: Tensor) -> Tensor:
        picked = table.to(output.device)[rows.to(output.device)]
        part = output[(torch.arange(len(output), device=output.device), *picked.unbind(1))]
        return (part.flatten(1).mean(1) if part.ndim > 1 else part)[:, None]

    return Targets(("one per example",), False, (None,), read)


def _direction(weights: Tensor, shape: tuple[int, ...], n: int) -> Targets:
    if tuple(weights.shape) not in (shape, (n, *shape)):
        raise ReadoutError(f"a Direction has shape {shape} or {(n, *shape)}, got {tuple(weights.shape)}.")
    by_example = tuple(weights.shape) != shape

    def read(output: Tensor, rows: Tensor) -> Tensor:
        along = weights.detach().to(output)
        return (output * (along[rows.to(output.device)] if by_example else along)).flatten(1).sum(1, keepdim=True)

    return Targets(("direction",), False, (None,), read)


def _called(target: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def read(output: Tensor, rows: Int[Tensor, " r"]) -> Tensor:
        values = target(output)
        if not isinstance(values, Tensor) or tuple(values.shape) not in ((len(output),), (len(output), 1)):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ReadoutError(f"a callable target must return one number a row, ({len(output)},); it returned {got}.")
        return values.reshape(-1, 1)

    return read


def _written(index: tuple[Any, ...]) -> str:
    if all(isinstance(part, int | slice) for part in index):
        spans = (
            f"{p.start or 0}:{'' if p.stop is None else p.stop}" if isinstance(p, slice) else str(p) for p in index
        )
        return f"[{','.join(spans)}]"
    return repr(index)
