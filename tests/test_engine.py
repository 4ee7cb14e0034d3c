"""The engine against hand-written torch hooks, one intervention at a time, on an unwrapped copy of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from hooks import Everything, literal, record, unit_write
from torch import Tensor
from vaes import all_vaes, images
from work import rows_run

import nnsight_vae as nv
from nnsight_vae import engine

MODELS = all_vaes()


@pytest.fixture(params=MODELS, scope="module")
def case(request):
    model = MODELS[request.param]
    return model, nv.VAE(copy.deepcopy(model)), images(model, 5), images(model, 5, seed=1)


@pytest.mark.parametrize("noisy", [False, True])
def test_every_unit_of_every_site_equals_hooks(case, noisy):
    model, vae, x, source = case
    vae.encode(x)
    shape = vae.sites["latent.mu"].shape
    eps = torch.randn(5, *shape, generator=torch.Generator().manual_seed(3)) if noisy else None
    read = Everything(model.image)
    for name, site in vae.sites.items():
        units = list(range(site.n_units))[:: max(1, site.n_units // 5)]
        plan = [{nv.Unit(name, u): nv.Swap(source)} for u in units] + [{nv.Unit(name, u): nv.Set(0.7)} for u in units]
        got = engine.run_interventions(vae, x, plan, read, eps=eps)
        donor = record(model, source, name, eps)
        for i, u in enumerate(units):
            want = literal(model, x, {name: unit_write(u, lambda v, u=u: donor[:, u])}, eps)
            torch.testing.assert_close(got[i], want, atol=1e-5, rtol=0, msg=f"swap {name}[{u}]")
            want = literal(model, x, {name: unit_write(u, lambda v: torch.full_like(v, 0.7))}, eps)
            torch.testing.assert_close(got[i + len(units)], want, atol=1e-5, rtol=0, msg=f"set {name}[{u}]")


def test_the_whole_vocabulary_equals_hooks(case):
    model, vae, x, source = case
    vae.encode(x)
    read = Everything(model.image)
    for name, site in vae.sites.items():
        donor = record(model, source, name)
        chosen = torch.randint(5, (5,), generator=torch.Generator().manual_seed(7))
        u = site.n_units - 1
        cases = [
            (nv.Set(-0.3), lambda v: torch.full_like(v, -0.3)),
            (nv.Set(torch.tensor(1.5)), lambda v: torch.full_like(v, 1.5)),
            (nv.Add(0.4), lambda v: v + 0.4),
            (nv.Scale(-2.0), lambda v: -2.0 * v),
            (nv.Zero(), torch.zeros_like),
            (nv.Mean(source), lambda v, d=donor, u=u: d[:, u].mean(0).expand_as(v)),
            (nv.Resample(source, seed=7), lambda v, d=donor, u=u: d[chosen][:, u]),
            (nv.Swap(source[:1]), lambda v, d=donor, u=u: d[:1, u].expand_as(v)),
        ]
        got = engine.run_interventions(vae, x, [{nv.Unit(name, u): what} for what, _ in cases], read)
        for row, (what, function) in zip(got, cases, strict=True):
            want = literal(model, x, {name: unit_write(u, function)})
            atol = max(1e-5, 8 * torch.finfo(want.dtype).eps * float(want.abs().max()))  # a sum in another order
            torch.testing.assert_close(row, want, atol=atol, rtol=0, msg=f"{what!r} at {name}[{u}]")


def test_several_sites_at_once_and_sets_of_units(case):
    model, vae, x, source = case
    vae.encode(x)
    read, names = Everything(model.image), list(vae.sites)
    early, late = names[1], names[-3]
    donor = record(model, source, late)
    n_early = vae.sites[early].n_units
    plan = [
        {f"{early}[0:2]": nv.Scale(0.5), late: nv.Swap(source)},
        {f"{early}[-1]": nv.Zero(), late: nv.Swap(source)},
        {early: nv.Scale(0.9), "latent.z[1]": nv.Set(2.0)},
    ]
    got = engine.run_interventions(vae, x, plan, read)
    first = {early: unit_write(slice(0, 2), lambda v: 0.5 * v), late: lambda v: donor}
    second = {early: unit_write(n_early - 1, torch.zeros_like), late: lambda v: donor}
    third = {early: lambda v: 0.9 * v, "latent.z": unit_write(1, lambda v: torch.full_like(v, 2.0))}
    for row, writes in zip(got, (first, second, third), strict=True):
        torch.testing.assert_close(row, literal(model, x, writes), atol=1e-5, rtol=0)


def test_intervene_equals_hooks_and_reports_the_latents(case):
    model, vae, x, _ = case
    early = list(vae.sites)[2]
    out = nv.intervene(vae, x, {f"{early}[0]": nv.Set(0.2), "latent.z[1]": nv.Add(1.0)})
    writes = {early: unit_write(0, lambda v: torch.full_like(v, 0.2)), "latent.z": unit_write(1, lambda v: v + 1.0)}
    torch.testing.assert_close(out.reconstruction.flatten(1), literal(model, x, writes), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.z[:, 1], out.mu[:, 1] + 1.0)
    torch.testing.assert_close(out.z[:, 0], out.mu[:, 0])


@pytest.mark.parametrize("budget", [1, 40_000])
def test_chunks_change_nothing(case, budget, monkeypatch):
    model, vae, x, source = case
    read = Everything(model.image)
    plan = [{unit: nv.Swap(source)} for name in list(vae.sites)[1:4] for unit in vae.sites[name].units[:6]]
    whole = engine.run_interventions(vae, x, plan, read)
    monkeypatch.setattr(engine, "CHUNK_BYTES", budget)
    monkeypatch.setattr(engine, "MIN_ROWS", 2)
    torch.testing.assert_close(engine.run_interventions(vae, x, plan, read), whole, atol=1e-5, rtol=0)


def test_nothing_above_the_site_runs_again(case):
    """Counts, not clocks: a module above the site runs in the clean run only; one below it once a chunk."""
    _, vae, x, _ = case
    read = Everything(tuple(x.shape[1:]))
    linear_chain = [n for n, s in vae.sites.items() if s.kind in ("conv", "linear") and s.stage == "decoder"]
    site = linear_chain[-1]
    plan = [{unit: nv.Set(0.0)} for unit in vae.sites[site].units]
    engine.run_interventions(vae, x, plan, read)  # the growth test is done once and remembered
    work = rows_run(vae.module, lambda: engine.run_interventions(vae, x, plan, read))
    assert {name: work.rows[name] for name in linear_chain} == dict.fromkeys(linear_chain, len(x))


def test_the_latent_readout_never_decodes(case):
    _, vae, x, source = case

    class Mu:
        names = tuple("abcdefgh")[: int(torch.Size(vae.sites["latent.mu"].shape).numel())] if vae.probed else ()
        reads = "latent.mu"

        def __call__(self, mu: Tensor) -> Tensor:
            return mu.flatten(1)

    read = Mu()
    read.names = tuple(str(i) for i in range(torch.Size(vae.sites["latent.mu"].shape).numel()))
    got = engine.run_interventions(vae, x, [{"input": nv.Swap(source)}], read)
    torch.testing.assert_close(got[0], vae.encode(source).mu.detach().flatten(1), atol=1e-5, rtol=0)
    with pytest.raises(nv.InterventionError, match=r"latent\.mu"):
        engine.run_interventions(vae, x, [{"latent.z": nv.Zero()}], read)


def test_an_identity_patch_changes_no_bit(case):
    model, vae, x, _ = case
    read = Everything(model.image)
    base = engine.baseline(vae, x, read)
    for name, site in vae.sites.items():
        got = engine.run_interventions(
            vae, x, [{nv.Unit(name, 0): nv.Swap(x)}, {nv.Unit(name, site.n_units - 1): nv.Add(0.0)}], read
        )
        torch.testing.assert_close(got, base.expand_as(got), atol=1e-6, rtol=0)


def test_quantize_sets_a_codebook_row():
    model = MODELS["mlp"]
    codebook = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    vae = nv.adapt(copy.deepcopy(model), encoder=None, decoder=None)
    x = images(model, 2)
    with pytest.raises(nv.InterventionError, match="no codebook"):
        nv.intervene(vae, x, {"latent.z": nv.Quantize(1)})
    inner = copy.deepcopy(model)
    vae = nv.adapt(inner, encoder=inner.encode, decoder=inner.decode, codebook=codebook)
    out = nv.intervene(vae, x, {"latent.z": nv.Quantize(2)})
    torch.testing.assert_close(out.z, codebook[2].expand(2, 4))
    with pytest.raises(nv.InterventionError, match="does not fit a codebook"):
        nv.intervene(vae, x, {"latent.z": nv.Quantize(3)})


@pytest.mark.parametrize(
    ("key", "what", "error", "message"),
    [
        ("encoder.99", nv.Zero(), nv.SiteError, "'encoder.99' is not a site"),
        ("latent.z[17]", nv.Zero(), nv.SiteError, r"'latent.z\[17\]' names no unit"),
        ("latent.z[", nv.Zero(), nv.SiteError, "cannot read the key"),
        ("latent.z[0.5]", nv.Zero(), nv.SiteError, "cannot read the index"),
        ("latent.z[4:4]", nv.Zero(), nv.SiteError, "names no unit"),
        ("latent.z[0]", 2.0, nv.InterventionError, "expected an intervention .* got float"),
        ("latent.z[0]", nv.Set(torch.zeros(3, 3, 3)), nv.InterventionError, r"does not fit latent.z\[0\]"),
        ("latent.z[0]", nv.Swap(torch.zeros(2, 3, 16, 16)), nv.InterventionError, r"got \(2, 3, 16, 16\)"),
        ("latent.z[0]", nv.Swap(torch.zeros(5, 1, 16, 16)), nv.InterventionError, r"got \(5, 1, 16, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(key, what, error, message):
    vae = nv.VAE(copy.deepcopy(MODELS["conv"]))
    with pytest.raises(error, match=message):
        nv.intervene(vae, images(MODELS["conv"], 5), {key: what})


def test_a_readout_of_the_wrong_shape_is_named():
    vae = nv.VAE(copy.deepcopy(MODELS["conv"]))

    class Wrong:
        names = ("a",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return reconstruction.flatten(1)

    with pytest.raises(nv.ReadoutError, match="Wrong"):
        engine.run_interventions(vae, images(MODELS["conv"], 5), [{"latent.z[0]": nv.Zero()}], Wrong())


def test_a_result_that_is_not_finite_is_named():
    vae = nv.VAE(copy.deepcopy(MODELS["mlp"]))

    class Log:
        names = ("a",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return torch.log(reconstruction[:, :1] - 2.0)

    with pytest.raises(nv.InterventionError, match=r"latent\.z\[0\]"):
        engine.run_interventions(vae, images(MODELS["mlp"], 5), [{"latent.z[0]": nv.Set(1.0)}], Log())
