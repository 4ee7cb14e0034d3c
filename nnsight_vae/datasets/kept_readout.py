"""A dataset's readout on disk: fitted once, and read from its file from then on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._regressor import Progress
from ..errors import DataError

if TYPE_CHECKING:
    from ..factor_readout import Factors
    from .base import Dataset


def kept_readout(data: Dataset, progress: Progress | None, file: str | os.PathLike[str] | None) -> Factors:
    """The readout of all factors, from the file, or memory, or fitted; afterwards it is in the file.

    Raises:
        DataError: the file cannot be read or written, or holds the readout of another dataset.
    """
    kept = None if file is None else Path(file)
    if kept is not None and kept.exists():
        return _read(data, kept)
    readout = data._fit_readout(progress) if data._readout is None else data._readout
    if kept is not None:
        readout.record.setdefault("dataset", data.name)
        readout.save(kept)
    return readout


def _read(data: Dataset, file: Path) -> Factors:
    from ..factor_readout import Factors

    found = Factors.load(file, allow_unreliable=True)
    of = found.record.get("dataset", data.name)
    strange = [name for name in found.names if name not in data.factors]
    if of != data.name or strange or found.image_shape != tuple(data.image_shape):
        raise DataError(
            f"{file} holds a readout of {of!r} ({', '.join(found.names)}; images {found.image_shape}), expected one of {data.name!r} "
            f"({', '.join(data.factors)}; images {tuple(data.image_shape)}). Give another file=."
        )
    return found
