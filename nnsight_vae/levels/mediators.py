"""Sets of units that mediate, from the keys a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnsight_vae.errors import InterventionError
from nnsight_vae.levels.units import experiments
from nnsight_vae.reading import Readout, reads
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

MediatorSets = Sequence[Key | Sequence[Key]]


def mediator_sets(vae: VAE, mediators: MediatorSets | Key, readout: Readout) -> dict[str, tuple[Selection, ...]]:
    """Several sets of mediators, each moved as a whole, that share no unit.

    Args:
        vae: the model.
        mediators: one entry a set: a key, or a sequence of keys that make up one set.
        readout: what is measured; mediators come before what it reads, or are it.

    Returns: name -> what it is made of, in the order given.

    Raises:
        SiteError: a key names no unit of this VAE.
        InterventionError: no mediators, an empty set, a unit named twice, or one that comes after what is read.
    """
    if not isinstance(mediators, Key | Sequence):
        raise InterventionError(
            f"got {mediators!r} where mediators belong; name units or sites, e.g. mediators=['encoder.4[0:8]']."
        )
    sets: list[Any] = [mediators] if isinstance(mediators, Key) else list(mediators)
    keys = [each if isinstance(each, Key) else tuple(each) for each in sets]
    if not keys or () in keys:
        raise InterventionError(
            "needs at least one mediator, e.g. mediators=['encoder.4[0:8]'], and no empty set of them."
        )
    named = experiments(vae, keys, per="site")
    parts = [part for key in keys for part in map(vae.sites.select, key if isinstance(key, tuple) else (key,))]
    vae.sites.require_disjoint(parts)
    read = reads(readout)
    late = [part for part in parts if vae.sites.order(part.site) > vae.sites.order(read)]
    if late:
        raise InterventionError(
            f"the mediator {late[0]} comes after {read!r}, which the readout reads; it carries nothing."
        )
    return named
