"""`Renderer`: what draws a world's images from its visible factors, apart from the causal model that makes the factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from ..errors import DataError
from .moments import Measure

Draw = Callable[[Float[np.ndarray, "n f"]], UInt8[np.ndarray, "n c h w"]]


@dataclass(frozen=True)
class Renderer:
    """How images are drawn from factors, for any causal model of them.

    Attributes:
        limits: factor -> (lowest, highest) value that can be drawn, in the order of the columns that `draw` takes.
        image_shape: (channels, height, width).
        draw: takes factors, one row per image, a column each in the order of `limits`; returns uint8 images, `[n, channel, row,
            column]`.
        integers: factors that are drawn at whole numbers only, such as a shape.
        measures: factor -> its value in images `[n, c, h, w]` in [0, 1], in closed form; for the factors that have one.

    Example:
        >>> from nnsight_vae.causal import SCM, Mechanism
        >>> from nnsight_vae.datasets import Procedural
        >>> def draw(factors):  # a bright column of that shade
        ...     images = np.zeros((len(factors), 1, 8, 8), dtype=np.uint8)
        ...     for image, (x, shade) in zip(images, factors):
        ...         image[0, :, int(x)] = 255 * shade
        ...     return images
        >>> renderer = Renderer({"x": (0, 7), "shade": (0.5, 1)}, (1, 8, 8), draw)
        >>> scm = SCM({
        ...     "x": Mechanism((), lambda parents, noise: noise, lambda rng, n: rng.uniform(0, 7, n)),
        ...     "shade": Mechanism((), lambda parents, noise: noise, lambda rng, n: rng.uniform(0.5, 1, n)),
        ... })
        >>> Procedural.drawn("columns", scm, renderer).pairs("x", n=4)
        Pairs(4 pairs of shape (1, 8, 8), do(x), propagate=True)
    """

    limits: Mapping[str, tuple[float, float]]
    image_shape: tuple[int, int, int]
    draw: Draw
    integers: tuple[str, ...] = field(default=())
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors that show in the image, in the order of `draw`."""
        return tuple(self.limits)

    def of(self, names: tuple[str, ...], fixed: Mapping[str, float]) -> Draw:
        """The drawing of variables in another order, with some factors fixed; variables that are no factor do not show.

        Raises:
            DataError: a factor is neither a variable nor fixed, or fixed at what cannot be drawn.
        """
        missing = [name for name in self.factors if name not in names and name not in fixed]
        if missing:
            raise DataError(
                f"the image shows {', '.join(self.factors)}, and {', '.join(missing)} is no variable of the causal model "
                f"({', '.join(names)}); add it, or fix it: fixed={{{missing[0]!r}: ...}}."
            )
        unknown = [name for name in fixed if name not in self.factors]
        if unknown:
            raise DataError(f"fixed={unknown}: the image shows {', '.join(self.factors)} only.")
        for name, value in fixed.items():
            low, high = self.limits[name]
            if not low <= value <= high or (name in self.integers and value != round(value)):
                raise DataError(
                    f"cannot draw {name} = {value}; expected {'a whole number' if name in self.integers else 'a number'} in "
                    f"[{low:g}, {high:g}]."
                )

        def draw(values: Float[np.ndarray, "n v"]) -> UInt8[np.ndarray, "n c h w"]:
            columns = [
                np.full(len(values), fixed[name], values.dtype) if name in fixed else values[:, names.index(name)]
                for name in self.factors
            ]
            return self.draw(np.stack(columns, axis=1))

        return draw
