"""What wrapping changes in a user's modules, remembered so that it can be undone exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.backends import mha

from nnsight_vae._nnsight import SLOTS, instrumented

_ABSENT = object()


class Snapshot:
    """What nnsight and the wrapper will change in a model: two slots of each module's `__dict__`, and `inplace` flags."""

    def __init__(self, model: nn.Module) -> None:
        self.slots = [(m, {slot: m.__dict__.get(slot, _ABSENT) for slot in SLOTS}) for m in model.modules()]
        self.inplace = [m for m in model.modules() if getattr(m, "inplace", False) is True]

    def disable_inplace(self) -> None:
        """Switch in-place activations off, so that a saved activation is what its site computed."""
        for module in self.inplace:
            module.inplace = False  # type: ignore[assignment]

    def restore(self) -> None:
        """Put the modules back as they were. A `forward` that was reassigned after wrapping is left alone."""
        for module in self.inplace:
            module.inplace = True  # type: ignore[assignment]
        for module, slots in self.slots:
            if instrumented(module):
                _put(module, slots)

    def clean(self, memo: dict[int, Any]) -> None:
        """Undo wrapping in a deep copy of the model; `memo` is the one the copy was made with."""
        for module in self.inplace:
            if (copied := memo.get(id(module))) is not None:
                copied.inplace = True
        for module, slots in self.slots:
            if (copied := memo.get(id(module))) is not None:
                _put(copied, {k: v if v is _ABSENT else copy.deepcopy(v, memo) for k, v in slots.items()})


def _put(module: nn.Module, slots: dict[str, Any]) -> None:
    for slot, value in slots.items():
        if value is _ABSENT:
            module.__dict__.pop(slot, None)
        else:
            module.__dict__[slot] = value


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluate in eval mode; restore each submodule's own flag afterwards, an exception included."""
    # Straight into __dict__: nn.Module.__setattr__ costs more than all the rest of this, on every forward.
    training = [m.__dict__ for m in _parts(module) if m.training]
    try:
        for flags in training:
            flags["training"] = False
        yield
    finally:
        for flags in training:
            flags["training"] = True


def _parts(module: nn.Module) -> list[nn.Module]:
    """What `module.modules()` lists, without the names it builds on the way: this runs before every forward."""
    parts = {module: None}
    waiting = [module]
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in parts:
                parts[child] = None
                waiting.append(child)
    return list(parts)


@contextmanager
def submodules_run() -> Iterator[None]:
    """Keep attention layers from PyTorch's fused path, which passes their submodules by: sites there would never be reached."""
    fused = mha.get_fastpath_enabled()
    if not fused:
        yield
        return
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(True)
