"""The activation level against hooks, one experiment at a time, and its identities."""

from __future__ import annotations

import copy

import pytest
import torch
from test_engine import Everything, literal, record
from test_engine_edges import Tokens
from torch import Tensor
from vaes import all_vaes, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels.through import Activation
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


@pytest.mark.parametrize("name", ["conv", "residual", "tokens"])
def test_every_intervention_at_a_position_equals_hooks(name):
    model = MODELS[name]
    x, source = images(model, 4), images(model, 4, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    eps, read = noise_like_latent(vae, 4), Everything(model.image)
    drawn = torch.randint(4, (4,), generator=torch.Generator().manual_seed(7))
    checked = 0
    for site in vae.sites.values():
        if not site.grid:
            continue
        donor = record(model, source, site.name, eps)
        resampled = record(model, source[drawn], site.name, eps)
        keys = [nv.Selection(site.name, (0,), p) for p in site.positions[:: max(1, len(site.positions) // 3)]]
        keys += [nv.Selection(site.name, None, site.positions[-1]), nv.Selection(site.name, (0, site.n_units - 1), site.positions[1])]  # fmt: skip
        plan, wanted = [], []
        for key in map(vae.sites.select, keys):
            units = len(vae.sites.units(key))
            values = torch.linspace(-1, 1, 4 * units).view(4, units)
            for what, change in (
                (nv.Set(0.7), lambda a: torch.full_like(a, 0.7)),
                (nv.Set(values), lambda a, v=values: v),
                (nv.Add(values[:1]), lambda a, v=values: a + v[:1]),
                (nv.Scale(-2.0), lambda a: -2 * a),
                (nv.Zero(), torch.zeros_like),
                (nv.Swap(source), lambda a, k=key: chosen(donor, k, site.axis)),
                (nv.Mean(source), lambda a, k=key: chosen(donor, k, site.axis).mean(0).expand_as(a)),
                (nv.Resample(source, seed=7), lambda a, k=key: chosen(resampled, k, site.axis)),
            ):
                plan.append({key: what})
                wanted.append(literal(model, x, {site.name: at(key, site.axis, change)}, eps))
        got = engine.run_interventions(vae, x, plan, read, eps=eps)
        for entry, row, want in zip(plan, got, wanted, strict=True):
            torch.testing.assert_close(row, want, atol=1e-5, rtol=0, msg=f"{entry}")
        checked += len(plan)
    assert checked > 100


@pytest.mark.parametrize("m", [1, 3, 4, 9, 130])
def test_a_mean_is_over_the_reference_with_the_noise_of_the_examples_in_turn(m):
    model = MODELS["conv"]
    x, reference = images(model, 4), images(model, m, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    eps = noise_like_latent(vae, 4)
    rows = torch.arange(m) % 4
    for site in ("encoder.2", "latent.mu", "latent.z", "decoder.5"):
        read = Activation(vae.sites[site], (nv.Selection(site),))
        for noise in (None, eps):
            got = engine.run_interventions(vae, x, [{site: nv.Mean(reference)}], read, eps=noise)[0]
            want = record(model, reference, site, None if noise is None else noise[rows]).flatten(1).mean(0)
            torch.testing.assert_close(got, want.expand_as(got), atol=1e-5, rtol=0)


def test_noise_at_a_position_is_what_the_whole_unit_gets_there():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 5)
    whole = nv.intervene(vae, x, {"latent.z[1]": nv.Noise(2.0, seed=3)})
    here = nv.intervene(vae, x, {"latent.z[1]@2,-1": nv.Noise(2.0, seed=3)})
    torch.testing.assert_close(here.z[:, 1, 2, 3], whole.z[:, 1, 2, 3])
    elsewhere = torch.ones(2, 4, 4, dtype=torch.bool)
    elsewhere[1, 2, 3] = False
    assert torch.equal(here.z[:, elsewhere], here.mu[:, elsewhere])
    assert (here.z - here.mu)[:, 1, 2, 3].abs().min() > 0


def test_a_code_is_put_at_one_position_of_a_spatial_latent():
    model = copy.deepcopy(MODELS["residual"])
    codebook = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    vae = nv.adapt(model, encoder=model.encode, decoder=model.decode, codebook=codebook)
    out = nv.intervene(vae, images(model, 2), {"latent.z@1,2": nv.Quantize(2), "latent.z[0]@0,0": nv.Quantize(1)})
    assert torch.equal(out.z[:, :, 1, 2], codebook[2].expand(2, 2))
    assert torch.equal(out.z[:, 0, 0, 0], codebook[1, 0].expand(2))
    assert (out.z != out.mu).flatten(1).sum(1).tolist() == [3, 3]


def test_joint_interventions_may_share_a_unit_but_not_at_a_position():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 2)
    out = nv.intervene(vae, x, {"latent.z[1]@0,0": nv.Set(1.0), "latent.z[1]@0,1": nv.Set(2.0)})
    assert out.z[0, 1, 0, :2].tolist() == [1.0, 2.0]
    for other in ("latent.z[1]", "latent.z", "latent.z@0,0", "latent.z[0:2]@-4,0", "latent.z[1]@0,0 "):
        for joint in (
            {"latent.z[1]@0,0": nv.Zero(), other: nv.Zero()},
            {other: nv.Zero(), "latent.z[1]@0,0": nv.Zero()},
        ):
            with pytest.raises(nv.InterventionError, match=r"both name latent\.z\[1\]"):
                nv.intervene(vae, x, joint)


def test_a_tensor_that_does_not_fit_the_position_is_refused():
    model = MODELS["residual"]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 2)
    with pytest.raises(nv.InterventionError, match=r"activation has shape \(2, 2\) \(\[n, units\]\)"):
        nv.intervene(vae, x, {"latent.z@0,0": nv.Set(torch.zeros(2, 2, 4, 4))})


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
