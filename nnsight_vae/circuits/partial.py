"""Runs in which only some of the edges carry the change from base to source: any set of edges in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.circuits.contributions import apply, masked_weight
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


def run_with(
    vae: VAE, run: PairRun, cuts: Sequence[Cut], kept: Sequence[Bool[Tensor, " edge"]], readout: Readout
) -> Float[Tensor, "n target"]:
    """The readout of the source run when only the kept edges carry what differs from the base run.

    Args:
        vae: the model.
        run: the pairs, run on both sides.
        cuts: from `cuts_of(run.chain, ...)`.
        kept: for each cut, which of its edges carry the change; the others add what they added in the base run.
        readout: what is read, its targets those of the last cut.
    """
    chain, layout = run.chain, vae.layout(run.base.x)
    firings = layout.firings
    taken: dict[int, Tensor] = {}
    result: list[Tensor] = []
    entry, base_x = chain.columns[0], run.base.outputs["tap_input"]
    let_in = _unit_mask(cuts[0], kept[0], 0, entry.owners[0], base_x, 1)
    events: list[Event] = [
        (
            firings["tap_input"].finished,
            replace_event(vae, "tap_input", lambda x: base_x + (x - base_x) * let_in),
        )
    ]

    def take(path: str, column: int) -> Callable[[], None]:
        return lambda: taken.__setitem__(column, vae.envoy_at(path).input)

    for i in range(1, len(chain.columns)):
        column = chain.columns[i]
        events.append((firings[column.paths[0]].started, take(column.paths[0], i)))
        for path, layer, edge_of in zip(column.paths, chain.layers[i], cuts[i].edge_of, strict=True):
            keep = torch.where(edge_of >= 0, kept[i][edge_of.clamp(min=0)], False)
            weight = masked_weight(layer, keep)

            def write(
                value: Tensor, i: int = i, path: str = path, layer: object = layer, weight: Tensor = weight
            ) -> Tensor:
                return run.base.outputs[path] + apply(layer, taken[i] - run.base_inputs[i - 1], weight)  # type: ignore[arg-type]

            events.append((firings[path].finished, replace_event(vae, path, write)))

    def listen() -> None:
        base, reached = run.base_inputs[-1], vae.envoy_at(layout.paths[chain.reads]).output
        ports = chain.columns[-1].ports
        for t in range(len(readout.names)):
            let_out = _unit_mask(cuts[-1], kept[-1], t, ports, base, 1, into=True)
            result.append(read(readout, base + (reached - base) * let_out)[:, t])

    events.append((firings[layout.paths[chain.reads]].finished, listen))
    trace_events(vae, "__call__", (run.source.x,), events, eps=run.source.eps)
    return torch.stack(result, dim=1)


def _unit_mask(
    cut: Cut,
    kept: Bool[Tensor, " edge"],
    end: int,
    owners: Tensor,
    like: Tensor,
    axis: int,
    *,
    into: bool = False,
) -> Tensor:
    """1 at the units whose edge from (or `into`) the node `end` is kept, shaped to multiply `like`."""
    units = np.zeros(max(len(cut.sources), len(cut.targets)) + 1, dtype=bool)  # the last one stands for owner -1
    fixed, free = (1, 0) if into else (0, 1)
    chosen = kept.numpy() & (cut.ends[:, fixed] == end)
    units[cut.ends[chosen, free]] = True
    mask = torch.from_numpy(units)[owners].to(like)
    return mask.view([-1 if a == axis else 1 for a in range(like.ndim)])
