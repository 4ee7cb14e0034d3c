"""What each edge carries into each layer, in one contraction, against one swap per edge."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from vaes import seeded

from nnsight_vae.circuits.wiring import contributions
from nnsight_vae.circuits.wiring.sums import counts_by, sums_by

LAYERS = [
    nn.Linear(6, 4),
    nn.Conv1d(4, 6, 3, stride=2),
    nn.Conv2d(4, 6, (3, 2), padding=1, dilation=2),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2),
    nn.Conv3d(2, 3, 2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(2, 3, 2, dilation=2, output_padding=1),  # room for one position more than there is
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


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_pairs_are_contracted_in_blocks_that_fit(layer: nn.Module, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    units, ports = contributions.weight_grid(layer)
    spatial = {2: (), 3: (7,), 4: (7, 6), 5: (4, 5, 4)}[layer.weight.ndim]
    delta = torch.randn(5, int(ports.max()) + 1, *spatial, generator=generator)
    gradient = torch.randn(layer(delta).shape, generator=generator)
    edge_of = (units + ports) % 4 - 2  # several entries an edge, and some of no edge
    whole = contributions.edge_products(layer, delta, gradient, edge_of, 3)
    for pair in range(5):
        alone = contributions.edge_products(layer, delta[pair : pair + 1], gradient[pair : pair + 1], edge_of, 3)
        torch.testing.assert_close(whole[:, pair : pair + 1], alone, rtol=1e-5, atol=1e-5)
    sizes = []

    def watched(*args: torch.Tensor) -> torch.Tensor:
        sizes.append(len(args[1]))
        return products(*args)

    products = contributions._weight_products
    monkeypatch.setattr(contributions, "_weight_products", watched)
    monkeypatch.setattr(contributions, "_BLOCK", 2 * contributions._work(layer, delta, gradient))
    blocks = contributions.edge_products(layer, delta, gradient, edge_of, 3)
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-5)
    assert sizes == [2, 2, 1]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(owners=st.lists(st.integers(-3, 4), max_size=30), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_rows_are_summed_by_owner_and_those_of_nobody_left_out(owners: list[int], dtype: torch.dtype) -> None:
    rows = torch.randn(len(owners), 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    at = torch.tensor(owners, dtype=torch.long)
    for owner, total in enumerate(sums_by(at, rows, 6)):
        torch.testing.assert_close(total, rows[at == owner].sum(0))
    assert counts_by(at, 6).tolist() == [owners.count(owner) for owner in range(6)]
