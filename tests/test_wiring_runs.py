"""Runs of some edges alone where layers form no chain, against forwards that are masked by hand."""

from __future__ import annotations

import pytest
import torch
from branching_runs import MODELS, kept_everywhere, masked, pairs_for, position, readout_of, the_run
from torch import Tensor

from nnsight_vae.circuits.wiring.contraction import contracted
from nnsight_vae.circuits.wiring.cuts import cuts_of
from nnsight_vae.circuits.wiring.pair_run import PairRun
from nnsight_vae.circuits.wiring.partial import reached_with, run_with
from nnsight_vae.circuits.wiring.rest import Rest


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
