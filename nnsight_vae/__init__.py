"""Causal, mechanistic interpretability of Variational Autoencoders, on nnsight."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> submodule that defines it ("" for the submodule itself). Loaded on first use, so importing stays cheap.
_EXPORTS = {
    "NnsightVaeError": "errors",
    "SiteError": "errors",
    "AdapterError": "errors",
    "InterventionError": "errors",
    "DataError": "errors",
    "ReadoutError": "errors",
    "CircuitError": "errors",
    "NnsightVaeWarning": "errors",
    "VAE": "vae",
    "adapt": "adapters.adapt",
    "Posterior": "posterior",
    "Site": "sites",
    "Unit": "sites",
    "Selection": "sites",
    "Set": "interventions",
    "Add": "interventions",
    "Scale": "interventions",
    "Zero": "interventions",
    "Mean": "interventions",
    "Resample": "interventions",
    "Noise": "interventions",
    "Swap": "interventions",
    "Quantize": "interventions",
    "Intervention": "interventions",
    "intervene": "engine",
    "Output": "engine",
    "Pairs": "pairs",
    "Effects": "effects",
    "Mediation": "mediation_result",
    "Proportion": "mediation_result",
    "manipulate_inputs": "levels.inputs",
    "perturb_latents": "levels.latents",
    "patch_activations": "levels.patching",
    "mediate": "levels.mediation",
    "latent_metrics": "levels.latent_metrics",
    "load": "loading",
    "zoo": "models",
    "analyze": "report.analysis",
    "score_edges": "circuits.scores",
    "extract_circuit": "circuits.search",
    "export": "circuits.export",
    "read_circuit": "circuits.export",
}
_SUBPACKAGES = ("adapters", "attribution", "causal", "circuits", "datasets", "metrics", "models", "plots", "readouts", "report")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_SUBPACKAGES])
