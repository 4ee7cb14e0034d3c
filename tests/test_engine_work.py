"""What the engine does not do: rows that change nothing, layers above a site, whole layers for one channel. Counts, not clocks."""

from __future__ import annotations

import copy
import functools
import gc
import weakref

import pytest
import torch
from hooks import Everything
from torch import Tensor, nn
from vaes import all_vaes, images, seeded
from work import Work, rows_run

import nnsight_vae as nv
from nnsight_vae import engine, runs
from nnsight_vae.models import ConvVAE
from nnsight_vae.readouts import Region

READ = Region({"all": (slice(None), slice(None))})
MODELS = all_vaes()


def conv() -> nn.Module:
    return seeded(ConvVAE((1, 16, 16), latent=3, channels=(4, 6), hidden=16))


def images_of(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def swept(vae: nv.VAE, units: list[nv.Unit], x: Tensor, what: nv.Intervention) -> Work:
    """The work of intervening on units one by one, once what is tried once a site has been tried."""
    plan = [{unit: what} for unit in units]
    engine.run_interventions(vae, x, plan, READ)
    return rows_run(vae.module, lambda: engine.run_interventions(vae, x, plan, READ))


def layers(model: nn.Module) -> list[str]:
    """The layers on the way from image to reconstruction at the posterior mean."""
    return [name for name, part in model.named_modules() if hasattr(part, "weight") and name != "fc_logvar"]


@pytest.fixture
def ran(monkeypatch):
    """Rows of every run that is not the clean one."""
    counted: list[int] = []
    original = runs.run_from

    @functools.wraps(original)
    def counting(clean, start, rows, *args):
        counted.append(0 if rows is None else len(rows))
        return original(clean, start, rows, *args)

    monkeypatch.setattr(engine, "run_from", counting)
    return counted


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("noisy", [False, True])
def test_patching_an_example_with_itself_gives_the_baseline_to_the_bit_and_runs_nothing(name, noisy, ran):
    model = MODELS[name]
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 5)
    vae.encode(x)
    eps = torch.randn(5, *vae.sites["latent.mu"].shape, generator=torch.Generator().manual_seed(3)) if noisy else None
    read = Everything(model.image)
    base = engine.baseline(vae, x, read, eps=eps)
    for what in (nv.Swap(x), nv.Add(0.0), nv.Scale(1.0)):
        plan = [{unit: what} for site in vae.sites.values() for unit in site.units[:3]]
        plan += [{site: what} for site in vae.sites] + [{"input": what, "latent.z[1]": what}]
        got = engine.run_interventions(vae, x, plan, read, eps=eps)
        assert torch.equal(got, base.expand_as(got))
    assert sum(ran) == 0
    engine.run_interventions(vae, x, [{"latent.z[0]": nv.Add(1.0)}], read, eps=eps)
    assert sum(ran) == 5


def test_effects_of_equal_pairs_are_exactly_zero():
    vae, x = nv.VAE(conv()), images_of(6)
    effects = nv.patch_activations(vae, nv.Pairs(x, x.clone()), readout=READ)
    assert not effects.values.any()


def test_only_examples_that_differ_are_run(ran):
    vae, x = nv.VAE(conv()), images_of(8)
    source = x.clone()
    source[[1, 6]] = images_of(2, seed=1)
    plan = [{"latent.z[0]": nv.Swap(source)}, {"latent.z": nv.Swap(source)}, {"encoder.2[1]": nv.Swap(source)}]
    got = engine.run_interventions(vae, x, plan, READ)
    assert sum(ran) == 3 * 2
    changed = (got != engine.baseline(vae, x, READ)).any(2)
    assert changed.sum(0).tolist() == [0, 3, 0, 0, 0, 0, 3, 0]


@pytest.mark.parametrize("site", ["encoder.0", "encoder.2", "encoder.5", "decoder.0", "decoder.5"])
def test_a_unit_that_its_activation_hides_in_both_runs_is_not_run(site):
    model = conv()
    with torch.no_grad():
        model.get_submodule(site).bias[:2] = -20.0  # below zero on every input: ReLU gives 0 before and after
        model.get_submodule(site).bias[2:] = 10.0
    vae, x, source = nv.VAE(model), images_of(5), images_of(5, seed=1)
    units = list(vae.sites[site].units)
    work, last = swept(vae, units, x, nv.Swap(source)), layers(model)[-1]
    assert work.rows[last] + work.partial[last] == 5 * (1 + len(units) - 2)  # the clean run, and the units that show
    got = engine.run_interventions(vae, x, [{unit: nv.Swap(source)} for unit in units], READ)
    base = engine.baseline(vae, x, READ)
    assert torch.equal(got[:2], base.expand_as(got[:2]))
    assert bool((got[2:] != base).any())


PATHS = {
    "encoder.0": 0,
    "encoder.2": 1,
    "encoder.3": 1,
    "fc_mu": 3,
    "latent.z": 3,
    "decoder.0": 4,
    "decoder.4": 5,
    "decoder.5": 6,
}


@pytest.mark.parametrize("site", PATHS)
def test_no_layer_at_or_above_the_site_runs_again_and_the_next_one_runs_in_part(site):
    model = conv()
    vae, x = nv.VAE(model), images_of(6)
    units = list(vae.sites[site].units)
    work, names = swept(vae, units, x, nv.Add(50.0)), layers(model)  # 50 shows through any activation
    above, following = names[: PATHS[site] + 1], names[PATHS[site] + 1 :]
    assert [work.rows[name] for name in above] == [6] * len(above)
    if site != "fc_mu":  # code between mu and z: z is run from, not the layer after it
        first = following.pop(0)
        assert (work.rows[first], work.partial[first]) == (6, 6 * len(units))
    assert [work.rows[name] for name in following] == [6 * len(units)] * len(following)


@pytest.mark.parametrize("site", ["encoder.0", "latent.z", "decoder.0"])
@pytest.mark.parametrize(("pairs", "units"), [(1, 3), (4, 1), (4, 3), (64, 2)])
def test_the_work_is_linear_in_pairs_and_in_units(site, pairs, units):
    vae, x = nv.VAE(conv()), images_of(pairs)
    work = swept(vae, list(vae.sites[site].units[:units]), x, nv.Add(50.0))
    names = layers(vae.module)
    here = PATHS[site] + 1
    assert [work.rows[name] for name in names[: here + 1]] == [pairs] * (here + 1)
    assert work.partial[names[here]] == pairs * units
    assert [work.rows[name] for name in names[here + 1 :]] == [pairs * units] * len(names[here + 1 :])


class Reconstruction:
    names = tuple(map(str, range(256)))

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.flatten(1)


@pytest.mark.parametrize("budget", [1, 3_000, 50_000])
def test_no_number_depends_on_the_chunk(budget, monkeypatch):
    vae, x, source = nv.VAE(conv()), images_of(7), images_of(7, seed=1)
    plan = [{unit: nv.Swap(source)} for site in vae.sites.values() for unit in site.units[:5]]
    plan += [{"encoder.0[0:2]": nv.Swap(source)}, {"encoder.2": nv.Swap(source), "latent.z[1]": nv.Add(1.0)}]
    whole = engine.run_interventions(vae, x, plan, Reconstruction())
    monkeypatch.setattr(engine, "CHUNK_BYTES", budget)
    monkeypatch.setattr(engine, "MIN_ROWS", 3)
    torch.testing.assert_close(engine.run_interventions(vae, x, plan, Reconstruction()), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder.2.bias", float("nan"), r"Without any intervention encoder\.2\[3\] is NaN for 6 of 6 inputs"),
        ("decoder.5.bias", float("inf"), r"Without any intervention decoder\.5\[3\] is infinite for 6 of 6 inputs"),
    ],
)
def test_a_model_that_is_not_finite_is_said_to_be_so_with_its_first_unit(path, value, message):
    model = conv()
    with torch.no_grad():
        model.get_parameter(path)[3] = value
    vae, x = nv.VAE(model), images_of(6)
    with pytest.raises(nv.InterventionError, match=message):
        engine.run_interventions(vae, x, [{"latent.z[0]": nv.Set(1.0)}], READ)
    with pytest.raises(
        nv.ReadoutError, match=message.replace("Without", "without").replace("intervention", "intervention:")
    ):
        engine.baseline(vae, x, READ)


def test_an_intervention_that_overflows_is_said_to_with_the_unit_where_it_does():
    vae, x = nv.VAE(conv()), images_of(6)
    far = torch.zeros(6, 1)
    far[[1, 4]] = 3e38
    plan = [{"latent.z[0]": nv.Set(1.0)}, {"latent.z[2]": nv.Add(far)}]
    with pytest.raises(
        nv.InterventionError,
        match=r"under 1 of 2 .*latent\.z\[2\] <- Add.* There decoder\.\d+\[\d+\] is \w+ for 2 of 6",
    ):
        engine.run_interventions(vae, x, plan, READ)


def test_a_readout_that_makes_the_number_itself_is_named():
    class Log:
        names = ("log",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return (reconstruction.flatten(1)[:, :1] - 2).log()

    vae, x = nv.VAE(conv()), images_of(3)
    with pytest.raises(nv.ReadoutError, match=r"Log is NaN .*all activations are finite, so the readout itself"):
        engine.baseline(vae, x, Log())
    with pytest.raises(nv.InterventionError, match="There all activations are finite, so the readout itself"):
        engine.run_interventions(vae, x, [{"latent.z[0]": nv.Set(1.0)}], Log())


def test_a_joint_intervention_runs_where_any_of_its_parts_changes_something():
    vae, x = nv.VAE(conv()), images_of(4)
    alone, *joint = engine.run_interventions(
        vae,
        x,
        [
            {"encoder.0[0]": nv.Add(1.0)},
            {"encoder.0[0]": nv.Add(1.0), "latent.z[0]": nv.Add(0.0)},
            {"latent.z[0]": nv.Add(0.0), "encoder.0[0]": nv.Add(1.0)},
        ],
        Reconstruction(),
    )
    assert bool((alone != engine.baseline(vae, x, Reconstruction())).any())
    for row in joint:
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


def test_each_of_the_examples_that_are_run_gets_its_own_donor():
    vae, x, source = nv.VAE(conv()), images_of(8), images_of(8)
    source[[1, 4, 6]] = images_of(3, seed=1)
    got = engine.run_interventions(vae, x, [{"latent.z": nv.Swap(source)}], Reconstruction())
    torch.testing.assert_close(got[0], engine.baseline(vae, source, Reconstruction()), atol=1e-5, rtol=0)


def test_a_write_in_place_does_not_reach_what_a_clean_run_remembers():
    vae, x = nv.VAE(conv()), images_of(3)
    with torch.no_grad():
        clean = runs.clean_run(vae, x)
        before = clean.at("latent.z").clone()
        moved = runs.run_from(clean, "latent.z", None, {"latent.z": lambda z: z.add_(1.0)}, READ)
        assert torch.equal(clean.at("latent.z"), before)
        torch.testing.assert_close(moved, READ(vae.decode(before + 1)))


def test_a_run_leaves_nothing_behind_for_the_garbage_collector():
    vae, x = nv.VAE(conv()), images_of(3)
    with torch.no_grad():
        vae.encode(x)
        gc.collect()
        gc.disable()
        try:
            clean = runs.clean_run(vae, x)
            kept = weakref.ref(clean.outputs["model.encoder.0"])
            runs.run_from(clean, "model.encoder.0", torch.tensor([0, 2]), {}, READ)
            del clean
            assert kept() is None
        finally:
            gc.enable()
