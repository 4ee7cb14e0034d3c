"""What a linear layer's output changes by when a few neighbouring ports of its input change: the layer's own map on those alone.

A layer without its bias is linear: L(a + d) = L(a) + L(d). Where d is zero but for one port (a channel of a convolution, a
feature of a `Linear`), L(d) costs one port's share of the layer's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nnsight_vae.formats import channels_last, is_channels_last

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LinearLayer = nn.Linear | Convolution | Transposed

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def ports(layer: LinearLayer) -> int:
    """How many ports (channels, features) a layer takes in."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def add_response(
    layer: LinearLayer, output: Float[Tensor, "r ..."], first: Int[Tensor, " r"], delta: Float[Tensor, "r ports *grid"]
) -> Float[Tensor, "r ..."]:
    """Add to a layer's output what a change of a few ports of its input changes, in place: out += L(d).

    Args:
        layer: a `Linear`, a convolution or a transposed convolution, with any stride, padding, dilation and groups.
        output: the layer's output for the unchanged input, a row each.
        first: the first port that changes in each row; rows with the same one should be neighbours.
        delta: the change of ports `first, first + 1, ...`, all positions.

    Returns: `output`.

    Example:
        >>> layer, a = nn.Linear(3, 2), torch.zeros(1, 3)
        >>> changed = add_response(layer, layer(a).detach(), torch.tensor([1]), torch.ones(1, 1))
        >>> bool(torch.allclose(changed, layer(torch.tensor([[0.0, 1.0, 0.0]]))))
        True
    """
    laid = channels_last if is_channels_last(output) else Tensor.contiguous  # a sum of two memory formats is slow
    for port, rows in _runs(first):
        at, block = _block(layer, port, delta.shape[1])
        output[rows].narrow(_port_axis(layer, output), at.start, at.stop - at.start).add_(
            response(layer, block, delta[rows], output.shape[2:], laid)
        )
    return output


def fits(layer: LinearLayer, first: Int[Tensor, " k"], width: int) -> bool:
    """Whether blocks of `width` ports lie inside the layer's input, each in one of its groups."""
    size = ports(layer) // (1 if isinstance(layer, nn.Linear) else layer.groups)
    return bool(((first % size + width <= size) & (first >= 0) & (first < ports(layer))).all())


def _runs(first: Tensor) -> Iterator[tuple[int, slice]]:
    """Neighbouring rows with the same first port."""
    values, counts = torch.unique_consecutive(first, return_counts=True)
    start = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        yield value, slice(start, start + count)
        start += count


def _block(layer: LinearLayer, port: int, width: int) -> tuple[slice, Tensor]:
    """The output channels that some ports reach, and the weights between them: `[out, in]`, `[in, out]` if transposed."""
    if isinstance(layer, nn.Linear):
        return slice(0, layer.out_features), layer.weight[:, port : port + width]
    size, reached = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    group = port // size
    outputs = slice(group * reached, (group + 1) * reached)
    if isinstance(layer, Transposed):
        return outputs, layer.weight[port : port + width]
    return outputs, layer.weight[outputs, port - group * size : port - group * size + width]


def _port_axis(layer: LinearLayer, tensor: Tensor) -> int:
    return tensor.ndim - 1 if isinstance(layer, nn.Linear) else 1


def response(
    layer: LinearLayer,
    weight: Tensor,
    delta: Float[Tensor, "r ports *grid"],
    size: torch.Size,
    laid: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Float[Tensor, "r ..."]:
    """What a change of some ports of a layer of one group adds to its output.

    Args:
        layer: the layer, whose weight is not looked at.
        weight: the part of it that belongs to the ports.
        delta: the change of the ports.
        size: of the output, without rows and channels.
        laid: puts what is convolved into the memory format that it is to have.
    """
    if isinstance(layer, nn.Linear):
        return F.linear(delta.movedim(1, -1), weight)
    convolve = CONVOLVE[delta.ndim - 2]
    if isinstance(layer, Transposed):
        kernel = weight.transpose(0, 1).flip(*range(2, weight.ndim))
        return convolve(laid(_spread(layer, delta, size)), kernel, dilation=layer.dilation)
    padding: str | int | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        delta, padding = F.pad(delta, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    return convolve(laid(delta), weight, None, layer.stride, padding, layer.dilation)


def _spread(layer: Transposed, delta: Tensor, size: torch.Size) -> Tensor:
    """The input of the convolution that a transposed one is: its own input with zeros in between and around, for outputs of a size.

    For few input channels that is several times faster on CPU, where a transposed convolution writes every product out.
    """
    axes = range(delta.ndim - 2)
    padding: tuple[int, ...] = layer.padding  # type: ignore[assignment]  # words are for ordinary convolutions only
    around = [layer.dilation[i] * (layer.kernel_size[i] - 1) - padding[i] for i in axes]
    lengths = [(delta.shape[2 + i] - 1) * layer.stride[i] + 1 for i in axes]
    # The output padding, or what a caller's `output_size` made of it.
    after = [size[i] - lengths[i] - around[i] + layer.dilation[i] * (layer.kernel_size[i] - 1) for i in axes]
    spread = delta.new_zeros(*delta.shape[:2], *(lengths[i] + max(0, around[i]) + max(0, after[i]) for i in axes))
    inside = tuple(slice(max(0, around[i]), max(0, around[i]) + lengths[i], layer.stride[i]) for i in axes)
    spread[(slice(None), slice(None), *inside)] = delta
    # A padding wider than the kernel cuts the input instead.
    cut = tuple(slice(max(0, -around[i]), spread.shape[2 + i] - max(0, -after[i])) for i in axes)
    return spread[(slice(None), slice(None), *cut)]
