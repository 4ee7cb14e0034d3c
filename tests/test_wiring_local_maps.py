"""What each node adds to what a layer takes in, where layers form no chain: closed forms and plain hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from branching_runs import MODELS, Hooked, masked, pairs_for, position, readout_of, the_run
from branching_vaes import FarGateVAE, GatedResidualVAE, GatesBeforeAdditionVAE, LayerNormVAE
from torch import Tensor, nn
from vaes import MLPVAE, seeded

from nnsight_vae.circuits import score_edges
from nnsight_vae.errors import CircuitError


@pytest.mark.parametrize("sampled", [False, True], ids=["mean", "sampled"])
@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_what_a_layer_takes_in_sum_to_its_change(name: str, sampled: bool) -> None:
    vae, pairs = pairs_for(MODELS[name], sampled=sampled)
    wiring, run = the_run(vae, pairs)
    for reader in range(len(wiring.columns) + 1):
        parts = [masked(part, run, reader) for part in run.parts(reader)]
        torch.testing.assert_close(torch.stack(parts).sum(0), run.taken(reader), rtol=1e-9, atol=1e-12)


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
