"""Interchange accuracy of units: against hand-built models of known worlds, closed forms and a literal twin."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from factor_models import WIDTH, Bars, factor_vae, factor_world, rotated, untrained
from vaes import all_vaes, wrapped_with_pairs

import nnsight_vae as nv
from nnsight_vae.causal.carriers import Subspace, Swaps, UnitSet, others, random_frame
from nnsight_vae.engine import baseline, run_interventions

WORLD = factor_world(0)
FACTORS = WORLD.factors


def accuracy(model, mapping=None, world=WORLD, **kwargs):
    return nv.causal.interchange_accuracy(nv.VAE(model), world, mapping or model.latents, **{"n": 64} | kwargs)


def alone(result, joint=False):
    return {row.factor: row.score for row in result.rows if not row.propagate and row.joint == joint}


@pytest.mark.parametrize(("seed", "linear"), [(0, True), (1, True), (2, False)])
def test_latents_that_are_the_factors_do_what_the_world_says(seed, linear):
    world = factor_world(seed, linear=linear)
    result = accuracy(factor_vae(world, seed=seed), world=world)
    assert min(alone(result).values()) >= 0.99
    assert len(alone(result)) == len(world.factors)
    (joint,) = {
        row.score for row in result.rows if row.joint
    }  # all factors are set: there are no descendants to follow
    assert joint >= 0.99


def test_knobs_miss_what_the_descendants_do():
    """Of do(x_i = x_i + d) the world makes T_i d, T the total effects; the knob makes d of factor i alone."""
    result = accuracy(factor_vae(WORLD))
    for row in result.rows:
        if row.propagate and not row.joint:
            moved = np.square(WORLD.total_effects()[FACTORS.index(row.factor)]).sum()
            assert row.score == pytest.approx(1 / moved, abs=2e-3)


def test_a_rotated_copy_loses_it():
    scores = [alone(accuracy(rotated(factor_vae(WORLD), seed))) for seed in range(4)]
    assert all(np.mean(list(each.values())) < 0.3 for each in scores)
    assert all(max(each.values()) < 0.95 for each in scores)


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_has_nothing_to_speak_of(seed):
    result = accuracy(untrained(WORLD, seed))
    assert all(abs(row.score) < 0.06 for row in result.rows)
    assert all(row.best_control < 0.06 for row in result.rows)


def literal(model, swapped, n, seed, propagate):
    """The score of `{factor: latents}`, factor j taken from source j, with nothing of the package but the world."""
    base = WORLD.sample(n, seed=seed)
    sources = [WORLD.sample(n, seed=seed + 1 + j) for j in range(len(swapped))]
    read = Bars(FACTORS)
    with torch.no_grad():
        z = model.encode(base.images)[0]
        new = z.clone()
        for source, latents in zip(sources, swapped.values(), strict=True):
            new[:, latents] = model.encode(source.images)[0][:, latents]
        predicted = read(model.decode(new)) - read(model.decode(z))
    values = {} if propagate else {f: base.factors[:, j] for j, f in enumerate(FACTORS)}
    for source, factor in zip(sources, swapped, strict=True):
        values[factor] = source.factors[:, FACTORS.index(factor)]
    truth = read(WORLD.counterfactual(base, **values).images) - read(base.images)
    return float(1 - (predicted - truth).square().sum() / truth.square().sum())


def test_scores_and_controls_equal_a_literal_computation():
    model = rotated(factor_vae(WORLD), 1)
    swaps = ["cloud", ("drum", "brick"), ("cloud", "apple", "eagle")]
    result = accuracy(model, {"cloud": 1, "drum": 0, "brick": 3, "apple": 4, "eagle": 2}, swaps=swaps, n=40, seed=7)
    assert [row.factor for row in result.rows[::2]] == ["cloud", "drum + brick", "cloud + apple + eagle"]
    for row in result.rows:
        latents = {"cloud": [1], "drum": [0], "brick": [3], "apple": [4], "eagle": [2]}
        swapped = {factor: latents[factor] for factor in row.factor.split(" + ")}
        assert row.score == pytest.approx(literal(model, swapped, 40, 7, row.propagate), abs=1e-5)
        assert row.low <= row.score <= row.high
        if row.factor == "cloud":
            beside = [literal(model, {"cloud": [k]}, 40, 7, row.propagate) for k in (0, 2, 3, 4)]
            assert row.control == pytest.approx(np.mean(beside), abs=1e-5)
            assert row.best_control == pytest.approx(max(beside), abs=1e-5)
            whole = literal(model, {"cloud": [0, 1, 2, 3, 4]}, 40, 7, row.propagate)
            assert row.everything == pytest.approx(whole, abs=1e-5)
        else:
            assert row.everything is None


def test_the_controls_of_a_set_are_the_other_sets_of_its_size():
    model = rotated(factor_vae(WORLD), 2)
    row = accuracy(model, {"cloud": ["latent.z[0]", "latent.z[3]"]}, n=40).rows[0]
    assert row.units == "latent.z[0,3]"
    assert row.score == pytest.approx(literal(model, {"cloud": [0, 3]}, 40, 0, False), abs=1e-5)
    pairs = [[i, j] for i in range(5) for j in range(i + 1, 5) if (i, j) != (0, 3)]
    beside = [literal(model, {"cloud": pair}, 40, 0, False) for pair in pairs]
    assert row.control == pytest.approx(np.mean(beside), abs=1e-5)


@pytest.mark.parametrize(
    "key",
    [
        lambda j: f"encoder.2[{2 * j}:{2 * j + 2}]",
        lambda j: f"decoder.0[{j * (WIDTH + 1)}:{(j + 1) * (WIDTH + 1)}]",
        lambda j: [f"decoder.1[{i}]" for i in range(j * (WIDTH + 1), (j + 1) * (WIDTH + 1))],
        lambda j: (f"latent.mu[{factor_vae(WORLD).latents[FACTORS[j]]}]",),
    ],
    ids=["encoder", "decoder", "keys", "posterior"],
)
def test_the_units_of_a_factor_carry_it_at_every_layer(key):
    """In a rotated copy too, wherever the layer is not the latent."""
    mapping = {factor: key(j) for j, factor in enumerate(FACTORS)}
    models = [factor_vae(WORLD)] if "mu" in str(key(0)) else [factor_vae(WORLD), rotated(factor_vae(WORLD))]
    for model in models:
        result = accuracy(model, mapping, n=32)
        assert min(alone(result).values()) >= 0.99
        assert alone(result, joint=True)[" + ".join(FACTORS)] >= 0.99


def test_units_that_do_not_carry_a_factor_score_nothing_and_units_of_several_sites_are_one_set():
    """The bar's length is h_0 - h_8 of its thermometer h, and h_8 is 0: unit 0 carries it alone."""
    model = factor_vae(WORLD)
    rest, split = {"apple": "decoder.1[1:9]"}, {"apple": ["decoder.0[0:4]", "decoder.1[4:9]"]}
    assert accuracy(model, rest, n=32).rows[0].score == pytest.approx(0, abs=1e-5)
    row = accuracy(model, split, n=32).rows[0]
    assert row.score >= 0.99
    assert row.units == "decoder.0[0:4] + decoder.1[4:9]"
    assert accuracy(model, {"apple": [model.latents["apple"]]}, n=32).rows[0].score >= 0.99


def test_a_score_is_undefined_where_nothing_changes_or_units_are_shared():
    latents = factor_vae(WORLD).latents
    blind = accuracy(factor_vae(WORLD), {"apple": latents["apple"]}, readout=Bars(FACTORS)["brick"])
    assert [row.score for row in blind.rows] == [None, None]
    assert "changes in the world when apple is swapped" in blind.rows[0].reason
    assert "undefined" in str(blind)
    both = accuracy(factor_vae(WORLD), {"apple": 0, "brick": [0, 1]})
    assert [row.score is None for row in both.rows] == [False, False, False, False, True, True]
    assert "latent.z[0]" in both.rows[-1].reason
    assert both.to_frame()["score"].isna().tolist() == [False] * 4 + [True] * 2


def test_a_reader_is_told_of_what_has_no_other_set():
    row = accuracy(factor_vae(WORLD), {"apple": "latent.z"}).rows[0]
    assert (row.control, row.best_control) == (None, None)
    assert row.score == row.everything
    assert "no other set" in row.reason


def test_the_table_names_every_swap_and_what_nothing_carries():
    result = accuracy(factor_vae(WORLD), factor_vae(WORLD).latents | {"eagle": None})
    assert result.unmatched == ("eagle",)
    text = str(result)
    assert "matched to nothing, so not swapped: eagle" in text
    for row in result.rows:
        assert row.factor in text
        assert row.joint or row.units in text
    assert list(result.to_frame()["factor"]) == [row.factor for row in result.rows]


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others():
    model = rotated(factor_vae(WORLD))
    first, again, other = (accuracy(model, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.rows[0].score != other.rows[0].score


@pytest.mark.parametrize("name", ["conv", "batchnorm", "residual", "mlp"])
def test_a_subspace_of_axes_is_the_set_of_those_units(name):
    """At layers with positions too, alone and in joint swaps from two sources."""
    vae, pairs = wrapped_with_pairs(all_vaes()[name], n=6)
    read = nv.readouts.Pixels(vae.sites["output"].shape)
    more = torch.rand_like(pairs.source)
    moved = 0.0
    for site in [each for each in vae.sites.values() if each.kind in ("conv", "linear", "latent") and each.n_units > 1]:
        eye = torch.eye(site.n_units, dtype=torch.float64)
        swaps = Swaps(vae, pairs.base)
        plan = []
        for of in (
            lambda indices: UnitSet.of(vae, [vae.sites.select(f"{site.name}[{i}]") for i in indices]),
            lambda indices: Subspace(site.name, eye[indices]),
        ):
            two = (of([0]), pairs.source), (of([1]), more)
            plan += [swaps.joint(two[:1]), swaps.joint(two), swaps.joint([(of([1, 0]), more)])]
        values = run_interventions(vae, pairs.base, plan, read)
        assert torch.allclose(values[:3], values[3:], atol=1e-5)
        moved += float((values[1] - baseline(vae, pairs.base, read)).abs().max())
    assert moved > 0.01


def test_other_sets_are_of_the_same_size_disjoint_and_none_is_the_set_itself():
    vae = nv.VAE(factor_vae(WORLD))
    sets = [UnitSet.of(vae, [vae.sites.select(key)]) for key in ("decoder.1[0:3]", "decoder.1[7]", "latent.z[2]")]
    found = others(vae, sets, 16, seed=0)
    assert len(found) == len(set(found)) == 16
    for joint in found:
        assert [len(each.selections[0].indices) for each in joint] == [3, 1, 1]
        assert [each.selections[0].site for each in joint] == ["decoder.1", "decoder.1", "latent.z"]
        assert joint[1].selections[0].indices[0] not in joint[0].selections[0].indices
        assert joint != tuple(sets)
    assert others(vae, sets, 16, seed=0) == found != others(vae, sets, 16, seed=1)
    assert len(others(vae, [UnitSet.of(vae, [vae.sites.select("latent.z[2]")])], 16, seed=0)) == 4
    assert others(vae, [UnitSet.of(vae, [vae.sites.select("latent.z")])], 16, seed=0) == []


def test_units_at_a_position_are_held_against_their_kind():
    vae, _ = wrapped_with_pairs(all_vaes()["conv"], n=2)
    (site,) = [s for s in vae.sites.values() if s.name == "encoder.2"]
    whole = UnitSet.of(vae, [vae.sites.select("encoder.2@0,1")])
    elsewhere = others(vae, [whole], 100, seed=0)
    assert len(elsewhere) == len(site.positions) - 1
    assert {each[0].selections[0].position for each in elsewhere} == set(site.positions) - {(0, 1)}
    few = others(vae, [UnitSet.of(vae, [vae.sites.select("encoder.2[1]@0,1")])], 100, seed=0)
    assert {each[0].selections[0].position for each in few} == {(0, 1)}
    assert len(few) == site.n_units - 1


def test_random_frames_are_orthonormal_and_random_subspaces_of_a_joint_swap_are_orthogonal():
    generator = torch.Generator().manual_seed(0)
    frame = random_frame(3, 7, generator)
    assert torch.allclose(frame @ frame.T, torch.eye(3, dtype=torch.float64))
    first = torch.stack([random_frame(1, 3, generator)[0] for _ in range(2000)])
    assert first.mean(0).abs().max() < 0.05  # signs are random: without R's signs they would not be
    vae = nv.VAE(factor_vae(WORLD))
    joint = [Subspace("latent.z", torch.eye(5, dtype=torch.float64)[rows]) for rows in ([0, 1], [2])]
    for one, two in others(vae, joint, 4, seed=0):
        assert (one.basis.shape, two.basis.shape) == ((2, 5), (1, 5))
        assert (one.basis @ two.basis.T).abs().max() < 1e-12
    assert others(vae, [Subspace("latent.z", torch.eye(5, dtype=torch.float64))], 4, seed=0) == []


def test_bad_input_is_refused():
    model, latents = factor_vae(WORLD), factor_vae(WORLD).latents
    for mapping, error, match in (
        ({"mass": 0}, nv.DataError, "no factors"),
        ({"apple": 5}, nv.DataError, "latents 0-4"),
        ({"apple": -1}, nv.DataError, "latents 0-4"),
        ({"apple": []}, nv.DataError, "empty set"),
        ({"apple": "latent.z[9]"}, nv.SiteError, "units"),
        ({"apple": "nowhere"}, nv.SiteError, "is not a site"),
        ({"apple": ["latent.z[0]", "latent.z[0:2]"]}, nv.InterventionError, "both name"),
        ({"apple": True}, nv.DataError, "asks for True"),
        ("latent.z[0]", nv.DataError, "got a str where a mapping belongs"),
    ):
        with pytest.raises(error, match=match):
            accuracy(model, mapping)
    for swaps in (["mass"], [()], [("apple", "apple")]):
        with pytest.raises(nv.DataError, match="cannot swap"):
            accuracy(model, latents, swaps=swaps)
    with pytest.raises(nv.DataError, match="cannot swap"):
        accuracy(model, latents | {"apple": None}, swaps=["apple"])
    with pytest.raises(nv.DataError, match="n=19"):
        accuracy(model, n=19)
    images = np.random.default_rng(0).random((60, 1, 5, 8))
    data = nv.datasets.from_arrays(images, images[:, 0, 0, :2], names=["a", "b"])
    with pytest.raises(nv.DataError, match="structural causal model"):
        nv.causal.interchange_accuracy(nv.VAE(model), data, {"a": 0}, readout=Bars(FACTORS), n=20)
    with pytest.raises(nv.AdapterError, match="wrap it first"):
        nv.causal.interchange_accuracy(model, WORLD, latents)


def test_the_model_is_as_before_after_errors_too():
    class Failing(Bars):
        calls = 0

        def __call__(self, reconstruction):
            Failing.calls += 1
            if Failing.calls > 3:
                raise RuntimeError("the readout broke")
            return super().__call__(reconstruction)

    model = factor_vae(WORLD).train()
    model.mu.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    vae = nv.VAE(model)
    nv.causal.interchange_accuracy(vae, WORLD, model.latents, n=20)
    with pytest.raises(RuntimeError, match="the readout broke"):
        nv.causal.interchange_accuracy(vae, WORLD, model.latents, n=20, readout=Failing(FACTORS))
    assert Failing.calls > 3
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["mu.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_progress_is_shown_where_asked_for(capsys):
    accuracy(factor_vae(WORLD), n=20, progress=True)
    assert capsys.readouterr().out == ""
