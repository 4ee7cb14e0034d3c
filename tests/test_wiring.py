"""Columns, routes and levels of VAEs whose layers form no chain, read off their runs; random wirings."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from branching_runs import MODELS, kept_everywhere, pairs_for, position, readout_of, the_run
from branching_vaes import BranchesVAE, GroupedHeadVAE, LayerNormVAE, NamesVAE, ShutVAE, TwiceVAE
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from vaes import MLPVAE, ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.wiring.cuts import cuts_of, nodes_of
from nnsight_vae.circuits.wiring.partial import run_with
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.errors import CircuitError


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


def test_cuts_between_columns_are_found_once_a_wiring_and_those_at_the_ends_for_each_factor_and_readout() -> None:
    vae, pairs = pairs_for(MODELS["Residual"])
    wiring = Wiring.of(vae, pairs.base)
    first, second = cuts_of(wiring, "f", ["r"]), cuts_of(wiring, "g", ["s", "t"])
    assert all(one is other for one, other in zip(first[1:-1], second[1:-1], strict=True))
    assert [(cuts[0].name, cuts[-1].name) for cuts in (first, second)] == [
        ("factor:f -> input", "output -> readout:r"),
        ("factor:g -> input", "output -> readouts"),
    ]
    assert len(second[-1]) == 2 * len(first[-1])
    with torch.no_grad():
        vae.module.out.weight[0].zero_()
    assert cuts_of(Wiring.of(vae, pairs.base), "f", ["r"])[1] is not first[1]  # the weights are others
    held = weakref.ref(first[1])
    del first, second, wiring
    gc.collect()
    assert held() is None


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
