"""Methods with a rule per non-linearity, refused where a model's non-linearities have none: Captum would not say so.

DeepLift and guided backpropagation work through hooks on modules. A non-linearity they have no rule for, or that is a function
and no module, they pass over without a word, and give the plain gradient there.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnsight_vae.errors import NnsightVaeError
from nnsight_vae.probe import zeros_like_input

if TYPE_CHECKING:
    from nnsight_vae.attribution.forward import CaptumForward

# What an operation is called in the autograd graph -> the modules whose hooks a rule would need.
_MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "Relu": (nn.ReLU,),
    "LeakyRelu": (nn.LeakyReLU,),
    "Elu": (nn.ELU,),
    "Sigmoid": (nn.Sigmoid,),
    "Tanh": (nn.Tanh,),
    "Softplus": (nn.Softplus,),
    "Softmax": (nn.Softmax,),
    "MaxPool2DWithIndices": (nn.MaxPool2d, nn.MaxPool1d),
    "MaxPool3DWithIndices": (nn.MaxPool3d,),
}
# Everything else counts as non-linear: an operation that is not known here is refused by name, never passed over.
_LINEAR = {
    "Add", "Sub", "Neg", "Sum", "Mean", "Cat", "Stack", "Unbind", "T", "Transpose", "Permute", "Movedim", "Expand", "Repeat", "Index",
    "Gather", "Flip", "Roll", "Alias", "AsStrided", "Clone", "Cumsum", "Im2Col", "Col2Im", "PixelShuffle", "PixelUnshuffle", "Unfold",
    "Diagonal", "Tril", "Triu", "MaskedFill", "BackwardHookFunction",
}  # fmt: skip
_LINEAR_FAMILIES = (
    "View", "Reshape", "queeze", "Slice", "Select", "Split", "Copy", "Pad", "Upsample", "AvgPool", "BatchNorm",
)  # fmt: skip
_PRODUCTS = {
    "Mul",
    "Div",
    "Mm",
    "Mv",
    "Bmm",
    "Dot",
    "Addmm",
    "Addmv",
    "Addbmm",
    "Baddbmm",
    "Addcmul",
    "Linear",
    "Convolution",
}


def refuse_method(forward: CaptumForward, method: type[Any]) -> None:
    """Refuse a rule-based Captum method that would be wrong, or fail half-way, on what is explained.

    Args:
        forward: from `captum_forward`.
        method: `captum.attr.DeepLift`, `GuidedBackprop`, `Deconvolution`, `LRP`, their layer and neuron forms; any other passes.

    Raises:
        NnsightVaeError: names the non-linearities and what to use instead.
    """
    rules = _rules_of(method)
    if rules is None:
        return
    found = _without_rule(forward, rules)
    if method.__name__.endswith("LRP"):
        raise NnsightVaeError(
            f"{method.__name__} has rules for few layers (none for Flatten, Unflatten or ConvTranspose2d"
            f"{''.join(', nor here for ' + name for name in found)}), and a run that fails at one spoils the model for the next; use "
            "zennit's EpsilonPlus composite on vae.unwrap(), or IntegratedGradients, which needs no rules."
        )
    if found:
        raise NnsightVaeError(
            f"{method.__name__} has no rule for {', '.join(found)} between {forward.of} and {_named(forward)}, and would silently use "
            "the plain gradient there; use IntegratedGradients (nv.attribution.LatentIntegratedGradients), which needs no rules, or "
            "write each as its own torch.nn module of a kind that it knows."
        )


def refuse_silent_rules(forward: CaptumForward, hooking: Callable[..., Any]) -> None:
    """`refuse_method` for the method that is about to hook the model's modules by `hooking`, if a method is."""
    owner = getattr(hooking, "__self__", None)
    if owner is None and inspect.isfunction(hooking):  # LayerDeepLift passes a lambda over itself
        owner = inspect.getclosurevars(hooking).nonlocals.get("self")
    if owner is not None:
        refuse_method(forward, type(owner))


def _rules_of(method: type[Any]) -> set[type[nn.Module]] | None:
    """The non-linear modules a method has rules for; None where it needs none."""
    from captum.attr import LRP, DeepLift
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
    from captum.attr._core.guided_backprop_deconvnet import ModifiedReluGradientAttribution

    if issubclass(method, LRP):
        return {nn.ReLU, nn.Tanh}
    if issubclass(method, DeepLift):
        return set(SUPPORTED_NON_LINEAR)
    if issubclass(method, ModifiedReluGradientAttribution) or method.__name__ in (
        "NeuronGuidedBackprop",
        "NeuronDeconvolution",
    ):
        return {nn.ReLU}
    return None


def _without_rule(forward: CaptumForward, rules: set[type[nn.Module]]) -> list[str]:
    """The non-linear steps of a run that no rule covers, in words."""
    calls: Counter[type[nn.Module]] = Counter()

    def count(module: nn.Module, args: Any, output: Any) -> None:
        calls[type(module)] += 1

    handles = [m.register_forward_hook(count) for m in forward.modules() if not any(m.children())]
    x = zeros_like_input(forward.vae.module, forward.input_shape).repeat(
        forward.examples, *[1] * len(forward.input_shape)
    )
    try:
        with torch.enable_grad():
            steps = nonlinear_steps(forward, x.requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for step, times in sorted(steps.items()):
        modules = [module for module in _MODULES.get(step, ()) if module in rules]
        covered = sum(calls[module] for module in modules)
        if not modules:
            found.append(f"{step} ({times}x)")
        elif times > covered:
            found.append(f"{step} as a function, not as a module ({times - covered}x)")
    return found


def nonlinear_steps(forward: Callable[[Tensor], Tensor], x: Tensor) -> Counter[str]:
    """How often each non-linear operation lies between an input and an output, by its name in the autograd graph.

    Args:
        forward: the function.
        x: an input that requires grad.
    """
    # Past hooks that are on the module already: those of DeepLift take two batches.
    output = forward.forward(x) if isinstance(forward, nn.Module) else forward(x)
    depends: dict[Any, bool] = {}
    order: list[Any] = []
    waiting: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while waiting:  # post-order, without recursion: graphs are deeper than Python's stack
        node, ready = waiting.pop()
        if ready:
            depends[node] = getattr(node, "variable", None) is x or any(
                depends.get(n, False) for n, _ in node.next_functions
            )
            order.append(node)
        elif node is not None and node not in depends:
            depends[node] = False
            waiting += [(node, True), *((n, False) for n, _ in node.next_functions)]
    steps: Counter[str] = Counter()
    for node in order:
        sides = [depends.get(n, False) for n, _ in node.next_functions]
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if any(sides) and not _linear(name, sides):
            steps[name] += 1
    return steps


def _linear(name: str, sides: list[bool]) -> bool:
    """Whether an operation is linear in what depends on the input, given which of its sides do."""
    if name == "Div" and len(sides) > 1:
        return not sides[1]
    if name in _PRODUCTS:
        return sum(sides) == 1
    return name in _LINEAR or any(family in name for family in _LINEAR_FAMILIES)


def _named(forward: CaptumForward) -> str:
    return forward.explained if isinstance(forward.explained, str) else type(forward.explained).__name__
