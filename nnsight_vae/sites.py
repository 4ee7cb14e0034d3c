"""Sites and units: the addressable tensors of a VAE, and the strings that name them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nnsight_vae.errors import InterventionError, SiteError
from nnsight_vae.keys import read_index, read_key, read_position

Stage = Literal["input", "encoder", "latent", "decoder", "output"]


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

    @property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """Every position of this site, row by row, for keys such as `encoder.4@2,3`; a site without positions has `()` alone.

        Example:
            >>> Site("encoder.4", "conv", "encoder", 8, (8, 2, 2)).positions
            ((0, 0), (0, 1), (1, 0), (1, 1))
        """
        return tuple(itertools.product(*map(range, self.grid)))

    @property
    def grid(self) -> tuple[int, ...]:
        """Lengths of the axes other than the channel axis: height and width of a convolution's output, `()` of a vector."""
        return tuple(length for axis, length in enumerate(self.shape, start=1) if axis != self.axis)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Selection:
    """Units of one site that an intervention acts on together, everywhere or at one position.

    Attributes:
        site: name of the site.
        indices: the units; None is all of them.
        position: where, over the axes of the site other than its channels (row and column of a convolution's output); None is
            everywhere.

    Example:
        >>> str(Selection("encoder.4", (0, 1, 2, 3)))
        'encoder.4[0:4]'
        >>> str(Selection("latent.z", (1, 5)))
        'latent.z[1,5]'
        >>> str(Selection("encoder.4", (7,), position=(2, 3)))
        'encoder.4[7]@2,3'
    """

    site: str
    indices: tuple[int, ...] | None = None
    position: tuple[int, ...] | None = None

    def __str__(self) -> str:
        at = f"@{','.join(map(str, self.position))}" if self.position else ""
        return f"{self.site}{self._index()}{at}"

    def _index(self) -> str:
        if not self.indices:
            return "" if self.indices is None else "[]"
        first, last = self.indices[0], self.indices[-1]
        if len(self.indices) > 1 and self.indices == tuple(range(first, last + 1)):
            return f"[{first}:{last + 1}]"
        return f"[{','.join(map(str, self.indices))}]"


Key = str | Unit | Site | Selection


class Sites(Mapping[str, Site]):
    """The sites of a VAE in execution order: name -> `Site`; also resolves keys such as `"encoder.4[0:8]"`.

    Args:
        sites: in execution order.
        refused: name of a module that is no site -> why.

    Example:
        >>> sites = Sites([Site("latent.z", "latent", "latent", 8, (8,))])
        >>> sites.select("latent.z[-1]")
        Selection(site='latent.z', indices=(7,), position=None)
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
        """Resolve a key to the units it names, and to the position where it names one.

        Args:
            key: `"encoder.4"`, `"encoder.4[7]"`, `"encoder.4[0:8]"`, `"encoder.4[1,5]"`, each also at one position
                (`"encoder.4[7]@2,3"`, `"encoder.4@2,3"`), a `Unit`, a `Site` or a `Selection`.

        Returns: the selection, checked against this VAE, its indices sorted, indices and position non-negative.

        Raises:
            SiteError: unknown site, index or position out of range, empty slice, or a key that cannot be read.
        """
        if isinstance(key, Site):
            return self._checked(key.name, None, None, key.name)
        if isinstance(key, Unit):
            return self._checked(key.site, (key.index,), None, str(key))
        if isinstance(key, Selection):
            return self._checked(key.site, key.indices, key.position, str(key))
        if isinstance(key, str) and key in self._sites:
            return Selection(key)  # first, for a module may have an @ in its name
        name, index, position = read_key(key)
        indices = None if index is None else read_index(index, self._named_in(name, key).n_units, key)
        return self._checked(name, indices, None if position is None else read_position(position, key), key)

    def units(self, selection: Selection) -> tuple[Unit, ...]:
        """The units a selection names, in order, whatever its position."""
        site = self[selection.site]
        return site.units if selection.indices is None else tuple(Unit(site.name, i) for i in selection.indices)

    def require_disjoint(self, selections: Sequence[Selection]) -> None:
        """Refuse selections that share a unit at a position: which of two joint interventions acts last would be a guess.

        Raises:
            InterventionError: names the two selections and the unit.
        """
        owners: dict[Unit, dict[tuple[int, ...] | None, Selection]] = {}  # unit -> position (None: everywhere) -> owner
        for selection in selections if len(selections) > 1 else ():
            for unit in self.units(selection):
                named, position = owners.setdefault(unit, {}), selection.position
                for other in (position, None) if position else tuple(named):
                    if other in named:
                        raise InterventionError(
                            f"'{named[other]}' and '{selection}' both name {unit}; name each unit once in a joint intervention."
                        )
                named[position] = selection

    def _named_in(self, name: str, key: str) -> Site:
        if name in self._sites:
            return self._sites[name]
        why = f": {self._refused[name]}" if name in self._refused else ""
        raise SiteError(f"{key!r} is not a site of this VAE{why}. Sites: {', '.join(self._sites)}.")

    def _checked(
        self, name: str, indices: tuple[int, ...] | None, position: tuple[int, ...] | None, written: str
    ) -> Selection:
        site = self._named_in(name, written)
        return Selection(
            name,
            None if indices is None else _checked_indices(site, indices, written),
            None if position is None else _checked_position(site, position, written),
        )

    def __repr__(self) -> str:
        width = max((len(name) for name in self._sites), default=0)
        rows = [
            f"  {s.name:<{width}}  {s.stage:<8} {s.kind:<10} {s.n_units:>5} units  {tuple(s.shape)}"
            for s in self._sites.values()
        ]
        return "Sites(\n" + "\n".join(rows) + "\n)"


def _checked_indices(site: Site, indices: tuple[int, ...], written: str) -> tuple[int, ...]:
    whole = [_whole(i, written) for i in indices]
    resolved = tuple(sorted({i + site.n_units if i < 0 else i for i in whole}))
    if not resolved or resolved[0] < 0 or resolved[-1] >= site.n_units:
        raise SiteError(
            f"{written!r} names no unit of this VAE: {site.name!r} exists with {site.n_units} units (0-{site.n_units - 1})."
        )
    return resolved


def _checked_position(site: Site, position: tuple[int, ...], written: str) -> tuple[int, ...] | None:
    grid, whole = site.grid, [_whole(i, written) for i in position]
    if len(whole) != len(grid):
        what = f"positions over axes of length {grid}" if grid else "no positions, its units are single numbers"
        raise SiteError(f"{written!r} gives {len(whole)} coordinates, but {site.name!r} has {what}.")
    resolved = tuple(i + length if i < 0 else i for i, length in zip(whole, grid, strict=True))
    if any(not 0 <= i < length for i, length in zip(resolved, grid, strict=True)):
        last = ",".join(str(length - 1) for length in grid)
        raise SiteError(
            f"{written!r} names no position of this VAE: those of {site.name!r} go from @{','.join('0' * len(grid))} to @{last}."
        )
    return resolved or None  # () is the one position of a vector: everywhere


def _whole(value: Any, written: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise SiteError(f"{written!r} has {value!r} where an integer belongs.") from None
