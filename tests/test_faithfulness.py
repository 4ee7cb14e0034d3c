"""Evaluation of circuits: scores of the wired model in closed form, areas by hand, results and files."""

from __future__ import annotations

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn
from wired import PIXEL, TRUE_EDGES, true_circuit, wired

import nnsight_vae as nv
from nnsight_vae.circuits import Faithfulness, faithfulness, score_edges
from nnsight_vae.circuits.evaluation.curves import checked_sizes, curve_areas, sizes_for
from nnsight_vae.circuits.evaluation.edge_sets import EdgeSets
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels
from nnsight_vae.stats.intervals import bootstrap_ratio_interval

__all__ = ["true_circuit", "wired"]  # fixtures


# ---------------------------------------------------------------------------------- scores
def test_a_circuit_and_the_rest_of_the_model_share_out_the_effect(wired, true_circuit) -> None:
    whole = faithfulness(*(wired[0], true_circuit), *wired[1:])
    assert whole.score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.completeness["pixel[0]"].value == 0.0
    only_strong = true_circuit.edge_subgraph([e for e in TRUE_EDGES if not {"enc[1]", "dec[1]"} & set(e)]).copy()
    part = faithfulness(wired[0], only_strong, *wired[1:])
    assert part.score["pixel[0]"].value == pytest.approx(1 / (1.4 * 0.72), rel=1e-4)
    assert part.completeness["pixel[0]"].value == pytest.approx(
        0.4 * -0.28 / (1.4 * 0.72), rel=1e-4
    )  # the weak route alone
    middle = nx.DiGraph([("latent.z[0]", "dec[0]")])
    assert faithfulness(wired[0], middle, *wired[1:]).completeness["pixel[0]"].value == pytest.approx(
        -0.28 / 0.72, rel=1e-4
    )


def test_an_empty_circuit_has_faithfulness_0_and_the_whole_model_1(wired) -> None:
    vae, pairs, readout = wired
    empty = faithfulness(vae, nx.DiGraph(), pairs, readout)
    assert (empty.score["pixel[0]"].value, empty.completeness["pixel[0]"].value) == (0.0, pytest.approx(1.0, abs=1e-5))
    assert empty.curve == ()
    whole = faithfulness(vae, nx.DiGraph(list(EdgeSets.of(vae, pairs, readout).edges)), pairs, readout)
    assert whole.score["pixel[0]"].value == pytest.approx(1.0, abs=1e-5)
    assert whole.completeness["pixel[0]"].value == 0.0


class Additive(nn.Module):
    """Four inputs, each on a line of its own to output 0: effects of edges add up, and none is negative."""

    image = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.fc_mu, self.fc_logvar, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.fc_mu.weight.copy_(torch.eye(4))
            self.out.weight[0] = torch.tensor([4.0, 1.0, 3.0, 2.0])

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc_mu(x), self.fc_logvar(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(z)


def test_the_curve_rises_line_by_line_to_the_whole_of_an_additive_model() -> None:
    vae = nv.VAE(Additive())
    base = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(base, base + 1.0, factor="f")
    scores = score_edges(vae, pairs, PIXEL)
    strong = nx.DiGraph(
        [
            ("factor:f", "input[0]"),
            ("input[0]", "latent.z[0]"),
            ("latent.z[0]", "output[0]"),
            ("output[0]", "readout:pixel[0]"),
        ]
    )
    n = len(scores)
    result = faithfulness(vae, strong, pairs, PIXEL, scores=scores, sizes=range(1, n))
    f = [values["pixel[0]"] for _, values in result.curve]
    assert [size for size, _ in result.curve] == list(range(1, n + 1))
    assert (f[2], f[3]) == (0.0, pytest.approx(0.4, rel=1e-5))
    assert f == sorted(f)
    assert sorted({round(value, 4) for value in f}) == [
        0.0,
        0.4,
        0.7,
        0.9,
        1.0,
    ]  # the next lines in order of their scores
    assert f[-1] == pytest.approx(1.0, abs=1e-6)
    steps = np.concatenate([[0.0], f])
    by_hand = sum((a + b) / 2 / n for a, b in itertools.pairwise(steps))
    assert result.cpr["pixel[0]"].value == pytest.approx(by_hand, rel=1e-6)
    assert result.cmd["pixel[0]"].value == pytest.approx(1 - by_hand, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The pairs change:nnsight_vae.errors.NnsightVaeWarning")
def test_an_undefined_score_says_why_and_so_do_areas_without_a_ranking(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    assert "scores=" in faithfulness(vae, true_circuit, pairs, readout).cpr["pixel[0]"].reason
    flipped = replace(pairs, base=pairs.base.clone(), source=pairs.source.clone())
    flipped.base[:15], flipped.source[:15] = pairs.source[:15], pairs.base[:15]
    result = faithfulness(vae, true_circuit, flipped, readout, scores=score_edges(vae, flipped, readout))
    for measure in (result.score, result.completeness, result.cpr, result.cmd):
        assert measure["pixel[0]"].value is None
        assert "contains 0" in measure["pixel[0]"].reason
    assert result.to_frame()["value"].isna().all()
    with pytest.raises(DataError, match="Nothing to draw"):
        result.plot()


def test_a_target_that_nothing_changes_is_undefined_beside_one_that_is(wired, true_circuit) -> None:
    vae, pairs, _ = wired
    both = Pixels((4,))[["pixel[0]", "pixel[3]"]]
    result = faithfulness(vae, true_circuit, pairs, both, scores=score_edges(vae, pairs, both))
    assert result.cpr["pixel[0]"].value > 0
    assert result.cpr["pixel[3]"].value is None
    assert "contains 0" in result.cpr["pixel[3]"].reason
    assert {values["pixel[3]"] for _, values in result.curve} == {None}


# ---------------------------------------------------------------------------------- areas
def test_areas_equal_their_integrals_by_hand() -> None:
    total = np.full((1, 6), 2.0)
    f = np.array([0.2, 0.5, 1.2, 1.0])
    found = curve_areas(f[:, None, None] * total, total, (1, 2, 4, 8), n_boot=10)
    assert found["cpr"].value[0] == pytest.approx(0.1 / 8 + 0.35 / 8 + 0.85 * 2 / 8 + 1.1 * 4 / 8)
    assert found["cmd"].value[0] == pytest.approx(0.9 / 8 + 0.65 / 8 + 0.35 * 2 / 8 + 0.1 * 4 / 8)
    assert found["log_cpr"].value[0] == pytest.approx((0.35 + 0.85 + 1.1) / 3)
    assert found["log_cmd"].value[0] == pytest.approx((0.65 + 0.35 + 0.1) / 3)
    one = curve_areas(f[2:3, None, None] * total, total, (8,), n_boot=10)
    assert (one["log_cpr"].value[0], one["cpr"].value[0]) == (pytest.approx(1.2), pytest.approx(0.6))


def test_intervals_of_areas_resample_clusters_and_keep_targets_apart() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    noise = rng.normal(0, 0.3, 20)[groups]
    total = np.stack([np.ones(200), 2 + noise])
    effects = np.stack([total * [[0.5], [0.8]] + noise, total])
    found = curve_areas(effects, total, (1, 2), groups)["cpr"]
    plain = curve_areas(effects, total, (1, 2))["cpr"]
    assert found.value == pytest.approx([(0.25 + 0.75 + noise.mean() * 1.0) / 2, found.value[1]], abs=1e-9)
    width, too_narrow = found.high - found.low, plain.high - plain.low
    assert (width > 2 * too_narrow).all()
    expected = 2 * 1.96 * noise[::10].std() / 20**0.5 / 2  # CPR moves by half of what f(1) does
    assert width[0] == pytest.approx(expected, rel=0.2)


def test_the_interval_of_an_area_is_that_of_the_ratio_of_means_it_is() -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(30) // 3
    total = 2 + rng.exponential(size=(2, 30))
    effects = np.stack([total * rng.random((2, 30)), total])
    found = curve_areas(effects, total, (1, 4), groups, n_boot=300, seed=5)["cpr"]
    area = effects[0] / 2 + 3 * total / 8  # trapezoids over 0, 1/4, 1: linear in the effects
    expected = bootstrap_ratio_interval(area, total, groups, n_boot=300, seed=5)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-10)
    np.testing.assert_allclose(found.value, area.mean(axis=1) / total.mean(axis=1), rtol=1e-10)


def test_sizes_grow_and_are_checked() -> None:
    assert sizes_for(0, 50, ranked=False) == ()
    assert sizes_for(3, 5000, ranked=True)[-2:] == (2500, 5000)
    assert checked_sizes([4, 2, 2], 10) == (2, 4)
    for wrong in ([0], [11], [True], [1.5]):
        with pytest.raises(CircuitError, match="from 1 to the 10"):
            checked_sizes(wrong, 10)


def test_a_ranking_must_score_this_model(wired, true_circuit) -> None:
    vae, pairs, readout = wired
    scores = score_edges(vae, pairs, Pixels((4,))["pixel[2]"])
    with pytest.raises(CircuitError, match="score every edge of this model"):
        faithfulness(vae, true_circuit, pairs, readout, scores=scores)


# ---------------------------------------------------------------------------------- results
def test_a_result_reads_well_and_survives_its_file(wired, true_circuit, tmp_path) -> None:
    vae, pairs, readout = wired
    grouped = replace(pairs, groups=torch.arange(30) // 2)
    result = faithfulness(vae, true_circuit, grouped, readout, scores=score_edges(vae, grouped, readout))
    text = str(result)
    for words in ("10 of", "30 pairs", "faithfulness  1 [1, 1]", "CPR", "unexplained", "latent: KL of mu"):
        assert words in text
    assert repr(result) == "Faithfulness(pixel[0]=1.0; 10 of 74 edges, 30 pairs)"
    result.save(tmp_path / "f.npz")
    again = Faithfulness.load(tmp_path / "f.npz")
    assert str(again) == text
    assert again.provenance["options"] == {"ablation": "base", "reference": None}
    np.testing.assert_array_equal(again.groups, result.groups)
    frame = result.to_frame()
    assert set(frame.measure) == {
        "faithfulness",
        "node_faithfulness",
        "completeness",
        "cpr",
        "cmd",
        "log_cpr",
        "log_cmd",
    }
    curve = result.curve_frame()
    assert curve.iloc[-1].share == 1.0
    assert curve.iloc[-1].f == pytest.approx(1.0, abs=1e-5)
    _, axes = result.plot()
    assert [line.get_label() for line in axes.get_lines()][2] == "pixel[0]"
    assert axes.get_xscale() == "log"
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="not a readable faithfulness file"):
        Faithfulness.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ablation": "noise"}, DataError, "ablation='noise' is unknown"),
        ({"reference": torch.rand(3, 4)}, DataError, "leave it out"),
        ({"sizes": (99,)}, CircuitError, "from 1 to the 10"),
    ],
)
def test_bad_options_are_refused(wired, true_circuit, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        faithfulness(wired[0], true_circuit, *wired[1:], **options)
