"""The picture of a factor map: which latent moves which factor, how far, with its interval and each latent's verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnsight_vae._canvas import diverging, name_ticks, new_figure, quiet, title
from nnsight_vae.style import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_vae.causal.factor_map import FactorMap


def plot_factor_map(factor_map: FactorMap) -> tuple[Figure, Axes]:
    """Latents down, the most informative on top, factors across: sizes in factor sd with their simultaneous intervals.

    A frame marks a factor that a latent carries; bold is the one-to-one matching. Blue: moving the latent up raises the factor on
    average; orange: it lowers it. The size is the mean of |effect|, whichever its sign.

    Args:
        factor_map: from `nv.causal.map_factors`.

    Returns: the figure and its axes.
    """
    order, factors = factor_map.order, factor_map.factors
    size, low, high = (table[order] for table in (factor_map.size, factor_map.low, factor_map.high))
    sign = np.where(factor_map.effects.mean()[order] < 0, -1.0, 1.0)
    limit = float(size.max()) or 1.0
    cell = min(max(1.15, 0.085 * max(map(len, factors))), 1.8)  # inches
    figure = new_figure(2.6 + cell * len(factors), 1.4 + 0.36 * len(order))
    axes = figure.add_subplot()
    axes.imshow(sign * size, cmap=diverging(), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    nats = ["" if factor_map.kl is None else f", KL {factor_map.kl[k]:.2f} nats" for k in order]
    names = [f"{factor_map.effects.units[k]}\n{factor_map.verdicts[k]}{kl}" for k, kl in zip(order, nats, strict=True)]
    name_ticks(axes.yaxis, names)
    name_ticks(axes.xaxis, factors)
    quiet(axes)
    axes.set_xticks(np.arange(len(factors) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(order) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for label, k in zip(axes.get_yticklabels(), order, strict=True):
        label.set(fontsize=7, color=FAINT if factor_map.verdicts[k] == "dead" else INK)
    for (i, j), value in np.ndenumerate(size):
        factor, k = factors[j], int(order[i])
        carried = bool(factor_map.carried[k, j])
        matched = factor_map.assignment[factor] == k
        colour = "white" if value > 0.5 * limit else INK if carried else FAINT
        text = f"{value:.2f}\n[{low[i, j]:.2f}, {high[i, j]:.2f}]"
        weight = "bold" if matched else "normal"
        axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour, fontweight=weight)
        if carried:
            _frame(axes, i, j, colour)
    text = f"Size of a latent's effect on each factor of {factor_map.data}, factor sd, {factor_map.level:.0%} simultaneous intervals"
    title(
        axes,
        text,
        "framed: carried; bold: one-to-one matching; blue raises, orange lowers",
        width=2.0 + cell * len(factors),
    )
    return figure, axes


def _frame(axes: Axes, row: int, column: int, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.46, row - 0.43), 0.92, 0.86, fill=False, edgecolor=colour, linewidth=1.0))
