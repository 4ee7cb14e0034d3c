"""Closed-form measures: factors of the procedural worlds from areas, centres and colours of what their images show.

Each takes images in [0, 1], `[n, c, h, w]`, and gives one number an image in the factor's own units; NaN where nothing is there to
be measured. They invert the drawing, so they are right on rendered images whatever the other factors are, and only as good as the
drawing on reconstructions: what a learned readout is checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._regressor import unit_range
from ..errors import DataError
from .canvas import SIDE, centres

Images = Float[np.ndarray, "n c h w"]
Mass = Float[np.ndarray, "n h w"]
Measure = Callable[[Images], Float[np.ndarray, " n"]]


def measured(
    who: str,
    measures: Mapping[str, Measure],
    images: Tensor,
    image_shape: tuple[int, ...],
    names: str | Sequence[str] | None,
) -> dict[str, Float[Tensor, " n"]]:
    """The named measures of images, or all.

    Args:
        who: named in errors.
        measures: factor -> measure.
        images: float in [0, 1] or uint8.
        image_shape: what one of them has to have.
        names: factors; None: all.

    Raises:
        DataError: images of another shape, or a factor without a measure.
    """
    wanted = [names] if isinstance(names, str) else list(measures if names is None else names)
    missing = [name for name in wanted if name not in measures]
    if missing or not wanted:
        known = ", ".join(measures) or "none"
        raise DataError(f"{who}: no closed form for {', '.join(missing) or 'any factor'}; there is for: {known}.")
    if tuple(images.shape[1:]) != tuple(image_shape):
        raise DataError(
            f"{who}: images have shape {tuple(images.shape)}, expected (n, {', '.join(map(str, image_shape))})."
        )
    array = unit_range(images.detach().cpu()).double().numpy()
    return {name: torch.from_numpy(measures[name](array)) for name in wanted}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)


def _centre(mass: Mass, along: np.ndarray) -> Float[np.ndarray, " n"]:
    return _ratio((mass * along).sum((1, 2)), mass.sum((1, 2)))


def _hue(colour: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """Hue in turns of colours mixed with grey; a shade beyond red counts as below 0."""
    red, green, blue = colour.T
    most, range_ = colour.max(1), np.ptp(colour, axis=1)
    turn = np.select(
        [most == red, most == green],
        [_ratio(green - blue, range_), 2 + _ratio(blue - red, range_)],
        4 + _ratio(red - green, range_),
    )
    return (turn / 6 + 0.1) % 1 - 0.1


# ------------------------------------------------------------------ pendulum: x in [-2, 22], y in [-3, 21]
_PENDULUM_X, _PENDULUM_Y, _PENDULUM_AREA = centres(-2, 22), centres(-3, 21)[::-1, None], (24 / SIDE) ** 2


def _angle(images: Images) -> np.ndarray:
    ball = np.clip(images[:, 0] - images[:, 1], 0, 1) * ((_PENDULUM_Y < 16) & (_PENDULUM_Y > -0.5))
    return np.arctan2(_centre(ball, _PENDULUM_X) - 10, 10.5 - _centre(ball, _PENDULUM_Y))


def _light(images: Images) -> np.ndarray:
    return np.arctan2(10, _centre((1 - images[:, 2]) * (_PENDULUM_Y > 16), _PENDULUM_X) - 10)


def _shadow(images: Images) -> Mass:
    return (1 - images.mean(1)) * ((_PENDULUM_Y < -0.9) & (_PENDULUM_Y > -2.5))


PENDULUM: dict[str, Measure] = {
    "angle": _angle,
    "light": _light,
    "shadow_length": lambda images: _shadow(images).sum((1, 2)) * _PENDULUM_AREA,  # its height is 1
    "shadow_position": lambda images: _centre(_shadow(images), _PENDULUM_X),
}

# ------------------------------------------------------------------ flow: x in [1, 17], y in [0, 16]
_FLOW_X, _FLOW_Y, _FLOW_PIXEL = centres(1, 17), centres(0, 16)[::-1, None], 16 / SIDE
_IN_WATER = (_FLOW_X > 3.5) & (_FLOW_X < 7.5) & (_FLOW_Y > 0.5) & (_FLOW_Y < 5)


def _ball_size(images: Images) -> np.ndarray:
    share = (images[:, 0] - images[:, 2] + 0.45) / 1.02 * _IN_WATER  # red of the ball on blue of the water
    return np.sqrt(share.sum((1, 2)).clip(min=0) * _FLOW_PIXEL**2 / np.pi)


def _water_height(images: Images) -> np.ndarray:
    beside = (_FLOW_X > 7) & (_FLOW_X < 8)  # of the ball
    share = ((1 - images[:, 0]) / 0.47 * (_FLOW_Y > 0.5))[:, :, beside]
    return share.sum((1, 2)) / beside.sum() * _FLOW_PIXEL + 0.5 - 5


def _jet(images: Images) -> Mass:
    return np.clip(images[:, 2] - images[:, 0], 0, 1) / 0.8 * (_FLOW_X > 8.25)


def _flow(images: Images) -> np.ndarray:
    whole = 0.9 * 2  # the jet is two pixels thick, and its end may lie in the ground by a tenth
    return 0.25 + _FLOW_PIXEL * np.clip(_jet(images).sum(1) / whole, 0, 1).sum(1)


def _hole(images: Images) -> np.ndarray:
    first = _jet(images) * (_FLOW_X < 8.5)
    fallen = (0.375 / np.maximum(_flow(images), 0.5)) ** 2  # share of its fall at the middle of that column
    return (_centre(first, _FLOW_Y) - 0.5 * fallen) / (1 - fallen)


FLOW: dict[str, Measure] = {"ball_size": _ball_size, "water_height": _water_height, "hole": _hole, "flow": _flow}

# ------------------------------------------------------------------ linear sprites: pixels, y upwards
_X, _Y = centres(0, SIDE), centres(0, SIDE)[::-1, None]


def _disc(images: Images) -> Mass:
    return np.ptp(images, axis=1) * (_X < 35)  # of a pure colour on grey: the share of the pixel that it covers


def _satellite(images: Images) -> Mass:
    backdrop = images[:, 0, 0, 0][:, None, None]
    return np.clip(_ratio(images.min(1) - backdrop, np.broadcast_to(1 - backdrop, images[:, 0].shape)), 0, 1)


def _disc_hue(images: Images) -> np.ndarray:
    strongest = _disc(images).reshape(len(images), -1).argmax(1)
    return _hue(images.reshape(len(images), 3, -1)[np.arange(len(images)), :, strongest])


LINEAR_SPRITES: dict[str, Measure] = {
    "backdrop": lambda images: images[:, 0, 0, 0],
    "size": lambda images: np.sqrt(_disc(images).sum((1, 2)) / np.pi),
    "hue": _disc_hue,
    "height": lambda images: _centre(_disc(images), _Y),
    "satellite_size": lambda images: np.sqrt(_satellite(images).sum((1, 2)) / np.pi),
    "satellite_angle": lambda images: np.arcsin(((_centre(_satellite(images), _Y) - 32) / 16).clip(-1, 1)),
}

# ------------------------------------------------------------------ room: hues where nothing but one thing is
ROOM: dict[str, Measure] = {
    "wall_hue": lambda images: _hue(images[:, :, :8].mean((2, 3))),
    "floor_hue": lambda images: _hue(images[:, :, 56:].mean((2, 3))),
    "object_hue": lambda images: _hue(images[:, :, 43:46, 31:33].mean((2, 3))),
}
