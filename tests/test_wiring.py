"""Columns, routes, levels and local maps of VAEs whose layers form no chain, against closed forms and plain hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from branching_vaes import (
    BranchesVAE,
    FarGateVAE,
    GatedResidualVAE,
    GatesBeforeAdditionVAE,
    GroupedHeadVAE,
    LayerNormVAE,
    NamesVAE,
    ShutVAE,
    TwiceVAE,
    branching_vaes,
)
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from vaes import MLPVAE, ConvVAE, ResidualVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.wiring.contraction import contracted
from nnsight_vae.circuits.wiring.contributions import port_axis
from nnsight_vae.circuits.wiring.cuts import Cut, cuts_of, nodes_of
from nnsight_vae.circuits.wiring.pair_run import PairRun, pair_runs
from nnsight_vae.circuits.wiring.partial import reached_with, run_with
from nnsight_vae.circuits.wiring.rest import Rest
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels

MODELS = {"Residual": seeded(ResidualVAE(), 1), **branching_vaes()}
SMOOTH = ("GroupNorm", "Attention", "LayerNorm")


def pairs_for(model: nn.Module, n: int = 5, sampled: bool = False) -> tuple[nv.VAE, Pairs]:
    model.double()
    base, source = images(model, n).double(), images(model, n, seed=1).double()
    vae = nv.VAE(model, example=base)
    shape = vae.sites["latent.mu"].shape
    eps = torch.randn(n, *shape, generator=torch.Generator().manual_seed(2)).double() if sampled else None
    return vae, Pairs(base, source, factor="f", eps=eps)


def readout_of(vae: nv.VAE) -> Pixels:
    pixels = Pixels(vae.sites["output"].shape)
    return pixels[[pixels.names[3], pixels.names[-2]]]


def the_run(vae: nv.VAE, pairs: Pairs) -> tuple[Wiring, PairRun]:
    wiring = Wiring.of(vae, pairs.base, pairs.eps)
    ((_, run),) = pair_runs(vae, pairs, wiring)
    return wiring, run


def position(wiring: Wiring, path: str) -> int:
    return next(i for i, column in enumerate(wiring.columns) if column.path.removeprefix("model.") == path)


def masked(part, run: PairRun, reader: int) -> Tensor:
    """A part's change at the ports that are its own."""
    columns = run.wiring.columns
    axis = port_axis(columns[reader].layer if reader < len(columns) else None, part.delta)
    shape = [-1 if a == axis else 1 for a in range(part.delta.ndim)]
    return part.delta * (part.owners >= 0).view(shape)


# ---------------------------------------------------------------------------------- columns, names, levels
def test_a_residual_block_is_read_beside_what_it_adds_to() -> None:
    vae, pairs = pairs_for(MODELS["Residual"])
    wiring = Wiring.of(vae, pairs.base)
    parents = {
        column.path.removeprefix("model."): [
            wiring.columns[route.parent].path.removeprefix("model.") for route in column.routes
        ]
        for column in wiring.columns
    }
    assert parents == {
        "tap_input": [],
        "stem": ["tap_input"],
        "block.first": ["stem"],
        "block.second": ["block.first"],
        "head": ["stem", "block.second"],
        "grow": ["head"],
        "refine.first": ["grow"],
        "refine.second": ["refine.first"],
        "out": ["grow", "refine.second"],
    }
    assert wiring.levels == tuple((i,) for i in range(9))
    assert [wiring.alive(level) for level in range(10)] == [(), (), (1,), (1,), (), (), (5,), (5,), (), ()]
    assert [node.id for node in wiring.columns[4].nodes] == [
        "latent.z[0]",
        "latent.z[1]",
    ]  # the units that make logvar reach nothing
    assert wiring.columns[4].owners.tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize("model", [ConvVAE(), LayerNormVAE(), MLPVAE()], ids=lambda model: type(model).__name__)
def test_mu_logvar_and_the_sample_are_nodes_of_their_own_where_the_latent_is_sampled(model: nn.Module) -> None:
    vae, pairs = pairs_for(seeded(model, 2), sampled=True)
    k = pairs.eps.shape[1]
    nodes = nodes_of(cuts_of(Wiring.of(vae, pairs.base, pairs.eps), "f", ["r"]))
    by_layer: dict[int, list[str]] = {}
    for node in nodes:
        if node.kind == "latent":
            by_layer.setdefault(node.layer, []).append(node.id)
    first, second = by_layer.values()
    assert first == [f"latent.mu[{i}]" for i in range(k)] + [f"latent.logvar[{i}]" for i in range(k)]
    assert second == [f"latent.z[{i}]" for i in range(k)]
    assert not any("logvar" in node.id for node in nodes_of(cuts_of(Wiring.of(vae, pairs.base), "f", ["r"])))


def test_edges_into_the_sample_join_each_unit_to_its_own_moments() -> None:
    vae, pairs = pairs_for(seeded(LayerNormVAE(), 2), sampled=True)
    cuts = {cut.name: cut for cut in cuts_of(Wiring.of(vae, pairs.base, pairs.eps), "f", ["r"])}
    cut = cuts["latent.mu + latent.logvar -> latent.z"]
    edges = {(cut.sources[s].id, cut.targets[t].id) for s, t in cut.ends.tolist()}
    assert edges == {(f"latent.{moment}[{i}]", f"latent.z[{i}]") for moment in ("mu", "logvar") for i in range(2)}


def test_blocks_of_neurons_that_a_norm_mixes_are_still_one_node_a_channel() -> None:
    vae, pairs = pairs_for(MODELS["GroupNorm"])
    wiring = Wiring.of(vae, pairs.base)
    column = wiring.columns[position(wiring, "fc")]
    assert [node.id for node in column.nodes] == [f"split[{c}]" for c in range(4)]
    assert column.owners.tolist() == [c for c in range(4) for _ in range(4)]
    into_conv2 = wiring.columns[position(wiring, "conv2")].routes[0]
    assert into_conv2.reach.tolist() == [
        [a // 2 == b // 2 for b in range(4)] for a in range(4)
    ]  # within the two groups


def test_edges_skip_levels_and_cuts_say_what_goes_past_them() -> None:
    vae, pairs = pairs_for(MODELS["Skip"])
    cuts = cuts_of(Wiring.of(vae, pairs.base), "f", ["r"])
    assert [cut.name for cut in cuts] == [
        "factor:f -> input",
        "input -> down1",
        "down1 -> down2",
        "input + down2 -> latent.z",
        "latent.z -> up1",
        "up1 -> up2",
        "up1 + up2 -> output",
        "output -> readout:r",
    ]
    assert [cut.bypassed for cut in cuts][1:3] == [("input[0]",)] * 2
    assert [bool(cut.bypassed) for cut in cuts] == [False, True, True, False, False, True, False, False]
    assert all(a.layer < b.layer for cut in cuts for a, b in ((cut.sources[s], cut.targets[t]) for s, t in cut.ends))


@pytest.mark.parametrize("moments", ["mixed", "added"])
def test_units_are_called_latents_only_where_they_are_one_for_one(moments: str) -> None:
    vae, pairs = pairs_for(seeded(NamesVAE(moments), 1))
    wiring = Wiring.of(vae, pairs.base)
    names = [node.id for column in wiring.columns for node in column.nodes if node.stage == "encoder"]
    assert names == [f"{path}[{i}]" for path in (["one"] if moments == "mixed" else ["one", "other"]) for i in range(2)]


def test_a_model_that_does_not_look_at_its_input_is_refused() -> None:
    class Blind(LayerNormVAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().encode(torch.ones_like(x))

    vae, pairs = pairs_for(seeded(Blind()))
    with pytest.raises(CircuitError, match="seen to change with the input"):
        Wiring.of(vae, pairs.base)


def test_units_that_the_readout_does_not_see_have_no_edge_into_it() -> None:
    vae, pairs = pairs_for(seeded(NamesVAE("added"), 1))
    last = cuts_of(Wiring.of(vae, pairs.base), "f", ["r"])[-1]
    seen = [last.sources[s].id for s, _ in last.ends]
    assert seen == [f"first[{i}]" for i in range(3)] + [f"last[{i}]" for i in range(7)]
    assert [node.id for node in last.sources if node.id not in seen] == ["first[3]"]


def test_units_without_a_node_lend_their_edges_to_no_other() -> None:
    vae, pairs = pairs_for(seeded(GroupedHeadVAE(), 1))
    cuts = {cut.name: cut for cut in cuts_of(Wiring.of(vae, pairs.base), "f", ["r"])}
    cut = cuts["stem -> latent.z"]
    assert {cut.sources[s].index for s, _ in cut.ends} == {0, 1}
    assert len(cut) == 4


def test_noise_that_is_0_for_the_example_hides_no_logvar() -> None:
    vae, pairs = pairs_for(seeded(LayerNormVAE(), 2), sampled=True)
    pairs.eps[0] = 0
    cuts = {cut.name: cut for cut in cuts_of(Wiring.of(vae, pairs.base, pairs.eps), "f", ["r"])}
    assert len(cuts["latent.mu + latent.logvar -> latent.z"]) == 4


def test_a_level_is_the_longest_way_from_the_input() -> None:
    vae, pairs = pairs_for(seeded(BranchesVAE(), 1))
    wiring = Wiring.of(vae, pairs.base)
    depths = {column.path.removeprefix("model."): column.depth for column in wiring.columns}
    z = depths["encoder.3"]
    assert (depths["long"], depths["short"], depths["longer"], depths["last"]) == (z + 1, z + 1, z + 2, z + 3)
    assert wiring.levels[z + 1] == (position(wiring, "long"), position(wiring, "short"))
    assert wiring.alive(z + 2) == (position(wiring, "short"),)
    scores = score_edges(vae, pairs, readout_of(vae))
    assert scores.cuts[z + 1] == "latent.z -> long + short"
    for c in range(len(scores.cuts)):
        carried = scores.values[scores.cut_of == c].sum(0) + scores.bypass[c]
        np.testing.assert_allclose(carried, scores.total, rtol=1e-8, atol=1e-12)


def test_a_layer_that_is_called_twice_is_refused_by_name_unless_nothing_comes_of_it() -> None:
    vae, pairs = pairs_for(seeded(TwiceVAE()))
    with pytest.raises(CircuitError, match=r"'again' \(Linear\) is called 2 times.*a layer of its own"):
        Wiring.of(vae, pairs.base)
    vae, pairs = pairs_for(seeded(ShutVAE()), sampled=True)
    columns = Wiring.of(vae, pairs.base).columns  # on the mean path logvar plays no part, nor does what leads to it
    assert [column.path.removeprefix("model.") for column in columns] == ["tap_input", "encoder", "decoder", "last"]
    with pytest.raises(CircuitError, match="'again'"):
        Wiring.of(vae, pairs.base, pairs.eps)


class Tiny(nn.Module):
    """ReLU after every layer: for one example all of a layer's units may be off."""

    image = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
        self.fc_mu, self.fc_logvar = nn.Linear(2, 2), nn.Linear(2, 2)
        self.decoder = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def test_layers_whose_gates_are_all_shut_for_the_example_are_found_in_every_net() -> None:
    dead = 0
    for seed in range(40):
        model = seeded(Tiny(), seed)
        x = images(model, 2, seed=seed)
        with torch.no_grad():
            h = model.encoder[1](model.encoder[0](x[:1]))
            dead += not bool(h.any()) or not bool(model.encoder(x[:1]).any())
        columns = Wiring.of(nv.VAE(model), x).columns
        assert [len(column.nodes) for column in columns] == [3, 2, 2, 2, 2, 2, 3]
    assert dead > 5  # or the test shows nothing


# ---------------------------------------------------------------------------------- local maps
@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_what_a_layer_takes_in_sum_to_its_change(name: str, sampled: bool) -> None:
    vae, pairs = pairs_for(MODELS[name], sampled=sampled)
    wiring, run = the_run(vae, pairs)
    for reader in range(len(wiring.columns) + 1):
        parts = [masked(part, run, reader) for part in run.parts(reader)]
        torch.testing.assert_close(torch.stack(parts).sum(0), run.taken(reader), rtol=1e-9, atol=1e-12)


class Hooked:
    """What one module takes in as a function of what others give, on the model itself, with plain hooks."""

    def __init__(self, model: nn.Module, parents: list[str], reader: str, x: Tensor) -> None:
        self.model, self.parents, self.reader, self.x = model, parents, reader, x

    def __call__(self, outputs: list[Tensor] | None) -> tuple[list[Tensor], Tensor]:
        modules, kept, taken = dict(self.model.named_modules()), {}, []
        hooks = [modules[self.reader].register_forward_pre_hook(lambda m, args: taken.append(args[0].clone()))]
        for i, parent in enumerate(self.parents):

            def give(module, args, out, i=i):
                kept[i] = out.clone() if outputs is None else outputs[i].clone()
                return kept[i].clone()

            hooks.append(modules[parent].register_forward_hook(give))
        try:
            with torch.no_grad():
                self.model.decode(self.model.encode(self.x)[0])
        finally:
            for hook in hooks:
                hook.remove()
        return [kept[i] for i in range(len(self.parents))], taken[0]


def integrated(local: Hooked, start: list[Tensor], end: list[Tensor], parent: int, units: Tensor) -> Tensor:
    """Gauss-Legendre rule on central differences: slow, and by nothing but runs of the model."""
    moves, h = [b - a for a, b in zip(start, end, strict=True)], 1e-4
    direction = torch.zeros_like(moves[parent])
    axis = direction.ndim - 1 if isinstance(dict(local.model.named_modules())[local.parents[parent]], nn.Linear) else 1
    direction.movedim(axis, 0)[units] = moves[parent].movedim(axis, 0)[units]
    total = 0.0
    for point, weight in zip(*np.polynomial.legendre.leggauss(20), strict=True):
        at = [a + (point + 1) / 2 * d for a, d in zip(start, moves, strict=True)]
        ahead, behind = list(at), list(at)
        ahead[parent], behind[parent] = at[parent] + h * direction, at[parent] - h * direction
        total = total + weight / 2 * (local(ahead)[1] - local(behind)[1]) / (2 * h)
    return total


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("GroupNorm", "conv2"),
        ("GroupNorm", "up"),
        ("Attention", "conv2"),
        ("Attention", "proj"),
        ("LayerNorm", "encoder.3"),
    ],
)
def test_what_a_node_adds_through_norms_and_attention_equals_its_path_integral(name: str, reader: str) -> None:
    vae, pairs = pairs_for(MODELS[name], n=2)
    wiring, run = the_run(vae, pairs)
    at = position(wiring, reader)
    parents = [wiring.columns[route.parent] for route in wiring.columns[at].routes]
    paths = [column.path.removeprefix("model.") for column in parents]
    model = MODELS[name].eval()
    start, end = (Hooked(model, paths, reader, x)(None)[0] for x in (pairs.base, pairs.source))
    local = Hooked(model, paths, reader, pairs.base)
    by_node: dict[tuple[int, int], Tensor] = {}
    for part in run.parts(at):
        i = [route.parent for route in wiring.columns[at].routes].index(part.parent)
        for node in part.owners.unique().tolist():
            if node >= 0:
                by_node[i, node] = masked(part._replace(owners=torch.where(part.owners == node, node, -1)), run, at)
    assert len(by_node) == sum(len(column.nodes) for column in parents)
    for (i, node), found in by_node.items():
        units = (parents[i].owners == node).nonzero().flatten()
        slow = integrated(local, start, end, i, units)
        torch.testing.assert_close(found, slow, rtol=2e-4, atol=2e-5 * float(slow.abs().max()))


def test_a_gate_after_an_addition_shares_its_change_in_proportion() -> None:
    vae, pairs = pairs_for(MODELS["GatedResidual"])
    wiring, run = the_run(vae, pairs)
    reader = position(wiring, "fc_mu")
    stem, f2 = position(wiring, "stem"), position(wiring, "f2")
    base, source = (side.outputs["model.stem"] + side.outputs["model.f2"] for side in (run.base, run.source))
    share = (source.relu() - base.relu()) / (source - base)
    assert bool(((share > 0.01) & (share < 0.99)).any())  # gates open and shut on the way
    for part in run.parts(reader):
        change = run.given(part.parent)
        torch.testing.assert_close(part.delta, (share * change).flatten(1), rtol=1e-9, atol=1e-12)
        assert part.parent in (stem, f2)


def test_gates_before_an_addition_share_nothing_of_each_others_change() -> None:
    vae, pairs = pairs_for(seeded(GatesBeforeAdditionVAE(), 1))
    pairs = replace(pairs, source=2 - 5 * pairs.source)
    wiring, run = the_run(vae, pairs)
    relus = {
        column.path: [side.outputs[column.path].relu() for side in (run.base, run.source)] for column in wiring.columns
    }
    moved = [source - base for base, source in (relus["model.a"], relus["model.b"])]
    opened = [((source > 0) != (base > 0)).any() for base, source in (relus["model.a"], relus["model.b"])]
    assert all(opened)
    assert bool(((moved[0] != 0) & (moved[1] != 0)).any())
    for part in run.parts(position(wiring, "halves")):
        base, source = relus[wiring.columns[part.parent].path]
        torch.testing.assert_close(part.delta, source - base, rtol=1e-12, atol=1e-14)
    sets = list(run.parts(position(wiring, "last")))
    base, source = relus["model.halves"]
    assert [part.owners.tolist() for part in sets] == [
        [0, 1, 2, 3]
    ]  # two halves of a port are one node: nothing else reads them
    change = (source - base).unflatten(1, (2, 4)).sum(1)
    torch.testing.assert_close(sets[0].delta, change, rtol=1e-12, atol=1e-14)


def test_a_change_that_no_unit_was_seen_to_make_is_refused_by_name() -> None:
    vae, pairs = pairs_for(seeded(FarGateVAE(), 1))
    assert score_edges(vae, pairs, readout_of(vae)).n_pairs == 5
    extreme = replace(pairs, source=pairs.source * 1e7)
    with pytest.raises(CircuitError, match=r"input channel of layer 'last' changes.*no unit of 'decoder' reaches it"):
        score_edges(vae, extreme, readout_of(vae))


class Checking(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        if bool((h.abs() > 50).any()):
            raise ValueError("values above 50 are not expected")
        return h


def test_a_model_that_minds_what_it_is_given_is_refused_with_its_own_words() -> None:
    model = seeded(MLPVAE(), 1)
    model.dec2 = nn.Sequential(Checking(), model.dec2)
    vae, pairs = pairs_for(model)
    with pytest.raises(
        CircuitError, match=r"MLPVAE does not run with other activations .* ValueError: values above 50"
    ):
        score_edges(vae, pairs, readout_of(vae))
    assert not [h for module in model.modules() for h in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_mu_moves_the_sample_by_itself_and_logvar_by_its_noise() -> None:
    for model, packed in ((seeded(GatedResidualVAE(), 3), False), (seeded(LayerNormVAE(), 3), True)):
        vae, pairs = pairs_for(model, sampled=True)
        wiring, run = the_run(vae, pairs)
        mu, logvar = ([side.outputs[f"latent.{name}"] for side in (run.base, run.source)] for name in ("mu", "logvar"))
        expected = {
            "latent.mu": mu[1] - mu[0],
            "latent.logvar": ((logvar[1] / 2).exp() - (logvar[0] / 2).exp()) * pairs.eps,
        }
        seen = set()
        for part in run.parts(position(wiring, "latent.z")):
            (site,) = {wiring.columns[part.parent].nodes[i].site for i in part.owners.tolist()}
            torch.testing.assert_close(part.delta, expected[site], rtol=1e-12, atol=1e-14)
            seen.add(site)
        assert seen == set(expected)
        assert len(wiring.columns[position(wiring, "latent.z")].routes) == (1 if packed else 2)


def test_the_model_is_left_as_it_was() -> None:
    vae, pairs = pairs_for(MODELS["Attention"])
    before = {name: value.clone() for name, value in MODELS["Attention"].state_dict().items()}
    score_edges(vae, pairs, readout_of(vae))
    model = MODELS["Attention"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.cuda.flash_sdp_enabled()


# ---------------------------------------------------------------------------------- scores
@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("name", SMOOTH)
def test_plain_quadrature_is_complete_at_every_level_of_smooth_nets(name: str, sampled: bool) -> None:
    vae, pairs = pairs_for(MODELS[name], sampled=sampled)
    scores = score_edges(vae, pairs, readout_of(vae), nodes=12)
    assert np.abs(scores.gaps).max() < 1e-4 * np.abs(scores.total).mean()
    for c in range(len(scores.cuts)):
        carried = scores.values[scores.cut_of == c].sum(0) + scores.bypass[c]
        np.testing.assert_allclose(carried, scores.total, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["Residual", "GatedResidual", "Skip"])
def test_with_what_bypasses_it_every_level_carries_the_total_effect(name: str) -> None:
    vae, pairs = pairs_for(MODELS[name])
    scores = score_edges(vae, pairs, readout_of(vae), nodes=4)
    cuts = cuts_of(Wiring.of(vae, pairs.base), "f", scores.readouts)
    errors = [row.error for row in scores.completeness if row.error is not None]
    assert len(errors) >= len(cuts)
    assert max(errors) < 1e-9
    for c, cut in enumerate(cuts):
        carried = scores.values[scores.cut_of == c].sum(0) + scores.bypass[c]
        np.testing.assert_allclose(carried, scores.total, rtol=1e-8, atol=1e-12)
        past = np.abs(scores.bypass[c]).max() > 1e-6
        assert past == bool(cut.bypassed)
        assert (cut.name in scores.bypassed) == past
    exact = score_edges(vae, pairs, readout_of(vae)[scores.readouts[:1]], method="exact").completeness
    assert all(("skip this level" in row.reason) == (row.cut in scores.bypassed) for row in exact)


def test_level_scores_and_bypass_equal_integrated_gradients_by_hand() -> None:
    """The level of `refine.second`: it and `grow` move together; each is worth its change times the mean gradient."""
    model = MODELS["Residual"].double().eval()
    vae, pairs = pairs_for(model)
    readout = readout_of(vae)
    scores = score_edges(vae, pairs, readout, nodes=3)
    kept: dict[str, list[Tensor]] = {"grow": [], "refine.first": [], "refine.second": []}
    modules = dict(model.named_modules())
    hooks = [modules[p].register_forward_hook(lambda m, a, out, p=p: kept[p].append(out.detach())) for p in kept]
    with torch.no_grad():
        ends = [readout(model.decode(model.encode(x).mean)) for x in (pairs.base, pairs.source)]
    for hook in hooks:
        hook.remove()
    (grow, grow_), (first, first_), (second, second_) = kept.values()
    total = (ends[1] - ends[0]).T
    positions, weights = (
        np.array([0, 0.5, 1]),
        np.array([1, 4, 1]) / 6,
    )  # Simpson's, which is Lobatto's with three nodes
    for t in range(2):
        slopes = []
        for position_ in positions:
            a = (grow + position_ * (grow_ - grow)).requires_grad_()
            b = (second + position_ * (second_ - second)).requires_grad_()
            slopes.append(torch.autograd.grad(readout(model.out(a + b))[:, t].sum(), (a, b)))
        along = torch.stack(
            [((g * (grow_ - grow)).flatten(1) + (s * (second_ - second)).flatten(1)).sum(1) for g, s in slopes]
        )
        w = torch.tensor(weights)[:, None]
        tilt = (total[t] - (w * along).sum(0)) / (w * along**2).sum(0)
        w = w * (1 + tilt * along)
        past = sum(w[k] * (g * (grow_ - grow)).flatten(1).sum(1) for k, (g, _) in enumerate(slopes))
        cut = scores.cuts.index("refine.first -> refine.second")
        np.testing.assert_allclose(scores.bypass[cut, t], past, rtol=1e-8, atol=1e-12)
        change = first_.relu() - first.relu()
        for u, v in ((0, 1), (2, 0), (3, 3)):
            arriving = torch.nn.functional.conv2d(
                change[:, u : u + 1], model.refine.second.weight[v : v + 1, u : u + 1], padding=1
            )
            worth = sum(w[k] * (s[:, v : v + 1] * arriving).flatten(1).sum(1) for k, (_, s) in enumerate(slopes))
            edge = list(zip(scores.sources, scores.targets, strict=True)).index(
                (f"refine.first[{u}]", f"refine.second[{v}]")
            )
            np.testing.assert_allclose(scores.values[edge, t], worth.detach(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parents", "reader", "nodes"),
    [
        ("GatedResidual", ["stem", "f2"], "fc_mu", "latent.z"),
        ("GatedResidual", ["f2", "stem"], "fc_mu", "latent.z"),
        ("Attention", ["conv"], "conv2", "conv2"),
    ],
)
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_exact_patching_moves_one_node_alone_in_what_the_layer_takes_in(
    name: str, parents: list[str], reader: str, nodes: str, direction: str
) -> None:
    model = MODELS[name].eval()
    vae, pairs = pairs_for(model)
    readout = readout_of(vae)
    scores = score_edges(vae, pairs, readout, method="exact", direction=direction)
    receiver, donor = (pairs.base, pairs.source) if direction == "noising" else (pairs.source, pairs.base)
    sign = 1 if direction == "noising" else -1
    modules = dict(model.named_modules())
    (own, *held), taken = Hooked(model, parents, reader, receiver)(None)
    (other, *_), _ = Hooked(model, parents, reader, donor)(None)

    def read_with(replacement: Tensor | None) -> Tensor:
        hook = modules[reader].register_forward_hook(lambda m, a, out: out if replacement is None else replacement)
        with torch.no_grad():
            value = readout(model.decode(model.encode(receiver)[0]))
        hook.remove()
        return value

    for u, v in ((0, 0), (2, 1)):
        swapped = own.clone()
        swapped[:, u] = other[:, u]
        _, with_u = Hooked(model, parents, reader, receiver)([swapped, *held])
        with torch.no_grad():
            given, arrived = modules[reader](taken), modules[reader](with_u)
        patched = given.clone()
        patched[:, v] = arrived[:, v]
        expected = sign * (read_with(patched) - read_with(None)).T
        edge = list(zip(scores.sources, scores.targets, strict=True)).index((f"{parents[0]}[{u}]", f"{nodes}[{v}]"))
        np.testing.assert_allclose(scores.values[edge], expected, rtol=1e-7, atol=1e-12)


# ---------------------------------------------------------------------------------- runs of some edges
def kept_everywhere(cuts: tuple[Cut, ...], value: bool) -> list[Tensor]:
    return [torch.full((len(cut),), value) for cut in cuts]


@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("name", MODELS)
def test_all_edges_are_the_source_run_and_none_is_what_is_at_rest(name: str, sampled: bool) -> None:
    vae, pairs = pairs_for(MODELS[name], sampled=sampled)
    wiring, run = the_run(vae, pairs)
    readout = readout_of(vae)
    cuts = cuts_of(wiring, "f", readout.names)
    for rest in (Rest.base(run), Rest.mean([run]).of(run), Rest.zero(run)):
        with torch.no_grad():
            none, every = (
                run_with(vae, run, cuts, kept_everywhere(cuts, kept), readout, rest=rest) for kept in (False, True)
            )
        torch.testing.assert_close(none, readout(rest.inputs[-1].expand_as(run.base_inputs[-1])), rtol=0, atol=0)
        torch.testing.assert_close(every, readout(run.source_inputs[-1]), rtol=1e-9, atol=1e-12)


def test_any_edge_set_of_a_residual_net_equals_a_literal_masked_forward() -> None:
    model = MODELS["Residual"].eval()
    vae, pairs = pairs_for(model)
    wiring, run = the_run(vae, pairs)
    readout = readout_of(vae)
    cuts = cuts_of(wiring, "f", readout.names)
    generator = torch.Generator().manual_seed(4)
    kept = [torch.rand(len(cut), generator=generator) < 0.6 for cut in cuts]
    kept[0][:] = True
    ids = {
        (cut.sources[s].id, cut.targets[t].id)
        for cut, chosen in zip(cuts, kept, strict=True)
        for s, t in cut.ends[chosen.numpy()].tolist()
    }
    base = {
        path: run.base.outputs[f"model.{path}"]
        for path in ("stem", "block.first", "block.second", "head", "grow", "refine.first", "refine.second", "out")
    }
    modules = dict(model.named_modules())

    def layer(path: str, name: str, changes: dict[str, Tensor]) -> Tensor:
        """What a layer gives more than in the base run, edge by edge."""
        total = torch.zeros_like(base[path])
        for parent, change in changes.items():
            for u in range(change.shape[1]):
                alone = torch.zeros_like(change)
                alone[:, u] = change[:, u]
                arriving = modules[path](alone) - modules[path](torch.zeros_like(alone))
                for v in range(arriving.shape[1]):
                    if (f"{parent}[{u}]", f"{name}[{v}]") in ids:
                        total[:, v] += arriving[:, v]
        return total

    def through_relu(path: str, change: Tensor) -> Tensor:
        return (base[path] + change).relu() - base[path].relu()

    with torch.no_grad():
        stem = layer("stem", "stem", {"input": pairs.source - pairs.base})
        first = layer("block.first", "block.first", {"stem": stem})
        second = layer("block.second", "block.second", {"block.first": through_relu("block.first", first)})
        z = layer("head", "latent.z", {"stem": stem, "block.second": second})[:, :2]
        grow = layer("grow", "grow", {"latent.z": z})
        first = layer("refine.first", "refine.first", {"grow": grow})
        second = layer("refine.second", "refine.second", {"refine.first": through_relu("refine.first", first)})
        out = layer("out", "output", {"grow": grow, "refine.second": second})
        columns = [
            readout(base["out"] + out * (("output[0]", f"readout:{name}") in ids))[:, t]
            for t, name in enumerate(readout.names)
        ]
        fast = run_with(vae, run, cuts, kept, readout)
    assert 0.3 < sum(map(torch.Tensor.sum, kept)) / sum(map(len, kept)) < 0.9
    torch.testing.assert_close(fast, torch.stack(columns, dim=1), rtol=1e-9, atol=1e-12)


def nodes_shares(run: PairRun, reader: int) -> dict[int, Tensor]:
    """What each node of a reader's only parent adds to what it takes in."""
    found = {}
    for part in run.parts(reader):
        for node in part.owners[part.owners >= 0].unique().tolist():
            found[node] = masked(part._replace(owners=torch.where(part.owners == node, node, -1)), run, reader)
    return found


@pytest.mark.parametrize(("name", "reader"), [("LayerNorm", "decoder.3"), ("GroupNorm", "conv2")])
def test_edges_out_of_a_mixing_map_carry_their_nodes_shares(name: str, reader: str) -> None:
    model = MODELS[name].eval()
    vae, pairs = pairs_for(model)
    wiring, run = the_run(vae, pairs)
    readout = readout_of(vae)
    at = position(wiring, reader)
    cuts = cuts_of(wiring, "f", readout.names)
    c = next(c for c, cut in enumerate(cuts) if cut.readers == (at,))
    layer = dict(model.named_modules())[reader]
    given = run.base.outputs[f"model.{reader}"]
    gradient = torch.randn(given.shape, generator=torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(len(cuts[c]), generator=generator) < 0.5
    shares, total = nodes_shares(run, at), given.clone()
    fast = contracted(run, cuts[c], [[gradient]])
    with torch.no_grad():
        for edge, (u, v) in enumerate(cuts[c].ends.tolist()):
            arriving = (layer(shares[u]) - layer(torch.zeros_like(shares[u])))[:, v]
            torch.testing.assert_close(fast[edge, 0], (arriving * gradient[:, v]).reshape(len(run), -1).sum(1))
            if chosen[edge]:
                total[:, v] += arriving
        kept = kept_everywhere(cuts, True)
        kept[c] = chosen
        reached = reached_with(vae, run, cuts, kept, [reader])[reader]
    torch.testing.assert_close(reached, total, rtol=1e-9, atol=1e-12)


def test_units_of_no_node_give_what_they_give_in_the_run() -> None:
    vae, pairs = pairs_for(MODELS["LayerNorm"])
    wiring, run = the_run(vae, pairs)
    cuts = cuts_of(wiring, "f", ["r"])
    with torch.no_grad():
        reached = reached_with(vae, run, cuts, kept_everywhere(cuts, True), ["latent.logvar"])["latent.logvar"]
    torch.testing.assert_close(reached, run.source.outputs["latent.logvar"], rtol=1e-9, atol=1e-12)


def test_weights_are_1_where_what_is_read_is_handed_on() -> None:
    vae, pairs = pairs_for(MODELS["LayerNorm"], sampled=True)
    scores = score_edges(vae, pairs, readout_of(vae), method="weight")
    values = scores.values[scores.cut_of == scores.cuts.index("latent.mu + latent.logvar -> latent.z")]
    assert values.shape[0] == 4
    assert (values == 1).all()
    weight = MODELS["LayerNorm"].encoder[3].weight
    for u, v in ((0, 1), (5, 0)):  # the norm mixes all of what the layer reads
        edge = list(zip(scores.sources, scores.targets, strict=True)).index((f"encoder.0[{u}]", f"latent.mu[{v}]"))
        assert scores.values[edge, 0, 0] == pytest.approx(float(weight[v].detach().norm()), rel=1e-6)


@pytest.mark.parametrize("name", ["GatedResidual", "Attention"])
def test_a_run_is_differentiable_in_the_share_that_each_edge_carries(name: str) -> None:
    vae, pairs = pairs_for(MODELS[name], n=2)
    wiring, run = the_run(vae, pairs)
    readout = readout_of(vae)
    cuts = cuts_of(wiring, "f", readout.names)
    generator = torch.Generator().manual_seed(0)
    shares = [(0.3 + 0.5 * torch.rand(len(cut), generator=generator)).double().requires_grad_() for cut in cuts]
    gradients = torch.autograd.grad(run_with(vae, run, cuts, shares, readout)[:, 0].sum(), shares)
    h = 1e-5
    for c in range(1, len(cuts), 2):
        edge = int(gradients[c].abs().argmax())
        ends = []
        for step in (h, -h):
            moved = [share.detach().clone() for share in shares]
            moved[c][edge] += step
            with torch.no_grad():
                ends.append(float(run_with(vae, run, cuts, moved, readout)[:, 0].sum()))
        assert float(gradients[c][edge]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=3e-11)


# ---------------------------------------------------------------------------------- random wirings
class RandomVAE(nn.Module):
    """Each layer of the decoder reads a sum or a row of some earlier ones, through a map that keeps units apart or mixes them."""

    image = (4,)

    def __init__(self, plan: list[tuple[tuple[int, ...], str, str]]) -> None:
        super().__init__()
        self.plan = plan
        self.fc_mu, self.fc_logvar = nn.Linear(4, 2), nn.Linear(4, 2)
        self.first = nn.Linear(2, 3)
        self.layers = nn.ModuleList(nn.Linear(3 * len(parents) if join == "row" else 3, 3) for parents, join, _ in plan)
        self.last = nn.Linear(3, 4)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc_mu(x), self.fc_logvar(x)

    def decode(self, z: Tensor) -> Tensor:
        given = [self.first(z)]
        maps = {"tanh": torch.tanh, "relu": torch.relu, "softmax": lambda h: 3 * h.softmax(-1), "none": lambda h: h}
        for (parents, join, name), layer in zip(self.plan, self.layers, strict=True):
            chosen = [given[p] for p in parents]
            given.append(layer(maps[name](torch.cat(chosen, -1) if join == "row" else sum(chosen))))
        return self.last(torch.tanh(given[-1]))


@st.composite
def plans(draw) -> list[tuple[tuple[int, ...], str, str]]:
    plan = []
    for i in range(draw(st.integers(1, 4))):
        others = draw(st.sets(st.integers(0, i), max_size=2)) - {i}
        join, through = (
            draw(st.sampled_from(["sum", "row"])),
            draw(st.sampled_from(["tanh", "relu", "softmax", "none"])),
        )
        plan.append((tuple(sorted({i, *others})), join, through))
    return plan


@settings(max_examples=12, derandomize=True, deadline=None)
@given(plan=plans(), seed=st.integers(0, 100), sampled=st.booleans())
def test_random_wirings_are_found_complete_and_run_with_all_or_none(plan: list, seed: int, sampled: bool) -> None:
    vae, pairs = pairs_for(seeded(RandomVAE(plan), seed), n=3, sampled=sampled)
    wiring, run = the_run(vae, pairs)
    first = position(wiring, "first")
    for i, (parents, _, _) in enumerate(plan):
        routes = wiring.columns[position(wiring, f"layers.{i}")].routes
        names = ["first", *(f"layers.{k}" for k in range(i))]
        assert {route.parent for route in routes} == {position(wiring, names[p]) for p in parents}
    assert wiring.columns[first].depth == (3 if sampled else 2)
    readout = readout_of(vae)
    scores = score_edges(vae, pairs, readout, nodes=6)
    cuts = cuts_of(wiring, "f", readout.names)
    for c in range(len(cuts)):
        edges = scores.values[scores.cut_of == c].sum(0) + scores.bypass[c]
        off = np.abs(edges - scores.total).max()
        assert off <= 1e-9 + np.abs(scores.gaps[c]).max()
    for value, inputs in ((False, run.base_inputs), (True, run.source_inputs)):
        with torch.no_grad():
            got = run_with(vae, run, cuts, kept_everywhere(cuts, value), readout)
        torch.testing.assert_close(got, readout(inputs[-1]), rtol=1e-9, atol=1e-12)
