"""What each input channel of a linear layer adds to each output channel: exact, per pair, in one contraction.

A layer without its bias is linear, L(a) = sum_i L(a_i), where a_i is port i of its input (a channel of a convolution, a
feature of a `Linear`). It is linear in its weight too, so the inner product <L(a_i) at unit o, g_o> of every (o, i) is
the weight times the weight-gradient of <L(a), g>, summed over the kernel: no tensor of edges x positions is ever made.
That gradient is one product of matrices a pair: of what one side of a convolution is at each position with what all taps
of the kernel meet there on the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nnsight_vae.circuits.wiring.sums import sums_by
from nnsight_vae.updates import response

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Linear = nn.Linear | Convolution | Transposed

_TRANSPOSED: dict[int, Callable[..., Tensor]] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_BLOCK = 4_000_000  # elements of one work array (16 MB as float32)


def apply(layer: Linear, a: Float[Tensor, "n ..."], weight: Tensor | None = None) -> Float[Tensor, "n ..."]:
    """The layer without its bias, with another weight where one is given.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> bool(torch.allclose(apply(layer, torch.zeros(1, 3)), torch.zeros(1, 2)))
        True
    """
    weight = layer.weight if weight is None else weight
    if isinstance(layer, nn.Linear):
        return F.linear(a, weight)
    if isinstance(layer, Convolution):
        return layer._conv_forward(a, weight, None)  # knows the padding modes
    transposed = _TRANSPOSED[weight.ndim]
    return transposed(a, weight, None, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)


def apply_to_ports(
    layer: Linear, a: Float[Tensor, "n ..."], ports: Int[Tensor, " p"], size: torch.Size
) -> Float[Tensor, "n ..."]:
    """The layer without its bias, of an input that is 0 but for some ports: at their share of the arithmetic, unless it has groups.

    Args:
        layer: the layer.
        a: its input.
        ports: those that count.
        size: of its output, without rows and channels.

    Example:
        >>> layer, a = nn.Conv2d(3, 2, 3), torch.rand(1, 3, 5, 5)
        >>> sides = [apply_to_ports(layer, a, torch.tensor(ports), torch.Size([3, 3])) for ports in ([0, 2], [1])]
        >>> bool(torch.allclose(sum(sides), apply(layer, a), atol=1e-5))
        True
    """
    axis = port_axis(layer, a)
    of_ports = a.index_select(axis, ports)
    if isinstance(layer, nn.Linear):
        return apply(layer, of_ports, layer.weight.index_select(1, ports))
    if layer.groups == 1:
        weight = layer.weight.index_select(0 if isinstance(layer, Transposed) else 1, ports)
        return response(layer, weight, of_ports, size)
    return apply(layer, torch.zeros_like(a).index_copy_(axis, ports, of_ports))


def with_bias(layer: Linear, values: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Output of `apply` with the layer's bias added."""
    if layer.bias is None:
        return values
    ones = [] if isinstance(layer, nn.Linear) else [1] * (values.ndim - 2)
    return values + layer.bias.view(-1, *ones)


def port_axis(layer: nn.Module | None, a: Tensor) -> int:
    """The axis of a layer's input that its weight contracts: last for `Linear`, else 1 (the unit axis, where there is no layer)."""
    return a.ndim - 1 if isinstance(layer, nn.Linear) else 1


def weight_grid(layer: Linear) -> tuple[Int[Tensor, "a b"], Int[Tensor, "a b"]]:
    """Output unit and input port of each entry [a, b] of the layer's weight (kernel axes left out).

    Example:
        >>> units, ports = weight_grid(nn.Conv2d(4, 2, 3, groups=2))
        >>> units.tolist(), ports.tolist()
        ([[0, 0], [1, 1]], [[0, 1], [2, 3]])
    """
    a, b = layer.weight.shape[:2]
    rows, columns = torch.arange(a)[:, None].expand(a, b), torch.arange(b)[None].expand(a, b)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    others = torch.div(rows, a // groups, rounding_mode="floor") * b + columns
    return (others, rows) if isinstance(layer, Transposed) else (rows, others)


def edge_products(
    layer: Linear,
    delta: Float[Tensor, "n ..."],
    gradient: Float[Tensor, "n ..."],
    edge_of: Int[Tensor, "a b"],
    n_edges: int,
) -> Float[Tensor, "edge n"]:
    """<L(delta restricted to the edge's source), gradient restricted to the edge's target>, for every edge and pair.

    Args:
        layer: the linear layer L.
        delta: change of its input.
        gradient: of some number in its output, shaped like the output.
        edge_of: edge of each entry of `weight_grid`; -1 belongs to no edge.
        n_edges: length of the result.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 5.0]]))
        >>> edge_products(layer, torch.ones(1, 2), torch.full((1, 1), 2.0), torch.tensor([[0, 1]]), 2).tolist()
        [[6.0], [10.0]]
    """
    result = delta.new_zeros(n_edges, len(delta))
    step = max(1, _BLOCK // _work(layer, delta, gradient))
    for start in range(0, len(delta), step):
        rows = slice(start, start + step)
        products = _weight_products(layer, delta[rows], gradient[rows])
        result[:, rows] = sums_by(edge_of.flatten(), products.flatten(0, 1), n_edges)
    return result


def _work(layer: Linear, delta: Tensor, gradient: Tensor) -> int:
    """Elements of the largest work array of `_weight_products` for one pair."""
    size = layer.weight.numel()
    if isinstance(layer, nn.Linear):
        return size
    one, many = _sides(layer, delta, gradient)
    taps = layer.weight[0, 0].numel() * one[0, 0].numel()
    return max(size, many.shape[1] * taps)


def _weight_products(layer: Linear, delta: Tensor, gradient: Tensor) -> Float[Tensor, "a b n"]:
    """The weight times each pair's own weight-gradient, summed over the kernel."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear) and delta.ndim == 2:
        return weight[:, :, None] * delta.T.contiguous() * gradient.T.contiguous()[:, None]
    if isinstance(layer, nn.Linear):
        own = gradient.flatten(1, -2).transpose(1, 2) @ delta.flatten(1, -2)
        return (weight * own).movedim(0, -1)
    one, many = _sides(layer, delta, gradient)
    taps = _taps(layer, many, one.shape[2:])
    own = one.flatten(2).unflatten(1, (layer.groups, -1)) @ taps.flatten(3)
    by_tap = own.flatten(1, 2).unflatten(2, taps.shape[3:])
    return (by_tap * weight.flatten(2).transpose(1, 2)).sum(2).movedim(0, -1)


def _sides(layer: Convolution | Transposed, delta: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The side of which each position meets many of the other: one output takes in many inputs, or, transposed, the reverse."""
    return (delta, gradient) if isinstance(layer, Transposed) else (gradient, delta)


def _taps(
    layer: Convolution | Transposed, many: Tensor, positions: torch.Size
) -> Float[Tensor, "n group position tap channel"]:
    """What each tap of the kernel meets at each position of the one side, copied with channels last: several times as fast."""
    around = layer._reversed_padding_repeated_twice  # what F.pad takes, also where the padding is a word
    windows = F.pad(many, around, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    windows = windows.movedim(1, -1).contiguous()
    axes = zip(layer.kernel_size, layer.stride, layer.dilation, positions, strict=True)
    for axis, (kernel, stride, dilation, n) in enumerate(axes, start=1):
        windows = windows.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation].narrow(axis, 0, n)
    channel = 1 + len(positions)
    together = windows.movedim(channel, -1).flatten(channel, -2).flatten(1, channel - 1)
    return together.unflatten(-1, (layer.groups, -1)).movedim(-2, 1)


def masked_weight(layer: Linear, keep: Bool[Tensor, "a b"]) -> Tensor:
    """The layer's weight with the entries of `weight_grid` where `keep` is 0 set to 0."""
    return layer.weight.detach() * keep.view(*keep.shape, *[1] * (layer.weight.ndim - 2)).to(layer.weight)


def weight_squares(layer: Linear, edge_of: Int[Tensor, "a b"], n_edges: int) -> Float[Tensor, " edge"]:
    """Sum of squares of each edge's weights."""
    squares = layer.weight.detach().square().flatten(2).sum(-1) if layer.weight.ndim > 2 else layer.weight.detach() ** 2
    real = edge_of.flatten() >= 0
    edges = edge_of.flatten()[real].to(squares.device)
    return squares.new_zeros(n_edges).index_add_(0, edges, squares.flatten()[real.to(squares.device)])
