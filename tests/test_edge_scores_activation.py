"""`eap-act`: against each edge by itself on plain modules, where it must equal patching, and where it must equal `eap`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from branching_runs import MODELS
from literal_edges import HALVES, Literal, conv_layers, double, pairs_for
from scipy.stats import spearmanr
from torch import Tensor, nn
from vaes import MLPVAE, ConvVAE, seeded

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.scoring import activations, methods
from nnsight_vae.errors import ReadoutError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels

Edge = tuple[str, slice, slice]  # path of a layer, ports of the source, units of the target


class PooledVAE(nn.Module):
    """Pooling, upsampling and a grouped convolution: what is read has another size, or only some of what was given."""

    image = (2, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fc_mu, self.fc_logvar = nn.Linear(16, 3), nn.Linear(16, 3)
        self.up, self.out = nn.Linear(3, 16), nn.Conv2d(4, 2, 3, padding=1)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=4)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.pool(nn.functional.gelu(self.second(self.pool(self.first(x).relu()))))
        return self.fc_mu(h.flatten(1)), self.fc_logvar(h.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.grow(self.up(z).relu().unflatten(1, (4, 2, 2)))).sigmoid()


@pytest.fixture
def nothing_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges are patched where they lead into the readout only."""
    monkeypatch.setattr(methods, "FEW", 0)
    monkeypatch.setattr(methods, "SHARE", 10**9)


class TokenVAE(nn.Module):
    """Linear layers over the last of three axes."""

    image = (3, 5)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.heads = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(18, 8)
        self.grow, self.out = nn.Linear(4, 18), nn.Linear(6, 5)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.mix(self.embed(x).relu()).tanh().flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.grow(z).relu().unflatten(1, (3, 6))).sigmoid()


class ParallelVAE(nn.Module):
    """Two layers side by side read one column and are read by a layer each; one of the ways, if asked, goes through norms."""

    image = (6,)

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(5, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(n) if norm else nn.Identity() for n in (5, 4)])
        self.from_left, self.from_right, self.spread = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(5, 2)
        self.out = nn.Linear(2, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x)
        left, right = self.left(h.relu()).tanh(), self.norms[1](self.right(self.norms[0](h).tanh())).relu()
        return self.from_left(left) + self.from_right(right), self.spread(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(z).sigmoid()


WIRINGS = {
    **MODELS,
    "tokens": seeded(TokenVAE(), 4),
    "parallel": seeded(ParallelVAE(norm=False), 5),
    "parallel, one through a norm": seeded(ParallelVAE(norm=True), 6),
}


def activated(literal: Literal, edge: Edge, reader: str | None, side: str = "base") -> Tensor:
    """<what the reader takes in with only this edge patched minus what it takes in without, the gradient there>."""
    path, ports, units = edge
    pairs = literal.pairs if side == "base" else Pairs(literal.pairs.source, literal.pairs.base, factor="f")
    other = Literal(literal.model, pairs, literal.readout)
    given = other.taken_and_given(pairs.base, path)[1] + other.contribution(path, ports, units)
    if reader is None:  # what the readout reads: patched
        return other.noised(*edge)
    taken, kept = other.taken_and_given(pairs.base, reader)[0], []
    hook = other.modules[reader].register_forward_pre_hook(lambda m, args: kept.append(args[0].clone()))
    with torch.no_grad():
        other.run(pairs.base, path, given)
    hook.remove()
    at = taken.detach().requires_grad_()
    hook = other.modules[reader].register_forward_pre_hook(lambda m, args: (at,))
    values = other.run(pairs.base)
    hook.remove()
    slopes = [torch.autograd.grad(v.sum(), at, retain_graph=True)[0] for v in values.T]
    return torch.stack([((kept[0] - taken) * slope).flatten(1).sum(1) for slope in slopes])


def expected(literal: Literal, edge: Edge, reader: str | None, at: str) -> Tensor:
    sides = {"base": [(1, "base")], "source": [(-1, "source")], "average": [(0.5, "base"), (-0.5, "source")]}
    return sum((weight * activated(literal, edge, reader, side) for weight, side in sides[at]), torch.zeros(()))


def assert_equal_to_hooks(model: nn.Module, layers: list[tuple[str, int, int]], at: str) -> None:
    """Some edges of every cut; layers: path, ports of one source, units of one target, from the input on."""
    pairs = double(pairs_for(model, 3))
    readout = Pixels(model.image)
    readout = readout[[readout.names[0], readout.names[-5]]]
    literal = Literal(model, pairs, readout)
    scores = score_edges(nv.VAE(model, example=pairs.base), pairs, readout, method="eap-act", at=at)
    for i, (path, ports, units) in enumerate(layers):
        found = np.flatnonzero(scores.cut_of == i + 1)  # the first cut is the factor's
        sources, targets = (list(dict.fromkeys(ends[e] for e in found)) for ends in (scores.sources, scores.targets))
        reader = layers[i + 1][0] if i + 1 < len(layers) else None
        chosen = found[:: max(1, len(found) // 11)]
        slow = []
        for e in chosen:
            u, v = sources.index(scores.sources[e]), targets.index(scores.targets[e])
            edge = (path, slice(u * ports, (u + 1) * ports), slice(v * units, (v + 1) * units))
            slow.append(expected(literal, edge, reader, at))
        assert scores.values.dtype == np.float64
        scale = float(torch.stack(slow).abs().max())
        assert scale > 0
        np.testing.assert_allclose(scores.values[chosen], torch.stack(slow).numpy(), rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.usefixtures("nothing_patched")
@pytest.mark.parametrize("at", ["base", "source", "average"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
def test_edges_of_a_conv_vae_equal_hooks_one_edge_at_a_time(norm: bool, at: str) -> None:
    layers = [(path, ports, units) for path, _, ports, units in conv_layers(norm)]
    assert_equal_to_hooks(seeded(ConvVAE(norm=norm), 3).double(), layers, at)


@pytest.mark.usefixtures("nothing_patched")
def test_what_lies_between_may_be_functions_pooling_upsampling_and_groups() -> None:
    layers = [("first", 1, 1), ("second", 1, 1), ("fc_mu", 4, 1), ("up", 1, 4), ("out", 1, 1)]
    assert_equal_to_hooks(seeded(PooledVAE(), 1).double(), layers, "average")


@pytest.mark.usefixtures("nothing_patched")
def test_functional_activations_and_a_packed_head_need_no_modules() -> None:
    layers = [("enc1", 1, 1), ("enc2", 1, 1), ("heads", 1, 1), ("dec1", 1, 1), ("dec2", 1, 1)]
    assert_equal_to_hooks(seeded(MLPVAE(), 1).double(), layers, "base")


@pytest.mark.usefixtures("nothing_patched")
def test_edges_whose_targets_activation_the_readout_is_linear_in_are_those_of_patching() -> None:
    model = seeded(ConvVAE(), 3).double()
    vae, pairs = nv.VAE(model), double(pairs_for(model, 4))
    exact, act, eap = (score_edges(vae, pairs, HALVES, method=method) for method in ("exact", "eap-act", "eap"))
    for cut in ("decoder.3 -> output", "output -> readouts"):
        of_cut = exact.cut_of == exact.cuts.index(cut)
        np.testing.assert_allclose(act.values[of_cut], exact.values[of_cut], rtol=1e-9, atol=1e-12)
    hidden = exact.cut_of == exact.cuts.index("decoder.3 -> output")
    assert not np.allclose(eap.values[hidden], exact.values[hidden], rtol=1e-2)


@pytest.mark.parametrize(("few", "share", "limit"), [(4, 250, 4), (4, 9, 26), (30, 250, 30)])
def test_cuts_of_few_edges_are_patched_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch, few: int, share: int, limit: int
) -> None:
    model = seeded(ConvVAE(), 3).double()
    vae, pairs = nv.VAE(model), double(pairs_for(model, 4))
    monkeypatch.setattr(methods, "FEW", few)
    monkeypatch.setattr(methods, "SHARE", share)
    act, exact = (score_edges(vae, pairs, HALVES, method=method) for method in ("eap-act", "exact"))
    for i, cut in enumerate(act.cuts[:-2]):  # the last two are those of patching: the readout is linear
        of_cut = act.cut_of == i
        same = np.allclose(act.values[of_cut], exact.values[of_cut], rtol=1e-9, atol=1e-13)
        assert same == (of_cut.sum() <= limit), cut


@pytest.mark.usefixtures("nothing_patched")
@pytest.mark.parametrize("name", WIRINGS)
def test_a_small_move_is_worth_its_gradient_in_every_wiring(name: str) -> None:
    """Skips, gates, groups and attention: where units meet after a column its edges are those of `eap`."""
    model = WIRINGS[name].double()
    base = pairs_for(model, 4).base.double()
    step = torch.randn(base.shape, generator=torch.Generator().manual_seed(3)).double()
    vae, pixels = nv.VAE(model, example=base), Pixels(model.image)
    readout = pixels[[pixels.names[3], pixels.names[-2]]]
    errors = []
    for size in (1e-5, 1e-7):
        pairs = Pairs(base, base + size * step, factor="f")
        act, eap = (score_edges(vae, pairs, readout, method=method).values for method in ("eap-act", "eap"))
        errors.append(np.abs(act - eap).max() / np.abs(eap).max())
    assert errors[0] < 1e-3
    assert errors[1] < max(0.05 * errors[0], 1e-7)  # what is left is rounding of a change of 1e-7


@pytest.mark.usefixtures("nothing_patched")
def test_only_columns_whose_units_meet_before_they_are_read_fall_back_to_their_gradient() -> None:
    model = MODELS["LayerNorm"].double()
    pairs = double(pairs_for(model, 4))
    vae, pixels = nv.VAE(model, example=pairs.base), Pixels(model.image)
    readout = Pixels(model.image)[[pixels.names[3]]]
    act, eap, exact = (score_edges(vae, pairs, readout, method=method) for method in ("eap-act", "eap", "exact"))
    for i, cut in enumerate(act.cuts):
        of_cut = act.cut_of == i
        is_eap, is_exact = (np.allclose(act.values[of_cut], other.values[of_cut]) for other in (eap, exact))
        assert is_exact == cut.startswith(("decoder.3 ->", "output ->"))  # linear from there on
        assert is_eap


@pytest.mark.usefixtures("nothing_patched")
def test_the_source_side_is_the_negative_of_the_reversed_pairs_and_the_average_their_mean() -> None:
    model = seeded(ConvVAE(), 3).double()
    vae, pairs = nv.VAE(model), double(pairs_for(model, 4))
    reversed_pairs = Pairs(pairs.source, pairs.base, factor="f")
    base, source, average, back = (
        score_edges(vae, of, HALVES, method="eap-act", at=at)
        for of, at in ((pairs, "base"), (pairs, "source"), (pairs, "average"), (reversed_pairs, "base"))
    )
    np.testing.assert_allclose(source.values, -back.values, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(average.values, (base.values + source.values) / 2, rtol=1e-12, atol=1e-15)
    assert list(average.parts) == ["act at base", "act at source"]
    assert "TNIE" in source.estimand
    assert "PNIE" in base.estimand


@pytest.mark.usefixtures("nothing_patched")
def test_noise_of_the_posterior_is_kept() -> None:
    model = seeded(ConvVAE(), 2).double()
    pairs = replace(
        double(pairs_for(model, 4)), eps=torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double()
    )
    act, exact, eap = (score_edges(nv.VAE(model), pairs, HALVES, method=m) for m in ("eap-act", "exact", "eap"))
    hidden = exact.cut_of == exact.cuts.index("decoder.3 -> output")
    np.testing.assert_allclose(act.values[hidden], exact.values[hidden], rtol=1e-9, atol=1e-12)
    assert {"latent.mu", "latent.logvar"} <= {target.split("[")[0] for target in act.targets}
    a, b, c = (scores.mean().ravel() for scores in (act, eap, exact))
    assert np.abs(a - c).sum() < np.abs(b - c).sum()


@pytest.mark.usefixtures("nothing_patched")
def test_few_sources_at_a_time_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(ConvVAE(), 3).double()
    vae, pairs = nv.VAE(model), double(pairs_for(model, 4))
    whole = score_edges(vae, pairs, HALVES, method="eap-act").values
    monkeypatch.setattr(activations, "CHUNK_BYTES", 1)
    np.testing.assert_allclose(score_edges(vae, pairs, HALVES, method="eap-act").values, whole, rtol=1e-9, atol=1e-13)


class SquaredError:
    names = ("error",)

    def __init__(self, to: Tensor) -> None:
        self.to = to

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return (reconstruction - self.to).square().flatten(1).mean(1, keepdim=True)


@pytest.mark.usefixtures("nothing_patched")
def test_a_readout_that_is_flat_at_the_base_is_refused_with_what_to_do() -> None:
    model = seeded(ConvVAE(), 3)
    pairs = pairs_for(model, 4)
    vae, pairs = nv.VAE(model), replace(pairs, base=pairs.base[:1].repeat(4, 1, 1, 1))
    with torch.no_grad():
        readout = SquaredError(vae(pairs.base[:1]))
    with pytest.raises(ReadoutError, match=r"gradient is 0 at the base run.*at='source'"):
        score_edges(vae, pairs, readout, method="eap-act")
    assert score_edges(vae, pairs, readout, method="eap-act", at="source").values.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pendulum-beta-vae", "pendulum-labelled-vae"])
def test_edges_of_a_trained_model_agree_with_patching_on_moves_over_the_whole_range(name: str) -> None:
    vae, data = nv.load(name), nv.datasets.load("pendulum")
    pairs, readout = data.pairs("angle", n=16), data.readout()["angle"]
    act = score_edges(vae, pairs, readout, method="eap-act", at="average")
    ends = list(zip(act.sources, act.targets, strict=True))
    some = sorted(np.random.default_rng(0).choice(len(ends), 1000, replace=False))
    exact = score_edges(vae, pairs, readout, method="exact", direction="both", edges=[ends[i] for i in some])
    ours, theirs = act.mean()[some, 0], exact.mean()[:, 0]
    assert np.corrcoef(ours, theirs)[0, 1] >= 0.98
    assert spearmanr(ours, theirs)[0] >= 0.98
    assert set(np.argsort(-np.abs(theirs))[:50]) <= set(np.argsort(-np.abs(ours))[:100])
