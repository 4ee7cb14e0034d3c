"""A report folder: every analysis of a VAE on a dataset, written as files people can look at and load elsewhere."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {"analyze": "analysis", "Settings": "analysis", "Summary": "summary"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
