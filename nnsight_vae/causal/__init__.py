"""Causal ground truth: structural causal models, graphs, and the mapping between latents and factors."""

from __future__ import annotations

import importlib
from typing import Any

# public name -> submodule that defines it. Loaded on first use, so importing stays cheap.
_EXPORTS = {
    "SCM": "scm",
    "Mechanism": "scm",
    "compare": "graphs",
    "GraphComparison": "graphs",
    "shd": "graphs",
    "sid": "graphs",
    "ancestor_aid": "graphs",
    "FactorMap": "mapping",
    "map_factors": "mapping",
    "factor_graph": "model_graph",
    "InterchangeAccuracy": "abstraction",
    "interchange_accuracy": "abstraction",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
