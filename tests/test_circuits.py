"""Edge scores, extraction and faithfulness against literal implementations, known circuits and identities."""

from __future__ import annotations

import copy
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vaes import MLPVAE, ConvVAE, ResidualVAE, images, seeded
from wired import TRUE_EDGES, WiredVAE, wired_pairs

import nnsight_vae as nv
from nnsight_vae.circuits import (
    Mass,
    circuit_from,
    contributions,
    extract_circuit,
    faithfulness,
    pair_run,
    score_edges,
)
from nnsight_vae.circuits.layers import Chain
from nnsight_vae.circuits.quadrature import gauss_legendre, path_gradients
from nnsight_vae.errors import CircuitError, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Latents, Pixels, Region

HALVES = Region({"top": (slice(0, 8), slice(None)), "left": (slice(None), slice(0, 5))})


def pairs_for(model: nn.Module, n: int = 5) -> Pairs:
    return Pairs(images(model, n), images(model, n, seed=1), factor="f")


def double(pairs: Pairs) -> Pairs:
    return replace(pairs, base=pairs.base.double(), source=pairs.source.double())


def conv_layers(norm: bool) -> list[tuple[str, str, int, int]]:
    """Each layer with the site of its nodes, ports per source node and units per target node, written by hand."""
    names = (
        ["encoder.0", "encoder.3", "encoder.7", "fc_mu", "decoder.0", "decoder.3", "decoder.6"]
        if norm
        else ["encoder.0", "encoder.2", "encoder.5", "fc_mu", "decoder.0", "decoder.3", "decoder.5"]
    )
    sites = [*names[:3], "latent.z", "decoder.2", names[5], "output"]
    ports, units = [1, 1, 16, 1, 1, 1, 1], [1, 1, 1, 1, 16, 1, 1]
    return list(zip(names, sites, ports, units, strict=True))


class Literal:
    """Edges one at a time on an unwrapped copy of the model, with plain hooks and no shared code."""

    def __init__(self, model: nn.Module, pairs: Pairs, readout) -> None:
        self.model, self.pairs, self.readout = copy.deepcopy(model).eval(), pairs, readout
        for module in self.model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        self.modules = dict(self.model.named_modules())

    def run(self, x: Tensor, path: str | None = None, replacement: Tensor | None = None) -> Tensor:
        hook = self.modules[path].register_forward_hook(lambda m, a, out: replacement) if path else None
        try:
            encoded = self.model.encode(x)
            mu = encoded["mu"] if isinstance(encoded, dict) else encoded[0]
            return self.readout(self.model.decode(mu))
        finally:
            if hook:
                hook.remove()

    def taken_and_given(self, x: Tensor, path: str) -> tuple[Tensor, Tensor]:
        kept = []
        hook = self.modules[path].register_forward_hook(lambda m, a, out: kept.append((a[0].clone(), out.clone())))
        with torch.no_grad():
            self.run(x)
        hook.remove()
        return kept[0]

    def contribution(self, path: str, ports: slice, units: slice) -> Tensor:
        (base, given), (source, _) = (self.taken_and_given(x, path) for x in (self.pairs.base, self.pairs.source))
        swapped = base.clone()
        swapped[:, ports] = source[:, ports]
        with torch.no_grad():
            change = self.modules[path](swapped) - given
        only = torch.zeros_like(change)
        only[:, units] = change[:, units]
        return only

    def noised(self, path: str, ports: slice, units: slice) -> Tensor:
        _, given = self.taken_and_given(self.pairs.base, path)
        with torch.no_grad():
            patched = self.run(self.pairs.base, path, given + self.contribution(path, ports, units))
            return (patched - self.run(self.pairs.base)).T

    def integrated(self, path: str, ports: slice, units: slice, nodes: int) -> Tensor:
        (_, base), (_, source) = (self.taken_and_given(x, path) for x in (self.pairs.base, self.pairs.source))
        with torch.no_grad():
            total = self.run(self.pairs.source) - self.run(self.pairs.base)
        positions, weights = np.polynomial.legendre.leggauss(nodes)
        contribution = self.contribution(path, ports, units)
        scores = []
        for t in range(total.shape[1]):
            along, worth = [], []
            for position in (positions + 1) / 2:
                point = (base + position * (source - base)).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.run(self.pairs.base, path, point)[:, t].sum(), point)
                along.append((gradient * (source - base)).flatten(1).sum(1))
                worth.append((gradient * contribution).flatten(1).sum(1))
            a, b, w = torch.stack(along), torch.stack(worth), torch.tensor(weights / 2, dtype=base.dtype)[:, None]
            slope = (total[:, t] - (w * a).sum(0)) / (w * a**2).sum(0)
            scores.append((w * (1 + slope * a) * b).sum(0))
        return torch.stack(scores)


def assert_close(fast, literal) -> None:
    fast, literal = torch.as_tensor(np.array(fast)), torch.stack([torch.as_tensor(x) for x in literal])
    assert fast.shape == literal.shape
    assert fast.dtype == torch.float64  # in single precision small edges would be rounding of the readout
    torch.testing.assert_close(fast, literal, rtol=1e-6, atol=1e-9 * float(literal.abs().max()))


# ---------------------------------------------------------------------------------- against literal implementations
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("method", ["ig", "exact"])
def test_every_edge_of_a_conv_vae_equals_hooks_one_edge_at_a_time(norm: bool, method: str) -> None:
    model = seeded(ConvVAE(norm=norm), 3).double()
    pairs = double(pairs_for(model, 3))
    literal = Literal(model, pairs, HALVES)
    scores = score_edges(nv.VAE(model), pairs, HALVES, method=method, nodes=3)
    position = {edge: i for i, edge in enumerate(zip(scores.sources, scores.targets, strict=True))}
    before = "input"
    for path, site, ports, units in conv_layers(norm):
        n_sources = len({s for s, _ in position if s.startswith(f"{before}[")})
        n_targets = len({t for _, t in position if t.startswith(f"{site}[")})
        assert n_sources * ports == contributions.weight_grid(literal.modules[path])[1].max() + 1
        fast, slow = [], []
        for u in range(n_sources):
            for v in {0, n_targets - 1, u % n_targets}:
                fast.append(scores.values[position[f"{before}[{u}]", f"{site}[{v}]"]])
                where = slice(u * ports, (u + 1) * ports), slice(v * units, (v + 1) * units)
                slow.append(
                    literal.noised(path, *where) if method == "exact" else literal.integrated(path, *where, nodes=3)
                )
        assert_close(fast, slow)
        before = site


@pytest.mark.parametrize("method", ["ig", "exact"])
def test_functional_activations_and_a_packed_head_need_no_modules(method: str) -> None:
    model = seeded(MLPVAE(), 1).double()
    pairs, readout = double(pairs_for(model, 4)), Pixels((20,))[["pixel[0]", "pixel[7]"]]
    literal = Literal(model, pairs, readout)
    scores = score_edges(nv.VAE(model, example=pairs.base), pairs, readout, method=method, nodes=2)
    sites = ["input", "enc1", "enc2", "latent.z", "dec1", "output"]
    for before, site, path in zip(sites, sites[1:], ["enc1", "enc2", "heads", "dec1", "dec2"], strict=False):
        for u, v in ((0, 0), (3, 2)):
            edge = scores.sources.index(f"{before}[{u}]"), slice(u, u + 1), slice(v, v + 1)
            row = next(
                i
                for i in range(len(scores))
                if (scores.sources[i], scores.targets[i]) == (f"{before}[{u}]", f"{site}[{v}]")
            )
            slow = literal.noised if method == "exact" else lambda *a: literal.integrated(*a, nodes=2)
            assert_close([scores.values[row]], [slow(path, *edge[1:])])


LAYERS = [
    nn.Linear(6, 4),
    nn.Conv1d(4, 6, 3, stride=2),
    nn.Conv2d(4, 6, (3, 2), padding=1, dilation=2),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2),
    nn.Conv3d(2, 3, 2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose3d(2, 3, 2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_contraction_equals_one_swap_per_edge(layer: nn.Module) -> None:
    layer, generator = seeded(copy.deepcopy(layer)), torch.Generator().manual_seed(0)
    units, ports = contributions.weight_grid(layer)
    n_ports, n_units = int(ports.max()) + 1, int(units.max()) + 1
    spatial = {2: (), 3: (7,), 4: (7, 6), 5: (4, 5, 4)}[layer.weight.ndim]
    base, delta = (torch.randn(3, n_ports, *spatial, generator=generator) for _ in range(2))
    given = layer(base).detach()
    gradient = torch.randn(given.shape, generator=generator)
    torch.testing.assert_close(
        contributions.with_bias(layer, contributions.apply(layer, base)).detach(), given, rtol=1e-5, atol=1e-5
    )
    fast = contributions.edge_products(layer, delta, gradient, ports * n_units + units, n_ports * n_units)
    for u in range(n_ports):
        swapped = base.clone()
        swapped[:, u] += delta[:, u]
        change = (layer(swapped) - given).detach() * gradient
        for v in range(n_units):
            slow = change[:, v].reshape(3, -1).sum(1)
            torch.testing.assert_close(fast[u * n_units + v], slow, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_over_extra_axes_contracts_its_last_axis() -> None:
    layer = seeded(nn.Linear(4, 3))
    delta, gradient = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    units, ports = contributions.weight_grid(layer)
    fast = contributions.edge_products(layer, delta, gradient, units * 4 + ports, 12)
    torch.testing.assert_close(
        fast.T.reshape(2, 3, 4), torch.einsum("nta,nto,oa->noa", delta, gradient, layer.weight.detach())
    )


# ---------------------------------------------------------------------------------- cuts
class SmoothVAE(nn.Module):
    image = (12,)

    def __init__(self, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 10), act(), nn.Linear(10, 8), act())
        self.fc_mu, self.fc_logvar = nn.Linear(8, 3), nn.Linear(8, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 8), act(), nn.Linear(8, 12), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def test_plain_quadrature_sums_to_the_total_effect_at_every_cut_of_a_smooth_network() -> None:
    model = seeded(SmoothVAE())
    scores = score_edges(nv.VAE(model), pairs_for(model, 8), Pixels((12,))[["pixel[2]", "pixel[5]"]], nodes=12)
    assert len(scores.completeness) == len(scores.cuts) * 2 == 14
    assert max(row.quadrature for row in scores.completeness) < 1e-4
    assert max(row.error for row in scores.completeness) < 1e-4


def test_kinks_cost_plain_quadrature_more_nodes_and_calibration_closes_every_cut() -> None:
    model = seeded(ConvVAE(), 5)
    vae, pairs = nv.VAE(model), pairs_for(model, 8)
    few, many = (score_edges(vae, pairs, HALVES, nodes=nodes).completeness for nodes in (3, 32))
    assert max(row.error for row in many) < 1e-4
    inner = [i for i, row in enumerate(few) if row.quadrature > 1e-2]
    assert inner
    assert all(many[i].quadrature < 0.5 * few[i].quadrature for i in inner)


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_calibration_is_exact_where_one_gate_opens_on_the_way(nodes: int) -> None:
    weight, start, change = torch.tensor([[1.0, -2.0]]), torch.tensor([[-0.3, 0.0]]), torch.tensor([[1.0, 0.1]])
    opens = 0.375  # -0.3 + 0.8 t = 0

    def gated(points: list[Tensor]) -> Tensor:
        return torch.relu((points[0] * weight).sum(1, keepdim=True))

    total = gated([start + change]).T
    plain, fitted = (path_gradients([start], [change], gated, gauss_legendre(nodes), t) for t in (None, total))
    torch.testing.assert_close(fitted.means[0][0], weight * (1 - opens))
    assert (plain.means[0][0] - weight * (1 - opens)).abs().max() > 0.01
    assert float(fitted.gap) == pytest.approx(float((plain.means[0][0] * change).sum() - total), abs=1e-6)


def test_calibration_at_most_doubles_weights_and_leaves_the_rest_visible() -> None:
    start, change = torch.zeros(2, 1), torch.ones(2, 1)
    step = path_gradients(
        [start], [change], lambda p: 1e-3 * p[0], gauss_legendre(2), total=torch.tensor([[1.0, 2e-3]])
    )
    assert step.means[0][0].flatten().tolist() == pytest.approx([2e-3, 2e-3])
    assert step.gap.flatten().tolist() == pytest.approx([1e-3 - 1.0, -1e-3])


def test_the_sample_path_keeps_its_noise_and_is_complete() -> None:
    model = seeded(ConvVAE(), 2)
    vae, pairs = nv.VAE(model), pairs_for(model, 4)
    eps = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    sampled = score_edges(vae, replace(pairs, eps=eps), HALVES)
    mean = score_edges(vae, pairs, HALVES)
    with torch.no_grad():
        total = HALVES(vae(pairs.source, eps=eps)) - HALVES(vae(pairs.base, eps=eps))
    np.testing.assert_allclose(sampled.total, total.T, atol=1e-6)
    assert max(row.error for row in sampled.completeness) < 1e-3
    assert (sampled.sources, sampled.targets) == (mean.sources, mean.targets)
    assert not np.allclose(sampled.values, mean.values, rtol=1e-2)


def test_a_readout_of_the_latents_ends_the_chain_there() -> None:
    model = seeded(ConvVAE(), 2)
    scores = score_edges(nv.VAE(model), pairs_for(model, 4), Latents(5)["latent.mu[3]"])
    assert scores.cuts[-1] == "latent.mu -> readout:latent.mu[3]"
    reaching = {s: v for s, v in zip(scores.sources, scores.values[:, 0], strict=True) if s.startswith("latent.mu[")}
    np.testing.assert_allclose(reaching["latent.mu[3]"], scores.total[0], rtol=1e-5)
    assert all(not reaching[f"latent.mu[{k}]"].any() for k in (0, 1, 2, 4))


# ---------------------------------------------------------------------------------- a circuit known by construction
@pytest.fixture
def wired() -> tuple[nv.VAE, Pairs, object]:
    pairs = wired_pairs()
    return nv.VAE(WiredVAE(), example=pairs.base), pairs, Pixels((4,))["pixel[0]"]


@pytest.mark.parametrize("method", ["exact", "ig", "eap"])
def test_camouflage_scores_nothing_and_every_true_edge_something(wired, method: str) -> None:
    scores = score_edges(*wired, method=method)
    strength = dict(zip(zip(scores.sources, scores.targets, strict=True), np.abs(scores.mean()[:, 0]), strict=True))
    assert min(strength[edge] for edge in TRUE_EDGES) > 0.01
    assert max(value for edge, value in strength.items() if edge not in TRUE_EDGES) == 0.0


def test_weights_are_fooled_by_the_camouflage(wired) -> None:
    scores = score_edges(*wired, method="weight")
    strength = dict(zip(zip(scores.sources, scores.targets, strict=True), scores.mean()[:, 0], strict=True))
    assert strength["input[0]", "enc[2]"] == pytest.approx(50.0)
    assert strength["dec[3]", "output[0]"] == pytest.approx(60.0)
    assert max(strength[edge] for edge in TRUE_EDGES) < 50.0


def test_linear_stretches_have_closed_form_scores(wired) -> None:
    vae, pairs, readout = wired
    change = (pairs.source - pairs.base)[:, 0].numpy()
    scores = score_edges(vae, pairs, readout)
    value = dict(zip(zip(scores.sources, scores.targets, strict=True), scores.values[:, 0], strict=True))
    slope = 1.0 - 0.7 * 0.4  # of output 0 in latent 0
    np.testing.assert_allclose(value["factor:f", "input[0]"], change * 1.4 * slope, rtol=1e-5)
    np.testing.assert_allclose(value["input[0]", "enc[1]"], change * 0.4 * slope, rtol=1e-5)
    np.testing.assert_allclose(value["latent.z[0]", "dec[1]"], change * 1.4 * -0.28, rtol=1e-5)


# ---------------------------------------------------------------------------------- identities
def test_reversed_pairs_flip_the_sign_of_ig() -> None:
    model = seeded(ConvVAE(), 4)
    vae, pairs = nv.VAE(model), pairs_for(model, 4)
    there, back = (score_edges(vae, p, HALVES).values for p in (pairs, pairs.reversed()))
    np.testing.assert_allclose(there, -back, rtol=1e-3, atol=1e-4 * np.abs(there).max())


def test_denoising_is_noising_of_the_reversed_pairs_and_both_is_the_mean() -> None:
    model = seeded(SmoothVAE())
    vae, pairs, readout = nv.VAE(model), pairs_for(model, 4), Pixels((12,))["pixel[3]"]
    noising, denoising, both = (
        score_edges(vae, pairs, readout, method="exact", direction=d) for d in ("noising", "denoising", "both")
    )
    back = score_edges(vae, pairs.reversed(), readout, method="exact")
    np.testing.assert_allclose(denoising.values, -back.values, atol=1e-7)
    np.testing.assert_allclose(both.values, (noising.values + denoising.values) / 2, atol=1e-7)
    assert [s.estimand for s in (noising, denoising, both)] == [
        "PNIE (noising)",
        "TNIE (denoising)",
        "mean of PNIE and TNIE",
    ]


def test_ig_agrees_with_exact_patching_in_both_directions() -> None:
    model = seeded(SmoothVAE())
    vae, pairs, readout = nv.VAE(model), pairs_for(model, 6), Pixels((12,))["pixel[3]"]
    ig, exact = (score_edges(vae, pairs, readout, method=m, direction="both") for m in ("ig", "exact"))
    assert np.corrcoef(ig.values.ravel(), exact.values.ravel())[0, 1] > 0.95


def test_pairs_that_do_nothing_score_zero_and_have_no_circuit() -> None:
    model = seeded(ConvVAE(), 4)
    vae, x = nv.VAE(model), images(model, 4)
    scores = score_edges(vae, Pairs(x, x.clone()), HALVES)
    assert not scores.values.any()
    assert {row.error for row in scores.completeness} == {None}
    circuit = circuit_from(scores)
    assert len(circuit) == 0
    assert set(circuit.graph["left_out"]) == {"top", "left"}


def test_permuting_pairs_permutes_scores_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(ConvVAE(), 4).double()  # in single precision another batch size can flip a ReLU at its kink
    vae, pairs = nv.VAE(model), double(pairs_for(model, 7))
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    scores = score_edges(vae, pairs, HALVES).values
    permuted = score_edges(vae, pairs[order], HALVES).values
    np.testing.assert_allclose(permuted, scores[:, :, order], rtol=1e-8, atol=1e-12)
    monkeypatch.setattr(pair_run, "CHUNK_BYTES", 1)
    monkeypatch.setattr(pair_run, "MIN_ROWS", 3)
    chunked = score_edges(vae, pairs, HALVES).values
    np.testing.assert_allclose(chunked, scores, rtol=1e-8, atol=1e-12)


def test_the_same_call_gives_the_same_numbers_and_leaves_no_trace(wired) -> None:
    vae, pairs, readout = wired
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two = (score_edges(vae, pairs, readout) for _ in range(2))
    assert np.array_equal(one.values, two.values)
    assert nx.utils.graphs_equal(circuit_from(one), circuit_from(two))
    random = [score_edges(vae, pairs, readout, method="random", seed=s).values for s in (1, 1, 2)]
    assert np.array_equal(random[0], random[1])
    assert not np.array_equal(random[0], random[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in vae.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.module.modules())


# ---------------------------------------------------------------------------------- results
def test_the_table_has_one_row_per_edge_and_target_it_can_reach(wired) -> None:
    vae, pairs, _ = wired
    scores = score_edges(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[2]"]])
    frame = scores.to_frame()
    assert list(frame.columns[:7]) == ["source", "target", "readout", "effect", "ci_low", "ci_high", "estimand"]
    into = frame[frame.target.str.startswith("readout:")]
    assert set(into.target.str.removeprefix("readout:") == into.readout) == {True}
    assert len(into) == 2 * 4
    row = frame[(frame.source == "latent.z[0]") & (frame.target == "dec[4]") & (frame.readout == "pixel[2]")].iloc[0]
    assert 0 < row.ci_low < row.effect < row.ci_high
    calls = []
    score_edges(vae, pairs, Pixels((4,)), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]


# ---------------------------------------------------------------------------------- faithfulness
def test_the_true_circuit_is_wholly_faithful_and_parts_of_it_in_closed_form(wired) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=Mass(1.0))
    whole = faithfulness(vae, circuit, pairs, readout)
    assert whole.score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.node_score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.curve[-1] == (10, {"pixel[0]": pytest.approx(1.0, abs=1e-5)})
    curve = {size: values["pixel[0]"] for size, values in whole.curve}
    assert curve[6] == pytest.approx(1.0 / (1.4 * 0.72), rel=1e-4)  # the strongest route alone
    assert curve[8] == pytest.approx(
        1.0 / 0.72, rel=1e-4
    )  # then the .4 one through enc[1], before the .28 through dec[1]
    cut = circuit.copy()
    cut.remove_edge("enc[1]", "latent.z[0]")
    part = faithfulness(vae, cut, pairs, readout, sizes=())
    assert part.score["pixel[0]"].value == pytest.approx(1.0 / 1.4, rel=1e-4)
    assert part.node_score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert part.score["pixel[0]"].low <= part.score["pixel[0]"].value <= part.score["pixel[0]"].high
    cut = circuit.copy()
    cut.remove_node("dec[1]")  # it lowered the output
    assert faithfulness(vae, cut, pairs, readout).score["pixel[0]"].value == pytest.approx(1 / 0.72, rel=1e-4)
    cut = circuit.copy()
    cut.remove_edge("output[0]", "readout:pixel[0]")
    assert faithfulness(vae, cut, pairs, readout).score["pixel[0]"].value == pytest.approx(0.0, abs=1e-6)
    assert "10 of" in str(whole)
    assert "pixel[0]" in repr(whole)


def test_any_edge_set_of_a_conv_vae_equals_a_literal_masked_forward() -> None:
    model = seeded(ConvVAE(), 6)
    vae, pairs = nv.VAE(model), pairs_for(model, 4)
    scores = score_edges(vae, pairs, HALVES)
    rng = np.random.default_rng(0)
    kept = [edge for edge in zip(scores.sources, scores.targets, strict=True) if rng.random() < 0.7]
    kept.remove(("factor:f", "input[1]"))
    circuit = nx.DiGraph(schema="nnsight-vae/circuit@1")
    circuit.add_edges_from(kept)
    result = faithfulness(vae, circuit, pairs, HALVES, sizes=())

    literal, edges = Literal(model, pairs, HALVES), set(kept)
    base = {path: literal.taken_and_given(pairs.base, path) for path, *_ in conv_layers(norm=False)}
    with torch.no_grad():
        plain = model.eval().decode(model.encode(pairs.base)[0])
        x = pairs.base.clone()
        for c in range(3):
            if ("factor:f", f"input[{c}]") in edges:
                x[:, c] = pairs.source[:, c]
        hooks, before = [], "input"
        for path, site, ports, units in conv_layers(norm=False):

            def only(module, args, out, path=path, before=before, site=site, ports=ports, units=units):
                taken, given = base[path]
                total = given.clone()
                for u in range(taken.shape[1] // ports):
                    swapped = taken.clone()
                    swapped[:, u * ports : (u + 1) * ports] = args[0][:, u * ports : (u + 1) * ports]
                    change = type(module).forward(module, swapped) - given
                    for v in range(given.shape[1] // units):
                        if (f"{before}[{u}]", f"{site}[{v}]") in edges:
                            total[:, v * units : (v + 1) * units] += change[:, v * units : (v + 1) * units]
                return total

            hooks.append(literal.modules[path].register_forward_hook(only))
            before = site
        reached = literal.model.decode(literal.model.encode(x)[0])
        for t, name in enumerate(HALVES.names):
            out = plain.clone()
            for c in range(3):
                if (f"output[{c}]", f"readout:{name}") in edges:
                    out[:, c] = reached[:, c]
            expected = float((HALVES(out) - HALVES(plain))[:, t].mean())
            assert result.circuit_effect[name] == pytest.approx(expected, rel=1e-3, abs=1e-6)


# ---------------------------------------------------------------------------------- refusals
class Normed(SmoothVAE):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU())


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_branch_is_refused_by_name() -> None:
    model = seeded(ResidualVAE())
    pairs = pairs_for(model)
    with pytest.raises(CircuitError, match=r"passes 'block.first'.*residual or skip"):
        score_edges(nv.VAE(model, example=pairs.base), pairs, Pixels((1, 8, 8))["pixel[0,0,0]"])


def test_a_module_that_mixes_units_is_refused_by_name() -> None:
    model = seeded(Normed())
    with pytest.raises(CircuitError, match=r"mixed.*'encoder.1' \(LayerNorm\)"):
        score_edges(nv.VAE(model), pairs_for(model), Pixels((12,))["pixel[0]"])


def test_a_layer_that_is_not_what_it_says_is_refused_by_name() -> None:
    model = SmoothVAE()
    model.decoder[2] = Doubled(8, 12)
    model = seeded(model)
    with pytest.raises(CircuitError, match=r"'decoder.2' is not what a Doubled makes"):
        score_edges(nv.VAE(model), pairs_for(model), Pixels((12,))["pixel[0]"])


class SquaredError:
    names = ("error",)

    def __init__(self, to: Tensor) -> None:
        self.to = to

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction - self.to).square().mean(1, keepdim=True)


class Threshold:
    names = ("bright",)

    def __init__(self, level: float) -> None:
        self.level = level

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction.mean(1, keepdim=True) > self.level).float()


def test_a_distance_to_the_base_is_refused_where_it_is_flat_and_scored_where_it_is_not() -> None:
    model = seeded(SmoothVAE())
    vae, pairs = nv.VAE(model), pairs_for(model)
    with torch.no_grad():
        readout = SquaredError(vae(pairs.base))
    with pytest.raises(ReadoutError, match=r"'error'.*gradient is 0 at the base run.*method='ig'"):
        score_edges(vae, pairs, readout, method="eap")
    assert max(row.error for row in score_edges(vae, pairs, readout, nodes=12).completeness) < 1e-4


def test_a_readout_without_gradient_is_refused_for_ig() -> None:
    model = seeded(SmoothVAE())
    vae = nv.VAE(model)
    pairs = pairs_for(model, 4)
    with torch.no_grad():
        level = float((vae(pairs.base).mean(1) + vae(pairs.source).mean(1))[0] / 2)
    with pytest.raises(ReadoutError, match="not differentiable"):
        score_edges(vae, pairs, Threshold(level))
    exact = score_edges(vae, pairs, Threshold(level), method="exact")
    assert abs(exact.total[0, 0]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"nodes": 0}, "nodes=0"),
        ({"direction": "up"}, "direction='up'"),
    ],
)
def test_unknown_options_are_refused_before_any_work(wired, options: dict, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        score_edges(*wired, **options)


def test_a_foreign_circuit_is_refused(wired) -> None:
    vae, pairs, readout = wired
    foreign = nx.DiGraph([("factor:f", "input[0]"), ("input[0]", "encoder.9[3]")])
    with pytest.raises(CircuitError, match=r"'input\[0\]' -> 'encoder.9\[3\]'"):
        faithfulness(vae, foreign, pairs, readout)
    with pytest.raises(CircuitError, match="expected a circuit"):
        faithfulness(vae, nx.Graph(), pairs, readout)


def test_gates_that_are_shut_at_every_example_still_have_their_nodes(wired) -> None:
    vae, pairs, _ = wired
    columns = Chain.of(vae, pairs.base).columns
    assert [len(column.nodes) for column in columns] == [4, 6, 2, 5, 4]
