"""Where published files and their unpacked images are kept."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from ..errors import DataError

CACHE_VARIABLE = "NNSIGHT_VAE_DATA"


def cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    """The folder given, else that of the environment variable NNSIGHT_VAE_DATA, else the user's cache folder."""
    if cache is not None:
        return Path(cache).expanduser()
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    return Path(pooch().os_cache("nnsight_vae"))


def pooch() -> ModuleType:
    """The library that downloads.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pooch as module
    except ImportError as error:
        raise DataError(
            "downloading benchmark files needs pooch: pip install 'nnsight-vae[benchmarks]', or give path= and cache=."
        ) from error
    return module
