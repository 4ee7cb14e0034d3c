"""Runs in which only some of the edges carry the change from base to source: any set of edges in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import apply, masked_weight, weight_grid
from nnsight_vae.circuits.wiring.cuts import Block, Cut
from nnsight_vae.circuits.wiring.local_maps import Part, State, parts_between
from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.circuits.wiring.rest import Rest
from nnsight_vae.errors import CircuitError
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import Event, Write, replace_event, trace_events
from nnsight_vae.vae import VAE


def edge_positions(edges: Iterable[tuple[str, str]], cuts: Sequence[Cut]) -> dict[tuple[str, str], tuple[int, int]]:
    """Where each edge (source id, target id) stands: (cut, edge in the cut).

    Raises:
        CircuitError: an edge that the cuts do not have.
    """
    known = {
        (cut.sources[s].id, cut.targets[t].id): (c, e)
        for c, cut in enumerate(cuts)
        for e, (s, t) in enumerate(cut.ends.tolist())
    }
    edges = tuple(edges)
    foreign = [edge for edge in edges if edge not in known]
    if foreign:
        a, b = foreign[0]
        raise CircuitError(
            f"{len(foreign)} edges of this circuit are not edges of this model, pairs and readout, first {a!r} -> {b!r}. The model "
            f"has {', '.join(cut.name for cut in cuts)}; use the pairs' factor and readout that the circuit was made with."
        )
    return {edge: known[edge] for edge in edges}


def kept_of(cuts: Sequence[Cut], positions: Iterable[tuple[int, int]]) -> list[Bool[Tensor, " edge"]]:
    """Which edges of each cut are at the given positions (cut, edge in the cut)."""
    kept = [torch.zeros(len(cut), dtype=torch.bool) for cut in cuts]
    for c, e in positions:
        kept[c][e] = True
    return kept


def kept_between(cuts: Sequence[Cut], nodes: Container[str]) -> list[Bool[Tensor, " edge"]]:
    """All edges of the model between the given nodes (ids)."""
    kept = []
    for cut in cuts:
        sources, targets = (
            np.array([node.id in nodes for node in side], dtype=bool) for side in (cut.sources, cut.targets)
        )
        kept.append(torch.from_numpy(sources[cut.ends[:, 0]] & targets[cut.ends[:, 1]]))
    return kept


def run_with(
    vae: VAE,
    run: PairRun,
    cuts: Sequence[Cut],
    kept: Sequence[Bool[Tensor, " edge"] | Float[Tensor, " edge"]],
    readout: Readout,
    *,
    rest: Rest | None = None,
) -> Float[Tensor, "n target"]:
    """The readout of the source run when only the kept edges carry the values of the run, and the others those at rest.

    An edge u -> v at rest adds to v's pre-activation what u's value at rest makes of its weights. Where several nodes change what v
    takes in, the difference between that in the run and at rest is shared out among them as in `local_maps`, and v takes in the
    shares of the kept. With no edge kept the result is the readout at rest; with all of them it is that of the source run.

    Args:
        vae: the model.
        run: the pairs, run on both sides.
        cuts: from `cuts_of(run.wiring, ...)`.
        kept: for each cut, which of its edges are kept; or, as numbers, the share of its change that each carries, in which
            the result is differentiable.
        readout: what is read, its targets those of the last cut.
        rest: what the other edges carry; None: what they carried in the base run.
    """
    partial = _PartialRun(vae, run, cuts, kept, Rest.base(run) if rest is None else rest)
    end = len(run.wiring.columns)
    reached = partial.run([run.wiring.reads])[run.wiring.reads]
    parts = list(partial.parts(end, reached))
    columns = []
    for t in range(len(readout.names)):
        given = partial.rest.inputs[-1]
        for part in parts:
            given = given + part.delta * partial.let_out(part, t)
        columns.append(read(readout, given)[:, t])
    return torch.stack(columns, dim=1)


def reached_with(
    vae: VAE,
    run: PairRun,
    cuts: Sequence[Cut],
    kept: Sequence[Bool[Tensor, " edge"] | Float[Tensor, " edge"]],
    sites: Sequence[str],
    *,
    rest: Rest | None = None,
) -> dict[str, Tensor]:
    """What reaches some sites in the run of `run_with`: the tensors `[n, ...]` there, before any edge into a readout.

    Args:
        vae: the model.
        run: the pairs, run on both sides.
        cuts: from `cuts_of(run.wiring, ...)`.
        kept: for each cut, which of its edges are kept, or shares, as in `run_with`.
        sites: such as `"output"`, `"latent.mu"`.
        rest: what the other edges carry; None: what they carried in the base run.
    """
    return _PartialRun(vae, run, cuts, kept, Rest.base(run) if rest is None else rest).run(sites)


class _PartialRun:
    """A run in which each layer takes in what its kept edges bring.

    In a chain that is one pass: each layer is given, times its masked weights, what it takes in more than at rest. A layer at whose
    ports several nodes meet has to wait until what they give is known, so the pass runs up to it, the change is shared out, and another
    pass goes on from there: one more for each such layer along the way.
    """

    def __init__(
        self,
        vae: VAE,
        run: PairRun,
        cuts: Sequence[Cut],
        kept: Sequence[Tensor],
        rest: Rest,
    ) -> None:
        self.vae, self.pairs, self.rest, self.wiring = vae, run, rest, run.wiring
        self.layout = vae.layout(run.base.x)
        self.blocks: dict[int, list[tuple[Block, Tensor]]] = {}
        for cut, of_cut in zip(cuts, kept, strict=True):
            for block in cut.blocks:
                self.blocks.setdefault(block.reader, []).append((block, of_cut))
        self.settled: dict[int, Tensor] = {}  # outputs of columns whose parts had to be shared out
        self.given: dict[int, Tensor] = {}  # outputs of all columns in the last pass

    def run(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """What reaches some sites."""
        waiting = [i for i in range(len(self.wiring.columns)) if not self.wiring.is_plain(i)]
        while waiting:
            depth = self.wiring.columns[waiting[0]].depth
            ready = [i for i in waiting if self.wiring.columns[i].depth == depth]
            _, taken = self._pass([], ready)
            for i in ready:
                self.settled[i] = self._given(i, self.parts(i, taken[i]))
            waiting = waiting[len(ready) :]
        return self._pass(sites, [])[0]

    def parts(self, reader: int, taken: Tensor) -> Iterator[Part]:
        """What a reader takes in more than at rest, part by part."""
        columns = self.wiring.columns
        parents = {route.parent: columns[route.parent].path for route in self.wiring.routes(reader)}
        at_rest = self.rest.inputs[reader].expand_as(taken)
        if self.wiring.is_plain(reader):
            parents = {}
        start = State({i: self.rest.states[path].expand_as(self.given[i]) for i, path in parents.items()}, at_rest)
        end = State({i: self.given[i] for i in parents}, taken)
        return parts_between(self.pairs.base, self.wiring, reader, start, end)

    def let_out(self, part: Part, target: int) -> Tensor:
        """Ports of a part by how much of them goes to a target of the readout, shaped to multiply the part."""
        block, kept = self._block(len(self.wiring.columns), part)
        edges = torch.where(part.owners >= 0, block.edges[part.owners, target], -1)
        return _per_port(_shares(edges, kept, part.delta), part.delta)

    def _pass(self, sites: Sequence[str], ready: Sequence[int]) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """One pass: what reaches some sites, and what some columns' modules take in."""
        firings, columns = self.layout.firings, self.wiring.columns
        taken: dict[int, Tensor] = {}
        reached: dict[str, Tensor] = {}
        events: list[Event] = []
        self.given = {}

        def take(i: int) -> Callable[[], None]:
            return lambda: taken.__setitem__(i, self.vae.envoy_at(columns[i].path).input)

        def put(i: int) -> Write:
            def write(value: Tensor) -> Tensor:
                known = self.settled.get(i)
                if known is None and self.wiring.is_plain(i):
                    known = self._given(i, self.parts(i, taken[i]))
                self.given[i] = value if known is None else known
                return self.given[i].clone()

            return write

        for i, column in enumerate(columns):
            events.append((firings[column.path].started, take(i)))
            events.append((firings[column.path].finished, replace_event(self.vae, column.path, put(i))))
        if not sites:
            until = max(firings[columns[i].path].started for i in ready)
            events = [(moment, event) for moment, event in events if moment <= until]

        def listen(site: str) -> Callable[[], None]:
            return lambda: reached.__setitem__(site, self.vae.envoy_at(self.layout.paths[site]).output)

        events += [(firings[self.layout.paths[site]].finished, listen(site)) for site in sites]
        trace_events(self.vae, "__call__", (self.pairs.source.x,), events, eps=self.pairs.source.eps)
        return reached, taken

    def _given(self, reader: int, parts: Iterable[Part]) -> Tensor:
        """What a column's module gives, of its kept edges."""
        column = self.wiring.columns[reader]
        total = self.rest.outputs[column.path]
        for part in parts:
            block, kept = self._block(reader, part)
            if column.layer is None:
                shares = _shares(block.of_entries(part.owners), kept, part.delta)
                total = total + part.delta * _per_port(shares, part.delta)
                continue
            keep = _shares(block.of_entries(part.owners), kept, part.delta)
            if bool((block.owners < 0).any()):  # units of no node take in everything
                units, ports = weight_grid(column.layer)
                keep = torch.where((block.owners[units] < 0) & (part.owners[ports] >= 0), 1.0, keep)
            total = total + apply(column.layer, part.delta, masked_weight(column.layer, keep))
        return total

    def _block(self, reader: int, part: Part) -> tuple[Block, Tensor]:
        return next((block, kept) for block, kept in self.blocks[reader] if block.route.parent == part.parent)


def _shares(edges: Tensor, kept: Tensor, like: Tensor) -> Tensor:
    """How much each edge carries, in the precision of `like`; 0 where there is none (-1)."""
    return torch.cat([kept.to(like.dtype), kept.new_zeros(1, dtype=like.dtype)])[edges]


def _per_port(values: Float[Tensor, " port"], like: Tensor) -> Tensor:
    """One number a port, shaped to multiply what is handed on."""
    return values.to(like).view(1, -1, *[1] * (like.ndim - 2))
