"""Pictures of attributions: an atlas of inputs and latents, and single maps.

Blue raises, orange lowers, grey is dead. Figures are made without pyplot, as in `nnsight_vae.plots`; nothing is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae._canvas import bare, channels_last, diverging, new_figure, quiet, show
from nnsight_vae.attribution.base import record_of
from nnsight_vae.errors import DataError
from nnsight_vae.style import FAINT, INK, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

QUANTILE = 0.995  # of |attribution|, at full colour: a few extreme pixels must not fade all others
DEAD = "#e3e5e8"  # where a latent is dead


def plot_attribution_atlas(
    images: Float[Tensor, "n c h w"],
    maps: Float[Tensor, "n target c h w"] | Float[Tensor, "n target h w"],
    names: Sequence[str] | None = None,
    dead: Sequence[int] | None = None,
) -> tuple[Figure, np.ndarray]:
    """Attribution maps of several targets for several inputs: a column an input, a row a target, over the input's outline.

    Each row has one symmetric colour scale, so that its inputs can be compared; the number beside it is the full colour.
    Channels are summed. Rows of dead latents are grey.

    Args:
        images: the inputs, in [0, 1].
        maps: what `attribute(images, target=None)` returned; that of one target is an atlas of one row.
        names: of the targets; None: those that travel with the maps.
        dead: rows that are dead; None: those the maps' record calls collapsed.

    Returns: the figure and its axes, [targets + 1, n], the inputs themselves on top.

    Raises:
        DataError: shapes or names that disagree.
    """
    record = record_of(maps) if isinstance(maps, Tensor) else None
    pictures = channels_last(images, 4)
    values = _finite(maps, "maps")
    if record is not None and not record.target_axis:
        values = values[:, None]
    values = values.sum(2) if values.ndim == 5 else values
    n, height, width = pictures.shape[:3]
    if values.ndim != 4 or values.shape[0] != n or values.shape[2:] != (height, width):
        raise DataError(
            f"maps have shape {tuple(maps.shape)} for images of shape {tuple(images.shape)}; expected [n, targets, c, h, w], as "
            "attribute(images, target=None) returns."
        )
    if names is None:
        names = record.targets if record is not None else [str(k) for k in range(values.shape[1])]
    if len(names) != values.shape[1]:
        raise DataError(f"{len(names)} names for {values.shape[1]} targets; give one each.")
    if dead is None:
        flags = {} if record is None else record.flags
        dead = [k for k, name in enumerate(names) if flags.get(name, "").startswith("collapsed")]
    rows, longest = len(names), max(map(len, names))
    figure = new_figure(0.9 + 0.075 * longest + 0.8 * n, 0.7 + 0.8 * (rows + 1))
    axes = figure.subplots(rows + 1, n, squeeze=False)
    for i in range(n):
        show(axes[0, i], pictures[i])
    for k, name in enumerate(names):
        limit = full_colour(values[:, k])
        for i in range(n):
            cell = axes[k + 1, i]
            bare(cell)
            if k in dead:
                cell.set_facecolor(DEAD)
                cell.set_box_aspect(height / width)
                continue
            cell.imshow(values[i, k], cmap=diverging(), vmin=-limit, vmax=limit, interpolation="nearest")
            _outline(cell, pictures[i].mean(-1))
        note = "dead" if k in dead else f"\N{PLUS-MINUS SIGN}{limit:.2g}"
        axes[k + 1, 0].set_ylabel(
            f"{name}\n{note}", rotation=0, ha="right", va="center", fontsize=8, color=FAINT if k in dead else INK
        )
        axes[k + 1, 0].yaxis.label.set_parse_math(False)
    _scale_bar(figure, axes, "attribution, of each row's full colour (lowers | raises)")
    return figure, axes


def visualize(
    attributions: Float[Tensor, "c h w"] | Float[Tensor, "h w"],
    image: Float[Tensor, "c h w"] | None = None,
    *,
    method: str | None = None,
    sign: str = "all",
    cmap: str | Colormap | None = None,
    title: str | None = None,
    **options: Any,
) -> tuple[Figure, Axes]:
    """Captum's `visualize_image_attr` for tensors as our methods return them: no pyplot, colour-blind safe, and for empty maps too.

    Args:
        attributions: of one input; channels are summed.
        image: the input, in [0, 1].
        method: Captum's: `"heat_map"`, `"blended_heat_map"`, `"masked_image"`, `"alpha_scaling"`, `"original_image"`; None: blended
            where there is an image.
        sign: Captum's: `"all"`, `"positive"`, `"negative"`, `"absolute_value"`.
        cmap: None: orange lowers, blue raises for `"all"`, Captum's for the others.
        title: above the picture.
        options: Captum's: `outlier_perc`, `alpha_overlay`, `show_colorbar`, `fig_size`, `plt_fig_axis`.

    Returns: the figure and its axes. A map without any attribution of that sign is drawn empty, and says so.

    Raises:
        DataError: not one map, or an image of another size.
    """
    values = _finite(attributions, "attributions")
    if values.ndim not in (2, 3):
        raise DataError(f"attributions have shape {values.shape}; expected those of one input, [c, h, w] or [h, w].")
    values = values.sum(0) if values.ndim == 3 else values
    picture = None if image is None else channels_last(image, 3)
    if picture is not None and picture.shape[:2] != values.shape:
        raise DataError(f"attributions are {values.shape} pixels, the image {picture.shape[:2]}.")
    method = method or ("heat_map" if picture is None else "blended_heat_map")
    cmap = diverging() if cmap is None and sign == "all" else cmap
    kept = {"positive": np.maximum(values, 0), "negative": np.minimum(values, 0)}.get(sign, values)
    if not kept.any():
        return _empty_map(values, picture, title, options)
    from captum.attr import visualization

    scaled = values / np.abs(values).max()  # Captum scales too, but warns of small numbers
    figure, axes = visualization.visualize_image_attr(
        scaled[..., None], picture, method, sign, cmap=cmap, title=title, use_pyplot=False, **options
    )
    return figure, axes


# ---------------------------------------------------------------------- parts
def _finite(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise DataError(f"{name} of shape {array.shape} are empty, or hold NaN or infinite values.")
    return array


def full_colour(values: Float[np.ndarray, "..."]) -> float:
    """The size of a value that gets the full colour."""
    size = np.abs(values)
    return float(np.quantile(size, QUANTILE)) or float(size.max()) or 1.0


def _outline(axes: Axes, grey: Float[np.ndarray, "h w"]) -> None:
    if np.ptp(grey) > 0:
        axes.contour(grey, levels=[(grey.min() + grey.max()) / 2], colors=[NEUTRAL], linewidths=0.5)


def blank(axes: Axes, shape: tuple[int, ...]) -> None:
    """Grey: nothing to show here."""
    axes.set_facecolor(DEAD)
    axes.set_box_aspect(shape[0] / shape[1])
    bare(axes)


def _scale_bar(figure: Figure, axes: np.ndarray, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(-1, 1), diverging())
    bar = figure.colorbar(mappable, ax=axes, orientation="horizontal", shrink=0.6, aspect=40, pad=0.01)
    bar.set_ticks([-1, 0, 1])
    bar.set_label(label, fontsize=8, color=FAINT)
    quiet(bar.ax)


def _empty_map(
    values: np.ndarray, picture: np.ndarray | None, title: str | None, options: dict[str, Any]
) -> tuple[Figure, Axes]:
    figure, axes = options.get("plt_fig_axis") or (None, None)
    if figure is None or axes is None:
        figure = new_figure(*options.get("fig_size", (6, 6)))
        axes = figure.add_subplot()
    if picture is None:
        blank(axes, values.shape)
    else:
        show(axes, picture, alpha=0.5)
    axes.set_title(f"{title}: no attribution" if title else "no attribution", fontsize=9, color=FAINT, parse_math=False)
    return figure, axes
