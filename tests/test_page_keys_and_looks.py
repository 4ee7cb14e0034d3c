"""The interactive page in a real browser: keyboard, small screens, dark mode, pictures, and what is drawn where."""

import itertools
import re

import networkx as nx
import numpy as np
import pytest
from graphs import circuit
from pages import browser, layered_circuit, node, open_page, shown_edges, shown_nodes, slide

from nnsight_vae.circuits.drawing.prominence import on_paths
from nnsight_vae.style import FACTORS

__all__ = ["browser", "open_page"]  # fixtures


def test_arrow_keys_follow_the_strongest_edges_and_the_columns_and_enter_picks(open_page):
    graph = layered_circuit()
    page = open_page(graph)
    prominence = on_paths(graph)
    at = "document.activeElement.dataset.node"
    page.locator('.node[tabindex="0"]').focus()
    assert page.evaluate(at) == "factor:angle"
    name = "factor:angle"
    while name != "readout:angle":
        best = max(graph.successors(name), key=lambda b: prominence[name, b])
        page.keyboard.press("ArrowRight")
        assert page.evaluate(at) == best
        name = best
    page.keyboard.press("ArrowRight")  # nowhere to go
    assert page.evaluate(at) == "readout:angle"
    page.keyboard.press("ArrowLeft")
    column = ["encoder.4[0]", "encoder.4[1]", "encoder.4[2]", "encoder.4[3]"]
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    walked = [page.evaluate(at)]
    for _ in range(3):
        page.keyboard.press("ArrowDown")
        walked.append(page.evaluate(at))
    assert sorted(walked) == column
    heights = [node(page, name).bounding_box()["y"] for name in walked]
    assert heights == sorted(heights)
    taken = "marks[0].dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true, cancelable: true}))"
    assert page.evaluate(taken % "ArrowDown") is False  # the page does not scroll as well
    assert page.evaluate(taken % "a") is True
    node(page, walked[-1]).focus()
    page.keyboard.press("Enter")
    assert node(page, walked[-1]).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Space")
    assert node(page, walked[-1]).get_attribute("aria-pressed") == "false"
    assert page.locator('.node[tabindex="0"]').count() == 1


def test_tab_reaches_every_control_and_the_graph_once_and_focus_can_be_seen(open_page):
    page = open_page(layered_circuit())
    reached = []
    while "SUMMARY" not in reached and len(reached) < 30:
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.dataset.node || document.activeElement.tagName"
            )
        )
        visible = page.evaluate(
            "(e => e.matches('.node') ? +getComputedStyle(e.querySelector('rect')).strokeWidth.replace('px', '') >= 3"
            " : getComputedStyle(e).outlineStyle !== 'none')(document.activeElement)"
        )
        assert visible, reached[-1]
    assert [each for each in reached if each != "BUTTON"] == [
        "count",
        "search",
        "smaller",
        "fit",
        "larger",
        "factor:angle",
        "SUMMARY",
    ]


@pytest.mark.parametrize("size", [(1300, 850), (375, 700)])
def test_boxes_never_overlap_and_edges_end_at_them_at_any_threshold(open_page, size):
    page = open_page(layered_circuit(width=7), size=size)
    for key in ("End", "PageDown", "PageDown", "PageDown", "PageDown", "Home"):
        slide(page, key)
        boxes = page.evaluate(
            "marks.filter(m => m.style.display !== 'none').map(m => { const b = m.querySelector('rect').getBoundingClientRect();"
            " return [b.left, b.top, b.right, b.bottom]; })"
        )
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        ends = page.evaluate(
            "[...find('edges').children].map(p => { const e = edges[p.dataset.edge], at = n => { const [x, y] ="
            " marks[n].getAttribute('transform').match(/[-\\d.]+/g).map(Number); return [x, y, nodes[n].width / 2]; };"
            " const from = p.getPointAtLength(0), to = p.getPointAtLength(p.getTotalLength());"
            " const s = at(e.source), t = at(e.target);"
            " return [from.x - s[0] - s[2], from.y - s[1], to.x - t[0] + t[2], to.y - t[1]]; })"
        )
        assert np.abs(ends).max() < 0.2


def test_it_works_on_a_phone(open_page):
    page = open_page(layered_circuit(), size=(375, 700))
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for control in ("#count", "#search", "#fit", "#larger"):
        box = page.locator(control).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375
    name = page.locator('.node[tabindex="0"]').get_attribute("data-node")
    node(page, name).click()
    assert page.locator("#details h2").inner_text() == name


def luminance(colour):
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_stand_out_in_light_and_in_dark(open_page, scheme):
    page = open_page(circuit(), scheme=scheme)

    def colour(selector, name):
        return page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")

    ground, panel = colour("body", "backgroundColor"), colour("aside", "backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    for selector, name, behind in [
        ("h1", "color", ground),
        ("#status", "color", ground),
        ("#key span", "color", ground),
        ("#titles text", "fill", ground),
        ("#details p", "color", panel),
        ("summary", "color", panel),
    ]:
        assert contrast(colour(selector, name), behind) >= 4.5, selector
    for look in ("end", "image"):
        assert contrast(colour(f".{look} text", "fill"), colour(f".{look} rect", "fill")) >= 4.5
    for sign in ("raises", "lowers"):
        assert contrast(colour(f".edge.{sign}", "stroke"), ground) >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_factor_stands_out_in_light_and_in_dark(open_page, scheme):
    factors = [f"f{i}" for i in range(len(FACTORS))]
    graph = nx.DiGraph(factors=factors)
    for factor in factors:
        graph.add_edge("a", factor, effect=1.0, factors={factor: 1.0})
    page = open_page(graph, scheme=scheme)
    ground = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    colours = page.evaluate("[...find('edges').children].map(p => getComputedStyle(p).stroke)")
    assert len(set(colours)) == len(FACTORS)
    assert min(contrast(colour, ground) for colour in colours) >= 3


def test_pictures_stand_in_the_nodes_and_larger_in_the_details(open_page):
    picture = np.zeros((4, 8, 3))
    page = open_page(circuit(), thumbnails={"latent.z[3]": picture, "factor": picture[:, :4]})
    assert page.locator(".node image").count() == 2
    box, inside = (node(page, "latent.z[3]").locator(kind).bounding_box() for kind in ("rect", "image"))
    assert box["x"] < inside["x"]
    assert inside["x"] + inside["width"] < box["x"] + box["width"]
    assert inside["width"] == pytest.approx(2 * inside["height"], rel=0.05)
    node(page, "latent.z[3]").click()
    assert page.locator("#details img").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [8, 4]
    assert page.locator("#details img").get_attribute("alt")


def test_a_picture_stands_over_its_label_and_both_inside_the_box(open_page):
    strip = np.zeros((4, 20, 3))
    page = open_page(circuit(), thumbnails={"latent.z[3]": strip, "encoder.4[7]": strip[:, :4]})
    for name in ("latent.z[3]", "encoder.4[7]"):
        box, picture, label = (node(page, name).locator(kind).bounding_box() for kind in ("rect", "image", "text"))
        assert box["y"] < picture["y"]
        assert picture["y"] + picture["height"] <= label["y"] + 1
        assert label["y"] + label["height"] <= box["y"] + box["height"] + 1
        assert box["x"] <= label["x"]
        assert label["x"] + label["width"] <= box["x"] + box["width"]


def test_a_deep_circuit_with_pictures_is_seen_whole_when_it_opens(open_page):
    graph = layered_circuit(width=7, depth=12)
    pictures = {name: np.zeros((8, 8)) for name in graph}
    page = open_page(graph, size=(1400, 900), thumbnails=pictures)
    room = page.locator("#drawing").bounding_box()
    for name in ("factor:angle", "readout:angle"):
        box = node(page, name).bounding_box()
        assert room["x"] <= box["x"]
        assert box["x"] + box["width"] <= room["x"] + room["width"]


def test_titles_of_deep_columns_are_told_apart_and_never_overlap(open_page):
    graph = nx.DiGraph()
    for layer in range(8):
        site = f"encoder.down_blocks.{layer}.resnets.0.conv1"
        graph.add_node(f"{site}[3]", site=site, layer=layer, kind="conv")
    nx.add_path(graph, list(graph), effect=1.0)
    page = open_page(graph, size=(1000, 700))
    titles = page.locator("#titles text")
    assert titles.all_text_contents() == [f"encoder…{layer}…0.conv1" for layer in range(8)]
    boxes = [titles.nth(i).bounding_box() for i in range(8)]
    assert all(a["x"] + a["width"] + 4 < b["x"] for a, b in itertools.pairwise(boxes))


def test_the_circuit_of_a_factor_can_be_hidden(open_page):
    graph = nx.DiGraph(factors=["angle", "light"])
    graph.add_edge("a", "b", effect=1.0, factors={"angle": 0.5, "light": -0.25})
    graph.add_edge("a", "c", effect=1.0, factors={"light": 1.0})
    page = open_page(graph)
    colours = page.evaluate("[...find('edges').children].map(p => getComputedStyle(p).stroke)")
    assert len(colours) == 3
    assert len(set(colours)) == 2
    both = "[...find('edges').children].filter(p => edges[p.dataset.edge].parts.length === 2)"
    places = page.evaluate(f"{both}.map(p => [p.getPointAtLength(0).y, +p.getAttribute('stroke-width')])")
    (y, width), (other_y, other_width) = places
    assert abs(y - other_y) == pytest.approx((width + other_width) / 2, abs=0.11)  # side by side
    light = page.get_by_role("button", name="light")
    light.click()
    assert light.get_attribute("aria-pressed") == "false"
    assert shown_edges(page) == {("a", "b")}
    assert page.locator(".edge").count() == 1
    light.click()
    assert page.locator(".edge").count() == 3


def test_zoom_changes_the_size_and_fit_brings_it_back(open_page):
    page = open_page(layered_circuit())
    width = "document.querySelector('#drawing svg').getBoundingClientRect().width"
    first = page.evaluate(width)
    page.locator("#larger").click()
    assert page.evaluate(width) == pytest.approx(1.2 * first, rel=0.01)
    page.locator("#smaller").click()
    page.locator("#smaller").click()
    assert page.evaluate(width) == pytest.approx(first / 1.2, rel=0.01)
    page.locator("#fit").click()
    assert page.evaluate(width) == pytest.approx(first, rel=0.01)


@pytest.mark.parametrize(
    "graph", [nx.DiGraph(), nx.DiGraph([("a", "b"), ("b", "a")]), nx.path_graph(["a"], nx.DiGraph)]
)
def test_graphs_without_edges_effects_or_order_are_shown_too(open_page, graph):
    page = open_page(graph)
    assert shown_nodes(page) == set(graph)
    assert shown_edges(page) == set(graph.edges)
    slide(page, "Home")
    slide(page, "End")
