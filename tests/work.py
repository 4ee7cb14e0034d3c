"""Counts the work that is done, by layer: rows that a layer's own weight is applied to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Work(TorchDispatchMode):
    """While it is active, counts how many rows every linear and convolutional layer of a model is run on.

    It looks at the operations, not at the modules: a hook on a module is a reason for the engine to run that module.

    Attributes:
        rows: path of the layer -> rows it was run on as a whole.
        partial: path of the layer -> rows that only a part of its weight was applied to.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {
            module.weight.untyped_storage().data_ptr(): (name, module.weight.numel())
            for name, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim > 1
        }
        self.copies: list[Tensor] = []  # alive, so that their memory is not mistaken
        self.rows: Counter[str] = Counter()
        self.partial: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("flip", "index") and (part := self.weights.get(args[0].untyped_storage().data_ptr())):
            # a part of a transposed convolution's weight, or all its taps, on the way into an ordinary convolution
            taken = func(*args, **(kwargs or {}))
            self.weights[taken.untyped_storage().data_ptr()] = part
            self.copies.append(taken)
            return taken
        if name == "index_put_" and (part := self.weights.get(args[2].untyped_storage().data_ptr())):
            memory = args[0].untyped_storage()  # all its taps, laid out as the weight of an ordinary convolution
            self.weights[memory.data_ptr()] = (part[0], memory.nbytes() // args[0].element_size())
            self.copies.append(args[0])
        if name in ("convolution", "mm", "addmm", "bmm", "linear"):
            data, weight = args[1:3] if name == "addmm" else args[:2]
            path, numel = self.weights.get(weight.untyped_storage().data_ptr(), (None, 0))
            if path is not None:
                (self.rows if weight.numel() == numel else self.partial)[path] += len(data)
        return func(*args, **(kwargs or {}))


def rows_run(model: nn.Module, function: Any) -> Work:
    """What `function` makes the layers of a model do."""
    with torch.no_grad(), Work(model) as work:
        function()
    return work
