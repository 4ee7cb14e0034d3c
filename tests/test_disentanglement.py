"""Metrics of codes against factors: equal to published implementations, right on hand-made codes, low on unrelated ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import mutual_info_score

import nnsight_vae as nv
from nnsight_vae import metrics
from nnsight_vae.errors import DataError
from nnsight_vae.metrics import all_metrics, robustness
from nnsight_vae.metrics.information import binned_code, entropies, mutual_information
from nnsight_vae.metrics.tables import Table

REFERENCE = json.loads((Path(__file__).parent / "reference" / "disentanglement.json").read_text())
SIZES = [4, 3, 5]
SPREAD = np.array([0.05, 0.1, 0.05, 0.2, 0.1])


def clean(factors):
    a, b, c = (factors / (np.array(SIZES) - 1.0)).T
    return np.stack([a, 0.8 * b + 0.2 * c, c**2, 0.5 * a - 0.5 * c, 0 * a], axis=1)


def arrays():
    """What the reference values are of: train and test codes and factors, and a table with one code a combination."""
    rng = np.random.RandomState(0)
    drawn = []
    for n in (2000, 1000):
        factors = np.stack([rng.randint(s, size=n) for s in SIZES], axis=1)
        drawn.append((clean(factors) + rng.randn(n, 5) * SPREAD, factors))
    grid = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), axis=-1).reshape(-1, 3)
    drawn.append((clean(grid) + rng.randn(60, 5) * SPREAD, grid))
    return drawn


def rotated(codes):
    rotation, _ = np.linalg.qr(np.random.RandomState(7).randn(5, 5))
    return (codes / codes.std(0)) @ rotation


@pytest.fixture(scope="module", params=["axis_aligned", "mixed"])
def case(request):
    turn = rotated if request.param == "mixed" else lambda codes: codes
    (train, f_train), (test, f_test), (table, grid) = arrays()
    return REFERENCE[request.param], (turn(train), f_train), (turn(test), f_test), (turn(table), grid)


# ------------------------------------------------------------------ against published implementations
def test_deterministic_metrics_equal_the_reference(case):
    expected, (codes, factors), _, _ = case
    none = {"n_null": 0}
    assert metrics.mig(codes, factors, **none).value == pytest.approx(expected["mig"], abs=1e-9)
    assert metrics.modularity(codes, factors, **none).value == pytest.approx(expected["modularity"], abs=1e-9)
    assert metrics.sap(codes, factors, continuous=True, **none).value == pytest.approx(
        expected["sap_continuous"], abs=1e-9
    )
    assert metrics.irs(codes, factors, **none).value == pytest.approx(expected["irs_0.99"], abs=1e-9)
    assert metrics.irs(codes, factors, quantile=1.0, **none).value == pytest.approx(expected["irs_1.0"], abs=1e-9)
    for kind in ("pearson", "spearman"):
        assert metrics.mcc(codes, factors, kind=kind, **none).value == pytest.approx(expected[f"mcc_{kind}"], abs=1e-9)
    assert metrics.total_correlation(codes) == pytest.approx(expected["gaussian_total_correlation"], abs=1e-9)
    for normalised, name in ((False, ""), (True, "_norm")):
        value = metrics.wasserstein_correlation(codes, normalised=normalised)
        assert value == pytest.approx(expected[f"gaussian_wasserstein_correlation{name}"], abs=1e-8)


def test_matrices_equal_the_reference():
    expected, (codes, factors) = REFERENCE["axis_aligned"], arrays()[0]
    np.testing.assert_allclose(metrics.mig(codes, factors, n_null=0).matrix, expected["information"], atol=1e-9)
    np.testing.assert_allclose(metrics.irs(codes, factors, n_null=0).matrix, expected["irs_matrix"], atol=1e-9)
    np.testing.assert_allclose(
        metrics.sap(codes, factors, continuous=True, n_null=0).matrix, expected["sap_matrix"], atol=1e-9
    )


@pytest.mark.slow
def test_learned_metrics_are_the_reference_within_the_learners_tolerance(case):
    expected, (codes, factors), (tested, f_tested), _ = case
    both, of_both = np.concatenate([codes, tested]), np.concatenate([factors, f_tested])
    dci = metrics.dci(both, of_both, n_null=0)
    assert dci.value == pytest.approx(expected["dci"]["disentanglement"], abs=0.02)
    assert dci.parts["completeness"] == pytest.approx(expected["dci"]["completeness"], abs=0.02)
    assert dci.parts["informativeness"] == pytest.approx(expected["dci"]["informativeness_test"], abs=0.02)
    assert dci.parts["train_informativeness"] == pytest.approx(expected["dci"]["informativeness_train"], abs=0.02)
    assert metrics.sap(both, of_both, n_null=0).value == pytest.approx(expected["sap"], abs=0.02)
    explicit = metrics.explicitness(both, of_both, n_null=0)
    assert explicit.value == pytest.approx(expected["explicitness_test"], abs=0.02)
    assert explicit.parts["train"] == pytest.approx(expected["explicitness_train"], abs=0.02)


@pytest.mark.parametrize("batch", [64, 8])
def test_votes_are_the_reference_within_their_sampling_error(case, batch):
    expected, _, _, (codes, grid) = case
    key = f"factor_vae_rs0_b{batch}_tr1000_ev500_nv2000"
    if key not in expected:
        pytest.skip("no reference for this batch size")
    score = metrics.factor_vae_score(metrics.grid_sampler(codes, grid), 3, batch=batch, train=1000, test=500)
    assert score.value == pytest.approx(expected[key], abs=0.02 if batch == 64 else 0.04)
    if batch == 8:
        told = metrics.beta_vae_score(metrics.grid_sampler(codes, grid), 3, batch=8, train=1000, test=500)
        assert told.value == pytest.approx(expected["beta_vae_rs0_b8_tr1000_ev500"], abs=0.04)


def test_the_largest_hole_of_the_support_is_the_published_one():
    """Wang and Jordan's protocol and mean over 500 seeds, for the factor sizes of Cars3D: .483 (disentangled)."""
    values = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        normal = rng.multivariate_normal(np.zeros(3), 0.9 * np.ones((3, 3)) + 0.1 * np.eye(3), 1000)
        low, high = np.quantile(normal, [0.1, 0.9])
        clipped = normal.clip(low, high)
        unit = (clipped - clipped.min(0)) / np.ptp(clipped, axis=0)
        levels = np.array([4, 24, 183])
        values.append(
            metrics.support_distance(np.minimum((unit * levels).astype(int), levels - 1), draws=10_000, seed=seed)
        )
    assert np.mean(values) == pytest.approx(0.483, abs=0.03)


# ------------------------------------------------------------------ against closed forms and other libraries
@given(seed=st.integers(0, 2**32 - 1), bins=st.integers(2, 30))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_mutual_information_is_that_of_scikit_learn(seed, bins):
    rng = np.random.default_rng(seed)
    table = Table.of(
        rng.normal(size=(80, 3)), np.stack([np.arange(80) % 4, rng.integers(0, 3, 80) + np.arange(80) % 2], axis=1)
    )
    information = mutual_information(table, bins)
    for j, code in enumerate(table.codes.T):
        cut = np.digitize(code, np.histogram(code, bins)[1][:-1])
        assert np.array_equal(cut, binned_code(code, bins))
        for k, classes in enumerate(table.classes.T):
            assert information[j, k] == pytest.approx(mutual_info_score(classes, cut), abs=1e-12)
    assert entropies(table)[0] == pytest.approx(np.log(4))


def test_gaussian_total_correlation_has_its_closed_form():
    rho = 0.6
    codes = np.random.default_rng(0).multivariate_normal([0, 0], [[1, rho], [rho, 1]], 200_000) * [3, 0.1]
    assert metrics.total_correlation(codes) == pytest.approx(-np.log(1 - rho**2) / 2, abs=0.01)
    with pytest.raises(DataError, match="linear functions of one another"):
        metrics.total_correlation(np.stack([np.arange(9.0), 2 * np.arange(9.0)], axis=1))


GRID = np.repeat(np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1).reshape(-1, 2), 12, axis=0)
ORDER = np.random.default_rng(0).permutation(len(GRID))
FACTORS = GRID[ORDER]


@pytest.mark.parametrize(
    "name", ["mig", "modularity", "dci", "explicitness", "irs", "unconfoundedness", "infomec", "mcc", "sap"]
)
def test_codes_that_are_the_factors_score_highest_and_unrelated_ones_lower(name):
    metric = getattr(metrics, name)
    noise = np.random.default_rng(1).normal(0, 1e-3, FACTORS.shape)
    options = {"continuous": True} if name == "sap" else {}
    perfect = metric(FACTORS[:, ::-1] + noise, FACTORS, n_null=1 if name == "dci" else 3, **options)
    assert perfect.value > 0.95
    assert perfect.null < perfect.value
    assert perfect.null <= perfect.null_high


def test_one_latent_of_two_factors_is_told_from_one_of_one():
    """MIG, DCI and SAP by hand: the sum of both factors informs about each alike."""
    both = FACTORS.sum(axis=1, keepdims=True) * 1.0
    codes = np.concatenate([FACTORS[:, :1], both], axis=1)
    assert metrics.modularity(codes, FACTORS, n_null=0).value == pytest.approx(0.5, abs=0.05)
    dci = metrics.dci(np.concatenate([both, both + 0], axis=1), FACTORS, n_null=0)
    assert dci.value < 0.1
    in_one = np.stack([4.0 * FACTORS[:, 0] + FACTORS[:, 1], np.zeros(len(FACTORS))], axis=1)
    complete = metrics.dci(in_one, FACTORS, n_null=0)  # a latent of both factors, each of which is in that latent alone
    assert complete.value == pytest.approx(0, abs=0.01)
    assert complete.parts["completeness"] == pytest.approx(1, abs=1e-6)
    assert metrics.mig(np.repeat(FACTORS, 2, axis=1), FACTORS, n_null=0).value == pytest.approx(0, abs=1e-12)
    assert metrics.sap(np.repeat(FACTORS, 2, axis=1), FACTORS, continuous=True, n_null=0).value == pytest.approx(
        0, abs=1e-12
    )


def test_noise_is_known_to_score_above_nothing():
    """Measured elsewhere: IRS .35 to .45 and InfoM about .6 on pure noise, so their nulls have to be shown."""
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(1000, 4)), rng.integers(0, 4, (1000, 3))
    score = metrics.irs(codes, factors, n_null=5)
    assert 0.3 < score.value < 0.5
    assert abs(score.value - score.null) < 0.05
    info = metrics.infomec(codes, factors, n_null=5)
    assert 0.3 < info.value <= info.null_high
    assert info.parts["explicitness"] < 0.02


def test_unconfoundedness_counts_shared_latents():
    rng = np.random.default_rng(0)
    one = np.concatenate([FACTORS.sum(1, keepdims=True) * 1.0, rng.normal(0, 1e-3, (len(FACTORS), 1))], axis=1)
    alone = metrics.unconfoundedness(FACTORS * 1.0, FACTORS, n_null=0).value
    assert alone == 1
    assert metrics.unconfoundedness(one, FACTORS, per_factor=2, n_null=0).value == 0
    with pytest.raises(DataError, match="no more latents a factor"):
        metrics.unconfoundedness(one, FACTORS, per_factor=3)


def test_unconfoundedness_of_sets_that_overlap_in_part(monkeypatch):
    """Z_0 = {0, 1}, Z_1 = {1, 2}: one latent of three is shared."""
    robust = np.array([[0.9, 0.1], [0.8, 0.8], [0.1, 0.9]])
    monkeypatch.setattr(
        robustness, "irs", lambda codes, factors, n_null: metrics.FactorScore("IRS", 0.9, matrix=robust)
    )
    codes = np.random.default_rng(0).normal(size=(len(FACTORS), 3))
    assert metrics.unconfoundedness(codes, FACTORS, per_factor=2, n_null=0).value == pytest.approx(2 / 3)


def test_explicitness_of_infomec_is_a_share_of_the_entropy():
    """Codes that tell one of two equally frequent halves of four equally frequent values: log 2 of log 4."""
    halves = (FACTORS // 2) + np.random.default_rng(0).normal(0, 1e-3, FACTORS.shape)
    assert metrics.infomec(halves, FACTORS, n_null=0).parts["explicitness"] == pytest.approx(0.5, abs=0.03)


def test_inactive_latents_are_left_out(monkeypatch):
    vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
    monkeypatch.setattr(all_metrics, "ACTIVE", 1.0)  # nats
    table = metrics.disentanglement(vae, data, n=100, metrics=["mcc"], n_null=0)
    nats = metrics.activity(vae, data.sample(100, 0).images).kl.values
    assert table.latents == tuple(k for k, value in enumerate(nats) if value > 1)
    assert len(table.latents) < 8
    monkeypatch.setattr(all_metrics, "ACTIVE", 1e9)
    with pytest.raises(DataError, match="no latent is active"):
        metrics.disentanglement(vae, data, n=100, metrics=["mcc"])


def test_a_vote_needs_a_latent_that_varies():
    still = metrics.factor_vae_score(metrics.grid_sampler(np.zeros((len(FACTORS), 2)), FACTORS), 2, train=5, test=5)
    assert still.value is None
    assert "constant" in still.note
    partly = np.concatenate([FACTORS * 1.0, np.zeros((len(FACTORS), 1))], axis=1)
    assert metrics.factor_vae_score(metrics.grid_sampler(partly, FACTORS), 2, train=60, test=60).value == 1


def test_continuous_factors_are_binned_for_information_and_regressed_for_importance():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(400, 2))
    score = metrics.mig(factors, factors, n_null=0)
    assert "factors [0, 1] cut into 10" in score.note
    dci = metrics.dci(factors, factors, n_null=0)
    assert dci.parts["informativeness"] > 0.97
    assert dci.value > 0.95


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.zeros((5, 2)), np.zeros((4, 2)), "codes have 5 rows and factors 4"),
        (np.zeros((5, 2)), np.tile(np.arange(2), (5, 1)), r"factors \[0, 1\] \(columns\) take one value only"),
        (np.full((5, 2), np.nan), np.eye(5), "NaN"),
        (np.zeros(5), np.eye(5), "expected numbers with one row an example"),
        (np.array([["a"]]), np.eye(1), "<U1"),
    ],
)
def test_tables_that_do_not_fit_are_refused(codes, factors, message):
    with pytest.raises(DataError, match=message):
        metrics.mig(codes, factors)


def test_mcc_of_fewer_latents_than_factors_is_undefined_with_the_reason():
    found = metrics.mcc(FACTORS[:, :1] * 1.0, FACTORS, n_null=2)
    assert (found.value, found.null, found.parts) == (None, None, {})
    assert found.note.startswith("undefined: 1 latent for ")
    assert found.matrix.shape == (1, FACTORS.shape[1])


def test_options_that_do_not_fit_are_refused():
    codes = FACTORS * 1.0
    for call, message in (
        (lambda: metrics.mig(codes, FACTORS, n_null=-1), "n_null"),
        (lambda: metrics.irs(codes, FACTORS, quantile=0), "quantile"),
        (lambda: metrics.mcc(codes, FACTORS, kind="kendall"), "kind"),
        (lambda: metrics.dci(codes, FACTORS, test=0.99), "at least 10 each"),
        (lambda: metrics.infomec(codes, FACTORS[:, :1]), "one only"),
        (lambda: metrics.factor_vae_score(lambda n, k, rng: np.zeros((1, 2)), 2), "the sampler returned"),
        (lambda: metrics.factor_vae_score(metrics.grid_sampler(codes, FACTORS), 2, batch=0), "batch"),
        (lambda: metrics.support_distance(np.zeros((5, 2))), "constant"),
        (lambda: metrics.support_distance(codes, draws=0), "draws=0"),
        (lambda: metrics.total_correlation(codes[:, 0]), "expected numbers with one row an example"),
        (lambda: metrics.mig(codes, FACTORS, bins=0), "bins=0"),
        (lambda: metrics.modularity(codes, FACTORS, bins=2.5), "bins=2.5"),
        (lambda: metrics.grid_sampler(codes, FACTORS[:-1]), "codes have 192 rows and factors 191"),
    ):
        with pytest.raises(DataError, match=message):
            call()


def test_constant_codes_are_undefined_with_a_reason_or_no_worse_than_absent():
    still = np.zeros((len(FACTORS), 2))
    for metric in (metrics.irs, metrics.infomec, metrics.modularity):
        score = metric(still, FACTORS, n_null=2)
        assert score.value is None
        assert "constant" in score.note
        assert score.null is None
    with_dead = np.concatenate([FACTORS * 1.0, still], axis=1)
    assert metrics.irs(with_dead, FACTORS, n_null=0).value == metrics.irs(FACTORS * 1.0, FACTORS, n_null=0).value


# ------------------------------------------------------------------ on a model
def test_a_model_is_measured_on_observational_and_on_independent_factors():
    vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
    table = metrics.disentanglement(vae, data, n=400, metrics=["mcc", "mig"], n_null=2)
    assert list(table.scores) == [(m, how) for m in ("mcc", "mig") for how in ("observational", "independent")]
    assert table.scores["mcc", "independent"].value > 0.95
    entangled = metrics.disentanglement(nv.load("pendulum-beta-vae"), data, n=400, metrics=["mcc"], n_null=0)
    assert entangled.scores["mcc", "independent"].value < table.scores["mcc", "independent"].value
    assert entangled.n_latents == 8
    frame = table.to_frame()
    assert frame[["metric", "factors"]].to_numpy().tolist() == [list(key) for key in table.scores]
    assert "active of 8 latents" in str(table)
    codes = vae.encode(data.sample(400, 0).images).mu
    direct = metrics.mcc(codes[:, list(table.latents)], data.sample(400, 0).factors, n_null=0)
    assert direct.value == pytest.approx(table.scores["mcc", "observational"].value, abs=1e-6)
    with pytest.raises(DataError, match="expected some of mig"):
        metrics.disentanglement(vae, data, metrics=["elbo"])
    with pytest.raises(DataError, match="got a Tensor where a data set belongs"):
        metrics.disentanglement(vae, data.sample(3).images)
    with pytest.raises(nv.AdapterError, match="wrap it first"):
        metrics.disentanglement(vae.module, data)
    assert isinstance(codes, torch.Tensor)
