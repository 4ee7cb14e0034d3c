"""Units and targets of Effects by name."""

from __future__ import annotations

from collections.abc import Sequence

from nnsight_vae.errors import ReadoutError, SiteError
from nnsight_vae.keys import read_index
from nnsight_vae.sites import Key
from nnsight_vae.wording import some


def rows(wanted: Key | Sequence[Key], units: Sequence[str]) -> list[int]:
    """Where the units that these keys name are among `units`; in the order asked for.

    A key is the name of a unit, a site (all its units) or a slice of one.

    Raises:
        SiteError: no such unit or site.
    """
    found: list[int] = []
    for name in map(str, wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]):
        named = [i for i, unit in enumerate(units) if unit == name]
        named = named or [i for i, unit in enumerate(units) if site_and_index(unit)[0] == name]
        named = named or _of_a_slice(name, units)
        if not named:
            sites = list(dict.fromkeys(site_and_index(unit)[0] for unit in units))
            raise SiteError(f"{name!r} is not a unit or site of these effects; they have units of: {some(sites)}.")
        found += named
    return found


def _of_a_slice(key: str, units: Sequence[str]) -> list[int]:
    """The places of `"encoder.4[0:8]"` or `"encoder.4[1,5]"`, one unit each; none where some unit is missing."""
    site, _, index = key.rstrip("]").partition("[")
    places = {
        i: place for place, unit in enumerate(units) for s, i in [site_and_index(unit)] if s == site and i is not None
    }
    if not key.endswith("]") or not places:
        return []
    indices = read_index(index, max(places) + 1, key)
    return [places[i] for i in indices] if all(i in places for i in indices) else []


def columns(wanted: str | Sequence[str], targets: Sequence[str]) -> list[int]:
    """Where these targets are among `targets`; in the order asked for.

    Raises:
        ReadoutError: no such target.
    """
    names = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
    unknown = [name for name in names if name not in targets]
    if unknown:
        raise ReadoutError(f"{unknown[0]!r} is not a target of these effects; targets: {some(targets)}.")
    return [list(targets).index(name) for name in names]


def site_and_index(unit: str) -> tuple[str, int | None]:
    """'encoder.4[7]' -> ('encoder.4', 7); several units, a whole site and a position (`encoder.4[7]@2,3`) have no single index.

    A joint set (`a[0] + b[1]`) and a path (`X -> a[0] -> Y`) are sites of their own.
    """
    if " + " in unit or " -> " in unit:
        return unit, None
    site, bracket, rest = unit.partition("[")
    index = rest.rstrip("]")
    return site.partition("@")[0], int(index) if bracket and index.isdecimal() else None
