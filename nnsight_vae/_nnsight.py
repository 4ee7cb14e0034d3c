"""The only module that touches nnsight beyond `NNsight` and `trace`: taps, safe names, batching, the tracer, un-instrumenting.

Written against nnsight 0.8.1, whose extension points change between minor versions; keeping them here means one file to mend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from nnsight.intervention.batching import Batcher
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer
from torch import Tensor, nn

from nnsight_vae.errors import DataError, SiteError
from nnsight_vae.layout import site_name

if TYPE_CHECKING:
    from nnsight_vae.vae import VAE

_ABSENT = object()
_SLOTS = ("forward", "__nnsight__")  # what nnsight writes into an instrumented module's __dict__


class Tap(nn.Module):
    """Identity with a name: a place to read, write, skip or attribute a value that a function, not a module, makes."""

    def forward(self, value: Tensor) -> Tensor:
        """The value, unchanged."""
        return value


class SiteOrderError(SiteError, OutOfOrderError):
    """A site was asked for after the run had passed it, or is not reached by this trace."""


class VAEEnvoy(Envoy):
    """An envoy on which a submodule can never displace nnsight's own attributes (`path`, `skip`, `trace`, ...)."""

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


# `input` and `output` are left to nnsight's own handling of them.
_RESERVED = (set(dir(Envoy)) | set(vars(Envoy(nn.Identity())))) - {"input", "inputs", "output", "source"}


class VAEBatcher(Batcher):
    """Row scoping that is safe for VAEs when several invokes share one run.

    The stock batcher crashes on scalar losses and on diffusers outputs, does not scope dataclass outputs or token-flattened
    rows (VQ), takes a codebook whose length equals the batch for a batch, and re-concatenates the whole batch on every write.
    A tensor whose leading axis is a multiple of the batch is read as batch-major rows; parameters and buffers never are.
    """

    def narrow(self, value: Any, group: list[int] | None) -> Any:
        """The rows of `value` that belong to one invoke (views)."""
        if not self.batching or group is None:
            return value
        return _map_tensors(lambda tensor: self._narrow(tensor, group), value)

    def widen(self, full: Any, group: list[int] | None, edited: Any) -> Any:
        """`full` with one invoke's rows replaced by `edited`."""
        if not self.batching or group is None:
            return edited
        return _map_tensors(lambda whole, part: self._widen(whole, group, part), full, edited)

    def _rows(self, tensor: Tensor, group: list[int]) -> tuple[int, int] | None:
        if tensor.ndim == 0 or len(tensor) == 0 or not self.total or len(tensor) % self.total:
            return None
        if isinstance(tensor, nn.Parameter) or id(tensor) in self._buffers:
            return None
        multiple = len(tensor) // self.total
        return group[0] * multiple, group[1] * multiple

    @property
    def _buffers(self) -> set[int]:
        if "_buffer_ids" not in self.__dict__:
            self._buffer_ids = {id(buffer) for buffer in self.envoy._module.buffers()}
        return self._buffer_ids

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
        start, count = rows
        if len(edited) != count:
            raise DataError(f"a write inside an invoke must keep its {count} rows, got shape {tuple(edited.shape)}.")
        if full.requires_grad or edited.requires_grad:
            tail = full.narrow(0, start + count, len(full) - start - count)
            return torch.cat([full.narrow(0, 0, start), edited.to(full.dtype), tail])
        target = full.narrow(0, start, count)
        if (
            edited.data_ptr() == target.data_ptr()
            and edited.shape == target.shape
            and edited.stride() == target.stride()
        ):
            return full  # edited in place already
        if not getattr(full, "_owned_by_batcher", False):
            full = full.clone()  # the first writer copies, later ones reuse the copy: K writes cost one copy, not K
            full._owned_by_batcher = True  # type: ignore[attr-defined]
        full.narrow(0, start, count).copy_(edited)
        return full


def _map_tensors(function: Callable[..., Any], *values: Any) -> Any:
    """Parallel map over the tensors of like structures: sequences, named tuples, mappings, dataclasses, diffusers outputs."""
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first) if f.init]
        parts = {name: _map_tensors(function, *(getattr(v, name) for v in values)) for name in names}
        # A diffusers output is a dict and a dataclass; it must be rebuilt from its fields, not copied as a dict.
        return type(first)(**parts) if isinstance(first, dict) else dataclasses.replace(first, **parts)
    if isinstance(first, dict):
        items = {key: _map_tensors(function, *(v[key] for v in values)) for key in first}
        return items if type(first) is dict else type(first)(items)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(_map_tensors(function, *parts) for parts in zip(*values, strict=True)))
    if isinstance(first, list | tuple):
        return type(first)(_map_tensors(function, *parts) for parts in zip(*values, strict=True))
    return values[-1]


class VAETracer(InterleavingTracer):
    """A trace that holds the VAE's lock, runs in eval mode, and words ordering mistakes in terms of sites."""

    # Only __exit__ is overridden: nnsight finds the user's frame by counting frames up from __enter__.
    def __exit__(self, exc_type: Any, exc_value: Any, exc_traceback: Any) -> bool:
        """Run the block with the model held, then leave the model as it was."""
        vae: VAE = self.envoy  # type: ignore[assignment]
        fn = self.fn
        with vae.held():
            try:
                return super().__exit__(exc_type, exc_value, exc_traceback)
            except OutOfOrderError as error:
                if isinstance(error, SiteError):
                    raise
                raise SiteOrderError(_order_message(vae, fn, str(error))) from error


def _order_message(vae: VAE, fn: Any, text: str) -> str:
    location = text.split("'")[1] if text.count("'") >= 2 else text
    path = location.removeprefix("vae.").rsplit(".output", 1)[0].rsplit(".input", 1)[0]
    wanted = site_name(path)
    run = "vae.trace(x)" if fn == "__call__" else f"vae.trace(..., fn={fn!r})"
    order = ", ".join(vae.sites) if vae.probed else "see vae.sites"
    return (
        f"{wanted!r} was asked for after this run had passed it, or is not reached by {run}. Inside one trace, read and write sites "
        f"in execution order: {order}."
    )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluate in eval mode; restore each submodule's own flag afterwards, an exception included."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


class Snapshot:
    """What wrapping changes in a user's modules, kept so that `restore` undoes exactly that."""

    def __init__(self, model: nn.Module) -> None:
        self.slots = [(m, {slot: m.__dict__.get(slot, _ABSENT) for slot in _SLOTS}) for m in model.modules()]
        self.inplace = [m for m in model.modules() if getattr(m, "inplace", False) is True]

    def disable_inplace(self) -> None:
        """Switch in-place activations off, so that a saved activation is what its site computed."""
        for module in self.inplace:
            module.inplace = False  # type: ignore[assignment]

    def restore(self) -> None:
        """Put the modules back as they were."""
        for module in self.inplace:
            module.inplace = True  # type: ignore[assignment]
        for module, slots in self.slots:
            for slot, value in slots.items():
                if value is _ABSENT:
                    module.__dict__.pop(slot, None)
                else:
                    module.__dict__[slot] = value


def strip(model: nn.Module, snapshot: Snapshot) -> None:
    """Remove from a *copy* of a wrapped model what `snapshot` says wrapping put into the original (same module order)."""
    inplace = {id(m) for m in snapshot.inplace}
    for copied, (original, slots) in zip(model.modules(), snapshot.slots, strict=True):
        if id(original) in inplace:
            copied.inplace = True  # type: ignore[assignment]
        for slot, value in slots.items():
            if value is _ABSENT:
                copied.__dict__.pop(slot, None)
