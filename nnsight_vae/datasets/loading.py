"""Datasets by name or path."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    from .base import Dataset

# dataset name -> (submodule, function that makes it)
_BUILT_IN = {
    "digits": ("digits", "digits"),
    "flow": ("flow", "flow"),
    "independent_sprites": ("sprites", "independent_sprites"),
    "linear_sprites": ("linear", "linear_sprites"),
    "pendulum": ("pendulum", "pendulum"),
    "room": ("room", "room"),
}
_BENCHMARKS = ("causal3dident", "celeba", "dsprites", "mpi3d", "shapes3d", "small_norb")  # files that others published


def load(name: str | os.PathLike[str], path: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """A dataset by name, or from a folder or `.npz` file (see `from_path`).

    Args:
        name: a procedural world with an exact SCM ("pendulum", "flow", "linear_sprites", "independent_sprites", "room"), real images with
            measured factors ("digits"), a published benchmark ("dsprites", "shapes3d", "mpi3d", "small_norb", "celeba",
            "causal3dident"; see `nv.datasets.benchmarks`), or a path.
        path: of a benchmark's files; without it those that may be are downloaded to the cache folder.
        **options: of a benchmark: `cache`, `progress`, and its own such as `size`.

    Raises:
        DataError: if it is neither the name of a dataset nor an existing path, or the files are not as expected.

    Example:
        >>> load("pendulum").factors
        ('angle', 'light', 'shadow_length', 'shadow_position')
    """
    if isinstance(name, str) and name in _BENCHMARKS:
        make = getattr(importlib.import_module("nnsight_vae.datasets.benchmarks"), name)
        known = list(inspect.signature(make).parameters)
        unknown = [option for option in options if option not in known]
        if unknown:
            raise DataError(f"{name} takes {', '.join(known)}; got {', '.join(unknown)}.")
        return make(path, **options)
    if path is not None or options:
        given = ", ".join([*(["path"] if path is not None else []), *options])
        raise DataError(
            f"{given} can be given for published benchmarks only ({', '.join(_BENCHMARKS)}), not for {name!r}."
        )
    if isinstance(name, str) and name in _BUILT_IN:
        module, function = _BUILT_IN[name]
        return getattr(importlib.import_module(f"nnsight_vae.datasets.{module}"), function)()
    if not Path(name).exists():
        raise DataError(
            f"No dataset {os.fspath(name)!r}: it is neither one of {', '.join([*_BUILT_IN, *_BENCHMARKS])} nor an existing path. "
            "A path is a folder with images and factors.csv, or an .npz file with 'images' and 'factors'."
        )
    from .files import from_path

    return from_path(name)
