"""Refusals of numbers out of range."""

from __future__ import annotations

from nnsight_vae.errors import CircuitError


def check_share(name: str, value: object, what: str, below: float | None = None) -> None:
    """Refuse what is no number in (0, 1], or in (0, below).

    Raises:
        CircuitError: says what was got.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1 or value == below:
        raise CircuitError(f"{name}={value!r}: expected {what} in (0, 1{']' if below is None else ')'}.")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        CircuitError: says what was got.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CircuitError(f"{name}={value!r}: expected a whole number of at least {least}.")
