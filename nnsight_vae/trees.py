"""Values as modules return them: tensors inside tuples, dicts, named tuples, dataclasses and library outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[..., Any], *values: Any) -> Any:
    """The first value with each tensor replaced by `function` of the tensors in its place in all values.

    Args:
        function: takes one tensor a value.
        values: like structures; anything that is no tensor and no known container is taken from the last.

    Example:
        >>> import torch
        >>> map_tensors(torch.add, {"a": torch.ones(2)}, {"a": torch.ones(2)})
        {'a': tensor([2., 2.])}
    """
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first) if f.init]
        parts = {name: map_tensors(function, *(getattr(v, name) for v in values)) for name in names}
        # Before dict: a diffusers output is both, and cannot be built or copied without its fields.
        return dataclasses.replace(first, **parts)
    if isinstance(first, dict):
        items = {key: map_tensors(function, *(v[key] for v in values)) for key in first}
        return items if type(first) is dict else type(first)(items)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(map_tensors(function, *parts) for parts in zip(*values, strict=True)))
    if isinstance(first, list | tuple):
        return type(first)(map_tensors(function, *parts) for parts in zip(*values, strict=True))
    return values[-1]
