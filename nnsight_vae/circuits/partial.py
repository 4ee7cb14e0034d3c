"""Runs in which only some of the edges carry the change from base to source: any set of edges in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.circuits.contributions import apply, masked_weight, with_bias
from nnsight_vae.circuits.edges import Cut
from nnsight_vae.circuits.pair_run import PairRun, read
from nnsight_vae.errors import CircuitError
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import Event, replace_event, trace_events
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


class Rest(NamedTuple):
    """What edges carry that do not carry the run's own values.

    Attributes:
        outputs: module path -> what the module gives when every edge into it is at rest, bias included; `tap_input` too.
        inputs: what reads each column (as `PairRun.base_inputs`) takes in at rest.

    Leading axes are those of the run or 1.
    """

    outputs: Mapping[str, Tensor]
    inputs: tuple[Tensor, ...]

    @classmethod
    def base(cls, run: PairRun) -> Rest:
        """Each pair's own base run (resample ablation)."""
        return cls(run.base.outputs, run.base_inputs)

    @classmethod
    def mean(cls, runs: Iterable[PairRun]) -> Rest:
        """The average over all bases (mean ablation): layers are linear, so the mean contribution is that of the mean input."""
        sums: dict[str | int, Tensor] = {}
        n = 0
        for run in runs:
            paths = ["tap_input", *(path for column in run.chain.columns[1:] for path in column.paths)]
            seen = {path: run.base.outputs[path] for path in paths} | dict(enumerate(run.base_inputs))
            for key, value in seen.items():
                total = value.sum(0, keepdim=True)
                sums[key] = sums[key] + total if key in sums else total
            n += len(run)
        means = {key: total / n for key, total in sums.items()}
        outputs = {key: value for key, value in means.items() if isinstance(key, str)}
        return cls(outputs, tuple(value for key, value in means.items() if isinstance(key, int)))

    @classmethod
    def zero(cls, run: PairRun) -> Rest:
        """Nothing (zero ablation): of a layer only the bias is left."""
        chain = run.chain
        outputs = {"tap_input": torch.zeros_like(run.base.x[:1])}
        for column, layers in zip(chain.columns[1:], chain.layers[1:], strict=True):
            for path, layer in zip(column.paths, layers, strict=True):
                outputs[path] = with_bias(layer, torch.zeros_like(run.base.outputs[path][:1])).detach()
        return cls(outputs, tuple(torch.zeros_like(value[:1]) for value in run.base_inputs))


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

    An edge u -> v at rest adds to v's pre-activation what u's value at rest makes of its weights. With no edge kept the result
    is the readout at rest; with all of them it is that of the source run.

    Args:
        vae: the model.
        run: the pairs, run on both sides.
        cuts: from `cuts_of(run.chain, ...)`.
        kept: for each cut, which of its edges are kept; or, as numbers, the share of its change that each carries, in which
            the result is differentiable.
        readout: what is read, its targets those of the last cut.
        rest: what the other edges carry; None: what they carried in the base run.
    """
    rest = Rest.base(run) if rest is None else rest
    reads = run.chain.reads
    reached = reached_with(vae, run, cuts, kept, (reads,), rest=rest)[reads]
    at_rest, ports = rest.inputs[-1], run.chain.columns[-1].ports
    columns = []
    for t in range(len(readout.names)):
        let_out = _unit_mask(cuts[-1], kept[-1], t, ports, reached, 1, into=True)
        columns.append(read(readout, at_rest + (reached - at_rest) * let_out)[:, t])
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
        cuts: from `cuts_of(run.chain, ...)`.
        kept: for each cut, which of its edges are kept, or shares, as in `run_with`.
        sites: such as `"output"`, `"latent.mu"`.
        rest: what the other edges carry; None: what they carried in the base run.
    """
    rest = Rest.base(run) if rest is None else rest
    chain, layout = run.chain, vae.layout(run.base.x)
    firings = layout.firings
    taken: dict[int, Tensor] = {}
    reached: dict[str, Tensor] = {}
    x_rest = rest.outputs["tap_input"]
    let_in = _unit_mask(cuts[0], kept[0], 0, chain.columns[0].owners[0], run.source.x, 1)
    events: list[Event] = [
        (firings["tap_input"].finished, replace_event(vae, "tap_input", lambda x: x_rest + (x - x_rest) * let_in)),
    ]

    def take(path: str, column: int) -> Callable[[], None]:
        return lambda: taken.__setitem__(column, vae.envoy_at(path).input)

    for i in range(1, len(chain.columns)):
        column = chain.columns[i]
        events.append((firings[column.paths[0]].started, take(column.paths[0], i)))
        for path, layer, edge_of in zip(column.paths, chain.layers[i], cuts[i].edge_of, strict=True):
            keep = torch.where(edge_of >= 0, kept[i][edge_of.clamp(min=0)], True)  # what is no edge cannot be cut
            weight = masked_weight(layer, keep)

            def write(
                value: Tensor, i: int = i, path: str = path, layer: object = layer, weight: Tensor = weight
            ) -> Tensor:
                return rest.outputs[path] + apply(layer, taken[i] - rest.inputs[i - 1], weight)  # type: ignore[arg-type]

            events.append((firings[path].finished, replace_event(vae, path, write)))

    def listen(site: str) -> Callable[[], None]:
        return lambda: reached.__setitem__(site, vae.envoy_at(layout.paths[site]).output)

    events += [(firings[layout.paths[site]].finished, listen(site)) for site in sites]
    trace_events(vae, "__call__", (run.source.x,), events, eps=run.source.eps)
    return reached


def _unit_mask(
    cut: Cut,
    kept: Bool[Tensor, " edge"] | Float[Tensor, " edge"],
    end: int,
    owners: Tensor,
    like: Tensor,
    axis: int,
    *,
    into: bool = False,
) -> Tensor:
    """1 at the units whose edge from (or `into`) the node `end` is kept, shaped to multiply `like`."""
    fixed, free = (1, 0) if into else (0, 1)
    chosen = torch.from_numpy(cut.ends[:, fixed] == end)
    units = torch.zeros(max(len(cut.sources), len(cut.targets)) + 1).to(like)
    units[-1] = 1  # stands for owner -1: what is no edge cannot be cut
    units = units.index_put((torch.from_numpy(cut.ends[:, free])[chosen],), kept[chosen].to(like))
    mask = units[owners]
    return mask.view([-1 if a == axis else 1 for a in range(like.ndim)])
