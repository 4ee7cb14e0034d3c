"""Was it learned? The pipeline null: what it compares, what it counts, and that the model stays as it was."""

from __future__ import annotations

import copy
from functools import partial

import networkx as nx
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn
from vaes import ConvVAE, images, seeded

import nnsight_vae as nv
from nnsight_vae.circuits import extract_circuit, pipeline_null, reinitialised
from nnsight_vae.circuits.structure.unlearned import shuffled
from nnsight_vae.errors import AdapterError, CircuitError, DataError
from nnsight_vae.models import MLPVAE
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Latents


@pytest.fixture
def vae() -> nv.VAE:
    return nv.VAE(seeded(MLPVAE(image_shape=(1, 4, 4), latent=3, hidden=(5,))))


def pairs(n: int = 12) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    dark = torch.rand(n, 1, 4, 4, generator=generator) / 2
    return Pairs(dark, dark + 0.4 + 0.1 * torch.rand(n, 1, 1, 1, generator=generator), factor="light")


def value_of(weight: float):
    """An `extract` that makes a circuit of the model's weights alone, and the statistic that reads it."""

    def extract(vae: nv.VAE, pairs: Pairs, readout: object) -> nx.DiGraph:
        return nx.DiGraph(value=weight * float(next(vae.module.parameters()).detach().abs().sum()), n=len(pairs))

    return extract


def read(circuit: nx.DiGraph) -> float:
    return circuit.graph["value"]


def state_of(vae: nv.VAE) -> tuple:
    module = vae.module
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [(m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in module.modules()],
        [p.requires_grad for p in module.parameters()],
    )


def same(one: tuple, other: tuple) -> bool:
    weights = all(torch.equal(one[0][name], other[0][name]) for name in one[0] | other[0])
    return weights and one[1:] == other[1:]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_torchs_random_state_are_left_as_they_were(vae, fails):
    vae.module.train()
    next(vae.module.parameters()).requires_grad_(False)
    before, generator = state_of(vae), torch.random.get_rng_state()
    calls = []

    def statistic(circuit: nx.DiGraph) -> float:
        calls.append(1)
        if fails and len(calls) == 2:
            raise RuntimeError("stop")
        return len(circuit)

    try:
        pipeline_null(vae, pairs(), Latents(3), statistic, n=2, extract=partial(extract_circuit, nodes=2))
    except RuntimeError:
        assert fails
    assert same(state_of(vae), before)
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_untrained_models_have_new_weights_of_the_layers_own_initialisation(vae):
    reference = copy.deepcopy(vae.module)
    torch.manual_seed(5)
    for module in reference.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    twin = reinitialised(vae, 5)
    assert all(torch.equal(a, b) for a, b in zip(twin.module.parameters(), reference.parameters(), strict=True))
    assert reinitialised(vae, 5).fingerprint == twin.fingerprint != reinitialised(vae, 6).fingerprint
    assert twin.module is not vae.module


def test_batch_norm_statistics_are_forgotten_too():
    trained = nv.VAE(seeded(ConvVAE(norm=True)))
    twin = reinitialised(trained, 0)
    norms = [m for m in twin.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(torch.equal(m.running_var, torch.ones_like(m.running_var)) for m in norms)
    x = images(trained.module, 2)
    assert not torch.allclose(twin(x), trained(x))


class Scaled(MLPVAE):
    """A VAE with a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__(image_shape=(1, 4, 4), latent=3, hidden=(5,))
        self.gain = nn.Parameter(torch.ones(3))

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z * self.gain)


def test_a_module_that_cannot_be_reinitialised_is_named():
    vae = nv.VAE(Scaled())
    with pytest.raises(AdapterError, match=r"at the root.*\(Scaled\) has gain and no reset_parameters.*untrained="):
        pipeline_null(vae, pairs(), Latents(3), len, n=1)
    found = pipeline_null(
        vae,
        pairs(),
        Latents(3),
        read,
        n=2,
        shuffle=None,
        untrained=lambda vae, seed: nv.VAE(Scaled()),
        extract=value_of(1.0),
    )
    assert len(found.arms["untrained"].values) == 2


def test_p_values_count_the_model_among_its_null_circuits(vae):
    observed = float(next(vae.module.parameters()).detach().abs().sum())
    run = partial(pipeline_null, vae, pairs(), Latents(3), n=4, shuffle=None, extract=value_of(1.0))
    values = [float(next(reinitialised(vae, 3 + i).module.parameters()).detach().abs().sum()) for i in range(4)]
    for alternative, expected in (
        ("greater", (1 + sum(v >= observed for v in values)) / 5),
        ("less", (1 + sum(v <= observed for v in values)) / 5),
    ):
        found = run(read, seed=3, alternative=alternative)
        assert found.observed == pytest.approx(observed)
        assert found.arms["untrained"].values == pytest.approx(values)
        assert found.arms["untrained"].p == expected
    two = run(read, seed=3, alternative="two-sided").arms["untrained"].p
    assert two == pytest.approx(
        min(1.0, 2 * min((1 + sum(s * (v - observed) >= 0 for v in values)) / 5 for s in (1, -1)))
    )
    assert {
        round(p * 5)
        for p in (run(read, seed=3).arms["untrained"].p, run(lambda c: -read(c), seed=3).arms["untrained"].p)
    } == {1, 5}


def test_null_circuits_without_a_statistic_count_as_extreme_and_say_why(vae):
    counter = iter(range(100))

    def extract(model: nv.VAE, pairs: Pairs, readout: object) -> nx.DiGraph:
        i = next(counter)
        if i == 2:
            raise CircuitError("nothing to extract")
        return nx.DiGraph(value=None if i == 3 else 10.0 - i)

    found = pipeline_null(vae, pairs(), Latents(3), read, n=4, shuffle=None, extract=extract)
    arm = found.arms["untrained"]
    assert arm.values == (9.0, None, None, 6.0)
    assert arm.p == 3 / 5
    assert arm.undefined == ("no circuit: nothing to extract", "the statistic is None")
    assert "2 without a statistic count as extreme" in str(found)
    counter = iter(range(100))
    assert pipeline_null(
        vae, pairs(), Latents(3), read, n=4, shuffle=None, extract=extract, alternative="two-sided"
    ).arms["untrained"].p == pytest.approx(1.0)
    counter = iter([3, 1, 1, 1, 1])
    none = pipeline_null(vae, pairs(), Latents(3), read, n=4, shuffle=None, extract=extract)
    assert (none.observed, none.reason, none.arms["untrained"].p) == (None, "the statistic is None", None)


def test_shuffled_sources_keep_the_mean_change_and_no_pair():
    given = pairs()
    found = shuffled(given, "sources", 1)
    assert torch.equal(found.base, given.base)
    rows = [int(torch.nonzero((given.source == row).flatten(1).all(1))) for row in found.source]
    assert sorted(rows) == list(range(12))
    assert all(i != row for i, row in enumerate(rows))
    assert torch.allclose((found.source - found.base).mean(0), (given.source - given.base).mean(0), atol=1e-6)
    assert not torch.equal(shuffled(given, "sources", 2).source, found.source)


def test_orientation_is_left_to_chance_by_whole_clusters():
    given = pairs()
    given = Pairs(given.base, given.source, factor="light", groups=torch.arange(12) // 3)
    found = shuffled(given, "orientation", 0)
    flipped = [bool(torch.equal(found.base[i], given.source[i])) for i in range(12)]
    assert [torch.equal(found.source[i], given.base[i] if flipped[i] else given.source[i]) for i in range(12)] == [
        True
    ] * 12
    assert sum(flipped) == 6
    assert all(len(set(flipped[i : i + 3])) == 1 for i in range(0, 12, 3))


def test_shuffled_pairs_keep_their_ids_and_factors():
    given = nv.datasets.load("pendulum").pairs("angle", n=6, seed=0)
    found = shuffled(given, "sources", 0)
    order = [int(torch.nonzero((given.source == row).flatten(1).all(1))[0]) for row in found.source]
    assert torch.equal(found.source_factors, given.source_factors[order])
    assert torch.equal(found.base_factors, given.base_factors)
    assert found.factor == shuffled(given, "orientation", 0).factor == "angle"


def test_circuits_of_several_factors_reach_the_statistic_together(vae):
    named = {"light": pairs(12), "dark": pairs(8).reversed()}
    seen = []

    def statistic(circuits: dict) -> float:
        seen.append({factor: circuit.graph["n"] for factor, circuit in circuits.items()})
        return 1.0

    found = pipeline_null(vae, named, Latents(3), statistic, n=2, shuffle="orientation", extract=value_of(1.0))
    assert seen == [{"light": 12, "dark": 8}] * 5
    assert set(found.arms) == {"untrained", "orientation"}
    assert {arm.p for arm in found.arms.values()} == {1.0}
    assert len(found.to_frame()) == 5


def test_the_same_seed_gives_the_same_null_circuits(vae):
    run = partial(
        pipeline_null, vae, pairs(), Latents(3), len, n=2, extract=partial(extract_circuit, nodes=2, method="eap")
    )
    a, b = run(seed=4), run(seed=4)
    assert {name: arm.values for name, arm in a.arms.items()} == {name: arm.values for name, arm in b.arms.items()}
    assert a.observed == len(extract_circuit(vae, pairs(), Latents(3), method="eap"))
    assert "untrained" in str(a)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"n": 0}, CircuitError, "n=0"),
        ({"n": 2.0}, CircuitError, "n=2.0"),
        ({"shuffle": "labels"}, CircuitError, "shuffle='labels'"),
        ({"alternative": "larger"}, CircuitError, "alternative='larger'"),
        ({"statistic": lambda circuit: float("nan")}, CircuitError, "statistic returned nan"),
        ({"statistic": lambda circuit: "many"}, CircuitError, "statistic returned 'many'"),
        ({"pairs": pairs(1)}, DataError, "fewer than two"),
        ({"pairs": {}}, DataError, "fewer than two"),
        ({"pairs": [1]}, DataError, "where pairs belong"),
        ({"untrained": lambda vae, seed: vae.module}, AdapterError, "wrap it first"),
    ],
)
def test_bad_input_is_refused(vae, arguments, error, says):
    given = {"pairs": pairs(), "readout": Latents(3), "statistic": read, "n": 1, "extract": value_of(1.0), **arguments}
    with pytest.raises(error, match=says):
        pipeline_null(vae, **given)


def test_an_untrained_network_passes_a_null_that_its_layers_do_not_explain():
    """What the pipeline null is for: a statistic that any network of this shape has is not called learned."""
    trained = nv.VAE(MLPVAE(image_shape=(1, 4, 4), latent=3, hidden=(5,)))
    p = [
        pipeline_null(
            reinitialised(trained, 100 + i),
            pairs(),
            Latents(3),
            read,
            n=9,
            shuffle=None,
            seed=1000 * i,
            extract=value_of(1.0),
        )
        .arms["untrained"]
        .p
        for i in range(30)
    ]
    assert sum(each <= 0.1 for each in p) <= binom.ppf(0.999, 30, 0.1)
    assert sum(each <= 0.5 for each in p) >= binom.ppf(0.001, 30, 0.5)
