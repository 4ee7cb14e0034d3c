"""Memory formats: 2-d convolutions get their input with channels last in memory, as the kernels on CPU want it.

In torch's default order (`[n, channels, rows, columns]`, the last axis fastest) a float32 convolution on CPU first rearranges its
input, or takes a slower kernel: transposed ones with stride 2 took 1.2 to 1.5 times as long where measured. Rearranged once at the head of
a chain, everything up to the next reshape stays in that order. The numbers are the same but for the order of summation.

Only strides change, which code that calls `view` or reads memory may mind: whether a model runs that way, to the same
activations, is tried once for each input shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nnsight_vae.probe import Firing, random_state_kept
from nnsight_vae.vae import VAE

_CONVOLUTIONS = {nn.Conv2d, nn.ConvTranspose2d}
_SLACK = 1000  # units in the last place that a sum in another order may be off by


def channels_last(tensor: Tensor) -> Tensor:
    """The same numbers, `[n, channels, rows, columns]`, the channels of a position next to each other in memory."""
    return tensor.to(memory_format=torch.channels_last)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether that is how a tensor lies in memory already."""
    return tensor.ndim == 4 and channels_last(tensor).stride() == tensor.stride()


def relaid(vae: VAE, x: Tensor) -> list[Firing]:
    """The convolutions that a run without gradients gives their input with channels last, for inputs like x.

    None of them where that does not pay (no float32 on CPU), where a hook of the user's would see it, and where the model does
    something else then.
    """
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or x.dtype != torch.float32
    if plain or x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return []
    firings = vae.layout(x).firings
    if any(f.module._forward_hooks or f.module._forward_pre_hooks for f in firings.values()):
        return []
    key = tuple(x.shape[1:])
    if key not in vae._relaid:
        vae._relaid[key] = _tried(vae, x)
    return [firings[path] for path in vae._relaid[key]]


def relay_event(vae: VAE, firing: Firing) -> Callable[[], None]:
    """The event, due when a convolution starts, that lays its input out with channels last."""
    envoy = vae.envoy_at(firing.path)

    def event() -> None:
        envoy.input = channels_last(envoy.input)

    return event


def _tried(vae: VAE, x: Tensor) -> tuple[str, ...]:
    """Paths of the convolutions at the head of a chain; none where the model raises or returns anything else."""
    firings = list(vae.layout(x).firings.values())
    convolutions = [f for f in firings if type(f.module) in _CONVOLUTIONS and f.calls == 1 and len(f.taken or ()) == 4]
    if not convolutions:
        return ()
    noise = torch.rand(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    rows = torch.cat([x[:1], noise * x[:1].abs().max().clamp(min=1e-3)])
    with vae.held():
        expected, _ = _outputs(vae, rows, firings, [])
        try:
            found, heads = _outputs(vae, rows, firings, convolutions)
        except Exception:  # whatever the model's own code makes of other strides
            return ()
    same = found.keys() == expected.keys() and all(_close(found[path], expected[path]) for path in expected)
    return tuple(heads) if same else ()


def _outputs(
    vae: VAE, rows: Tensor, firings: Sequence[Firing], convolutions: Sequence[Firing]
) -> tuple[dict[str, Tensor], list[str]]:
    """What every module returns (as it is once all have run), and which of some convolutions had their input laid out anew."""
    outputs: dict[str, Tensor] = {}
    heads: list[str] = []
    with ExitStack() as stack, random_state_kept(rows.device):
        for firing in firings:

            def keep(module: nn.Module, args: Any, output: Any, path: str = firing.path) -> None:
                if isinstance(output, Tensor):
                    outputs[path] = output

            stack.callback(firing.module.register_forward_hook(keep).remove)
        for firing in convolutions:

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
