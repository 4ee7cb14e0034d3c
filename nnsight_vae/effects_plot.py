"""The picture of Effects: a heat map of means."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnsight_vae.effects import Effects
from nnsight_vae.errors import DataError


def heat_map(effects: Effects, max_units: int) -> tuple[Figure, Axes]:
    """Units down, targets across; see `Effects.plot`."""
    if not effects.units:
        raise DataError("There is no unit to draw: these effects are empty. Plot them before `significant`.")
    shown = effects
    if len(effects.units) > max_units:
        strongest = np.argsort(-np.abs(effects.mean()).max(axis=1), kind="stable")[:max_units]
        shown = effects.select([effects.units[i] for i in np.sort(strongest)])
    mean = shown.mean()
    limit = float(np.abs(mean).max()) or 1.0
    n_units, n_targets = mean.shape
    figure, axes = plt.subplots(figsize=(2.5 + 0.5 * min(n_targets, 24), 1.5 + 0.22 * n_units), layout="constrained")
    image = axes.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(n_units), shown.units)
    if n_targets <= 24:
        axes.set_xticks(range(n_targets), shown.targets, rotation=45, ha="right", rotation_mode="anchor")
    if shown.test:
        rows, columns = np.nonzero(shown.test.passed)
        axes.scatter(columns, rows, s=16, color="black", edgecolors="white", linewidths=0.8)  # legible on any colour
    subset = "" if shown is effects else f", strongest {n_units} of {len(effects.units)} units"
    axes.set_title(f"{effects.estimand}{subset}", fontsize="medium")
    figure.colorbar(image, label="mean effect")
    return figure, axes
