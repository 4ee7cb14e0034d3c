"""Pictures of effects: which numbers are sure, in which unit they are, and where in a feature map they sit."""

import numpy as np
import pytest

from nnsight_vae import plots
from nnsight_vae.position_plot import Positions
from nnsight_vae.results.effects import Effects

GRID = tuple(f"encoder.4@{i},{j}" for i in range(2) for j in range(3))


def make(units, targets, n=20, **fields):
    values = np.random.default_rng(0).normal(0.0, 0.1, (len(units), len(targets), n))
    values += np.linspace(-1, 1, len(units) * len(targets)).reshape(len(units), len(targets), 1)
    return Effects(values, tuple(units), tuple(targets), "PNIE (noising)", **fields)


def test_numbers_whose_interval_covers_0_are_pale_and_the_title_says_so():
    effects = make(["a", "b"], ["angle", "light", "size"])
    effects.values[1, 1] -= effects.values[1, 1].mean()
    low, high = effects.ci()
    _, axes = plots.plot_effects(effects)
    pale = np.array([text.get_alpha() < 1 for text in axes.texts]).reshape(2, 3)
    np.testing.assert_array_equal(pale, (low <= 0) & (high >= 0))
    assert pale.any()
    assert "covers 0; 20 clusters)" in " ".join(axes.get_title(loc="left").split()).replace("\N{NO-BREAK SPACE}", " ")


def test_of_a_single_pair_no_number_is_pale():
    _, axes = plots.plot_effects(make(["a", "b"], ["angle", "light"], n=1))
    assert {text.get_alpha() for text in axes.texts} == {1.0}
    assert axes.get_title(loc="left") == "PNIE (noising)"  # nor clusters, for there are no intervals


def test_the_dots_of_what_passed_are_explained():
    _, axes = plots.plot_effects(make(["a", "b"], ["angle", "light"]).significant(q=0.1, min_effect=0.2))
    assert "dot: larger than 0.2, FDR 0.1" in " ".join(axes.get_title(loc="left").split())


def test_the_unit_of_the_readout_is_on_the_axis_the_colour_bar_and_the_map():
    record = {"unit": "factor sd"}
    figure, _ = plots.plot_effects(make("ab", ["angle", "light"], provenance=record))
    assert figure.axes[1].get_ylabel().startswith("mean effect, in factor sd\n")
    _, axes = plots.plot_effects(make("ab", ["angle"], provenance=record))
    assert axes.get_xlabel().startswith("effect on angle, factor sd\n")
    figure, _ = plots.plot_effects(make(GRID, ["angle"], provenance=record))
    assert figure.axes[1].get_ylabel().startswith("effect on angle, in factor sd\n")


def test_effects_of_every_position_of_a_site_are_a_map_row_by_row():
    effects = make(GRID, ["angle"])
    _, axes = effects.plot(top=2)
    np.testing.assert_allclose(axes.images[0].get_array(), effects.mean().reshape(2, 3))
    assert len(axes.texts) == 6
    assert axes.get_xlabel() == "column of encoder.4"
    assert "20 clusters" in " ".join(axes.get_title(loc="left").split())


def test_a_large_map_shows_no_numbers():
    _, axes = plots.plot_effects(make([f"input@{i},{j}" for i in range(9) for j in range(9)], ["angle"]))
    assert not axes.texts


@pytest.mark.parametrize(
    "units",
    [GRID[:5], (GRID[1], GRID[0], *GRID[2:]), (*GRID[:5], "fc[0]"), ("fc@0,0",), ("a[0] + a[1]@0,0", "b@0,1"), ("fc[0]", "fc[1]"), ("fc@0", "fc@1")],
)  # fmt: skip
def test_what_is_no_whole_grid_of_one_site_is_no_map(units):
    assert Positions.of(units) is None


def test_a_map_may_be_of_one_channel():
    assert Positions.of([f"encoder.4[2]@0,{j}" for j in range(3)]) == Positions("encoder.4[2]", (1, 3))
