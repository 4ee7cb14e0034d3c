"""The shape annotations of the pure functions, enforced by jaxtyping and beartype while their tests run.

Only there: inside an nnsight trace functions are suspended and resumed, which jaxtyping's per-call bookkeeping cannot follow;
and tests that pass a wrong type on purpose would meet the enforcement before our own error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = [
    "statistics",
    "trends",
    "intervals",
    "discovery",
    "effects",
    "mediation_result",
    "mediation_intervals",
    "matching",
    "attribution_shapley",
    "attribution_agreement",
    "unit_attributions",
    "attribution_jacobian",
    "attribution_shift",
    "metrics_causal",
    "metrics_causal_intervals",
    "metrics_causal_invariants",
    "latent_activity",
    "scm",
    "pairs",
    "readouts",
    "datasets",
    "objectives",
    "penalties",
    "vq",
    "families",
    "graphs",
    "posterior",
    "export",
]
ON_PURPOSE = ["refus", "bad", "cannot", "few_clusters", "slabs", "two_valued", "compared", "maps_say", "asks_for"]


@pytest.mark.slow
def test_annotations_hold_when_enforced():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-o", "filterwarnings=", "-p", "no:cacheprovider"]
    command += [
        "--jaxtyping-packages=nnsight_vae,beartype.beartype",
        "-k",
        " and ".join(f"not {word}" for word in ON_PURPOSE),
    ]
    command += [str(here / f"test_{name}.py") for name in FILES]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # not a worker of this run
    result = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
