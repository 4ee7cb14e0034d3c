"""Metrics: pure functions of arrays."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "causal_effect_strength": "causal",
    "intervention_specificity": "causal",
    "circuit_modularity": "causal",
    "LatentScores": "scores",
    "Score": "scores",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
