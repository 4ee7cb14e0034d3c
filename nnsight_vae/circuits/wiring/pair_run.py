"""The two clean runs of some pairs, and what every layer took in and gave out in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.wiring.contributions import Linear, apply, port_axis, with_bias
from nnsight_vae.circuits.wiring.local_maps import NODES, Part, State, moved_alone, parts_between
from nnsight_vae.circuits.wiring.nodes import Route
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.engine import CHUNK_BYTES, MIN_ROWS, checked_batch
from nnsight_vae.errors import CircuitError, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import CleanRun, clean_run
from nnsight_vae.vae import VAE

_EXACT = 1e-4  # relative: how well a layer's output must be reproduced from its input
_CHECKED = 4  # examples on which that is looked at: a layer is what it says, or it is not


@dataclass(frozen=True)
class PairRun:
    """Some pairs, run on both sides.

    Attributes:
        wiring: the columns of the model.
        base, source: the clean runs.
        base_inputs, source_inputs: what each column's module takes in (the images, for the first); last, what the readout reads.
    """

    wiring: Wiring
    base: CleanRun
    source: CleanRun
    base_inputs: tuple[Tensor, ...]
    source_inputs: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.base)

    def taken(self, reader: int) -> Tensor:
        """Change from base to source of what a column's module takes in; the number after the last is the readout."""
        return self.source_inputs[reader] - self.base_inputs[reader]

    def given(self, column: int) -> Tensor:
        """Change from base to source of what a column's module gives: of the pre-activations of its nodes."""
        path = self.wiring.columns[column].path
        return self.source.outputs[path] - self.base.outputs[path]

    def parts(self, reader: int) -> Iterator[Part]:
        """The change of what a reader takes in, part by part, each due to other nodes; they sum to `taken`."""
        return parts_between(self.base, self.wiring, reader, *self._ends(reader))

    def moved_alone(self, reader: int, route: Route, node: int) -> Tensor:
        """Change of what a reader takes in when one node alone goes from base to source."""
        return moved_alone(self.base, self.wiring, reader, route, node, *self._ends(reader))

    def _ends(self, reader: int) -> tuple[State, State]:
        """What a reader's parents give and what it takes in, on both sides."""
        parents = {route.parent: self.wiring.columns[route.parent].path for route in self.wiring.routes(reader)}
        sides = ((self.base, self.base_inputs), (self.source, self.source_inputs))
        base, source = (
            State({parent: run.outputs[path] for parent, path in parents.items()}, inputs[reader])
            for run, inputs in sides
        )
        return base, source

    def reversed(self) -> PairRun:
        """The same pairs with base and source exchanged."""
        return PairRun(self.wiring, self.source, self.base, self.source_inputs, self.base_inputs)


def pair_runs(vae: VAE, pairs: Pairs, wiring: Wiring) -> Iterator[tuple[slice, PairRun]]:
    """Chunks of the pairs, small enough for all activations to stay in memory, with their runs.

    Raises:
        CircuitError: a layer's output is not what its weight makes of its input, or something changes at its input that
            no unit of a column before it reaches.
    """
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    source, _ = checked_batch(vae, pairs.source, None)
    largest = max(torch.Size(f.shape[1:]).numel() for f in vae.layout(base).firings.values() if f.shape)
    step = max(MIN_ROWS, CHUNK_BYTES // (largest * base.element_size()))
    readers = [column.path for column in wiring.columns] + [wiring.reads]
    if any(not wiring.is_plain(i) and path != "latent.z" for i, path in enumerate(readers)):  # what leads to z is small
        step = max(1, step // NODES)  # a path through a local map takes all its nodes at once
    for start in range(0, len(base), step):
        rows = slice(start, min(start + step, len(base)))
        noise = None if eps is None else eps[rows]
        with torch.no_grad():
            (clean, taken), (other, taken_by_other) = (_run(vae, x[rows], noise, wiring) for x in (base, source))
            run = PairRun(wiring, clean, other, taken, taken_by_other)
        _check_layers(run)
        _check_routes(run)
        yield rows, run


def _run(vae: VAE, x: Tensor, eps: Tensor | None, wiring: Wiring) -> tuple[CleanRun, tuple[Tensor, ...]]:
    """A clean run, and what each column's module and the readout take in in it."""
    layout, kept = vae.layout(x), dict[str, Tensor]()

    def keep(path: str) -> Callable[[], None]:
        return lambda: kept.__setitem__(path, vae.envoy_at(path).input)

    readers = [column.path for column in wiring.columns]
    run = clean_run(vae, x, eps, also=[(layout.firings[path].started, keep(path)) for path in readers])
    return run, (*(kept[path] for path in readers), run.outputs[layout.paths[wiring.reads]])


def _is_made_by(layer: Linear, taken: Tensor, given: Tensor) -> bool:
    """Whether an output is what the layer's weight and bias make of an input."""
    try:
        computed = with_bias(layer, apply(layer, taken))
    except RuntimeError:  # the input does not even fit: the layer pads or reshapes it on its own
        return False
    close = _EXACT * float(given.abs().max())
    return computed.shape == given.shape and torch.allclose(computed, given, rtol=_EXACT, atol=close)


def _check_layers(run: PairRun) -> None:
    for taken, column in zip(run.base_inputs, run.wiring.columns, strict=False):
        if column.layer is None:
            continue
        given = run.base.outputs[column.path][:_CHECKED]
        if not _is_made_by(column.layer, taken[:_CHECKED], given):
            raise CircuitError(
                f"the output of {column.path.removeprefix('model.')!r} is not what a {type(column.layer).__name__} makes of its input "
                "with this weight and bias (an overridden forward, or a hook), so its edges cannot be told apart."
            )


def _check_routes(run: PairRun) -> None:
    for reader in range(1, len(run.base_inputs)):
        change, columns = run.taken(reader), run.wiring.columns
        layer = columns[reader].layer if reader < len(columns) else None
        reached = torch.stack([route.reach.any(0) for route in run.wiring.routes(reader)]).any(0)
        orphan = ~reached.to(change.device)
        if bool(orphan.any()) and bool(change.movedim(port_axis(layer, change), 0)[orphan].any()):
            where = f"layer {columns[reader].path.removeprefix('model.')!r}" if layer is not None else "the readout"
            raise CircuitError(
                f"an input channel of {where} changes between base and source though no unit of "
                f"{', '.join(repr(columns[r.parent].path.removeprefix('model.')) for r in run.wiring.routes(reader))} reaches it."
            )


def read(readout: Readout, values: Tensor) -> Float[Tensor, "n target"]:
    """The readout, refused where it does not give one number per example and target.

    Raises:
        ReadoutError: naming the shape it returned.
    """
    result = readout(values)
    expected = (len(values), len(readout.names))
    if not isinstance(result, Tensor) or tuple(result.shape) != expected:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ReadoutError(
            f"the readout {type(readout).__name__} returned {got}, expected {expected}: one number an example and name."
        )
    return result
