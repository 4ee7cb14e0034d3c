"""A counterfactual as an animation."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae._canvas import channels_last
from nnsight_vae._files import write_atomically
from nnsight_vae.attribution.shift import Shift
from nnsight_vae.errors import DataError

_SIDE = 128  # pixels it measures at least


def save_animation(
    shift: Shift | Float[Tensor, "step c h w"],
    path: str | os.PathLike[str],
    example: int = 0,
    *,
    milliseconds: int = 120,
) -> Path:
    """Write a counterfactual as an animation that runs there and back, forever: .gif (everywhere) or .webp (smaller).

    The file appears whole or not at all.

    Args:
        shift: from `LatentShift.path`, or frames in [0, 1].
        path: where to.
        example: which of the shift's examples.
        milliseconds: a frame is shown.

    Returns: the path.

    Raises:
        DataError: another suffix, no such example, frames that are not images, or a folder that cannot be written to.
    """
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        raise DataError(f"{path.name!r}: animations are written as .gif or .webp.")
    if milliseconds < 20:
        raise DataError(f"milliseconds={milliseconds}: viewers do not keep up below 20.")
    if isinstance(shift, Shift):
        if not -len(shift.frames) <= example < len(shift.frames):
            raise DataError(f"example={example}, but the shift has {len(shift.frames)} examples.")
        shift = shift.frames[example]
    frames = np.clip(channels_last(shift, 4) * 255 + 0.5, 0, 255).astype(np.uint8)
    if len(frames) < 2:
        raise DataError("one frame is no animation; use n_steps of at least 1.")
    frames = np.concatenate([frames, frames[-2:0:-1]])
    zoom = -(-_SIDE // min(frames.shape[1:3]))
    frames = frames.repeat(zoom, axis=1).repeat(zoom, axis=2)
    grey = frames.shape[-1] == 1
    pictures = [Image.fromarray(frame[..., 0] if grey else frame) for frame in frames]
    if path.suffix.lower() == ".gif" and not grey:
        # One palette for all frames: colours that change from frame to frame flicker.
        palette = Image.fromarray(np.concatenate(frames, axis=1)).quantize(256, method=Image.Quantize.MAXCOVERAGE)
        pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    options = {"lossless": True} if path.suffix.lower() == ".webp" else {"disposal": 1}
    pictures[0].save(
        buffer,
        path.suffix[1:].lower(),
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        **options,
    )
    write_atomically(path, buffer.getvalue())
    return path
