"""The activation level against hooks, one experiment at a time: units, positions, sets and paths."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hooks import record
from hypothesis import given, settings, strategies as st
from patched import MODELS, READ, chosen, linear_vae_and_pairs, literal_change, pairs_of

import nnsight_vae as nv
from nnsight_vae.levels.units import experiments


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


@given(st.integers(0, 10_000), st.sets(st.integers(0, 2), min_size=1), st.integers(0, 4))
@settings(max_examples=6)
def test_path_effects_of_a_linear_vae_are_products_of_weights_along_the_paths(seed, ks, j):
    vae, pairs, read, (a1, a2, b1, b2) = linear_vae_and_pairs(seed)
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
