"""Make the bundled readouts again: `python -m nnsight_vae.datasets.build_readouts` (about 3 minutes on one core)."""

from __future__ import annotations

import sys
from pathlib import Path

from .._regressor import gaussian_blur
from .base import Batch
from .pendulum import pendulum
from .procedural import Procedural
from .procedural_readout import fit_procedural_readout

N_IMAGES, N_STEPS, N_TEST, BLUR = 16_000, 3500, 4000, 1.5
FOLDER = Path(__file__).parent / "readouts"


def build(
    data: Procedural, folder: Path = FOLDER, *, n: int = N_IMAGES, steps: int = N_STEPS, n_test: int = N_TEST
) -> Path:
    """Fit, score and write the readout of a procedural dataset.

    The record of the file states R2 on images drawn afterwards: observational, with independent factors, and
    observational ones blurred as a VAE might blur them.

    Args:
        data: the dataset.
        folder: where the file goes; created if missing.
        n: number of training images.
        steps: optimiser steps.
        n_test: number of images of each test.

    Returns:
        The file written, `folder/<dataset name>.safetensors`.
    """
    readout = fit_procedural_readout(data, n=n, steps=steps)
    observed, independent = data.sample(n_test, seed=1001), data.sample_independent(n_test, seed=1002)
    blurred = Batch(gaussian_blur(observed.images, BLUR), observed.factors)
    tests = {"observational": observed, "independent": independent, f"blur_{BLUR:g}px": blurred}
    scores = {what: readout.reliability_on(batch.images, batch.factors) for what, batch in tests.items()}
    readout.record |= {"dataset": data.name, "command": f"python -m {__spec__.name}", "r2": scores}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{data.name}.safetensors"
    readout.save(path)
    return path


if __name__ == "__main__":
    written = build(pendulum())
    sys.stdout.write(f"{written}\n")
