"""What hides a known circuit leaves the function as it is, and its weights tell nothing."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from vaes import seeded

from nnsight_vae.circuits.known.hiding import Disguise, columns, hide
from nnsight_vae.models import MLPVAE, ConvVAE


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    conv=st.booleans(),
    seed=st.integers(0, 10_000),
    shares=st.tuples(*[st.sampled_from([0.0, 0.2, 1.0])] * 3),
    rescale=st.booleans(),
    permute=st.booleans(),
)
def test_a_disguise_leaves_the_function_as_it_is(conv, seed, shares, rescale, permute) -> None:
    module = seeded(ConvVAE((2, 8, 8), 3, (4, 5), 6) if conv else MLPVAE((2, 2, 2), 3, (7, 5)), seed)
    x = torch.rand(9, *((2, 8, 8) if conv else (2, 2, 2)), generator=torch.Generator().manual_seed(seed))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    sizes = [2, *(column.nodes for column in columns(module))]
    live = tuple(np.random.default_rng(seed).random((a, b)) < 0.5 for a, b in itertools.pairwise(sizes))
    hidden, after = hide(module, live, Disguise(*shares, rescale, permute), x, torch.Generator().manual_seed(seed))
    for new, old in zip(hidden(x), module(x), strict=True):
        torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    now = [2, *(column.nodes for column in columns(hidden))]
    assert [mask.shape for mask in after] == list(itertools.pairwise(now))
    grown = [n + sum(int(np.ceil(share * n)) for share in shares) for n in sizes[1:-1]]
    latent = [c.site for c in columns(module)].index("latent.z")
    grown[latent] = sizes[1 + latent]
    assert now[1:-1] == grown
    if not shares[2]:  # without copies every connection is where it was, under another name
        assert [mask.sum() for mask in after] == [mask.sum() for mask in live]


def test_gates_stay_shut_and_unread_units_are_large_and_unread() -> None:
    module, x = seeded(MLPVAE((2, 2, 2), 3, (8, 8)), 1), torch.rand(32, 2, 2, 2)
    sizes = [2, *(column.nodes for column in columns(module))]
    live = tuple(np.ones((a, b), dtype=bool) for a, b in itertools.pairwise(sizes))
    disguise = Disguise(gates=0.25, unread=0.5, rescale=False, permute=False)
    hidden, after = hide(module, live, disguise, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = hidden.encoder[1](x.flatten(1))
    assert (given[:, 8:10] < -500).all()
    assert (hidden.encoder[1].bias[8:10] <= -1000).all()
    own = hidden.encoder[1].weight[:8].abs().median()
    assert hidden.encoder[1].weight[8:].abs().median() > 2 * own
    into_original = hidden.encoder[3].weight[:8]
    assert not into_original[:, 10:].any()
    assert into_original[:, 8:10].abs().median() > 2 * into_original[:, :8].abs().median()
    assert hidden.encoder[3].weight[8:, 10:].any()  # from dead end to dead end
    assert not hidden.fc_mu.weight[:, 10:].any()
    assert not hidden.fc_logvar.weight[:, 10:].any()
    assert after[0][:, :8].all()
    assert not after[0][:, 8:].any()
    assert not after[1][8:].any()
    assert not after[1][:, 8:].any()


def test_units_are_permuted_and_rescaled_so_that_the_size_of_a_weight_says_nothing() -> None:
    module, x = seeded(MLPVAE((2, 2, 2), 3, (40,)), 1), torch.rand(8, 2, 2, 2)
    live = tuple(np.ones(shape, dtype=bool) for shape in ((2, 40), (40, 3), (3, 40), (40, 2)))

    def rows(disguise: Disguise) -> tuple[Tensor, Tensor]:
        hidden, _ = hide(module, live, disguise, x, torch.Generator().manual_seed(0))
        return hidden.encoder[1].weight.norm(dim=1).detach(), hidden.fc_mu.weight.norm(dim=0).detach()

    (into, out_of), (moved, _), (scaled, inverse) = (
        rows(Disguise(rescale=r, permute=p)) for r, p in ((False, False), (False, True), (True, False))
    )
    torch.testing.assert_close(into, module.encoder[1].weight.norm(dim=1))
    torch.testing.assert_close(moved.sort().values, into.sort().values)
    assert (moved != into).float().mean() > 0.8
    gain = scaled / into
    torch.testing.assert_close(inverse * gain, out_of)
    assert 1 / 6 - 1e-6 < gain.min() < 0.4
    assert 2.5 < gain.max() < 6 + 1e-4
