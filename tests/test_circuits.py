"""Faithfulness of circuits against literal masked forwards and closed forms, and what no circuit can be made of."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from literal_edges import HALVES, Literal, SmoothVAE, conv_layers, pairs_for
from torch import Tensor, nn
from vaes import ConvVAE, images, seeded
from wired import wired

import nnsight_vae as nv
from nnsight_vae.circuits import Mass, circuit_from, extract_circuit, faithfulness, score_edges
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels

__all__ = ["wired"]  # fixtures


# ---------------------------------------------------------------------------------- identities
def test_pairs_that_do_nothing_score_zero_and_have_no_circuit() -> None:
    model = seeded(ConvVAE(), 4)
    vae, x = nv.VAE(model), images(model, 4)
    scores = score_edges(vae, Pairs(x, x.clone()), HALVES)
    assert not scores.values.any()
    assert {row.error for row in scores.completeness} == {None}
    circuit = circuit_from(scores)
    assert len(circuit) == 0
    assert set(circuit.graph["left_out"]) == {"top", "left"}


# ---------------------------------------------------------------------------------- faithfulness
def test_the_true_circuit_is_wholly_faithful_and_parts_of_it_in_closed_form(wired) -> None:
    vae, pairs, readout = wired
    circuit = extract_circuit(vae, pairs, readout, select=Mass(1.0))
    whole = faithfulness(vae, circuit, pairs, readout)
    assert whole.score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.node_score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.curve[-1] == (10, {"pixel[0]": pytest.approx(1.0, abs=1e-5)})
    curve = {size: values["pixel[0]"] for size, values in whole.curve}
    assert curve[6] == pytest.approx(1.0 / (1.4 * 0.72), rel=1e-4)  # the strongest route alone
    assert curve[8] == pytest.approx(
        1.0 / 0.72, rel=1e-4
    )  # then the .4 one through enc[1], before the .28 through dec[1]
    cut = circuit.copy()
    cut.remove_edge("enc[1]", "latent.z[0]")
    part = faithfulness(vae, cut, pairs, readout, sizes=())
    assert part.score["pixel[0]"].value == pytest.approx(1.0 / 1.4, rel=1e-4)
    assert part.node_score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert part.score["pixel[0]"].low <= part.score["pixel[0]"].value <= part.score["pixel[0]"].high
    cut = circuit.copy()
    cut.remove_node("dec[1]")  # it lowered the output
    assert faithfulness(vae, cut, pairs, readout).score["pixel[0]"].value == pytest.approx(1 / 0.72, rel=1e-4)
    cut = circuit.copy()
    cut.remove_edge("output[0]", "readout:pixel[0]")
    assert faithfulness(vae, cut, pairs, readout).score["pixel[0]"].value == pytest.approx(0.0, abs=1e-6)
    assert "10 of" in str(whole)
    assert "pixel[0]" in repr(whole)


def test_any_edge_set_of_a_conv_vae_equals_a_literal_masked_forward() -> None:
    model = seeded(ConvVAE(), 6)
    vae, pairs = nv.VAE(model), pairs_for(model, 4)
    scores = score_edges(vae, pairs, HALVES)
    rng = np.random.default_rng(0)
    kept = [edge for edge in zip(scores.sources, scores.targets, strict=True) if rng.random() < 0.7]
    kept.remove(("factor:f", "input[1]"))
    circuit = nx.DiGraph(schema="nnsight-vae/circuit@1")
    circuit.add_edges_from(kept)
    result = faithfulness(vae, circuit, pairs, HALVES, sizes=())

    literal, edges = Literal(model, pairs, HALVES), set(kept)
    base = {path: literal.taken_and_given(pairs.base, path) for path, *_ in conv_layers(norm=False)}
    with torch.no_grad():
        plain = model.eval().decode(model.encode(pairs.base)[0])
        x = pairs.base.clone()
        for c in range(3):
            if ("factor:f", f"input[{c}]") in edges:
                x[:, c] = pairs.source[:, c]
        hooks, before = [], "input"
        for path, site, ports, units in conv_layers(norm=False):

            def only(module, args, out, path=path, before=before, site=site, ports=ports, units=units):
                taken, given = base[path]
                total = given.clone()
                for u in range(taken.shape[1] // ports):
                    swapped = taken.clone()
                    swapped[:, u * ports : (u + 1) * ports] = args[0][:, u * ports : (u + 1) * ports]
                    change = type(module).forward(module, swapped) - given
                    for v in range(given.shape[1] // units):
                        if (f"{before}[{u}]", f"{site}[{v}]") in edges:
                            total[:, v * units : (v + 1) * units] += change[:, v * units : (v + 1) * units]
                return total

            hooks.append(literal.modules[path].register_forward_hook(only))
            before = site
        reached = literal.model.decode(literal.model.encode(x)[0])
        for t, name in enumerate(HALVES.names):
            out = plain.clone()
            for c in range(3):
                if (f"output[{c}]", f"readout:{name}") in edges:
                    out[:, c] = reached[:, c]
            expected = float((HALVES(out) - HALVES(plain))[:, t].mean())
            assert result.circuit_effect[name] == pytest.approx(expected, rel=1e-3, abs=1e-6)


# ---------------------------------------------------------------------------------- refusals
class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_layer_that_is_not_what_it_says_is_refused_by_name() -> None:
    model = SmoothVAE()
    model.decoder[2] = Doubled(8, 12)
    model = seeded(model)
    with pytest.raises(CircuitError, match=r"'decoder.2' is not what a Doubled makes"):
        score_edges(nv.VAE(model), pairs_for(model), Pixels((12,))["pixel[0]"])


def test_a_foreign_circuit_is_refused(wired) -> None:
    vae, pairs, readout = wired
    foreign = nx.DiGraph([("factor:f", "input[0]"), ("input[0]", "encoder.9[3]")])
    with pytest.raises(CircuitError, match=r"'input\[0\]' -> 'encoder.9\[3\]'"):
        faithfulness(vae, foreign, pairs, readout)
    with pytest.raises(CircuitError, match="expected a circuit"):
        faithfulness(vae, nx.Graph(), pairs, readout)


def test_gates_that_are_shut_at_every_example_still_have_their_nodes(wired) -> None:
    vae, pairs, _ = wired
    columns = Wiring.of(vae, pairs.base).columns
    assert [len(column.nodes) for column in columns] == [4, 6, 2, 5, 4]
