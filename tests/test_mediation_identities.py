"""The identities that mediation obeys exactly, in any network, pair by pair: random models, mediators, pairs, with and without noise.

In float64, so that what is left is rounding. Small non-linear models: convolutions, MLP, BatchNorm, residual blocks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hooks import literal, record
from hypothesis import assume, given, settings
from mediated import MODELS
from torch import Tensor, nn
from vaes import images, seeded

import nnsight_vae as nv
from nnsight_vae.levels.units import default_sites

ATOL = 1e-11
N = 4


class Pixels:
    """Two pixels and the mean of all, stretched so that effects are of the order of 1."""

    names = ("first", "second", "mean")

    def __init__(self, slope: float = 10.0, offset: float = 0.0) -> None:
        self.slope, self.offset = slope, offset

    def __call__(self, reconstruction: Tensor) -> Tensor:
        flat = reconstruction.flatten(1)
        return self.slope * torch.cat([flat[:, :2], flat.mean(1, keepdim=True)], 1) + self.offset


READ = Pixels()


@dataclass(frozen=True, repr=False)
class Case:
    model: nn.Module
    vae: nv.VAE
    pairs: nv.Pairs
    mediators: tuple[str, ...]

    def mediate(self, **changes) -> nv.Mediation:
        mediators = changes.pop("mediators", self.mediators)
        changes = {"readout": READ} | changes
        return nv.mediate(self.vae, changes.pop("pairs", self.pairs), list(mediators), **changes)


_vaes: dict[str, nv.VAE] = {}


def vae_of(name: str) -> nv.VAE:
    if name not in _vaes:
        _vaes[name] = nv.VAE(MODELS[name])
        _vaes[name].encode(images(MODELS[name], 2).double())
    return _vaes[name]


@st.composite
def cases(draw) -> Case:
    name = draw(st.sampled_from(list(MODELS)))
    vae, seed = vae_of(name), draw(st.integers(0, 2**16))
    base, source = (images(MODELS[name], N, seed=seed + i).double() for i in (0, 1))
    eps = None
    if draw(st.booleans()):
        shape = vae.sites["latent.mu"].shape
        eps = torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    sites = draw(
        st.lists(
            st.sampled_from([*default_sites(vae), "latent.mu", "latent.logvar"]), min_size=1, max_size=3, unique=True
        )
    )
    mediators = []
    for site in sites:
        units = draw(st.sets(st.integers(0, vae.sites[site].n_units - 1), min_size=1, max_size=3))
        mediators.append(str(vae.sites.select(nv.Selection(site, tuple(units)))))
    return Case(MODELS[name], vae, nv.Pairs(base, source, eps=eps), tuple(mediators))


def identity(test):
    return settings(max_examples=12, deadline=None, derandomize=True)(given(cases())(test))


def close(a, b, atol: float = ATOL) -> None:
    values = (x.values if isinstance(x, nv.Effects) else x for x in (a, b))
    np.testing.assert_allclose(*values, rtol=0, atol=atol)


def plus(*effects: nv.Effects) -> np.ndarray:
    return sum(each.values for each in effects)


def test_the_identities_are_tested_on_effects_that_exist():
    """None of what follows is 0 = 0: over a few cases every quantity is there, interactions included."""
    sizes = dict.fromkeys(("TE", "NDE", "PNIE", "TNIE", "INT", "CDE", "INTref"), 0.0)
    for name in MODELS:
        vae = vae_of(name)
        x = images(MODELS[name], 2 * N).double()
        m = Case(MODELS[name], vae, nv.Pairs(x[:N], x[N:]), ("latent.z[0:2]",)).mediate(hold=0.5)
        sizes = {key: max(size, np.abs(m.quantities[key].values).max()) for key, size in sizes.items()}
    assert min(sizes.values()) > 1e-3, sizes


@identity
def test_00_the_quantities_are_what_hooks_in_plain_torch_observe(case):
    """The definitions themselves, against the model with forward hooks: no identity can see a run that is the wrong one."""
    model, pairs = case.model, case.pairs
    selections = [case.vae.sites.select(key) for key in case.mediators]

    def run(x: Tensor, other: Tensor | None) -> np.ndarray:
        def put(selection, donor):
            def write(value: Tensor) -> Tensor:
                value = value.clone()
                value[:, list(selection.indices)] = donor[:, list(selection.indices)]
                return value

            return write

        chosen = selections if other is not None else ()
        writes = {each.site: put(each, record(model, other, each.site, pairs.eps)) for each in chosen}
        return READ(literal(model, x, writes, pairs.eps)).numpy().T

    base, source = pairs.base, pairs.source
    y_bb, y_ss, y_bs, y_sb = run(base, None), run(source, None), run(base, source), run(source, base)
    m = case.mediate()
    for found, expected in (
        (m.te, y_ss - y_bb),
        (m.nde, y_sb - y_bb),
        (m.pnie, y_bs - y_bb),
        (m.tnie, y_ss - y_sb),
        (m.tde, y_ss - y_bs),
        (m.interaction, y_ss - y_sb - y_bs + y_bb),
    ):
        close(found.values[0], expected)


@identity
def test_01_te_is_nde_plus_tnie(case):
    m = case.mediate()
    close(m.te, plus(m.nde, m.tnie))


@identity
def test_02_te_is_pnie_plus_tde(case):
    m = case.mediate()
    close(m.te, plus(m.pnie, m.tde))


@identity
def test_03_te_is_nde_minus_the_reversed_pnie(case):
    forth, back = case.mediate(), case.mediate(pairs=case.pairs.reversed())
    close(forth.te, forth.nde.values - back.pnie.values)


@identity
def test_04_te_is_pnie_minus_the_reversed_nde(case):
    forth, back = case.mediate(), case.mediate(pairs=case.pairs.reversed())
    close(forth.te, forth.pnie.values - back.nde.values)


@identity
def test_05_te_is_nde_plus_pnie_plus_interaction(case):
    m = case.mediate()
    close(m.te, plus(m.nde, m.pnie, m.interaction))


@identity
def test_06_the_reversed_te_is_minus_te(case):
    close(case.mediate(pairs=case.pairs.reversed()).te, -case.mediate().te.values)


@identity
def test_07_the_interaction_is_the_same_both_ways(case):
    close(case.mediate(pairs=case.pairs.reversed()).interaction, case.mediate().interaction)


@identity
def test_08_tde_is_minus_the_reversed_nde(case):
    close(case.mediate().tde, -case.mediate(pairs=case.pairs.reversed()).nde.values)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases(), st.sampled_from([0.0, 0.7, nv.Zero(), "mean", "swap"]))
def test_09_te_is_cde_plus_intref_plus_int_plus_pnie(case, hold):
    others = images(case.model, N, seed=9).double()
    hold = {"mean": nv.Mean(others), "swap": nv.Swap(others)}.get(hold, hold) if isinstance(hold, str) else hold
    m = case.mediate(hold=hold)
    close(m.te, plus(m.cde, m.intref, m.interaction, m.pnie))
    held = dict.fromkeys(case.mediators, hold if isinstance(hold, nv.Intervention) else nv.Set(hold))
    runs = [
        READ(nv.intervene(case.vae, x, held, eps=case.pairs.eps).reconstruction).numpy().T
        for x in (case.pairs.source, case.pairs.base)
    ]
    close(m.cde.values[0], runs[0] - runs[1])


@identity
def test_10_a_source_equal_to_the_base_has_no_effect_bit_for_bit(case):
    same = replace(case.pairs, source=case.pairs.base.clone())
    m = case.mediate(pairs=same, hold=0.3)
    assert all((effects.values == 0).all() for effects in m.quantities.values())


@identity
def test_11_a_vertex_cut_carries_everything(case):
    """A whole layer without a way past it, or every branch of one: the posterior's mean and variance."""
    for cut in (["latent.z"], ["latent.mu", "latent.logvar"], ["output"]):
        m = case.mediate(mediators=cut)
        close(m.nde, 0 * m.te.values)
        close(m.pnie, m.te)
        close(m.interaction, 0 * m.te.values)


class Skip(nn.Module):
    """A U-Net in small: the narrow layer is by-passed by the wide one before it, in the encoder and in the decoder."""

    image = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.heads = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(8, 6)
        self.up, self.deep, self.out = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(9, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.wide(x)
        mu, logvar = self.heads(torch.cat([torch.tanh(self.narrow(torch.tanh(wide))), torch.sin(wide)], -1)).chunk(
            2, -1
        )
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        up = torch.tanh(self.up(z))
        return torch.sigmoid(self.out(torch.cat([torch.sin(self.deep(up)), up], -1)))


@pytest.mark.parametrize(("bottleneck", "all_branches"), [("narrow", "wide"), ("deep", "up")])
def test_11_a_layer_with_a_skip_past_it_is_no_cut_unless_the_skip_is_cut_too(bottleneck, all_branches):
    model = seeded(Skip()).double()
    x = images(model, 2 * N, seed=3).double()
    case = Case(model, nv.VAE(model), nv.Pairs(x[:N], x[N:]), (bottleneck,))
    part = case.mediate()
    assert np.abs(part.nde.values).max() > 1e-2
    assert np.abs(part.pnie.values - part.te.values).max() > 1e-2
    assert np.abs(part.interaction.values).max() > 1e-4
    for cut in ([bottleneck, all_branches], [all_branches]):
        whole = case.mediate(mediators=cut)
        close(whole.nde, 0 * whole.te.values)
        close(whole.pnie, whole.te)


@identity
def test_12_a_dead_unit_carries_nothing(case):
    """A unit whose activation is a constant, whatever comes in, here because its weights are 0."""
    model = copy.deepcopy(case.model)
    key = case.mediators[0]
    selection = case.vae.sites.select(key)
    layers = dict(model.named_modules())
    assume(isinstance(layers.get(selection.site), nn.Linear | nn.Conv2d))  # latents have no weights of their own
    with torch.no_grad():
        layers[selection.site].weight[list(selection.indices)] = 0
    m = nv.mediate(nv.VAE(model), case.pairs, [key], readout=READ)
    assert (m.pnie.values == 0).all()
    assert (m.tnie.values == 0).all()
    assert np.abs(m.te.values).max() > 0


def test_13_without_mediators_nothing_is_indirect_and_mediate_says_to_name_some():
    """PNIE = 0, NDE = TE for the empty set: the arithmetic has it so; the experiment refuses a question without content."""
    y_base, y_source = np.random.default_rng(0).normal(size=(2, 1, 12))
    empty = nv.Mediation.from_runs(y_base, y_source, y_base, y_source, targets=("y",), mediator="nothing")
    assert (empty.pnie.values == 0).all()
    np.testing.assert_array_equal(empty.nde.values, empty.te.values)
    x = images(MODELS["mlp"], 4).double()
    for nothing in ([], ()):
        with pytest.raises(nv.InterventionError, match="at least one mediator"):
            nv.mediate(vae_of("mlp"), nv.Pairs(x[:2], x[2:]), nothing, readout=READ)


@identity
def test_14_telescoping_and_shapley_shares_add_up_to_the_joint_effect(case):
    m = case.mediate()
    arguments = (case.vae, case.pairs, list(case.mediators))
    for direction, joint in (("noising", m.pnie), ("denoising", m.tnie)):
        for share_out in (nv.sequential_mediators, nv.shapley_mediators):
            shares = share_out(*arguments, readout=READ, direction=direction)
            close(shares.values.sum(0), joint.values[0])
    # Every order telescopes, and Shapley's shares are the mean over all of them.
    orders = list(permutations(case.mediators))
    by_order = [
        nv.sequential_mediators(case.vae, case.pairs, order, readout=READ).select(case.mediators) for order in orders
    ]
    close(nv.shapley_mediators(*arguments, readout=READ), np.mean([each.values for each in by_order], axis=0))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases(), st.floats(-5, 5).filter(lambda a: abs(a) > 0.1), st.floats(-5, 5))
def test_15_an_affine_outcome_scales_effects_and_keeps_the_proportion(case, alpha, beta):
    plain, moved = case.mediate(hold=0.2), case.mediate(hold=0.2, readout=Pixels(10 * alpha, beta))
    for name, effects in plain.quantities.items():
        close(moved.quantities[name], alpha * effects.values)
    for target, share in plain.proportion.items():
        other = moved.proportion[target]
        assert (share.value is None) == (other.value is None)
        if share.value is not None:
            assert other.value == pytest.approx(share.value, rel=1e-7, abs=1e-9)


@identity
def test_16_the_order_of_pairs_and_of_mediators_does_not_matter(case):
    order = torch.tensor([2, 0, 3, 1])
    straight = case.mediate()
    shuffled = case.mediate(pairs=case.pairs[order], mediators=case.mediators[::-1])
    for name, effects in straight.quantities.items():
        close(shuffled.quantities[name], effects.values[:, :, order.numpy()])


def test_17_indirect_effects_of_two_sets_add_up_where_they_do_not_interact_and_only_there():
    vae, x = vae_of("mlp"), images(MODELS["mlp"], 2 * N).double()
    case = Case(MODELS["mlp"], vae, nv.Pairs(x[:N], x[N:]), ())
    one, other, both = (
        case.mediate(mediators=m).pnie.values for m in (["latent.z[0]"], ["latent.z[1]"], ["latent.z[0:2]"])
    )
    assert np.abs(both - one - other).max() > 1e-3
    # dec2 is read before its sigmoid: linear in the units of dec1 behind their ReLU, each of which stands alone.
    linear = LinearAt("dec2")
    one, other, both = (
        case.mediate(mediators=m, readout=linear).pnie.values
        for m in (["dec1[0:3]"], ["dec1[5]"], ["dec1[0:3]", "dec1[5]"])
    )
    assert np.abs(both).max() > 1e-3
    close(both, one + other)


class LinearAt:
    """A linear readout of an inner site."""

    names = ("sum", "first")

    def __init__(self, site: str) -> None:
        self.reads = site

    def __call__(self, activation: Tensor) -> Tensor:
        return torch.stack([activation.sum(1), activation[:, 0]], 1)
