"""The activation level against hooks, one experiment at a time, and its identities."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hooks import literal, record
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, random_linear_vae
from torch import Tensor, nn
from vaes import Tokens, all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels import through
from nnsight_vae.levels.units import experiments

MODELS = {**all_vaes(), "tokens": seeded(Tokens(), 4)}


def noise_like_latent(vae: nv.VAE, n: int) -> Tensor:
    return torch.randn(n, *vae.sites["latent.mu"].shape, generator=torch.Generator().manual_seed(2))


def at(selection: nv.Selection, axis: int, change):
    """A hook's write: the activation with `change` of the selected units, at the selected position."""
    units = slice(None) if selection.indices is None else list(selection.indices)

    def write(value: Tensor) -> Tensor:
        value = value.clone()
        view = value.movedim(axis, 1)
        index = (slice(None), units, *(selection.position or ()))
        view[index] = change(view[index])
        return value

    return write


def chosen(activation: Tensor, selection: nv.Selection, axis: int) -> Tensor:
    view = activation.movedim(axis, 1)
    units = slice(None) if selection.indices is None else list(selection.indices)
    return view[(slice(None), units, *(selection.position or ()))]


# ---------------------------------------------------------------------- experiments
@pytest.fixture
def residual() -> nv.VAE:
    return nv.VAE(copy.deepcopy(MODELS["residual"]), example=torch.zeros(1, 1, 8, 8))


def test_experiments_are_units_sites_or_positions_and_joint_sets_in_any_case(residual):
    keys = ["latent.z", "block[1:3]@0,1", ("stem[0]", "latent.z[1]@2,2")]
    joint = {"stem[0] + latent.z[1]@2,2": (nv.Selection("stem", (0,)), nv.Selection("latent.z", (1,), (2, 2)))}
    assert experiments(residual, keys, "unit") == {
        "latent.z[0]": (nv.Selection("latent.z", (0,)),),
        "latent.z[1]": (nv.Selection("latent.z", (1,)),),
        "block[1]@0,1": (nv.Selection("block", (1,), (0, 1)),),
        "block[2]@0,1": (nv.Selection("block", (2,), (0, 1)),),
        **joint,
    }
    block = {"block[1:3]@0,1": (nv.Selection("block", (1, 2), (0, 1)),)}
    assert experiments(residual, keys, "site") == {"latent.z": (nv.Selection("latent.z"),), **block, **joint}
    per_position = {f"latent.z@{i},{j}": (nv.Selection("latent.z", None, (i, j)),) for i in range(4) for j in range(4)}
    assert experiments(residual, keys, "position") == {**per_position, **block, **joint}
    assert list(experiments(residual, ["latent.z[1]", "latent.z", "latent.z[0]"])) == ["latent.z[1]", "latent.z[0]"]


def test_a_site_without_positions_is_one_position():
    vae = nv.VAE(copy.deepcopy(MODELS["mlp"]))
    assert experiments(vae, "latent.z[0:2]", "position") == {"latent.z[0:2]": (nv.Selection("latent.z", (0, 1)),)}


@pytest.mark.parametrize(
    ("keys", "per", "error", "message"),
    [
        ([], "unit", nv.SiteError, "no sites given"),
        ([()], "unit", nv.SiteError, "no sites given"),
        (["stem", ()], "site", nv.SiteError, "no sites given"),
        (["stem"], "units", nv.InterventionError, "per must be 'unit', 'site' or 'position', got 'units'"),
        (["stem[9]"], "unit", nv.SiteError, "names no unit"),
        ([("stem", "nowhere")], "unit", nv.SiteError, "not a site"),
        ([["stem", "latent.z"]], "unit", nv.SiteError, "cannot read the key"),
    ],
)
def test_keys_that_make_no_experiment_are_refused(residual, keys, per, error, message):
    with pytest.raises(error, match=message):
        experiments(residual, keys, per)


# ---------------------------------------------------------------------- patching against hooks
class ThreePixels:
    names = ("a", "b", "c")

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)[:, [0, 7, -1]]


READ = ThreePixels()
N = 7


@cache
def pairs_of(model: nn.Module, noisy: bool = True, n: int = N) -> tuple[nv.VAE, nv.Pairs]:
    base, source = images(model, n), images(model, n, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=base)
    return vae, nv.Pairs(base, source, eps=noise_like_latent(vae, n) if noisy else None)


def run(vae: nv.VAE, model: nn.Module, x: Tensor, held: dict, eps, keep: tuple[nv.Selection, ...] = ()):
    """One literal run: selections held at values; the readout, and what some other selections become."""
    writes, kept = {}, {}

    def chain(site: str, function) -> None:
        before = writes.get(site, lambda value: value)
        writes[site] = lambda value: function(before(value))

    def keeper(key: nv.Selection, axis: int):
        def keeping(value: Tensor) -> Tensor:
            kept[key] = chosen(value, key, axis).clone()
            return value

        return keeping

    for key, value in held.items():
        chain(key.site, at(key, vae.sites[key.site].axis, value if callable(value) else lambda _, value=value: value))
    for key in keep:
        chain(key.site, keeper(key, vae.sites[key.site].axis))
    pixels = literal(model, x, writes, eps)
    return READ(pixels), kept


def literal_change(vae, model, receiver, held: dict, eps, levels=()) -> np.ndarray:
    """The readout's change when `held` reaches it through some levels only, `[target, pair]`."""
    for level in levels:
        _, held = run(vae, model, receiver, held, eps, tuple(level))
    return (run(vae, model, receiver, held, eps)[0] - clean_readout(model, receiver, eps)).double().numpy().T


@cache
def clean_readout(model: nn.Module, x: Tensor, eps: Tensor | None) -> Tensor:
    return READ(literal(model, x, {}, eps))


recorded = cache(record)


def donated(vae, model, x, joint, eps) -> dict:
    return {k: chosen(recorded(model, x, k.site, eps), k, vae.sites[k.site].axis) for k in joint}


def assert_equals_hooks(effects: nv.Effects, named: dict, vae, model, pairs, levels=()) -> None:
    assert effects.units == tuple(named)
    for row, joint in enumerate(named.values()):
        for way, receiver, donor, sign in (
            ("noising", pairs.base, pairs.source, 1),
            ("denoising", pairs.source, pairs.base, -1),
        ):
            held = donated(vae, model, donor, joint, pairs.eps)
            want = sign * literal_change(vae, model, receiver, held, pairs.eps, levels)
            np.testing.assert_allclose(effects.parts[way].values[row], want, atol=1e-5, err_msg=f"{joint} {way}")
    both = (effects.parts["noising"].values + effects.parts["denoising"].values) / 2
    np.testing.assert_array_equal(effects.values, both)


def some_units(vae: nv.VAE, first: int) -> list:
    """First and last units of the sites, every third of them, and two sets across sites."""
    names = [name for name in vae.sites if name != "latent.eps"]
    units = [f"{name}[{i}]" for name in names for i in sorted({0, vae.sites[name].n_units - 1})]
    return [
        *units[first::3],
        (f"{names[1]}[0]", f"{names[-2]}[-1]", "latent.z[1:]"),
        (f"{names[2]}[0]", f"{names[2]}[1]"),
    ]


def some_positions(vae: nv.VAE) -> list:
    spatial = [site for site in vae.sites.values() if site.grid]
    return [nv.Selection(site.name, (0,) if i % 2 else None, site.positions[-2]) for i, site in enumerate(spatial)]


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_patching_equals_hooks_per_unit_site_position_and_set(name, noisy):
    model = MODELS[name]
    vae, pairs = pairs_of(model, noisy)
    for per, keys in (
        ("unit", some_units(vae, int(noisy))),
        ("site", [*[s for s in vae.sites if s != "latent.eps"][noisy::3], "latent.z[0:2]"]),
        ("position", some_positions(vae) or ["latent.z"]),
    ):
        effects = nv.patch_activations(vae, pairs, keys, readout=READ, per=per)
        assert_equals_hooks(effects, experiments(vae, keys, per), vae, model, pairs)


PATHS = {
    "conv": (["encoder.0", "encoder.3[2]", ("encoder.1[0]", "encoder.2[3]@1,2")],
             [["latent.z[3]"], ["fc_mu[1]", "latent.z[0]", "decoder.5[2]"], [["fc_mu[0:2]"], ["decoder.0[5:9]", "decoder.4[1]@2,2"]]]),
    "mlp": (["enc1[0:3]", "enc2[4]"], [["latent.mu[1:3]"], [["heads[0]", "heads[6]"], ["latent.z[0]"], ["dec1[2:5]"]]]),
    "batchnorm": (["encoder.0[1]", "encoder.1[1]"], [["encoder.4[0]", "encoder.3[2]", "decoder.7[1]"]]),
    "residual": (["stem[1]", "block.first[2]@1,1"], [["block"], ["latent.z@1,2", "latent.z[1]@0,0"], [["head[0]"], ["grow[0:2]", "refine.first[1]"]]]),
    "tokens": (["input[2]", "input[1]@2"], [["embed[2]", "embed[0:2]@1"], [["latent.z[0]", "latent.z[2]"], ["grow[3:9]"]]]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_effects_through_named_units_equal_nested_runs_with_hooks(name):
    model = MODELS[name]
    vae, pairs = pairs_of(model)
    keys, paths = PATHS[name]
    sizes = []
    for path in paths:
        nested = path if isinstance(path[0], list) else [path]
        levels = [[vae.sites.select(key) for key in level] for level in nested]
        effects = nv.patch_activations(vae, pairs, keys, readout=READ, through=path)
        assert_equals_hooks(effects, experiments(vae, keys), vae, model, pairs, levels)
        assert effects.estimand.endswith(", through " + " -> ".join(" + ".join(map(str, level)) for level in levels))
        sizes.append(np.abs(effects.values).max())
    assert max(sizes) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_through_a_vertex_cut_is_the_plain_effect(name):
    vae, pairs = pairs_of(MODELS[name])
    keys = [site.name for site in vae.sites.values() if site.stage == "encoder"][::2]
    plain = nv.patch_activations(vae, pairs, keys, readout=READ)
    for cut in ("latent.z", [["latent.mu", "latent.logvar"], ["latent.z"], ["output"]]):
        whole = nv.patch_activations(vae, pairs, keys, readout=READ, through=cut)
        np.testing.assert_allclose(whole.values, plain.values, atol=1e-5)
    half = nv.patch_activations(vae, pairs, keys, readout=READ, through=["latent.mu"])
    assert np.abs(half.values - plain.values).max() > 1e-3  # the variance is a way of its own


def linear_world(seed: int = 0, n: int = 12):
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    base, source = (torch.randn(n, 6, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    weights = [layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out)]
    return nv.VAE(model), nv.Pairs(base, source), read, weights


@given(st.integers(0, 10_000), st.sets(st.integers(0, 2), min_size=1), st.integers(0, 4))
@settings(max_examples=6)
def test_path_effects_of_a_linear_vae_are_products_of_weights_along_the_paths(seed, ks, j):
    vae, pairs, read, (a1, a2, b1, b2) = linear_world(seed)
    ks = sorted(ks)
    moved = (pairs.source - pairs.base) @ a1.T
    to_y = read.c @ b2
    for path, gain in (
        ([f"latent.z[{k}]" for k in ks], to_y @ b1[:, ks] @ a2[ks]),
        ([f"dec[{j}]"], to_y[:, [j]] @ b1[[j]] @ a2),
        ([[f"latent.z[{k}]" for k in ks], [f"dec[{j}]"]], to_y[:, [j]] @ b1[[j]][:, ks] @ a2[ks]),
    ):
        effects = nv.patch_activations(vae, pairs, ["enc"], readout=read, through=path)
        want = torch.einsum("nu,tu->utn", moved, gain).numpy()
        for part in (effects, *effects.parts.values()):
            np.testing.assert_allclose(part.values, want, atol=1e-9)


def test_nothing_goes_through_a_unit_that_lies_beside():
    vae, pairs = pairs_of(MODELS["conv"])
    beside = nv.patch_activations(vae, pairs, ["fc_mu", "latent.mu"], readout=READ, through=["latent.logvar"])
    assert np.abs(beside.values).max() < 1e-6
    assert np.abs(nv.patch_activations(vae, pairs, ["fc_mu"], readout=READ).values).max() > 1e-3


# ---------------------------------------------------------------------- ablations
@pytest.mark.parametrize("name", ["conv", "mlp", "residual"])
def test_ablations_equal_hooks_in_both_directions(name):
    model = MODELS[name]
    vae, pairs = pairs_of(model)
    x, eps = torch.cat([pairs.base, pairs.source]), torch.cat([pairs.eps, pairs.eps])
    sites = [s for s in vae.sites if s not in ("latent.eps", "input")][::3]
    drawn = torch.randint(2 * N, (N,), generator=torch.Generator().manual_seed(0))
    few = torch.randint(3, (N,), generator=torch.Generator().manual_seed(5))

    def donors(x: Tensor, eps: Tensor, mean: bool = False):
        def change(site: str):
            donor = record(model, x, site, eps)[:, :1]
            return lambda a: donor.mean(0).expand_as(a) if mean else donor

        return change

    cases = {
        "zero": ("zero", lambda site: torch.zeros_like),
        "mean": ("mean", donors(x, eps, mean=True)),
        "resample": ("resample", donors(x[drawn], pairs.eps)),
        nv.Resample(x[:3], seed=5): ("resample", donors(x[few], pairs.eps)),
        nv.Mean(x[:1]): ("mean", donors(x[:1], pairs.eps[:1], mean=True)),
        nv.Set(-0.4): ("Set(-0.4)", lambda site: lambda a: torch.full_like(a, -0.4)),
    }
    for ablation, (word, change) in cases.items():
        effects = nv.patch_activations(vae, pairs, [f"{s}[0]" for s in sites], readout=READ, ablation=ablation)
        assert effects.estimand == f"ablation ({word}), mean of noising and denoising"
        assert effects.parts["denoising"].estimand == f"ablation ({word}), denoising"
        for row, site in enumerate(sites):
            held = {nv.Selection(site, (0,)): change(site)}
            noising = literal_change(vae, model, pairs.base, held, pairs.eps)
            denoising = -literal_change(vae, model, pairs.source, held, pairs.eps)
            np.testing.assert_allclose(effects.parts["noising"].values[row], noising, atol=1e-5)
            np.testing.assert_allclose(effects.parts["denoising"].values[row], denoising, atol=1e-5)
            np.testing.assert_allclose(effects.values[row], (noising + denoising) / 2, atol=1e-5)
    zero = nv.patch_activations(vae, pairs, sites, readout=READ, ablation=nv.Zero())
    np.testing.assert_array_equal(
        zero.values, nv.patch_activations(vae, pairs, sites, readout=READ, ablation="zero").values
    )


def test_noise_is_an_ablation_too_and_its_effect_grows_with_its_spread():
    vae, pairs, read, (_, _, b1, b2) = linear_world(n=400)
    small, large = (
        nv.patch_activations(vae, pairs, ["latent.z"], readout=read, ablation=nv.Noise(sd, seed=2), direction="noising")
        for sd in (0.5, 1.0)
    )
    assert large.estimand == "ablation (noise), noising"
    np.testing.assert_allclose(large.values, 2 * small.values, atol=1e-12)
    gain = (read.c @ b2 @ b1).T.abs().numpy()
    np.testing.assert_allclose(large.values.std(-1), gain, rtol=0.1)


@given(st.integers(0, 10_000), st.floats(-2, 2))
@settings(max_examples=5)
def test_ablations_of_a_linear_vae_are_distances_to_the_value_put(seed, value):
    vae, pairs, read, (a1, a2, b1, b2) = linear_world(seed)
    gain = read.c @ b2 @ b1
    before, after = (x @ (a2 @ a1).T for x in (pairs.base, pairs.source))
    mean = torch.cat([before, after]).mean(0)
    for ablation, put in ((nv.Set(value), value), ("zero", 0.0), ("mean", mean)):
        effects = nv.patch_activations(vae, pairs, ["latent.z"], readout=read, ablation=ablation)
        for way, distance in (("noising", put - before), ("denoising", after - put)):
            want = torch.einsum("nk,tk->ktn", distance, gain).numpy()
            np.testing.assert_allclose(effects.parts[way].values, want, atol=1e-9)
        patched = nv.patch_activations(vae, pairs, ["latent.z"], readout=read)
        np.testing.assert_allclose(effects.values, patched.values / 2, atol=1e-9)


def test_an_ablation_reaches_the_readout_through_named_units_only():
    model = MODELS["conv"]
    vae, pairs = pairs_of(model)
    levels = [
        [nv.Selection("fc_mu", (1, 2))],
        [nv.Selection("decoder.0", tuple(range(40))), nv.Selection("decoder.2", (4,))],
    ]
    effects = nv.patch_activations(
        vae,
        pairs,
        ["encoder.2[1:4]"],
        readout=READ,
        per="site",
        ablation="zero",
        through=[["fc_mu[1:3]"], ["decoder.0[0:40]", "decoder.2[4]"]],
    )
    assert effects.estimand.startswith(
        "ablation (zero), mean of noising and denoising, through fc_mu[1:3] -> decoder.0[0:40] + "
    )
    held = {nv.Selection("encoder.2", (1, 2, 3)): torch.zeros_like}
    for way, receiver, sign in (("noising", pairs.base, 1), ("denoising", pairs.source, -1)):
        want = sign * literal_change(vae, model, receiver, held, pairs.eps, levels)
        np.testing.assert_allclose(effects.parts[way].values[0], want, atol=1e-5)
        assert np.abs(want).max() > 1e-6


# ---------------------------------------------------------------------- identities
@pytest.mark.parametrize("name", MODELS)
def test_units_together_and_positions_together_are_the_site(name):
    vae, pairs = pairs_of(MODELS[name])
    site = max((s for s in vae.sites.values() if s.name not in ("input", "output")), key=lambda s: len(s.positions))
    units, cells = site.units, [nv.Selection(site.name, None, p) for p in site.positions if p]
    sets = [tuple(units), *([tuple(cells)] if cells else [])]
    effects = nv.patch_activations(vae, pairs, [site, *sets], readout=READ, per="site")
    for row in effects.values[1:]:
        np.testing.assert_allclose(row, effects.values[0], atol=1e-6)
    assert np.abs(effects.values).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", [{"through": ["latent.z[0]"]}, {"ablation": "mean"}, {"per": "site"}])
def test_noising_is_minus_denoising_of_the_reversed_pair_in_every_variant(name, how):
    vae, pairs = pairs_of(MODELS[name])
    keys = [s.name for s in vae.sites.values() if s.stage == "encoder"][:3]
    forth = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
    back = nv.patch_activations(vae, pairs.reversed(), keys, readout=READ, **how)
    np.testing.assert_allclose(forth.parts["noising"].values, -back.parts["denoising"].values, atol=1e-5)
    np.testing.assert_allclose(forth.values, -back.values, atol=1e-5)
    one = nv.patch_activations(vae, pairs, keys, readout=READ, direction="denoising", **how)
    np.testing.assert_array_equal(one.values, forth.parts["denoising"].values)
    assert one.estimand == forth.parts["denoising"].estimand


@pytest.mark.parametrize("name", MODELS)
def test_equal_inputs_have_no_effect_to_the_last_bit(name):
    vae, pairs = pairs_of(MODELS[name], n=12)
    same = nv.Pairs(pairs.base, pairs.base.clone(), eps=pairs.eps)
    early = list(vae.sites)[1]
    for how in ({}, {"per": "site"}, {"sites": [early], "through": ["latent.z[0]"]}):
        assert not nv.patch_activations(vae, same, readout=READ, **how).values.any()
    base = pairs.source.clone()
    base[3:5].add_(0.1)
    base[7, 0] += 0.1  # one row of the image, and all else as in the source
    some = nv.patch_activations(
        vae, nv.Pairs(base, pairs.source, eps=pairs.eps), ["latent.z"], readout=READ, per="site"
    )
    assert (np.abs(some.values).max((0, 1)) > 0).tolist() == [i in (3, 4, 7) for i in range(12)]


def test_without_any_effect_nothing_is_significant():
    vae, pairs = pairs_of(MODELS["mlp"], n=12)
    same = nv.Pairs(pairs.base, pairs.base.clone(), eps=pairs.eps)
    effects = nv.patch_activations(vae, same, ["latent.z"], readout=READ)
    assert (effects.pvalues() == 1).all()
    assert len(effects.significant().units) == 0
    ablated = nv.patch_activations(vae, same, ["latent.z"], readout=READ, ablation="zero")
    assert np.abs(ablated.parts["noising"].values).min() > 0
    np.testing.assert_allclose(ablated.values, 0, atol=1e-7)


@given(st.permutations(range(N)), st.permutations(range(5)), st.sampled_from([{}, {"ablation": "mean"}, {"through": ["latent.z[0]"]}]))  # fmt: skip
@settings(max_examples=9)
def test_permuting_pairs_and_units_permutes_results(order, units, how):
    vae, pairs = pairs_of(MODELS["mlp"])
    keys = ["enc1[0]", "enc2[3]", ("enc1[1]", "enc2[2]"), "enc1[4:6]", "heads[0]"]
    straight = nv.patch_activations(vae, pairs, keys, readout=READ, per="site", **how)
    shuffled = nv.patch_activations(vae, pairs[list(order)], [keys[i] for i in units], readout=READ, per="site", **how)
    assert shuffled.units == tuple(straight.units[i] for i in units)
    np.testing.assert_allclose(shuffled.values, straight.values[list(units)][:, :, list(order)], atol=1e-6)


def test_a_dead_unit_has_no_effect_in_any_variant():
    vae, pairs, read, _ = linear_world()
    with torch.no_grad():
        vae.module.mu.weight[:, 2] = 0  # nothing listens to unit 2
    for how in ({}, {"ablation": "zero"}, {"ablation": nv.Set(9.0)}, {"through": ["latent.z"]}):
        effects = nv.patch_activations(vae, pairs, ["enc"], readout=read, **how)
        assert np.abs(effects.values[2]).max() < 1e-12
        assert (np.abs(effects.values).max((1, 2)) > 1e-3).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("how", [{}, {"ablation": "resample"}, {"ablation": nv.Noise(1.0)}, {"through": [["fc_mu[0:3]"], ["decoder.2"]]}])  # fmt: skip
def test_chunks_change_nothing(how, monkeypatch):
    vae, pairs = pairs_of(MODELS["conv"])
    keys = ["encoder.0", "encoder.2"]
    whole = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)
    monkeypatch.setattr(engine, "MIN_ROWS", 3)
    for two_entries_or_two_pairs in (2 * (3 + 96) * N * 4, 2 * 96 * 4):
        monkeypatch.setattr(through, "CARRIED_BYTES", two_entries_or_two_pairs)
        again = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
        np.testing.assert_allclose(again.values, whole.values, atol=1e-5)


def test_pairs_are_independent_of_the_pairs_beside_them():
    vae, single = pairs_of(MODELS["residual"])
    model = vae.unwrap().double()  # in float32 a convolution of one row rounds in another order than one of seven
    vae, pairs = nv.VAE(model), nv.Pairs(single.base.double(), single.source.double(), eps=single.eps.double())
    keys = ["stem[1]", "latent.z[0]@1,1"]
    for how in ({}, {"ablation": "zero"}, {"through": ["refine[2]"]}):
        whole = nv.patch_activations(vae, pairs, keys, readout=READ, **how)
        parts = [
            nv.patch_activations(vae, pairs[rows], keys, readout=READ, **how).values
            for rows in (slice(0, 1), slice(1, 7))
        ]
        np.testing.assert_allclose(np.concatenate(parts, axis=2), whole.values, atol=1e-12)


def test_what_is_carried_between_runs_is_bounded(monkeypatch):
    """Entries run one by one where two would not fit, and together where they do."""
    vae, pairs = pairs_of(MODELS["conv"])
    lengths = []
    plain = through.run_interventions

    def counting(vae, x, plan, *args, **kwargs):
        lengths.append(len(plan))
        return plain(vae, x, plan, *args, **kwargs)

    monkeypatch.setattr(through, "run_interventions", counting)
    for carried, want in ((1, [1] * 8 * N), (2 * 96 * N * 4, [2] * 4), (3 * 96 * N * 4, [3, 3, 1, 1]), (10**9, [4, 4])):
        monkeypatch.setattr(through, "CARRIED_BYTES", carried)
        lengths.clear()
        nv.patch_activations(vae, pairs, ["encoder.0"], readout=READ, through=["decoder.2"], direction="noising")
        assert lengths == want
