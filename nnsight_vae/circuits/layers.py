"""The chain of a VAE: columns of nodes with one linear layer between neighbours, found by running the model.

Between two linear layers k and l stand maps such as activations, norms in eval mode, pooling, flattening and the latent
taps. A *node* of layer k's column is a smallest set of its output units and of layer l's input ports (channels, features)
that affect each other: one conv channel and the block of features that `Flatten` makes of it, one channel and the block
of neurons that `Unflatten` makes it from. Nothing is assumed about the modules in between: each unit is replaced in turn
and what changes at layer l's input is looked at. The input and the readout are the ends of the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nnsight_vae.circuits.contributions import Linear, port_axis
from nnsight_vae.engine import CHUNK_BYTES, MIN_ROWS
from nnsight_vae.errors import CircuitError
from nnsight_vae.probe import Firing
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE

_FAR = (
    100.0  # a replaced unit goes this many times past the largest of its layer, both ways: that opens and shuts gates
)
_SAME = 1e-5  # relative tolerance of "no change": between two linear layers only rounding can differ


@dataclass(frozen=True)
class Node:
    """A node of a circuit.

    Attributes:
        id: `"encoder.4[7]"`, `"factor:angle"`, `"readout:angle"`.
        kind: factor, input, conv, linear, latent, output or readout.
        site: the site it is a unit of; None for factors and readouts.
        index: which unit; None where it is a set of units.
        stage: input, encoder, latent, decoder or output; factor and readout for the ends.
        layer: position of its column, 0 for factors.
    """

    id: str
    kind: str
    site: str | None
    index: int | None
    stage: str
    layer: int


@dataclass(frozen=True)
class Column:
    """Nodes side by side, and how they lie in the tensors on both sides of the maps that follow.

    Attributes:
        nodes: the nodes, in order of their ports.
        paths: modules whose outputs hold the column; several where the layers are parallel (fc_mu beside fc_logvar).
        axes: the unit axis of each of those outputs.
        owners: node of each unit of those outputs; -1 where the unit reaches nothing.
        ports: node of each port of what reads the column (the next layer's input, or the readout's).
    """

    nodes: tuple[Node, ...]
    paths: tuple[str, ...]
    axes: tuple[int, ...]
    owners: tuple[Int[Tensor, " unit"], ...]
    ports: Int[Tensor, " port"]


@dataclass(frozen=True)
class Chain:
    """The columns of a VAE from `input` to what the readout reads.

    Attributes:
        reads: `"output"` or `"latent.mu"`.
        columns: the input's, then one per layer (or group of parallel layers).
        layers: the linear layers that make each column; none for the input's.
    """

    reads: str
    columns: tuple[Column, ...]
    layers: tuple[tuple[Linear, ...], ...]

    @classmethod
    def of(cls, vae: VAE, x: Float[Tensor, "n *image"], eps: Tensor | None = None, reads: str = "output") -> Chain:
        """Find the chain for inputs like x.

        Args:
            vae: the model.
            x: inputs; the first is used as an example.
            eps: noise of the posterior sample; None is the mean path, on which logvar plays no part.
            reads: the site where the chain ends.

        Raises:
            CircuitError: the layers form no chain (a branch, a module that mixes units, no linear layer at all); names
                the modules.

        Example:
            >>> from nnsight_vae.models import ConvVAE
            >>> vae = VAE(ConvVAE(image_shape=(1, 8, 8), latent=2, channels=(4,)))
            >>> [len(column.nodes) for column in Chain.of(vae, torch.rand(1, 1, 8, 8)).columns]
            [1, 4, 128, 2, 128, 4, 1]
        """
        prober = _Prober(vae, vae.checked(x)[:1], None if eps is None else eps[:1], reads)
        groups = prober.layer_groups()
        stops = [*(group[0].path for group in groups), vae.layout(x).paths[reads]]
        firings = vae.layout(x).firings
        columns = [prober.column((firings["tap_input"],), stops[0], 1)]
        for number, (group, stop) in enumerate(zip(groups, stops[1:], strict=True), start=2):
            columns.append(prober.column(group, stop, number))
        return cls(reads, tuple(columns), ((), *(tuple(_linear(f) for f in group) for group in groups)))


class _Heard(Exception):  # not an error: a run is over once what it was for has been heard
    """Carries what reached a module out of the run."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class _Prober:
    """Short runs on a few copies of one example, with torch hooks, that tell which part of the model reaches which."""

    def __init__(self, vae: VAE, x: Tensor, eps: Tensor | None, reads: str) -> None:
        self.vae, self.x, self.eps, self.reads = vae, x, eps, reads
        self.layout = vae.layout(x)
        self.end = self.layout.firings[self.layout.paths[reads]]

    def layer_groups(self) -> list[tuple[Firing, ...]]:
        """The layers through which everything flows, in order, those side by side together."""
        groups: list[tuple[Firing, ...]] = []
        open_: tuple[Firing, ...] = ()  # layers side by side that are not yet known to carry everything
        layers = [f for f in self.layout.firings.values() if isinstance(f.module, Linear) and f.calls == 1]
        for firing in sorted(layers, key=lambda f: f.started):
            if firing.finished > self.end.finished or not self._matters(firing):
                continue
            if open_ and not self._same_input(open_[0], firing):
                raise self._branch(open_)
            open_ = (*open_, firing)
            if self._carries_everything(open_):
                groups.append(open_)
                open_ = ()
        if open_:
            raise self._branch(open_)
        if not groups:
            raise CircuitError(
                f"no linear layer (Linear, Conv, ConvTranspose) that is called once lies between input and {self.reads!r}, "
                "or none of them affects it, so there are no edges to score."
            )
        return groups

    def column(self, group: tuple[Firing, ...], stop: str, number: int) -> Column:
        """The nodes between the outputs of some layers and the input of the module at `stop`."""
        reaches = torch.cat([self._reach(firing, stop) for firing in group])
        members = _components(reaches)
        mixed = [(units, ports) for units, ports in members if len(units) > 1 and len(ports) > 1]
        if mixed:
            between = self._between(group[0], stop)
            blamed = [f"{f.path.removeprefix('model.')!r} ({type(f.module).__name__})" for f in between]
            raise CircuitError(
                f"units {mixed[0][0][:4]} of {self._sites_of(group)} are mixed before the next layer, so its input channels belong to no "
                f"single unit. Between them: {', '.join(blamed) or 'code that is no module'}. Edges are scored only "
                "through maps that keep units apart (activations, eval BatchNorm, pooling, reshapes)."
            )
        nodes = tuple(self._named(group, stop, members, number))
        owners = _owners([units for units, _ in members], len(reaches))
        sizes = [_units(f) for f in group]
        return Column(
            nodes,
            tuple(f.path for f in group),
            tuple(f.axis for f in group),
            tuple(owners.split(sizes)),
            _owners([ports for _, ports in members], reaches.shape[1]),
        )

    # ------------------------------------------------------------------ naming
    def _named(
        self, group: tuple[Firing, ...], stop: str, members: list[tuple[list[int], list[int]]], number: int
    ) -> list[Node]:
        sites = {path: self.layout.sites[name] for name, path in self.layout.paths.items()}
        between = [sites[f.path] for f in self._between(group[0], stop) if f.path in sites]
        fitting = {site.name: site for site in between if site.n_units == len(members)}
        if stop == self.end.path and sites[stop].n_units == len(members):
            fitting = {self.reads: sites[stop]}
        elif "latent.z" in fitting:
            fitting = {"latent.z": fitting["latent.z"]}
        elif len(group) == 1 and all(len(units) == 1 for units, _ in members):
            own = sites[group[0].path]
            return [_node(own, units[0], number, own.kind) for units, _ in members]
        if fitting:
            site = next(iter(fitting.values()))
            kind = site.kind if site.kind in ("latent", "output") else sites[group[0].path].kind
            return [_node(site, i, number, kind) for i in range(len(members))]
        flat = [(f, unit) for f in group for unit in range(_units(f))]
        nodes = []
        for units, _ in members:
            parts: dict[str, list[int]] = {}
            for firing, unit in (flat[i] for i in units):
                parts.setdefault(firing.path, []).append(unit)
            name = "+".join(str(Selection(sites[path].name, tuple(chosen))) for path, chosen in parts.items())
            own = sites[group[0].path]
            nodes.append(Node(name, own.kind, own.name, None, own.stage, number))
        return nodes

    def _between(self, first: Firing, stop: str) -> list[Firing]:
        """Modules that ran after a layer and before the one at `stop`, containers left out."""
        until = self.layout.firings[stop].started
        return [
            f
            for f in self.layout.firings.values()
            if f.started > first.finished and f.finished < until and f.kind != "container"
        ]

    def _sites_of(self, group: tuple[Firing, ...]) -> str:
        return " and ".join(repr(f.path.removeprefix("model.")) for f in group)

    def _branch(self, group: tuple[Firing, ...]) -> CircuitError:
        return CircuitError(
            f"not everything that reaches {self.reads!r} passes {self._sites_of(group)}: another branch (a residual or skip "
            "connection, or code around the module) goes past it. Edge scores need a chain of layers."
        )

    # ------------------------------------------------------------------ probing
    def _matters(self, firing: Firing) -> bool:
        before = self._hear(self.end.path, {}, self.x)
        after = self._hear(self.end.path, {firing.path: _noise}, self.x)
        return not torch.equal(before, after)

    def _carries_everything(self, group: tuple[Firing, ...]) -> bool:
        """Whether replacing these layers' outputs leaves nothing of the input: two inputs then end alike."""
        other = _noise(self.x).abs()
        replaced = {firing.path: _noise for firing in group}
        clean = self._hear(self.end.path, {}, self.x)
        one, two = (self._hear(self.end.path, replaced, x) for x in (self.x, other))
        return float((one - two).abs().max()) <= _SAME * float((one - clean).abs().max())

    def _same_input(self, one: Firing, two: Firing) -> bool:
        a, b = (self._hear(firing.path, {}, self.x) for firing in (one, two))
        return a.shape == b.shape and torch.equal(a, b)

    def _reach(self, firing: Firing, stop: str) -> Bool[Tensor, "unit port"]:
        """Which ports of the module at `stop` change when a unit of a module's output is replaced."""
        units, axis = _units(firing), firing.axis
        largest = max(torch.Size(f.shape[1:]).numel() for f in self.layout.firings.values() if f.shape)
        step = max(MIN_ROWS, CHUNK_BYTES // (2 * largest * self.x.element_size()))
        parts = []
        for start in range(0, units, step):
            chosen = torch.arange(start, min(start + step, units))

            def poke(value: Tensor, chosen: Tensor = chosen) -> Tensor:
                view = value.clone().movedim(axis, 1)
                far = _FAR * max(1.0, float(value.abs().max()))
                view[torch.arange(len(chosen)), chosen] = far
                view[torch.arange(len(chosen)) + len(chosen), chosen] = -far
                return view.movedim(1, axis)

            copies = 2 * len(chosen) + 1  # the last one is left as it is
            heard = self._hear(stop, {firing.path: poke}, self.x.expand(copies, *self.x.shape[1:]))
            ports = heard.movedim(port_axis(self.layout.firings[stop].module, heard), 1)
            ports = ports.reshape(copies, ports.shape[1], -1)
            changed = (ports[:-1] - ports[-1:]).abs() > _SAME * (1 + ports[-1:].abs())
            parts.append(changed.any(-1).unflatten(0, (2, len(chosen))).any(0).cpu())
        return torch.cat(parts)

    def _hear(self, path: str, replaced: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        """What reaches the module at `path` when some modules' outputs are replaced."""

        def hear(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            raise _Heard(args[0] if args else next(iter(kwargs.values())))

        handles = [self.layout.firings[path].module.register_forward_pre_hook(hear, with_kwargs=True)]
        for changed, replace in replaced.items():
            handles.append(
                self.layout.firings[changed].module.register_forward_hook(
                    lambda module, args, value, replace=replace: replace(value)
                )
            )
        noise = None if self.eps is None else self.eps.expand(len(x), *self.eps.shape[1:]).to(x)
        try:
            with torch.no_grad():
                self.vae(x, eps=noise)
        except _Heard as heard:
            return heard.value.clone()
        finally:
            for handle in handles:
                handle.remove()
        raise CircuitError(f"{path.removeprefix('model.')!r} was not reached when the model ran again.")


def _node(site: object, index: int, number: int, kind: str) -> Node:
    return Node(f"{site.name}[{index}]", kind, site.name, index, site.stage, number)  # type: ignore[attr-defined]


def _linear(firing: Firing) -> Linear:
    if not isinstance(firing.module, Linear):
        raise CircuitError(
            f"{firing.path.removeprefix('model.')!r} is a {type(firing.module).__name__}, no linear layer."
        )
    return firing.module


def _units(firing: Firing) -> int:
    return firing.shape[firing.axis] if firing.shape else 0


def _noise(like: Tensor) -> Tensor:
    """The same random values whatever the example: standard normal times 3, seeded."""
    values = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(0)) * 3
    return values.to(like).expand_as(like)


def _components(reaches: Bool[Tensor, "unit port"]) -> list[tuple[list[int], list[int]]]:
    """Units and ports that hang together, ordered by first port; those that reach nothing are left out."""
    from scipy.sparse import bmat, csr_matrix
    from scipy.sparse.csgraph import connected_components

    block = csr_matrix(reaches.numpy())
    n_units = len(reaches)
    _, labels = connected_components(bmat([[None, block], [block.T, None]]), directed=False)
    members: dict[int, tuple[list[int], list[int]]] = {}
    for i, label in enumerate(labels.tolist()):
        members.setdefault(label, ([], []))[i >= n_units].append(i - n_units if i >= n_units else i)
    return sorted((m for m in members.values() if m[0] and m[1]), key=lambda m: m[1][0])


def _owners(members: list[list[int]], size: int) -> Int[Tensor, " item"]:
    owners = torch.full((size,), -1, dtype=torch.long)
    for node, items in enumerate(members):
        owners[items] = node
    return owners
