"""Learned rotations: on rotated copies of hand-built models they find the factors, and elsewhere they make nothing up."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from factor_models import Bars, factor_vae, factor_world, rotated, untrained
from vaes import all_vaes, images

import nnsight_vae as nv
from nnsight_vae.causal.interchange_pairs import InterchangePairs
from nnsight_vae.causal.rotation import _Frame
from nnsight_vae.engine import activations, baseline

WORLD = factor_world(0)
FACTORS = WORLD.factors


def learn(model, world=WORLD, **kwargs):
    return nv.causal.learn_rotation(nv.VAE(model), world, **{"n": 500, "steps": 400} | kwargs)


def alone(model, mapping, world=WORLD, joint=False):
    result = nv.causal.interchange_accuracy(nv.VAE(model), world, mapping, n=100)
    return np.array([row.score for row in result.rows if not row.propagate and row.joint == joint])


def recovers(world, seed):
    model = rotated(factor_vae(world, seed), seed)
    axes, found = alone(model, model.latents, world), learn(model, world, seed=seed)
    assert axes.mean() < 0.3
    assert axes.max() < 0.95
    assert alone(model, found, world).min() >= 0.99
    assert alone(model, found, world, joint=True).item() >= 0.99
    for factor, latent in model.latents.items():  # the direction is the one that the rotation turned the latent to
        assert abs(found.bases[factor][0] @ model.rotation[:, latent].numpy()) > 0.995


def test_a_learned_rotation_recovers_what_a_rotation_hid():
    recovers(WORLD, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_learned_rotation_recovers_what_a_rotation_hid_in_every_world(seed):
    recovers(factor_world(seed, n_factors=4 + seed % 3, linear=seed < 4), seed)


def test_where_latents_are_the_factors_nothing_is_rotated():
    model = factor_vae(WORLD)
    found = learn(model)
    assert {factor: found.alignment(factor)[0] for factor in FACTORS} == model.latents
    assert min(found.alignment(factor)[1] for factor in FACTORS) > 0.99
    assert f"latent.z[{model.latents['apple']}]" in str(found)
    assert min(found.validation.values()) > 0.99


def test_on_an_untrained_model_it_finds_nothing_to_speak_of():
    for seed in range(2):
        model = untrained(WORLD, seed)
        found = learn(model, seed=seed)
        assert np.abs(alone(model, found)).max() < 0.06
        assert np.abs(list(found.validation.values())).max() < 0.06


def test_shuffled_targets_teach_nothing():
    model = rotated(factor_vae(WORLD), 1)
    found = learn(model, shuffle=True)
    assert alone(model, found).max() < 0.15
    assert "control" in str(found)


def test_the_frame_that_is_kept_is_the_best_and_not_the_last():
    """Training that goes on without a gain ends where training of so many steps ends."""
    model = untrained(WORLD)
    longer = learn(model, n=200)
    assert 0 < longer.steps < 400
    shorter = learn(model, n=200, steps=longer.steps)
    assert shorter.steps == longer.steps
    assert all(np.array_equal(longer.bases[f], shorter.bases[f]) for f in FACTORS)


def test_directions_are_orthonormal_within_and_between_factors():
    model = rotated(factor_vae(WORLD, spare=2), 3)
    found = learn(model, dims={"drum": 2, "apple": 1, "eagle": 3}, factors=["apple", "drum", "eagle"], steps=40)
    assert {factor: len(basis) for factor, basis in found.bases.items()} == {"apple": 1, "drum": 2, "eagle": 3}
    rows = np.concatenate(list(found.bases.values()))
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-12)
    assert [str(each) for each in found.subspaces().values()] == [f"latent.z, {k} of 7 directions" for k in (1, 2, 3)]


def test_it_works_at_any_layer():
    """45 units before a ReLU, of which a factor moves nine at once: one direction carries it."""
    model = rotated(factor_vae(WORLD))
    found = learn(model, site="decoder.0", factors=["apple", "cloud"])
    assert found.bases["apple"].shape == (1, 45)
    assert alone(model, found).min() > 0.97


def test_the_same_call_gives_the_same_rotation_and_another_seed_another():
    model = rotated(factor_vae(WORLD))
    first, again, other = (learn(model, steps=30, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(first.bases[f], again.bases[f]) for f in FACTORS)
    assert not any(np.array_equal(first.bases[f], other.bases[f]) for f in FACTORS)


def test_training_pairs_are_none_that_a_seed_draws_for_scoring(monkeypatch):
    drawn = []
    sample = type(WORLD).sample
    monkeypatch.setattr(type(WORLD), "sample", lambda self, n, seed=0: drawn.append(seed) or sample(self, n, seed))
    for seed in range(3):
        learn(factor_vae(WORLD), n=100, steps=1, seed=seed)
    assert len(set(drawn)) == 6
    assert min(drawn) > 10**6


def pairs_of(model, n=60, propagate=False, site="latent.z", factors=("apple", "cloud", "drum"), world=WORLD):
    vae = nv.VAE(model)
    vae.checked(world.sample(2).images)
    return InterchangePairs.draw(vae, world, factors, site, n, 0, world.readout(), propagate)


@pytest.mark.parametrize("site", ["latent.z", "decoder.0", "encoder.2"])
def test_errors_of_no_step_and_of_the_whole_step_are_known(site):
    pairs = pairs_of(factor_vae(WORLD), site=site)
    scale = pairs.scale[pairs.factor]
    nothing = pairs.errors(torch.zeros_like(pairs.difference))
    assert torch.allclose(nothing, pairs.truth.square().sum(1) / scale, atol=1e-5)
    for place in range(3):
        assert float(nothing.detach()[pairs.factor == place].mean()) == pytest.approx(1, abs=1e-5)
    read = WORLD.readout()
    whole = pairs.errors(pairs.difference)
    seeds = np.random.SeedSequence([0, 0xDA5]).generate_state(2).tolist()
    base, source = (read(WORLD.sample(60, seed=seed).images) for seed in seeds)
    assert torch.allclose(whole, (source - base - pairs.truth).square().sum(1) / scale, atol=1e-4)


def test_true_changes_follow_the_descendants_where_asked_to():
    still, moved = (pairs_of(factor_vae(WORLD), propagate=propagate) for propagate in (False, True))
    effects = torch.from_numpy(WORLD.total_effects()).float()
    for place, factor in enumerate(("apple", "cloud", "drum")):
        rows, j = still.factor == place, FACTORS.index(factor)
        change = still.truth[rows, j]
        assert torch.allclose(still.truth[rows], change[:, None] * torch.eye(5)[j], atol=0.02)
        assert torch.allclose(moved.truth[rows], change[:, None] * effects[j], atol=0.02)


def test_shuffled_pairs_keep_their_factors_and_their_runs():
    pairs = pairs_of(factor_vae(WORLD))
    mixed = pairs.shuffled(0)
    assert not torch.equal(mixed.truth, pairs.truth)
    for place in range(3):
        ours, theirs = (each.truth[each.factor == place].sort(0).values for each in (pairs, mixed))
        assert torch.equal(ours, theirs)
    assert torch.equal(mixed.difference, pairs.difference)


@pytest.mark.parametrize("name", ["conv", "batchnorm", "residual"])
def test_the_gradient_is_that_of_a_plain_run_with_channels_rotated_everywhere(name):
    """At a layer with positions, and inside a residual block, where runs start further up: against finite differences."""
    model = all_vaes()[name].double()
    vae = nv.VAE(model)
    base, source = (images(model, 4, seed).double() for seed in (0, 1))
    vae.checked(base)
    site = {"conv": "encoder.2", "batchnorm": "encoder.3", "residual": "block.first"}[name]
    read = nv.readouts.Region({"whole": tuple(slice(0, side) for side in vae.sites["output"].shape[1:])})
    ours, theirs = (activations(vae, x, [site])[site] for x in (base, source))
    before = baseline(vae, base, read)
    truth, factor = torch.full_like(before, 0.01), torch.tensor([0, 1, 0, 1])
    pairs = InterchangePairs(vae, site, read, base, theirs - ours, before, truth, factor, before.new_ones(2))
    frame = _Frame({"a": 1, "b": 2}, [0, 1], vae.sites[site].n_units, seed=0)
    (gradient,) = torch.autograd.grad(frame.errors(pairs).sum(), [frame.w])
    direction = torch.randn(frame.w.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            frame.w += step * direction
            values.append(float(frame.errors(pairs).sum()))
            frame.w -= step * direction
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-10)
    assert abs(values[0] - values[1]) > 0


def test_a_factor_that_cannot_be_read_is_left_out():
    found = learn(factor_vae(WORLD), readout=Bars(FACTORS)[["apple", "cloud"]], factors=["apple", "brick", "cloud"])
    assert set(found.bases) == {"apple", "cloud"}
    assert "sees no change" in found.left_out["brick"]
    assert "left out: brick" in str(found)
    assert alone(factor_vae(WORLD), found).min() > 0.97


def test_it_learns_under_no_grad_and_leaves_the_random_state_alone():
    model = rotated(factor_vae(WORLD))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert learn(model, n=200, steps=40).steps > 0
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_as_before_after_errors_too():
    class Failing(Bars):
        calls = 0

        def __call__(self, reconstruction):
            self.calls += 1
            if self.calls > 20:
                raise RuntimeError("the readout broke")
            return super().__call__(reconstruction)

    model = rotated(factor_vae(WORLD)).train()
    model.mu.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    vae = nv.VAE(model)
    nv.causal.learn_rotation(vae, WORLD, n=100, steps=20)
    failing = Failing(FACTORS)
    with pytest.raises(RuntimeError, match="the readout broke"):
        nv.causal.learn_rotation(vae, WORLD, n=100, steps=20, readout=failing)
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["mu.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bad_input_is_refused():
    model = factor_vae(WORLD)

    class Stepped(Bars):
        def __call__(self, reconstruction):
            return super().__call__(reconstruction).detach().round()

    for kwargs, error, match in (
        ({"factors": ["mass"]}, nv.DataError, "factors="),
        ({"factors": ["apple", "apple"]}, nv.DataError, "factors="),
        ({"factors": []}, nv.DataError, "factors="),
        ({"dims": 0}, nv.DataError, "dims=0"),
        ({"dims": {"apple": 1}}, nv.DataError, "dims="),
        ({"dims": 2}, nv.DataError, "5 units, too few for 10"),
        ({"n": 99}, nv.DataError, "n=99"),
        ({"steps": 0}, nv.DataError, "steps=0"),
        ({"site": "nowhere"}, nv.SiteError, "is not a site"),
        ({"site": "decoder.0", "readout": nv.readouts.Latents(5)}, nv.ReadoutError, "comes before"),
        ({"readout": Stepped(FACTORS)}, nv.ReadoutError, "no gradient"),
        ({"readout": Bars(FACTORS)["brick"], "factors": ["apple"]}, nv.DataError, "nothing to learn"),
    ):
        with pytest.raises(error, match=match):
            learn(model, **kwargs)
    found = learn(model, n=100, steps=1)
    with pytest.raises(nv.DataError, match="another model"):
        nv.causal.interchange_accuracy(nv.VAE(factor_vae(WORLD, spare=1)), WORLD, found)
    smaller = factor_world(0, n_factors=4)
    with pytest.raises(nv.DataError, match="no factors"):
        nv.causal.interchange_accuracy(nv.VAE(factor_vae(smaller, spare=1)), smaller, found)
