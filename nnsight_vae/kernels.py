"""Kernels: convolutions that run another way than written, because that is faster on CPU; the numbers are the same but for rounding.

Two-dimensional convolutions get their input with channels last in memory (`formats`), and transposed ones of few channels run as
ordinary ones (`subpixel`), all from outside, inside a trace: the model is never written to.

Strides change, which code that calls `view` or reads memory may mind: whether a model runs that way, to the same activations, is tried
once for each input shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnsight_vae.formats import channels_last, is_channels_last
from nnsight_vae.probe import Firing, random_state_kept
from nnsight_vae.subpixel import pays, transposed
from nnsight_vae.vae import VAE

_CONVOLUTIONS = {nn.Conv2d, nn.ConvTranspose2d}
_SLACK = 1000  # units in the last place that a sum in another order may be off by


class Kernels(NamedTuple):
    """Which modules (paths) run another way.

    Attributes:
        laid: get their input with channels last; those at the head of a chain, for the others have it so already.
        phased: transposed convolutions that run as ordinary ones.
    """

    laid: tuple[str, ...] = ()
    phased: tuple[str, ...] = ()


def kernels(vae: VAE, x: Tensor) -> Kernels:
    """What runs another way in a run on inputs like x, in which no gradient by a weight is asked for.

    Nothing where that does not pay (no float32 on CPU), where a hook of the user's would see it, and where the model does something
    else then.
    """
    plain = torch.is_autocast_enabled(x.device.type) or x.dtype != torch.float32
    if plain or x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return Kernels()
    firings = vae.layout(x).firings
    if any(_is_hooked(f.module) for f in firings.values()):
        return Kernels()
    key = tuple(x.shape[1:])
    if key not in vae._kernels:
        vae._kernels[key] = _tried(vae, x)
    return vae._kernels[key]


def _is_hooked(module: nn.Module) -> bool:
    forward, backward = (
        (module._forward_hooks, module._forward_pre_hooks),
        (module._backward_hooks, module._backward_pre_hooks),
    )
    return any(map(bool, (*forward, *backward)))


def kernel_events(vae: VAE, x: Tensor) -> list[tuple[int, Callable[[], None]]]:
    """When modules that run another way start, in the execution order, and the events that make them."""
    firings, found = vae.layout(x).firings, kernels(vae, x)
    laid = [(firings[path].started, _lay(vae, path)) for path in found.laid]
    return laid + [(firings[path].started, _phase(vae, firings[path])) for path in found.phased]


def _lay(vae: VAE, path: str) -> Callable[[], None]:
    envoy = vae.envoy_at(path)

    def event() -> None:
        envoy.input = channels_last(envoy.input)

    return event


def _phase(vae: VAE, firing: Firing) -> Callable[[], None]:
    envoy, layer = vae.envoy_at(firing.path), firing.module
    return lambda: envoy.skip(transposed(layer, envoy.input))  # type: ignore[arg-type]


def _tried(vae: VAE, x: Tensor) -> Kernels:
    """What the model does not notice: all of it, the formats alone, or nothing."""
    firings = list(vae.layout(x).firings.values())
    convolutions = [f for f in firings if type(f.module) in _CONVOLUTIONS and f.calls == 1 and len(f.taken or ()) == 4]
    if not convolutions:
        return Kernels()
    noise = torch.rand(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    rows = torch.cat([x[:1], noise * x[:1].abs().max().clamp(min=1e-3)])
    phased = [f for f in convolutions if isinstance(f.module, nn.ConvTranspose2d) and pays(f.module)]
    with vae.held():
        expected, _ = _outputs(vae, rows, firings, [], [])
        for others in [phased, []] if phased else [[]]:
            laid = _unnoticed(vae, rows, firings, convolutions, others, expected)
            if laid is not None:
                return Kernels(tuple(laid), tuple(f.path for f in others))
    return Kernels()


def _unnoticed(
    vae: VAE,
    rows: Tensor,
    firings: Sequence[Firing],
    convolutions: Sequence[Firing],
    phased: Sequence[Firing],
    expected: Mapping[str, Tensor],
) -> list[str] | None:
    """The convolutions at the head of a chain, where the model returns what it does without; None where it does something else."""
    try:
        found, laid = _outputs(vae, rows, firings, [f for f in convolutions if f not in phased], phased)
    except Exception:  # whatever the model's own code makes of other strides
        return None
    same = found.keys() == expected.keys() and all(_close(found[path], expected[path]) for path in expected)
    return laid if same else None


def _outputs(
    vae: VAE, rows: Tensor, firings: Sequence[Firing], laid: Sequence[Firing], phased: Sequence[Firing]
) -> tuple[dict[str, Tensor], list[str]]:
    """What every module returns (as it is once all have run), and which of some convolutions had their input laid out anew."""
    outputs: dict[str, Tensor] = {}
    heads: list[str] = []
    with ExitStack() as stack, random_state_kept(rows.device):
        for firing in phased:

            def phase(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                return transposed(module, args[0])

            stack.callback(firing.module.register_forward_hook(phase).remove)
        for firing in firings:

            def keep(module: nn.Module, args: Any, output: Any, path: str = firing.path) -> None:
                if isinstance(output, Tensor):
                    outputs[path] = output

            stack.callback(firing.module.register_forward_hook(keep).remove)
        for firing in laid:

            def lay(module: nn.Module, args: tuple[Tensor, ...], path: str = firing.path) -> tuple[Tensor, ...]:
                if not is_channels_last(args[0]):
                    heads.append(path)
                return (channels_last(args[0]), *args[1:])

            stack.callback(firing.module.register_forward_pre_hook(lay).remove)
        vae._module(rows.clone())
    return outputs, heads


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not bool(torch.isfinite(other).all()):
        return False
    if not other.is_floating_point():
        return torch.equal(one, other)
    slack = _SLACK * torch.finfo(torch.float32).eps * max(1e-3, float(other.abs().max()))
    return bool(((one - other).abs() <= slack).all())
