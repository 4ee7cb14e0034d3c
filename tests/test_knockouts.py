"""Knock-outs of a circuit's parts: completeness gaps and the worth of each part, on models wired by hand."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn
from wired import PIXEL, WiredVAE, true_circuit, wired, wired_pairs

import nnsight_vae as nv
from nnsight_vae.circuits import knockouts
from nnsight_vae.circuits.evaluation import knocked_out
from nnsight_vae.errors import CircuitError
from nnsight_vae.stats.intervals import mean_interval

__all__ = ["true_circuit", "wired"]  # fixtures


def backed_up() -> nn.Module:
    """Input 0 reaches output 0 through enc[0]; enc[1] takes over where enc[0] is silent."""
    model = WiredVAE()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.enc.weight[0, 0] = model.enc.weight[1, 0] = 1.0
        model.fc_mu.weight[0, 0], model.fc_mu.weight[1, 0], model.fc_mu.weight[1, 1] = 1.0, -1.0, 1.0
        model.dec.weight[0, 0] = model.dec.weight[1, 1] = 1.0  # dec[1] = relu(enc[1] - enc[0])
        model.out.weight[0, 0] = model.out.weight[0, 1] = 1.0
    return model


def test_a_backup_that_speaks_only_where_the_circuit_is_silent_shows_in_the_completeness_gap() -> None:
    vae, pairs = nv.VAE(backed_up()), wired_pairs()
    path = ["factor:f", "input[0]", "enc[0]", "latent.z[0]", "dec[0]", "output[0]", "readout:pixel[0]"]
    circuit = nx.DiGraph(list(itertools.pairwise(path)))
    found = knockouts(vae, circuit, pairs, PIXEL, subsets=20)
    total = float((pairs.source - pairs.base)[:, 0].mean())
    assert found.total[0] == pytest.approx(total, rel=1e-5)
    assert found.gaps[0, 0] == pytest.approx(0.0, abs=1e-6)  # as it is the circuit does what the model does
    assert found.gaps[1:, 0].max() == pytest.approx(total, rel=1e-4)  # without it the backup does
    assert found.gaps[1, 0] == pytest.approx(total, rel=1e-4)
    assert found.knocked_out[:2].tolist() == [0, 4]  # edges between units only
    assert set(found.knocked_out.tolist()) == {0, 1, 2, 3, 4}  # sets of every size are tried
    assert (len(found.gaps), found.defined) == (22, (True,))


def test_a_part_is_put_back_where_the_context_lacks_it(monkeypatch) -> None:
    vae, pairs = nv.VAE(backed_up()), wired_pairs()
    primary, backup = "input[0] -> enc[0]", "input[0] -> enc[1]"
    path = ["input[0]", "enc[1]", "latent.z[1]", "dec[1]", "output[0]"]
    both = [
        *itertools.pairwise(
            ["factor:f", "input[0]", "enc[0]", "latent.z[0]", "dec[0]", "output[0]", "readout:pixel[0]"]
        )
    ]
    circuit = nx.DiGraph([*both, *itertools.pairwise(path), ("enc[0]", "latent.z[1]")])
    alone = knockouts(vae, circuit, pairs, PIXEL, subsets=0, contexts=0)
    worth = dict(zip(alone.parts, alone.worth[:, 0], strict=True))
    assert worth[primary] == worth[backup] == pytest.approx(0.0, abs=1e-6)  # either does without the other
    members = list(alone.parts)
    context = np.array([name in (primary, backup) for name in members])
    monkeypatch.setattr(knocked_out, "_draw", lambda rng, n, times: iter([context] * times))
    found = knockouts(vae, circuit, pairs, PIXEL, subsets=0, contexts=1)
    worth = dict(zip(found.parts, found.worth[:, 0], strict=True))
    total = float((pairs.source - pairs.base)[:, 0].mean())
    assert worth[primary] == pytest.approx(total, rel=1e-4)  # with the backup out it is worth all
    assert worth[backup] == pytest.approx(total, rel=1e-4)


def test_the_worth_of_a_part_is_its_largest_over_contexts(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    decoy = true_circuit.copy()
    decoy.add_edge("input[2]", "enc[4]")
    found = knockouts(vae, decoy, pairs, readout, contexts=0, subsets=0)
    worth = dict(zip(found.parts, found.worth[:, 0] / found.total[0], strict=True))
    expected = {
        "input[0] -> enc[0]": 1 / 1.4,
        "enc[1] -> latent.z[0]": 0.4 / 1.4,
        "latent.z[0] -> dec[0]": 1 / 0.72,
        "dec[1] -> output[0]": 0.28 / 0.72,
        "input[2] -> enc[4]": 0.0,
    }
    for part, value in expected.items():
        assert worth[part] == pytest.approx(value, rel=1e-4, abs=1e-9)
    nodes = knockouts(vae, decoy, pairs, readout, parts="node", contexts=3)
    by_node = dict(zip(nodes.parts, nodes.worth[:, 0] / nodes.total[0], strict=True))
    assert set(nodes.parts) == set(decoy.nodes) - {"factor:f", "readout:pixel[0]"}
    assert by_node["enc[4]"] == 0.0
    assert by_node["enc[1]"] >= 0.4 / 1.4 - 1e-4
    more = knockouts(vae, decoy, pairs, readout, contexts=6)
    assert (more.worth >= found.worth - 1e-7).all()
    dec1 = more.parts.index("dec[1] -> output[0]")
    assert (
        more.worth[dec1, 0] <= found.total[0] * 0.28 / 0.72 + 1e-6
    )  # no context makes it larger than all of its input does
    assert "completeness gap" in str(more)
    assert more.to_frame().share.max() == pytest.approx(worth["latent.z[0] -> dec[0]"], rel=1e-3)


def test_gaps_and_worths_have_intervals_over_pairs_of_their_own_sets(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    found = knockouts(vae, true_circuit, pairs, readout, subsets=4, contexts=2)
    for value, low, high in [
        (found.gaps, found.gaps_low, found.gaps_high),
        (found.worth, found.worth_low, found.worth_high),
    ]:
        assert (low <= value + 1e-9).all()
        assert (value <= high + 1e-9).all()
    # without enc[0] the effect loses 1 / 1.4 in every pair, so the interval is that of the total effect
    total = (pairs.source - pairs.base)[:, 0].double().numpy() * 1.4 * 0.72
    alone = knockouts(vae, true_circuit, pairs, readout, subsets=0, contexts=0)
    part = alone.parts.index("input[0] -> enc[0]")
    ends = np.array(mean_interval(total[None] / 1.4))[:, 0]
    got = [alone.worth_low[part, 0], alone.worth_high[part, 0]]
    assert got == pytest.approx(ends.tolist(), rel=1e-3)
    frame = alone.to_frame().set_index("part")
    assert frame.loc["input[0] -> enc[0]", ["ci_low", "ci_high"]].tolist() == got
    assert f"[{alone.gaps_low[0, 0]:.3g}, {alone.gaps_high[0, 0]:.3g}] as it is" in str(alone)


def test_a_difference_that_could_be_of_either_sign_has_an_interval_from_0() -> None:
    differences = np.stack([np.linspace(-1, 1.2, 40), np.linspace(-3, -1, 40)])[:, None]
    value, low, high = knocked_out._sizes(differences, None, None, seed=0)
    ends = np.array(mean_interval(differences[:, 0]))
    assert value[:, 0] == pytest.approx([0.1, 2.0])
    assert low[:, 0] == pytest.approx([0.0, -ends[1, 1]])
    assert high[:, 0] == pytest.approx([ends[1, 0], -ends[0, 1]])


@pytest.mark.parametrize("options", [{"parts": "layer"}, {"subsets": -1}, {"contexts": 1.5}])
def test_bad_options_of_knockouts_are_refused(wired, true_circuit, options: dict) -> None:
    with pytest.raises(CircuitError, match=next(iter(options))):
        knockouts(wired[0], true_circuit, *wired[1:], **options)
    with pytest.raises(CircuitError, match="no edge between units"):
        knockouts(wired[0], nx.DiGraph(), *wired[1:])
