"""Path-specific effects: products of coefficients, a worked non-linear example, and nested counterfactuals done literally with hooks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hooks import literal
from hypothesis import given, settings, strategies as st
from linear import LinearReadout, linear, random_linear_vae
from mediated import TwoPixels, pairs_of
from torch import Tensor, nn

import nnsight_vae as nv
from nnsight_vae.levels import paths


def subsets(k: int) -> list[tuple[int, ...]]:
    return [path for length in range(k + 1) for path in combinations(range(k), length)]


@given(
    st.integers(0, 10_000),
    st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=3, max_size=3),
    st.sets(st.integers(0, 2), min_size=1),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_in_a_linear_model_path_effects_are_products_of_coefficients_and_add_up_to_te(seed, units, which):
    """Through a layer, a path takes either the rows of its mediators or all the other rows."""
    model = random_linear_vae(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    base, source = (torch.randn(6, 6, generator=generator, dtype=torch.double) for _ in range(2))
    read = LinearReadout(torch.randn(2, 6, generator=generator, dtype=torch.double))
    weights = [layer.weight.detach() for layer in (model.enc, model.mu, model.dec)]
    layers = sorted(which)
    mediators = [nv.Selection(("enc", "latent.z", "dec")[layer], tuple(units[layer])) for layer in layers]
    found = nv.path_effects(nv.VAE(model), nv.Pairs(base, source), mediators, readout=read)
    for row, path in enumerate(subsets(len(layers))):
        change = source - base
        for layer, weight in enumerate(weights):
            change = change @ weight.T
            if layer in layers:
                at_mediators = torch.zeros(weight.shape[0], dtype=torch.bool)
                at_mediators[list(units[layer])] = True
                change = change * (at_mediators if layers.index(layer) in path else ~at_mediators)
        expected = (change @ (read.c @ model.out.weight.detach()).T).T.numpy()
        np.testing.assert_allclose(found.values[row], expected, atol=1e-10)
    assert np.abs(found.values[-1]).max() < 1e-10
    total = (source - base) @ (read.c @ model.out.weight.detach() @ weights[2] @ weights[1] @ weights[0]).T
    np.testing.assert_allclose(found.values[:-1].sum(0), total.detach().T.numpy(), atol=1e-10)


class Product(nn.Module):
    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return x * m


class Worked(nn.Module):
    """m1 = 2 x;  m2 = x m1;  y = x + m1 m2: every path is there, and they interact."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = linear(torch.tensor([[2.0]])), Product()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m1 = self.one(x)
        mu = torch.cat([x, m1, self.two(x, m1)], 1)
        return mu, torch.zeros_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :1] + z[:, 1:2] * z[:, 2:]


class Whole:
    names = ("y",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction


def test_a_worked_example_with_interactions():
    b, s = torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 2 - 1
    found = nv.path_effects(nv.VAE(Worked()), nv.Pairs(b, s), ["one", "two"], readout=Whole())
    expected = {
        "X -> Y": s - b,
        "X -> one -> Y": (2 * s - 2 * b) * 2 * b**2,
        "X -> two -> Y": 2 * b * (s * 2 * b - 2 * b**2),
        "X -> one -> two -> Y": 2 * b * (b * 2 * s - 2 * b**2),
    }
    expected["interaction"] = (s + 4 * s**3) - (b + 4 * b**3) - sum(expected.values())
    assert found.units == tuple(expected)
    assert found.targets == ("y",)
    for unit, values in zip(found.units, found.values, strict=True):
        np.testing.assert_allclose(values[0], expected[unit][:, 0].numpy(), atol=1e-12, err_msg=unit)
    assert np.abs(found.values[-1]).max() > 0.1


Set_ = list[tuple[str, list[int]]]


def nested(model: nn.Module, pairs: nv.Pairs, sets: list[Set_], path: tuple[int, ...]) -> np.ndarray:
    """The definition, recursively and one run at a time: a mediator's value as one path brings it there."""

    def run(x: Tensor, held: dict[str, list[tuple[list[int], Tensor]]], keep: str | None = None) -> Tensor:
        kept: list[Tensor] = []

        def write(site: str):
            def change(value: Tensor) -> Tensor:
                value = value.clone()
                for units, new in held.get(site, []):
                    value[:, units] = new
                kept.extend([value.clone()] if site == keep else [])
                return value

            return change

        sites = {*held, *([keep] if keep else [])}
        output = literal(model, x, {site: write(site) for site in sites}, pairs.eps)
        return kept[0] if keep else TwoPixels(3, 11)(output)

    def held_before(node: int, prefix: tuple[int, ...]) -> dict[str, list[tuple[list[int], Tensor]]]:
        held: dict[str, list[tuple[list[int], Tensor]]] = {}
        for i in range(node):
            for site, units in sets[i]:
                arrived = carried(i, prefix[:-1], site) if prefix and i == prefix[-1] else run(pairs.base, {}, site)
                held.setdefault(site, []).append((units, arrived[:, units]))
        return held

    def carried(node: int, prefix: tuple[int, ...], site: str) -> Tensor:
        return run(pairs.base if prefix else pairs.source, held_before(node, prefix), site)

    return run(pairs.base if path else pairs.source, held_before(len(sets), path)).numpy().T


CHAINS = {
    "mlp": [[("enc1", [0, 3, 5])], [("enc2", [1, 2])], [("latent.z", [0])], [("dec1", [2, 7, 9])]],
    "conv": [[("encoder.0", [1])], [("encoder.2", [0, 2]), ("fc_mu", [0])], [("decoder.3", [0, 1])]],
    "batchnorm": [[("encoder.1", [0, 1])], [("encoder.3", [5])], [("latent.mu", [0, 2])]],
    "residual": [[("stem", [0])], [("block.first", [1, 2])], [("latent.z", [0]), ("grow", [1])]],
    "parallel": [[("enc2", [0, 1])], [("enc2", [4])], [("latent.mu", [0])], [("latent.logvar", [1, 2])]],
}


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_path_effect_equals_nested_runs_with_hooks(chain, noisy):
    sets = CHAINS[chain]
    vae, pairs = pairs_of("mlp" if chain == "parallel" else chain, noisy)
    keys = [[f"{site}[{','.join(map(str, units))}]" for site, units in each] for each in sets]
    found = nv.path_effects(vae, pairs, keys, readout=TwoPixels(3, 11))
    base, source = (
        TwoPixels(3, 11)(literal(vae.module, x, {}, pairs.eps)).numpy().T for x in (pairs.base, pairs.source)
    )
    names = [" + ".join(str(vae.sites.select(key)) for key in each) for each in keys]
    for row, path in enumerate(subsets(len(sets))):
        assert found.units[row] == " -> ".join(["X", *(names[i] for i in path), "Y"])
        np.testing.assert_allclose(found.values[row], nested(vae.module, pairs, sets, path) - base, atol=1e-10)
    np.testing.assert_allclose(found.values.sum(0), source - base, atol=1e-12)
    assert found.units[-1] == "interaction"
    assert np.abs(found.values[-1]).max() > 1e-9
    if chain == "parallel":  # nothing leads from a unit to another of its site, nor from the mean to the variance
        none = [
            row
            for row, unit in enumerate(found.units)
            if "enc2[0:2] -> enc2[4]" in unit or "mu[0] -> latent.logvar" in unit
        ]
        assert len(none) == 7
        assert np.abs(found.values[none]).max() < 1e-12


def test_one_mediator_has_the_paths_of_mediate():
    vae, pairs = pairs_of("conv", noisy=True)
    m = nv.mediate(vae, pairs, ["encoder.2[0:3]", "latent.z[1]"], readout=TwoPixels(3, 11))
    found = nv.path_effects(vae, pairs, [["encoder.2[0:3]", "latent.z[1]"]], readout=TwoPixels(3, 11))
    assert found.units == ("X -> Y", "X -> encoder.2[0:3] + latent.z[1] -> Y", "interaction")
    for row, quantity in zip(found.values, (m.nde, m.pnie, m.interaction), strict=True):
        np.testing.assert_allclose(row, quantity.values[0], atol=1e-12)


def test_whole_layers_leave_one_path():
    vae, pairs = pairs_of("mlp")
    found = nv.path_effects(vae, pairs, ["enc1", "latent.z", "dec1"], readout=TwoPixels(3, 11))
    te = nv.mediate(vae, pairs, "enc1", readout=TwoPixels(3, 11)).te
    through = found.units.index("X -> enc1 -> latent.z -> dec1 -> Y")
    np.testing.assert_allclose(found.values[through], te.values[0], atol=1e-12)
    assert np.abs(np.delete(found.values, through, axis=0)).max() < 1e-12


def test_paths_at_positions_are_parts_of_the_layer():
    """Of a convolution to the next: from the place (0, 0) only what lies under the kernel is reached."""
    vae, pairs = pairs_of("conv")
    near, far = (
        nv.path_effects(vae, pairs, ["encoder.0[0:4]@0,0", f"encoder.2[0:6]@{place}"], readout=TwoPixels(3, 11))
        for place in ("0,0", "3,3")
    )
    both = "X -> encoder.0[0:4]@0,0 -> encoder.2[0:6]@{} -> Y"
    assert np.abs(near.values[near.units.index(both.format("0,0"))]).max() > 1e-6
    assert np.abs(far.values[far.units.index(both.format("3,3"))]).max() < 1e-12


def test_reversed_pairs_add_up_to_minus_te_and_equal_pairs_to_nothing():
    vae, pairs = pairs_of("residual", noisy=True)
    keys = ["stem[0:2]", "latent.z[1]"]
    forth, back = (nv.path_effects(vae, p, keys, readout=TwoPixels(3, 11)) for p in (pairs, pairs.reversed()))
    np.testing.assert_allclose(forth.values.sum(0), -back.values.sum(0), atol=1e-12)
    assert np.abs(forth.values[:-1] + back.values[:-1]).max() > 1e-6  # other references, other path effects
    same = nv.Pairs(pairs.base, pairs.base.clone(), eps=pairs.eps)
    assert (nv.path_effects(vae, same, keys, readout=TwoPixels(3, 11)).values == 0).all()


def test_pairs_do_not_see_each_other():
    vae, pairs = pairs_of("conv")
    keys = ["encoder.0[0]", "encoder.2[1]", "latent.z[0:2]"]
    together = nv.path_effects(vae, pairs, keys, readout=TwoPixels(3, 11)).values
    order = torch.tensor([2, 0, 3, 1])
    np.testing.assert_allclose(
        nv.path_effects(vae, pairs[order], keys, readout=TwoPixels(3, 11)).values, together[:, :, order], atol=1e-12
    )
    alone = np.concatenate(
        [nv.path_effects(vae, pairs[i], keys, readout=TwoPixels(3, 11)).values for i in range(4)], axis=2
    )
    np.testing.assert_allclose(alone, together, atol=1e-12)


def test_pairs_that_are_followed_a_few_at_a_time_give_the_same(monkeypatch):
    vae, pairs = pairs_of("conv", noisy=True)
    keys = ["encoder.0[0]", ["encoder.2[1]", "fc_mu[0]"], "latent.z[0:2]"]
    together = nv.path_effects(vae, pairs, keys, readout=TwoPixels(3, 11))
    numbers = 64 + 16 + 1 + 2
    for bound in (1, 3 * 4 * numbers * 8):  # one pair at a time; three of the four
        monkeypatch.setattr(paths, "CARRIED_BYTES", bound)
        seen: list[int] = []
        monkeypatch.setattr(paths._Paths, "outcomes", counted(paths._Paths.outcomes, seen))
        apart = nv.path_effects(vae, pairs, keys, readout=TwoPixels(3, 11))
        np.testing.assert_allclose(apart.values, together.values, atol=1e-12)
        assert seen == ([1] * 4 if bound == 1 else [3, 1])
        monkeypatch.undo()


def counted(method, seen: list[int]):
    def outcomes(self, readout):
        seen.append(len(self.pairs))
        return method(self, readout)

    return outcomes


def test_what_is_read_may_be_the_latent():
    vae, pairs = pairs_of("mlp")
    found = nv.path_effects(vae, pairs, ["enc1[0:4]", "enc2[0:4]"], readout=nv.readouts.Latents(4))
    te = nv.mediate(vae, pairs, "enc1", readout=nv.readouts.Latents(4)).te
    np.testing.assert_allclose(found.values.sum(0), te.values[0], atol=1e-12)


def test_results_save_test_and_select_as_any_effects_do(tmp_path):
    vae, pairs = pairs_of("mlp", n=12)
    found = nv.path_effects(vae, pairs, ["enc1[0:8]", "latent.z"], readout=TwoPixels(3, 11))
    found.save(tmp_path / "paths.npz")
    assert nv.Effects.load(tmp_path / "paths.npz").units == found.units
    assert found.provenance["mediators"] == ["enc1[0:8]", "latent.z"]
    assert found.select("X -> latent.z -> Y", "b").values.shape == (1, 1, 12)
    frame = found.to_frame()
    assert len(frame) == 10
    assert list(frame.site[::2]) == list(found.units)  # a path is no unit of a site
    assert frame["index"].isna().all()


def test_sets_that_interleave_have_no_sequence():
    vae, pairs = pairs_of("mlp")
    read = nv.readouts.Pixels((20,))
    with pytest.raises(nv.InterventionError, match="does not come before"):
        nv.path_effects(vae, pairs, [["enc1[0]", "latent.z[0]"], "enc2[0]"], readout=read)
    nv.path_effects(vae, pairs, [["enc1[0]", "enc2[0]"], "latent.z[0]"], readout=read)
