"""Path-specific effects: how much of an effect goes along each path through mediators in sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.interventions import Intervention, Swap
from nnsight_vae.levels.mediators import MediatorSets, mediator_sets
from nnsight_vae.levels.through import CARRIED_BYTES, Activation
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import Advance, progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.results.effects import Effects
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE

MOST_MEDIATORS = 6  # 2^6 = 64 paths, each its own run

_Path = tuple[int, ...]  # which of the mediators a path passes, in order
_Held = dict[Selection, Intervention]


def path_effects(
    vae: VAE, pairs: Pairs, mediators: MediatorSets, *, readout: Readout, progress: bool | None = None
) -> Effects:
    """The effect of source against base along each path through sequential mediators, and what only paths together do.

    Of k mediators M_1 ... M_k in execution order there are 2^k paths X -> (some of the M, in order) -> Y; a path that skips a
    mediator means every connection that avoids it. The effect of the path X -> M_i -> M_j -> Y, say, is

        Y(b; M_j = m_j, other M = M(b)) - Y(b),   m_j = M_j(b; M_i = m_i, other earlier M = M(b)),   m_i = M_i(s; earlier M = M(b))

    the input is the source where the path leaves it and the base for everything else, so that only this path transmits the
    change (reference of all other paths: base). That of X -> Y is Y(s; all M = M(b)) - Y(b). A mediator on the path shows
    its changed value to the next node alone, and the base's to all others: an intervention on edges, which a network
    permits although data do not identify it. The remainder, named "interaction", is TE less all paths: 0 in a linear model, where
    path effects are products of coefficients. Over `pairs.reversed()` the reference is the source, and the sum -TE.

    Args:
        vae: the model.
        pairs: base (b) and source (s) inputs.
        mediators: the sets in execution order, one entry each: a key, or a list of keys that are one set. At most 6 sets.
        readout: what is measured.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [path, target, pair], paths named `"X -> latent.z[0] -> Y"`, shortest first, then `"interaction"`. Over
        its units it adds up to TE for every pair.

    Raises:
        SiteError, DataError, ReadoutError: before any work.
        InterventionError: before any work: no mediators or too many, not in execution order, two that name the same unit, or
            one that comes after what is read.

    Source: Pearl 2001 (path-specific effects); Avin, Shpitser & Pearl 2005, IJCAI (one value for each edge); Daniel, De
        Stavola, Cousens & Vansteelandt 2015, Biometrics 71(1), 1-14 (all 2^k paths; here each against the base).

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> path_effects(vae, pairs, ["latent.mu[0]", "latent.z[0:2]"], readout=top).units[:3]
        ('X -> Y', 'X -> latent.mu[0] -> Y', 'X -> latent.z[0:2] -> Y')
    """
    require(vae, pairs, readout)
    vae.checked(pairs.base)
    sets = mediator_sets(vae, mediators, readout)
    if len(sets) > MOST_MEDIATORS:
        raise InterventionError(
            f"{len(sets)} mediators have 2^{len(sets)} paths; path_effects takes at most {MOST_MEDIATORS}. Join some of them "
            "into one set, e.g. [['a', 'b'], 'c']."
        )
    _require_sequence(vae, sets)
    names, paths = list(sets), _subsets(len(sets))
    reads = sum(len(sets[names[path[-1]]]) for path in paths if path not in ((), (0,)))
    with progress_bar("following paths", (reads + len(paths)) * len(pairs), progress) as advance:
        parts = [
            _Paths(vae, pairs[rows], tuple(sets.values()), advance).outcomes(readout)
            for rows in _chunks(vae, pairs, sets)
        ]
    at_ends = {path: torch.cat([part[path] for part in parts]) for path in paths}
    base, source = (baseline(vae, x, readout, eps=pairs.eps).double() for x in (pairs.base, pairs.source))
    changes = torch.stack([at_ends[path].double() - base for path in paths])
    rest = (source - base) - changes.sum(0)
    groups, source_groups = pairs.cluster_ids
    return Effects(
        torch.cat([changes, rest[None]]).cpu().numpy().transpose(0, 2, 1),
        (*(" -> ".join(["X", *(names[i] for i in path), "Y"]) for path in paths), "interaction"),
        tuple(readout.names),
        "path-specific effect (other paths at base)",
        groups,
        provenance(vae, pairs, readout, mediators=names),
        source_groups=source_groups,
    )


@dataclass(frozen=True)
class _Paths:
    """Runs in which the source is heard along one path only.

    A node (a mediator, or in the end the readout) listens to one path at a time: to the source itself, all mediators before
    it at base; or to one mediator as a path has already brought it there, the input and the others at base.
    """

    vae: VAE
    pairs: Pairs
    sets: tuple[tuple[Selection, ...], ...]
    advance: Advance

    def outcomes(self, readout: Readout) -> dict[_Path, Tensor]:
        """Path -> the readout at its end, `[n, target]`."""
        carried: dict[_Path, _Held] = {(0,): dict.fromkeys(self.sets[0], Swap(self.pairs.source))}
        for node in range(1, len(self.sets)):
            for selection in self.sets[node]:
                read = Activation(self.vae.sites[selection.site], (selection,))
                for path, values in self._listen(node, carried, read).items():
                    carried.setdefault((*path, node), {}).update(read.held(values))
        return self._listen(len(self.sets), carried, readout)

    def _listen(self, node: int, carried: dict[_Path, _Held], read: Readout) -> dict[_Path, Tensor]:
        """What is read at a node that listens to each path before it in turn."""
        paths = _subsets(node)
        to_base = Swap(self.pairs.base)
        at_base: _Held = {selection: to_base for each in self.sets[:node] for selection in each}
        heard: dict[_Path, Tensor] = {}
        for x, group in (
            (self.pairs.source, [path for path in paths if not path]),
            (self.pairs.base, [path for path in paths if path]),
        ):
            plan = [at_base | carried.get(path, {}) for path in group]
            values = run_interventions(self.vae, x, plan, read, eps=self.pairs.eps, progress=self.advance)
            heard |= dict(zip(group, values, strict=True))
        return heard


def _chunks(vae: VAE, pairs: Pairs, sets: Mapping[str, tuple[Selection, ...]]) -> list[slice]:
    """So many pairs at a time that the mediators' activations, one for every path to each, stay in bound."""
    parts = [part for parts in sets.values() for part in parts]
    numbers = sum(len(Activation(vae.sites[part.site], (part,)).names) for part in parts)
    step = max(1, CARRIED_BYTES // (2 ** (len(sets) - 1) * numbers * pairs.base.element_size()))
    return [slice(start, start + step) for start in range(0, len(pairs), step)]


def _subsets(k: int) -> list[_Path]:
    """Every path through the first k mediators, shortest first."""
    return [path for length in range(k + 1) for path in combinations(range(k), length)]


def _require_sequence(vae: VAE, sets: Mapping[str, tuple[Selection, ...]]) -> None:
    """Refuse sets that are not one after the other in execution order; units of one site may follow each other."""
    order = {name: [vae.sites.order(selection.site) for selection in set_] for name, set_ in sets.items()}
    for (before, first), (after, second) in pairwise(order.items()):
        if max(first) > min(second):
            raise InterventionError(
                f"{before!r} does not come before {after!r} in the model; list mediators in execution order (`vae.sites` shows "
                "it), and join sets that interleave into one."
            )
