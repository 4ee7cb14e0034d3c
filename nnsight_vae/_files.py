"""Writing files so that a killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from nnsight_vae.errors import DataError, NnsightVaeError


def write_atomically(path: Path, data: bytes, error: type[NnsightVaeError] = DataError) -> None:
    """Write `data` beside `path` under another name, then rename it; a link is followed, permissions follow the umask.

    Raises:
        error: the folder does not exist or cannot be written to.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(8)}.tmp")  # unguessable: two runs may write the same file
    try:
        with partial.open("xb") as file:
            file.write(data)
        partial.replace(target)
    except OSError as problem:
        raise error(f"Cannot write {path}: {problem}. Choose a folder that exists and can be written to.") from problem
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
