"""Evaluation of circuits: named ablations against literal forwards, areas by hand, identities of the wired model, files."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from literal_edges import HALVES, conv_layers, pairs_for
from torch import nn
from vaes import ConvVAE, ResidualVAE, images, seeded
from wired import TRUE_EDGES, WiredVAE, wired_pairs

import nnsight_vae as nv
from nnsight_vae.circuits import Faithfulness, faithfulness, hypothesis_tests, knockouts, score_edges
from nnsight_vae.circuits.evaluation import knocked_out
from nnsight_vae.circuits.evaluation.curves import checked_sizes, curve_areas, sizes_for
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets, Readings
from nnsight_vae.circuits.evaluation.generative import generative_scores
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.posterior import Laplace, Posterior
from nnsight_vae.readouts import Latents, Pixels
from nnsight_vae.stats.intervals import bootstrap_ratio_interval

PIXEL = Pixels((4,))["pixel[0]"]


@pytest.fixture
def wired() -> tuple[nv.VAE, Pairs, object]:
    return nv.VAE(WiredVAE()), wired_pairs(), PIXEL


@pytest.fixture
def true_circuit() -> nx.DiGraph:
    return nx.DiGraph(list(TRUE_EDGES), schema="nnsight-vae/circuit@1")


def effect_of(result: Faithfulness) -> float:
    return result.circuit_effect["pixel[0]"]


# ---------------------------------------------------------------------------------- ablations
class Masked:
    """A conv VAE of which each layer keeps only some edges, by plain hooks; the rest comes from activations given."""

    def __init__(self, model: nn.Module, pairs: Pairs) -> None:
        self.model, self.pairs = copy.deepcopy(model).eval(), pairs
        for module in self.model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        self.modules, self.layers = dict(self.model.named_modules()), conv_layers(norm=False)

    @torch.no_grad()
    def activations(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {"input": x}
        hooks = [
            self.modules[path].register_forward_hook(lambda m, a, out, path=path: kept.__setitem__(path, a[0].clone()))
            for path, *_ in self.layers
        ]
        kept["output"] = self.model.decode(self.model.encode(x)[0])
        for hook in hooks:
            hook.remove()
        return kept

    def resting(self, ablation: str, reference: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        found = self.activations(self.pairs.base if reference is None else reference)
        if ablation == "mean":
            return {
                name: value.mean(0, keepdim=True).expand(len(self.pairs), *value.shape[1:])
                for name, value in found.items()
            }
        return {name: value * (ablation == "base") for name, value in found.items()}

    @torch.no_grad()
    def run(self, edges: set[tuple[str, str]], rest: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x, hooks, before = rest["input"].clone(), [], "input"
        for c in range(x.shape[1]):
            if ("factor:f", f"input[{c}]") in edges:
                x[:, c] = self.pairs.source[:, c]
        for path, site, ports, units in self.layers:

            def mix(module, args, out, path=path, before=before, site=site, ports=ports, units=units):
                taken, at_rest = args[0], rest[path]
                total = out.clone()
                for v in range(out.shape[1] // units):
                    own = slice(v * units, (v + 1) * units)
                    inputs = at_rest.clone()  # each target sees its own mixture of live and resting sources
                    for u in range(taken.shape[1] // ports):
                        if (f"{before}[{u}]", f"{site}[{v}]") in edges:
                            inputs[:, u * ports : (u + 1) * ports] = taken[:, u * ports : (u + 1) * ports]
                    total[:, own] = type(module).forward(module, inputs)[:, own]
                return total

            hooks.append(self.modules[path].register_forward_hook(mix))
            before = site
        mu = self.model.encode(x)[0]
        image = self.model.decode(mu)
        for hook in hooks:
            hook.remove()
        return {"mu": mu, "output": image}

    def reads(self, edges: set[tuple[str, str]], rest: dict[str, torch.Tensor], readout) -> np.ndarray:
        reached = self.run(edges, rest)["output"]
        columns = []
        for t, name in enumerate(readout.names):
            seen = rest["output"].clone()
            for c in range(seen.shape[1]):
                if (f"output[{c}]", f"readout:{name}") in edges:
                    seen[:, c] = reached[:, c]
            columns.append(readout(seen)[:, t])
        return torch.stack(columns).numpy()


@pytest.fixture(scope="module")
def conv() -> tuple[nv.VAE, Pairs, Masked]:
    model = seeded(ConvVAE(), 6).double()
    pairs = pairs_for(model, 4)
    pairs = replace(pairs, base=pairs.base.double(), source=pairs.source.double())
    return nv.VAE(model), pairs, Masked(model, pairs)


def some_edges(sets: EdgeSets, share: float = 0.7, seed: int = 0) -> tuple[np.ndarray, set[tuple[str, str]]]:
    mask = np.random.default_rng(seed).random(len(sets.edges)) < share
    mask[sets.edges.index(("factor:f", "input[1]"))] = False
    mask[sets.edges.index(("output[0]", "readout:left"))] = False
    return mask, {edge for edge, kept in zip(sets.edges, mask, strict=True) if kept}


@pytest.mark.parametrize("ablation", ["base", "mean", "zero"])
def test_an_edge_outside_carries_what_the_ablation_says_as_in_a_literal_forward(conv, ablation: str) -> None:
    vae, pairs, literal = conv
    sets = EdgeSets.of(vae, pairs, HALVES, ablation)
    mask, edges = some_edges(sets)
    rest = literal.resting(ablation)
    readings = sets.read([mask, ~mask])
    np.testing.assert_allclose(readings.sets[0], literal.reads(edges, rest, HALVES), rtol=1e-9)
    np.testing.assert_allclose(readings.sets[1], literal.reads(set(sets.edges) - edges, rest, HALVES), rtol=1e-9)
    np.testing.assert_allclose(readings.nothing, HALVES(rest["output"]).T.numpy(), rtol=1e-9)


def test_the_mean_can_be_that_of_other_images(conv) -> None:
    vae, pairs, literal = conv
    reference = images(vae.module, 7, seed=9).double()
    sets = EdgeSets.of(vae, pairs, HALVES, "mean", reference)
    mask, edges = some_edges(sets)
    expected = literal.reads(edges, literal.resting("mean", reference), HALVES)
    np.testing.assert_allclose(sets.read([mask]).sets[0], expected, rtol=1e-9)
    assert not np.allclose(EdgeSets.of(vae, pairs, HALVES, "mean").read([mask]).sets[0], expected, rtol=1e-6)


@pytest.mark.parametrize("ablation", ["base", "mean", "zero"])
@pytest.mark.parametrize("sampled", [False, True])
def test_no_edge_is_nothing_and_every_edge_is_the_model_under_every_ablation(
    conv, ablation: str, sampled: bool
) -> None:
    vae, pairs, _ = conv
    if sampled:
        noise = torch.randn(len(pairs), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        pairs = replace(pairs, eps=noise)
    sets = EdgeSets.of(vae, pairs, HALVES, ablation)
    everything = np.ones(len(sets.edges), dtype=bool)
    readings = sets.read([~everything, everything])
    np.testing.assert_allclose(readings.effects[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(readings.effects[1], readings.total, rtol=1e-9)
    out = nv.intervene(vae, pairs.source, {"latent.z": nv.Add(0.0)}, eps=pairs.eps).reconstruction
    np.testing.assert_allclose(readings.whole, HALVES(out).T, rtol=1e-9)


@pytest.mark.parametrize("ablation", ["base", "mean", "zero"])
def test_models_with_skip_connections_are_evaluated_and_tested_alike(ablation: str) -> None:
    model = seeded(ResidualVAE()).double()
    pairs = pairs_for(model, 8)
    pairs = replace(pairs, base=pairs.base.double(), source=pairs.source.double())
    vae = nv.VAE(model, example=pairs.base)
    readout = Pixels((1, 8, 8))["pixel[0,3,3]"]
    sets = EdgeSets.of(vae, pairs, readout, ablation)
    everything = np.ones(len(sets.edges), dtype=bool)
    readings = sets.read([~everything, everything])
    np.testing.assert_allclose(readings.effects[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(readings.effects[1], readings.total, rtol=1e-8, atol=1e-12)
    half = nx.DiGraph([edge for i, edge in enumerate(sets.edges) if i % 3])
    result = hypothesis_tests(vae, half, pairs, readout, ablation=ablation, n_random=1, n_edges=1)
    assert {o.test for o in result.outcomes} == {
        "equivalence",
        "independence",
        "sufficiency",
        "necessity",
        "minimality",
    }
    assert all(o.p is not None for o in result.outcomes)


def test_chunks_of_pairs_change_nothing_not_even_the_mean(conv, monkeypatch) -> None:
    from nnsight_vae.circuits.wiring import pair_run

    vae, pairs, _ = conv
    sets = EdgeSets.of(vae, pairs, HALVES, "mean")
    mask, _ = some_edges(sets)
    calls: list[tuple[int, int]] = []
    whole = sets.read([mask], lambda done, total: calls.append((done, total)))
    assert calls == [(4, 4)]
    monkeypatch.setattr(pair_run, "CHUNK_BYTES", 1)
    monkeypatch.setattr(pair_run, "MIN_ROWS", 3)
    chunked = EdgeSets.of(vae, pairs, HALVES, "mean").read([mask], lambda done, total: calls.append((done, total)))
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert calls[1:] == [(3, 4), (4, 4)]


def test_what_may_be_rounding_is_no_effect() -> None:
    sets, whole = np.array([[[1.0, 1.2, 0.8]], [[1.0 + 1e-9, 1.0 - 1e-6, 1.0]]]), np.array([[1.0 + 1e-9, 2.0, 1.0]])
    readings = Readings(sets, np.ones((1, 3)), whole, np.array([1e-8]))
    np.testing.assert_allclose(readings.effects, [[[0.0, 0.2, -0.2]], [[0.0, -1e-6, 0.0]]], atol=1e-12)
    assert readings.effects[1, 0, 0] == readings.total[0, 0] == 0.0


def test_ablations_of_the_wired_model_in_closed_form(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    cut = true_circuit.copy()
    cut.remove_edge("enc[1]", "latent.z[0]")  # this route carries .4 of input 0
    x, base = pairs.source[:, 0].double(), pairs.base[:, 0].double()
    left = {"base": 0.4 * base, "mean": 0.4 * base.mean(), "zero": 0.0}
    at_rest = {"base": 1.4 * base, "mean": 1.4 * base.mean(), "zero": 0.0}
    for ablation in ("base", "mean", "zero"):
        result = faithfulness(vae, cut, pairs, readout, ablation=ablation)
        expected = 0.72 * (x + left[ablation] - at_rest[ablation])
        np.testing.assert_allclose(result.circuit[0], expected, rtol=1e-4)
        assert result.ablation == ablation
        assert f"({ {'base': 'resample'}.get(ablation, ablation) } ablation)" in str(result)


# ---------------------------------------------------------------------------------- scores
def test_a_circuit_and_the_rest_of_the_model_share_out_the_effect(wired, true_circuit) -> None:
    whole = faithfulness(*(wired[0], true_circuit), *wired[1:])
    assert whole.score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.completeness["pixel[0]"].value == 0.0
    only_strong = true_circuit.edge_subgraph([e for e in TRUE_EDGES if not {"enc[1]", "dec[1]"} & set(e)]).copy()
    part = faithfulness(wired[0], only_strong, *wired[1:])
    assert part.score["pixel[0]"].value == pytest.approx(1 / (1.4 * 0.72), rel=1e-4)
    assert part.completeness["pixel[0]"].value == pytest.approx(
        0.4 * -0.28 / (1.4 * 0.72), rel=1e-4
    )  # the weak route alone
    middle = nx.DiGraph([("latent.z[0]", "dec[0]")])
    assert faithfulness(wired[0], middle, *wired[1:]).completeness["pixel[0]"].value == pytest.approx(
        -0.28 / 0.72, rel=1e-4
    )


def test_an_empty_circuit_has_faithfulness_0_and_the_whole_model_1(wired) -> None:
    vae, pairs, readout = wired
    empty = faithfulness(vae, nx.DiGraph(), pairs, readout)
    assert (empty.score["pixel[0]"].value, empty.completeness["pixel[0]"].value) == (0.0, pytest.approx(1.0, abs=1e-5))
    assert empty.curve == ()
    whole = faithfulness(vae, nx.DiGraph(list(EdgeSets.of(vae, pairs, readout).edges)), pairs, readout)
    assert whole.score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.completeness["pixel[0]"].value == 0.0


class Additive(nn.Module):
    """Four inputs, each on a line of its own to output 0: effects of edges add up, and none is negative."""

    image = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.fc_mu, self.fc_logvar, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.fc_mu.weight.copy_(torch.eye(4))
            self.out.weight[0] = torch.tensor([4.0, 1.0, 3.0, 2.0])

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc_mu(x), self.fc_logvar(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(z)


def test_the_curve_rises_line_by_line_to_the_whole_of_an_additive_model() -> None:
    vae = nv.VAE(Additive())
    base = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(base, base + 1.0, factor="f")
    scores = score_edges(vae, pairs, PIXEL)
    strong = nx.DiGraph(
        [
            ("factor:f", "input[0]"),
            ("input[0]", "latent.z[0]"),
            ("latent.z[0]", "output[0]"),
            ("output[0]", "readout:pixel[0]"),
        ]
    )
    n = len(scores)
    result = faithfulness(vae, strong, pairs, PIXEL, scores=scores, sizes=range(1, n))
    f = [values["pixel[0]"] for _, values in result.curve]
    assert [size for size, _ in result.curve] == list(range(1, n + 1))
    assert (f[2], f[3]) == (0.0, pytest.approx(0.4, rel=1e-5))
    assert f == sorted(f)
    assert sorted({round(value, 4) for value in f}) == [
        0.0,
        0.4,
        0.7,
        0.9,
        1.0,
    ]  # the next lines in order of their scores
    assert f[-1] == pytest.approx(1.0, abs=1e-6)
    steps = np.concatenate([[0.0], f])
    by_hand = sum((a + b) / 2 / n for a, b in itertools.pairwise(steps))
    assert result.cpr["pixel[0]"].value == pytest.approx(by_hand, rel=1e-6)
    assert result.cmd["pixel[0]"].value == pytest.approx(1 - by_hand, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The pairs change:nnsight_vae.errors.NnsightVaeWarning")
def test_an_undefined_score_says_why_and_so_do_areas_without_a_ranking(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    assert "scores=" in faithfulness(vae, true_circuit, pairs, readout).cpr["pixel[0]"].reason
    flipped = replace(pairs, base=pairs.base.clone(), source=pairs.source.clone())
    flipped.base[:15], flipped.source[:15] = pairs.source[:15], pairs.base[:15]
    result = faithfulness(vae, true_circuit, flipped, readout, scores=score_edges(vae, flipped, readout))
    for measure in (result.score, result.completeness, result.cpr, result.cmd):
        assert measure["pixel[0]"].value is None
        assert "contains 0" in measure["pixel[0]"].reason
    assert result.to_frame()["value"].isna().all()
    with pytest.raises(DataError, match="Nothing to draw"):
        result.plot()


def test_a_target_that_nothing_changes_is_undefined_beside_one_that_is(wired, true_circuit) -> None:
    vae, pairs, _ = wired
    both = Pixels((4,))[["pixel[0]", "pixel[3]"]]
    result = faithfulness(vae, true_circuit, pairs, both, scores=score_edges(vae, pairs, both))
    assert result.cpr["pixel[0]"].value > 0
    assert result.cpr["pixel[3]"].value is None
    assert "contains 0" in result.cpr["pixel[3]"].reason
    assert {values["pixel[3]"] for _, values in result.curve} == {None}


# ---------------------------------------------------------------------------------- areas
def test_areas_equal_their_integrals_by_hand() -> None:
    total = np.full((1, 6), 2.0)
    f = np.array([0.2, 0.5, 1.2, 1.0])
    found = curve_areas(f[:, None, None] * total, total, (1, 2, 4, 8), n_boot=10)
    assert found["cpr"].value[0] == pytest.approx(0.1 / 8 + 0.35 / 8 + 0.85 * 2 / 8 + 1.1 * 4 / 8)
    assert found["cmd"].value[0] == pytest.approx(0.9 / 8 + 0.65 / 8 + 0.35 * 2 / 8 + 0.1 * 4 / 8)
    assert found["log_cpr"].value[0] == pytest.approx((0.35 + 0.85 + 1.1) / 3)
    assert found["log_cmd"].value[0] == pytest.approx((0.65 + 0.35 + 0.1) / 3)
    one = curve_areas(f[2:3, None, None] * total, total, (8,), n_boot=10)
    assert (one["log_cpr"].value[0], one["cpr"].value[0]) == (pytest.approx(1.2), pytest.approx(0.6))


def test_intervals_of_areas_resample_clusters_and_keep_targets_apart() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    noise = rng.normal(0, 0.3, 20)[groups]
    total = np.stack([np.ones(200), 2 + noise])
    effects = np.stack([total * [[0.5], [0.8]] + noise, total])
    found = curve_areas(effects, total, (1, 2), groups)["cpr"]
    plain = curve_areas(effects, total, (1, 2))["cpr"]
    assert found.value == pytest.approx([(0.25 + 0.75 + noise.mean() * 1.0) / 2, found.value[1]], abs=1e-9)
    width, too_narrow = found.high - found.low, plain.high - plain.low
    assert (width > 2 * too_narrow).all()
    expected = 2 * 1.96 * noise[::10].std() / 20**0.5 / 2  # CPR moves by half of what f(1) does
    assert width[0] == pytest.approx(expected, rel=0.2)


def test_the_interval_of_an_area_is_that_of_the_ratio_of_means_it_is() -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(30) // 3
    total = 2 + rng.exponential(size=(2, 30))
    effects = np.stack([total * rng.random((2, 30)), total])
    found = curve_areas(effects, total, (1, 4), groups, n_boot=300, seed=5)["cpr"]
    area = effects[0] / 2 + 3 * total / 8  # trapezoids over 0, 1/4, 1: linear in the effects
    expected = bootstrap_ratio_interval(area, total, groups, n_boot=300, seed=5)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-10)
    np.testing.assert_allclose(found.value, area.mean(axis=1) / total.mean(axis=1), rtol=1e-10)


def test_sizes_grow_and_are_checked() -> None:
    assert sizes_for(0, 50, ranked=False) == ()
    assert sizes_for(3, 5000, ranked=True)[-2:] == (2500, 5000)
    assert checked_sizes([4, 2, 2], 10) == (2, 4)
    for wrong in ([0], [11], [True], [1.5]):
        with pytest.raises(CircuitError, match="from 1 to the 10"):
            checked_sizes(wrong, 10)


def test_a_ranking_must_score_this_model(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    scores = score_edges(vae, pairs, Pixels((4,))["pixel[2]"])
    with pytest.raises(CircuitError, match="score every edge of this model"):
        faithfulness(vae, true_circuit, pairs, readout, scores=scores)


# ---------------------------------------------------------------------------------- generative scores
def test_images_and_posteriors_of_a_circuit_against_literal_ones(conv) -> None:
    vae, pairs, literal = conv
    sets = EdgeSets.of(vae, pairs, HALVES)
    mask, edges = some_edges(sets)
    found = generative_scores(sets, mask)
    mine = literal.run(edges, literal.resting("base"))
    with torch.no_grad():
        (mu, logvar), (base_mu, _) = (literal.model.encode(x) for x in (pairs.source, pairs.base))
        source, base = literal.model.decode(mu), literal.model.decode(base_mu)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(mine["mu"], (logvar / 2).exp()),
            torch.distributions.Normal(mu, (logvar / 2).exp()),
        ).sum(1)
    np.testing.assert_allclose(found.mse, (mine["output"] - source).square().mean((1, 2, 3)), rtol=1e-8)
    np.testing.assert_allclose(found.mse_nothing, (base - source).square().mean((1, 2, 3)), rtol=1e-8)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-8)
    assert found.unexplained["pixels"].value is None  # four pairs
    everything = generative_scores(sets, np.ones_like(mask))
    np.testing.assert_allclose(everything.mse, 0.0, atol=1e-20)
    np.testing.assert_allclose(everything.kl, 0.0, atol=1e-12)
    assert everything.posterior == "mu"


def test_on_a_sampled_latent_the_divergence_counts_logvar_too(conv) -> None:
    vae, pairs, literal = conv
    noise = torch.randn(len(pairs), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sets = EdgeSets.of(vae, replace(pairs, eps=noise), HALVES)
    found = generative_scores(sets, np.ones(len(sets.edges), dtype=bool))
    with torch.no_grad():
        base, source = (
            torch.distributions.Normal(mu, (logvar / 2).exp())
            for mu, logvar in map(literal.model.encode, (pairs.base, pairs.source))
        )
    expected = torch.distributions.kl_divergence(base, source).sum(1)
    np.testing.assert_allclose(found.kl_nothing, expected, rtol=1e-8)
    np.testing.assert_allclose(found.kl, 0.0, atol=1e-12)
    assert found.posterior == "mu and logvar"


def test_a_readout_of_the_latent_makes_no_image(conv) -> None:
    vae, pairs, _ = conv
    sets = EdgeSets.of(vae, pairs, Latents(5))
    found = generative_scores(sets, np.zeros(len(sets.edges), dtype=bool))
    assert found.mse is None
    assert list(found.unexplained) == ["latent"]
    np.testing.assert_array_equal(found.kl, found.kl_nothing)


class PointVAE(nn.Module):
    """States a value and no spread, or a Laplace."""

    def __init__(self, law: str) -> None:
        super().__init__()
        self.law, self.enc, self.dec = law, nn.Linear(4, 3), nn.Linear(3, 4)

    def encode(self, x):
        mu = self.enc(x.flatten(1))
        return Posterior.point(mu) if self.law == "point" else Laplace(mu, torch.zeros_like(mu))

    def decode(self, z):
        return self.dec(z).view(-1, 1, 2, 2)


@pytest.mark.parametrize("law", ["point", "laplace"])
def test_posteriors_that_are_no_gaussians_with_a_spread_have_no_divergence(law: str) -> None:
    vae = nv.VAE(seeded(PointVAE(law)), example=torch.zeros(1, 1, 2, 2))
    pairs = Pairs(torch.zeros(6, 1, 2, 2), torch.rand(6, 1, 2, 2), factor="f")
    sets = EdgeSets.of(vae, pairs, Pixels((1, 2, 2)))
    made = generative_scores(sets, np.zeros(len(sets.edges), dtype=bool))
    assert made.kl is None
    assert made.kl_nothing is None
    assert list(made.unexplained) == ["pixels"]


def test_what_a_circuit_leaves_unexplained_of_the_latent_in_closed_form(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    with torch.no_grad():
        vae.module.fc_mu.weight[1] = 0.0  # only latent 0 moves; its logvar is 0
    cut = true_circuit.copy()
    cut.remove_edge("enc[1]", "latent.z[0]")
    made = faithfulness(nv.VAE(vae.module), cut, pairs, readout).generative
    np.testing.assert_allclose(made.kl, (0.4 * (pairs.source - pairs.base)[:, 0]).square() / 2, rtol=1e-4)
    assert made.unexplained["latent"].value == pytest.approx((0.4 / 1.4) ** 2, rel=1e-4)


# ---------------------------------------------------------------------------------- knock-outs
def backed_up() -> nn.Module:
    """Input 0 reaches output 0 through enc[0]; enc[1] takes over where enc[0] is silent."""
    model = WiredVAE()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.enc.weight[0, 0] = model.enc.weight[1, 0] = 1.0
        model.fc_mu.weight[0, 0], model.fc_mu.weight[1, 0], model.fc_mu.weight[1, 1] = 1.0, -1.0, 1.0
        model.dec.weight[0, 0] = model.dec.weight[1, 1] = 1.0  # dec[1] = relu(enc[1] - enc[0])
        model.out.weight[0, 0] = model.out.weight[0, 1] = 1.0
    return model


def test_a_backup_that_speaks_only_where_the_circuit_is_silent_shows_in_the_completeness_gap() -> None:
    vae, pairs = nv.VAE(backed_up()), wired_pairs()
    path = ["factor:f", "input[0]", "enc[0]", "latent.z[0]", "dec[0]", "output[0]", "readout:pixel[0]"]
    circuit = nx.DiGraph(list(itertools.pairwise(path)))
    found = knockouts(vae, circuit, pairs, PIXEL, subsets=20)
    total = float((pairs.source - pairs.base)[:, 0].mean())
    assert found.total[0] == pytest.approx(total, rel=1e-5)
    assert found.gaps[0, 0] == pytest.approx(0.0, abs=1e-6)  # as it is the circuit does what the model does
    assert found.gaps[1:, 0].max() == pytest.approx(total, rel=1e-4)  # without it the backup does
    assert found.gaps[1, 0] == pytest.approx(total, rel=1e-4)
    assert found.knocked_out[:2].tolist() == [0, 4]  # edges between units only
    assert set(found.knocked_out.tolist()) == {0, 1, 2, 3, 4}  # sets of every size are tried
    assert (len(found.gaps), found.defined) == (22, (True,))


def test_a_part_is_put_back_where_the_context_lacks_it(monkeypatch) -> None:
    vae, pairs = nv.VAE(backed_up()), wired_pairs()
    primary, backup = "input[0] -> enc[0]", "input[0] -> enc[1]"
    path = ["input[0]", "enc[1]", "latent.z[1]", "dec[1]", "output[0]"]
    both = [
        *itertools.pairwise(
            ["factor:f", "input[0]", "enc[0]", "latent.z[0]", "dec[0]", "output[0]", "readout:pixel[0]"]
        )
    ]
    circuit = nx.DiGraph([*both, *itertools.pairwise(path), ("enc[0]", "latent.z[1]")])
    alone = knockouts(vae, circuit, pairs, PIXEL, subsets=0, contexts=0)
    worth = dict(zip(alone.parts, alone.worth[:, 0], strict=True))
    assert worth[primary] == worth[backup] == pytest.approx(0.0, abs=1e-6)  # either does without the other
    members = list(alone.parts)
    context = np.array([name in (primary, backup) for name in members])
    monkeypatch.setattr(knocked_out, "_draw", lambda rng, n, times: iter([context] * times))
    found = knockouts(vae, circuit, pairs, PIXEL, subsets=0, contexts=1)
    worth = dict(zip(found.parts, found.worth[:, 0], strict=True))
    total = float((pairs.source - pairs.base)[:, 0].mean())
    assert worth[primary] == pytest.approx(total, rel=1e-4)  # with the backup out it is worth all
    assert worth[backup] == pytest.approx(total, rel=1e-4)


def test_the_worth_of_a_part_is_its_largest_over_contexts(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    decoy = true_circuit.copy()
    decoy.add_edge("input[2]", "enc[4]")
    found = knockouts(vae, decoy, pairs, readout, contexts=0, subsets=0)
    worth = dict(zip(found.parts, found.worth[:, 0] / found.total[0], strict=True))
    expected = {
        "input[0] -> enc[0]": 1 / 1.4,
        "enc[1] -> latent.z[0]": 0.4 / 1.4,
        "latent.z[0] -> dec[0]": 1 / 0.72,
        "dec[1] -> output[0]": 0.28 / 0.72,
        "input[2] -> enc[4]": 0.0,
    }
    for part, value in expected.items():
        assert worth[part] == pytest.approx(value, rel=1e-4, abs=1e-9)
    nodes = knockouts(vae, decoy, pairs, readout, parts="node", contexts=3)
    by_node = dict(zip(nodes.parts, nodes.worth[:, 0] / nodes.total[0], strict=True))
    assert set(nodes.parts) == set(decoy.nodes) - {"factor:f", "readout:pixel[0]"}
    assert by_node["enc[4]"] == 0.0
    assert by_node["enc[1]"] >= 0.4 / 1.4 - 1e-4
    more = knockouts(vae, decoy, pairs, readout, contexts=6)
    assert (more.worth >= found.worth - 1e-7).all()
    dec1 = more.parts.index("dec[1] -> output[0]")
    assert (
        more.worth[dec1, 0] <= found.total[0] * 0.28 / 0.72 + 1e-6
    )  # no context makes it larger than all of its input does
    assert "completeness gap" in str(more)
    assert more.to_frame().share.max() == pytest.approx(worth["latent.z[0] -> dec[0]"], rel=1e-3)


# ---------------------------------------------------------------------------------- results
def test_a_result_reads_well_and_survives_its_file(wired, true_circuit, tmp_path) -> None:
    vae, pairs, readout = wired
    grouped = replace(pairs, groups=torch.arange(30) // 2)
    result = faithfulness(vae, true_circuit, grouped, readout, scores=score_edges(vae, grouped, readout))
    text = str(result)
    for words in ("10 of", "30 pairs", "faithfulness  1 [1, 1]", "CPR", "unexplained", "latent: KL of mu"):
        assert words in text
    assert repr(result) == "Faithfulness(pixel[0]=1.0; 10 of 74 edges, 30 pairs)"
    result.save(tmp_path / "f.npz")
    again = Faithfulness.load(tmp_path / "f.npz")
    assert str(again) == text
    assert again.provenance["options"] == {"ablation": "base", "reference": None}
    np.testing.assert_array_equal(again.groups, result.groups)
    frame = result.to_frame()
    assert set(frame.measure) == {
        "faithfulness",
        "node_faithfulness",
        "completeness",
        "cpr",
        "cmd",
        "log_cpr",
        "log_cmd",
    }
    curve = result.curve_frame()
    assert curve.iloc[-1].share == 1.0
    assert curve.iloc[-1].f == pytest.approx(1.0, abs=1e-5)
    _, axes = result.plot()
    assert [line.get_label() for line in axes.get_lines()][2] == "pixel[0]"
    assert axes.get_xscale() == "log"
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="not a readable faithfulness file"):
        Faithfulness.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ablation": "noise"}, DataError, "ablation='noise' is unknown"),
        ({"reference": torch.rand(3, 4)}, DataError, "leave it out"),
        ({"sizes": (99,)}, CircuitError, "from 1 to the 10"),
    ],
)
def test_bad_options_are_refused(wired, true_circuit, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        faithfulness(wired[0], true_circuit, *wired[1:], **options)


@pytest.mark.parametrize("options", [{"parts": "layer"}, {"subsets": -1}, {"contexts": 1.5}])
def test_bad_options_of_knockouts_are_refused(wired, true_circuit, options: dict) -> None:
    with pytest.raises(CircuitError, match=next(iter(options))):
        knockouts(wired[0], true_circuit, *wired[1:], **options)
    with pytest.raises(CircuitError, match="no edge between units"):
        knockouts(wired[0], nx.DiGraph(), *wired[1:])


def test_evaluation_leaves_the_model_as_it_was(conv) -> None:
    vae, pairs, _ = conv
    before = copy.deepcopy(vae.module.state_dict())
    for ablation in ("mean", "zero"):
        faithfulness(vae, nx.DiGraph([("factor:f", "input[0]")]), pairs, HALVES, ablation=ablation)
    assert all(torch.equal(before[name], value) for name, value in vae.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.module.modules())
