"""The wiring of a VAE: columns of nodes, and which column reads which, found by running the model.

A *column* is the input, what one linear layer gives, or the sample `latent.z`. A layer *reads* the columns that its input depends
on with all other columns held; what lies in between (activations, norms, pooling, reshapes, additions, attention, the latent taps)
may be anything. A *node* is a smallest set of a column's units that no reader tells apart: one conv channel, the block of neurons
that `Unflatten` makes a channel from. Nothing is assumed about the modules in between: each unit is replaced in turn and what
changes where it is read is looked at.

Columns as far from the input as each other (by the longest way) are one *level*. A chain has one column a level; where
layers stand side by side, or skip connections go past some, a level has several, or others stay *alive* beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import Linear
from nnsight_vae.circuits.wiring.naming import Draft, named_nodes
from nnsight_vae.circuits.wiring.nodes import Column, Route
from nnsight_vae.circuits.wiring.probing import Prober, by_group, named, units_of
from nnsight_vae.errors import CircuitError
from nnsight_vae.vae import VAE


@dataclass(frozen=True)
class Wiring:
    """The columns of a VAE from `input` to what the readout reads.

    Attributes:
        reads: `"output"` or `"latent.mu"`.
        columns: the input's, then level by level, within a level in the order in which they run.
        ends: routes into what the readout reads.
    """

    reads: str
    columns: tuple[Column, ...]
    ends: tuple[Route, ...]

    @classmethod
    def of(cls, vae: VAE, x: Float[Tensor, "n *image"], eps: Tensor | None = None, reads: str = "output") -> Wiring:
        """Find the wiring for inputs like x, once for each shape of inputs as long as the weights stay what they are.

        Args:
            vae: the model.
            x: inputs; the first is used as an example.
            eps: noise of the posterior sample; None is the mean path, on which logvar plays no part and z is mu. With noise,
                mu and logvar are nodes of their own, and `latent.z` a column that reads both.
            reads: the site where the wiring ends.

        Raises:
            CircuitError: no linear layer at all, or one whose output is no column (called several times); names it.

        Example:
            >>> from nnsight_vae.models import ConvVAE
            >>> vae = VAE(ConvVAE(image_shape=(1, 8, 8), latent=2, channels=(4,)))
            >>> [len(column.nodes) for column in Wiring.of(vae, torch.rand(1, 1, 8, 8)).columns]
            [1, 4, 128, 2, 128, 4, 1]
        """
        key, fingerprint = (tuple(x.shape[1:]), eps is None, reads), vae.fingerprint
        if key not in vae._wirings or vae._wirings[key][0] != fingerprint:
            vae._wirings[key] = fingerprint, cls._found(vae, x, eps, reads)
        found: Wiring = vae._wirings[key][1]
        return found

    @classmethod
    def _found(cls, vae: VAE, x: Tensor, eps: Tensor | None, reads: str) -> Wiring:
        if eps is not None and vae.adapter.levels > 1:
            raise CircuitError(
                "the noise of a VAE of several latents enters at each level, where edges are not told apart: score its circuits at the "
                "posterior means, on pairs without eps."
            )
        prober = Prober(vae, vae.checked(x)[:1], None if eps is None else eps[:1], reads)
        read_by = _readers(prober)
        _refuse_opaque(prober, read_by)
        if set(read_by) <= {"tap_input"}:
            raise CircuitError(
                f"no linear layer (Linear, Conv, ConvTranspose) that is called once lies between input and {reads!r}, "
                "or none of them affects it, so there are no edges to score."
            )
        if "tap_input" not in read_by:
            raise CircuitError(f"nothing that any layer before {reads!r} takes in was seen to change with the input.")
        depths = _depths(prober, read_by)
        paths = sorted(read_by, key=lambda path: (depths[path], prober.sources[path].started))
        reaches = {path: dict(zip(read_by[path], prober.reach(path, read_by[path]), strict=True)) for path in paths}
        groups = {path: _groups(prober, path, reaches[path]) for path in paths}
        drafts = [Draft(path, groups[path], tuple(read_by[path]), depths[path] + 1) for path in paths]
        nodes = named_nodes(prober, drafts, sampled=eps is not None)

        def routes(reader: str) -> tuple[Route, ...]:
            parents = [(i, path) for i, path in enumerate(paths) if reader in reaches[path]]
            return tuple(Route(i, by_group(reaches[path][reader], groups[path])) for i, path in parents)

        columns = [
            Column(
                of_column,
                path,
                prober.sources[path].axis,
                _owners(groups[path], units_of(prober.sources[path])),
                module if isinstance(module := prober.sources[path].module, Linear) else None,
                routes(path) if path != "tap_input" else (),
                depths[path],
            )
            for path, of_column in zip(paths, nodes, strict=True)
        ]
        return cls(reads, tuple(columns), routes(prober.end.path))

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the columns of each level; the input's is the first."""
        depths = [column.depth for column in self.columns]
        return tuple(tuple(i for i, depth in enumerate(depths) if depth == level) for level in range(depths[-1] + 1))

    def is_plain(self, reader: int) -> bool:
        """Whether each port of a reader changes with one node only, of whichever column."""
        return self._plain[reader]

    @cached_property
    def _plain(self) -> tuple[bool, ...]:
        routes = (self.routes(reader) for reader in range(len(self.columns) + 1))
        return tuple(not of or bool((torch.cat([r.reach for r in of]).sum(0) <= 1).all()) for of in routes)

    def routes(self, reader: int) -> tuple[Route, ...]:
        """The routes into what a column's module takes in; for the number after the last, into what the readout reads."""
        return self.columns[reader].routes if reader < len(self.columns) else self.ends

    def alive(self, level: int) -> tuple[int, ...]:
        """Columns before a level that something after it still reads: with the level's own they settle all that follows."""
        if level == len(self.levels):
            return ()
        readers = [i for i, column in enumerate(self.columns) if column.depth > level] + [len(self.columns)]
        read = {route.parent for reader in readers for route in self.routes(reader)}
        return tuple(i for i, column in enumerate(self.columns) if column.depth < level and i in read)


def _readers(prober: Prober) -> dict[str, list[str]]:
    """The readers of each column from which anything reaches the end."""
    found: dict[str, list[str]] = {}
    wanted = {prober.end.path}
    for path in sorted(prober.sources, key=lambda p: -prober.sources[p].started):
        readers = [reader for reader in prober.direct(path) if reader in wanted]
        if readers:
            found[path] = readers
            wanted.add(path)
    return found


def _refuse_opaque(prober: Prober, read_by: Mapping[str, Sequence[str]]) -> None:
    """Refuse linear layers whose units would go without nodes.

    Raises:
        CircuitError: names the layer.
    """
    heard = {prober.end.path, *(reader for readers in read_by.values() for reader in readers)}
    readers = sorted(heard, key=lambda r: prober.readers[r].started)
    for firing in prober.opaque:
        if prober.matters(firing, readers):
            how = f"is called {firing.calls} times" if firing.calls > 1 else f"returns {firing.returned}"
            raise CircuitError(
                f"layer {named(firing.module, firing.path)} {how}, so its units stand for no single value and have no nodes, and its "
                "output matters. Give every call a layer of its own; they may share one weight."
            )


def _depths(prober: Prober, read_by: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Most columns between each column and the input."""
    depths = dict.fromkeys(read_by, 0)
    for path in sorted(read_by, key=lambda p: prober.sources[p].started):
        for reader in read_by[path]:
            if reader in depths:
                depths[reader] = max(depths[reader], depths[path] + 1)
    return depths


def _groups(prober: Prober, path: str, reaches: Mapping[str, Bool[Tensor, "unit port"]]) -> tuple[tuple[int, ...], ...]:
    """The units of each node of a column, ordered by the first port that they reach; units that reach nothing are left out.

    Units that alone make up a port are one node. Where they make up several ports together (a norm over channels), those are one
    node that alone make up a unit of a site on the way.
    """
    bonds = []
    if "latent.z" in reaches:  # mu and logvar are told apart, though they meet in z
        reaches = {**reaches, "latent.z": torch.cat(prober.reach(path, outputs=("latent.mu", "latent.logvar")), dim=1)}
    for reader, reach in reaches.items():
        members = _components(reach)
        bonds += [units for units, ports in members if len(units) > 1 and len(ports) == 1]
        if any(len(units) > 1 and len(ports) > 1 for units, ports in members):
            bonds += _blocks(prober, path, reader)
    n_units = len(next(iter(reaches.values())))
    bonded = torch.zeros(n_units, n_units + len(bonds), dtype=torch.bool)
    bonded[torch.arange(n_units), torch.arange(n_units)] = torch.stack([r.any(1) for r in reaches.values()]).any(0)
    for i, units in enumerate(bonds):
        bonded[units, n_units + i] = True
    groups = [tuple(units) for units, _ in _components(bonded)]
    first = next(iter(reaches.values()))
    ports = torch.where(first.any(1), first.int().argmax(1), first.shape[1])
    return tuple(sorted(groups, key=lambda units: (int(ports[list(units)].min()), units[0])))


def _blocks(prober: Prober, path: str, reader: str) -> list[list[int]]:
    """Sets of units that make up one unit each of the first site on the way to a reader that has fewer units, if it has such."""
    source, until = prober.sources[path], prober.readers[reader].started
    for firing in sorted(prober.layout.firings.values(), key=lambda f: f.finished):
        between = firing.started > source.finished and firing.finished < until
        if not between or firing.calls != 1 or firing.shape is None or units_of(firing) >= units_of(source):
            continue
        (reach,) = prober.reach(path, outputs=[firing.path])
        members = _components(reach)
        if len(members) == units_of(firing) and all(len(ports) == 1 for _, ports in members):
            return [units for units, _ in members]
    return []


def _components(reach: Bool[Tensor, "unit port"]) -> list[tuple[list[int], list[int]]]:
    """Units and ports that hang together, ordered by first port; those that reach nothing are left out."""
    from scipy.sparse import bmat, csr_matrix
    from scipy.sparse.csgraph import connected_components

    block = csr_matrix(reach.numpy())
    n_units = len(reach)
    _, labels = connected_components(bmat([[None, block], [block.T, None]]), directed=False)
    members: dict[int, tuple[list[int], list[int]]] = {}
    for i, label in enumerate(np.asarray(labels).tolist()):
        members.setdefault(label, ([], []))[i >= n_units].append(i - n_units if i >= n_units else i)
    return sorted((m for m in members.values() if m[0] and m[1]), key=lambda m: m[1][0])


def _owners(groups: Sequence[Sequence[int]], size: int) -> Int[Tensor, " unit"]:
    owners = torch.full((size,), -1, dtype=torch.long)
    for node, units in enumerate(groups):
        owners[list(units)] = node
    return owners
