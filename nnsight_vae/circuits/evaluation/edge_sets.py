"""A model, its pairs and a readout, ready to be run with any set of edges; what the other edges carry has a name.

`ablation` says what an edge u -> v outside the set adds to v's pre-activation:

- `base` (resample): what it added in the pair's own base run. The set alone carries the change from base to source.
- `mean`: what it adds on average over the bases (or over a reference). The set alone carries what is special to the source.
- `zero`: nothing, so that of a layer only its bias is left. The set alone carries anything at all.

The same goes for the ends: `factor -> input unit` is the input channel itself, `output unit -> readout` what the readout sees
of the unit. With no edge the model reads the readout of the base image, of the mean image, or of a blank; with every edge it is
the source run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnsight_vae import reading
from nnsight_vae.arguments import require
from nnsight_vae.circuits.graph.records import CIRCUIT_SCHEMA
from nnsight_vae.circuits.scoring.methods import resolution_of
from nnsight_vae.circuits.wiring.cuts import Cut, cuts_of
from nnsight_vae.circuits.wiring.pair_run import PairRun, pair_runs, read
from nnsight_vae.circuits.wiring.partial import edge_positions, kept_between, kept_of, run_with
from nnsight_vae.circuits.wiring.rest import Rest
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.engine import checked_batch
from nnsight_vae.errors import CircuitError, DataError, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

Ablation = Literal["base", "mean", "zero"]
Edge = tuple[str, str]
EdgeSet = Bool[np.ndarray, " edge"]
Progress = Callable[[int, int], None]

CARRIES = {
    "base": "what it carried in the base run (resample ablation)",
    "mean": "what it carries on average over the bases (mean ablation)",
    "zero": "nothing (zero ablation)",
}


class Readings(NamedTuple):
    """Readouts of one model under several sets of edges, pair by pair, in units of the readout.

    Attributes:
        sets: m(C), for each set C.
        nothing: m with no edge.
        whole: m of the source run.
        resolution: the smallest difference of each target that rounding cannot make.
    """

    sets: Float[np.ndarray, "set target pair"]
    nothing: Float[np.ndarray, "target pair"]
    whole: Float[np.ndarray, "target pair"]
    resolution: Float[np.ndarray, " target"]

    @property
    def effects(self) -> Float[np.ndarray, "set target pair"]:
        """m(C) - m(nothing); 0 where it may be rounding."""
        return self.clear(self.sets - self.nothing)

    @property
    def total(self) -> Float[np.ndarray, "target pair"]:
        """m(source) - m(nothing); 0 where it may be rounding."""
        return self.clear(self.whole - self.nothing)

    def clear(self, differences: Float[np.ndarray, "*sets target pair"]) -> Float[np.ndarray, "*sets target pair"]:
        """Differences of readouts, 0 where they may be rounding."""
        return np.where(np.abs(differences) > self.resolution[:, None], differences, 0.0)


@dataclass(frozen=True, eq=False)
class EdgeSets:
    """All edges of a model, in order, and runs of any set of them: one forward pass a set.

    Attributes:
        vae, pairs, readout: as given.
        wiring: the columns of the model.
        cuts: the edges between them.
        ablation: what the other edges carry.
        reference: images whose mean the others carry, with `mean`; None: the bases.
    """

    vae: VAE
    pairs: Pairs
    readout: Readout
    wiring: Wiring
    cuts: tuple[Cut, ...]
    ablation: Ablation
    reference: Tensor | None

    @classmethod
    def of(
        cls, vae: VAE, pairs: Pairs, readout: Readout, ablation: Ablation = "base", reference: Tensor | None = None
    ) -> EdgeSets:
        """Find the edges of a model.

        Raises:
            DataError: an unknown ablation, or a reference that is of no use to it.
        """
        if ablation not in get_args(Ablation):
            raise DataError(f"ablation={ablation!r} is unknown; expected {', '.join(map(repr, get_args(Ablation)))}.")
        if reference is not None and (ablation != "mean" or pairs.eps is not None):
            raise DataError(
                "reference= gives the images whose mean ablation='mean' puts in place, on the posterior-mean path; with "
                f"ablation={ablation!r} and eps {'given' if pairs.eps is not None else 'None'} leave it out."
            )
        require(vae, pairs, readout)
        base, eps = checked_batch(vae, pairs.base, pairs.eps)
        if reference is not None:
            reference, _ = checked_batch(vae, reference, None)
        wiring = Wiring.of(vae, base, eps, reading.reads(readout))
        cuts = cuts_of(wiring, pairs.factor or "intervention", readout.names)
        return cls(vae, pairs, readout, wiring, cuts, ablation, reference)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Source and target id of every edge, cut by cut."""
        return tuple((cut.sources[s].id, cut.targets[t].id) for cut in self.cuts for s, t in cut.ends.tolist())

    @cached_property
    def cut_of(self) -> Int[np.ndarray, " edge"]:
        """The cut of each edge."""
        return np.repeat(np.arange(len(self.cuts)), [len(cut) for cut in self.cuts])

    @cached_property
    def inner(self) -> EdgeSet:
        """The edges between units: those from the factor and into the readouts only say where the model begins and ends."""
        return (self.cut_of != 0) & (self.cut_of != len(self.cuts) - 1)

    def rest_of(self, edges: EdgeSet) -> EdgeSet:
        """The model without the inner edges of a set. Were its ends taken too, nothing would be left of any model."""
        return ~(edges & self.inner)

    def set_of(self, edges: Iterable[Edge]) -> EdgeSet:
        """The set of these edges.

        Raises:
            CircuitError: an edge that the model does not have.
        """
        return torch.cat(kept_of(self.cuts, edge_positions(edges, self.cuts).values())).numpy()

    def between(self, nodes: Collection[str]) -> EdgeSet:
        """All edges between some nodes."""
        return torch.cat(kept_between(self.cuts, nodes)).numpy()

    def runs(self) -> Iterator[tuple[slice, PairRun, Rest]]:
        """Chunks of the pairs, with what edges at rest carry."""
        average = Rest.mean(run for _, run in self._reference_runs()) if self.ablation == "mean" else None
        for rows, run in pair_runs(self.vae, self.pairs, self.wiring):
            yield (
                rows,
                run,
                average.of(run) if average else Rest.zero(run) if self.ablation == "zero" else Rest.base(run),
            )

    def read(self, sets: Sequence[EdgeSet], progress: Progress | None = None) -> Readings:
        """The readout of every set.

        Args:
            sets: which edges are in each.
            progress: called with (done, total), counted in sets x pairs.

        Raises:
            ReadoutError: a target is NaN or infinite in some run.
        """
        shape = (len(self.readout.names), len(self.pairs))
        found = Readings(np.empty((len(sets), *shape)), np.empty(shape), np.empty(shape), np.zeros(shape[0]))
        done = 0
        for rows, run, rest in self.runs():
            with torch.no_grad():
                found.resolution[:] = np.maximum(found.resolution, resolution_of(run, self.readout))
                found.whole[:, rows] = read(self.readout, run.source_inputs[-1]).T.cpu()
                at_rest = rest.inputs[-1].expand(
                    len(run), *rest.inputs[-1].shape[1:]
                )  # a readout may round by batch size
                found.nothing[:, rows] = read(self.readout, at_rest.contiguous()).T.cpu()
                for i, edges in enumerate(sets):
                    values = run_with(self.vae, run, self.cuts, self.kept(edges), self.readout, rest=rest)
                    found.sets[i, :, rows] = values.T.cpu()
                    done += len(run)
                    if progress is not None:
                        progress(done, len(sets) * len(self.pairs))
        self._require_finite(found)
        return found

    def _require_finite(self, found: Readings) -> None:
        runs = {
            "the source run": found.whole[None],
            "the run with no edge": found.nothing[None],
            "a set of edges": found.sets,
        }
        for run, values in runs.items():
            if not np.isfinite(values).all():
                _, t, pair = np.argwhere(~np.isfinite(values))[0].tolist()
                raise ReadoutError(
                    f"readout target {self.readout.names[t]!r} is NaN or infinite for {run} on pair {pair}; read something that stays "
                    f"finite, also where edges carry {CARRIES[self.ablation]}."
                )

    def kept(self, edges: EdgeSet) -> list[Bool[Tensor, " edge"]]:
        """A set of edges, cut by cut."""
        return list(torch.from_numpy(edges).split([len(cut) for cut in self.cuts]))

    def _reference_runs(self) -> Iterator[tuple[slice, PairRun]]:
        pairs = self.pairs if self.reference is None else Pairs(self.reference, self.reference)
        return pair_runs(self.vae, pairs, self.wiring)


def checked_circuit(circuit: object) -> nx.DiGraph:
    """The circuit, refused where it is none.

    Raises:
        CircuitError: no DiGraph, or one of another schema.
    """
    if (
        not isinstance(circuit, nx.DiGraph)
        or circuit.is_multigraph()
        or circuit.graph.get("schema", CIRCUIT_SCHEMA) != CIRCUIT_SCHEMA
    ):
        raise CircuitError(f"expected a circuit (networkx.DiGraph of schema {CIRCUIT_SCHEMA!r}), got {circuit!r}.")
    return circuit


def found_on(circuit: nx.DiGraph, readings: Readings, readout: Readout) -> bool:
    """Whether a circuit was found on these pairs: on others, or with edges at rest that carry something else, TE is another number."""
    recorded = circuit.graph.get("total_effect") or {}
    means = zip(readout.names, readings.total.mean(axis=1).tolist(), strict=True)
    known = [(recorded[name]["mean"], mean) for name, mean in means if name in recorded]
    return any(mean for _, mean in known) and all(np.isclose(a, b, rtol=1e-5, atol=0.0) for a, b in known)
