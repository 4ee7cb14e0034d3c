"""Readouts: differentiable functions of a model's output that give one number per named target.

Effects are measured on a readout. `Pixels` and `Region` read the reconstruction as it is, `Factors` asks a small
learned regressor which value of each ground-truth factor the reconstruction shows, `Reencoded` asks the encoder, and
`Latents` reads the posterior mean instead of the reconstruction. Any object of your own with `names` and `__call__` is a readout too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ReadoutError
from .factor_readout import Factors
from .reading import Readout, check_shape, select

if TYPE_CHECKING:
    from .reencoded import Reencoded

__all__ = ["Factors", "Latents", "Pixels", "Readout", "Reencoded", "Region", "select"]

Span = slice | int


def __getattr__(name: str) -> Any:
    if name == "Reencoded":  # of a wrapped model, and so of nnsight, which data sets and their readouts do without
        from .reencoded import Reencoded

        return Reencoded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Pixels:
    """Every element of the reconstruction as its own target, named `pixel[c,i,j]`.

    Args:
        shape: shape of one reconstruction, without the batch axis: (channels, height, width) for images, (d,) for
            vectors.

    Raises:
        ReadoutError: if the shape is not positive integers, or a call's reconstruction has another shape.

    Example:
        >>> import torch
        >>> Pixels((1, 2, 2)).names
        ('pixel[0,0,0]', 'pixel[0,0,1]', 'pixel[0,1,0]', 'pixel[0,1,1]')
    """

    reads = "output"
    unit = "intensity"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = _positive_shape("Pixels", shape)
        cells = itertools.product(*map(range, self.shape))
        self.names: tuple[str, ...] = tuple(f"pixel[{','.join(map(str, cell))}]" for cell in cells)

    def __call__(self, reconstruction: Float[Tensor, "n ..."]) -> Float[Tensor, "n t"]:
        """Each reconstruction flattened: intensity of every element."""
        check_shape("Pixels", reconstruction, self.shape)
        return reconstruction.flatten(1)

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        return select(self, names)

    def __repr__(self) -> str:
        return f"Pixels({self.shape})"


class Region:
    """Mean intensity of named rectangles of an image, over all channels.

    Args:
        regions: name -> (rows, columns); each a slice or an integer, as in `image[:, rows, columns]`.

    Raises:
        ReadoutError: if a region is ill-formed, or is empty in a reconstruction.

    Example:
        >>> import torch
        >>> halves = Region({"top": (slice(0, 4), slice(None)), "bottom": (slice(4, 8), slice(None))})
        >>> image = torch.cat([torch.ones(1, 3, 4, 8), torch.zeros(1, 3, 4, 8)], dim=2)
        >>> halves.names, halves(image).tolist()
        (('top', 'bottom'), [[1.0, 0.0]])
    """

    reads = "output"
    unit = "intensity"

    def __init__(self, regions: Mapping[str, tuple[Span, Span]]) -> None:
        if not isinstance(regions, Mapping) or not regions:
            raise ReadoutError(f"Region: got {regions!r}, expected at least one {{name: (rows, columns)}}.")
        for name, area in regions.items():
            if not isinstance(area, tuple) or len(area) != 2 or not all(map(_is_span, area)):
                raise ReadoutError(
                    f"Region {name!r} is {area!r}, expected (rows, columns), each a slice or an integer."
                )
        self.regions = {name: (_as_slice(rows), _as_slice(columns)) for name, (rows, columns) in regions.items()}
        self.names: tuple[str, ...] = tuple(self.regions)

    def __call__(self, reconstruction: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t"]:
        """Mean intensity of each region, in the unit of the images."""
        if reconstruction.ndim != 4:
            raise ReadoutError(f"Region reads images [n, c, h, w]; got shape {tuple(reconstruction.shape)}.")
        means = []
        for name, (rows, columns) in self.regions.items():
            area = reconstruction[:, :, rows, columns]
            if area.shape[-1] == 0 or area.shape[-2] == 0:
                raise ReadoutError(
                    f"Region {name!r} is empty in an image of {tuple(reconstruction.shape[-2:])} pixels."
                )
            means.append(area.mean(dim=(1, 2, 3)))
        return torch.stack(means, dim=1)

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        return select(self, names)

    def __repr__(self) -> str:
        return f"Region({', '.join(f'{name} {_span(r)} x {_span(c)}' for name, (r, c) in self.regions.items())})"


class Latents:
    """The posterior mean itself, in latent units: a target per latent, `latent.mu[k]`, at a position `latent.mu[k]@i,j`.

    It reads `latent.mu` instead of the reconstruction (`reads == "latent.mu"`).

    Args:
        shape: number of latents; of a spatial latent its shape, (channels, height, width).

    Raises:
        ReadoutError: if that is not positive integers, or a call's input has another number of latents.

    Example:
        >>> Latents(2).names, Latents(2).reads
        (('latent.mu[0]', 'latent.mu[1]'), 'latent.mu')
        >>> Latents((1, 2, 2)).names
        ('latent.mu[0]@0,0', 'latent.mu[0]@0,1', 'latent.mu[0]@1,0', 'latent.mu[0]@1,1')
    """

    reads = "latent.mu"
    unit = "latent units"

    def __init__(self, shape: int | Sequence[int]) -> None:
        self.shape = _positive_shape("Latents", (shape,) if isinstance(shape, int) else shape, "8, or (4, 8, 8)")
        places = itertools.product(*map(range, self.shape[1:]))
        ends = [f"@{','.join(map(str, place))}" if place else "" for place in places]
        self.names: tuple[str, ...] = tuple(f"latent.mu[{k}]{end}" for k in range(self.shape[0]) for end in ends)

    def __call__(self, mu: Float[Tensor, "n k *position"]) -> Float[Tensor, "n t"]:
        """The posterior means, flattened."""
        check_shape("Latents", mu, self.shape)
        return mu.flatten(1)

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        return select(self, names)

    def __repr__(self) -> str:
        return f"Latents({self.shape[0] if len(self.shape) == 1 else self.shape})"


def _positive_shape(who: str, shape: Sequence[int], example: str = "(3, 64, 64)") -> tuple[int, ...]:
    is_shape = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not is_shape or not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        got = f"shape {tuple(shape)}" if is_shape else f"a {type(shape).__name__}"
        raise ReadoutError(f"{who}: got {got}, expected positive integers, e.g. {example}, without the batch.")
    return tuple(shape)


def _is_span(span: object) -> bool:
    return isinstance(span, Span) and getattr(span, "step", None) != 0


def _span(span: slice) -> str:
    """A slice as it is written: `0:4`."""
    ends = [span.start, span.stop] if span.step is None else [span.start, span.stop, span.step]
    return ":".join("" if end is None else str(end) for end in ends)


def _as_slice(span: Span) -> slice:
    if isinstance(span, slice):
        return span
    return slice(span, span + 1 or None)  # -1 must mean the last row, not an empty slice
