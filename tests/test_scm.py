"""The structural causal model: interventions, counterfactuals, and what it refuses."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, strategies as st

from nnsight_vae.causal import SCM, Mechanism
from nnsight_vae.errors import DataError


def normal(rng, n):
    return rng.standard_normal(n)


def linear_gaussian(weights):
    """x = x W + noise, with variables named so that columns are not in causal order."""
    names = [f"x{j}" for j in range(len(weights))]

    def mechanism(j):
        parents = tuple(names[i] for i in np.flatnonzero(weights[:, j]))
        return Mechanism(
            parents, lambda values, noise: noise + sum(weights[names.index(p), j] * values[p] for p in parents), normal
        )

    order = list(range(len(weights)))[::-1]
    return SCM({names[j]: mechanism(j) for j in order}), names


@pytest.fixture
def chain():
    return SCM(
        {
            "a": Mechanism((), lambda _, noise: noise, normal),
            "b": Mechanism(("a",), lambda values, noise: np.tanh(values["a"]) + noise, normal),
            "c": Mechanism(("b",), lambda values, noise: values["b"] ** 2 + noise, normal),
            "other": Mechanism((), lambda _, noise: 5 * noise, normal),
        }
    )


def test_the_graph_has_an_edge_from_each_parent_to_its_child(chain):
    assert set(chain.graph.edges) == {("a", "b"), ("b", "c")}
    assert list(chain.graph.nodes) == ["a", "b", "c", "other"]


def test_changing_the_returned_graph_does_not_change_the_model(chain):
    chain.graph.add_edge("c", "a")
    assert nx.is_directed_acyclic_graph(chain.graph)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_total_effects_of_a_linear_model_are_the_inverse_of_identity_minus_weights(seed, size):
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.normal(size=(size, size)) * (rng.random((size, size)) < 0.6), 1)
    scm, names = linear_gaussian(weights)
    values, noise = scm.sample(3, rng)
    column = [scm.names.index(name) for name in names]
    total = np.linalg.inv(np.eye(size) - weights)
    for i, name in enumerate(names):
        moved = scm.counterfactual(noise, {name: values[:, column[i]] + 1}) - values
        np.testing.assert_allclose(moved[:, column], np.tile(total[i], (3, 1)), atol=1e-9)


def test_a_sample_follows_the_mechanisms(chain):
    values, noise = chain.sample(50, np.random.default_rng(0))
    a, b, c, other = values.T
    np.testing.assert_array_equal(a, noise[:, 0])
    np.testing.assert_array_equal(b, np.tanh(a) + noise[:, 1])
    np.testing.assert_array_equal(c, b**2 + noise[:, 2])
    np.testing.assert_array_equal(other, 5 * noise[:, 3])


def test_do_cuts_the_causes_and_leaves_non_descendants_bit_identical(chain):
    values, noise = chain.sample(20, np.random.default_rng(0))
    moved = chain.counterfactual(noise, {"b": 0.5})
    np.testing.assert_array_equal(moved[:, [0, 3]], values[:, [0, 3]])
    np.testing.assert_array_equal(moved[:, 1], 0.5)
    np.testing.assert_array_equal(moved[:, 2], 0.25 + noise[:, 2])


@given(st.sets(st.sampled_from(["a", "b", "c", "other"])), st.integers(0, 1000))
def test_setting_variables_to_their_factual_values_changes_nothing(names, seed):
    scm = SCM(
        {
            "a": Mechanism((), lambda _, noise: noise, normal),
            "b": Mechanism(("a",), lambda values, noise: np.tanh(values["a"]) + noise, normal),
            "c": Mechanism(("b",), lambda values, noise: values["b"] ** 2 + noise, normal),
            "other": Mechanism((), lambda _, noise: 5 * noise, normal),
        },
        dtype=np.float32,
    )
    values, noise = scm.sample(5, np.random.default_rng(seed))
    again = scm.counterfactual(noise, {name: values[:, scm.names.index(name)] for name in names})
    np.testing.assert_array_equal(again, values)


def test_a_generator_state_gives_the_same_units_with_and_without_do(chain):
    values, noise = chain.sample(10, np.random.default_rng(3))
    moved, same_noise = chain.sample(10, np.random.default_rng(3), do={"a": 1.0})
    np.testing.assert_array_equal(noise, same_noise)
    np.testing.assert_array_equal(values[:, 3], moved[:, 3])


def test_given_noise_is_used_instead_of_drawn(chain):
    noise = np.arange(8.0).reshape(2, 4)
    values, returned = chain.sample(2, np.random.default_rng(0), noise=noise)
    np.testing.assert_array_equal(values[:, 0], noise[:, 0])
    np.testing.assert_array_equal(returned, noise)


def test_float32_values_are_kept_as_float32():
    scm = SCM({"a": Mechanism((), lambda _, noise: noise, normal)}, dtype=np.float32)
    assert scm.sample(2, np.random.default_rng(0))[0].dtype == np.float32


def test_a_mechanism_may_return_one_number_for_all_units():
    scm = SCM({"a": Mechanism((), lambda _, noise: np.float64(2), normal)})
    assert scm.sample(3, np.random.default_rng(0))[0].tolist() == [[2.0]] * 3


def test_an_empty_model_is_refused():
    with pytest.raises(DataError, match="no mechanisms"):
        SCM({})


def test_an_unknown_parent_is_refused():
    with pytest.raises(DataError, match="'b' has unknown parents"):
        SCM({"b": Mechanism(("nobody",), lambda _, noise: noise, normal)})


def test_a_cycle_is_refused_and_shown():
    loop = {name: Mechanism((cause,), lambda _, noise: noise, normal) for name, cause in ("ab", "bc", "ca")}
    with pytest.raises(DataError, match="form a cycle") as error:
        SCM(loop)
    path = str(error.value).split("cycle ")[1].rstrip(".").split(" -> ")
    assert all(loop[child].parents == (parent,) for parent, child in itertools.pairwise(path))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"nobody": 1.0}, "cannot do\\(nobody\\)"),
        ({"a": np.nan}, "NaN or infinite"),
        ({"a": np.inf}, "NaN or infinite"),
        ({"a": np.zeros(3)}, "shape \\(3,\\)"),
        ({"a": np.zeros((5, 1))}, "shape \\(5, 1\\)"),
        ({"a": "high"}, "expected real numbers"),
        ({"a": 1j}, "expected real numbers"),
    ],
)
def test_ill_formed_interventions_are_refused(chain, do, message):
    with pytest.raises(DataError, match=message):
        chain.sample(5, np.random.default_rng(0), do=do)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3"])
def test_a_number_of_units_that_is_no_positive_integer_is_refused(chain, n):
    with pytest.raises(DataError, match="positive integer"):
        chain.sample(n, np.random.default_rng(0))


@pytest.mark.parametrize("noise", [np.zeros((5, 3)), np.zeros(4), np.zeros((2, 4))])
def test_noise_of_the_wrong_shape_is_refused(chain, noise):
    with pytest.raises(DataError, match="noise has"):
        chain.sample(5, np.random.default_rng(0), noise=noise)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _, noise: noise[:-1], "mechanism of 'a' gave shape"),
        (lambda _, noise: np.log(-np.abs(noise)), "mechanism of 'a' gave NaN"),
        (lambda _, noise: np.array(["x"] * len(noise)), "mechanism of 'a' gave <U1"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_mechanism_that_returns_nonsense_is_named(function, message):
    with pytest.raises(DataError, match=message):
        SCM({"a": Mechanism((), function, normal)}).sample(4, np.random.default_rng(0))


def test_a_noise_sampler_of_the_wrong_length_is_named():
    with pytest.raises(DataError, match="noise of 'a' gave shape"):
        SCM({"a": Mechanism((), lambda _, noise: noise, lambda rng, n: rng.random(n + 1))}).sample(
            4, np.random.default_rng(0)
        )


def test_printing_shows_variables_and_edges(chain):
    assert repr(chain) == "SCM(a, b, c, other; a -> b, b -> c)"


# ------------------------------------------------------------------ what the graph says
def test_ancestors_and_descendants_are_those_of_the_graph_in_column_order():
    scm, _ = linear_gaussian(np.triu(np.ones((5, 5)), 1) * (np.random.default_rng(1).random((5, 5)) < 0.5))
    for name in scm.names:
        assert set(scm.ancestors(name)) == nx.ancestors(scm.graph, name)
        assert set(scm.descendants(name)) == nx.descendants(scm.graph, name)
        assert list(scm.descendants(name)) == sorted(scm.descendants(name), key=scm.names.index)
    with pytest.raises(DataError, match="no variable 'nobody'"):
        scm.ancestors("nobody")


# ------------------------------------------------------------------ abduction
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_abduction_returns_the_noise_that_made_the_values(seed, size):
    rng = np.random.default_rng(seed)
    names = [f"v{j}" for j in range(size)]
    weights = {(a, b): rng.normal() for a, b in itertools.combinations(names, 2) if rng.random() < 0.6}
    scm = SCM.linear(weights, dict.fromkeys(names[::-1], 0.7))
    values, noise = scm.sample(4, rng)
    np.testing.assert_allclose(scm.abduct(values), noise, atol=1e-9)
    moved = scm.counterfactual(scm.abduct(values), {"v0": 1.0})
    np.testing.assert_allclose(moved, scm.counterfactual(noise, {"v0": 1.0}), atol=1e-9)


def test_abduction_inverts_what_is_invertible_and_not_additive():
    scm = SCM(
        {
            "a": Mechanism((), lambda _, u: u, normal, lambda _, value: value),
            "b": Mechanism(("a",), lambda p, u: np.exp(p["a"] + u), normal, lambda p, value: np.log(value) - p["a"]),
        },
        dtype=np.float32,
    )
    values, noise = scm.sample(20, np.random.default_rng(0))
    np.testing.assert_allclose(scm.abduct(values), noise, atol=1e-5)


def test_abduction_refuses_what_it_cannot_know(chain):
    values, _ = chain.sample(3, np.random.default_rng(0))
    with pytest.raises(DataError, match="mechanism of 'a' has no inverse"):
        chain.abduct(values)
    bounded = SCM({"a": Mechanism((), lambda _, u: np.clip(u, -1, 1), normal, lambda _, value: value)})
    with pytest.raises(DataError, match=r"no noise gives a = 3 of unit 1.*1 of 2 units"):
        bounded.abduct(np.array([[0.5], [3.0]]))
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        bounded.abduct(np.zeros(3))
    with pytest.raises(DataError, match="finite"):
        bounded.abduct(np.array([[np.nan]]))


# ------------------------------------------------------------------ linear models
def test_a_linear_model_has_the_covariance_of_its_weights():
    scm = SCM.linear({("z", "x"): 0.5, ("x", "y"): -2.0, ("z", "y"): 1.0}, {"y": 0.3, "z": 2.0, "x": 1.0})
    values, _ = scm.sample(200_000, np.random.default_rng(0))
    total = scm.total_effects()
    expected = total.T @ np.diag([0.3**2, 4.0, 1.0]) @ total
    np.testing.assert_allclose(np.cov(values.T), expected, atol=0.05)
    np.testing.assert_allclose(values.mean(0), 0, atol=0.03)
    assert total.tolist() == [[1, 0, 0], [0, 1, 0.5], [-2, 0, 1]]  # z on y: 1 - 2 * .5 = 0


def test_total_effects_are_of_linear_models_only(chain):
    with pytest.raises(DataError, match=r"SCM.linear\(weights, noise\)"):
        chain.total_effects()


@pytest.mark.parametrize(
    ("weights", "noise", "message"),
    [
        ({("x", "w"): 1.0}, {"x": 1.0}, "noise names the variables"),
        ({("x", "y"): np.nan}, {"x": 1.0, "y": 1.0}, "finite weights"),
        ({}, {"x": -1.0}, "at least 0"),
        ({("x", "y"): 1.0, ("y", "x"): 1.0}, {"x": 1.0, "y": 1.0}, "cycle"),
        ({}, {}, "no mechanisms"),
    ],
)
def test_linear_models_that_are_none_are_refused(weights, noise, message):
    with pytest.raises(DataError, match=message):
        SCM.linear(weights, noise)


# ------------------------------------------------------------------ discrete variables
@pytest.fixture
def weather():
    """Rain is likelier in winter (season 1); the ground is wet by rain, and never otherwise."""

    def rain(parents):
        p = np.where(parents["season"] == 1, 0.8, 0.25)
        return np.stack([1 - p, p], axis=1)

    return SCM(
        {
            "season": Mechanism.categorical((0, 1, 2), (0.5, 0.3, 0.2)),
            "rain": Mechanism.categorical((0, 1), rain, ("season",)),
            "wet": Mechanism.additive(("rain",), lambda p: 3 * p["rain"], normal),
        }
    )


def test_discrete_variables_have_the_probabilities_they_were_given(weather):
    values, _ = weather.sample(100_000, np.random.default_rng(0))
    season, rain, wet = values.T
    assert [np.mean(season == s) for s in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.006)
    assert rain[season == 1].mean() == pytest.approx(0.8, abs=0.01)
    assert rain[season == 2].mean() == pytest.approx(0.25, abs=0.01)
    assert wet.mean() == pytest.approx(3 * (0.3 * 0.8 + 0.7 * 0.25), abs=0.03)
    assert weather.discrete == {"season": (0.0, 1.0, 2.0), "rain": (0.0, 1.0)}


def test_interventions_on_discrete_variables_share_noise(weather):
    values, noise = weather.sample(2000, np.random.default_rng(1))
    moved = weather.counterfactual(noise, {"season": 1})
    assert (moved[:, 1] >= values[:, 1]).all()  # winter makes no unit drier
    assert moved[:, 1].mean() == pytest.approx(0.8, abs=0.03)
    np.testing.assert_allclose(moved[:, 2] - 3 * moved[:, 1], values[:, 2] - 3 * values[:, 1], atol=1e-12)
    np.testing.assert_array_equal(weather.counterfactual(noise), values)


def test_a_discrete_variable_treated_as_continuous_is_refused(weather):
    with pytest.raises(DataError, match=r"do\(season\) gave 0.5, .*discrete and takes 0, 1, 2 only"):
        weather.sample(3, np.random.default_rng(0), do={"season": 0.5})
    stray = Mechanism((), lambda _, u: u, normal, values=(0.0, 1.0))
    with pytest.raises(DataError, match=r"mechanism of 'x' gave .* discrete"):
        SCM({"x": stray}).sample(3, np.random.default_rng(0))
    with pytest.raises(DataError, match="'season' has no inverse"):
        weather.abduct(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("values", "probabilities", "message"),
    [
        ((0, 0), (0.5, 0.5), "different finite numbers"),
        ((0, np.nan), (0.5, 0.5), "different finite numbers"),
        ((0, 1), (0.5, 0.4), "sum to 1"),
        ((0, 1), (1.5, -0.5), ">= 0"),
        ((0, 1), (1.0,), r"shape \(1,\)"),
    ],
)
def test_distributions_that_are_none_are_refused(values, probabilities, message):
    with pytest.raises(DataError, match=message):
        Mechanism.categorical(values, probabilities)


def test_a_function_that_returns_no_distribution_is_refused_when_it_is_sampled():
    scm = SCM({"x": Mechanism.categorical((0, 1), lambda p: np.array([0.7, 0.7]))})
    with pytest.raises(DataError, match="sum to 1"):
        scm.sample(3, np.random.default_rng(0))
