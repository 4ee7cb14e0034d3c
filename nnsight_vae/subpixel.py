"""Transposed convolutions as ordinary ones: all outputs of one phase of the stride come from the same neighbouring inputs.

Input i reaches output o through kernel tap a where `o + padding = i * stride + a * dilation`. Write `o = q * stride + r`: the phase
r and the shift `i - q` decide the tap, so that an ordinary convolution gives all phases of position q as channels, which are then
put next to each other (Shi et al. 2016). The products are the same but for those with zeros, where one phase reaches further
than another, and summed in another order.

On CPU a transposed convolution writes every product out before it sums, which for few channels takes up to four times as long.
Its gradient in the input is an ordinary convolution, and fast as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nnsight_vae.formats import channels_last

_FEW = 2500  # fits timings of kernels 2 to 5 with stride 2, 8 to 128 channels in, 1 to 32 out: faster up to here, mostly slower above


def transposed(layer: nn.ConvTranspose2d, x: Float[Tensor, "n channels rows columns"]) -> Float[Tensor, "n out h w"]:
    """What a transposed convolution makes of x, channels last in memory; differentiable in x, the weights held.

    Args:
        layer: with any stride, padding, output padding, dilation and groups.
        x: its input.

    Source: Shi et al. 2016, "Real-time single image and video super-resolution using an efficient sub-pixel convolutional neural
    network", section 3.2; the shifts for any padding and dilation are worked out here.

    Example:
        >>> import torch
        >>> layer, x = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), torch.rand(1, 3, 5, 5)
        >>> bool(torch.allclose(transposed(layer, x), layer(x), atol=1e-5))
        True
    """
    differentiated = torch.is_grad_enabled() and x.requires_grad
    return _Differentiated.apply(x, layer) if differentiated else _by_phases(layer, x)


class _Differentiated(torch.autograd.Function):
    """The gradient through the convolution that the layer is the transpose of, instead of through every rearrangement."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        return _by_phases(layer, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer, (rows, columns) = ctx.layer, ctx.size
        weight = layer.weight.detach()
        pulled = F.conv2d(gradient, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return pulled[..., :rows, :columns], None  # an output padding can make room for more positions


def _by_phases(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    rows, columns = (_Axis.of(layer, axis, x.shape[2 + axis]) for axis in (0, 1))
    weight, bias = _phases(layer, rows, columns)
    out = F.conv2d(channels_last(x), weight, bias, padding=(rows.around, columns.around), groups=layer.groups)
    apart = out.movedim(1, -1)[:, rows.inside, columns.inside].unflatten(
        -1, (layer.groups, rows.stride, columns.stride, -1)
    )
    together = apart.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)
    cut = together[:, : rows.length, : columns.length]  # the last phases may reach beyond the end
    return cut.contiguous().movedim(-1, 1)


def pays(layer: nn.ConvTranspose2d) -> bool:
    """Whether that is faster on CPU, from nothing but the layer's sizes, so that results do not depend on what was timed."""
    taps = [_Axis.of(layer, axis, 1).taps * layer.stride[axis] / layer.kernel_size[axis] for axis in (0, 1)]
    zeros = taps[0] * taps[1]  # multiplications for one of the transposed, those with zeros included
    return layer.groups == 1 and zeros * layer.in_channels * layer.out_channels**2 <= _FEW


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a transposed convolution.

    Attributes:
        stride: how many phases there are.
        length: of the output.
        reach: the phase, tap and shift of every product.
        first, taps: the least shift, and how many there are from it to the greatest.
        around: zeros that the ordinary convolution puts on both sides.
        inside: the positions of its output that are wanted.
    """

    stride: int
    length: int
    reach: list[tuple[int, int, int]]
    first: int
    taps: int
    around: int
    inside: slice

    @classmethod
    def of(cls, layer: nn.ConvTranspose2d, axis: int, n: int) -> _Axis:
        """The axis for an input of n positions."""
        padding: int = layer.padding[axis]  # type: ignore[assignment]  # words are for ordinary convolutions only
        stride, dilation, kernel = layer.stride[axis], layer.dilation[axis], layer.kernel_size[axis]
        length = (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + layer.output_padding[axis] + 1
        reach = [
            (phase, tap, (phase + padding - tap * dilation) // stride)
            for phase in range(stride)
            for tap in range(kernel)
            if (phase + padding - tap * dilation) % stride == 0
        ]
        shifts = [shift for _, _, shift in reach]
        positions = -(-length // stride)
        around = max(0, -min(shifts), positions + max(shifts) - n)
        begin = around + min(shifts)
        taps = max(shifts) - min(shifts) + 1
        return cls(stride, length, reach, min(shifts), taps, around, slice(begin, begin + positions))


def _phases(layer: nn.ConvTranspose2d, rows: _Axis, columns: _Axis) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the ordinary convolution; its output channels are (group, phase of row, phase of column, channel)."""
    taps = layer.weight.unflatten(0, (layer.groups, -1)).movedim(1, 2)  # [group, out, in, *kernel]
    strides, reach = (rows.stride, columns.stride), (rows.taps, columns.taps)
    weight = taps.new_zeros(layer.groups, *strides, *taps.shape[1:3], *reach)
    places = [(r, c, i - rows.first, j - columns.first, a, b) for r, a, i in rows.reach for c, b, j in columns.reach]
    r, c, i, j, a, b = torch.tensor(places, device=taps.device).T
    weight[:, r, c, :, :, i, j] = taps[..., a, b].movedim(-1, 0)
    bias = layer.bias
    if bias is not None:
        bias = bias.view(layer.groups, 1, 1, -1).expand(-1, *strides, -1).flatten()
    return weight.flatten(0, 3), bias
