"""What carries a factor inside a model, and what it means to swap it between two runs: a set of units, or a subspace of a site."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.engine import activations
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Set, Swap
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE


@dataclass(frozen=True)
class UnitSet:
    """Units, of any sites, that take the values that they have in the source's run.

    Attributes:
        selections: disjoint, at most one a site and position.
    """

    selections: tuple[Selection, ...]

    @classmethod
    def of(cls, vae: VAE, selections: Sequence[Selection]) -> UnitSet:
        """The set, selections of the same place joined.

        Raises:
            InterventionError: two selections share a unit.
        """
        vae.sites.require_disjoint(selections)
        places: dict[tuple[str, tuple[int, ...] | None], Selection] = {}
        for each in selections:
            known = places.get((each.site, each.position))
            merged = None if known is None else tuple(sorted((known.indices or ()) + (each.indices or ())))
            places[each.site, each.position] = each if known is None else replace(each, indices=merged)
        return cls(tuple(places.values()))

    def __str__(self) -> str:
        return " + ".join(map(str, self.selections))

    def whole(self) -> UnitSet:
        """All units of the same sites."""
        return UnitSet(tuple(Selection(site) for site in dict.fromkeys(each.site for each in self.selections)))


@dataclass(frozen=True, eq=False)
class Subspace:
    """Directions of a site's unit space along which an activation takes the value that it has in the source's run.

    a <- a + Q^T Q (a_source - a), with the rows of Q orthonormal; at every position alike where the site has positions.

    Attributes:
        site: name of the site.
        basis: Q, one direction a row.
    """

    site: str
    basis: Float[Tensor, "dims units"]

    def __str__(self) -> str:
        dims, units = self.basis.shape
        return f"{self.site}, {dims} of {units} directions"

    def whole(self) -> UnitSet:
        """All units of the site."""
        return UnitSet((Selection(self.site),))


Carrier = UnitSet | Subspace

_TRIES = (
    200  # draws for every set wanted: of six factors' latents swapped at once, one draw in 65 takes no latent twice
)


def others(vae: VAE, carriers: Sequence[Carrier], most: int, seed: int) -> list[tuple[Carrier, ...]]:
    """What might carry the same factors instead: as many units of the same sites, or random directions of the same site.

    A site that is taken as a whole at one position is taken at another; one taken as a whole everywhere has no other.

    Args:
        vae: the model.
        carriers: those that are swapped at once: `UnitSet`s, or `Subspace`s of one site.
        most: how many are drawn at random; all others where there are no more.
        seed: of the drawing.

    Returns: one carrier for each of the `carriers` that share nothing, and are not all the same as they.
    """
    subspaces = [each for each in carriers if isinstance(each, Subspace)]
    sets = [each for each in carriers if isinstance(each, UnitSet)]
    return _other_subspaces(subspaces, most, seed) if subspaces else _other_sets(vae, sets, most, seed)


def _other_subspaces(carriers: Sequence[Subspace], most: int, seed: int) -> list[tuple[Carrier, ...]]:
    sizes, units = [len(each.basis) for each in carriers], carriers[0].basis.shape[1]
    if sizes == [units]:
        return []  # the space itself
    generator = torch.Generator().manual_seed(seed)
    frames = [random_frame(sum(sizes), units, generator).split(sizes) for _ in range(most)]
    return [tuple(Subspace(carriers[0].site, basis) for basis in frame) for frame in frames]


def _other_sets(vae: VAE, carriers: Sequence[UnitSet], most: int, seed: int) -> list[tuple[Carrier, ...]]:
    own = [each.selections for each in carriers]
    places = tuple(selection for selections in own for selection in selections)
    candidates: Iterable[tuple[Selection, ...]]
    if math.prod(_count(vae, each) for each in places) - 1 <= most:
        candidates = itertools.product(*(_all(vae, each) for each in places))
    else:
        rng = np.random.default_rng(seed)
        candidates = (tuple(_draw(vae, each, rng) for each in places) for _ in range(_TRIES * most))
    found: dict[tuple[Carrier, ...], None] = {}
    for candidate in candidates:
        if len(found) == most:
            break
        if candidate != places and not shared(vae, candidate):
            parts = iter(candidate)
            found[tuple(UnitSet(tuple(itertools.islice(parts, len(each)))) for each in own)] = None
    return list(found)


def shared(vae: VAE, selections: Sequence[Selection]) -> str | None:
    """What two of the selections have in common, in words; None where they are disjoint."""
    try:
        vae.sites.require_disjoint(selections)
    except InterventionError as error:
        return str(error)
    return None


def random_frame(dims: int, units: int, generator: torch.Generator) -> Float[Tensor, "dims units"]:
    """Orthonormal rows, uniform over all such frames: the Q of a Gaussian matrix with R's diagonal positive (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn(units, dims, generator=generator, dtype=torch.float64))
    return (q * torch.sign(torch.diagonal(r))).T.contiguous()


def unit_space(vae: VAE, site: str, activation: Tensor) -> Float[Tensor, "n units *grid"]:
    """An activation with its units on axis 1."""
    return activation.movedim(vae.sites[site].axis, 1)


class Swaps:
    """Joint interventions that swap carriers between a base batch and source batches; activations are computed once.

    Args:
        vae: the model.
        base: images of the runs that receive.
    """

    def __init__(self, vae: VAE, base: Float[Tensor, "n *image"]) -> None:
        self.vae, self.base = vae, base
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}  # the images too: an id is one while they live

    def joint(self, parts: Sequence[tuple[Carrier, Float[Tensor, "n *image"]]]) -> Mapping[Selection, Intervention]:
        """Each carrier swapped in from its own source images, all at once; subspaces of one site must be orthogonal.

        Raises:
            InterventionError: two sets share a unit.
        """
        joint: dict[Selection, Intervention] = {}
        moved: dict[str, Tensor] = {}
        for carrier, source in parts:
            if isinstance(carrier, UnitSet):
                self.vae.sites.require_disjoint([*joint, *carrier.selections])
                joint |= dict.fromkeys(carrier.selections, Swap(source))
            else:
                own = self._activation(self.base, carrier.site)
                step = projected(self._activation(source, carrier.site) - own, carrier.basis)
                moved[carrier.site] = moved.get(carrier.site, own) + step
        return joint | {Selection(site): Set(value) for site, value in moved.items()}

    def _activation(self, images: Tensor, site: str) -> Tensor:
        key = id(images), site
        if key not in self._kept:
            self._kept[key] = images, unit_space(self.vae, site, activations(self.vae, images, [site])[site])
        return self._kept[key][1]


def projected(
    difference: Float[Tensor, "n units *grid"], basis: Float[Tensor, "dims units"]
) -> Float[Tensor, "n units *grid"]:
    """The part of activations that lies in the span of orthonormal rows."""
    basis = basis.to(difference)
    return torch.einsum("ku,nk...->nu...", basis, torch.einsum("ku,nu...->nk...", basis, difference))


def _count(vae: VAE, selection: Selection) -> int:
    site = vae.sites[selection.site]
    if selection.indices is not None:
        return math.comb(site.n_units, len(selection.indices))
    return 1 if selection.position is None else len(site.positions)


def _all(vae: VAE, selection: Selection) -> list[Selection]:
    site = vae.sites[selection.site]
    if selection.indices is not None:
        sets = itertools.combinations(range(site.n_units), len(selection.indices))
        return [replace(selection, indices=indices) for indices in sets]
    return [selection] if selection.position is None else [replace(selection, position=at) for at in site.positions]


def _draw(vae: VAE, selection: Selection, rng: np.random.Generator) -> Selection:
    site = vae.sites[selection.site]
    if selection.indices is not None:
        chosen = rng.choice(site.n_units, len(selection.indices), replace=False)
        return replace(selection, indices=tuple(sorted(chosen.tolist())))
    if selection.position is None:
        return selection
    return replace(selection, position=site.positions[rng.integers(len(site.positions))])
