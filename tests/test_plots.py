"""Figures: what is drawn and what it says, not its pixels."""

import subprocess
import sys

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from nnsight_vae import CircuitError, DataError, plots
from nnsight_vae.circuits.drawing.scene import scene
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.mediation import Mediation
from nnsight_vae.style import FACTORS, LOWERS, NEUTRAL, RAISES

PENDULUM = nx.DiGraph([("angle", "length"), ("angle", "position"), ("light", "length"), ("light", "position")])


def circuit(units=3):
    graph = nx.DiGraph(estimand="PNIE (noising)", method="ig")
    graph.add_node("factor:angle", kind="factor", layer=0)
    graph.add_node("readout:angle", kind="readout", layer=2)
    for i in range(units):
        graph.add_node(f"latent.z[{i}]", kind="unit", site="latent.z", layer=1)
        graph.add_edge("factor:angle", f"latent.z[{i}]", effect=i + 1.0, ci_low=i - 0.5, ci_high=i + 2.0)
        graph.add_edge(f"latent.z[{i}]", "readout:angle", effect=-0.1 * (i + 1))
    return graph


def drawn(axes, kind):
    return {patch.get_label(): patch for patch in axes.patches if type(patch) is kind}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_circuit_draws_each_node_and_edge_once_with_sign_width_and_doubt():
    _, axes = plots.plot_circuit(circuit())
    boxes, edges = drawn(axes, FancyBboxPatch), drawn(axes, FancyArrowPatch)
    assert set(boxes) == set(circuit())
    assert set(edges) == {f"{a} -> {b}" for a, b in circuit().edges}
    up, down = edges["factor:angle -> latent.z[2]"], edges["latent.z[2] -> readout:angle"]
    assert (to_hex(up.get_edgecolor()), to_hex(down.get_edgecolor())) == (RAISES, LOWERS)
    assert up.get_linewidth() > edges["factor:angle -> latent.z[1]"].get_linewidth() > down.get_linewidth()
    doubtful = edges["factor:angle -> latent.z[0]"]  # the only one whose interval covers 0
    assert doubtful.get_linestyle() != up.get_linestyle()
    assert edges["factor:angle -> latent.z[1]"].get_linestyle() == up.get_linestyle() == down.get_linestyle()
    assert {"angle", "[0]", "[1]", "[2]", "factors", "latent.z", "readouts"} <= set(texts(axes))
    assert legend(axes) == ["raises", "lowers", "interval covers 0", "|effect| 3", "0.3", "0.03"]


def test_the_widths_in_the_legend_are_those_of_edges_of_that_size():
    graph = nx.DiGraph()
    graph.add_weighted_edges_from([("a", "b", 2.0), ("a", "c", 0.2), ("a", "d", -0.02)])
    _, axes = plots.plot_circuit(graph)
    widths = {name: edge.get_linewidth() for name, edge in drawn(axes, FancyArrowPatch).items()}
    shown = {line.get_label(): line.get_linewidth() for line in axes.get_legend().legend_handles}
    assert shown["|effect| 2"] == widths["a -> b"]
    assert (widths["a -> c"] - 0.72 * 0.6) ** 2 * 10 == pytest.approx((widths["a -> b"] - 0.72 * 0.6) ** 2)
    assert shown["0.2"] == widths["a -> c"]
    assert shown["0.02"] == widths["a -> d"]


def test_of_several_factors_an_edge_is_drawn_once_for_each_side_by_side_in_its_colour():
    graph = nx.DiGraph(factors=["angle", "light"], circuits={"angle": {"method": "ig"}, "light": {}})
    graph.add_edge("a", "b", effect=1.0, factors={"angle": 0.5, "light": -0.25})
    graph.add_edge("a", "c", effect=1.0, factors={"light": 1.0})
    _, axes = plots.plot_circuit(graph)
    edges = [patch for patch in axes.patches if type(patch) is FancyArrowPatch]
    found = sorted((e.get_label(), to_hex(e.get_edgecolor())) for e in edges)
    assert found == sorted([("a -> b", FACTORS[0]), ("a -> b", FACTORS[1]), ("a -> c", FACTORS[1])])
    angle, light = (
        e for e in sorted(edges, key=lambda e: e.get_linewidth(), reverse=True) if e.get_label() == "a -> b"
    )
    apart = abs(angle.get_path().vertices[0, 1] - light.get_path().vertices[0, 1])
    assert apart * 0.72 == pytest.approx((angle.get_linewidth() + light.get_linewidth()) / 2, rel=1e-6)
    assert legend(axes)[:3] == ["angle", "light", "|share of the total effect| 1"]
    assert axes.get_title(loc="left") == "Circuits of angle, light\nig"


def test_a_circuit_with_many_edges_shows_the_most_prominent_and_says_how_many():
    _, axes = plots.plot_circuit(circuit(20), max_edges=5)
    edges = drawn(axes, FancyArrowPatch)
    assert "factor:angle -> latent.z[19]" in edges
    assert len(edges) == 40  # every node keeps its first edge on each side
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((f"a{i}", f"b{j}", 1.0 + i + j) for i in range(6) for j in range(6))
    _, axes = plots.plot_circuit(graph, max_edges=12)
    assert f"{len(drawn(axes, FancyArrowPatch))} of 36 edges" in axes.get_title(loc="left")
    assert len(drawn(axes, FancyArrowPatch)) < 36


def test_a_wide_circuit_still_fits_a_page():
    graph = nx.path_graph(16, nx.DiGraph)
    figure, _ = plots.plot_circuit(nx.relabel_nodes(graph, {i: f"unit {i}" for i in range(16)}))
    assert figure.get_size_inches()[0] < 20


def test_circuit_columns_run_left_to_right_by_layer():
    _, axes = plots.plot_circuit(circuit())
    x = {name: box.get_x() + box.get_width() / 2 for name, box in drawn(axes, FancyBboxPatch).items()}
    assert x["factor:angle"] < x["latent.z[0]"] == x["latent.z[2]"] < x["readout:angle"]


def test_no_box_overlaps_another_and_every_label_fits_its_box():
    _, axes = plots.plot_circuit(circuit(12))
    boxes = list(drawn(axes, FancyBboxPatch).values())
    extents = [box.get_window_extent() for box in boxes]
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])
    for text in axes.texts:
        if text.get_zorder() == 4:
            inside = [e for e in extents if e.contains(*text.get_window_extent().get_points().mean(0))]
            assert len(inside) == 1
            assert text.get_window_extent().width < inside[0].width


def test_a_large_circuit_shows_its_strongest_nodes_and_says_how_many():
    _, axes = plots.plot_circuit(circuit(30), max_nodes=7)
    assert len(drawn(axes, FancyBboxPatch)) == 7
    assert "latent.z[29]" in drawn(axes, FancyBboxPatch)
    assert "showing 7 of 32 nodes, 10 of 60 edges" in axes.get_title(loc="left")
    assert "showing" not in plots.plot_circuit(circuit())[1].get_title(loc="left")


def test_a_large_circuit_is_drawn_without_gaps():
    """A wide layer spreads the effect over many weak edges; its strongest nodes are shown all the same."""
    graph = nx.DiGraph()
    for layer, width in enumerate((1, 20, 40, 20, 1)):
        graph.add_nodes_from(((layer, i), {"layer": layer}) for i in range(width))
        for i in range(width if layer else 0):
            for j in range(graph.number_of_nodes()):
                if graph.has_node((layer - 1, j)):
                    graph.add_edge((layer - 1, j), (layer, i), effect=1.0 if layer in (1, 4) else 0.01)
    _, axes = plots.plot_circuit(graph, max_nodes=24)
    layers = {int(name.split(",")[0].strip("(")) for name in drawn(axes, FancyBboxPatch)}
    assert layers == {0, 1, 2, 3, 4}


def test_an_edge_without_effect_is_grey():
    graph = nx.DiGraph([("a", "b"), ("b", "c")])
    graph.edges["a", "b"]["effect"] = float("nan")
    _, axes = plots.plot_circuit(graph)
    assert {to_hex(edge.get_edgecolor()) for edge in drawn(axes, FancyArrowPatch).values()} == {NEUTRAL}


def test_edges_start_and_end_at_the_sides_of_their_boxes():
    graph = nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c"), ("c", "a"), ("b", "d"), ("e", "d")])
    for node, layer in {"a": 0, "b": 1, "e": 1, "d": 2, "c": 2}.items():
        graph.nodes[node]["layer"] = layer
    graph.add_edge("d", "c")  # within a column
    drawing = scene(graph, spread=10.0)
    boxes = {box.node: box for box in drawing.boxes}
    for curve in drawing.curves:
        points = [point for segment in curve.segments for point in segment]
        for node, (x, y) in ((curve.source, points[0]), (curve.target, points[-1])):
            assert abs(x - boxes[node].x) == pytest.approx(boxes[node].width / 2)
            assert abs(y - boxes[node].y) <= 5.0
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in points)
        if boxes[curve.source].x == boxes[curve.target].x:  # a bow, not a line along the boxes
            assert points[1][0] > points[0][0] + 10
    starts = [(c.segments[0][0], c.segments[-1][-1]) for c in drawing.curves]
    assert len(set(starts)) == len(starts)  # spread edges are told apart


@pytest.mark.parametrize("bad", [nx.DiGraph(), nx.Graph([("a", "b")]), None])
def test_nothing_to_draw_is_refused(bad):
    with pytest.raises(CircuitError, match="Nothing to draw"):
        plots.plot_circuit(bad)


def test_factor_graph_tells_found_missed_extra_and_reversed_edges_apart_without_colour():
    guess = nx.DiGraph([("angle", "length"), ("position", "angle"), ("light", "angle")], estimand="direct")
    guess.edges["angle", "length"]["weight"] = -0.5
    _, axes = plots.plot_factor_graph(guess, PENDULUM)
    edges = drawn(axes, FancyArrowPatch)
    assert set(edges) == {
        "angle -> length",
        "position -> angle",
        "light -> angle",
        "light -> length",
        "light -> position",
    }
    kinds = ["angle -> length", "light -> length", "light -> angle", "position -> angle"]
    assert len({str(edges[name].get_linestyle()) for name in kinds}) == 4
    assert legend(axes) == ["found (1)", "missed (2)", "extra (1)", "reversed (1)"]
    assert "\N{MINUS SIGN}0.50" in texts(axes)
    guess.edges["light", "angle"].update(effect=-0.03, size=0.7, ci_low=0.6, ci_high=0.81)
    assert "0.70 [0.60, 0.81]" in texts(plots.plot_factor_graph(guess, PENDULUM)[1])
    assert "SHD 4" in axes.get_title(loc="left")


def test_a_total_effect_factor_graph_is_drawn_over_the_closure():
    chain = nx.DiGraph([("a", "b"), ("b", "c")])
    guess = nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")], estimand="total")
    _, axes = plots.plot_factor_graph(guess, chain)
    assert legend(axes)[:2] == ["found (3)", "missed (0)"]
    assert "transitive closure" in axes.get_title(loc="left")


def effects(units=4, targets=("angle", "light"), seed=0):
    values = np.random.default_rng(seed).normal(size=(units, len(targets), 30))
    values += np.arange(units)[:, None, None]
    return Effects(values, tuple(f"latent.z[{i}]" for i in range(units)), tuple(targets), "PNIE (noising)")


def test_effects_heat_map_shows_the_means_on_a_symmetric_scale():
    _, axes = plots.plot_effects(effects())
    image = axes.get_images()[0]
    np.testing.assert_allclose(image.get_array(), effects().mean())
    low, high = image.get_clim()
    assert low == -high
    assert high == pytest.approx(np.abs(effects().mean()).max())
    assert [label.get_text() for label in axes.get_yticklabels()] == list(effects().units)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["angle", "light"]
    assert len(axes.texts) == 8
    assert f"{effects().mean()[3, 0]:+.2f}" in texts(axes)


def test_effects_heat_map_keeps_the_largest_units_in_their_order_and_says_so():
    _, axes = plots.plot_effects(effects(40), top=3)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["latent.z[37]", "latent.z[38]", "latent.z[39]"]
    assert "showing 3 of 40 units" in axes.get_title(loc="left")


def test_effects_heat_map_marks_the_cells_that_passed():
    tested = effects().significant(q=0.05, min_effect=0.5)
    _, axes = plots.plot_effects(tested)
    assert len(axes.collections[0].get_offsets()) == tested.test.passed.sum() > 0


def test_effects_heat_map_of_many_targets_stays_readable():
    _, axes = plots.plot_effects(effects(3, [f"pixel[{i}]" for i in range(100)]))
    assert not axes.texts
    assert axes.get_xlabel() == "100 targets"


def test_no_effects_to_draw_is_refused():
    with pytest.raises(DataError, match="Nothing to draw"):
        plots.plot_effects(effects(), top=0)


def test_traversals_are_sorted_by_kl_and_dead_rows_are_pale():
    images = torch.rand(3, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1] = 0.5
    figure, axes = plots.plot_traversals(
        images, ["z[0]", "z[1]", "z[2]"], [0.5, 0.0, 2.0], values=[-2.0, -1.0, 0.0, 1.0, 2.0]
    )
    assert axes.shape == (3, 6)
    notes = [axis.get_ylabel().split("\n") for axis in axes[:, 0]]
    assert notes == [["z[2]", "KL 2.00 nats"], ["z[0]", "KL 0.50 nats"], ["z[1]", "dead, KL 0.00 nats"]]
    np.testing.assert_allclose(axes[0, 3].images[0].get_array(), images[2, 3].permute(1, 2, 0))
    np.testing.assert_allclose(axes[0, 5].images[0].get_array(), images[2].std(0, correction=0).mean(0), rtol=1e-5)
    assert axes[2, 5].images[0].get_array().max() == 0
    assert axes[0, 5].images[0].get_clim() == axes[2, 5].images[0].get_clim()
    assert axes[2, 0].images[0].get_alpha() < axes[0, 0].images[0].get_alpha()
    assert axes[0, 0].get_title() == "\N{MINUS SIGN}2.0"
    assert isinstance(figure, Figure)


def test_image_grid_shows_grey_and_colour_images_with_titles():
    grey = np.linspace(0, 1, 5 * 16).reshape(5, 1, 4, 4)
    _, axes = plots.plot_image_grid(grey, titles=["$a$", *"bcde"], columns=3)
    assert axes.shape == (2, 3)
    assert [axis.get_title() for axis in axes.flat[:5]] == ["$a$", "b", "c", "d", "e"]
    assert [axis.get_visible() for axis in axes.flat] == [True] * 5 + [False]
    np.testing.assert_array_equal(axes[1, 1].images[0].get_array(), grey[4, 0])
    assert axes[0, 0].images[0].get_clim() == (0, 1)  # a dark image stays dark


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 2, 4, 4)), "1 or 3 channels"),
        (np.zeros((0, 3, 4, 4)), "at least one image"),
        (np.zeros((1, 3, 4, 4), dtype=np.uint8), "divide 8-bit images by 255"),
        (np.full((1, 3, 4, 4), np.nan), "NaN"),
        (np.zeros((3, 4, 4)), "expected \\[n, c, h, w\\]"),
    ],
)
def test_images_that_cannot_be_shown_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        plots.plot_image_grid(images)


def test_traversals_of_latents_without_a_kl_are_in_the_order_given():
    _, axes = plots.plot_traversals(np.zeros((2, 3, 1, 4, 4)), ["z[0]", "z[1]"], None)
    assert [axes[row, 0].get_ylabel() for row in (0, 1)] == ["z[0]", "z[1]"]
    assert {axes[row, 0].images[0].get_alpha() for row in (0, 1)} == {1.0}


def test_labels_that_do_not_match_the_traversals_are_refused():
    with pytest.raises(DataError, match="got 1 labels, KL of shape"):
        plots.plot_traversals(np.zeros((2, 3, 1, 4, 4)), ["z[0]"], [1.0, 2.0])
    with pytest.raises(DataError, match="2 titles"):
        plots.plot_image_grid(np.zeros((3, 1, 4, 4)), titles=["a", "b"])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_saving_twice_gives_the_same_bytes(tmp_path, suffix):
    first, second = (
        plots.save_figure(plots.plot_factor_graph(PENDULUM, PENDULUM)[0], tmp_path / f"{name}{suffix}") for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}


def test_saving_to_an_unknown_suffix_or_folder_is_refused(tmp_path):
    figure, _ = plots.plot_image_grid(np.zeros((1, 1, 4, 4)))
    with pytest.raises(DataError, match=r"\.png, \.svg, \.pdf"):
        plots.save_figure(figure, tmp_path / "a.bmp")
    with pytest.raises(DataError, match="Choose a folder that exists"):
        plots.save_figure(figure, tmp_path / "nowhere" / "a.png")


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    bad = "$\\frac$"  # as mathematics this is an error
    graph = nx.DiGraph([(bad, "b")], estimand=bad)
    image = np.zeros((1, 1, 1, 4, 4))
    for figure, _ in (
        plots.plot_circuit(graph),
        plots.plot_factor_graph(nx.DiGraph(graph.edges), graph, kind="direct"),
        plots.plot_effects(effects(1, (bad,))),
        plots.plot_traversals(image, [bad], [1.0]),
        plots.plot_image_grid(image[0], [bad]),
    ):
        plots.save_figure(figure, tmp_path / "figure.svg")


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path):
    before = dict(mpl.rcParams)
    plots.save_figure(plots.plot_circuit(circuit())[0], tmp_path / "c.svg")
    plots.plot_effects(effects())
    assert dict(mpl.rcParams) == before


def test_plots_import_matplotlib_late_and_pyplot_never(tmp_path):
    program = """
import sys, networkx, numpy
from nnsight_vae import plots
assert "matplotlib" not in sys.modules
plots.plot_image_grid(numpy.zeros((1, 1, 4, 4)))
figure, _ = plots.plot_circuit(networkx.DiGraph([("a", "b")]))
plots.save_figure(figure, sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "c.png")], check=True)


def test_effects_on_one_target_are_dots_with_their_intervals():
    values = np.random.default_rng(0).normal([[[1.0]], [[-2.0]], [[0.0]]], 0.5, (3, 1, 40))
    effects = Effects(values, ("a[0]", "a[1]", "b[0]"), ("angle",), "PNIE (noising)")
    _, axes = effects.plot()
    dots, hollow = axes.collections[-2:]
    np.testing.assert_allclose(dots.get_offsets()[:, 0], effects.mean()[:, 0])
    assert len(hollow.get_offsets()) == 0  # nothing was tested
    low, high = effects.ci()
    lines = axes.collections[0].get_segments()
    np.testing.assert_allclose([[line[0][0], line[1][0]] for line in lines], np.stack([low[:, 0], high[:, 0]], 1))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a[0]", "a[1]", "b[0]"]


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (1, "mean"),
        (4, "mean and 95 % interval, indicative: 4 clusters"),
        (40, "mean and 95 % interval, 40 clusters"),
    ],
)
def test_figures_say_when_pairs_are_few(n, said):
    values = np.random.default_rng(0).normal(size=(2, 1, n))
    _, axes = Effects(values, ("a[0]", "a[1]"), ("y",), "PNIE (noising)").plot()
    assert axes.get_xlabel() == f"effect on y\n{said}"


def test_effects_on_one_target_are_coloured_where_their_interval_is_clear_of_0():
    values = np.random.default_rng(0).normal([[[1.0]], [[-2.0]], [[0.01]]], 0.5, (3, 1, 40))
    effects = Effects(values, ("a[0]", "a[1]", "b[0]"), ("angle",), "PNIE (noising)")
    _, axes = effects.plot()
    assert [to_hex(colour) for colour in axes.collections[-2].get_facecolors()] == [RAISES, LOWERS, NEUTRAL]
    _, axes = Effects(values[..., :1], effects.units, effects.targets, "PNIE (noising)").plot()
    assert {to_hex(colour) for colour in axes.collections[-2].get_facecolors()} == {NEUTRAL}  # one pair: no interval
    assert axes.get_xlabel() == "effect on angle\nmean"


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 1e4])
def test_the_numbers_of_a_heat_map_have_digits_at_any_size_in_the_unit_of_the_colour_bar(scale):
    values = scale * np.array([[[1.78], [-0.5]], [[0.03], [0.0]], [[0.004], [-0.004]]])
    figure, axes = Effects(values, ("a", "b", "c"), ("angle", "light"), "PNIE").plot()
    assert texts(axes) == ["+1.78", "\N{MINUS SIGN}0.50", "+0.03", "0", "0.00", "0.00"]
    bar = figure.axes[1]
    named = {1e-5: ", in 1e-5", 1e-2: ", in 1e-2", 1.0: "", 1e4: ", in 1e4"}[scale]
    assert bar.get_ylabel() == f"mean effect{named}\n(lowers | raises)"
    figure.draw_without_rendering()
    shown = {label.get_text(): tick for label, tick in zip(bar.get_yticklabels(), bar.get_yticks(), strict=True)}
    assert shown["1"] == pytest.approx(scale)
    assert shown["\N{MINUS SIGN}1"] == pytest.approx(-scale)


@pytest.mark.parametrize("targets", [("angle",), ("angle", "light")])
@pytest.mark.parametrize("units", [1, 5])
def test_long_names_and_estimands_stay_inside_the_figure(targets, units):
    path = "X -> encoder.4[0:8] -> latent.mu[0] -> decoder.2[0:4] -> Y"
    values = np.random.default_rng(0).normal(size=(units + 1, len(targets), 20)) * 1e-3
    estimand = "(PNIE + TNIE) / 2 (patching, both directions), through latent.z[0:2] -> decoder.2[0:4]"
    for names in ((path, *"abcde"[:units]), tuple("abcdef"[: units + 1])):
        figure, axes = plots.plot_effects(Effects(values, names, targets, estimand), top=units)
        figure.draw_without_rendering()
        written = [text for part in figure.axes for text in (*part.get_children(), part.xaxis.label, part.yaxis.label)]
        written += [label for part in figure.axes for label in part.get_yticklabels()]
        for text in written:
            if isinstance(text, Text) and text.get_text():
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0, text
                assert box.x1 <= figure.bbox.x1, text
                assert figure.bbox.y0 <= box.y0, text
                assert box.y1 <= figure.bbox.y1, text
        assert " ".join(axes.get_title(loc="left").split()).startswith(estimand)


def test_the_numbers_below_the_panels_of_a_mediation_do_not_run_into_each_other():
    rng = np.random.default_rng(0)
    runs = [rng.normal(0.3 * i, 1.0, (8, 20)) * np.geomspace(0.004, 0.06, 8)[:, None] for i in range(4)]
    figure, panels = Mediation.from_runs(*runs, targets=tuple("abcdefgh"), mediator="fc[0]").plot()
    figure.draw_without_rendering()
    for axes in panels:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert len(boxes) > 2
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
