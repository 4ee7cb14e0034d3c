"""What nodes are called: by the units of their layer, or by a later site whose units are theirs one for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nnsight_vae.circuits.wiring.nodes import Node
from nnsight_vae.circuits.wiring.probing import Prober
from nnsight_vae.sites import Selection, Site


@dataclass(frozen=True)
class Draft:
    """A column without names.

    Attributes:
        path: module whose output holds it.
        groups: units of each node.
        readers: paths of what reads it, in the order in which they run.
        number: position of its level, 1 for the input's.
    """

    path: str
    groups: tuple[tuple[int, ...], ...]
    readers: tuple[str, ...]
    number: int


def named_nodes(prober: Prober, drafts: Sequence[Draft], sampled: bool) -> list[tuple[Node, ...]]:
    """The nodes of each column.

    A column is named by the first of these whose units are its nodes one for one: where the readout reads; `latent.z` (or, if the
    latent is sampled, `latent.mu` and `latent.logvar`); its own layer; another site on the way to the layer that reads it first.
    Two columns that would share a name (both add to it) go by their own layers.
    """
    naming = _Naming(prober, sampled)
    columns = [naming.nodes(draft) for draft in drafts]
    counts = Counter(node.id for nodes in columns for node in nodes)
    return [
        naming.own(draft) if any(counts[node.id] > 1 for node in nodes) else nodes
        for draft, nodes in zip(drafts, columns, strict=True)
    ]


class _Naming:
    def __init__(self, prober: Prober, sampled: bool) -> None:
        self.prober, self.sampled = prober, sampled
        self.sites = {path: prober.layout.sites[name] for name, path in prober.layout.paths.items()}

    def nodes(self, draft: Draft) -> tuple[Node, ...]:
        """The nodes of a column."""
        if draft.path not in ("tap_input", "latent.z"):
            for path in self._ends(draft):
                if self._one_for_one(draft, path):
                    return self._as_units(draft, self.sites[path])
            if self.sampled and "latent.z" in draft.readers and (nodes := self._posterior(draft)):
                return nodes
        if all(len(units) == 1 for units in draft.groups):
            return self.own(draft)
        for path in self._between(draft):
            if self._one_for_one(draft, path):
                return self._as_units(draft, self.sites[path])
        return self.own(draft)

    def own(self, draft: Draft) -> tuple[Node, ...]:
        """The nodes by the units of their own layer."""
        site, nodes = self.sites[draft.path], []
        for units in draft.groups:
            if len(units) == 1:
                nodes.append(_unit(site, units[0], draft.number, site.kind))
            else:
                name = str(Selection(site.name, tuple(units)))
                nodes.append(Node(name, site.kind, site.name, None, site.stage, draft.number))
        return tuple(nodes)

    def _ends(self, draft: Draft) -> list[str]:
        end = self.prober.end.path
        ends = [end] if end in draft.readers else []
        return ends + ["latent.z"] * (not self.sampled and "latent.z" in self._between(draft))

    def _between(self, draft: Draft) -> list[str]:
        """Sites that run after a layer and before the module that reads it first."""
        firings = self.prober.layout.firings
        first, until = firings[draft.path].finished, firings[draft.readers[0]].started
        return [
            f.path
            for f in firings.values()
            if f.path in self.sites and f.started > first and f.finished < until and f.kind != "container"
        ]

    def _one_for_one(self, draft: Draft, path: str) -> bool:
        """Whether unit i of a site changes with node i alone."""
        if self.sites[path].n_units != len(draft.groups):
            return False
        (found,) = self.prober.reach(draft.path, outputs=[path], groups=draft.groups)
        return bool((found.int().sum(0) == 1).all()) and bool(found.diagonal().all())

    def _as_units(self, draft: Draft, site: Site) -> tuple[Node, ...]:
        kind = site.kind if site.kind in ("latent", "output") else self.sites[draft.path].kind
        return tuple(_unit(site, i, draft.number, kind) for i in range(len(draft.groups)))

    def _posterior(self, draft: Draft) -> tuple[Node, ...]:
        """Each node by the one unit of the posterior that changes with it alone; none where one has no such unit."""
        paths = ("latent.mu", "latent.logvar")
        found = self.prober.reach(draft.path, outputs=paths, groups=draft.groups)
        alone = [of_tap & (of_tap.int().sum(0) == 1) for of_tap in found]
        nodes = []
        for i in range(len(draft.groups)):
            units = [(path, unit) for path, of_tap in zip(paths, found, strict=True) for unit in of_tap[i].nonzero()]
            if len(units) != 1 or not bool(alone[paths.index(units[0][0])][i].any()):
                return ()
            nodes.append(_unit(self.sites[units[0][0]], int(units[0][1]), draft.number, "latent"))
        return tuple(nodes)


def _unit(site: Site, index: int, number: int, kind: str) -> Node:
    return Node(f"{site.name}[{index}]", kind, site.name, index, site.stage, number)
