"""Mediation through the whole pipeline: closed forms, an independent estimator, held mediators, positions, and what is refused."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hooks import literal, record
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, linear, random_linear_vae
from mediated import MODELS, TwoPixels, pairs_of
from torch import Tensor, nn
from vaes import images

import nnsight_vae as nv
from nnsight_vae import engine
from nnsight_vae.levels import mediation, paths, shapley

A0, A, B0, B, C, D = 0.3, 0.8, -0.2, 1.2, 0.5, 0.7  # M = a0 + a X + e;  Y = b0 + c X + b M + d X M + e'


class InteractionVAE(nn.Module):
    """The structural equations as a network: (X, e, e') -> M beside X -> (X, M, e') as latent -> Y."""

    def __init__(self, interaction: float = D) -> None:
        super().__init__()
        self.mediator, self.beside = nn.Linear(3, 1).double(), linear(torch.eye(3)[[0, 2]])
        self.interaction = interaction
        with torch.no_grad():
            self.mediator.weight.copy_(torch.tensor([[A, 1.0, 0.0]], dtype=torch.double))
            self.mediator.bias.fill_(A0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = torch.cat([self.beside(x), self.mediator(x)], 1)
        return mu, torch.zeros_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        x, e_y, m = z.unbind(1)
        return (B0 + C * x + B * m + self.interaction * x * m + e_y)[:, None].expand(-1, 3)


class First:
    names = ("y",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction[:, :1]


def scm_pairs(x: float, x_source: float, n: int = 40, seed: int = 0, sd: tuple[float, float] = (1.0, 1.0)) -> nv.Pairs:
    """X set from x to x', the noises shared; they are 0 on average, so that means are the closed forms and no estimates."""
    half = torch.randn(n // 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * torch.tensor(sd)
    noise = torch.cat([half, -half])
    base, source = (torch.cat([torch.full((n, 1), value, dtype=torch.double), noise], 1) for value in (x, x_source))
    return nv.Pairs(base, source, factor="X")


@pytest.mark.parametrize("mediators", ["mediator", "latent.z[2]", ["latent.mu[2]"], nv.Unit("latent.z", 2)])
@pytest.mark.parametrize("wrapped", [nv.VAE, lambda m: nv.adapt(m, encoder=m.encode, decoder=m.decode)])
def test_a_network_that_is_the_linear_scm_with_interaction_has_its_closed_forms(mediators, wrapped):
    x, x_source, held = 0.4, 1.9, 0.9
    step = x_source - x
    m = nv.mediate(wrapped(InteractionVAE()), scm_pairs(x, x_source), mediators, readout=First(), hold=held)
    expected = {
        "TE": 4.437,
        "NDE": 1.401,  # (c + d (a0 + a x)) step
        "PNIE": 1.776,  # (b + d x) a step
        "TNIE": 3.036,  # (b + d x') a step
        "INT": 1.26,  # d a step^2
        "CDE": (C + D * held) * step,
        "INTref": D * (A0 + A * x - held) * step,
    }
    assert {name: q.mean().item() for name, q in m.quantities.items()} == pytest.approx(expected, abs=1e-12)
    assert m.tde.mean().item() == pytest.approx(2.661, abs=1e-12)
    np.testing.assert_allclose(m.pnie.values, 1.776, atol=1e-12)  # whatever the noise of the pair
    assert m.nde.values.std() > 0.5


def test_interaction_of_a_product_is_analytic():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = linear(torch.eye(2, dtype=torch.double))

        def encode(self, x: Tensor):
            mu = self.heads(x)
            return mu, torch.zeros_like(mu)

        def decode(self, z: Tensor):
            return (z[:, :1] * z[:, 1:]).expand(-1, 2)

    generator = torch.Generator().manual_seed(0)
    b, s = (torch.randn(15, 2, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.tensor([[1.0, 0.0]], dtype=torch.double))
    m = nv.mediate(nv.VAE(Product()), nv.Pairs(b, s), ["latent.z[0]"], readout=read, hold=0.25)
    np.testing.assert_allclose(m.te.values[0, 0], (s[:, 0] * s[:, 1] - b[:, 0] * b[:, 1]).numpy())
    np.testing.assert_allclose(m.pnie.values[0, 0], ((s - b)[:, 0] * b[:, 1]).numpy())
    np.testing.assert_allclose(m.tnie.values[0, 0], ((s - b)[:, 0] * s[:, 1]).numpy())
    np.testing.assert_allclose(m.interaction.values[0, 0], (s - b).prod(1).numpy(), atol=1e-12)
    np.testing.assert_allclose(m.cde.values[0, 0], (0.25 * (s - b)[:, 1]).numpy(), atol=1e-12)
    np.testing.assert_allclose(m.intref.values[0, 0], ((b[:, 0] - 0.25) * (s - b)[:, 1]).numpy(), atol=1e-12)


@given(
    st.integers(0, 10_000),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 2)),
    st.sets(st.integers(0, 4)),
    st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_quantity_of_a_linear_vae_equals_its_matrix_formula(seed, enc, z, dec, noisy):
    """What passes the mediators by is the product of the weights with the mediators' rows taken out, at every layer."""
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    base, source, eps = (torch.randn(7, k, generator=generator, dtype=torch.double) for k in (6, 6, 3))
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    chosen = {"enc": enc, "latent.z": z, "dec": dec}
    mediators = [nv.Selection(site, tuple(units)) for site, units in chosen.items() if units]
    if not mediators:
        mediators, chosen = ["latent.z[1]"], {"enc": (), "latent.z": (1,), "dec": ()}
    pairs = nv.Pairs(base, source, eps=eps if noisy else None)
    m = nv.mediate(nv.VAE(model), pairs, mediators, readout=read, hold=nv.Set(-0.4))
    a1, a2, b1, b2 = (layer.weight.detach() for layer in (model.enc, model.mu, model.dec, model.out))
    past = []
    for weight, units in zip((a1, a2, b1), chosen.values(), strict=True):
        past.append(weight.clone())
        past[-1][list(units)] = 0
    delta = source - base
    total = (delta @ (read.c @ b2 @ b1 @ a2 @ a1).T).T.numpy()
    direct = (delta @ (read.c @ b2 @ past[2] @ past[1] @ past[0]).T).T.numpy()
    expected = {
        "TE": total,
        "NDE": direct,
        "PNIE": total - direct,
        "TNIE": total - direct,
        "INT": 0 * total,
        "CDE": direct,
        "INTref": 0 * total,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(m.quantities[name].values[0], values, atol=1e-10, err_msg=name)


def test_an_independent_estimator_on_data_of_the_same_scm_agrees():
    """statsmodels' Mediation (Imai, Keele & Tingley 2010) sees observations only and finds what the network is observed to do."""
    sm = pytest.importorskip("statsmodels.api")
    import pandas as pd
    from statsmodels.stats.mediation import Mediation

    vae = nv.VAE(InteractionVAE())
    pairs = scm_pairs(0.0, 1.0, n=100, sd=(0.5, 0.02))
    exact = nv.mediate(vae, pairs, "mediator", readout=First())
    x = torch.cat([pairs.base, pairs.source])  # an experiment: half the units treated, their noise balanced
    m, y = record(vae.module, x, "mediator")[:, 0], literal(vae.module, x, {})[:, 0]
    data = pd.DataFrame({"x": x[:, 0].numpy(), "m": m.numpy(), "y": y.numpy()})
    outcome = sm.OLS.from_formula("y ~ x * m", data=data)
    mediator = sm.OLS.from_formula("m ~ x", data=data)
    fit = Mediation(outcome, mediator, "x", "m").fit(n_rep=25, rng=0)  # no seed, no reproducible answer
    found = fit.summary().Estimate
    expected = {
        "ACME (control)": exact.pnie,
        "ACME (treated)": exact.tnie,
        "ADE (control)": exact.nde,
        "ADE (treated)": exact.tde,
        "Total effect": exact.te,
    }
    for name, quantity in expected.items():
        assert found[name] == pytest.approx(quantity.mean().item(), abs=0.06), name
    assert exact.interaction.mean().item() > 0.5  # so that the two kinds of effect are told apart
    share = found["Prop. mediated (treated)"]
    assert share == pytest.approx(exact.tnie.mean().item() / exact.te.mean().item(), abs=0.03)


def test_mediators_at_a_position_equal_hooks():
    vae, pairs = pairs_of("conv")
    m = nv.mediate(
        vae, pairs, ["encoder.0[1]@2,3", "encoder.0[2]", "decoder.3@4,4"], readout=TwoPixels(40, 41), hold=0.3
    )

    def run(x: Tensor, other: Tensor | float) -> np.ndarray:
        donor = {
            site: record(vae.module, other, site) if isinstance(other, Tensor) else None
            for site in ("encoder.0", "decoder.3")
        }

        def put(site: str, *where):
            def write(value: Tensor) -> Tensor:
                value = value.clone()
                for at in where:
                    value[at] = other if donor[site] is None else donor[site][at]
                return value

            return write

        every = slice(None)
        writes = {
            "encoder.0": put("encoder.0", (every, 1, 2, 3), (every, 2)),
            "decoder.3": put("decoder.3", (every, every, 4, 4)),
        }
        return TwoPixels(40, 41)(literal(vae.module, x, writes)).numpy().T

    base, source = (TwoPixels(40, 41)(literal(vae.module, x, {})).numpy().T for x in (pairs.base, pairs.source))
    np.testing.assert_allclose(m.pnie.values[0], run(pairs.base, pairs.source) - base, atol=1e-12)
    np.testing.assert_allclose(m.tnie.values[0], source - run(pairs.source, pairs.base), atol=1e-12)
    np.testing.assert_allclose(m.cde.values[0], run(pairs.source, 0.3) - run(pairs.base, 0.3), atol=1e-12)
    assert min(np.abs(q.values).max() for q in (m.pnie, m.cde, m.interaction)) > 1e-6
    assert m.mediator == "encoder.0[1]@2,3 + encoder.0[2] + decoder.3@4,4"


OTHERS = torch.rand(5, 20, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    "hold",
    [2, 2.0, nv.Set(2.0), nv.Zero(), nv.Set(torch.tensor([1.0, -1.0])), nv.Mean(OTHERS), nv.Swap(OTHERS[:1]), nv.Resample(OTHERS, seed=3)],
)  # fmt: skip
def test_mediators_are_held_at_the_same_value_in_both_runs(hold):
    vae, pairs = pairs_of("mlp")
    m = nv.mediate(vae, pairs, ["latent.z[1,3]"], readout=TwoPixels(0, 1), hold=hold)
    put = hold if isinstance(hold, nv.Intervention) else nv.Set(2.0)
    outputs = [nv.intervene(vae, x, {"latent.z[1,3]": put}) for x in (pairs.base, pairs.source)]
    torch.testing.assert_close(outputs[0].z[:, [1, 3]], outputs[1].z[:, [1, 3]], atol=0, rtol=0)
    base, source = (TwoPixels(0, 1)(each.reconstruction).numpy().T for each in outputs)
    np.testing.assert_allclose(m.cde.values[0], source - base, atol=1e-12)
    assert m.te.provenance["hold"] == str(hold)
    assert str(m).endswith(f"NDE = CDE (mediators at {hold}) + INTref")


def test_a_single_mediator_may_be_a_unit_and_a_set_may_be_any_sequence():
    vae, pairs = pairs_of("mlp")
    by_unit, by_name = (
        nv.mediate(vae, pairs, key, readout=TwoPixels(0, 1)) for key in (nv.Unit("latent.z", 1), ["latent.z[1]"])
    )
    np.testing.assert_array_equal(by_unit.pnie.values, by_name.pnie.values)
    as_tuple, as_slice = (
        nv.mediate(vae, pairs, key, readout=TwoPixels(0, 1))
        for key in (("latent.z[0]", "latent.z[1]"), "latent.z[0:2]")
    )
    np.testing.assert_allclose(as_tuple.tnie.values, as_slice.tnie.values, atol=1e-12)


def test_a_mediation_counts_its_targets_and_pairs_in_words():
    vae, pairs = pairs_of("mlp")
    m = nv.mediate(vae, pairs[:1], "latent.z[0]", readout=TwoPixels(0, 1))
    assert repr(m) == "Mediation(through latent.z[0]: 2 targets x 1 pair)"
    assert repr(m.select("a")) == "Mediation(through latent.z[0]: 1 target x 1 pair)"
    assert str(m).startswith("Mediation through latent.z[0]: 1 pair, no intervals")


def test_the_relative_scale_is_asked_for_and_refused_where_the_base_is_near_0():
    vae, pairs = pairs_of("mlp")
    plain, relative = (
        nv.mediate(vae, pairs, "latent.z[0]", readout=TwoPixels(0, 1), scale=s) for s in ("difference", "relative")
    )
    base = TwoPixels(0, 1)(literal(vae.module, pairs.base, {})).numpy().T
    np.testing.assert_allclose(relative.tnie.values[0], plain.tnie.values[0] / base, rtol=1e-9)
    assert (plain.te.provenance["scale"], relative.te.provenance["scale"]) == ("difference", "relative")

    class Centred(TwoPixels):
        def __call__(self, reconstruction: Tensor) -> Tensor:
            return super().__call__(reconstruction) - base[0, 2]

    with pytest.raises(nv.DataError, match="relative effects on a are undefined"):
        nv.mediate(vae, pairs, "latent.z[0]", readout=Centred(0, 1), scale="relative")


def test_the_held_runs_share_the_noise_of_the_pair():
    model = MODELS["mlp"]
    vae = nv.VAE(copy.deepcopy(model))
    base, source = (images(model, 6, seed).double() for seed in (0, 1))
    eps = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    read = TwoPixels(0, 1)
    found = nv.mediate(vae, nv.Pairs(base, source, eps=eps), "enc1[0:4]", readout=read, hold=0.3).cde
    held = [read(nv.intervene(vae, x, {"enc1[0:4]": nv.Set(0.3)}, eps=eps).reconstruction) for x in (base, source)]
    np.testing.assert_allclose(found.values[0], (held[1] - held[0]).T.numpy(), atol=1e-6)


def test_results_carry_the_ids_of_bases_and_sources():
    vae, _ = pairs_of("mlp")
    x = images(MODELS["mlp"], 7, seed=6).double()
    crossed = nv.Pairs.crossed(x[:3], x[3:])
    results = [
        *nv.mediate(vae, crossed, "latent.z[0]", readout=TwoPixels(0, 1), hold=0).quantities.values(),
        nv.path_effects(vae, crossed, ["enc1[0]", "latent.z[0]"], readout=TwoPixels(0, 1)),
        nv.shapley_mediators(vae, crossed, ["enc1[0]", "latent.z[0]"], readout=TwoPixels(0, 1)),
    ]
    for effects in results:
        assert effects.groups.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert effects.source_groups.tolist() == [0, 1, 2, 3] * 3
        assert effects.provenance["fingerprint"] == vae.fingerprint
        assert effects.n_clusters == 3


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda v, p, r: nv.mediate(v, p, [], readout=r), nv.InterventionError, "at least one mediator"),
        (lambda v, p, r: nv.mediate(v, p, None, readout=r), nv.SiteError, "cannot read the key None; write 'encoder.4'"),
        (lambda v, p, r: nv.path_effects(v, p, None, readout=r), nv.InterventionError, "got None where mediators belong"),
        (lambda v, p, r: nv.shapley_mediators(v, p, {"a": ["enc1"]}, readout=r), nv.InterventionError, "where mediators belong; name units or sites"),
        (lambda v, p, r: nv.mediate(v, p, ["nowhere"], readout=r), nv.SiteError, "'nowhere' is not a site"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z[7]"], readout=r), nv.SiteError, "names no unit"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z[0:2]", "latent.z[1]"], readout=r), nv.InterventionError, r"both name latent.z\[1\]"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z[1]", "latent.z[1]"], readout=r), nv.InterventionError, r"both name latent.z\[1\]"),
        (lambda v, p, r: nv.mediate(v, p, ["enc1", "dec1[0]"], readout=nv.readouts.Latents(4)), nv.InterventionError, r"the mediator dec1\[0\] comes after 'latent.mu'"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=None), nv.ReadoutError, "where a readout belongs"),
        (lambda v, p, r: nv.mediate(v, p.base, ["latent.z"], readout=r), nv.DataError, "where pairs belong"),
        (lambda v, p, r: nv.mediate(v.module, p, ["latent.z"], readout=r), nv.AdapterError, "wrap it first"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=r, hold=nv.Add(1.0)), nv.InterventionError, r"hold=Add\(1.0\) does not hold"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=r, hold=nv.Scale(0.0)), nv.InterventionError, "does not hold"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=r, hold=nv.Noise(1.0)), nv.InterventionError, "does not hold"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=r, hold=float("nan")), nv.InterventionError, "hold=nan does not hold"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=r, hold="zero"), nv.InterventionError, r"hold='zero' does not hold.*a number, nv.Zero\(\)"),
        (lambda v, p, r: nv.mediate(v, p, [("enc1[0]", "enc1[1]"), "latent.z"], readout=r), nv.InterventionError, "list its keys side by side"),
        (lambda v, p, r: nv.mediate(v, p, [["enc1[0]", "enc1[1]"]], readout=r), nv.InterventionError, "takes one set of mediators"),
        (lambda v, p, r: nv.mediate(v, p, ["latent.z"], readout=r, scale="log"), nv.InterventionError, "'difference' or 'relative', got 'log'"),
        (lambda v, p, r: nv.path_effects(v, p, [], readout=r), nv.InterventionError, "at least one mediator"),
        (lambda v, p, r: nv.path_effects(v, p, ["enc1", []], readout=r), nv.InterventionError, "no empty set"),
        (lambda v, p, r: nv.path_effects(v, p, ["latent.z", "enc1"], readout=r), nv.InterventionError, "'latent.z' does not come before 'enc1'"),
        (lambda v, p, r: nv.path_effects(v, p, [["enc1", "latent.z"], "enc2"], readout=r), nv.InterventionError, "join sets that interleave"),
        (lambda v, p, r: nv.path_effects(v, p, ["enc2", ["enc1", "latent.z"]], readout=r), nv.InterventionError, r"'enc2' does not come before 'enc1 \+ latent.z'"),
        (lambda v, p, r: nv.path_effects(v, p, ["enc1[0]", "enc1[0:2]"], readout=r), nv.InterventionError, "both name"),
        (lambda v, p, r: nv.path_effects(v, p, [f"enc1[{i}]" for i in range(7)], readout=r), nv.InterventionError, r"2\^7 paths.*at most 6"),
        (lambda v, p, r: nv.path_effects(v, p, ["enc1", "dec1"], readout=nv.readouts.Latents(4)), nv.InterventionError, "comes after"),
        (lambda v, p, r: nv.shapley_mediators(v, p, ["enc1", "enc1"], readout=r), nv.InterventionError, "both name"),
        (lambda v, p, r: nv.shapley_mediators(v, p, ["enc1"], readout=r, direction="both"), nv.InterventionError, "'noising' or 'denoising', got 'both'"),
        (lambda v, p, r: nv.shapley_mediators(v, p, ["enc1"], readout=r, n_permutations=5), nv.InterventionError, "even and at least 4, got 5"),
        (lambda v, p, r: nv.shapley_mediators(v, p, ["enc1"], readout=r, n_permutations=2), nv.InterventionError, "even and at least 4, got 2"),
        (lambda v, p, r: nv.shapley_mediators(v, p, ["enc1"], readout=r, n_permutations=4.0), nv.InterventionError, "whole number.* got 4.0"),
        (lambda v, p, r: nv.sequential_mediators(v, p, [], readout=r), nv.InterventionError, "at least one mediator"),
        (lambda v, p, r: nv.sequential_mediators(v, p, ["dec1"], readout=nv.readouts.Latents(4)), nv.InterventionError, "comes after"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused_before_any_run(ask, error, message, monkeypatch):
    vae, pairs = pairs_of("mlp")
    monkeypatch.setattr(engine, "clean_run", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(error, match=message):
        ask(vae, pairs, TwoPixels(0, 1))


@pytest.mark.parametrize(
    ("where", "ask"),
    [
        (mediation, lambda v, p, r: nv.mediate(v, p, ["enc1[0]"], readout=r)),
        (mediation, lambda v, p, r: nv.mediate(v, p, ["enc1[0]"], readout=r, hold=0)),
        (paths, lambda v, p, r: nv.path_effects(v, p, ["enc1[0]", "enc2[1]", ["latent.z[0]", "dec1[0]"]], readout=r)),
        (paths, lambda v, p, r: nv.path_effects(v, p, ["enc1[0]"], readout=r)),
        (shapley, lambda v, p, r: nv.shapley_mediators(v, p, ["enc1[0]", "enc2[1]", "latent.z[0]"], readout=r)),
        (shapley, lambda v, p, r: nv.shapley_mediators(v, p, ["enc1[0]", "enc2[1]", "latent.z[0]"], readout=r, n_permutations=6)),
        (shapley, lambda v, p, r: nv.sequential_mediators(v, p, ["enc1[0]", "enc2[1]", "latent.z[0]"], readout=r)),
    ],
)  # fmt: skip
def test_the_bar_ends_full(where, ask, monkeypatch):
    vae, pairs = pairs_of("mlp")
    seen, totals = [], []

    @contextmanager
    def bar(description, total, show=None):
        totals.append(total)
        yield seen.append

    monkeypatch.setattr(where, "progress_bar", bar)
    ask(vae, pairs, TwoPixels(0, 1))
    assert totals == [sum(seen)]
    assert sum(seen) > 0


def test_a_run_that_breaks_leaves_the_model_as_it_was():
    vae, pairs = pairs_of("conv")
    vae.module.train()

    class Breaks(TwoPixels):
        calls = 0

        def __call__(self, reconstruction: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("mine")
            return super().__call__(reconstruction)

    want = nv.path_effects(vae, pairs, ["encoder.0[0]", "latent.z[1]"], readout=TwoPixels(40, 41)).values
    state = {name: value.clone() for name, value in vae.module.state_dict().items()}
    with pytest.raises(RuntimeError, match="mine"):
        nv.path_effects(vae, pairs, ["encoder.0[0]", "latent.z[1]"], readout=Breaks(40, 41))
    assert all(module.training for module in vae.module.modules())
    assert all(torch.equal(state[name], value) for name, value in vae.module.state_dict().items())
    assert not any(module._forward_hooks for module in vae.module.modules())
    np.testing.assert_array_equal(
        nv.path_effects(vae, pairs, ["encoder.0[0]", "latent.z[1]"], readout=TwoPixels(40, 41)).values, want
    )


def test_results_say_which_readout_they_are_in_units_of_and_survive_the_disk(tmp_path):
    vae, pairs = pairs_of("mlp")
    third = nv.readouts.Pixels((20,))["pixel[2]"]
    te = nv.mediate(vae, pairs, "enc1", readout=third).te
    assert te.provenance["readout"] == "Pixels((20,))[pixel[2]]"
    te.save(tmp_path / "te.npz")
    assert nv.Effects.load(tmp_path / "te.npz").provenance == te.provenance
