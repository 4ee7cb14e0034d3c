"""What scores of codes against factors must not depend on, what they are by hand, and what they say of degenerate tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from nnsight_vae import metrics
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.predictive import _weighted
from nnsight_vae.metrics.tables import Table

FEW = settings(max_examples=15, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


def table(seed, n=120):
    """Codes that mix three factors, with noise and one latent of noise alone."""
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(k, size=n) for k in (2, 3, 4)], axis=1)
    mix = rng.normal(size=(3, 4)) * rng.choice([0, 1], size=(3, 4), p=[0.4, 0.6])
    return factors @ mix + rng.normal(0, 0.3, (n, 4)), factors


def plain(metric, **options):
    return lambda codes, factors: metric(codes, factors, n_null=0, **options).value


EXACT = {
    "mig": plain(metrics.mig),
    "modularity": plain(metrics.modularity),
    "sap": plain(metrics.sap, continuous=True),
    "irs": plain(metrics.irs),
    "unconfoundedness": plain(metrics.unconfoundedness),
    "mcc": plain(metrics.mcc),
    "spearman": plain(metrics.mcc, kind="spearman"),
    "total correlation": lambda codes, factors: metrics.total_correlation(codes),
    "wasserstein": lambda codes, factors: metrics.wasserstein_correlation(codes, normalised=True),
}


# ------------------------------------------------------------------ invariances
@pytest.mark.parametrize("name", EXACT)
@given(seed=SEEDS)
@FEW
def test_the_order_of_examples_latents_and_factors_does_not_matter(name, seed):
    codes, factors = table(seed)
    rng = np.random.default_rng(seed)
    rows, latents, columns = rng.permutation(len(codes)), rng.permutation(4), rng.permutation(3)
    turned = EXACT[name](codes[rows][:, latents], factors[rows][:, columns])
    assert turned == pytest.approx(EXACT[name](codes, factors), abs=1e-9)


@pytest.mark.parametrize("name", [name for name in EXACT if name not in ("irs", "wasserstein")])
@given(seed=SEEDS)
@FEW
def test_units_signs_and_offsets_of_latents_do_not_matter(name, seed):
    codes, factors = table(seed)
    rng = np.random.default_rng(seed)
    scale = rng.choice([-1, 1], 4) * 10 ** rng.uniform(-3, 3, 4)
    turned = EXACT[name](codes * scale + rng.normal(size=4), factors)
    assert turned == pytest.approx(EXACT[name](codes, factors), abs=1e-8)


@given(seed=SEEDS)
@FEW
def test_robustness_of_each_latent_is_free_of_its_unit_and_that_of_the_model_of_a_common_one(seed):
    codes, factors = table(seed)
    scale = np.random.default_rng(seed).choice([-4.0, 0.1, 30.0], 4)
    whole, each = metrics.irs(codes, factors, n_null=0), metrics.irs(codes * scale, factors, n_null=0)
    np.testing.assert_allclose(each.matrix, whole.matrix, atol=1e-9)
    assert metrics.irs(-7 * codes, factors, n_null=0).value == pytest.approx(whole.value, abs=1e-9)
    furthest = np.abs((codes - codes.mean(0)) * scale).max(0)  # the weights, by which the unit of one latent counts
    assert each.value == pytest.approx(np.average(whole.matrix.max(1), weights=furthest), abs=1e-9)


@pytest.mark.parametrize("name", ["mig", "modularity", "irs", "unconfoundedness"])
@given(seed=SEEDS)
@FEW
def test_values_of_factors_are_names(name, seed):
    codes, factors = table(seed)
    renamed = np.stack([np.random.default_rng(seed).permutation(9)[column] - 4.5 for column in factors.T], axis=1)
    assert EXACT[name](codes, renamed) == pytest.approx(EXACT[name](codes, factors), abs=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_single_precision_is_its_numbers_in_double_precision(name):
    codes, factors = table(0)
    single = codes.astype(np.float32)
    assert EXACT[name](single, factors.astype(np.float32)) == EXACT[name](single.astype(np.float64), factors)


@pytest.mark.parametrize("metric", [metrics.dci, metrics.explicitness, metrics.infomec])
def test_learned_scores_are_free_of_units_and_of_offsets_far_from_zero(metric):
    """Trees see float32, in which codes of spread .3 a million from 0 are all alike; they are standardised before."""
    codes, factors = table(1, n=150)
    moved = metric(codes * np.array([1e-9, -1.0, 1e6, 1.0]) + np.array([0, 1e6, 0, -30]), factors, n_null=0)
    usual = metric(codes, factors, n_null=0)
    if metric is metrics.infomec:  # which leaves out what is narrow beside the widest: one unit for all
        moved = metric(-1e-6 * codes + 3, factors, n_null=0)
    assert moved.value == pytest.approx(usual.value, abs=0.01)
    assert moved.parts == pytest.approx(usual.parts, abs=0.01)


@pytest.mark.parametrize("metric", [metrics.dci, metrics.explicitness, metrics.sap])
def test_a_table_that_is_sorted_by_a_factor_is_no_worse_than_a_shuffled_one(metric):
    """Held out from the end, the last values of a sorted factor are never learned."""
    rng = np.random.default_rng(0)
    factors = np.stack([np.repeat(np.arange(6), 30), rng.integers(2, size=180)], axis=1)
    codes = np.eye(6)[factors[:, 0]] + rng.normal(0, 0.05, (180, 6))
    codes[:, 0] += 9 * factors[:, 1]
    rows = rng.permutation(180)
    ordered, shuffled = (metric(*each, n_null=0) for each in ((codes, factors), (codes[rows], factors[rows])))
    assert ordered.value == pytest.approx(shuffled.value, abs=0.1)
    informed = ordered.parts.get("informativeness", ordered.value)
    assert informed > (0.1 if metric is metrics.sap else 0.9)


# ------------------------------------------------------------------ by hand
@given(seed=SEEDS, n_latents=st.integers(2, 6), n_factors=st.integers(2, 5))
@FEW
def test_disentanglement_and_completeness_are_weighted_entropies(seed, n_latents, n_factors):
    importance = np.random.default_rng(seed).exponential(size=(n_latents, n_factors)) ** 3
    disentangled = (1 - entropy(importance, axis=1, base=n_factors)) @ importance.sum(1) / importance.sum()
    complete = (1 - entropy(importance, axis=0, base=n_latents)) @ importance.sum(0) / importance.sum()
    assert _weighted(importance.T) == pytest.approx(disentangled, abs=1e-8)
    assert _weighted(importance) == pytest.approx(complete, abs=1e-8)


def test_dci_is_the_importance_in_trees_and_their_accuracy_where_they_have_not_learned():
    codes, factors = table(2, n=150)
    found = metrics.dci(codes, factors, n_null=0, seed=5, test=0.4)
    order = np.random.default_rng([5, 1]).permutation(150)
    tested, train = order[:60], order[60:]
    importance, accuracy = [], []
    for column in factors.T:  # of a tree's seed depends which of equally good splits it takes
        trees = GradientBoostingClassifier(random_state=0).fit(codes[train], column[train])
        importance.append(trees.feature_importances_)
        accuracy.append(trees.score(codes[tested], column[tested]))
    np.testing.assert_allclose(found.matrix, np.array(importance).T, atol=0.02)
    assert found.parts["informativeness"] == pytest.approx(np.mean(accuracy), abs=0.03)
    assert found.parts["train_informativeness"] > found.parts["informativeness"]


def test_explicitness_is_the_mean_area_over_the_classes_of_each_factor():
    codes, factors = table(3, n=200)
    found = metrics.explicitness(codes, factors, n_null=0, seed=2, test=0.25)
    order = np.random.default_rng([2, 1]).permutation(200)
    tested, train = order[:50], order[50:]
    scaled = (codes - codes[train].mean(0)) / codes[train].std(0)
    areas = []
    for column in factors.T:
        chances = LogisticRegression(max_iter=1000).fit(scaled[train], column[train]).predict_proba(scaled[tested])
        areas.append(np.mean([roc_auc_score(column[tested] == c, chances[:, c]) for c in range(column.max() + 1)]))
    assert found.value == pytest.approx(np.mean(areas), abs=1e-9)


def test_modularity_by_hand():
    """Information of one latent (1, .5, 0), of another (0, 0, .2), and of one about nothing: (1 - .25 / 2 + 1 + 0) / 3."""
    a, b = np.repeat([0, 1], 8), np.tile(np.repeat([0, 1], 4), 2)
    factors = np.stack([a, b, np.tile([0, 1], 8)], axis=1)
    both = 2 * a + b  # ln 2 about each of two
    codes = np.stack([both, a, 0 * a], axis=1).astype(float)
    assert metrics.modularity(codes, factors, n_null=0).value == pytest.approx((0.5 + 1 + 0) / 3)


def test_sap_by_hand():
    """Squared correlations .8 and .2 of one factor, and 1 and 0 of the other."""
    x, y = np.tile([-1.0, 1], 4), np.repeat([-1.0, 1], 4)
    codes = np.stack([2 * x + y, x - 2 * y, np.tile([1.0, 1, -1, -1], 2)], axis=1)
    factors = np.stack([x, np.tile([1.0, 1, -1, -1], 2)], axis=1)
    found = metrics.sap(codes, factors, continuous=True, n_null=0)
    np.testing.assert_allclose(found.matrix, [[0.8, 0], [0.2, 0], [0, 1]], atol=1e-12)
    assert found.value == pytest.approx((0.6 + 1) / 2)


def test_sap_of_classes_weighs_classes_alike_however_rare():
    """Nine of ten are of one class. Told alike often whichever class, a latent of noise is right about as often as not."""
    rng = np.random.default_rng(0)
    factor = (np.arange(600) % 10 == 0).astype(int)[:, None]
    codes = np.column_stack([5.0 * factor[:, 0] + rng.normal(0, 0.3, 600), rng.normal(size=600)])
    found = metrics.sap(codes, factor, n_null=0)
    assert found.matrix[0, 0] > 0.95
    assert found.matrix[1, 0] == pytest.approx(0.5, abs=0.2)  # without weights it says the frequent class: .9
    assert found.value == pytest.approx(found.matrix[0, 0] - found.matrix[1, 0])


def test_sap_of_classes_is_accuracy_where_nothing_was_learned():
    codes, factors = table(6, n=90)
    found = metrics.sap(codes, factors, n_null=0, seed=4, test=0.5)
    order = np.random.default_rng([4, 1]).permutation(90)
    tested, train = order[:45], order[45:]
    for j, k in np.ndindex(4, 3):
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=4).fit(
            codes[train, j : j + 1], factors[train, k]
        )
        assert found.matrix[j, k] == pytest.approx(model.score(codes[tested, j : j + 1], factors[tested, k]))


def test_a_class_that_is_not_among_those_held_out_has_no_area():
    codes, factors = table(7)
    rare = factors.copy()
    rare[np.random.default_rng([0, 1]).permutation(120)[-2:], 0] = 2  # learned, and never tested
    assert 0.5 < metrics.explicitness(codes, rare, n_null=0).value <= 1


def test_robustness_by_hand():
    """Within the values of the factor the code deviates by 1 and by 2 at most, and by 4.5 from its mean over all."""
    code = np.array([0.0, 1, 2, 5, 7, 9])[:, None]
    factor = np.array([0, 0, 0, 1, 1, 1])[:, None]
    assert metrics.irs(code, factor, quantile=1.0, n_null=0).value == pytest.approx(1 - 1.5 / 5)


def test_votes_of_the_latent_that_varies_least_beside_its_spread():
    """Of a wide latent of the one factor and a narrow one of the other the wide one varies more, but not beside its spread."""
    grid = np.repeat(np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2), 4, axis=0)
    codes = grid * [1000.0, 0.001] + np.random.default_rng(0).normal(0, 1, (64, 2)) * [100.0, 0.0001]
    assert metrics.factor_vae_score(metrics.grid_sampler(codes, grid), 2, train=80, test=80, batch=16).value == 1


# ------------------------------------------------------------------ degenerate tables
def test_one_factor_or_one_latent_leaves_undefined_what_compares_several():
    codes, factors = table(4)
    single = metrics.dci(codes, factors[:, :1], n_null=1)
    assert (single.value, single.null) == (None, None)
    assert single.note == "undefined: there is one factor only"
    assert 0 <= single.parts["completeness"] <= 1
    narrow = metrics.dci(codes[:, :1], factors, n_null=0)
    assert "completeness" not in narrow.parts
    assert narrow.value is not None
    assert narrow.parts["informativeness"] > 0
    assert metrics.modularity(codes, factors[:, :1], n_null=0).note == "undefined: there is one factor only"
    assert metrics.modularity(0 * codes, factors, n_null=0).note.startswith("undefined: no latent informs")
    with pytest.raises(DataError, match="there is one factor only: a classifier needs two"):
        metrics.beta_vae_score(metrics.grid_sampler(codes, factors[:, :1]), 1, train=5, test=5, batch=2)


def test_values_that_are_hardly_ever_shown_are_refused_with_what_to_do():
    codes, factors = table(5)
    rare = factors.copy()
    rare[:, 1] = 0
    rare[np.random.default_rng([0, 1]).permutation(120)[0], 1] = 1  # the first that is held out
    for metric in (metrics.dci, metrics.sap, metrics.explicitness):
        with pytest.raises(
            DataError, match=r"factors \[1\] \(columns\) take one value only in the 80 examples to learn"
        ):
            metric(codes, rare, n_null=0)
    learned = factors.copy()
    learned[:, 1] = 0
    learned[np.random.default_rng([0, 1]).permutation(120)[-1], 1] = 1
    with pytest.raises(DataError, match=r"factor 1 \(column\) shows too few of its values in the 40 examples held out"):
        metrics.explicitness(codes, learned, n_null=0)
    with pytest.raises(DataError, match=r"factors \[0\] \(columns\) show every value once"):
        metrics.infomec(codes[:40], np.stack([np.arange(40), factors[:40, 0]], axis=1))


def test_a_factor_of_more_than_fifty_values_is_continuous():
    codes = np.random.default_rng(0).normal(size=(204, 2))
    kinds, amounts = np.arange(204) % 50, np.arange(204) % 51
    found = Table.of(codes, np.stack([kinds, amounts], axis=1))
    assert found.binned == (1,)
    assert found.classes.max(axis=0).tolist() == [49, 9]


@pytest.mark.parametrize("most", [0.0, 9.0])
def test_a_continuous_factor_that_mostly_has_its_least_or_largest_value_keeps_two_classes(most):
    rng = np.random.default_rng(0)
    factor = np.full(1000, most)
    factor[:60] = rng.uniform(1, 2, 60)
    classes = Table.of(np.ones((1000, 1)), factor[:, None]).classes[:, 0]
    assert np.bincount(classes).tolist() == ([940, 60] if most == 0 else [60, 940])
    found = metrics.mig((factor + rng.normal(0, 0.01, 1000))[:, None], factor[:, None], n_null=0)
    assert found.value > 0.9


def test_codes_that_are_linear_functions_up_to_rounding_have_no_total_correlation():
    x = np.random.default_rng(0).normal(size=(200, 2))
    for codes in (
        np.column_stack([x, 3 * x[:, 0] - 0.1 * x[:, 1] + 7]),
        np.column_stack([x, 1e-8 * x[:, 0]]),
        np.random.default_rng(1).normal(size=(5, 6)),
    ):
        with pytest.raises(DataError, match="linear functions of one another, or as few as"):
            metrics.total_correlation(codes)
    assert metrics.total_correlation(x * [1e-9, 1e9]) == pytest.approx(metrics.total_correlation(x))


def test_examples_too_few_for_a_metric_are_told():
    codes, factors = np.array([[0.0, 1], [1, 0]]), np.array([[0, 1], [1, 0]])
    for metric in (metrics.dci, metrics.sap, metrics.explicitness):
        with pytest.raises(DataError, match="at least 10 each"):
            metric(codes, factors)
    assert metrics.sap(codes, factors, continuous=True, n_null=0).value == 0  # holds nothing out
    assert metrics.mig(codes, factors, n_null=0).value == 0
    assert metrics.irs(codes, factors, n_null=0).value == 1  # one example a value, as its description says
