"""Real handwritten digits with factors measured from their pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from .arrays import Arrays
from .own_arrays import from_arrays

FACTORS = ("ink", "slant", "width", "height", "center_x", "center_y")


def digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, as they are: no upscaling, no resampling.

    The factors are measured from the pixels by `measure`, not known from how the images came about. So there is no
    causal graph (`graph` is None) and no SCM, and pairs are matched images: in 256 of them the other factors differ
    by about .3 standard deviations where the factor itself differs by about 1.6 (see `Arrays.match_quality`).

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), through scikit-learn.

    Example:
        >>> digits()
        <digits: 1797 images, shape (1, 8, 8), factors ink, slant, width, height, center_x, center_y>
    """
    from sklearn.datasets import load_digits

    images = load_digits().images / 16
    return from_arrays(images, measure(images), names=FACTORS, name="digits")


def measure(images: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 6"]:
    """Ink, slant, width, height and centre of each image, from its first and second moments.

    With pixel intensities as masses, x to the right and y upwards::

        ink       mean intensity                                 in [0, 1]
        slant     arctan(cov_xy / var_y)                         degrees, positive leaning right
        width     sqrt(var_x - cov_xy^2 / var_y)                 pixels (sd of the ink after removing the slant)
        height    sqrt(var_y)                                    pixels
        center_x  mean_x, center_y  mean_y                       pixels from the middle of the image

    Args:
        images: intensities, at least 0, with some ink in at least two rows of each.

    Returns:
        One column per name in `FACTORS`.

    Example:
        >>> import numpy as np
        >>> leaning = np.eye(8)[None, ::-1]                      # a stroke from bottom left to top right
        >>> dict(zip(FACTORS, measure(leaning)[0].round(2).tolist()))["slant"]
        45.0
    """
    _, height, width = images.shape
    x = np.arange(width) - (width - 1) / 2
    y = ((height - 1) / 2 - np.arange(height))[:, None]
    mass = images / images.sum((1, 2), keepdims=True)
    mean_x, mean_y = (mass * x).sum((1, 2)), (mass * y).sum((1, 2))
    dx, dy = x - mean_x[:, None, None], y - mean_y[:, None, None]
    var_x, var_y, cov = (mass * dx**2).sum((1, 2)), (mass * dy**2).sum((1, 2)), (mass * dx * dy).sum((1, 2))
    upright = np.maximum(var_x - cov**2 / var_y, 0)  # rounding can leave a straight stroke just below 0
    slant = np.degrees(np.arctan(cov / var_y))
    return np.stack([images.mean((1, 2)), slant, np.sqrt(upright), np.sqrt(var_y), mean_x, mean_y], axis=1)
