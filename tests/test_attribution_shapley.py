"""Shapley values: the four axioms, the average over all orders, closed forms, Captum's numbers; and what sampling knows of its error."""

from __future__ import annotations

import itertools

import pytest
import torch
from attributed import HALVES
from captum.attr import ShapleyValues
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, random_linear_vae
from vaes import ConvVAE, ResidualVAE, seeded

import nnsight_vae as nv
from nnsight_vae.attribution import Distribution, LatentShapley, captum_forward, record_of, shapley
from nnsight_vae.games import coalitions, exact_shapley, sampled_shapley

few = settings(max_examples=15, deadline=None, derandomize=True)


def table_game(worths):
    """A game from the worth of each coalition, [2^K, *cells], in binary order."""

    def game(members):
        return worths[(members * 2 ** torch.arange(members.shape[1])).sum(1)]

    return game


def random_worths(seed, players, cells=(2,)):
    return torch.randn(2**players, *cells, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def over_all_orders(game, players):
    """The definition, literally: what each player adds on joining, mean over the K! orders."""
    total = 0.0
    for order in itertools.permutations(range(players)):
        members = torch.zeros(players, dtype=torch.bool)
        added = torch.zeros(players, *game(members[None]).shape[1:], dtype=torch.double)
        for player in order:
            before = game(members[None])[0]
            members[player] = True
            added[player] = game(members[None])[0] - before
        total = total + added
    return total / len(list(itertools.permutations(range(players))))


# ---------------------------------------------------------------------- exact, as mathematics
@few
@given(st.integers(0, 999), st.integers(1, 5))
def test_exact_values_are_the_average_over_all_orders(seed, players):
    game = table_game(random_worths(seed, players))
    assert torch.allclose(exact_shapley(game, players), over_all_orders(game, players), atol=1e-12)


@few
@given(st.integers(0, 999), st.integers(1, 8), st.integers(1, 300))
def test_values_add_up_to_what_all_players_gain_however_the_coalitions_are_cut(seed, players, block):
    worths = random_worths(seed, players)
    values = exact_shapley(table_game(worths), players, block)
    assert torch.allclose(values.sum(0), worths[-1] - worths[0], atol=1e-12)
    assert torch.allclose(values, exact_shapley(table_game(worths), players), atol=1e-12)


@few
@given(st.integers(0, 999))
def test_players_that_can_be_exchanged_get_the_same(seed):
    worths = random_worths(seed, 4)
    one, two = coalitions(4, 0, 16)[:, 1], coalitions(4, 0, 16)[:, 2]
    only_one, only_two = (one & ~two).nonzero()[:, 0], (two & ~one).nonzero()[:, 0]
    worths[only_two] = worths[only_one]  # binary order: the same others, in the same order
    values = exact_shapley(table_game(worths), 4)
    assert torch.allclose(values[1], values[2], atol=1e-12)
    assert not torch.allclose(values[0], values[1], atol=1e-3)


@few
@given(st.integers(0, 999), st.floats(-3, 3))
def test_a_player_that_always_adds_the_same_gets_that(seed, worth):
    others = random_worths(seed, 3)
    game = lambda members: table_game(others)(members[:, [0, 2, 3]]) + worth * members[:, 1:2].double()
    assert torch.allclose(exact_shapley(game, 4)[1], torch.full((2,), worth, dtype=torch.double), atol=1e-12)


@few
@given(st.integers(0, 999), st.floats(-3, 3), st.floats(-3, 3))
def test_values_are_linear_in_the_game(seed, a, b):
    first, second = random_worths(seed, 4), random_worths(seed + 1000, 4)
    both = exact_shapley(table_game(a * first + b * second), 4)
    apart = a * exact_shapley(table_game(first), 4) + b * exact_shapley(table_game(second), 4)
    assert torch.allclose(both, apart, atol=1e-11)


@pytest.mark.parametrize("players", [2, 5])
def test_a_product_is_shared_equally(players):
    game = lambda members: 3.0 * members.all(1).double()
    assert torch.allclose(exact_shapley(game, players), torch.full((players,), 3.0 / players, dtype=torch.double))


def test_worths_far_from_zero_lose_no_digits():
    game = lambda members: 1e12 + members.double() @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.double)
    assert torch.allclose(exact_shapley(game, 3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.double), atol=1e-9)


# ---------------------------------------------------------------------- sampled, as statistics
@few
@given(st.integers(0, 999), st.integers(2, 7))
def test_two_orders_and_their_reverses_are_exact_without_interactions_of_three(seed, players):
    generator = torch.Generator().manual_seed(seed)
    linear = torch.randn(players, generator=generator, dtype=torch.double)
    square = torch.randn(players, players, generator=generator, dtype=torch.double)
    game = lambda members: members.double() @ linear + ((members.double() @ square) * members.double()).sum(1)
    values, errors = sampled_shapley(game, players, 4, seed)
    assert torch.allclose(values, exact_shapley(game, players), atol=1e-12)
    assert float(errors.max()) < 1e-12


def test_sampled_values_are_unbiased_and_know_their_error():
    game = table_game(random_worths(3, 5, ()))
    exact = exact_shapley(game, 5)
    runs = [sampled_shapley(game, 5, 4, seed) for seed in range(600)]
    values, errors = (torch.stack(part) for part in zip(*runs, strict=True))
    spread = values.std(0)
    assert float(((values.mean(0) - exact).abs() / (spread / 600**0.5)).max()) < 3.5
    assert torch.allclose(errors.square().mean(0).sqrt(), spread, rtol=0.15)


@few
@given(st.integers(0, 999), st.integers(2, 6))
def test_sampled_values_add_up_too_and_depend_on_the_seed_alone(seed, players):
    worths = random_worths(seed, players)
    values, _ = sampled_shapley(table_game(worths), players, 6, seed)
    assert torch.allclose(values.sum(0), worths[-1] - worths[0], atol=1e-12)
    assert torch.equal(values, sampled_shapley(table_game(worths), players, 6, seed)[0])


# ---------------------------------------------------------------------- of a VAE
@pytest.mark.parametrize("seed", range(3))
def test_of_a_linear_decoder_they_are_change_times_slope(seed):
    generator = torch.Generator().manual_seed(seed)
    model = random_linear_vae(seed)
    readout = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    vae = nv.VAE(model, example=torch.zeros(1, 6, dtype=torch.double))
    z, baseline = torch.randn(2, 4, 3, generator=generator, dtype=torch.double)
    slope = readout.c @ model.out.weight @ model.dec.weight
    expected = (z - baseline)[:, None] * slope
    assert torch.allclose(LatentShapley(vae, readout).attribute(z, baseline), expected, atol=1e-12)
    assert torch.allclose(
        LatentShapley(vae, readout).attribute(z, baseline, method="sampled", n_samples=4), expected, atol=1e-12
    )


@pytest.fixture(scope="module")
def conv():
    return nv.VAE(seeded(ConvVAE()))


@pytest.fixture(scope="module")
def z():
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


def test_the_numbers_are_captums(conv, z):
    baseline = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[0, 1, 0, 2, 1]])
    forward = captum_forward(conv, HALVES, of="z")
    ours, groups = (LatentShapley(conv, HALVES).attribute(z, baseline, feature_mask=m) for m in (None, mask))
    for t in range(2):
        captums = ShapleyValues(forward).attribute(z, baselines=baseline, target=t, perturbations_per_eval=32)
        assert torch.allclose(ours[:, t], captums, atol=1e-6)
        captums = ShapleyValues(forward).attribute(z, baselines=baseline, target=t, feature_mask=mask)
        assert torch.allclose(groups[:, t], captums, atol=1e-6)
    assert torch.equal(groups[..., 0], groups[..., 2])  # each element of a group has the group's value


def test_one_target_is_a_row_of_all_and_a_tuple_gives_a_tuple(conv, z):
    method = LatentShapley(conv, HALVES)
    everything = method.attribute(z)
    assert everything.shape == (3, 2, 5)
    assert torch.allclose(method.attribute(z, target="bottom"), everything[:, 1], atol=1e-7)
    (inside,), delta = method.attribute((z,), target=0, return_convergence_delta=True)
    assert torch.allclose(inside, everything[:, 0], atol=1e-7)
    assert float(delta.abs().max()) < 1e-6
    record = record_of(everything)
    assert (record.of, record.targets, record.baseline) == ("latent.z", ("top", "bottom"), "prior mean")
    assert record.settings == {"exact": True}


def test_each_example_may_have_a_target_of_its_own(conv, z, monkeypatch):
    method = LatentShapley(conv, HALVES)
    everything = method.attribute(z)
    expected = torch.stack([everything[0, 0], everything[1, 1], everything[2, 0]])
    assert torch.allclose(method.attribute(z, target=[0, 1, 0]), expected, atol=1e-7)
    monkeypatch.setattr(shapley, "_WORTHS", 8)
    assert torch.allclose(method.attribute(z, target=[0, 1, 0], internal_batch_size=7), expected, atol=1e-7)


def test_pixels_are_picked_by_index(conv, z):
    values = LatentShapley(conv, "reconstruction").attribute(z, target=(0, 3, 4))
    with torch.no_grad():
        moved = (conv.decode(z) - conv.decode(0 * z))[:, 0, 3, 4]
    assert torch.allclose(values.sum(1), moved, atol=1e-6)


def test_a_dead_latent_gets_nothing(z):
    model = seeded(ConvVAE())
    with torch.no_grad():
        model.decoder[0].weight[:, 2] = 0
    values = LatentShapley(nv.VAE(model), HALVES).attribute(z)
    assert float(values[..., 2].abs().max()) < 1e-15
    assert float(values.abs().amax((0, 1))[[0, 1, 3, 4]].min()) > 1e-4


def test_a_distribution_of_baselines_is_averaged_over(conv, z):
    others = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    method = LatentShapley(conv, HALVES)
    each = torch.stack([method.attribute(z, other[None]) for other in others])
    assert torch.allclose(method.attribute(z, Distribution(others)), each.mean(0), atol=1e-7)


@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_numbers_do_not_depend_on_how_the_work_is_cut(conv, z, method, monkeypatch):
    explain = LatentShapley(conv, HALVES)
    whole = explain.attribute(z, method=method, n_samples=10)
    assert torch.allclose(explain.attribute(z, method=method, n_samples=10, internal_batch_size=3), whole, atol=1e-7)
    monkeypatch.setattr(shapley, "_WORTHS", 8)
    assert torch.allclose(explain.attribute(z, method=method, n_samples=10), whole, atol=1e-7)
    assert torch.allclose(explain.attribute(z[1:2], method=method, n_samples=10), whole[1:2], atol=1e-7)


def test_interventions_that_differ_by_example_follow_their_example(conv, z, monkeypatch):
    values = torch.tensor([[0.0], [1.0], [5.0]])[:, :, None, None].expand(3, 1, 4, 4)
    together = LatentShapley(conv, HALVES, interventions={"decoder.2[1]": nv.Set(values)}).attribute(z)
    monkeypatch.setattr(shapley, "_WORTHS", 8)
    again = LatentShapley(conv, HALVES, interventions={"decoder.2[1]": nv.Set(values)}).attribute(z)
    for i in range(3):
        alone = LatentShapley(conv, HALVES, interventions={"decoder.2[1]": nv.Set(values[i : i + 1])})
        assert torch.allclose(together[i : i + 1], alone.attribute(z[i : i + 1]), atol=1e-6)
    assert torch.allclose(together, again, atol=1e-7)


def test_a_spatial_latent_is_sampled_by_element_and_exact_by_channel():
    vae = nv.VAE(seeded(ResidualVAE()), example=torch.zeros(1, 1, 8, 8))
    readout = nv.readouts.Region({"corner": (slice(0, 3), slice(0, 3))})
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    method = LatentShapley(vae, readout)
    values, delta, errors = method.attribute(
        z, target="corner", n_samples=20, return_convergence_delta=True, return_standard_errors=True
    )
    assert values.shape == errors.shape == z.shape
    assert float(delta.abs().max()) < 1e-5
    assert method.record.settings == {"exact": False, "n_samples": 20, "seed": 0}
    channels = torch.arange(2).view(2, 1, 1).expand(2, 4, 4)
    grouped = method.attribute(z, target="corner", feature_mask=channels)
    captums = ShapleyValues(captum_forward(vae, readout, of="z")).attribute(
        z, target=0, feature_mask=channels[None].contiguous()
    )
    assert torch.allclose(grouped, captums, atol=1e-5)
    assert method.record.settings == {"exact": True}


def test_exact_values_have_no_standard_error(conv, z):
    _, errors = LatentShapley(conv, HALVES).attribute(z, return_standard_errors=True)
    assert errors.shape == (3, 2, 5)
    assert not errors.any()


def test_a_single_group_has_nothing_to_order(conv, z):
    whole = LatentShapley(conv, HALVES).attribute(z, feature_mask=torch.zeros(5, dtype=torch.long), method="sampled")
    moved = HALVES(conv.decode(z)) - HALVES(conv.decode(0 * z))
    assert torch.allclose(whole[..., 0], moved.detach(), atol=1e-6)


def test_twelve_latents_are_exact_and_thirteen_are_sampled_or_refused():
    model = seeded(nv.models.MLPVAE(image_shape=(1, 4, 4), latent=13))
    vae = nv.VAE(model)
    readout = nv.readouts.Region({"all": (slice(0, 4), slice(0, 4))})
    z = torch.randn(1, 13, generator=torch.Generator().manual_seed(0))
    method = LatentShapley(vae, readout)
    method.attribute(z, n_samples=4)
    assert not method.record.settings["exact"]
    method.attribute(z, feature_mask=torch.arange(13).clamp(max=11))
    assert method.record.settings["exact"]
    with pytest.raises(nv.DataError, match=r"2\^13 = 8,192 decodings.*method='sampled'.*feature_mask"):
        method.attribute(z, method="exact")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fast"}, "'auto', 'exact' or 'sampled'"),
        ({"method": "sampled", "n_samples": 5}, "even number"),
        ({"method": "sampled", "n_samples": 2}, "at least 4"),
        ({"internal_batch_size": 0}, "internal_batch_size must be"),
        ({"feature_mask": torch.zeros(5)}, "integer tensor"),
        ({"feature_mask": torch.zeros(4, dtype=torch.long)}, r"shape \(4,\), expected \(5,\)"),
        ({"feature_mask": torch.tensor([0, 0, 1, 2, 3]), "return_convergence_delta": True}, "whole group's value"),
    ],
)
def test_what_cannot_be_meant_is_refused(conv, z, arguments, message):
    with pytest.raises(nv.DataError, match=message):
        LatentShapley(conv, HALVES).attribute(z, **arguments)


def test_the_model_is_as_before(z):
    model, z = seeded(ConvVAE()).train(), z.clone().requires_grad_()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    LatentShapley(nv.VAE(model), HALVES).attribute(z)
    assert z.requires_grad
    assert z.grad is None
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
