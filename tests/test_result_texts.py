"""Results of the causal questions: one line in a list, a table when printed, a frame with the same column names, a figure."""

import numpy as np
import pandas as pd
import pytest
import torch

import nnsight_vae as nv
from nnsight_vae.models import MLPVAE


@pytest.fixture(scope="module")
def data():
    return nv.datasets.load("pendulum")


@pytest.fixture(scope="module")
def vae():
    return nv.load("pendulum-labelled-vae")


@pytest.fixture(scope="module")
def factor_map(vae, data):
    return nv.causal.map_factors(vae, data, n=128)


@pytest.fixture(scope="module")
def comparison(vae, data, factor_map):
    return nv.causal.compare(nv.causal.factor_graph(vae, data, factor_map, through="inputs", n=64), data.graph)


def test_a_factor_map_counts_its_verdicts_in_one_line(factor_map):
    text = repr(factor_map)
    assert text.startswith("FactorMap(8 latents x 4 factors of pendulum: ")
    for verdict in set(factor_map.verdicts):
        assert f"{factor_map.verdicts.count(verdict)} {verdict}" in text
    assert "\n" not in text


def test_the_picture_of_a_factor_map_shows_every_size_with_its_interval_most_informative_latent_first(factor_map):
    _, axes = factor_map.plot()
    order = np.argsort(-factor_map.kl, kind="stable")
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        f"{factor_map.size[k, j]:.2f}\n[{factor_map.low[k, j]:.2f}, {factor_map.high[k, j]:.2f}]"
        for k in order
        for j in range(4)
    ]
    names = [label.get_text().split("\n") for label in axes.get_yticklabels()]
    assert [name[0] for name in names] == [f"latent.z[{k}]" for k in order]
    assert [name[1].split(",")[0] for name in names] == [factor_map.verdicts[k] for k in order]
    assert len(axes.patches) == factor_map.carried.sum()
    bold = [i for i, text in enumerate(axes.texts) if text.get_fontweight() == "bold"]
    matched = {(list(order).index(k), factor_map.factors.index(f)) for f, k in factor_map.assignment.items()}
    assert {divmod(i, 4) for i in bold} == matched


def test_the_colours_of_a_factor_map_are_signed_and_its_numbers_are_sizes(factor_map):
    _, axes = factor_map.plot()
    order = np.argsort(-factor_map.kl, kind="stable")
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(np.abs(shown), factor_map.size[order])
    np.testing.assert_array_equal(np.sign(shown), np.sign(factor_map.effects.mean()[order]))


def test_a_comparison_of_graphs_is_one_line_and_a_frame_beside_its_guesses(comparison):
    assert repr(comparison) == (
        f"GraphComparison({comparison.n_estimated} estimated and 4 true edges on 4 nodes: SHD {comparison.shd}, empty graph 4; "
        f"F1 {comparison.f1:.2g}; p {comparison.p_value:.2g})"
    )
    frame = comparison.to_frame().set_index("score")
    assert list(frame.columns) == ["estimate", "empty", "random", "permuted", "reason"]
    assert frame.loc["shd", "estimate"] == comparison.shd
    assert frame.loc["f1", "permuted"] == comparison.permuted.f1
    assert pd.isna(frame.loc["precision", "empty"])


def test_an_undefined_score_is_missing_in_the_frame_with_its_reason(data):
    nothing = nv.causal.compare(nv.causal.SCM.linear({}, dict.fromkeys(data.factors, 1.0)).graph, data.graph)
    row = nothing.to_frame().set_index("score").loc["precision"]
    assert pd.isna(row["estimate"])
    assert row["reason"] == nothing.reasons["precision"] != ""


def test_interchange_accuracy_is_one_line_and_its_frame_names_intervals_as_others_do(vae, data, factor_map):
    found = nv.causal.interchange_accuracy(vae, data, factor_map, n=20)
    alone = [row for row in found.rows if not row.propagate]
    assert repr(found).startswith("InterchangeAccuracy(pendulum, 20 pairs, these factors only: ")
    assert all(f"{row.factor} {row.score:.2f}" in repr(found) for row in alone)
    frame = found.to_frame()
    assert {"ci_low", "ci_high"} < set(frame.columns)
    assert list(frame["ci_low"]) == [row.low for row in found.rows]


def test_latent_metrics_are_one_frame_of_latents_and_the_model():
    vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
    found = nv.latent_metrics(vae, torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    frame = found.to_frame()
    assert list(frame.columns) == ["metric", "form", "unit", "value", "ci_low", "ci_high", "flag"]
    assert list(frame["value"][:3]) == list(found.effect_strength.values)
    assert frame["value"].iloc[-1] == found.modularity.value
    assert len(frame) == 7


def test_images_codes_and_posteriors_say_their_shapes_and_not_their_numbers():
    vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    out = nv.intervene(vae, x, {"latent.z[0]": nv.Set(1.0)})
    assert repr(out) == "Output(reconstruction (5, 1, 8, 8), mu (5, 3), logvar (5, 3), z (5, 3))"
    assert repr(vae.encode(x)) == "Posterior(mu (5, 3), logvar (5, 3))"
    assert repr(nv.datasets.Batch(x, x[:, 0, 0, :2])) == "Batch(images (5, 1, 8, 8), factors (5, 2))"
