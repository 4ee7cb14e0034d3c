"""What the world's SCM says: the factors that images would show, had some of their factors been those of other images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.readouts import Readout

_ROWS = 256  # images that a readout is asked about at once


def true_change(
    data: Dataset, base: Batch, sources: Mapping[str, Batch], readout: Readout, propagate: bool
) -> Float[Tensor, "n target"]:
    """Readout of the base images with each named factor taken from its own source, minus that of the base images.

    Args:
        data: a dataset with counterfactuals.
        base: images with their noise.
        sources: factor -> the images it is taken from, row by row.
        readout: reads the images.
        propagate: descendants follow the SCM; otherwise all other factors keep the values of the base.
    """
    held = {} if propagate else {name: base.factors[:, j] for j, name in enumerate(data.factors)}
    taken = {name: source.factors[:, data.factors.index(name)] for name, source in sources.items()}
    changed = data.counterfactual(base, **(held | taken)).images
    return _read(readout, changed) - _read(readout, base.images)


def _read(readout: Readout, images: Tensor) -> Float[Tensor, "n target"]:
    with torch.no_grad():
        return torch.cat([readout(rows) for rows in images.split(_ROWS)])
