"""The input level: what do(factor) changes at every unit, against closed forms, hooks and the world's own equations."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hooks import record
from hypothesis import given, settings, strategies as st
from linear import SITES, LinearWorld, linear_world, pixels, random_linear_vae
from vaes import all_vaes, images, unwrapped, wrapped_with_pairs

import nnsight_vae as nv
import nnsight_vae.levels.doses
import nnsight_vae.levels.inputs
from nnsight_vae import engine, levels
from nnsight_vae.levels import answers as reading
from nnsight_vae.levels.units import default_sites

MODELS = all_vaes()
WORLD = LinearWorld()


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("factor", ["cause", "effect", "other"])
def test_the_change_of_every_unit_is_a_matrix_product_with_what_do_moves(factor, propagate):
    vae, matrix = linear_world()
    pairs = WORLD.pairs(factor, n=30, seed=2, propagate=propagate)
    moved = np.zeros(3)
    moved[WORLD.factors.index(factor)] = 2.0  # the pairs are two units apart
    if factor == "cause" and propagate:
        moved[1] = 2.0 * WORLD.weight
    reference = WORLD.sample(200, seed=9).images
    found = nv.manipulate_inputs(vae, pairs, SITES, reference=reference)
    sd = (matrix @ pixels(reference)).std(axis=1)
    np.testing.assert_allclose(found.values[:, 0], np.repeat((matrix @ moved / sd)[:, None], 30, 1), atol=1e-9)
    np.testing.assert_allclose(found.parts["norm"].values, np.abs(found.values), atol=1e-12)  # one position a unit


def test_a_factor_alone_and_beside_others_differ_by_one_scale_per_unit():
    vae, _ = linear_world()
    reference = WORLD.sample(100, seed=3).images
    by_factor = {factor: WORLD.pairs(factor, n=20, seed=2) for factor in WORLD.factors}
    together = nv.manipulate_inputs(vae, by_factor, SITES, reference=reference)
    for j, (factor, pairs) in enumerate(by_factor.items()):
        alone = nv.manipulate_inputs(vae, pairs, SITES, reference=reference)
        np.testing.assert_allclose(together.values[:, j], alone.values[:, 0], rtol=1e-12)
        assert together.targets[j] == factor


def test_which_units_respond_to_which_factor_is_answered_at_a_false_discovery_rate():
    """Three units that copy one factor each: the significant cells are the diagonal, nothing else."""
    model = random_linear_vae(0, d=3, h=3)
    with torch.no_grad():
        model.enc.weight.copy_(torch.eye(3))
    found = nv.manipulate_inputs(nv.VAE(model), WORLD.pairs_by_factor(40), ["enc"]).significant(q=0.05)
    np.testing.assert_array_equal(
        found.test.passed[[found.units.index(f"enc[{i}]") for i in range(3)]], np.eye(3, dtype=bool)
    )
    causal = nv.manipulate_inputs(nv.VAE(model), WORLD.pairs_by_factor(40, propagate=True), ["enc"]).significant()
    assert causal.test.passed[causal.units.index("enc[1]")].tolist() == [True, True, False]


def test_the_noise_of_a_pair_is_shared_by_both_runs():
    vae, matrix = linear_world()
    pairs = WORLD.pairs("cause", n=25)
    eps = torch.randn(25, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    noisy = nv.Pairs(pairs.base, pairs.source, eps=eps)
    z = nv.manipulate_inputs(vae, noisy, ["latent.z"]).values[:, 0]
    noise = np.exp(-1.0) * eps.numpy().T
    mu = [matrix[5:] @ pixels(side) for side in (pairs.base, pairs.source)]
    sd = np.concatenate([mu[0] + noise, mu[1] + noise], axis=1).std(axis=1, keepdims=True)
    np.testing.assert_allclose(z, (mu[1] - mu[0]) / sd, atol=1e-9)


def test_each_chunk_of_examples_runs_on_its_own_noise_and_the_largest_activation_of_all_counts(monkeypatch):
    vae = nv.VAE(copy.deepcopy(MODELS["mlp"]))
    x = images(MODELS["mlp"], 40)
    eps = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    x[:16] *= 20  # the first chunk is the loud one
    _, blocks = reading.unit_blocks(vae, ["enc1", "latent.z"])
    whole = reading.unit_means(vae, x, eps, blocks)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)  # 16 rows a chunk
    chunked = reading.unit_means(vae, x, eps, blocks)
    np.testing.assert_allclose(chunked.values, whole.values, atol=1e-4)
    loud = reading.unit_means(vae, x[:16], eps[:16], blocks)
    np.testing.assert_allclose(chunked.size, loud.size, rtol=1e-5)
    assert (loud.size > 1.2 * reading.unit_means(vae, x[16:], eps[16:], blocks).size).all()


# ---------------------------------------------------------------- units with positions, on every model


@pytest.fixture(params=MODELS, scope="module")
def world(request):
    return wrapped_with_pairs(MODELS[request.param])


def test_changes_at_units_with_positions_are_means_and_root_mean_squares(world):
    vae, pairs = world
    model = unwrapped(vae)
    sites = [name for name in default_sites(vae) if vae.sites[name].stage in ("encoder", "latent")]
    found = nv.manipulate_inputs(vae, pairs, sites)
    row = 0
    for name in sites:
        site = vae.sites[name]
        before, after = (
            record(model, x, name, pairs.eps).flatten(2 if len(site.shape) > 1 else 1)
            for x in (pairs.base, pairs.source)
        )
        before, after = (a.reshape(11, site.n_units, -1).double().numpy() for a in (before, after))
        both = np.concatenate([before, after]).mean(-1)
        for u in range(site.n_units):
            sd = both[:, u].std()
            want = (after - before)[:, u].mean(-1) / sd
            np.testing.assert_allclose(found.values[row, 0], want, rtol=1e-3, atol=1e-4)
            size = np.sqrt(np.square((after - before)[:, u]).mean(-1)) / sd
            np.testing.assert_allclose(found.parts["norm"].values[row, 0], size, rtol=1e-3, atol=1e-4)
            row += 1
    assert row == len(found.units)


def test_a_unit_at_one_position_is_read_there_and_nowhere_else():
    model = MODELS["conv"]
    vae, x, y = nv.VAE(copy.deepcopy(model)), images(model, 9), images(model, 9, seed=1)
    found = nv.manipulate_inputs(vae, nv.Pairs(x, y), ["encoder.0[1]@2,3", "encoder.0[1]", "encoder.0[0]@5,0"])
    assert found.units == ("encoder.0[1]@2,3", "encoder.0[1]", "encoder.0[0]@5,0")
    before, after = (record(copy.deepcopy(model), each, "encoder.0").double().numpy() for each in (x, y))
    for row, (unit, *at) in ((0, (1, 2, 3)), (2, (0, 5, 0))):
        b, a = before[:, unit, at[0], at[1]], after[:, unit, at[0], at[1]]
        np.testing.assert_allclose(found.values[row, 0], (a - b) / np.concatenate([a, b]).std(), rtol=1e-4)
        np.testing.assert_allclose(found.parts["norm"].values[row], np.abs(found.values[row]), rtol=1e-6)


def test_units_come_in_the_order_they_are_named():
    vae, _ = linear_world()
    names = ["latent.mu[2]", "enc[3]", "latent.mu[0]", "enc[0:2]"]
    found = nv.manipulate_inputs(vae, WORLD.pairs("other", 12), names)
    assert found.units == ("latent.mu[2]", "enc[3]", "latent.mu[0]", "enc[0]", "enc[1]")
    whole = nv.manipulate_inputs(vae, WORLD.pairs("other", 12), SITES)
    np.testing.assert_allclose(found.values, whole.select(list(found.units)).values, rtol=1e-12)


def test_joint_sets_are_refused():
    vae, _ = linear_world()
    with pytest.raises(nv.SiteError, match=r"'enc\[0\] \+ enc\[1\]' is a joint set"):
        nv.manipulate_inputs(vae, WORLD.pairs("other", 12), [("enc[0]", "enc[1]")])


# ---------------------------------------------------------------- memory


def test_chunks_change_nothing_and_only_one_at_a_time_is_kept(monkeypatch):
    model = MODELS["conv"]
    vae = nv.VAE(copy.deepcopy(model))
    pairs = nv.Pairs(images(model, 40), images(model, 40, seed=1))
    sites = ["encoder.0", "latent.z", "decoder.2"]
    whole = nv.manipulate_inputs(vae, pairs, sites)
    alive: list[weakref.ref] = []
    most = 0

    def watched(*args, **kwargs):
        nonlocal most
        clean = clean_run(*args, **kwargs)
        alive.extend(weakref.ref(each) for each in clean.outputs.values())
        gc.collect()  # a trace leaves cycles behind
        most = max(most, sum(ref() is not None for ref in alive))
        return clean

    clean_run = reading.clean_run
    monkeypatch.setattr(reading, "clean_run", watched)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)  # 16 rows a chunk
    chunked = nv.manipulate_inputs(vae, pairs, sites)
    assert len(alive) == 2 * 3 * 3
    assert most == 3  # the three sites of one run of one chunk
    np.testing.assert_allclose(chunked.values, whole.values, atol=1e-4)
    np.testing.assert_allclose(chunked.parts["norm"].values, whole.parts["norm"].values, atol=1e-4)


# ---------------------------------------------------------------- invariants and refusals


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_the_order_of_pairs_does_not_matter_and_exchanging_base_and_source_flips_the_sign(seed):
    vae, _ = linear_world(seed)
    pairs = WORLD.pairs("cause", n=15, seed=seed)
    found = nv.manipulate_inputs(vae, pairs, SITES)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(15))
    np.testing.assert_allclose(nv.manipulate_inputs(vae, pairs[order], SITES).mean(), found.mean(), rtol=1e-9)
    back = nv.manipulate_inputs(vae, pairs.reversed(), SITES)
    np.testing.assert_allclose(back.values, -found.values, rtol=1e-9)
    np.testing.assert_allclose(back.parts["norm"].values, found.parts["norm"].values, rtol=1e-9)


def test_pairs_of_different_units_of_the_world_are_refused():
    vae, _ = linear_world()
    a, b = WORLD.pairs("cause", 20), WORLD.pairs("other", 20)
    with pytest.raises(nv.DataError, match=r"'a' and 'b' are not of the same units of the world: 20 and 10 pairs"):
        nv.manipulate_inputs(vae, {"a": a, "b": b[:10]})
    grouped = nv.Pairs(b.base, b.source, groups=torch.arange(20).flip(0))
    straight = nv.Pairs(a.base, a.source, groups=torch.arange(20))
    for other in (a, straight):
        with pytest.raises(nv.DataError, match="groups must agree row by row"):
            nv.manipulate_inputs(vae, {"a": other, "b": grouped})
    noisy = nv.Pairs(b.base, b.source, eps=torch.zeros(20, 3, dtype=torch.double))
    with pytest.raises(nv.DataError, match="both carry noise"):
        nv.manipulate_inputs(vae, {"a": a, "b": noisy})
    with pytest.raises(nv.DataError, match="no pairs given"):
        nv.manipulate_inputs(vae, {})
    with pytest.raises(nv.DataError, match="got a Tensor where pairs belong"):
        nv.manipulate_inputs(vae, {"a": a.base})


def test_groups_of_all_factors_are_those_of_the_result():
    vae, _ = linear_world()
    by_factor = {
        f: nv.Pairs(p.base, p.source, groups=torch.arange(20) // 2)
        for f, p in ((f, WORLD.pairs(f, 20)) for f in ("cause", "other"))
    }
    found = nv.manipulate_inputs(vae, by_factor, SITES)
    assert found.n_clusters == found.parts["norm"].n_clusters == 10


def test_crossed_pairs_are_clustered_both_ways():
    vae, _ = linear_world()
    x = WORLD.sample(9).images
    found = nv.manipulate_inputs(vae, {"moved": nv.Pairs.crossed(x[:4], x[4:])}, SITES)
    assert found.groups.tolist() == np.repeat(range(4), 5).tolist()
    assert found.source_groups.tolist() == list(range(5)) * 4
    np.testing.assert_array_equal(found.parts["norm"].source_groups, found.source_groups)


@pytest.mark.parametrize("sites", [["encoder.2[3]"], ["encoder.2[0]"], ["encoder.0", "latent.mu"]])
def test_a_model_that_computes_nan_is_refused_by_its_first_unit_not_said_to_change_nothing(sites):
    model = copy.deepcopy(MODELS["conv"])
    with torch.no_grad():
        model.encoder[2].weight[3, 0, 0, 0] = float("nan")
    vae, x, y = nv.VAE(model), images(model, 6), images(model, 6, seed=1)
    with pytest.raises(nv.DataError, match=r"encoder\.2\[3\] is NaN for 6 of 6 inputs"):
        nv.manipulate_inputs(vae, nv.Pairs(x, y), sites)
    with pytest.raises(nv.DataError, match=r"encoder\.2\[3\] is NaN for 6 of 6 inputs"):
        nv.dose_response(vae, nv.Doses(torch.stack([x, y]), [0.0, 1.0]), sites)
    before = nv.manipulate_inputs(vae, nv.Pairs(x, y), ["encoder.0"])  # what comes before it is as it is
    assert (before.mean() != 0).all()


# ---------------------------------------------------------------- a model that was given labels


def test_the_first_latents_of_the_labelled_model_each_respond_to_their_own_factor_most():
    data, vae = nv.datasets.load("pendulum"), nv.load("pendulum-labelled-vae")
    found = nv.manipulate_inputs(vae, data.pairs_by_factor(n=64, seed=3), ["latent.mu[0:4]"])
    own = np.abs(found.mean())
    np.testing.assert_array_equal(own.argmax(axis=1), [0, 1, 2, 3])
    assert (np.diag(own) > 5 * (own - np.diag(np.diag(own))).max(axis=1)).all()
    assert found.significant(min_effect=0.5).test.passed.sum() == 4


def test_progress_counts_every_input_that_is_run(monkeypatch):
    vae, _ = linear_world()
    seen = []

    @contextmanager
    def bar(what, total, show):
        seen.append((what, total, show))
        yield seen.append

    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)  # 16 rows a chunk
    for level in (levels.inputs, levels.doses):
        monkeypatch.setattr(level, "progress_bar", bar)
    by_factor = {factor: WORLD.pairs(factor, n=30, seed=2) for factor in WORLD.factors[:2]}
    reference = WORLD.sample(25).images
    nv.manipulate_inputs(vae, by_factor, SITES, reference=reference, progress=True)
    (what, total, show), *rows = seen
    assert (what, show, total) == ("manipulating inputs", True, 2 * 2 * 30 + 25)
    assert sum(rows) == total
    assert len(rows) > 5
    seen.clear()
    images = torch.stack([WORLD.sample(30, seed=i).images for i in range(3)])
    nv.dose_response(vae, nv.Doses(images, [0.0, 1.0, 2.0], reference=reference), SITES, progress=False)
    (what, total, show), *rows = seen
    assert (what, show, total, sum(rows)) == ("following doses", False, 3 * 30 + 25, total)
