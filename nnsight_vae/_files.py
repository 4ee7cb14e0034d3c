"""Writing files so that a killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nnsight_vae.errors import DataError, NnsightVaeError


def write_atomically(path: Path, data: bytes, error: type[NnsightVaeError] = DataError) -> None:
    """Write `data` to a file, whole or not at all; see `whole_file`."""
    with whole_file(path, error=error) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path, what: str = "", error: type[NnsightVaeError] = DataError) -> Iterator[BinaryIO]:
    """A file to write to beside `path` under another name, renamed at the end; a link is followed, permissions follow the umask.

    Args:
        path: where it will be.
        what: what is written, for the message.
        error: raised where it cannot be.

    Raises:
        error: the folder does not exist or cannot be written to.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")  # unguessable: two runs may write the same file
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(target)
    except OSError as problem:
        where = f"{what} to {path}" if what else path
        raise error(f"Cannot write {where}: {problem}. Choose a folder that exists and can be written to.") from problem
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
