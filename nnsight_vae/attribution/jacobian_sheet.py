"""The decoder's Jacobian as one figure: columns, singular directions, lengths, cosines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from nnsight_vae._canvas import bare, diverging, name_ticks, new_figure, quiet, signed
from nnsight_vae.attribution.jacobian import Jacobian
from nnsight_vae.attribution.pictures import DEAD, blank, full_colour
from nnsight_vae.errors import DataError
from nnsight_vae.style import FAINT, INK, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 12  # latents shown


def plot_jacobian(jacobian: Jacobian, example: int = 0) -> tuple[Figure, dict[str, Any]]:
    """What a small step of each latent does to the image at one code, and how these columns relate.

    On top the columns, largest first, and the singular directions, each in its own colour scale with its length above; below
    the lengths of the columns over all codes, a dot each, and the cosines between them at this code (blank where a column is 0 or dead).

    Args:
        jacobian: from `DecoderJacobian(vae).at(z)`, of the reconstruction.
        example: which code.

    Returns: the figure and its axes: `"columns"`, `"directions"` (arrays), `"norms"`, `"cosines"`.

    Raises:
        DataError: a Jacobian of a readout, or no such code.
    """
    if jacobian.columns.ndim != 5:
        raise DataError(
            f"a sheet shows images; this Jacobian has columns of shape {tuple(jacobian.columns.shape[2:])}. Use DecoderJacobian(vae)."
        )
    if not -len(jacobian.columns) <= example < len(jacobian.columns):
        raise DataError(f"example={example}, but the Jacobian is at {len(jacobian.columns)} codes.")
    size = jacobian.norms.square().mean(0).sqrt().cpu().numpy()
    order = np.argsort(-size, kind="stable")[:_MOST]
    dead = jacobian.dead.cpu().numpy()
    k = len(order)
    figure = new_figure(1.2 + 0.95 * max(k, 5), 6.2)
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.6, 3.6))
    upper, lower = halves
    cells = upper.subplots(2, k, squeeze=False)
    columns = jacobian.columns[example].sum(1).cpu().numpy()
    steps = jacobian.singular()
    outputs, lengths = steps.outputs[example].sum(1).cpu().numpy(), steps.values[example].cpu().numpy()
    norms = jacobian.norms[example].cpu().numpy()
    for place, latent in enumerate(order):
        name = jacobian.names[latent].removeprefix("latent.")
        if dead[latent]:
            blank(cells[0, place], columns.shape[1:])
        else:
            _signed_image(cells[0, place], columns[latent])
        label = "dead" if dead[latent] else f"{norms[latent]:.3g}"
        cells[0, place].set_title(
            f"{name}\n{label}", fontsize=8, color=FAINT if dead[latent] else INK, parse_math=False
        )
        if place < len(lengths):
            _signed_image(cells[1, place], outputs[place])
            cells[1, place].set_title(f"\N{GREEK SMALL LETTER SIGMA} {lengths[place]:.3g}", fontsize=8, color=INK)
        else:
            cells[1, place].set_visible(False)
    cells[0, 0].set_ylabel("columns\n(length)", fontsize=8, color=FAINT)
    cells[1, 0].set_ylabel("directions\n(length)", fontsize=8, color=FAINT)
    bars, grid = lower.subplots(1, 2, width_ratios=(1, 1.25))
    each = jacobian.norms[:, order.tolist()].cpu().numpy()
    _norm_bars(bars, [jacobian.names[i] for i in order], size[order], each, dead[order], len(size))
    _cosine_grid(grid, [jacobian.names[i] for i in order], jacobian.cosines()[example][np.ix_(order, order)], lower)
    return figure, {"columns": cells[0], "directions": cells[1], "norms": bars, "cosines": grid}


def _signed_image(axes: Axes, values: Float[np.ndarray, "h w"]) -> None:
    limit = full_colour(values)
    axes.imshow(values, cmap=diverging(), vmin=-limit, vmax=limit, interpolation="nearest")
    bare(axes)


def _norm_bars(
    axes: Axes, names: Sequence[str], sizes: np.ndarray, each: np.ndarray, dead: np.ndarray, n_latents: int
) -> None:
    """The root mean square length of each column, with a dot for every code, [code, latent]."""
    places = np.arange(len(names))
    axes.barh(places, sizes, color=[DEAD if flag else NEUTRAL for flag in dead], height=0.7)
    if len(each) > 1:
        axes.scatter(each, np.broadcast_to(places, each.shape), s=5, color=INK, alpha=0.6, linewidths=0, zorder=3)
    name_ticks(axes.yaxis, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    quiet(axes)
    shown = f"; {len(names)} of {n_latents} latents" if len(names) < n_latents else ""
    dots = f"root mean square, dots: {len(each):,} codes" if len(each) > 1 else "one code"
    axes.set_xlabel(f"length of the column, intensity per unit of latent\n({dots}{shown})", fontsize=8, color=FAINT)


def _cosine_grid(axes: Axes, names: Sequence[str], cosines: np.ma.MaskedArray, figure: Any) -> None:
    image = axes.imshow(cosines, cmap=diverging(), vmin=-1, vmax=1, interpolation="nearest")
    axes.set_facecolor(DEAD)
    axes.set_anchor("W")
    name_ticks(axes.yaxis, names)
    name_ticks(axes.xaxis, names)
    axes.tick_params(axis="x", rotation=90)
    quiet(axes)
    if len(names) <= 8:
        hidden = np.ma.getmaskarray(cosines)
        for (i, j), value in np.ndenumerate(cosines.data):
            if not hidden[i, j]:
                axes.text(
                    j,
                    i,
                    signed(float(value)),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if abs(value) > 0.5 else INK,
                )
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("cosine", fontsize=8, color=FAINT)
    quiet(bar.ax)
