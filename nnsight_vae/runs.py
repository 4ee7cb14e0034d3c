"""Runs of a VAE inside nnsight traces: a clean run remembered site by site, and runs that start again at any site.

A run that starts at a site skips every module that had finished by then and hands on what those modules returned in the clean
run. Only the suffix below the site is computed, and the batch may *grow* at the site: n examples go in, any rows of them come
out, each as often as there are interventions to try on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.formats import is_channels_last
from nnsight_vae.kernels import kernel_events
from nnsight_vae.layout import Layout
from nnsight_vae.probe import Firing
from nnsight_vae.vae import VAE

Event = tuple[int, Callable[[], None]]  # when it is due in execution order, and what to do then
Write = Callable[[Tensor], Tensor]

POSTERIOR = ("latent.mu", "latent.logvar", "latent.eps")


@dataclass(frozen=True)
class CleanRun:
    """One run without interventions.

    Attributes:
        x: the inputs `[n, *image]`.
        eps: the reparameterisation noise `[n, *latent]`, or None for the posterior mean.
        outputs: module path -> what the module returned; images may have their channels last in memory.
    """

    vae: VAE
    x: Float[Tensor, "n *image"]
    eps: Float[Tensor, "n *latent"] | None
    outputs: dict[str, Any]

    def __len__(self) -> int:
        return len(self.x)

    def at(self, site: str) -> Tensor:
        """The activation of a site `[n, ...]`."""
        return self.outputs[self.vae.layout(self.x).paths[site]]


def clean_run(
    vae: VAE,
    x: Tensor,
    eps: Tensor | None = None,
    paths: Iterable[str] | None = None,
    until: int | None = None,
    also: Iterable[Event] = (),
) -> CleanRun:
    """Run the VAE without interventions, no further than needed, and keep what its modules return.

    Args:
        vae: the model.
        x: inputs `[n, *image]`.
        eps: noise `[n, *latent]`; None runs at the posterior mean.
        paths: module paths to keep; all that fire once where not given.
        until: keep what has finished by this moment of the execution order; None: everything.
        also: events on the way.
    """
    wanted = None if paths is None else set(paths)
    kept = [f for f in vae.layout(x).firings.values() if f.calls == 1 and (wanted is None or f.path in wanted)]
    if until is not None:
        kept = [f for f in kept if f.finished <= until]
    outputs: dict[str, Any] = {}

    def keep(path: str) -> Callable[[], None]:
        envoy = vae.envoy_at(path)
        return lambda: outputs.__setitem__(
            path, envoy.output
        )  # the model goes on with a copy where it would rewrite it

    if kept:
        events: list[Event] = [*also, *((f.finished, keep(f.path)) for f in kept)]
        events += _kernel_events(vae, x, -1, max(f.finished for f in kept))
        trace_events(vae, "__call__", (x,), events, eps=eps)
    return CleanRun(vae, x, eps, outputs)


def run_from(
    clean: CleanRun,
    start: str | None,
    rows: Int[Tensor, " r"] | None,
    writes: dict[str, Write],
    read: Callable[[Tensor], Tensor],
    reads: str = "output",
    taken_by: str | None = None,
) -> Tensor:
    """Run the suffix below a module on some rows of a clean run.

    Args:
        clean: the run to start from, kept at least as far as `needed_for(vae, x, start)`.
        start: path of the module to start at: the rows of its remembered output are written to and handed on. A path in the
            posterior taps starts at the posterior; None starts at the input.
        rows: the example of each row that runs, in any order and as often as wanted; None is every example once.
        writes: module path -> function from the activation `[r, ...]` to what replaces it; it may write in place.
        read: reduces the tensor at `reads` to numbers, inside the trace, so that no large activation is kept.
        reads: the site that is read; one before `latent.z` is read without running the decoder.
        taken_by: path of a module; read what it takes in, instead of `reads`.

    Returns: what `read` returned.
    """
    vae, layout = clean.vae, clean.vae.layout(clean.x)
    firings, last = layout.firings, taken_by or layout.paths[reads]
    fn, inputs, first = _entry(clean, start, rows, _decodes(layout, last))
    begun = firings[first].started
    writes = dict(writes)
    events: list[Event] = []
    reached = begun
    if start is not None and fn != "decode_posterior":
        grown = writes.pop(start, lambda value: value)(taken(clean.outputs[start], rows))
        reached = firings[start].finished
        for firing in _finished_by(firings, begun, reached):
            value = grown if firing.path == start else clean.outputs[firing.path]
            events.append((firing.started, _skip(vae, firing, value)))
    envoy, moment = vae.envoy_at(last), firings[last].started if taken_by else firings[last].finished
    for path, noise in vae._module.noise(clean.eps).items() if clean.eps is not None and "decode" not in fn else ():
        if reached < firings[path].finished <= moment:
            _chain_first(writes, path, partial(_noise_of, noise, rows))
    events += [(firings[path].finished, replace_event(vae, path, write)) for path, write in writes.items()]
    result: list[Tensor] = []
    events += _kernel_events(vae, clean.x, reached, moment)
    events.append((moment, lambda: result.append(read((envoy.input if taken_by else envoy.output).contiguous()))))
    trace_events(vae, fn, inputs, events)
    return result[0]


def taken(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows of a remembered activation. Always a copy: a view would let a patch corrupt what is remembered."""
    if rows is None:
        return tensor.clone()
    if is_channels_last(tensor):  # `index_select` itself would return them in the default order
        return tensor.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
    return tensor.index_select(0, rows)


def repeat(tensor: Tensor, copies: int) -> Tensor:
    """K copies along the batch axis."""
    return tensor.repeat(copies, *([1] * (tensor.ndim - 1)))


def needed_for(vae: VAE, x: Tensor, start: str | None) -> int:
    """The moment up to which a clean run must be kept for `run_from` to start at `start`."""
    firings = vae.layout(x).firings
    if start is None:
        return -1
    return max(firings[path].finished for path in (POSTERIOR if start in POSTERIOR else (start,)))


def start_for(vae: VAE, x: Tensor, path: str, reads: str = "output") -> str | None:
    """The latest module at or before `path` at which the batch can grow; None where that is the input itself.

    Growing inside a residual block, say, fails: the other branch still has n rows. So does a run of the decoder alone where the model
    keeps features of the encoder for it. Whether it works is tried once a module, on two rows, and remembered.
    """
    firings = vae.layout(x).firings
    before = [
        f for f in firings.values() if f.finished <= firings[path].finished and f.calls == 1 and f.shape is not None
    ]
    for firing in reversed(before):
        if firing.path == "tap_input":
            return None
        if _grows(vae, x, firing, reads):
            return firing.path
    return None


def _grows(vae: VAE, x: Tensor, firing: Firing, reads: str) -> bool:
    key = (tuple(x.shape[1:]), f"{firing.path}->{reads}")
    cache = vae._growable
    if key not in cache:
        small = clean_run(vae, repeat(x[:1], 2))
        expected = repeat(small.at(reads), 2)
        try:
            grown = run_from(
                small, firing.path, torch.arange(2, device=x.device).repeat(2), {}, lambda value: value, reads
            )
        except Exception:  # whatever the model's own code makes of a batch that grew on one branch only
            cache[key] = False
        else:
            cache[key] = grown.shape == expected.shape and torch.allclose(grown, expected, rtol=1e-4, atol=1e-5)
    return cache[key]


def _entry(clean: CleanRun, start: str | None, rows: Tensor | None, decodes: bool) -> tuple[str, Sequence[Tensor], str]:
    """Which of the wrapper's functions the run calls, on what, and the first module that fires in it."""
    firings = clean.vae.layout(clean.x).firings
    if start is None:
        return ("__call__" if decodes else "encode"), (taken(clean.x, rows),), "tap_input"
    if start in POSTERIOR and decodes:
        posterior = [taken(clean.outputs[path], rows) for path in POSTERIOR]
        return "decode_posterior", posterior, "latent.mu"
    if firings[start].finished >= firings["latent.z"].finished:
        return "decode", (clean.outputs["latent.z"],), "latent.z"
    return ("__call__" if decodes else "encode"), (clean.x,), "tap_input"


def _decodes(layout: Layout, path: str) -> bool:
    return layout.firings[path].finished >= layout.firings["latent.eps"].finished


def _finished_by(firings: dict[str, Firing], begun: int, reached: int) -> list[Firing]:
    """The largest modules that fired once, wholly between two moments, in the order in which they started."""
    inside = [f for f in firings.values() if f.calls == 1 and f.started >= begun and f.finished <= reached]
    largest: list[Firing] = []
    for firing in sorted(inside, key=lambda f: f.started):
        if not largest or firing.started > largest[-1].finished:
            largest.append(firing)
    return largest


def _noise_of(noise: Tensor, rows: Tensor | None, value: Tensor) -> Tensor:
    """The noise of each row; rows that a write has added on the way are all examples over and over."""
    first = taken(noise, rows)
    return torch.cat([first, repeat(noise, (len(value) - len(first)) // len(noise))])


def _chain_first(writes: dict[str, Write], path: str, first: Write) -> None:
    then = writes.get(path)
    writes[path] = first if then is None else lambda value: then(first(value))


def _skip(vae: VAE, firing: Firing, value: Any) -> Callable[[], None]:
    envoy = vae.envoy_at(firing.path)
    # In-place user code below would otherwise write into the remembered activation.
    fresh = (lambda: value.clone()) if firing.rewritten else (lambda: value)
    return lambda: envoy.skip(fresh())


def _kernel_events(vae: VAE, x: Tensor, begun: int, reached: int) -> list[Event]:
    """Between two moments, convolutions run the way that is fast."""
    return [(moment, event) for moment, event in kernel_events(vae, x) if begun < moment < reached]


def replace_event(vae: VAE, path: str, write: Write) -> Callable[[], None]:
    """The event that replaces what a module hands on by `write` of it."""
    envoy = vae.envoy_at(path)

    def event() -> None:
        # A copy: the same tensor may also flow down another branch (identity modules, skip connections).
        envoy.output = write(envoy.output.clone())

    return event


def trace_events(vae: VAE, fn: str, inputs: Sequence[Tensor], events: list[Event], **kwargs: Any) -> None:
    """The one place where the library opens a trace: do each event when its site is reached, and run no further."""
    ordered = [event for _, event in sorted(events, key=lambda item: item[0])]
    with vae.trace(*inputs, fn=fn, **kwargs) as tracer:
        for event in ordered:
            event()
        tracer.stop()
