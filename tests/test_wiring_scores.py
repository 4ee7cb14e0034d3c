"""Scores of edges where layers form no chain: complete at every level, and equal to what is computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from branching_runs import MODELS, SMOOTH, Hooked, pairs_for, readout_of
from torch import Tensor

from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.wiring.cuts import cuts_of
from nnsight_vae.circuits.wiring.wiring import Wiring


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
