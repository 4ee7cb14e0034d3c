"""Downloads with a checksum, kept in a cache folder; nothing is fetched unless a dataset is asked for by name without a path."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from ..errors import DataError
from .cache import cache_folder, pooch


def located(
    name: str,
    path: str | os.PathLike[str] | None,
    url: str,
    md5: str,
    cache: str | os.PathLike[str] | None,
    progress: bool | None,
) -> Path:
    """The file at `path`; without one, the file of the cache, downloaded there if need be.

    Raises:
        DataError: there is no such file, the download fails, or it is not what its checksum says.
    """
    if path is None:
        return _fetch(name, url, md5, cache_folder(cache), progress)
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{name}: no file {file}. Its official address is {url}.")
    return file


def given_folder(name: str, path: str | os.PathLike[str] | None, page: str) -> Path:
    """The folder at `path`, for data that their hosts let nobody download by program.

    Raises:
        DataError: there is none, or it is no folder.
    """
    if path is None:
        raise DataError(f"{name} is not downloaded here: get it from {page}, unpack it and give path=.")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{name}: no folder {folder}.")
    return folder


def _fetch(name: str, url: str, md5: str, folder: Path, progress: bool | None) -> Path:
    retrieve = pooch()
    retrieve.get_logger().setLevel(logging.WARNING)
    show = sys.stderr.isatty() if progress is None else progress
    try:
        found = retrieve.retrieve(
            url,
            known_hash=f"md5:{md5}",
            fname=url.rsplit("/", 1)[-1],
            path=folder,
            downloader=retrieve.HTTPDownloader(progressbar=show, timeout=60),
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name} could not be downloaded from {url} to {folder}: {error}\nNothing was kept. Fetch it yourself and give path=."
        ) from error
    return Path(found)
