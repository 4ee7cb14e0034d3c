"""Conditional randomisation: valid where factors cause each other, and able to see what depends on a factor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import nnsight_vae as nv
from nnsight_vae.causal.conditional_randomization import (
    conditional_pvalues,
    draws_needed,
    linear_conditional,
    partial_correlations,
)

SCM = nv.causal.SCM.linear(
    {("cause", "effect"): 0.8, ("effect", "last"): -1.0}, {"cause": 1.0, "effect": 0.6, "last": 0.5}
)
DRAW = linear_conditional(SCM)


def test_thirty_units_of_a_cause_go_with_its_effect_only_marginally():
    """The published count: marginal permutation calls 30 of 30 units polysemantic, conditional randomisation about one."""
    rng = np.random.default_rng(0)
    factors, _ = SCM.sample(400, rng)
    units = factors[:, 0] + rng.normal(size=(30, 400))
    p = conditional_pvalues(units, factors, DRAW, n_draws=999)
    assert (p[:, 0] <= 0.01).all()
    assert (p[:, 1:] <= 0.05).mean() < 0.12  # 60 true hypotheses
    shuffled = np.stack([stats.pearsonr(unit, factors[:, 1]).pvalue for unit in units])
    assert (shuffled < 1e-6).all()


def test_p_values_of_what_does_not_depend_on_a_factor_are_uniform_even_for_skewed_units():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(150):
        factors, _ = SCM.sample(60, rng)
        unit = np.exp(factors[:, 0] - factors[:, 2]) * rng.exponential(1.0, 60)
        p.append(
            conditional_pvalues(unit[None], factors, DRAW, columns=[1], n_draws=99, seed=int(rng.integers(1000)))[0, 0]
        )
    for a in (0.05, 0.2, 0.5):
        assert abs(np.mean(np.array(p) <= a) - a) < 3 * np.sqrt(a * (1 - a) / 150) + 0.01


def test_the_linear_conditional_is_the_joint_gaussians():
    factors, _ = SCM.sample(5, np.random.default_rng(2))
    drawn = np.stack([DRAW(factors, 1, np.random.default_rng(i)) for i in range(4000)])
    # effect | cause, last: precision 1/.36 + 1/.25, pulled by .8 cause / .36 - last / .25
    precision = 1 / 0.36 + 1 / 0.25
    mean = (0.8 * factors[:, 0] / 0.36 - factors[:, 2] / 0.25) / precision
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(drawn.var(0), 1 / precision, rtol=0.08)


def test_a_unit_that_never_varies_depends_on_nothing():
    factors, _ = SCM.sample(50, np.random.default_rng(0))
    assert conditional_pvalues(np.full((1, 50), 0.3), factors, DRAW, n_draws=19).tolist() == [[1.0] * 3]
    assert partial_correlations(np.full((1, 50), 0.3), factors, [0, 1]).tolist() == [[0.0, 0.0]]


def test_the_least_p_value_is_one_in_the_number_of_draws_and_one():
    factors, _ = SCM.sample(100, np.random.default_rng(0))
    p = conditional_pvalues(factors.T, factors, DRAW, columns=[2], n_draws=49)
    assert p.shape == (3, 1)
    assert p[2, 0] == 1 / 50
    assert draws_needed(1000, 10, 0.05) == 9_999


def test_bad_input_is_refused():
    factors, _ = SCM.sample(30, np.random.default_rng(0))
    with pytest.raises(nv.DataError, match="one value"):
        conditional_pvalues(factors.T, factors * [1, 0, 1], DRAW)
    with pytest.raises(nv.DataError, match=r"expected \[unit, 30\]"):
        conditional_pvalues(factors, factors, DRAW)
    with pytest.raises(nv.DataError, match="30 finite numbers"):
        conditional_pvalues(factors.T, factors, lambda table, j, rng: np.nan)
    bent = nv.causal.SCM({"x": nv.causal.Mechanism((), lambda p, u: u, lambda rng, n: rng.normal(size=n))})
    with pytest.raises(nv.DataError, match=r"SCM\.linear"):
        linear_conditional(bent)
