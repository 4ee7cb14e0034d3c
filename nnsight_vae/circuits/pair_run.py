"""The two clean runs of some pairs, and what every layer of the chain took in and gave out in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.contributions import apply, port_axis, with_bias
from nnsight_vae.circuits.layers import Chain
from nnsight_vae.engine import CHUNK_BYTES, MIN_ROWS, checked_batch
from nnsight_vae.errors import CircuitError, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import CleanRun, clean_run, trace_events
from nnsight_vae.vae import VAE

_EXACT = 1e-4  # relative: how well a layer's output must be reproduced from its input


@dataclass(frozen=True)
class PairRun:
    """Some pairs, run on both sides.

    Attributes:
        chain: the columns of the model.
        base, source: the clean runs.
        base_inputs, source_inputs: what reads each column takes in (the next layer's input; at the end, what the
            readout reads), one tensor per column.
    """

    chain: Chain
    base: CleanRun
    source: CleanRun
    base_inputs: tuple[Tensor, ...]
    source_inputs: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.base)

    def change(self, column: int) -> Tensor:
        """Change from base to source of the column as its reader sees it."""
        return self.source_inputs[column] - self.base_inputs[column]

    def reversed(self) -> PairRun:
        """The same pairs with base and source exchanged."""
        return PairRun(self.chain, self.source, self.base, self.source_inputs, self.base_inputs)


def pair_runs(vae: VAE, pairs: Pairs, chain: Chain) -> Iterator[tuple[slice, PairRun]]:
    """Chunks of the pairs, small enough for all activations to stay in memory, with their runs.

    Raises:
        CircuitError: a layer's output is not what its weight makes of its input, or something changes at its input that
            no unit of the column before it reaches.
    """
    base, eps = checked_batch(vae, pairs.base, pairs.eps)
    source, _ = checked_batch(vae, pairs.source, None)
    largest = max(torch.Size(f.shape[1:]).numel() for f in vae.layout(base).firings.values() if f.shape)
    step = max(MIN_ROWS, CHUNK_BYTES // (largest * base.element_size()))
    for start in range(0, len(base), step):
        rows = slice(start, min(start + step, len(base)))
        noise = None if eps is None else eps[rows]
        with torch.no_grad():
            clean, other = (clean_run(vae, x[rows], noise) for x in (base, source))
            run = PairRun(chain, clean, other, _inputs(vae, clean, chain), _inputs(vae, other, chain))
        _check_layers(run)
        yield rows, run


def _inputs(vae: VAE, run: CleanRun, chain: Chain) -> tuple[Tensor, ...]:
    layout = vae.layout(run.x)
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[], None]:
        return lambda: kept.__setitem__(path, vae.envoy_at(path).input)

    readers = [column.paths[0] for column in chain.columns[1:]]
    trace_events(
        vae, "__call__", (run.x,), [(layout.firings[path].started, keep(path)) for path in readers], eps=run.eps
    )
    return (*(kept[path] for path in readers), run.outputs[layout.paths[chain.reads]])


def _check_layers(run: PairRun) -> None:
    for i, (column, layers) in enumerate(zip(run.chain.columns, run.chain.layers, strict=True)):
        for path, layer in zip(column.paths, layers, strict=False):
            computed, given = with_bias(layer, apply(layer, run.base_inputs[i - 1])), run.base.outputs[path]
            if computed.shape != given.shape or not torch.allclose(
                computed, given, rtol=_EXACT, atol=_EXACT * float(given.abs().max())
            ):
                raise CircuitError(
                    f"the output of {path.removeprefix('model.')!r} is not what a {type(layer).__name__} makes of its input with this "
                    "weight and bias (an overridden forward, or a hook), so its edges cannot be told apart."
                )
        change = run.change(i)
        axis = port_axis(run.chain.layers[i + 1][0], change) if i + 1 < len(run.chain.layers) else 1
        orphan = column.ports.to(change.device) < 0
        if bool(orphan.any()) and bool(change.movedim(axis, 0)[orphan].any()):
            raise CircuitError(
                f"an input channel after {column.paths[0].removeprefix('model.')!r} changes between base and source though no unit reaches it."
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
