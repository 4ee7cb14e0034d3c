"""The only module that touches nnsight beyond `NNsight` and `trace`: safe names, threads, batching, the tracer.

Written against nnsight 0.8.1, whose extension points change between minor versions; keeping them here means one file to mend.

Importing nnsight has three effects on the whole process that no wrapper can undo. A backward pass must not share a line with a
`with` (`with torch.enable_grad(): loss.backward()` silently does nothing; two lines work), `.save` is mounted on `object`, and
the C function `backtrace` is patched.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from nnsight.intervention.batching import Batcher, SkipParts
from nnsight.intervention.envoy import Envoy as Envoy
from nnsight.intervention.eproperty import eproperty as eproperty
from nnsight.intervention.interleaver import EarlyStopException, Interleaver, OutOfOrderError
from nnsight.intervention.source import Controller, SourceNotAvailable as SourceNotAvailable
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor, nn

from nnsight_vae.errors import DataError, SiteError
from nnsight_vae.layout import site_name
from nnsight_vae.trees import map_tensors

if TYPE_CHECKING:
    from nnsight_vae.vae import VAE

SLOTS = ("forward", "__nnsight__")  # what nnsight writes into an instrumented module's __dict__
_ABSENT = object()


def instrumented(module: nn.Module) -> bool:
    """Whether nnsight's controller sits in the module's `forward` slot."""
    return isinstance(module.__dict__.get("forward"), Controller)


class SiteOrderError(SiteError, OutOfOrderError):
    """A site was asked for after the run had passed it, or is not reached by this trace."""


class VAEEnvoy(Envoy):
    """An envoy on which a submodule can never displace nnsight's own attributes (`path`, `skip`, `trace`, ...).

    Such a submodule is reached as `E_<name>`, or by its site: `vae.envoy("path")`.
    """

    def _wrap_envoy(self, name: str, module: nn.Module) -> Envoy:
        # nnsight moves only names that are data descriptors (input, output); a submodule called `path` would overwrite the
        # string every location is built from, and silently disable this branch of the tree.
        if name not in _RESERVED:
            return super()._wrap_envoy(name, module)
        kept = self.__dict__.get(name, _ABSENT)
        envoy = super()._wrap_envoy(name, module)
        if kept is _ABSENT:
            self.__dict__.pop(name, None)
        else:
            object.__setattr__(self, name, kept)
        object.__setattr__(self, f"{self.OVERLOAD_PREFIX}{name}", envoy)
        return envoy

    def __setattr__(self, name: str, value: Any) -> None:
        # Replacing the envoy would drop the write without a word, and leave the site unreachable from then on.
        if isinstance(self.__dict__.get(name), Envoy) and not isinstance(value, nn.Module | Envoy):
            raise SiteError(
                f"{name!r} is a module, not its value: assign .{name}.output = ... (or write .{name}.output[...] = ...)."
            )
        super().__setattr__(name, value)


# `input` and `output` are left to nnsight's own handling of them.
_RESERVED = (set(dir(Envoy)) | set(vars(Envoy(nn.Identity())))) - {"input", "inputs", "output", "source"}


class VAEInterleaver(Interleaver):
    """Interleaves on one thread only, and keeps a value that was handed out from changing afterwards."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self.overwritten: set[str] = set()  # locations whose value later code writes into, or shares memory with
        self.visit = 0  # which arrival of the run at a location is being served
        super().__init__()

    # nnsight's workers are greenlets of the tracing thread. To every other thread that runs the module meanwhile, this trace
    # must look as if it were not there, or its workers are switched to from a foreign thread.
    @property
    def interleaving(self) -> bool:
        """Whether this thread is inside a trace."""
        return self._thread == threading.get_ident()

    @interleaving.setter
    def interleaving(self, value: bool) -> None:
        self._thread = threading.get_ident() if value else None

    def handle(self, provider: str, value: Any) -> Any:
        """Serve a location; the model goes on with a copy where what follows would write into what was served."""
        if provider not in self.parked:
            return super().handle(provider, value)
        self.visit += 1
        try:
            value = super().handle(provider, value)
        except EarlyStopException as stop:
            # Its traceback leads to a frame that holds it, and on to every activation in reach: they would stay until the garbage
            # collector comes by.
            stop.__dict__.clear()
            raise stop.with_traceback(None) from None
        return map_tensors(torch.clone, value) if provider in self.overwritten else value

    @contextmanager
    def stood_down(self) -> Iterator[None]:
        """Plain calls inside a trace's block: nothing they run is mistaken for the traced run."""
        if not self.interleaving:
            yield
            return
        self.interleaving = False
        try:
            yield
        finally:
            self.interleaving = True


class VAEBatcher(Batcher):
    """Row scoping that is safe for VAEs when several invokes share one run.

    The stock batcher crashes on scalar losses and on diffusers outputs, does not scope dataclass outputs or token-flattened
    rows (VQ), takes a codebook whose length equals the batch for a batch, and re-concatenates the whole batch on every write.
    A tensor whose leading axis is a multiple of the batch is read as batch-major rows; parameters and buffers, and views of
    them, never are.

    Not told apart: a table that a module computes afresh and whose length happens to be a multiple of the batch. Not scoped:
    objects that are no containers (a `torch.distributions` object reaches every invoke whole). Read such values in a trace with
    one input.
    """

    def __init__(self, envoy: Envoy, kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(envoy, kwargs)
        self._copies: dict[int, Tensor] = {}  # id -> a copy of a value, made in the visit below and owned by us
        self._visit = -1

    def narrow(self, value: Any, group: list[int] | None) -> Any:
        """The rows of `value` that belong to one invoke (views)."""
        if not self.batching or group is None:
            self._copies.clear()  # handed out whole: the next write must not show in it
            return value
        return map_tensors(lambda tensor: self._narrow(tensor, group), value)

    def widen(self, full: Any, group: list[int] | None, edited: Any) -> Any:
        """`full` with one invoke's rows replaced by `edited`."""
        if isinstance(full, Tensor) and not isinstance(edited, Tensor):
            raise DataError(
                f"a site takes a tensor, got {type(edited).__name__}; assign torch.full_like(site.output, value), or write into "
                "it: site.output[:] = value."
            )
        if not self.batching or group is None:
            return edited
        return map_tensors(lambda whole, part: self._widen(whole, group, part), full, edited)

    def assemble_skip(self, running: Any) -> Any:
        """The output of a module that every invoke skipped, from their replacements."""
        if not isinstance(running, SkipParts):
            return running
        parts = sorted(running.parts, key=lambda part: part[0][0])
        sizes = [group[1] for group, _ in parts]
        if sum(sizes) != self.total:
            raise DataError("a skip needs every invoke of the trace to skip that module, or none: they share one run.")
        return map_tensors(lambda *tensors: _stacked(tensors, sizes), *(value for _, value in parts))

    def _rows(self, tensor: Tensor, group: list[int]) -> tuple[int, int] | None:
        if tensor.ndim == 0 or len(tensor) == 0 or not self.total or len(tensor) % self.total:
            return None
        # A learned row expanded over the batch is rows of the batch; any other view of a weight is a table.
        if tensor.stride(0) != 0 and tensor.untyped_storage().data_ptr() in self._weights:
            return None
        multiple = len(tensor) // self.total
        return group[0] * multiple, group[1] * multiple

    @property
    def _weights(self) -> set[int]:
        if "_weight_storages" not in self.__dict__:
            module = self.envoy._module
            tensors = [*module.parameters(), *module.buffers()]
            self._weight_storages = {t.untyped_storage().data_ptr() for t in tensors} - {0}
        return self._weight_storages

    def _narrow(self, tensor: Tensor, group: list[int]) -> Tensor:
        rows = self._rows(tensor, group)
        if rows is None:
            return tensor
        view = tensor.narrow(0, *rows)
        view._nnsight_batch = True  # type: ignore[attr-defined]  # nnsight's backward hooks look for it
        return view

    def _widen(self, full: Tensor, group: list[int], edited: Tensor) -> Tensor:
        rows = self._rows(full, group)
        if rows is None:
            return edited
        target = full.narrow(0, *rows)
        if edited.shape != target.shape:
            raise DataError(
                f"a write inside an invoke must keep its rows: expected shape {tuple(target.shape)}, got {tuple(edited.shape)}."
            )
        if full.requires_grad or edited.requires_grad:
            start, count = rows
            tail = full.narrow(0, start + count, len(full) - start - count)
            return torch.cat([full.narrow(0, 0, start), edited.to(full.dtype), tail])
        if edited.data_ptr() == target.data_ptr() and edited.stride() == target.stride():
            return full  # edited in place already
        return self._copied_once(full, rows, edited)

    def _copied_once(self, full: Tensor, rows: tuple[int, int], edited: Tensor) -> Tensor:
        """The first writer of a value copies it and later ones reuse the copy: K writes cost one copy of the batch, not K."""
        # Only within one visit: further down an identity module may hand on the very tensor that was saved here.
        if self._visit != self.envoy.interleaver.visit:
            self._copies, self._visit = {}, self.envoy.interleaver.visit
        if id(full) not in self._copies:
            full = full.clone()
            self._copies[id(full)] = full
        full.narrow(0, *rows).copy_(edited)
        return full


def _stacked(tensors: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
    if tensors[0].ndim == 0:
        return tensors[-1]
    rows = [len(tensor) for tensor in tensors]
    if any(len(tensor) * sizes[0] != rows[0] * size for tensor, size in zip(tensors, sizes, strict=True)):
        raise DataError(
            f"invokes of {sizes} rows skipped a module with values of {rows} rows; keep each invoke's rows."
        )
    return torch.cat(tensors)


class VAETracer(InterleavingTracer):
    """A trace that holds the VAE's lock, runs in eval mode, and words ordering mistakes in terms of sites."""

    def execute(self, code: CodeType) -> None:
        """Run the block with the model held, then leave the model as it was."""
        vae: VAE = self.envoy
        with vae.held():
            try:
                super().execute(code)
            except ValueError as error:
                if "outside of interleaving" not in str(error):
                    raise
                raise DataError(
                    "this trace has no input, so nothing runs in it: open it with vae.trace(x), or give inputs with tracer.invoke(x)."
                ).with_traceback(error.__traceback__) from None
            except OutOfOrderError as error:
                if isinstance(error, SiteError):
                    raise
                # Not bound to a name: an exception that its own frame refers to would keep the model until the next collection.
                raise SiteOrderError(_order_message(vae, self.fn, str(error))).with_traceback(
                    error.__traceback__
                ) from None


def _order_message(vae: VAE, fn: Any, text: str) -> str:
    location = text.split("'")[1] if text.count("'") >= 2 else text
    wanted = site_name(location.removeprefix("vae.").rsplit(".output", 1)[0].rsplit(".input", 1)[0])
    run = "vae.trace(x)" if fn == "__call__" else f"vae.trace(..., fn={fn!r})"
    order = ", ".join(vae.sites) if vae.probed else "see vae.sites"
    return (
        f"{wanted!r} was asked for after this run had passed it, or is not reached by {run}. Inside one trace, read and write sites "
        f"in execution order: {order}."
    )
