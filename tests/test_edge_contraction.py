"""What each edge carries into each layer, in one contraction, against one swap per edge."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from vaes import seeded

from nnsight_vae.circuits.wiring import contributions

LAYERS = [
    nn.Linear(6, 4),
    nn.Conv1d(4, 6, 3, stride=2),
    nn.Conv2d(4, 6, (3, 2), padding=1, dilation=2),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2),
    nn.Conv3d(2, 3, 2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose3d(2, 3, 2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_contraction_equals_one_swap_per_edge(layer: nn.Module) -> None:
    layer, generator = seeded(copy.deepcopy(layer)), torch.Generator().manual_seed(0)
    units, ports = contributions.weight_grid(layer)
    n_ports, n_units = int(ports.max()) + 1, int(units.max()) + 1
    spatial = {2: (), 3: (7,), 4: (7, 6), 5: (4, 5, 4)}[layer.weight.ndim]
    base, delta = (torch.randn(3, n_ports, *spatial, generator=generator) for _ in range(2))
    given = layer(base).detach()
    gradient = torch.randn(given.shape, generator=generator)
    torch.testing.assert_close(
        contributions.with_bias(layer, contributions.apply(layer, base)).detach(), given, rtol=1e-5, atol=1e-5
    )
    fast = contributions.edge_products(layer, delta, gradient, ports * n_units + units, n_ports * n_units)
    for u in range(n_ports):
        swapped = base.clone()
        swapped[:, u] += delta[:, u]
        change = (layer(swapped) - given).detach() * gradient
        for v in range(n_units):
            slow = change[:, v].reshape(3, -1).sum(1)
            torch.testing.assert_close(fast[u * n_units + v], slow, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_over_extra_axes_contracts_its_last_axis() -> None:
    layer = seeded(nn.Linear(4, 3))
    generator = torch.Generator().manual_seed(0)
    delta, gradient = (torch.randn(2, 5, width, generator=generator) for width in (4, 3))
    units, ports = contributions.weight_grid(layer)
    fast = contributions.edge_products(layer, delta, gradient, units * 4 + ports, 12)
    torch.testing.assert_close(
        fast.T.reshape(2, 3, 4), torch.einsum("nta,nto,oa->noa", delta, gradient, layer.weight.detach())
    )
