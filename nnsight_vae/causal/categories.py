"""Categorical factors, whose numbers have no order that a standard deviation could be taken of."""

from __future__ import annotations

import warnings

import numpy as np

from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import NnsightVaeWarning
from nnsight_vae.readouts import Readout


def warn_of_categories(data: Dataset, readout: Readout) -> None:
    """Say which targets of a readout are categories read as numbers.

    Warns:
        NnsightVaeWarning: a discrete factor of three values or more. Of two, any number is as good as any other.
    """
    read = []
    for name in (each for each in data.discrete if each in readout.names):
        n_values = len(np.unique(data._marginal(data.factors.index(name))))
        read += [f"{name} ({n_values} values)"] if n_values > 2 else []
    if read:
        first = read[0].split(" (")[0]
        warnings.warn(
            f"{', '.join(read)}: read as a number, so effects on it are in standard deviations of that number, whatever order its "
            f"values are in. If they have none, read the probability of each value: readout=data.readout().classes({first!r}).",
            NnsightVaeWarning,
            stacklevel=3,
        )
