"""One plain forward with hooks: which modules fire, in what order, how often, and what they return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
        returned: what it returned, in words.
        rewritten: its output was changed in place by what came after it.
        shared: a module that finished later returned the same memory (an identity, a view, a container's last child).
        source: path of the module without children whose output, as it was made, is this one's input; None where code in between
            made the input. Functions that view or rewrite the memory in place go unseen.
        taken: shape of its input `[rows, ...]`, or None where it did not take one tensor first.
        passes: it returned the memory it took in: an identity, a reshape.
    """

    path: str
    module: nn.Module
    started: int
    finished: int = -1
    calls: int = 0
    shape: tuple[int, ...] | None = None
    returned: str = "nothing"
    rewritten: bool = False
    shared: bool = False
    source: str | None = None
    taken: tuple[int, ...] | None = None
    passes: bool = False
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
    def overwritten(self) -> bool:
        """Whether later code, or a write at a later module, would change a reference to its output."""
        return self.rewritten or self.shared

    @property
    def axis(self) -> int:
        """The channel axis of the output: last for Linear-like modules, else 1."""
        return len(self.shape) - 1 if self.shape and self.kind in ("linear",) else 1


def probe(root: nn.Module, example: Tensor, **kwargs: Any) -> dict[str, Firing]:
    """Run `root` once on copies of the first row of `example` and report every module that fired, in order of completion.

    The global random state is left as it was.
    """
    firings: dict[nn.Module, Firing] = {}
    clock = iter(range(10**9))
    # Tensors made in inference mode keep no version counter, which is what tells that they were rewritten.
    with torch.inference_mode(False), torch.no_grad(), random_state_kept(example.device):
        rows = example[:1].expand(ROWS, *example.shape[1:]).clone()
        with recording(root, firings, clock):
            root(rows, **kwargs)
    done = sorted((f for f in firings.values() if f.finished >= 0 and f.path), key=lambda f: f.finished)
    later: set[int] = set()
    for firing in reversed(done):
        if firing._kept is not None:
            tensor, version = firing._kept
            memory = tensor.untyped_storage().data_ptr()
            firing.rewritten, firing.shared = tensor._version != version, memory in later
            later.add(memory)
    for firing in done:
        firing._kept = None
    return {f.path: f for f in done}


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Draws inside leave the global random state, the device's included, as it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def recording(root: nn.Module, firings: dict[nn.Module, Firing], clock: Iterator[int]) -> Iterator[None]:
    """Temporary forward hooks that fill `firings`; removed on exit."""
    handles = []
    makers: dict[
        tuple[int, int], str
    ] = {}  # memory and size of an output -> path of the module without children that made it
    for path, module in root.named_modules():

        def before(module: nn.Module, args: Any, path: str = path) -> None:
            if module not in firings:
                firings[module] = Firing(path, module, started=next(clock))
            if args and isinstance(args[0], Tensor) and args[0].layout is torch.strided:
                firings[module].source, firings[module].taken = makers.get(_memory(args[0])), tuple(args[0].shape)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            firing = firings[module]
            firing.calls += 1
            firing.finished = next(clock)
            firing.returned = type(output).__name__
            if isinstance(output, Tensor) and output.layout is torch.strided:
                firing.returned = f"a {output.dtype} tensor of shape {tuple(output.shape)} for {ROWS} examples"
                firing._kept = (output, output._version)
                firing.passes = bool(args) and isinstance(args[0], Tensor) and _memory(args[0]) == _memory(output)
                if next(module.children(), None) is None:
                    makers[_memory(output)] = firing.path
                if output.is_floating_point() and output.ndim >= 2 and len(output) == ROWS:
                    firing.shape = tuple(output.shape)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def zeros_like_input(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """One example of zeros in the dtype and on the device the model computes in."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *shape, dtype=reference.dtype, device=reference.device)


def candidate_inputs(model: nn.Module, stated: tuple[int, ...] | None = None) -> list[Tensor]:
    """Inputs to try when the user has not shown one yet, likeliest first: of the shape its adapter states, if it does."""
    return [zeros_like_input(model, shape) for shape in ([stated] if stated else _candidate_shapes(model))]


def _candidate_shapes(model: nn.Module) -> list[tuple[int, ...]]:
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
