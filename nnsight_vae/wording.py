"""Names and numbers in sentences: the first of many names, and one thing or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def some(names: Sequence[str], most: int = 12) -> str:
    """The first names, and how many there are.

    Example:
        >>> some(["a", "b", "c"], most=2)
        'a, b, ... (3 in all)'
    """
    more = "" if len(names) <= most else f", ... ({len(names)} in all)"
    return ", ".join(names[:most]) + more


def count(n: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "unit"), count(1024, "unit")
        ('1 unit', '1,024 units')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def shapes(arrays: Mapping[str, Any]) -> str:
    """What several arrays are called and how large they are; one that is None is left out.

    Example:
        >>> import torch
        >>> shapes({"mu": torch.zeros(2, 3), "noise": None})
        'mu (2, 3)'
    """
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items() if array is not None)
