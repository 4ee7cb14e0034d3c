"""Sites and units: the addressable tensors of a VAE, and the strings that name them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nnsight_vae.errors import SiteError

Stage = Literal["input", "encoder", "latent", "decoder", "output"]

_KEY = re.compile(r"^(?P<site>[^\[\]]+?)(?:\[(?P<index>[^\[\]]*)\])?$")
_INDEX = re.compile(r"^-?\d+$")
_SLICE = re.compile(r"^(-?\d*):(-?\d*)(?::(-?\d+))?$")


@dataclass(frozen=True)
class Unit:
    """One index of a site along its channel axis: a conv channel, a neuron, a latent dimension.

    Example:
        >>> str(Unit("encoder.4", 7))
        'encoder.4[7]'
    """

    site: str
    index: int

    def __str__(self) -> str:
        return f"{self.site}[{self.index}]"


@dataclass(frozen=True)
class Site:
    """An addressable tensor of the forward pass.

    Attributes:
        name: the user's own module path (`encoder.4`), or `input`, `latent.mu`, `latent.z`, `output`.
        kind: what produces it: conv, linear, norm, activation, pool, reshape, container, latent, input, output, other.
        stage: where it sits: input, encoder, latent, decoder, output.
        n_units: length of the channel axis.
        shape: shape of one example, without the batch axis.
        axis: the channel axis in the batched tensor (1, except for `Linear`-like outputs with extra axes, where it is the last).
    """

    name: str
    kind: str
    stage: Stage
    n_units: int
    shape: tuple[int, ...]
    axis: int = 1

    @property
    def units(self) -> tuple[Unit, ...]:
        """Every unit of this site, in order."""
        return tuple(Unit(self.name, i) for i in range(self.n_units))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Selection:
    """A set of units of one site that an intervention acts on together; `indices=None` is the whole site.

    Example:
        >>> str(Selection("encoder.4", (0, 1, 2, 3)))
        'encoder.4[0:4]'
        >>> str(Selection("latent.z", (1, 5)))
        'latent.z[1,5]'
    """

    site: str
    indices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if not self.indices:
            return self.site if self.indices is None else f"{self.site}[]"
        first, last = self.indices[0], self.indices[-1]
        if len(self.indices) > 1 and self.indices == tuple(range(first, last + 1)):
            return f"{self.site}[{first}:{last + 1}]"
        return f"{self.site}[{','.join(map(str, self.indices))}]"


Key = str | Unit | Site | Selection


class Sites(Mapping[str, Site]):
    """The sites of a VAE in execution order: name -> `Site`; also resolves keys such as `"encoder.4[0:8]"`.

    Args:
        sites: in execution order.
        refused: name of a module that is no site -> why.

    Example:
        >>> sites = Sites([Site("latent.z", "latent", "latent", 8, (8,))])
        >>> sites.select("latent.z[-1]")
        Selection(site='latent.z', indices=(7,))
        >>> str(sites.select("latent.z[2:5]"))
        'latent.z[2:5]'
    """

    def __init__(self, sites: list[Site], refused: Mapping[str, str] | None = None) -> None:
        self._sites = {site.name: site for site in sites}
        self._order = {name: i for i, name in enumerate(self._sites)}
        self._refused = dict(refused or {})

    def __getitem__(self, name: str) -> Site:
        return self._named_in(name, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The site, or the default where there is none of this name (a `Mapping`'s own get knows only `KeyError`)."""
        return self._sites.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def order(self, name: str) -> int:
        """Position of a site in execution order."""
        return self._order[self[name].name]

    def select(self, key: Key) -> Selection:
        """Resolve a key to the units it names.

        Args:
            key: `"encoder.4"`, `"encoder.4[7]"`, `"encoder.4[0:8]"`, `"encoder.4[1,5]"`, a `Unit`, a `Site` or a `Selection`.

        Returns: the selection, checked against this VAE, its indices sorted and non-negative.

        Raises:
            SiteError: unknown site, index out of range, empty slice, or a key that cannot be read.
        """
        if isinstance(key, Site):
            return Selection(self[key.name].name)
        if isinstance(key, Unit):
            return self._checked(key.site, (key.index,), str(key))
        if isinstance(key, Selection):
            if key.indices is None:
                return Selection(self[key.site].name)
            return self._checked(key.site, key.indices, str(key))
        if not isinstance(key, str) or not (match := _KEY.match(key.strip())):
            raise SiteError(
                f"cannot read the key {key!r}; write 'encoder.4', 'encoder.4[7]', 'encoder.4[0:8]' or 'encoder.4[1,5]'."
            )
        name, index = match["site"], match["index"]
        if index is None:
            return Selection(self[name].name)
        return self._checked(name, _read_index(index, self._named_in(name, key).n_units, key), key)

    def units(self, selection: Selection) -> tuple[Unit, ...]:
        """The units a selection names, in order."""
        site = self[selection.site]
        return site.units if selection.indices is None else tuple(Unit(site.name, i) for i in selection.indices)

    def _named_in(self, name: str, key: str) -> Site:
        if name in self._sites:
            return self._sites[name]
        why = f": {self._refused[name]}" if name in self._refused else ""
        raise SiteError(f"{key!r} is not a site of this VAE{why}. Sites: {', '.join(self._sites)}.")

    def _checked(self, name: str, indices: tuple[int, ...], written: str) -> Selection:
        site = self._named_in(name, written)
        resolved = tuple(sorted({i + site.n_units if i < 0 else i for i in indices}))
        if not resolved or resolved[0] < 0 or resolved[-1] >= site.n_units:
            raise SiteError(
                f"{written!r} names no unit of this VAE: {name!r} exists with {site.n_units} units (0-{site.n_units - 1})."
            )
        return Selection(name, resolved)

    def __repr__(self) -> str:
        width = max((len(name) for name in self._sites), default=0)
        rows = [
            f"  {s.name:<{width}}  {s.stage:<8} {s.kind:<10} {s.n_units:>5} units  {tuple(s.shape)}"
            for s in self._sites.values()
        ]
        return "Sites(\n" + "\n".join(rows) + "\n)"


def _read_index(text: str, n_units: int, key: str) -> tuple[int, ...]:
    """The integers that `7`, `0:8`, `::2` or `1,5` stand for."""
    text = text.replace(" ", "")
    if match := _SLICE.match(text):
        start, stop, step = (int(part) if part else None for part in match.groups())
        if step == 0:
            raise SiteError(f"{key!r} has a slice step of 0; use a positive step.")
        return tuple(range(n_units)[start:stop:step])
    parts = text.split(",")
    if not all(_INDEX.match(part) for part in parts):
        raise SiteError(f"cannot read the index in {key!r}; write an integer, a slice a:b, or a list 1,5.")
    return tuple(int(part) for part in parts)
