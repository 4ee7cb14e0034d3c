"""One plain forward with hooks: which modules fire, in what order, how often, and what they return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Conv",), "conv"),
    (("Linear", "Bilinear"), "linear"),
    (("Norm",), "norm"),
    (("Pool", "Upsample"), "pool"),
    (("Flatten", "Unflatten", "Reshape", "View", "PixelShuffle", "PixelUnshuffle"), "reshape"),
)
ROWS = 2  # rows of a probe: enough to tell the batch axis from an axis of length one


@dataclass
class Firing:
    """One module's part in a probe run.

    Attributes:
        path: module path inside the wrapper module.
        started, finished: positions in the sequence of all module starts and ends.
        calls: how often it fired.
        shape: shape of its output `[rows, ...]`, or None where it is not one float tensor with one row per example.
        rewritten: its output was changed in place by what came after it.
    """

    path: str
    module: nn.Module
    started: int
    finished: int = -1
    calls: int = 0
    shape: tuple[int, ...] | None = None
    rewritten: bool = False
    _kept: tuple[Tensor, int] | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """What the module is, in one word."""
        if next(self.module.children(), None) is not None:
            return "container"
        name = type(self.module).__name__
        for parts, kind in _KINDS:
            if any(part in name for part in parts):
                return kind
        if type(self.module).__module__ == "torch.nn.modules.activation":
            return "activation"
        return "other"

    @property
    def axis(self) -> int:
        """The channel axis of the output: last for Linear-like modules, else 1."""
        return len(self.shape) - 1 if self.shape and self.kind in ("linear",) else 1


def probe(root: nn.Module, example: Tensor, **kwargs: Any) -> dict[str, Firing]:
    """Run `root(example)` once and report every module that fired, in order of completion.

    The global random state is left as it was.
    """
    firings: dict[nn.Module, Firing] = {}
    clock = iter(range(10**9))
    with recording(root, firings, clock), torch.no_grad(), torch.random.fork_rng(devices=[]):
        root(example, **kwargs)
    for firing in firings.values():
        if firing._kept is not None:
            tensor, version = firing._kept
            firing.rewritten = tensor._version != version
            firing._kept = None
    done = [f for f in firings.values() if f.finished >= 0 and f.path]
    return {f.path: f for f in sorted(done, key=lambda f: f.finished)}


@contextmanager
def recording(root: nn.Module, firings: dict[nn.Module, Firing], clock: Iterator[int]) -> Iterator[None]:
    """Temporary forward hooks that fill `firings`; removed on exit."""
    handles = []
    for path, module in root.named_modules():

        def before(module: nn.Module, args: Any, path: str = path) -> None:
            if module not in firings:
                firings[module] = Firing(path, module, started=next(clock))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            firing = firings[module]
            firing.calls += 1
            firing.finished = next(clock)
            if isinstance(output, Tensor) and output.is_floating_point() and output.ndim >= 2 and len(output) == ROWS:
                firing.shape = tuple(output.shape)
                firing._kept = (output, output._version)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def candidate_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Input shapes (without the batch axis) to try when the user has not shown an input yet, likeliest first."""
    shapes: list[tuple[int, ...]] = []
    for name in ("input_shape", "image_shape", "img_shape", "input_dim"):
        value = getattr(model, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            shapes.append((value,))
        elif isinstance(value, tuple | list | torch.Size) and value and all(isinstance(v, int) for v in value):
            shapes.append(tuple(value))
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if isinstance(first, nn.Linear):
        shapes.append((first.in_features,))
    elif isinstance(first, nn.Conv2d):
        shapes += [(first.in_channels, size, size) for size in (64, 32, 28, 128, 96, 16, 8, 224, 256)]
    return shapes
