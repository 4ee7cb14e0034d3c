"""Where the engine could go wrong quietly: noise, chunk edges, shared units, unusual models, and the precision of the readout."""

from __future__ import annotations

import copy

import pytest
import torch
from hooks import Everything, literal, record
from torch import Tensor, nn
from vaes import MLPVAE, Residual, ResidualVAE, Tokens, images, seeded

import nnsight_vae as nv
from nnsight_vae import engine, runs

MODEL = seeded(MLPVAE(), 1)
READ = Everything(MODEL.image)
X, SOURCE = images(MODEL, 7), images(MODEL, 7, seed=1)
EPS = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))


class At:
    """Reads a site as it is."""

    def __init__(self, vae: nv.VAE, site: str) -> None:
        self.reads, self.names = site, tuple(map(str, range(torch.Size(vae.sites[site].shape).numel())))

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten(1)


class Asserting(ResidualVAE):
    """A block that says itself that its branches must have one shape."""

    def __init__(self) -> None:
        super().__init__()

        class Block(Residual):
            def forward(self, x: Tensor) -> Tensor:
                branch = self.second(self.act(self.first(x)))
                assert branch.shape == x.shape
                return x + branch

        self.block = Block(4)


@pytest.fixture
def vae() -> nv.VAE:
    return nv.VAE(copy.deepcopy(MODEL))


@pytest.fixture
def in_small_chunks(monkeypatch):
    def use(rows: int) -> None:
        monkeypatch.setattr(engine, "CHUNK_BYTES", 1)
        monkeypatch.setattr(engine, "MIN_ROWS", rows)

    return use


@pytest.mark.parametrize(
    "joint",
    [
        {"latent.z[0]": nv.Set(1.0), nv.Unit("latent.z", 0): nv.Set(2.0)},
        {"latent.z[0]": nv.Set(1.0), "latent.z[0:3]": nv.Zero()},
        {"latent.z": nv.Scale(0.5), "latent.z[-1]": nv.Zero()},
    ],
)
def test_a_unit_named_twice_is_refused_before_any_work(vae, joint):
    with pytest.raises(nv.InterventionError, match=r"both name latent\.z\[\d\]"):
        nv.intervene(vae, X, joint)
    with pytest.raises(nv.InterventionError, match="both name"):
        engine.run_interventions(vae, X, [{"latent.z": nv.Zero()}, joint], READ)


def test_units_of_one_site_named_apart_are_written_together(vae):
    out = nv.intervene(vae, X, {"latent.z[0]": nv.Set(1.0), "latent.z[1:3]": nv.Add(2.0), "latent.z[3]": nv.Scale(3.0)})
    expected = torch.cat([torch.ones(7, 1), out.mu[:, 1:3] + 2, 3 * out.mu[:, 3:]], 1)
    torch.testing.assert_close(out.z, expected)


def test_one_source_for_all_shares_the_noise_of_each_example(vae):
    one, all_ = ([{"latent.z[0:2]": nv.Swap(s)}] for s in (SOURCE[:1], SOURCE[:1].repeat(7, 1)))
    got = engine.run_interventions(vae, X, one, READ, eps=EPS)
    torch.testing.assert_close(got, engine.run_interventions(vae, X, all_, READ, eps=EPS))
    donor = record(MODEL, SOURCE[:1].repeat(7, 1), "latent.z", EPS)
    want = literal(MODEL, X, {"latent.z": lambda z: torch.cat([donor[:, :2], z[:, 2:]], 1)}, EPS)
    torch.testing.assert_close(got[0], want)


@pytest.mark.parametrize("rows", [2, 3, 4, 6])
@pytest.mark.parametrize("eps", [None, EPS])
def test_no_intervention_depends_on_how_examples_are_chunked(vae, in_small_chunks, rows, eps):
    per_example = torch.linspace(-1, 1, 7).view(7, 1)
    whats = [nv.Set(per_example), nv.Add(torch.tensor([[0.3]])), nv.Swap(SOURCE), nv.Swap(SOURCE[:1]), nv.Scale(2.0),
             nv.Noise(1.0, seed=4), nv.Resample(SOURCE, seed=5), nv.Mean(SOURCE), nv.Set(0.5)]  # fmt: skip
    plan = [{f"{site}[1]": what} for site in ("enc1", "latent.z", "dec1") for what in whats]
    plan += [{"latent.z[0]": nv.Swap(SOURCE), "dec1[2:5]": nv.Noise(1.0)}, {"latent.z": nv.Set(per_example)}]
    whole = engine.run_interventions(vae, X, plan, READ, eps=eps)
    base = engine.baseline(vae, X, READ, eps=eps)
    in_small_chunks(rows)
    assert len(engine.example_chunks(vae, X)) == -(-7 // rows)
    torch.testing.assert_close(engine.run_interventions(vae, X, plan, READ, eps=eps), whole)
    torch.testing.assert_close(engine.baseline(vae, X, READ, eps=eps), base)


def test_however_small_examples_are_few_are_held_at_once(vae):
    many = X[:1].expand(200, *X.shape[1:])
    assert [rows.stop - rows.start for rows in engine.example_chunks(vae, many)] == [64, 64, 64, 8]


def test_a_tensor_per_example_goes_to_its_example(vae, in_small_chunks):
    values = torch.arange(7.0).view(7, 1)
    in_small_chunks(3)
    got = engine.run_interventions(
        vae, X, [{"latent.z[2]": nv.Set(values)}, {"latent.z[1]": nv.Add(2.0)}], At(vae, "latent.z")
    )
    assert got[0, :, 2].tolist() == values[:, 0].tolist()
    z = vae.encode(X).mu.detach()
    torch.testing.assert_close(got[1], z + torch.tensor([0, 2.0, 0, 0]))


def test_noise_is_standard_normal_and_independent_over_everything(vae):
    x = images(MODEL, 3000)
    read = At(vae, "enc1")
    base = engine.baseline(vae, x, read)
    plan = [
        {"enc1[0:3]": nv.Noise(2.0, seed=1)},
        {"enc1[2]": nv.Noise(2.0, seed=1)},
        {"enc1[2]": nv.Noise(2.0, seed=2)},
    ]
    plan += [{"enc1[0]": nv.Noise(2.0, seed=1), "enc1[1]": nv.Noise(2.0, seed=1)}]
    noise = (engine.run_interventions(vae, x, plan, read) - base) / 2
    assert noise[0, :, 3:].abs().max() == 0
    drawn = torch.cat([noise[0, :, :3], noise[2, :, 2:3]], 1).T
    torch.testing.assert_close(torch.cov(drawn), torch.eye(4), atol=0.1, rtol=0)
    assert drawn.mean(1).abs().max() < 0.06
    torch.testing.assert_close(
        noise[1, :, 2], noise[0, :, 2]
    )  # a unit's noise is its own, whatever it is selected with
    torch.testing.assert_close(noise[3, :, :2], noise[0, :, :2])
    apart = nv.intervene(vae, x, {"latent.mu": nv.Noise(1.0), "latent.z": nv.Noise(1.0)})
    clean = vae.encode(x).mu.detach()
    at_mu, at_z = apart.mu - clean, apart.z - apart.mu
    assert torch.corrcoef(torch.cat([at_mu, at_z], 1).T).fill_diagonal_(0).abs().max() < 0.08


def test_noise_at_positions_is_independent_too():
    model = seeded(ResidualVAE())
    vae = nv.VAE(copy.deepcopy(model))
    out = nv.intervene(vae, images(model, 400), {"latent.z[1]": nv.Noise(1.0)})
    change = (out.z - out.mu).flatten(2)
    assert change[:, 0].abs().max() == 0
    torch.testing.assert_close(torch.corrcoef(change[:, 1].T), torch.eye(change.shape[-1]), atol=0.25, rtol=0)


def test_channels_on_the_last_axis_in_place_code_and_a_layer_used_twice_equal_hooks():
    model = seeded(Tokens())
    x, source = images(model, 5), images(model, 5, seed=1)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    eps = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert {vae.sites["embed"].axis, vae.sites["out"].axis} == {2}
    assert "twice" not in vae.sites
    for name, site in vae.sites.items():
        donor = record(model, source, name, eps).movedim(site.axis, 1)
        for u in range(0, site.n_units, 2):
            cases = {
                nv.Swap(source): lambda a, u=u, d=donor: d[:, u],
                nv.Mean(source): lambda a, u=u, d=donor: d[:, u].mean(0).expand_as(a),
                nv.Scale(-2.0): lambda a: -2 * a,
            }
            got = engine.run_interventions(vae, x, [{f"{name}[{u}]": what} for what in cases], READ_ALL, eps=eps)
            for row, function in zip(got, cases.values(), strict=True):

                def write(value: Tensor, u=u, axis=site.axis, function=function) -> Tensor:
                    value = value.clone()
                    units = value.movedim(axis, 1)
                    units[:, u] = function(units[:, u])
                    return value

                torch.testing.assert_close(row, literal(model, x, {name: write}, eps), atol=1e-5, rtol=0)


READ_ALL = Everything(Tokens.image)


def test_a_model_that_asserts_its_shapes_runs_all_the_same():
    model = seeded(Asserting())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    got = engine.run_interventions(vae, x, [{"block.first": nv.Zero()}], Everything(model.image))
    torch.testing.assert_close(got[0], literal(model, x, {"block.first": torch.zeros_like}), atol=1e-5, rtol=0)


def test_the_batch_grows_as_late_as_the_model_allows():
    model = seeded(ResidualVAE())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    vae.encode(x)
    starts = {site: runs.start_for(vae, x, vae.layout(x).paths[site]) for site in vae.sites}
    assert starts["input"] is None
    assert starts["stem"] == "model.stem"
    assert starts["block.first"] == "model.stem"  # the block's other branch would keep its rows
    assert starts["block"] == "model.block"
    assert starts["latent.mu"] == "latent.mu"
    assert starts["refine.second"] == "model.grow"
    assert starts["output"] == "tap_output"


@pytest.mark.parametrize("site", ["enc2", "heads", "latent.logvar", "latent.z", "dec1", "output"])
def test_a_readout_may_read_any_site_from_the_one_written_to_on(vae, site):
    sites = list(vae.sites)
    before = [name for name in sites[: sites.index(site) + 1] if name != "latent.eps"]
    plan = [{f"{name}[0]": nv.Set(0.4)} for name in before] + [{"input": nv.Swap(SOURCE), site: nv.Scale(2.0)}]
    got = engine.run_interventions(vae, X, plan, At(vae, site), eps=EPS)
    for name, row in zip(before, got, strict=False):
        kept: list[Tensor] = []

        def write(value: Tensor) -> Tensor:
            return torch.cat([torch.full_like(value[:, :1], 0.4), value[:, 1:]], 1)

        def keep(value: Tensor, kept=kept, here=name == site, write=write) -> Tensor:
            kept.append((write(value) if here else value).clone())
            return kept[-1]

        literal(MODEL, X, {name: write, site: keep}, EPS)
        torch.testing.assert_close(row, kept[0].flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(got[-1], 2 * record(MODEL, SOURCE, site, EPS).flatten(1), atol=1e-5, rtol=0)
    later = sites[sites.index(site) + 1 :]
    for name in later[-1:]:
        with pytest.raises(nv.InterventionError, match="comes before"):
            engine.run_interventions(vae, X, [{"input": nv.Zero(), name: nv.Zero()}], At(vae, site))


def test_an_empty_plan_and_a_single_example(vae):
    assert engine.run_interventions(vae, X, [], READ).shape == (0, 7, 20)
    plan = [{"enc1[0]": nv.Swap(SOURCE[:1])}, {"latent.z": nv.Noise(1.0), "dec1[3]": nv.Set(torch.tensor([[2.0]]))}]
    got = engine.run_interventions(vae, X[:1], plan, READ, eps=EPS[:1])
    assert got.shape == (2, 1, 20)
    want = engine.run_interventions(vae, X, [{"enc1[0]": nv.Swap(SOURCE[:1])}], READ, eps=EPS)
    torch.testing.assert_close(got[0], want[0, :1])


def test_the_readout_keeps_its_precision(vae):
    half = nv.VAE(copy.deepcopy(MODEL).bfloat16())

    class Mean:
        names = ("mean",)

        def __call__(self, reconstruction: Tensor) -> Tensor:
            return reconstruction.float().mean(1, keepdim=True)

    x = X.bfloat16()
    same = engine.run_interventions(half, x, [{"enc1[0]": nv.Add(0.0)}], Mean())
    base = engine.baseline(half, x, Mean())
    assert same.dtype == base.dtype == torch.float32
    torch.testing.assert_close(same[0], base, atol=1e-3, rtol=0)
    assert nv.perturb_latents(half, x, readout=Mean()).values.shape == (4, 1, 7)


def test_nothing_keeps_gradients_and_the_inputs_are_not_written_to(vae):
    x = X.clone().requires_grad_()
    before = x.detach().clone()
    plan = [{"input[0]": nv.Set(3.0)}, {"enc1[1]": nv.Zero()}, {"latent.z[1]": nv.Scale(2.0)}]
    assert not engine.run_interventions(vae, x, plan, READ).requires_grad
    assert not nv.intervene(vae, x, plan[0]).reconstruction.requires_grad
    assert torch.equal(x, before)
    assert x.grad is None
    with torch.inference_mode():
        inside = engine.run_interventions(vae, before, plan, READ)
    torch.testing.assert_close(inside, engine.run_interventions(vae, before, plan, READ))


def test_noise_that_does_not_fit_is_refused(vae):
    for eps, message in (
        (EPS[:3], r"noise of shape \(7, 4\).*got \(3, 4\)"),
        (EPS[:, :2], r"noise of shape \(7, 4\).*got \(7, 2\)"),
        (EPS.long(), "floating point"),
        (torch.full_like(EPS, float("nan")), "NaN or infinite values in 7 of 7"),
    ):
        with pytest.raises(nv.DataError, match=message):
            engine.run_interventions(vae, X, [{"latent.z": nv.Zero()}], READ, eps=eps)


@pytest.mark.parametrize("early", ["input", "enc1", "latent.mu"])
def test_the_noise_itself_is_a_site_below_any_other(vae, early):
    plan = [{f"{early}[0]": nv.Set(0.3), "latent.eps[1]": nv.Add(2.0)}, {"latent.eps[1]": nv.Add(2.0)}]
    got = engine.run_interventions(vae, X, plan, READ, eps=EPS)

    def unit(index: int, change):
        return lambda v: torch.stack([change(c) if i == index else c for i, c in enumerate(v.unbind(1))], 1)

    noise = unit(1, lambda c: c + 2.0)
    want = literal(MODEL, X, {early: unit(0, lambda c: torch.full_like(c, 0.3)), "latent.eps": noise}, EPS)
    torch.testing.assert_close(got[0], want, atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], literal(MODEL, X, {"latent.eps": noise}, EPS), atol=1e-5, rtol=0)


def test_interventions_at_one_site_share_runs_up_to_the_budget_and_progress_counts_every_row(vae, in_small_chunks):
    plan = [{f"{site}[{u}]": nv.Zero()} for site in ("enc1", "dec1") for u in range(4)]
    seen: list[int] = []
    engine.run_interventions(vae, X, plan, READ, progress=seen.append)
    assert seen == [4 * len(X)] * 2
    seen.clear()
    in_small_chunks(6)
    engine.run_interventions(vae, X, plan, READ, progress=seen.append)
    assert sum(seen) == len(plan) * len(X)
    assert max(seen) == 6


def test_a_result_that_is_not_finite_names_the_first_that_is_not(vae):
    class Log:
        names = ("a",)
        reads = "latent.z"

        def __call__(self, z: Tensor) -> Tensor:
            return torch.log(z[:, :1])

    plan = [{"latent.z[0]": nv.Set(v)} for v in (1.0, -1.0, 2.0, -2.0)]
    with pytest.raises(nv.InterventionError, match=r"under 2 of 4 interventions, first latent\.z\[0\] <- Set\(-1\.0\)"):
        engine.run_interventions(vae, X, plan, Log())


def test_a_tensor_that_does_not_broadcast_is_refused(vae):
    for value in (torch.zeros(3, 1), torch.zeros(7, 2), torch.zeros(1, 7, 1)):
        with pytest.raises(nv.InterventionError, match="does not fit"):
            nv.intervene(vae, X, {"latent.z[0]": nv.Set(value)})


def test_in_place_code_of_one_run_does_not_reach_the_next():
    model = seeded(Tokens())
    x = images(model, 5)
    vae = nv.VAE(copy.deepcopy(model), example=x)
    plan = [{f"{name}[0]": nv.Add(0.5)} for name in reversed(list(vae.sites))]
    together = engine.run_interventions(vae, x, [*plan, *plan], READ_ALL)
    alone = torch.cat([engine.run_interventions(vae, x, [entry], READ_ALL) for entry in plan])
    torch.testing.assert_close(together, torch.cat([alone, alone]))


def test_a_write_at_an_identity_does_not_reach_the_branch_that_passes_it_by():
    class Block(Residual):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.drop = nn.Dropout(0.5)  # in eval mode it hands its input on, the very tensor

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.act(self.first(self.drop(x)))) + x

    model = ResidualVAE()
    model.block = Block(4)
    seeded(model)
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 3)
    got = engine.run_interventions(vae, x, [{"block.drop": nv.Zero()}], Everything(model.image))
    torch.testing.assert_close(got[0], literal(model, x, {"block.drop": torch.zeros_like}), atol=1e-5, rtol=0)


def test_the_clean_run_stops_where_the_first_write_is():
    class Counting(MLPVAE):
        decoded = 0

        def decode(self, z: Tensor) -> Tensor:
            self.decoded += len(z)
            return super().decode(z)

    vae = nv.VAE(seeded(Counting()))
    plan = [{f"enc1[{u}]": nv.Zero()} for u in range(3)]
    engine.run_interventions(vae, X, plan, READ)  # where the batch can grow is tried once and remembered
    before = vae.module.decoded
    engine.run_interventions(vae, X, plan, READ)
    assert vae.module.decoded - before == 3 * len(X)


def test_the_mean_is_over_all_of_a_reference_that_is_run_in_parts(vae):
    reference = images(MODEL, 150, seed=2)
    want = engine.activations(vae, reference, ["enc2"])["enc2"][:, 3].mean()
    got = engine.run_interventions(vae, X, [{"enc2[3]": nv.Mean(reference)}], At(vae, "enc2"))
    torch.testing.assert_close(got[0, :, 3], want.expand(7))


class Keeps(nn.Module):
    """The decoder reads features that the encoder left on the model, as of whichever input came last."""

    image = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.fc_mu, self.fc_logvar = nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(5, 2)
        self.dec, self.out = nn.Linear(2, 5), nn.Linear(5, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = torch.tanh(self.enc(x))
        return self.fc_mu(self.kept), self.fc_logvar(self.kept)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.tanh(self.dec(z)) + self.kept)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


@pytest.mark.parametrize("site", ["enc", "fc_mu", "latent.z", "dec"])
def test_a_model_that_keeps_features_for_its_decoder_never_reads_those_of_another_input(site):
    model = seeded(Keeps())
    vae, x = nv.VAE(copy.deepcopy(model)), images(model, 7)
    layer = "fc_mu" if site == "latent.z" else site
    units = range(2 if layer == "fc_mu" else 5)
    engine.activations(vae, images(model, 14, seed=3), ["output"])  # as many rows as a run of two units has
    got = engine.run_interventions(vae, x, [{f"{site}[{u}]": nv.Set(2.0)} for u in units], Everything(Keeps.image))
    for u in units:

        def put(value: Tensor, u: int = u) -> Tensor:
            return value.index_fill(1, torch.tensor([u]), 2.0)

        want = literal(model, x, {layer: put})
        torch.testing.assert_close(got[u], want, atol=1e-5, rtol=0)
