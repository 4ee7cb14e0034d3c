"""The text of a key such as `encoder.4[0:8]@2,3`, taken apart; whether a VAE has what it names is for `Sites` to say."""

from __future__ import annotations

import re
from typing import Any

from nnsight_vae.errors import SiteError

_KEY = re.compile(r"^(?P<site>[^\[\]]+?)(?:\[(?P<index>[^\[\]]*)\])?(?:@(?P<position>[^\[\]@]*))?$")
_INTEGER = re.compile(r"^-?\d+$")
_SLICE = re.compile(r"^(-?\d*):(-?\d*)(?::(-?\d+))?$")


def read_key(key: Any) -> tuple[str, str | None, str | None]:
    """The site, the index and the position that a key is written with.

    Raises:
        SiteError: it is no text, or cannot be read.

    Example:
        >>> read_key("encoder.4[0:8]@2,3"), read_key("latent.z")
        (('encoder.4', '0:8', '2,3'), ('latent.z', None, None))
    """
    if not isinstance(key, str) or not (match := _KEY.match(key.strip())):
        raise SiteError(
            f"cannot read the key {key!r}; write 'encoder.4', 'encoder.4[7]', 'encoder.4[0:8]' or 'encoder.4[1,5]', "
            "and '@2,3' after it for one position."
        )
    return match["site"], match["index"], match["position"]


def read_index(text: str, n_units: int, key: str) -> tuple[int, ...]:
    """The integers that `7`, `0:8`, `::2` or `1,5` stand for; those of a slice are within the units there are.

    Raises:
        SiteError: it cannot be read.

    Example:
        >>> read_index("-2:", 8, "latent.z[-2:]"), read_index("-2", 8, "latent.z[-2]")
        ((6, 7), (-2,))
    """
    text = text.replace(" ", "")
    if match := _SLICE.match(text):
        start, stop, step = (int(part) if part else None for part in match.groups())
        if step == 0:
            raise SiteError(f"{key!r} has a slice step of 0; use a positive step.")
        return tuple(range(n_units)[start:stop:step])
    parts = text.split(",")
    if not all(_INTEGER.match(part) for part in parts):
        raise SiteError(f"cannot read the index in {key!r}; write an integer, a slice a:b, or a list 1,5.")
    return tuple(int(part) for part in parts)


def read_position(text: str, key: str) -> tuple[int, ...]:
    """The integers of `2,3`.

    Raises:
        SiteError: it cannot be read.
    """
    parts = text.replace(" ", "").split(",")
    if not all(_INTEGER.match(part) for part in parts):
        raise SiteError(
            f"cannot read the position in {key!r}; write one integer an axis after the @, as in 'encoder.4@2,3'."
        )
    return tuple(int(part) for part in parts)
