"""What images a training takes, and how a record names them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..errors import DataError


def check_images(name: str, images: Tensor) -> None:
    """Refuse what is no batch of pictures.

    Raises:
        DataError: it is no tensor `[n, c, h, w]`, is empty, or holds anything but uint8 or floats in [0, 1].
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or 0 in images.shape:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"{name}: got {got}, expected a non-empty tensor (images, channels, height, width).")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise DataError(f"{name} are {images.dtype}, expected uint8 in 0-255 or floats in [0, 1].")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # false for NaN as well
        raise DataError(f"{name} lie in [{low:.3g}, {high:.3g}], expected finite floats in [0, 1] (or uint8): rescale.")


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of the bytes of tensors, which tells one data set from another."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
