"""What the package promises as a whole: every public name is there, importing is cheap and touches nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nnsight_vae as nv

DESIGN = [
    "VAE",
    "adapt",
    "load",
    "zoo",
    "intervene",
    "Pairs",
    "Effects",
    "Mediation",
    "Posterior",
    "manipulate_inputs",
    "perturb_latents",
    "patch_activations",
    "mediate",
    "path_effects",
    "shapley_mediators",
    "sequential_mediators",
    "Proportion",
    "Doses",
    "DoseResponse",
    "dose_response",
    "latent_metrics",
    "score_edges",
    "extract_circuit",
    "export",
    "read_circuit",
    "Set",
    "Add",
    "Scale",
    "Zero",
    "Mean",
    "Resample",
    "Noise",
    "Swap",
    "Quantize",
    "NnsightVaeError",
    "SiteError",
    "AdapterError",
    "InterventionError",
    "DataError",
    "ReadoutError",
    "CircuitError",
]
NESTED = [
    "datasets.load",
    "datasets.from_arrays",
    "causal.map_factors",
    "causal.factor_graph",
    "causal.compare",
    "causal.interchange_accuracy",
    "causal.learn_rotation",
    "causal.unit_verdicts",
    "causal.factor_circuits",
    "metrics.polysemanticity",
    "circuits.faithfulness",
    "metrics.causal_effect_strength",
    "metrics.intervention_specificity",
    "metrics.circuit_modularity",
    "metrics.latent_response_matrix",
    "metrics.activity",
    "attribution.captum_forward",
    "attribution.captum_layer",
    "attribution.agreement",
    "attribution.LatentIntegratedGradients",
    "attribution.LatentConductance",
    "attribution.LatentGradCam",
    "attribution.LatentShapley",
    "attribution.DecoderIntegratedGradients",
    "attribution.DecoderJacobian",
    "attribution.LatentShift",
    "attribution.LabelFree",
    "readouts.Pixels",
    "readouts.Region",
    "readouts.Factors",
    "readouts.Latents",
    "readouts.Reencoded",
    "models.train",
    "models.ConvVAE",
    "models.MLPVAE",
    "plots.save_figure",
]


@pytest.mark.parametrize("name", [*DESIGN, *NESTED])
def test_every_public_name_is_where_the_design_says(name):
    found = nv
    for part in name.split("."):
        found = getattr(found, part)
    assert found is not None


def test_every_listed_name_can_be_loaded():
    for package in (nv, nv.attribution, nv.causal, nv.circuits, nv.datasets, nv.metrics, nv.models, nv.report):
        for name in package.__all__:
            assert getattr(package, name) is not None


def test_errors_are_one_family():
    family = [getattr(nv, name) for name in DESIGN if name.endswith("Error")]
    assert all(issubclass(error, nv.NnsightVaeError) for error in family)


def test_importing_adds_little_and_loads_nothing_heavy():
    """Our own share only, so that no clock is needed: what becomes loaded beyond torch and nnsight."""
    code = (
        "import sys, torch, nnsight\nbefore = set(sys.modules)\nimport nnsight_vae\n"
        "print(' '.join(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"pandas", "matplotlib", "sklearn", "scipy", "captum", "rich", "networkx"}
    assert not heavy & set(loaded)
    assert len(loaded) < 20
