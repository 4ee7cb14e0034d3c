"""Edge scores against literal implementations one edge at a time, closed forms and identities."""

from __future__ import annotations

import copy
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from literal_edges import HALVES, LOBATTO, Literal, SmoothVAE, conv_layers, double, pairs_for
from scipy.stats import spearmanr
from torch import Tensor, nn
from vaes import MLPVAE, ConvVAE, images, seeded
from wired import TRUE_EDGES, WiredVAE, wired_pairs
from work import rows_run

import nnsight_vae as nv
from nnsight_vae.circuits import circuit_from, score_edges
from nnsight_vae.circuits.scoring import baselines, exact
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.wiring import contributions, pair_run
from nnsight_vae.circuits.wiring.quadrature import gauss_legendre
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.errors import CircuitError, DataError, NnsightVaeWarning, ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Latents, Pixels


@pytest.fixture
def wired() -> tuple[nv.VAE, Pairs, object]:
    pairs = wired_pairs()
    return nv.VAE(WiredVAE(), example=pairs.base), pairs, Pixels((4,))["pixel[0]"]


def by_edge(scores: EdgeScores) -> dict[tuple[str, str], np.ndarray]:
    return dict(zip(zip(scores.sources, scores.targets, strict=True), scores.values, strict=True))


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


def pairs_of_one_base(model: nn.Module, n: int = 5) -> Pairs:
    return Pairs(images(model, 1).expand(n, -1).clone(), images(model, n, seed=1), factor="f")


@pytest.mark.parametrize(("at", "other"), [("base", "source"), ("source", "base")])
def test_a_distance_is_refused_where_it_is_flat_and_scored_where_it_is_not(at: str, other: str) -> None:
    model = seeded(SmoothVAE())
    vae, pairs = nv.VAE(model), pairs_of_one_base(model)
    if at == "source":
        pairs = pairs.reversed()
    with torch.no_grad():
        readout = SquaredError(vae(getattr(pairs, at)[:1]))
    with pytest.raises(ReadoutError, match=rf"'error'.*gradient is 0 at the {at} run.*method='ig' or at='{other}'"):
        score_edges(vae, pairs, readout, method="eap", at=at)
    for options in (
        {"nodes": 6},
        {"method": "eap-ig"},
        {"method": "eap", "at": other},
        {"method": "eap", "at": "average"},
    ):
        assert score_edges(vae, pairs, readout, **options).values.any()
    assert max(row.error for row in score_edges(vae, pairs, readout, nodes=6).completeness) < 1e-4


def test_a_readout_that_is_flat_in_some_pairs_is_told_with_their_number() -> None:
    model = seeded(SmoothVAE())
    vae, one, two = nv.VAE(model), pairs_of_one_base(model, 3), pairs_for(model, 4)
    pairs = Pairs(torch.cat([one.base, two.base[1:]]), torch.cat([one.source, two.source[1:]]), factor="f")
    with torch.no_grad():
        readout = SquaredError(vae(one.base[:1]))
    with pytest.warns(NnsightVaeWarning, match="at the base run.*in 3 of the 6 pairs.*method='ig'"):
        scores = score_edges(vae, pairs, readout, method="eap")
    sizes = np.abs(scores.values).max(axis=(0, 1))
    assert sizes[:3].max() < 1e-5 * sizes[3:].min()
    score_edges(vae, pairs, readout)  # no warning is an error here


def test_a_readout_without_gradient_is_refused_for_every_gradient() -> None:
    model = seeded(SmoothVAE())
    vae = nv.VAE(model)
    pairs = pairs_for(model, 4)
    with torch.no_grad():
        level = float((vae(pairs.base).mean(1) + vae(pairs.source).mean(1))[0] / 2)
    for options in ({"method": "ig"}, {"method": "eap-ig"}, {"method": "eap", "at": "average"}):
        with pytest.raises(ReadoutError, match=r"not differentiable.*method='exact'"):
            score_edges(vae, pairs, Threshold(level), **options)
    exact = score_edges(vae, pairs, Threshold(level), method="exact")
    assert abs(exact.total[0, 0]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"nodes": 1}, "nodes=1: expected 2 or more"),
        ({"method": "eap-ig", "nodes": 0}, "nodes=0: expected 1 or more"),
        ({"at": "top"}, "at='top'"),
        ({"edges": []}, "got none"),
        ({"edges": ["input[0]"]}, r"pairs such as .*got 'input\[0\]'"),
        ({"edges": [("input[0]", "dec[0]")]}, r"'input\[0\]' -> 'dec\[0\]'"),
        ({"direction": "up"}, "direction='up'"),
    ],
)
def test_unknown_options_are_refused_before_any_work(wired, options: dict, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        score_edges(*wired, **options)


@pytest.mark.parametrize("method", ["ig", "eap", "eap-ig", "exact"])
def test_scores_are_the_same_where_gradients_are_switched_off(wired, method: str) -> None:
    scores = score_edges(*wired, method=method)
    with torch.no_grad():
        np.testing.assert_array_equal(score_edges(*wired, method=method).values, scores.values)


@pytest.mark.parametrize("method", ["exact", "ig", "eap", "eap-ig", "weight", "correlation", "random"])
def test_an_edge_into_one_target_is_0_on_the_others_and_only_there(wired, method: str) -> None:
    vae, pairs, _ = wired
    scores = score_edges(vae, pairs, Pixels((4,))[["pixel[0]", "pixel[1]"]], method=method)
    assert not scores.values[~scores.applies].any()
    ends = by_edge(scores)
    assert ends["output[0]", "readout:pixel[0]"][0].all()
    assert ends["output[1]", "readout:pixel[1]"][1].all()


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


# ---------------------------------------------------------------------------------- some edges only
@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact", "direction": "both"},
        {"method": "ig"},
        {"method": "eap", "at": "average"},
        {"method": "eap-ig"},
        {"method": "weight"},
        {"method": "correlation"},
        {"method": "random"},
    ],
    ids=lambda options: options["method"],
)
def test_named_edges_score_what_they_score_among_all(options: dict) -> None:
    model = seeded(ConvVAE(), 4).double()
    vae, pairs = nv.VAE(model), double(pairs_for(model, 4))
    whole = score_edges(vae, pairs, HALVES, **options)
    chosen = np.random.default_rng(0).choice(len(whole), 40, replace=False)
    edges = [(whole.sources[i], whole.targets[i]) for i in chosen]
    some = score_edges(vae, pairs, HALVES, edges=edges, **options)
    order = np.sort(chosen)
    assert list(zip(some.sources, some.targets, strict=True)) == [(whole.sources[i], whole.targets[i]) for i in order]
    np.testing.assert_allclose(some.values, whole.values[order], rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(some.cut_of, whole.cut_of[order])
    for name in whole.beside:
        np.testing.assert_allclose(some.beside[name], whole.beside[name][order])
    for part in whole.parts:
        np.testing.assert_allclose(some.parts[part].values, whole.parts[part].values[order], rtol=1e-8, atol=1e-12)


def test_a_cut_of_which_some_edges_are_scored_has_no_completeness(wired) -> None:
    edges = [("factor:f", f"input[{u}]") for u in range(4)] + [("input[0]", "enc[1]")]
    rows = {row.cut: row for row in score_edges(*wired, edges=edges).completeness}
    assert rows["factor:f -> input"].error == pytest.approx(0.0, abs=1e-6)
    assert rows["input -> enc"].error is None
    assert rows["input -> enc"].reason == "1 of its 24 edges were scored"
    assert rows["output -> readout:pixel[0]"].reason == "0 of its 4 edges were scored"


def test_an_interrupted_run_leaves_the_model_alone_and_goes_on_with_the_missing_edges(wired) -> None:
    vae, pairs, readout = wired
    whole, training = score_edges(vae, pairs, readout, method="exact"), vae.module.training

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_edges(vae, pairs, readout, method="exact", progress=interrupt)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.module.modules())
    assert vae.module.training == training
    _, *others = zip(whole.sources, whole.targets, strict=True)
    rest = score_edges(vae, pairs, readout, method="exact", edges=others)
    np.testing.assert_allclose(rest.values, whole.values[1:], atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "ig", "eap", "weight"])
def test_progress_is_told_to_the_end(wired, method: str) -> None:
    calls = []
    scores = score_edges(*wired, method=method, progress=lambda done, total: calls.append((done, total)))
    assert {total for _, total in calls} == {len(scores) * 30}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


# ---------------------------------------------------------------------------------- what exact patching runs
def test_exact_patching_runs_no_layer_above_the_edge_and_of_the_next_only_a_part() -> None:
    model = seeded(ConvVAE(), 3)
    vae, pairs = nv.VAE(model), pairs_for(model, 6)
    edges = [("decoder.2[0]", f"decoder.3[{v}]") for v in range(3)]
    score_edges(vae, pairs, HALVES, method="exact", edges=edges)  # what is tried once a site
    idle = rows_run(model, lambda: score_edges(vae, pairs, HALVES, method="weight"))
    work = rows_run(model, lambda: score_edges(vae, pairs, HALVES, method="exact", edges=edges))
    above = ["encoder.0", "encoder.2", "encoder.5", "fc_mu", "decoder.0"]
    assert {path: work.rows[path] for path in above} == {path: idle.rows[path] for path in above}
    # decoder.3 tells once what arrives from decoder.2[0]; below it only one channel of decoder.5 is seen to change
    assert work.rows["decoder.3"] == idle.rows["decoder.3"] + 6
    assert work.rows["decoder.5"] == idle.rows["decoder.5"]
    assert 0 < work.partial["decoder.5"] <= 3 * 6


def test_pairs_that_an_edge_does_not_change_are_not_run() -> None:
    model = seeded(ConvVAE(), 3)
    vae, pairs = nv.VAE(model), pairs_for(model, 6)
    pairs = replace(pairs, source=torch.cat([pairs.base[:4], pairs.source[4:]]))
    run = {"method": "exact", "edges": [("input[0]", f"encoder.0[{v}]") for v in range(4)]}
    score_edges(vae, pairs, HALVES, **run)
    idle = rows_run(model, lambda: score_edges(vae, pairs, HALVES, method="weight"))
    work = rows_run(model, lambda: score_edges(vae, pairs, HALVES, **run))
    assert 0 < work.rows["decoder.3"] - idle.rows["decoder.3"] <= 2 * 4


def test_edges_are_patched_few_at_a_time_to_the_same_scores(wired, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = score_edges(*wired, method="exact").values
    plans = []
    of = exact.Group.of
    monkeypatch.setattr(exact.Group, "of", lambda *args: plans.append(len(args[3])) or of(*args))
    assert max(plans, default=0) == 0
    score_edges(*wired, method="exact")
    together, plans[:] = max(plans), []
    monkeypatch.setattr(exact, "CHUNK_BYTES", 1)
    np.testing.assert_allclose(score_edges(*wired, method="exact").values, scores, atol=1e-6)
    assert max(plans) == 6  # the edges of one source at a time: input unit -> six hidden ones
    assert together == 24


# ---------------------------------------------------------------------------------- baselines
def test_correlation_is_that_of_mean_activity_over_both_runs(wired) -> None:
    vae, pairs, readout = wired
    scores = {edge: v[0, 0] for edge, v in by_edge(score_edges(vae, pairs, readout, method="correlation")).items()}
    x = torch.cat([pairs.base, pairs.source])
    with torch.no_grad():
        enc = WiredVAE().enc(x)
        z = WiredVAE().fc_mu(torch.relu(enc))
        out = vae(x)
    is_source = np.repeat([0.0, 1.0], 30)
    expected = {
        ("factor:f", "input[0]"): (is_source, x[:, 0]),
        ("input[0]", "enc[2]"): (x[:, 0], enc[:, 2]),
        ("input[1]", "enc[0]"): (x[:, 1], enc[:, 0]),
        ("enc[5]", "latent.z[1]"): (torch.relu(enc[:, 5]), z[:, 1]),
        ("output[0]", "readout:pixel[0]"): (out[:, 0], out[:, 0]),
    }
    for edge, (one, other) in expected.items():
        assert scores[edge] == pytest.approx(abs(np.corrcoef(np.asarray(one), np.asarray(other))[0, 1]), abs=1e-5)
    assert scores["enc[3]", "latent.z[0]"] == 0.0  # a closed gate does not vary


def test_correlation_of_channels_is_that_of_their_means() -> None:
    model = seeded(ConvVAE(), 2)
    vae, pairs = nv.VAE(model), pairs_for(model, 6)
    scores = by_edge(score_edges(vae, pairs, HALVES, method="correlation"))
    literal = Literal(model, pairs, HALVES)
    taken, given = (
        torch.cat(side)
        for side in zip(*(literal.taken_and_given(x, "encoder.2") for x in (pairs.base, pairs.source)), strict=True)
    )
    one, other = taken.mean((2, 3))[:, 1], given.mean((2, 3))[:, 4]
    assert scores["encoder.0[1]", "encoder.2[4]"][0, 0] == pytest.approx(abs(np.corrcoef(one, other)[0, 1]), abs=1e-4)


def test_what_varies_by_rounding_alone_correlates_with_nothing() -> None:
    activity = torch.stack([torch.full((7,), 0.1), torch.arange(7.0), torch.zeros(7)], dim=1)
    activity[3, 0] += 1e-9
    unit = baselines._standardised(activity.double())
    assert not unit[:, [0, 2]].any()
    torch.testing.assert_close(unit[:, 1].norm(), torch.tensor(1.0, dtype=torch.float64))


def test_baselines_are_beside_every_method_and_told_in_ranks(wired) -> None:
    scores = score_edges(*wired)
    for name in ("weight", "correlation"):
        alone = score_edges(*wired, method=name)
        np.testing.assert_allclose(scores.beside[name], alone.mean(), rtol=1e-6)
    rows = {(row.cut, row.baseline): row for row in scores.baselines(top=0.25)}
    cut = np.array(scores.cut_of) == 1
    strength = np.abs(scores.mean()[cut, 0])
    row = rows["input -> enc", "weight"]
    assert row.spearman == pytest.approx(spearmanr(strength, scores.beside["weight"][cut, 0])[0])
    assert row.top == 6
    top = set(np.argsort(-scores.beside["weight"][cut, 0], kind="stable")[:6])
    assert row.found == pytest.approx(expected_share(strength, top, 6), abs=0.01)
    everything = np.abs(scores.mean()[:, 0])
    assert rows["all", "weight"].spearman == pytest.approx(spearmanr(everything, scores.beside["weight"][:, 0])[0])
    assert rows["input -> enc", "random"][3:6] == (0.0, 6, 0.25)
    assert rows["factor:f -> input", "weight"].spearman is None
    assert "same for all edges" in rows["factor:f -> input", "weight"].reason
    with pytest.raises(CircuitError, match="top=0"):
        scores.baselines(top=0)


def expected_share(strength: np.ndarray, others: set[int], k: int) -> float:
    """Mean share of the k strongest in another set, over random orders of ties."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        order = np.lexsort((rng.random(len(strength)), -strength))
        found.append(len(others & set(order[:k])) / k)
    return float(np.mean(found))


# ---------------------------------------------------------------------------------- labels, warnings, files
def test_every_method_says_what_it_estimates(wired) -> None:
    labels = {
        score_edges(*wired, **options).estimand
        for options in (
            {},
            {"method": "exact"},
            {"method": "exact", "direction": "denoising"},
            {"method": "exact", "direction": "both"},
            {"method": "eap"},
            {"method": "eap", "at": "source"},
            {"method": "eap", "at": "average"},
            {"method": "eap-ig"},
            {"method": "correlation"},
        )
    }
    assert labels == {
        "TE share (layer path integral)", "PNIE (noising)", "TNIE (denoising)", "mean of PNIE and TNIE", "PNIE (first order)",
        "TNIE (first order)", "mean of PNIE and TNIE (first order)", "TE share (path integral over inputs)", "none (baseline)",
    }  # fmt: skip


def test_a_mean_of_two_keeps_both() -> None:
    model = seeded(SmoothVAE())
    vae, pairs, readout = nv.VAE(model), pairs_for(model, 4), Pixels((12,))["pixel[3]"]
    both = score_edges(vae, pairs, readout, method="exact", direction="both")
    for direction, part in both.parts.items():
        alone = score_edges(vae, pairs, readout, method="exact", direction=direction)
        np.testing.assert_array_equal(part.values, alone.values)
        assert part.estimand == alone.estimand
    assert list(both.parts) == ["noising", "denoising"]
    assert list(score_edges(vae, pairs, readout, method="eap", at="average").parts) == ["base", "source"]


def test_pairs_that_cancel_are_warned_of() -> None:
    pairs = wired_pairs(40)
    flip = torch.arange(40) % 2 == 0
    mixed = replace(
        pairs,
        base=torch.where(flip[:, None], pairs.source, pairs.base),
        source=torch.where(flip[:, None], pairs.base, pairs.source),
    )
    vae, readout = nv.VAE(WiredVAE(), example=pairs.base), Pixels((4,))["pixel[0]"]
    with pytest.warns(NnsightVaeWarning, match="no clear direction.*Orient the pairs"):
        score_edges(vae, mixed, readout)
    score_edges(vae, mixed, readout, method="weight")  # looks at no effect
    score_edges(vae, mixed[:9], readout)  # too few to say
    score_edges(vae, pairs, readout)


class Curved:
    """x -> (x - c)^2 of one number: noising and denoising of c - d -> c + d are of opposite sign."""

    names = ("curve",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction[:, :1] - 0.5).square() + 1e-3 * reconstruction[:, :1]


def test_noising_and_denoising_of_opposite_sign_are_warned_of() -> None:
    vae = nv.VAE(WiredVAE(), example=torch.zeros(2, 4))
    change = 0.3 + 0.05 * torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    middle = torch.full((20, 4), 0.5)
    middle[:, 0] = 0.5 / (1.4 * 0.72)
    pairs = Pairs(middle - change, middle + change, factor="f")
    with pytest.warns(NnsightVaeWarning, match="opposite sign"):
        score_edges(vae, pairs, Curved(), method="exact", direction="both")


class Broken:
    names = ("broken",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return torch.sqrt(reconstruction[:, :1] - 0.45)


def test_a_readout_that_is_not_finite_is_refused_with_the_edge(wired) -> None:
    vae, pairs, _ = wired
    with pytest.raises(ReadoutError, match=r"'broken' is NaN or infinite when '.*' -> '.*' is scored on pair \d+"):
        score_edges(vae, pairs, Broken(), method="exact", direction="denoising")


class RootAtZero:
    """Finite everywhere, with an infinite slope where the pixel is its value in the base run."""

    names = ("root",)

    def __init__(self, base: Tensor) -> None:
        self.base = base

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return torch.sqrt((reconstruction[:, :1] - self.base[0, 0]).abs())


def test_a_gradient_that_is_not_finite_is_told_from_a_readout_that_is_not(wired) -> None:
    vae, pairs, _ = wired
    with torch.no_grad():
        readout = RootAtZero(vae(pairs.base))
    with pytest.raises(ReadoutError, match=r"has no finite gradient there .*: method='exact' needs none"):
        score_edges(vae, pairs, readout, method="eap")
    with pytest.raises(ReadoutError, match="read something that stays finite"):
        score_edges(vae, pairs, Broken(), method="exact", direction="denoising")


@pytest.mark.parametrize("options", [{}, {"method": "exact", "direction": "both", "edges": [("input[0]", "enc[1]")]}])
def test_scores_survive_their_file(wired, tmp_path, options: dict) -> None:
    vae, pairs, readout = wired
    pairs = replace(pairs, groups=torch.arange(30) // 2)
    scores = score_edges(vae, pairs, readout, **options)
    scores.save(tmp_path / "scores.npz")
    again = EdgeScores.load(tmp_path / "scores.npz")
    for name in EdgeScores.__dataclass_fields__:
        if name not in ("parts", "beside"):
            one, other = getattr(scores, name), getattr(again, name)
            assert type(one) is type(other)
            np.testing.assert_array_equal(np.asarray(one, dtype=object), np.asarray(other, dtype=object), name)
    for name, array in scores.beside.items():
        np.testing.assert_array_equal(again.beside[name], array)
    assert again.parts.keys() == scores.parts.keys()
    for name, part in scores.parts.items():
        np.testing.assert_array_equal(again.parts[name].values, part.values)
    assert repr(again) == repr(scores)
    assert again.completeness == scores.completeness


def test_files_that_are_no_edge_scores_are_refused(wired, tmp_path) -> None:
    with pytest.raises(DataError, match=r"nnsight-vae/edge-scores@1"):
        EdgeScores.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", header=np.array('{"schema": "nnsight-vae/effects@2"}'))
    with pytest.raises(DataError, match=r"schema 'nnsight-vae/effects@2'"):
        EdgeScores.load(tmp_path / "other.npz")


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
