"""VAEs whose circuit is known: the truth against literal hooks, closed forms and the worlds they are of; and the benchmark."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import cache

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner
from vaes import seeded

import nnsight_vae as nv
from nnsight_vae.circuits.known import (
    KnownCircuit,
    Projection,
    Task,
    benchmark,
    build_edge_strict,
    edge_strict,
    edge_strict_training,
    edge_strict_world,
    glass_blocks,
    glass_box,
    masked,
    random_dag,
)
from nnsight_vae.circuits.known.benchmark import ALL, judged
from nnsight_vae.circuits.known.dags import one_edge, reached
from nnsight_vae.circuits.known.edge_strict import record
from nnsight_vae.circuits.known.hiding import Disguise, columns, hide
from nnsight_vae.cli import app
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.models import MLPVAE, ConvVAE

CHAIN = nx.DiGraph([("f0", "f1"), ("f1", "f2")])

# layer, the site of the nodes it makes, how many of its inputs and outputs a node has; written by hand
GLASS = [
    ("encoder.0", "encoder.0", 1, 1),
    ("encoder.2", "encoder.2", 1, 1),
    ("fc_mu", "latent.z", 4, 1),
    ("decoder.0", "decoder.0", 1, 1),
    ("decoder.2", "decoder.4", 1, 4),
    ("decoder.5", "decoder.5", 1, 1),
    ("decoder.7", "output", 1, 1),
]
MASKED = [
    ("encoder.0", "encoder.0", 1, 1),
    ("encoder.2", "encoder.2", 1, 1),
    ("encoder.5", "encoder.5", 4, 1),
    ("fc_mu", "latent.z", 1, 1),
    ("decoder.0", "decoder.0", 1, 1),
    ("decoder.2", "decoder.4", 1, 4),
    ("decoder.5", "decoder.5", 1, 1),
    ("decoder.7", "output", 1, 1),
]


@cache
def glass(**options: object) -> KnownCircuit:
    return glass_box(0, **options)


def effects_one_by_one(known: KnownCircuit, layers: list, factor: str, n: int = 12) -> dict:
    """The largest |effect| of each edge over pairs and for each target, both ways, by plain hooks in double precision."""
    pairs, module = known.pairs(factor, n, seed=7), copy.deepcopy(known.vae.module).double()
    modules, weights = dict(module.named_modules()), known.readout
    base, source = pairs.base.double(), pairs.source.double()

    def run(x: Tensor, hook=None, path: str = "") -> Tensor:
        handle = modules[path].register_forward_hook(hook) if hook else None
        with torch.no_grad():
            value = weights(module.decode(module.encode(x)[0]))
        if handle:
            handle.remove()
        return value

    def heard(x: Tensor, path: str) -> tuple[Tensor, Tensor]:
        kept = []
        run(x, lambda _, a, out: kept.append((a[0], out)), path)
        return kept[0]

    found, before = {}, "input"
    for path, site, ports, units in layers:
        (a, p), (b, q) = heard(base, path), heard(source, path)
        for u in range(a.shape[1] // ports):
            mixed = a.clone()
            mixed[:, u * ports : (u + 1) * ports] = b[:, u * ports : (u + 1) * ports]
            with torch.no_grad():
                carried = modules[path].forward(mixed) - p
            for v in range(p.shape[1] // units):
                only = torch.zeros_like(carried)
                only[:, v * units : (v + 1) * units] = carried[:, v * units : (v + 1) * units]
                if not only.any():
                    found[f"{before}[{u}]", f"{site}[{v}]"] = np.zeros(len(weights.names))
                    continue
                there = run(base, lambda *_, only=only, p=p: p + only, path) - run(base)
                back = run(source) - run(source, lambda *_, only=only, q=q: q - only, path)
                found[f"{before}[{u}]", f"{site}[{v}]"] = torch.stack([there, back]).abs().amax((0, 1)).numpy()
        before = site
    return found


def assert_truth_is_what_matters(known: KnownCircuit, layers: list, factor: str) -> None:
    found = effects_one_by_one(known, layers, factor)
    for task in (task for task in known.tasks if task.factor == factor):
        t = known.readout.names.index(task.target)
        matters = {edge for edge, effect in found.items() if effect[t] > 1e-8}
        inner = {e for e in known.truth[task] if not e[0].startswith("factor:") and not e[1].startswith("readout:")}
        assert inner == matters - known.excluded.get(task, frozenset())


# ---------------------------------------------------------------------------------- the truth
@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, "f0"), ({}, "f1"), ({"camouflage": False}, "f0"), ({"dag": CHAIN, "rotation": True}, "f0")],
    ids=["f0", "f1", "plain", "rotated chain"],
)
def test_an_edge_of_a_glass_box_is_true_if_and_only_if_patching_it_does_something(options: dict, factor: str) -> None:
    assert_truth_is_what_matters(glass(**options), GLASS, factor)


def test_the_edges_around_the_groups_are_true_if_and_only_if_patching_them_does_something() -> None:
    layers = [
        (*layer[:2], *((9, 1) if layer[0] == "fc_mu" else (1, 9) if layer[0] == "decoder.2" else (1, 1)))
        for layer in GLASS
    ]
    assert_truth_is_what_matters(glass(groups=True), layers, "f0")


@pytest.mark.parametrize("hidden", [False, True])
def test_an_edge_of_a_masked_model_is_true_if_and_only_if_patching_it_does_something(hidden: bool) -> None:
    assert_truth_is_what_matters(masked(3, dag=CHAIN, hidden=hidden), MASKED, "f0")


@pytest.mark.parametrize("make", [lambda: glass(), lambda: masked(0, factors=2)], ids=["glass", "masked"])
def test_the_true_edges_alone_do_what_the_model_does_and_without_any_one_column_of_them_nothing(make) -> None:
    known = make()
    pairs = known.pairs("f0", 24)
    for task in (task for task in known.tasks if task.factor == "f0"):
        whole = nx.DiGraph(list(known.truth[task]))
        (name,) = [n for n in known.readout.names if n == task.target]
        result = nv.circuits.faithfulness(known.vae, whole, pairs, known.readout)
        assert result.circuit_effect[name] == pytest.approx(result.total_effect[name], rel=1e-4)
        cut = nx.DiGraph([e for e in whole.edges if not e[1].startswith("latent.z[")])
        assert nv.circuits.faithfulness(known.vae, cut, pairs, known.readout).circuit_effect[name] == pytest.approx(
            0, abs=1e-6
        )


def test_ids_are_those_of_score_edges_and_the_ends_are_among_them() -> None:
    for known in (glass(), masked(0, factors=2), edge_strict()):
        for factor in known.factors:
            scores = nv.score_edges(known.vae, known.pairs(factor, 4), known.readout, method="weight")
            edges = set(zip(scores.sources, scores.targets, strict=True))
            for task in (task for task in known.tasks if task.factor == factor):
                assert known.truth[task] | known.excluded.get(task, frozenset()) <= edges
                assert not known.truth[task] & known.excluded.get(task, frozenset())
                assert any(source == f"factor:{factor}" for source, _ in known.truth[task])
                assert any(target == f"readout:{task.target}" for _, target in known.truth[task])


def test_each_factor_has_a_task_for_itself_and_for_all_it_causes() -> None:
    known = glass(dag=CHAIN, rotation=True)
    assert known.tasks == (
        *(Task("f0", f) for f in ("f0", "f1", "f2")),
        Task("f1", "f1"),
        Task("f1", "f2"),
        Task("f2", "f2"),
    )


# ---------------------------------------------------------------------------------- glass box
@pytest.mark.parametrize("rotation", [False, True])
def test_no_factorised_posterior_has_a_higher_evidence_bound_than_the_encoder(rotation: bool) -> None:
    module = copy.deepcopy(glass_box(2, dag=CHAIN, rotation=rotation).vae.module).double()
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mu, logvar = module.encode(x)
    slope = torch.autograd.functional.jacobian(lambda z: module.decode(z[None]).flatten(), torch.ones(3).double())
    mu.requires_grad_(), logvar.requires_grad_()
    misfit = (x - module.decode(mu)).square().flatten(1).sum(1) + (logvar.exp() * slope.square().sum(0)).sum(1)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    (-misfit / (2 * glass_blocks.NOISE**2) - kl).sum().backward()
    torch.testing.assert_close(mu.grad, torch.zeros_like(mu), atol=1e-3, rtol=0)
    torch.testing.assert_close(logvar.grad, torch.zeros_like(mu), atol=1e-4, rtol=0)
    with torch.no_grad():  # so small against what a wrong posterior would give
        off = (x - module.decode(mu * 0.99)).square().flatten(1).sum(1) - (x - module.decode(mu)).square().flatten(
            1
        ).sum(1)
    assert off.abs().max() > 1e-4


def test_the_decoder_of_a_glass_box_is_linear_and_shows_factors_that_are_a_mixture_of_the_latents() -> None:
    known = glass(dag=CHAIN)
    z = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shown = [known.readout(known.vae.module.decode(value)) for value in (z[0], z[1], z[0] + 2 * z[1], 0 * z[0])]
        mixing = known.readout(known.vae.module.decode(torch.eye(3))).T
    torch.testing.assert_close(shown[2], shown[0] + 2 * shown[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shown[3], torch.zeros(6, 3), atol=1e-5, rtol=0)
    assert torch.allclose(mixing.diagonal(), torch.ones(3), atol=1e-5)
    assert torch.allclose(mixing.triu(1), torch.zeros(3, 3), atol=1e-5)
    assert mixing[1, 0].abs() > 0.3 < mixing[2, 1].abs()
    assert mixing[2, 0] == pytest.approx(float(mixing[1, 0] * mixing[2, 1]), abs=1e-4)


def test_rotation_leaves_the_pictures_and_their_posterior_as_they_are() -> None:
    plain, turned = glass(dag=CHAIN), glass(dag=CHAIN, rotation=True)
    x = plain.pairs("f0", 8).source
    # mixing and patterns are drawn before the rotation, so both models are of one world
    assert torch.equal(x, turned.pairs("f0", 8).source)
    with torch.no_grad():
        torch.testing.assert_close(plain.vae(x), turned.vae(x), atol=1e-5, rtol=0)
        (a, _), (b, _) = plain.vae.module.encode(x), turned.vae.module.encode(x)
    assert (a - b).abs().max() > 0.1
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1))


def test_readouts_give_the_factors_and_pairs_change_one_and_what_it_causes() -> None:
    for known in (glass(dag=CHAIN), edge_strict()):
        for factor in known.factors:
            pairs = known.pairs(factor, 16, 3)
            torch.testing.assert_close(known.readout(pairs.base), pairs.base_factors, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(known.readout(pairs.source), pairs.source_factors, atol=1e-4, rtol=1e-4)
            change = pairs.source_factors - pairs.base_factors
            own = known.factors.index(factor)
            assert (change[:, own] > 0).all()
            moved = {name for i, name in enumerate(known.factors) if change[:, i].abs().max() > 1e-5}
            assert moved == set(reached(known.dag)[factor])
            many = known.pairs(factor, 600, 4).base_factors  # what is set no longer follows what used to cause it
            others = torch.corrcoef(many.T)[
                own, [i for i, f in enumerate(known.factors) if f not in reached(known.dag)[factor]]
            ]
            assert others.abs().max() < 0.15 if len(others) else True


def test_either_redundant_route_is_enough_and_cancelling_routes_do_nothing_together() -> None:
    known = glass(groups=True)
    pairs, module = known.pairs("f0", 32), known.vae.module
    crossing = (pairs.base_factors[:, 0] < -0.2) & (pairs.source_factors[:, 0] > 0.2)
    light = pairs.base_factors[:, 0] > 0.1  # both ends of the pair where the twins are on
    given = {}
    handle = module.decoder[0].register_forward_hook(lambda _, a, out: given.setdefault("out", out))
    outputs = []
    for x in (pairs.base, pairs.source):
        given.clear()
        with torch.no_grad():
            module(x)
        outputs.append(given["out"].clone())
    handle.remove()

    def effect(into: int, units: list[int], target: str, where: Tensor = crossing) -> Tensor:
        mixed = outputs[into].clone()
        mixed[:, units] = outputs[1 - into][:, units]
        with torch.no_grad():
            patched, plain = (known.readout(module.decoder[1:](p)) for p in (mixed, outputs[into]))
        return (patched - plain)[where, known.readout.names.index(target)].abs()

    units = {
        g.kind: [int(next(iter(e for e in r if e[1].startswith("decoder.0[")))[1][10:-1]) for r in g.routes]
        for g in known.groups
    }
    first, second = units["redundant"]
    assert torch.allclose(effect(0, [first], "switch"), torch.ones(()), atol=1e-4)  # noising: one turns it on
    assert torch.allclose(effect(0, [second], "switch"), torch.ones(()), atol=1e-4)
    assert effect(1, [first], "switch").max() < 1e-5 > effect(1, [second], "switch").max()  # denoising: one keeps it on
    assert torch.allclose(effect(1, [first, second], "switch"), torch.ones(()), atol=1e-4)
    one, other = units["cancelling"]
    assert min(crossing.sum(), light.sum()) > 3
    assert max(effect(i, [one, other], "f0", where).max() for i in range(2) for where in (crossing, light)) < 1e-4
    assert min(effect(0, [unit], "f0", light).min() for unit in (one, other)) > 0.02
    assert all(
        known.excluded[task] == frozenset().union(*(r for g in known.groups for r in g.routes)) for task in known.tasks
    )


def test_a_leak_gives_every_edge_an_effect_and_leaves_the_truth() -> None:
    tight, leaky = glass(), glass(leakage=0.1)
    assert {t: len(e) for t, e in leaky.truth.items()} == {t: len(e) for t, e in tight.truth.items()}
    values = [
        np.abs(nv.score_edges(k.vae, k.pairs("f2", 16), k.readout, method="ig").mean()[:, 2]) for k in (tight, leaky)
    ]
    assert (values[0] > 0).sum() == len(tight.truth["f2", "f2"]) < (values[1] > 0).sum()
    (leaked,) = [
        r for r in judged(leaky, nv.score_edges(leaky.vae, leaky.pairs("f2", 16), leaky.readout), "f2") if r.cut == ALL
    ]
    assert leaked.auroc > 0.8
    assert leaked.ap < 1


# ---------------------------------------------------------------------------------- masked
DEEPEST = nx.DiGraph([(f"f{i}", f"f{i + 1}") for i in range(4)])  # each layer of the decoder has one edge to cross in


@pytest.mark.parametrize(
    ("seed", "dag"), [(0, None), (1, None), (2, None), (3, DEEPEST)], ids=["0", "1", "2", "deepest"]
)
def test_a_factor_reaches_the_pictures_of_what_it_causes_and_no_other_to_the_last_bit(
    seed: int, dag: nx.DiGraph | None
) -> None:
    known = masked(seed, factors=4, edge_probability=0.6, depth=3, dag=dag)
    module, n = known.vae.module, len(known.factors)
    for factor, caused in reached(known.dag).items():
        pairs = known.pairs(factor, 16)
        with torch.no_grad():
            change = (module(pairs.source)[0] - module(pairs.base)[0]).abs().amax((0, 2, 3)).view(n, 2).amax(1)
        assert {name for name, moved in zip(known.factors, change.tolist(), strict=True) if moved} == set(caused)
        assert min(c for name, c in zip(known.factors, change, strict=True) if name in caused) > 1e-3
        moved = (pairs.source != pairs.base).flatten(2).any(2).any(0).view(n, 2).any(1)
        assert {name for name, m in zip(known.factors, moved, strict=True) if m} == {factor}


def test_what_the_mask_forbids_is_exactly_zero() -> None:
    known = masked(0, dag=one_edge(3), hidden=False)
    weights = {path: layer.weight for path, layer in known.vae.module.named_modules() if hasattr(layer, "weight")}
    crossings = 0
    for path, weight in weights.items():
        if path == "fc_logvar":
            assert not weight.any()
            continue
        rows = (
            weight.transpose(0, 1) if isinstance(known.vae.module.get_submodule(path), nn.ConvTranspose2d) else weight
        )
        blocks = rows.reshape(3, rows.shape[0] // 3, 3, rows.shape[1] // 3, -1)
        present = blocks.ne(0).flatten(3).any(3).any(1)
        assert present.diagonal().all()
        extra = present & ~torch.eye(3, dtype=torch.bool)
        crossings += int(extra.sum())
        assert not extra.any() or (path.startswith("decoder") and extra.nonzero().tolist() == [[1, 0]])
        assert (blocks.ne(0) == present[:, None, :, None, None]).all()
    assert crossings == 1


def test_graphs_that_no_decoder_can_hold_are_refused() -> None:
    for graph in (nx.DiGraph(), nx.DiGraph([("a", "b"), ("b", "a")]), nx.path_graph(6, create_using=nx.DiGraph)):
        with pytest.raises(DataError, match="acyclic"):
            masked(0, dag=graph)
    with pytest.raises(DataError, match="acyclic"):
        glass_box(0, dag=nx.DiGraph([("a", "b"), ("b", "a")]))
    with pytest.raises(DataError, match="leak"):
        glass_box(0, leakage=-0.1)


# ---------------------------------------------------------------------------------- hiding
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    conv=st.booleans(),
    seed=st.integers(0, 10_000),
    shares=st.tuples(*[st.sampled_from([0.0, 0.2, 1.0])] * 3),
    rescale=st.booleans(),
    permute=st.booleans(),
)
def test_a_disguise_leaves_the_function_as_it_is(conv, seed, shares, rescale, permute) -> None:
    module = seeded(ConvVAE((2, 8, 8), 3, (4, 5), 6) if conv else MLPVAE((2, 2, 2), 3, (7, 5)), seed)
    x = torch.rand(9, *((2, 8, 8) if conv else (2, 2, 2)), generator=torch.Generator().manual_seed(seed))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    sizes = [2, *(column.nodes for column in columns(module))]
    live = tuple(np.random.default_rng(seed).random((a, b)) < 0.5 for a, b in itertools.pairwise(sizes))
    hidden, after = hide(module, live, Disguise(*shares, rescale, permute), x, torch.Generator().manual_seed(seed))
    for new, old in zip(hidden(x), module(x), strict=True):
        torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    now = [2, *(column.nodes for column in columns(hidden))]
    assert [mask.shape for mask in after] == list(itertools.pairwise(now))
    grown = [n + sum(int(np.ceil(share * n)) for share in shares) for n in sizes[1:-1]]
    latent = [c.site for c in columns(module)].index("latent.z")
    grown[latent] = sizes[1 + latent]
    assert now[1:-1] == grown
    if not shares[2]:  # without copies every connection is where it was, under another name
        assert [mask.sum() for mask in after] == [mask.sum() for mask in live]


def test_gates_stay_shut_and_unread_units_are_large_and_unread() -> None:
    module, x = seeded(MLPVAE((2, 2, 2), 3, (8, 8)), 1), torch.rand(32, 2, 2, 2)
    sizes = [2, *(column.nodes for column in columns(module))]
    live = tuple(np.ones((a, b), dtype=bool) for a, b in itertools.pairwise(sizes))
    disguise = Disguise(gates=0.25, unread=0.5, rescale=False, permute=False)
    hidden, after = hide(module, live, disguise, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = hidden.encoder[1](x.flatten(1))
    assert (given[:, 8:10] < -500).all()
    assert (hidden.encoder[1].bias[8:10] <= -1000).all()
    own = hidden.encoder[1].weight[:8].abs().median()
    assert hidden.encoder[1].weight[8:].abs().median() > 2 * own
    into_original = hidden.encoder[3].weight[:8]
    assert not into_original[:, 10:].any()
    assert into_original[:, 8:10].abs().median() > 2 * into_original[:, :8].abs().median()
    assert hidden.encoder[3].weight[8:, 10:].any()  # from dead end to dead end
    assert not hidden.fc_mu.weight[:, 10:].any()
    assert not hidden.fc_logvar.weight[:, 10:].any()
    assert after[0][:, :8].all()
    assert not after[0][:, 8:].any()
    assert not after[1][8:].any()
    assert not after[1][:, 8:].any()


def test_units_are_permuted_and_rescaled_so_that_the_size_of_a_weight_says_nothing() -> None:
    module, x = seeded(MLPVAE((2, 2, 2), 3, (40,)), 1), torch.rand(8, 2, 2, 2)
    live = tuple(np.ones(shape, dtype=bool) for shape in ((2, 40), (40, 3), (3, 40), (40, 2)))

    def rows(disguise: Disguise) -> tuple[Tensor, Tensor]:
        hidden, _ = hide(module, live, disguise, x, torch.Generator().manual_seed(0))
        return hidden.encoder[1].weight.norm(dim=1).detach(), hidden.fc_mu.weight.norm(dim=0).detach()

    (into, out_of), (moved, _), (scaled, inverse) = (
        rows(Disguise(rescale=r, permute=p)) for r, p in ((False, False), (False, True), (True, False))
    )
    torch.testing.assert_close(into, module.encoder[1].weight.norm(dim=1))
    torch.testing.assert_close(moved.sort().values, into.sort().values)
    assert (moved != into).float().mean() > 0.8
    gain = scaled / into
    torch.testing.assert_close(inverse * gain, out_of)
    assert 1 / 6 - 1e-6 < gain.min() < 0.4
    assert 2.5 < gain.max() < 6 + 1e-4


# ---------------------------------------------------------------------------------- graphs
def test_random_graphs_are_acyclic_no_deeper_than_asked_and_as_dense_as_stated() -> None:
    for factors, p, depth in ((5, 0.5, 2), (6, 0.3, 1), (4, 0.8, 3)):
        graphs = [random_dag(factors, p, depth, seed) for seed in range(800)]
        assert all(nx.is_directed_acyclic_graph(g) and nx.dag_longest_path_length(g) <= depth for g in graphs)
        assert all(list(g) == [f"f{k}" for k in range(factors)] for g in graphs)
        counts = np.array([g.number_of_edges() for g in graphs])
        expected = p * factors * (factors - 1) / 2 * depth / (depth + 1)
        assert abs(counts.mean() - expected) < 4 * counts.std() / np.sqrt(len(counts))
        forward = np.mean([(a < b) for g in graphs for a, b in g.edges])
        assert abs(forward - 0.5) < 0.05  # names say nothing about the order


def test_seeds_make_graphs_and_the_ends_of_the_range_are_what_they_should_be() -> None:
    assert set(random_dag(5, 0.5, 2, 3).edges) == set(random_dag(5, 0.5, 2, 3).edges)
    assert len({frozenset(random_dag(5, 0.5, 2, seed).edges) for seed in range(20)}) > 15
    assert not random_dag(5, 0.0, 2).edges
    assert not random_dag(5, 1.0, 0).edges
    assert max(nx.dag_longest_path_length(random_dag(6, 1.0, 3, seed)) for seed in range(20)) == 3
    for wrong in ({"factors": 0}, {"edge_probability": 1.1}, {"depth": -1}):
        with pytest.raises(DataError, match="expected"):
            random_dag(**wrong)


# ---------------------------------------------------------------------------------- seeds
@pytest.mark.parametrize("make", [glass_box, masked])
def test_a_seed_makes_one_model_and_leaves_the_global_generator_alone(make) -> None:
    state = torch.get_rng_state()
    one, two, other = make(5), make(5), make(6)
    assert torch.equal(state, torch.get_rng_state())
    assert one.vae.fingerprint == two.vae.fingerprint != other.vae.fingerprint
    assert one.truth == two.truth
    a, b, c = one.pairs("f0", 4, 1), two.pairs("f0", 4, 1), one.pairs("f0", 4, 2)
    assert torch.equal(a.base, b.base)
    assert torch.equal(a.source, b.source)
    assert not torch.equal(a.base, c.base)
    for wrong in (("f9", 4), ("f0", 0), ("f0", True)):
        with pytest.raises(DataError, match=r"factor|pairs"):
            one.pairs(*wrong)


# ---------------------------------------------------------------------------------- edge-strict
def test_the_edge_strict_model_shows_what_it_sees_and_lets_latents_be_exchanged() -> None:
    known, generator = edge_strict(), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, 3, generator=generator)
    images = [edge_strict_world.render(edge_strict_world.factors_from(u)) for u in noise]
    module = known.vae.module
    with torch.no_grad():
        latents = [module.encode(x)[0] for x in images]
        shown = known.readout(module.decode(latents[0]))
        assert (shown - edge_strict_world.factors_from(noise[0])).square().mean() < 0.02
        for k in range(3):
            z, mixed = latents[0].clone(), noise[0].clone()
            z[:, k], mixed[:, k] = latents[1][:, k], noise[1][:, k]
            error = known.readout(module.decode(z)) - edge_strict_world.factors_from(mixed)
            assert error.square().mean() < 0.03
        z = latents[0].clone()
        z[:, 3] = latents[1][:, 3]
        assert (known.readout(module.decode(z)) - shown).abs().mean() < 0.02


def test_the_record_says_how_it_was_made_and_what_it_leaks() -> None:
    made = record()
    assert set(made["leakage"]) == {" -> ".join(task) for task in edge_strict().tasks}
    assert 0 < max(made["leakage"].values()) < made["leakage_bound"] == build_edge_strict.LEAKAGE_BOUND
    assert build_edge_strict.__name__ in made["command"]
    assert f"--seed {made['seed']} --steps {made['steps']}" in made["command"]
    assert made["steps"] == edge_strict_training.STEPS
    (known,) = [edge_strict()]
    assert sum(map(len, made["circuit"])) == 376
    assert [len(known.truth[task]) for task in known.tasks] == [126, 194, 126, 126]
    assert [len(known.excluded.get(task, ())) for task in known.tasks] == [0, 5, 0, 0]


def test_what_is_left_undecided_is_read_from_a_latent_that_should_not_move() -> None:
    known = edge_strict()
    pairs = known.pairs("f0", 64)
    with torch.no_grad():
        change = (known.vae.module.encode(pairs.source)[0] - known.vae.module.encode(pairs.base)[0]).abs().mean(0)
    (sources,) = {frozenset(source for source, _ in edges) for edges in known.excluded.values()}
    assert sources == {"latent.z[1]"}
    assert change[1] < 0.2 * change[0]


def test_its_weights_are_not_sparse_so_the_circuit_is_a_matter_of_effects() -> None:
    weights = torch.cat(
        [w.flatten() for name, w in edge_strict().vae.module.named_parameters() if w.ndim == 2 and "logvar" not in name]
    )
    assert (weights == 0).float().mean() == 0


def test_a_model_that_leaks_is_not_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build_edge_strict, "_PAIRS", 6)
    state = torch.get_rng_state()
    with pytest.raises(CircuitError, match="nothing was written"):
        build_edge_strict.build(tmp_path / "a.safetensors", tmp_path / "a.json", steps=3)
    assert not list(tmp_path.iterdir())
    one, two, other = (edge_strict_training.train(seed, 4) for seed in (1, 1, 2))
    assert torch.equal(one.fc_mu.weight, two.fc_mu.weight)
    assert not torch.equal(one.fc_mu.weight, other.fc_mu.weight)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_what_it_leaks_on_other_pairs_is_under_the_bound() -> None:
    known = edge_strict()
    other = replace(known, draw=lambda factor, n, seed: known.draw(factor, n, seed + 1))
    assert max(build_edge_strict.leakage(other).values()) < build_edge_strict.LEAKAGE_BOUND


# ---------------------------------------------------------------------------------- the benchmark
def assert_held(table, model: str, auroc: float, ap: float, methods: tuple[str, ...]) -> None:
    for method in methods:
        row = table.loc[(model, method)]
        assert row.auroc_min >= auroc - 1e-9
        assert row.ap_min >= ap - 1e-9
    assert table.loc[(model, "weight"), "ap"] < 0.35
    assert table.loc[(model, "weight"), "auroc_min"] < 0.85


def test_gradients_find_every_edge_of_a_camouflaged_glass_box_and_weights_are_fooled() -> None:
    assert_held(
        benchmark(("eap", "ig", "weight"), ("glass-box",), pairs=24).summary(), "glass-box", 1, 1, ("eap", "ig")
    )


def test_ig_finds_the_edges_of_a_masked_model_and_selects_no_false_ones() -> None:
    result = benchmark(("ig", "weight"), ("masked",), pairs=32)
    assert_held(result.summary(), "masked", 0.98, 0.95, ("ig",))
    chosen = [row for row in result.rows if row.method == "ig" and row.cut == ALL]
    assert all(row.fdr <= 0.05 for row in chosen)
    assert np.mean([row.recall for row in chosen]) > 0.4


def test_ig_finds_the_edges_of_the_edge_strict_model() -> None:
    assert_held(benchmark(("ig", "weight"), ("edge-strict",), pairs=32).summary(), "edge-strict", 0.95, 0.90, ("ig",))


@pytest.mark.slow
def test_five_glass_boxes() -> None:
    table = benchmark(("exact", "ig", "eap", "weight"), ("glass-box",), range(5), pairs=48).summary()
    assert_held(table, "glass-box", 1, 1, ("exact", "ig", "eap"))


@pytest.mark.slow
def test_five_masked_models_and_the_edge_strict_one() -> None:
    result = benchmark(("exact", "ig", "weight"), ("masked",), range(5), pairs=48)
    assert_held(result.summary(), "masked", 0.98, 0.95, ("exact", "ig"))
    assert all(row.fdr <= 0.05 for row in result.rows if row.fdr is not None)
    table = benchmark(("exact", "weight"), ("edge-strict",)).summary()
    assert_held(table, "edge-strict", 0.95, 0.90, ("exact",))


def test_rows_are_what_counting_by_hand_gives() -> None:
    known = glass()
    scores = nv.score_edges(known.vae, known.pairs("f0", 24), known.readout, method="ig")
    edges = list(zip(scores.sources, scores.targets, strict=True))
    true = np.array([edge in known.truth["f0", "f1"] for edge in edges])
    order = np.random.default_rng(0).normal(size=len(edges)) + 1.5 * true
    values = np.repeat(order[:, None, None], len(scores.readouts), 1) * np.ones((1, 1, 24), np.float32)
    left_out = frozenset(edges[i] for i in np.flatnonzero(true)[:3]) | frozenset(
        edges[i] for i in np.flatnonzero(~true)[:5]
    )
    judge = replace(known, excluded={Task("f0", "f1"): left_out})
    rows = [r for r in judged(judge, replace(scores, values=values), "f0") if r.target == "f1"]
    assert [r.cut for r in rows] == [ALL, *scores.cuts]
    judged_edges = scores.applies[:, 1] & np.array([edge not in left_out for edge in edges])
    for row in rows:
        here = judged_edges & (
            np.ones(len(edges), bool) if row.cut == ALL else scores.cut_of == scores.cuts.index(row.cut)
        )
        size, label = np.abs(order[here]), true[here]
        assert (row.n_edges, row.n_true) == (here.sum(), label.sum())
        if row.auroc is None:
            assert label.all() or not label.any()
            continue
        above = size[label][:, None] > size[~label][None]
        assert row.auroc == pytest.approx(above.mean())
        ranked = label[np.argsort(-size)]
        precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
        assert row.ap == pytest.approx(precision[ranked].mean())
        assert (row.fdr is None) == (row.cut != ALL)


def test_selection_is_compared_with_the_truth_and_cut_errors_are_the_worst() -> None:
    known = glass()
    scores = nv.score_edges(known.vae, known.pairs("f2", 48), known.readout, method="eap")
    circuit = nv.circuits.circuit_from(scores, nv.circuits.FDR(0.05), resamples=0)
    found = {(a, b) for a, b, data in circuit.edges(data=True) if "f2" in data["effects"]}
    (row,) = [r for r in judged(known, scores, "f2") if r.cut == ALL]
    true = known.truth["f2", "f2"]
    assert row.recall == pytest.approx(len(found & true) / len(true))
    assert row.recall > 0.9
    assert row.shd == len(found ^ true)
    assert row.fdr == len(found - true) / len(found) == 0
    lied = replace(known, truth={Task("f2", "f2"): frozenset(list(true)[:10])})
    (row,) = [r for r in judged(lied, scores, "f2") if r.cut == ALL]
    assert row.fdr == pytest.approx(len(found - lied.truth["f2", "f2"]) / len(found))
    assert row.fdr > 0.5
    more = true | set(zip(scores.sources[:20], scores.targets[:20], strict=True))
    (row,) = [r for r in judged(replace(known, truth={Task("f2", "f2"): more}), scores, "f2") if r.cut == ALL]
    assert row.shd == len(found ^ more) > 10
    assert row.cut_error == pytest.approx(max(c.error for c in scores.completeness if c.readout == "f2"))


def test_the_benchmark_says_what_it_does_not_know_and_counts_its_steps() -> None:
    for wrong in ({"methods": ("eap", "magic")}, {"models": ("glassbox",)}, {"models": ()}):
        with pytest.raises(CircuitError, match="expected some of"):
            benchmark(**wrong)
    steps = []
    result = benchmark(("weight", "random"), ("edge-strict",), (0, 1), pairs=2, progress=lambda *s: steps.append(s))
    assert steps == [(i, 12) for i in range(1, 13)]
    frame = result.to_frame()
    assert set(frame.method) == {"weight", "random"}
    assert set(frame.seed) == {0, 1}
    assert len(frame) == 2 * 2 * 4 * 9
    assert frame[frame.method == "weight"].fdr.isna().all()
    assert "edge-strict" in repr(result)


def test_the_command_prints_a_table_and_writes_every_row(tmp_path) -> None:
    out = tmp_path / "rows.csv"
    arguments = [
        "circuits-benchmark",
        "--models",
        "edge-strict",
        "--methods",
        "weight,eap",
        "--pairs",
        "8",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "edge-strict" in result.output
    assert "weight" in result.output
    assert len(out.read_text().splitlines()) == 1 + 2 * 4 * 9
    assert CliRunner().invoke(app, ["circuits-benchmark", "--models", "nothing"]).exit_code == 2


def test_a_projection_reads_pixels_or_logits() -> None:
    image = torch.tensor([[[[0.5, 0.75]]]])
    weights = torch.tensor([[[[1.0, 2.0]]]])
    assert Projection(("a",), weights)(image).item() == pytest.approx(2.0)
    assert Projection(("a",), weights, torch.tensor([[[0.5, 0.5]]]))(image).item() == pytest.approx(0.5)
    assert Projection(("a",), weights, logits=True)(image).item() == pytest.approx(2 * np.log(3), rel=1e-5)
