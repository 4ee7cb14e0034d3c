"""Categorical factors, whose numbers have no order that a standard deviation could be taken of."""

from __future__ import annotations

import warnings

from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import NnsightVaeWarning
from nnsight_vae.readouts import Readout


def warn_of_categories(data: Dataset, readout: Readout) -> None:
    """Say which targets of a readout are categories read as numbers.

    Warns:
        NnsightVaeWarning: a discrete factor of three values or more. Of two, any number is as good as any other.
    """
    values = {name: len(found) for name, found in getattr(getattr(data, "scm", None), "discrete", {}).items()}
    for name in getattr(data, "integers", ()):
        low, high = data.limits[name]  # type: ignore[attr-defined]  # of `Procedural`, as `integers` is
        values[name] = int(high - low) + 1
    read = [f"{name} ({values[name]} values)" for name in readout.names if values.get(name, 0) > 2]
    if read:
        warnings.warn(
            f"{', '.join(read)}: read as a number, so effects on it are in standard deviations of that number, whatever order its "
            "values are in. If they have none, read a probability of each value (a readout of your own with one target a value).",
            NnsightVaeWarning,
            stacklevel=3,
        )
