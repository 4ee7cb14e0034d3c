"""Edge scores against literal implementations one edge at a time, closed forms and identities."""

from __future__ import annotations

import copy
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from literal_edges import HALVES, LOBATTO, Literal, SmoothVAE, by_edge, conv_layers, double, pairs_for
from scipy.stats import spearmanr
from torch import Tensor
from vaes import MLPVAE, ConvVAE, seeded
from wired import TRUE_EDGES, wired

import nnsight_vae as nv
from nnsight_vae.circuits import circuit_from, score_edges
from nnsight_vae.circuits.wiring import contributions, pair_run
from nnsight_vae.circuits.wiring.quadrature import gauss_legendre
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Latents, Pixels

__all__ = ["wired"]  # fixtures


def assert_close(fast, literal) -> None:
    fast, literal = torch.as_tensor(np.array(fast)), torch.stack([torch.as_tensor(x) for x in literal])
    assert fast.shape == literal.shape
    assert fast.dtype == torch.float64  # in single precision small edges would be rounding of the readout
    torch.testing.assert_close(fast, literal, rtol=1e-6, atol=1e-9 * float(literal.abs().max()))


def literal_score(literal: Literal, method: str, nodes: int, options: dict):
    """The score of one edge, as a function of (path, ports, units), in the words of the definition."""
    rules = {
        "base": [(0.0, 1.0)],
        "source": [(1.0, 1.0)],
        "average": [(0.0, 0.5), (1.0, 0.5)],
        "eap-ig": gauss_legendre(nodes),
    }
    if method == "exact":
        denoised = options.get("direction") == "denoising"
        return literal.denoised if denoised else literal.noised
    if method == "ig":
        return lambda *edge: literal.integrated(*edge, nodes=nodes)
    return lambda *edge: literal.sloped(*edge, rules[options.get("at", method)])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ig", {}),
        ("exact", {}),
        ("exact", {"direction": "denoising"}),
        ("eap", {"at": "base"}),
        ("eap", {"at": "source"}),
        ("eap", {"at": "average"}),
        ("eap-ig", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
def test_every_edge_of_a_conv_vae_equals_hooks_one_edge_at_a_time(norm: bool, method: str, options: dict) -> None:
    model = seeded(ConvVAE(norm=norm), 3).double()
    pairs = double(pairs_for(model, 3))
    literal = Literal(model, pairs, HALVES)
    score = literal_score(literal, method, 3, options)
    scores = by_edge(score_edges(nv.VAE(model), pairs, HALVES, method=method, nodes=3, **options))
    before = "input"
    for path, site, ports, units in conv_layers(norm):
        n_sources = len({s for s, _ in scores if s.startswith(f"{before}[")})
        n_targets = len({t for _, t in scores if t.startswith(f"{site}[")})
        assert n_sources * ports == contributions.weight_grid(literal.modules[path])[1].max() + 1
        fast, slow = [], []
        for u in range(n_sources):
            for v in {0, n_targets - 1, u % n_targets}:
                fast.append(scores[f"{before}[{u}]", f"{site}[{v}]"])
                slow.append(score(path, slice(u * ports, (u + 1) * ports), slice(v * units, (v + 1) * units)))
        assert_close(fast, slow)
        before = site


@pytest.mark.parametrize("method", ["ig", "exact", "eap"])
def test_functional_activations_and_a_packed_head_need_no_modules(method: str) -> None:
    model = seeded(MLPVAE(), 1).double()
    pairs, readout = double(pairs_for(model, 4)), Pixels((20,))[["pixel[0]", "pixel[7]"]]
    score = literal_score(Literal(model, pairs, readout), method, 2, {"at": "base"})
    scores = by_edge(score_edges(nv.VAE(model, example=pairs.base), pairs, readout, method=method, nodes=2))
    sites = ["input", "enc1", "enc2", "latent.z", "dec1", "output"]
    for before, site, path in zip(sites, sites[1:], ["enc1", "enc2", "heads", "dec1", "dec2"], strict=False):
        for u, v in ((0, 0), (3, 2)):
            slow = score(path, slice(u, u + 1), slice(v, v + 1))
            assert_close([scores[f"{before}[{u}]", f"{site}[{v}]"]], [slow])


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


def test_the_gap_of_a_cut_is_what_plain_quadrature_is_off_by_there() -> None:
    model = seeded(ConvVAE(), 5).double()
    pairs = double(pairs_for(model, 3))
    scores = score_edges(nv.VAE(model), pairs, HALVES, nodes=3)
    literal = Literal(model, pairs, HALVES)
    for path, cut in (("encoder.2", "encoder.0 -> encoder.2"), ("decoder.3", "decoder.2 -> decoder.3")):
        (_, base), (_, source) = (literal.taken_and_given(x, path) for x in (pairs.base, pairs.source))
        plain = -scores.total
        for position, weight in zip(*LOBATTO[3], strict=True):
            point = (base + position * (source - base)).requires_grad_()
            for t, values in enumerate(literal.run(pairs.base, path, point).T):
                (slope,) = torch.autograd.grad(values.sum(), point, retain_graph=True)
                plain[t] += weight * (slope * (source - base)).flatten(1).sum(1).numpy()
        np.testing.assert_allclose(scores.gaps[scores.cuts.index(cut)], plain, rtol=1e-6, atol=1e-9)


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
    edges = set(zip(sampled.sources, sampled.targets, strict=True))
    assert edges - set(zip(mean.sources, mean.targets, strict=True)) > {
        (f"latent.{tap}[{k}]", f"latent.z[{k}]") for tap in ("mu", "logvar") for k in range(5)
    }


def test_a_readout_of_the_latents_ends_the_chain_there() -> None:
    model = seeded(ConvVAE(), 2)
    scores = score_edges(nv.VAE(model), pairs_for(model, 4), Latents(5)["latent.mu[3]"])
    assert scores.cuts[-1] == "latent.mu -> readout:latent.mu[3]"
    reaching = {s: v for s, v in zip(scores.sources, scores.values[:, 0], strict=True) if s.startswith("latent.mu[")}
    np.testing.assert_allclose(reaching["latent.mu[3]"], scores.total[0], rtol=1e-5)
    assert all(not reaching[f"latent.mu[{k}]"].any() for k in (0, 1, 2, 4))


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


@pytest.mark.parametrize("method", ["ig", "eap", "eap-ig", "exact"])
def test_scores_are_the_same_where_gradients_are_switched_off(wired, method: str) -> None:
    scores = score_edges(*wired, method=method)
    with torch.no_grad():
        np.testing.assert_array_equal(score_edges(*wired, method=method).values, scores.values)


def test_wirings_are_remembered_while_weights_stay_and_found_again_when_they_change(wired) -> None:
    vae, pairs, readout = wired
    edges = set(zip(*(getattr(score_edges(vae, pairs, readout), side) for side in ("sources", "targets")), strict=True))
    wiring = Wiring.of(vae, pairs.base)
    assert Wiring.of(vae, pairs.base[:3]) is wiring
    with torch.no_grad():
        vae.module.out.weight[:, 4] = 0  # nothing reads hidden unit 4 of the decoder any more
        vae.module.dec.weight[0, 0] += 1
    assert Wiring.of(vae, pairs.base) is not wiring
    fresh = score_edges(nv.VAE(copy.deepcopy(vae.module), example=pairs.base), pairs, readout)
    np.testing.assert_array_equal(score_edges(vae, pairs, readout).values, fresh.values)
    assert ("dec[4]", "output[2]") in edges


# ---------------------------------------------------------------------------------- code that writes in place
class InPlaceVAE(SmoothVAE):
    """As `SmoothVAE`, with functions that write into what a layer gave."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder[2](self.encoder[0](x.mul_(2.0).mul_(0.5)).tanh_()).tanh_()
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder[2](self.decoder[0](z).tanh_()).sigmoid_()


@pytest.mark.parametrize("options", [{}, {"method": "eap"}, {"method": "eap-ig"}, {"method": "exact"}])
def test_functions_that_write_in_place_score_as_those_that_do_not(options: dict) -> None:
    plain, in_place = seeded(SmoothVAE()).double(), seeded(InPlaceVAE()).double()
    pairs, readout = double(pairs_for(plain, 4)), Pixels((12,))[["pixel[2]", "pixel[5]"]]
    one, other = (score_edges(nv.VAE(m, example=pairs.base), pairs, readout, **options) for m in (plain, in_place))
    assert len(one) == len(other)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------- on a trained model
@pytest.mark.slow
def test_layerwise_gradients_agree_with_edge_patching_on_a_trained_model() -> None:
    data = nv.datasets.load("pendulum")
    angles = data.sample(1024).factors[:, data.factors.index("angle")].numpy()
    doses = data.doses("angle", n=16, values=np.quantile(angles, [0.45, 0.5]).tolist(), propagate=False)
    pairs, readout, vae = Pairs(*doses.images, factor="angle"), data.readout("angle"), nv.load("pendulum-beta-vae")
    ig = score_edges(vae, pairs, readout)
    assert max(row.error for row in ig.completeness) < 1e-4
    chosen = np.sort(np.random.default_rng(0).choice(len(ig), 300, replace=False))
    edges = [(ig.sources[i], ig.targets[i]) for i in chosen]
    exact = score_edges(vae, pairs, readout, method="exact", direction="both", edges=edges)
    estimate, truth = ig.mean()[chosen, 0], exact.mean()[:, 0]
    assert np.corrcoef(estimate, truth)[0, 1] > 0.98
    assert spearmanr(estimate, truth)[0] > 0.98
    top, wide = (set(np.argsort(-np.abs(v))[:k]) for v, k in ((truth, 30), (estimate, 60)))
    assert len(top & wide) / 30 > 0.98
    for baseline in ("weight", "correlation"):
        assert spearmanr(ig.beside[baseline][chosen, 0], np.abs(truth))[0] < 0.9
