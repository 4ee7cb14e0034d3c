"""Metrics of the decoder: right on models whose latents are the factors, blind and sighted where they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factor_models import factor_vae, factor_world, rotated
from hypothesis import given, settings, strategies as st

import nnsight_vae as nv
from nnsight_vae import metrics
from nnsight_vae.errors import DataError
from nnsight_vae.metrics import all_metrics

NAMES = ("counterfactual_generativeness", "causal_disentanglement")


@pytest.fixture(scope="module")
def world():
    return factor_world(seed=1, n_factors=4)


@pytest.fixture(scope="module")
def tables(world):
    exact = factor_vae(world, seed=2, spare=1)
    models = {"exact": exact, "rotated": rotated(exact, seed=3)}
    return {
        name: metrics.disentanglement(nv.VAE(model), world, n=300, metrics=NAMES, n_null=10).scores
        for name, model in models.items()
    }


@pytest.mark.parametrize("how", ["observational", "independent"])
def test_every_factor_of_the_exact_model_follows_its_own_latent_alone(tables, how):
    score = tables["exact"][NAMES[0], how]
    assert score.value == pytest.approx(1, abs=1e-5)
    assert score.parts["signed"] == pytest.approx(1, abs=1e-5)
    turned = tables["rotated"][NAMES[0], how]
    assert turned.value < 0.8
    assert turned.parts["signed"] < 0.5
    assert score.null == pytest.approx(
        1, abs=1e-5
    )  # every other latent moves nothing, all but it everything: blind to the sign
    assert score.parts["signed of unrelated latents"] < 0  # the signed one is not
    assert np.sort(score.matrix, axis=0)[-2:].round(4).tolist() == [[-1] * 4, [1] * 4]


def test_a_decoder_without_mechanisms_moves_a_factor_and_not_its_effects(world, tables):
    """Each latent moves its factor over its whole range and no other: 1 of (1 + descendants) is as it should be."""
    score = tables["exact"][NAMES[1], "observational"]
    descendants = sum(len(world.scm.descendants(f)) for f in world.factors)
    assert score.value == pytest.approx(4 / (4 + descendants), abs=1e-4)
    assert score.parts["robustness"] == pytest.approx(1, abs=1e-5)
    assert tables["rotated"][NAMES[1], "observational"].parts["robustness"] < 0.9


# ------------------------------------------------------------------ generativeness
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_generativeness_is_its_formula_and_is_blind_to_who_carries_what(seed):
    rng = np.random.default_rng(seed)
    alone, others = rng.normal(size=(2, 3, 2, 5))
    chosen, reach = rng.integers(3, size=2), rng.uniform(0.5, 2, 2)
    score = metrics.counterfactual_generativeness(alone, others, chosen, reach=reach, n_null=0)
    literal = [
        np.mean([abs(abs(alone[chosen[i], i, n]) - abs(others[chosen[i], i, n])) for n in range(5)]) / reach[i]
        for i in range(2)
    ]
    assert score.value == pytest.approx(np.mean(literal))
    swapped = metrics.counterfactual_generativeness(-others, alone, chosen, reach=reach, n_null=0)
    assert swapped.value == pytest.approx(score.value)
    assert swapped.parts["signed"] == pytest.approx(-score.parts["signed"])
    assert score.parts["signed"] == pytest.approx(score.matrix[chosen, [0, 1]].mean())


def test_the_null_of_generativeness_is_over_latents_drawn_at_random():
    alone, others = np.zeros((4, 1, 2)), np.zeros((4, 1, 2))
    alone[0] = 1
    score = metrics.counterfactual_generativeness(alone, others, np.array([0]), n_null=2000)
    assert score.value == 1
    assert score.null == pytest.approx(0.25, abs=0.03)
    assert score.null_high == 1
    assert score.parts["signed of unrelated latents"] == pytest.approx(0.25, abs=0.03)


def test_what_is_printed_says_which_number_to_read():
    """The published value of a perfect model is that of latents chosen at random; the signed one is not."""
    alone = np.repeat(np.eye(3)[:, :, None], 5, axis=2)
    score = metrics.counterfactual_generativeness(alone, 1 - alone, np.arange(3))
    assert score.value == score.null == 1
    assert score.parts["signed"] == 1
    assert score.parts["signed of unrelated latents"] < 0
    assert str(score).endswith("read signed beside signed of unrelated latents")
    assert "counterfactual generativeness: 1 (unrelated codes: 1, at most 1); signed: 1;" in str(score)


# ------------------------------------------------------------------ CDM
CHAIN = np.triu(np.ones((3, 3), dtype=bool), 1)  # 0 -> 1 -> 2


def test_cdm_by_hand():
    effects = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.6], [0.0, 0.3, 1.7]])
    score = metrics.causal_disentanglement(effects, CHAIN, n_null=6)
    assert score.value == pytest.approx((0.9 + 0.5 + 0.1 + 0.8 + 0.6 + 1.0) / 6)
    assert score.parts["robustness"] == pytest.approx(1 - (0.2 + 0.0 + 0.3) / 3)
    assert score.null < score.value  # other graphs ask for effects that are not there
    empty = metrics.causal_disentanglement(effects, np.zeros((3, 3), dtype=bool), n_null=3)
    assert empty.value == empty.null == pytest.approx(2.7 / 3)


def test_robustness_is_left_out_where_everything_should_move():
    score = metrics.causal_disentanglement(np.array([[0.9, 0.3]]), np.triu(np.ones((2, 2), dtype=bool), 1), n_null=0)
    assert score.parts == {}
    assert score.null is None


def test_a_latent_that_moves_nothing_carries_no_factor():
    """Assigned to the first factor it would count for robustness and against the value, in whatever order factors stand."""
    effects = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.6], [0.0, 0.3, 1.7]])
    plain = metrics.causal_disentanglement(effects, CHAIN, n_null=4)
    with_dead = metrics.causal_disentanglement(np.vstack([np.zeros(3), effects]), CHAIN, n_null=4)
    assert (with_dead.value, with_dead.parts, with_dead.null) == (plain.value, plain.parts, plain.null)
    assert with_dead.matrix.shape == (4, 3)
    assert "latents [0] move nothing and are left out" in str(with_dead)
    nothing = metrics.causal_disentanglement(np.zeros((2, 3)), CHAIN)
    assert nothing.value is None
    assert "no latent moves any factor" in str(nothing)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_cdm_does_not_depend_on_the_order_of_latents_or_factors(seed):
    """Effects above the whole range too: which factor a latent moves most is told before they are cut at 1."""
    rng = np.random.default_rng(seed)
    effects, order = rng.uniform(0, 2, (5, 3)), rng.permutation(3)
    plain = metrics.causal_disentanglement(effects, CHAIN, n_null=0)
    turned = metrics.causal_disentanglement(
        effects[rng.permutation(5)][:, order], CHAIN[np.ix_(order, order)], n_null=0
    )
    assert turned.value == pytest.approx(plain.value)
    assert turned.parts == pytest.approx(plain.parts)


# ------------------------------------------------------------------ bad input
def test_arrays_that_do_not_fit_are_refused():
    three, one = np.ones((2, 3, 4)), np.ones((2, 3))
    graph = np.zeros((3, 3), dtype=bool)
    for call, message in (
        (lambda: metrics.counterfactual_generativeness(three, three[:1], np.zeros(3, int)), "do not fit"),
        (lambda: metrics.counterfactual_generativeness(three, three, np.zeros(2, int)), "do not fit"),
        (lambda: metrics.counterfactual_generativeness(three, three, np.full(3, 2)), r"0 \.\.\. 1"),
        (lambda: metrics.counterfactual_generativeness(three, three, np.zeros(3)), r"0 \.\.\. 1"),
        (lambda: metrics.counterfactual_generativeness(three, three, np.zeros(3, int), reach=np.zeros(3)), "above 0"),
        (lambda: metrics.counterfactual_generativeness(three, three, np.zeros(3, int), n_null=-1), "n_null"),
        (lambda: metrics.causal_disentanglement(-one, graph), "at least 0"),
        (lambda: metrics.causal_disentanglement(one, graph[:2]), "every pair of the 3 factors"),
        (lambda: metrics.causal_disentanglement(one, graph.astype(float)), "truth value"),
        (lambda: metrics.causal_disentanglement(one, ~graph), "cycle"),
        (lambda: metrics.causal_disentanglement(one, np.eye(3, k=1, dtype=bool)), "nx.transitive_closure"),
    ):
        with pytest.raises(DataError, match=message):
            call()


# ------------------------------------------------------------------ all metrics of a model
def test_every_metric_of_a_model_stands_beside_its_null(world):
    vae = nv.VAE(factor_vae(world))
    names = [name for name in all_metrics.METRICS if name not in ("beta_vae_score", "dci")]  # those take seconds
    table = metrics.disentanglement(vae, world, n=200, metrics=names, n_null=2)
    assert list(table.scores) == [(name, how) for name in names for how in ("observational", "independent")]
    for (name, how), score in table.scores.items():
        assert score.null is not None, name
        if name in ("support_distance", "total_correlation"):
            if how == "observational":  # causes and effects: less than all combinations occur
                assert score.value > score.null_high, name
        elif how == "independent" and name not in ("infomec", "sap"):
            assert score.value > score.null_high, name
    assert abs(table.scores["total_correlation", "independent"].value) < 0.1
    assert "ten equally frequent classes" in table.scores["factor_vae_score", "independent"].note
    assert table.scores["factor_vae_score", "independent"].value == 1


def test_a_posterior_without_a_kl_per_latent_is_active_where_its_mean_moves(world):
    exact = factor_vae(world, spare=1)
    kappa = torch.ones(1, 1)

    def encode(x):
        mu, _ = exact.encode(x)
        return {"mu": torch.nn.functional.normalize(mu, dim=1), "kappa": kappa.expand(len(x), 1)}

    vae = nv.adapt(exact, encoder=encode, decoder=exact.decode, example=world.sample(2).images)
    table = metrics.disentanglement(vae, world, n=100, metrics=["irs"], n_null=0)
    assert table.latents == tuple(sorted(exact.latents.values()))


def test_an_option_that_no_metric_takes_and_a_missing_graph_are_refused(world):
    vae = nv.VAE(factor_vae(world))
    with pytest.raises(DataError, match="bins_: no option of mig, mcc"):
        metrics.disentanglement(vae, world, metrics=["mig", "mcc"], bins_=3)
    table = metrics.disentanglement(vae, world, n=100, metrics=["mig", "mcc"], bins=3, n_null=0)
    assert len(table.scores) == 4
    digits = nv.datasets.load("digits")
    with pytest.raises(DataError, match="that of digits is not known"):
        metrics.disentanglement(vae, digits, metrics=["causal_disentanglement"])
