"""The interactive page in a real browser, from disk: what it asks for, and what clicks, the slider, search and pointing do."""

import re

import networkx as nx
import pytest
from graphs import circuit
from pages import (
    browser,
    layered_circuit,
    lit_edges,
    lit_nodes,
    node,
    open_page,
    shown_edges,
    shown_nodes,
    slide,
    status,
    through,
)

from nnsight_vae.circuits.drawing.prominence import on_paths

__all__ = ["browser", "open_page"]  # fixtures


def test_it_opens_from_disk_and_shows_the_whole_of_a_small_circuit(open_page):
    page = open_page(circuit())
    assert shown_nodes(page) == set(circuit())
    assert shown_edges(page) == set(circuit().edges)
    assert "5 of 5 edges" in status(page)
    assert "5 of 5 nodes" in status(page)
    assert page.locator(".edge.uncertain").count() == 4
    assert page.locator(".edge.raises").count() == 1
    titles = page.locator("#titles text").all_text_contents()
    assert titles == ["factors", "encoder.4", "latent.z", "decoder.0", "readouts"]


def test_names_that_look_like_markup_are_text(open_page):
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{data}} 潜在"
    graph = nx.DiGraph(model=nasty, pairs={"factor": nasty, "n": 1}, total_effect={nasty: {}}, factors=[nasty, "b"])
    graph.add_node(nasty, label=nasty, kind="unit", site=nasty, **{nasty: nasty})
    graph.add_edge(nasty, "b", effect=1.0, factors={nasty: 1.0}, **{nasty: nasty})
    page = open_page(graph)
    page.locator(".node").first.click()
    assert page.locator("#details h2").inner_text() == nasty
    assert page.locator("#details dd").last.inner_text() == nasty
    page.locator("#search").fill("script")
    assert page.locator("#details li").inner_text() == nasty
    assert page.locator("body img").count() == 0


def test_its_policy_lets_nothing_else_run_and_nothing_out(open_page):
    page = open_page(circuit())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));"
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,x\" onerror=\"window.ran = 2\">')"
    )
    refused = page.evaluate("fetch('https://example.org/').then(() => 'got out', () => 'refused')")
    page.wait_for_timeout(50)
    assert refused == "refused"
    assert page.evaluate("window.ran") is None
    assert all("Content Security Policy" in text or text.startswith("data:,") for text in page.complaints)
    page.complaints.clear()


@pytest.mark.parametrize("name", ["encoder.2[1]", "factor:angle", "encoder.4[3]"])
def test_a_click_shows_the_paths_through_a_unit_and_a_second_one_everything(open_page, name):
    graph = layered_circuit()
    page = open_page(graph)
    visible = nx.DiGraph(shown_edges(page))
    node(page, name).click()
    nodes, edges = through(visible, name)
    assert lit_nodes(page) == nodes
    assert lit_edges(page) == edges
    assert shown_nodes(page) == set(graph)  # the others are faint, not gone
    assert node(page, name).get_attribute("aria-pressed") == "true"
    assert f"paths through {name}: {len(nodes)} nodes, {len(edges)} edges" in status(page)
    node(page, name).click()
    assert lit_nodes(page) == set(graph)
    assert node(page, name).get_attribute("aria-pressed") == "false"


def test_escape_and_a_click_beside_the_graph_show_everything_again(open_page):
    page = open_page(layered_circuit())
    for undo in (
        lambda: page.keyboard.press("Escape"),
        lambda: page.locator("#drawing svg").click(position={"x": 3, "y": 3}),
    ):
        node(page, "encoder.2[1]").click()
        assert lit_nodes(page) != shown_nodes(page)
        undo()
        assert lit_nodes(page) == shown_nodes(page)


def test_the_slider_shows_the_whole_paths_above_a_threshold(open_page):
    graph = layered_circuit()
    page = open_page(graph)
    prominence = on_paths(graph)
    seen = set()
    slide(page, "End")
    for _ in range(12):
        edges = shown_edges(page)
        least = min(prominence[edge] for edge in edges)
        assert edges == {edge for edge, value in prominence.items() if value >= least}
        assert shown_nodes(page) == set(nx.DiGraph(edges))
        assert f"{len(edges)} of {graph.number_of_edges()} edges" in status(page)
        assert f"{len(shown_nodes(page))} of {len(graph)} nodes" in status(page)
        said = float(re.search(r"at least ([\d.]+) %", status(page)).group(1)) / 100
        assert said <= least + 1e-3
        assert least < said + 0.01
        seen.add(len(edges))
        slide(page, "ArrowLeft", 7)
    assert len(seen) > 6
    slide(page, "End")
    assert shown_edges(page) == set(graph.edges)
    slide(page, "Home")
    assert len(shown_edges(page)) >= 6
    assert nx.has_path(nx.DiGraph(shown_edges(page)), "factor:angle", "readout:angle")
    assert page.locator("#count").get_attribute("aria-valuetext").startswith("the ")


def test_the_share_of_effect_shown_is_that_of_the_layer_that_loses_most(open_page):
    graph = nx.DiGraph()
    for layer, nodes in enumerate(["s", "ab", "t"]):
        graph.add_nodes_from(nodes, layer=layer)
    graph.add_weighted_edges_from([("s", "a", 3.0), ("s", "b", 1.0), ("a", "t", 0.6), ("b", "t", 0.3)])
    page = open_page(graph)
    assert "100 % or more of every layer's |effect|" in status(page)
    slide(page, "Home")
    assert shown_edges(page) == {("s", "a"), ("a", "t")}
    assert "66 % or more of every layer's |effect|" in status(page)  # .6 of .9, and 3 of 4


def test_faithfulness_is_shown_at_the_threshold_where_the_graph_holds_a_curve(open_page):
    graph = layered_circuit()
    n = graph.number_of_edges()
    graph.graph["curve"] = ((1, {"angle": 0.125}), (n, {"angle": 0.875}))
    page = open_page(graph)
    slide(page, "End")
    assert f"faithfulness 0.88 (angle) with the {n} strongest" in status(page)
    slide(page, "ArrowLeft", 30)
    assert "faithfulness 0.13 (angle) with the 1 strongest" in status(page)
    assert "faithfulness" not in status(open_page(layered_circuit()))


def test_the_slider_can_hide_the_unit_that_was_picked(open_page):
    graph = layered_circuit()
    page = open_page(graph)
    prominence = on_paths(graph)
    slide(page, "End")
    weakest = min(graph, key=lambda n: max(v for edge, v in prominence.items() if n in edge))
    node(page, weakest).click()
    slide(page, "Home")
    assert weakest not in shown_nodes(page)
    assert lit_nodes(page) == shown_nodes(page)


def test_search_finds_a_unit_and_shows_as_much_as_it_takes_to_see_it(open_page):
    graph = layered_circuit()
    page = open_page(graph)
    slide(page, "Home")
    hidden = sorted(set(graph) - shown_nodes(page))[0]
    page.locator("body").press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type(hidden.upper())
    assert page.locator("#details h2").inner_text() == "1 unit found"
    page.keyboard.press("Enter")
    assert hidden in shown_nodes(page)
    assert page.locator("#details h2").inner_text() == hidden
    assert node(page, hidden).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.node") == hidden
    page.locator("#search").fill("encoder")
    assert page.locator("#details h2").inner_text() == "20 units found"
    page.locator("#search").press("Escape")
    assert page.locator("#search").input_value() == ""


def test_pointing_shows_all_attributes_and_leaving_goes_back_to_what_was_picked(open_page):
    graph = circuit()
    graph.nodes["latent.z[3]"].update(odd=float("nan"), pair=(1, None), nested={"a": {"b": 2}}, none=None)
    page = open_page(graph)
    node(page, "latent.z[3]").hover()
    terms = page.locator("#details > dl > dt").all_inner_texts()
    assert terms == list(graph.nodes["latent.z[3]"])
    assert "$" not in page.locator("#details").inner_text()
    text = page.locator("#details").inner_text()
    for part in ("latent.z[3]", "-0.1667", "nan", "1, none"):
        assert part in text
    page.locator(".edge").first.dispatch_event("pointerover")
    edge = page.evaluate("edges[find('edges').children[0].dataset.edge]")
    names = [page.evaluate(f"nodes[{edge[side]}].name") for side in ("source", "target")]
    assert page.locator("#details h2").inner_text() == " → ".join(names)
    assert set(page.locator("#details dt").all_inner_texts()) == set(graph.edges[tuple(names)])
    node(page, "factor:angle").click()
    node(page, "decoder.0[1]").hover()
    page.mouse.move(5, 840)
    assert page.locator("#details h2").inner_text() == "factor:angle"
    page.locator("#details li button").first.click()
    assert page.locator("#details h2").inner_text() == "encoder.4[7]"
    page.locator("summary").click()
    assert "seed" in page.locator("#about").inner_text()
