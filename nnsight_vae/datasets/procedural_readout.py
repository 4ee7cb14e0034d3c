"""The learned readout of a procedural world."""

from __future__ import annotations

import numpy as np
import torch

from .._regressor import Progress
from ..readouts import Factors
from .procedural import Procedural


def fit_procedural_readout(
    data: Procedural, n: int = 10_000, seed: int = 0, steps: int = 3000, progress: Progress | None = None
) -> Factors:
    """Fit a readout on half observational images and half with independent factors.

    Observational images alone would let it read a factor off its effects; independent ones alone would not look like
    what the models are trained on.

    Args:
        data: the dataset.
        n: number of images.
        seed: fixes images and training.
        steps: optimiser steps.
        progress: called with (steps done, steps in all), now and then.

    Returns:
        A readout of all factors but hidden ones, reliable or not, in observational standard deviations.
    """
    observed, _ = data.scm.sample(n // 2, np.random.default_rng(seed))
    factors = np.concatenate([observed, data._independent(n - n // 2, seed + 1)])
    images = torch.from_numpy(data.render(factors))
    shown = [j for j, name in enumerate(data.factors) if name not in data.hidden]
    table, names = torch.from_numpy(factors[:, shown].astype(np.float32)), [data.factors[j] for j in shown]
    return Factors.fit(
        images, table, names, discrete=data.discrete, seed=seed, steps=steps, allow_unreliable=True, progress=progress
    )
