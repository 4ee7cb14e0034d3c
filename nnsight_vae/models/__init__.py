"""Small VAEs to analyse: networks, objectives, a training loop, and the bundled checkpoints."""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that defines it; loaded on first use.
_EXPORTS = {
    "ConvVAE": "networks",
    "MLPVAE": "networks",
    "OBJECTIVES": "objectives",
    "Objective": "objectives",
    "Labels": "training",
    "Trained": "training",
    "train": "training",
    "load_module": "bundle",
    "load_weights": "files",
    "read_record": "bundle",
    "zoo": "bundle",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
