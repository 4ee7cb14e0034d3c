"""The common look of every figure: fonts, colours, spacing. Imports matplotlib only when a figure is made."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from nnsight_vae.errors import DataError
from nnsight_vae.guards import FEW_CLUSTERS
from nnsight_vae.style import FAINT, INK, LOWERS, RAISES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure outside pyplot, in inches: it changes no backend and no list of open figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def diverging() -> Colormap:
    """Orange (lowers) over white to blue (raises): told apart with every common colour blindness, and in grey by depth."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#7a3300", LOWERS, "#f6c79a", "#fbfbfb", "#a9cdf0", RAISES, "#08305a"]
    return LinearSegmentedColormap.from_list("lowers-raises", stops)


_TITLE_LETTER = 0.078  # inches: mean width of a letter of a title


def title(axes: Axes, text: str, note: str = "", width: float | None = None) -> None:
    """A title on the left and a note behind it, in as many lines as it takes where the width, in inches, is given."""
    whole = text + (f"  ({note})" if note else "")
    if width is not None:
        whole = whole.replace(" %", "\N{NO-BREAK SPACE}%")
        whole = textwrap.fill(whole, int(width / _TITLE_LETTER), break_long_words=False, break_on_hyphens=False)
    axes.set_title(whole, loc="left", fontsize=9, color=INK, parse_math=False)


def means_of(n_clusters: int) -> str:
    """What is drawn of effects over so many clusters: means alone, or with intervals, and how far to trust those."""
    if n_clusters < 2:
        return "mean"
    few = "indicative: " if n_clusters < FEW_CLUSTERS else ""
    return f"mean and 95 % interval, {few}{n_clusters:,} clusters"


def quiet(axes: Axes) -> None:
    """No frame, no tick marks, small tick labels."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)


def bare(axes: Axes) -> None:
    """No frame, ticks or tick labels; axis labels stay."""
    quiet(axes)
    axes.set_xticks([])
    axes.set_yticks([])


def name_ticks(axis: Axis, names: Sequence[str]) -> None:
    """One tick per name; a dollar sign in a name stays one."""
    axis.set_ticks(range(len(names)), labels=names)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)


def show(axes: Axes, image: Float[np.ndarray, "h w c"], alpha: float = 1.0) -> None:
    """An image in [0, 1], grey or RGB, in a hairline frame (its background may be white)."""
    grey = image.shape[-1] == 1
    axes.imshow(np.clip(image[..., 0] if grey else image, 0, 1), cmap="gray", vmin=0, vmax=1, alpha=alpha)
    bare(axes)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#d5d8dd", linewidth=0.5)


def channels_last(images: Any, ndim: int) -> Float[np.ndarray, "*batch h w c"]:
    """Images [..., c, h, w], tensor or array, as a float array [..., h, w, c].

    Raises:
        DataError: other dimensions, other channels than 1 or 3, none at all, or values that are not finite.
    """
    array = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if array.ndim != ndim or array.shape[-3] not in (1, 3) or not array.size:
        wanted = "[k, steps, c, h, w]" if ndim == 5 else "[n, c, h, w]"
        raise DataError(f"images have shape {array.shape}; expected {wanted} with 1 or 3 channels, at least one image.")
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"images are {array.dtype}; expected floats in [0, 1] (divide 8-bit images by 255).")
    if not np.isfinite(array).all():
        raise DataError("images hold NaN or infinite values; check the decoder's output.")
    return np.moveaxis(array, -3, -1)


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """The figure as a png, svg or pdf file in memory, free of dates and random ids."""
    import matplotlib as mpl

    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "nnsight-vae"}):
        figure.savefig(
            buffer, format=file_format, dpi=200, bbox_inches="tight", facecolor="white", metadata=metadata[file_format]
        )
    return buffer.getvalue()


def power_of_ten(limit: float, unit: str | None = None) -> tuple[float, str]:
    """The scale in which numbers up to `limit` show two digits or more, and what to call it and the unit: nothing for 1."""
    power = 0 if 0.1 <= limit < 1000 else math.floor(math.log10(limit))
    names = ([f"1e{power}"] if power else []) + ([unit] if unit else [])
    return 10.0**power, f", in {' '.join(names)}" if names else ""


def scaled_ticks(unit: float) -> Formatter:
    """Tick labels in a unit of their own."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value / unit:.6g}".replace("-", "\N{MINUS SIGN}"))


def signed(value: float) -> str:
    """Two decimals with a sign, a real minus among them; no sign where they are all 0."""
    text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return "0.00" if text[1:] == "0.00" else text


def write_numbers(
    axes: Axes,
    values: Float[np.ndarray, "row column"],
    clear: Bool[np.ndarray, "row column"],
    limit: float,
    scale: float,
) -> None:
    """Every number in its cell of a picture on `diverging()` from `-limit` to `limit`; pale where it is not clear of 0."""
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.5 * limit else INK if clear[i, j] else FAINT
        text = signed(value / scale) if value else "0"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour, alpha=1.0 if clear[i, j] else 0.6)


def faint_text(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Small grey text in data coordinates."""
    axes.text(x, y, text, **{"fontsize": 8, "color": FAINT, "parse_math": False, **options})
