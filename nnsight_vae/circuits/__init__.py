"""Circuits: scored edges, extracted graphs, how faithful they are, and files of them."""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that defines it. Loaded on first use, so importing stays cheap. A function cannot share its
# name with its module here: whoever imports the module first would get the module (hence `nnsight_vae.export`).
_EXPORTS = {
    "read_circuit": "export",
    "score_edges": "scores",
    "EdgeScores": "edges",
    "extract_circuit": "search",
    "circuit_from": "search",
    "faithfulness": "evaluate",
    "Faithfulness": "evaluate",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
