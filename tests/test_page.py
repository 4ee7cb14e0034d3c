"""The interactive page as a file: what it holds, and that nothing in a graph can act in it. What it does: test_page_in_browser."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html import unescape

import networkx as nx
import numpy as np
import pytest
from graphs import circuit

from nnsight_vae import CircuitError
from nnsight_vae.circuits.drawing.html import _asset
from nnsight_vae.circuits.files.export import export
from nnsight_vae.plots import plot_circuit
from nnsight_vae.style import FACTORS, FILLS, LOWERS, RAISES


def written(graph, tmp_path, **options):
    return export(graph, tmp_path / "c.html", **options).read_text()


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))


def test_the_page_holds_every_node_and_edge_with_all_attributes(tmp_path):
    graph = circuit()
    data = data_of(written(graph, tmp_path))
    assert {node["name"]: node["of"] for node in data["nodes"]} == {n: dict(d) for n, d in graph.nodes(data=True)}
    names = [node["name"] for node in data["nodes"]]
    found = {
        (names[source], names[target]): data["edgeSame"]
        | {name: v for name, v in zip(data["edgeNames"], row, strict=True) if v != {"$absent": True}}
        for (source, target, *_), row in zip(data["edges"], data["edgeRows"], strict=True)
    }
    assert set(found) == set(graph.edges)
    for edge, attributes in graph.edges.items():
        assert set(found[edge]) == set(attributes)
        for name, value in attributes.items():
            assert (
                found[edge][name] == pytest.approx(value, rel=1e-5)
                if isinstance(value, float)
                else found[edge][name] == value
            )
    assert data["about"]["provenance"] == {"seed": 0, "pairs": [1, 2]}


def test_edges_come_from_the_most_prominent_paths_to_the_least_and_enough_of_them_are_shown_at_first(tmp_path):
    graph = nx.DiGraph()
    for i in range(20):
        for j in range(20):
            graph.add_edge(f"a[{i}]", f"b[{j}]", effect=(20 * i + j + 1) / 400)
    data = data_of(written(graph, tmp_path))
    values = [value for _, _, _, _, value, _, _ in data["edges"]]
    assert values == sorted(values, reverse=True)
    assert data["start"] == 200
    wide = nx.DiGraph()
    wide.add_weighted_edges_from((f"a[{i}]", f"b[{i}]", 1.0 + i) for i in range(50))
    assert data_of(written(wide, tmp_path))["start"] == 30  # between 60 nodes


def test_the_page_names_no_other_place_and_forbids_every_request(tmp_path):
    text = written(circuit(), tmp_path)
    assert not re.search(
        r"(?<!xmlns=\")https?://(?!www\.w3\.org/2000/svg)|@import|url\(|\bimport\b|fetch\(|eval\(", text
    )
    policy = unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text).group(1))
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for element in ("style", "script"):
        content = re.search(rf"<{element}>(.*?)</{element}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


NASTY = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \" ' & $price$ {{data}} \u2028 潜在"


def test_nothing_in_a_graph_can_end_the_data_or_become_markup(tmp_path):
    graph = nx.DiGraph(estimand=NASTY, method=NASTY, factors=[NASTY, "b"], note=NASTY)
    graph.add_node(NASTY, kind="unit", site=NASTY, label=NASTY, **{NASTY: NASTY})
    graph.add_edge(NASTY, "b", effect=1.0, factors={NASTY: 1.0}, **{NASTY: NASTY})
    text = written(graph, tmp_path)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text.replace("img-src", "")
    assert "<!--" not in text
    data = data_of(text)
    assert data["nodes"][0]["name"] == NASTY
    assert data["nodes"][0]["of"][NASTY] == NASTY
    assert data["about"]["note"] == NASTY


def test_the_page_of_a_graph_without_edges_nodes_or_effects_is_written(tmp_path):
    for graph in (nx.DiGraph(), nx.DiGraph([("a", "b")]), nx.DiGraph([("a", "b"), ("b", "a")])):
        assert len(data_of(written(graph, tmp_path))["edges"]) == graph.number_of_edges()


def test_edges_of_several_factors_have_a_part_for_each(tmp_path):
    graph = nx.DiGraph(factors=["angle", "light"])
    graph.add_edge("a", "b", effect=1.0, factors={"light": -0.25, "angle": 0.5})
    graph.add_edge("a", "c", effect=1.0, factors={"light": 1.0})
    data = data_of(written(graph, tmp_path))
    assert [factor["name"] for factor in data["factors"]] == ["angle", "light"]
    assert sorted(edge[-1] for edge in data["edges"]) == [[[0, 0.5], [1, -0.25]], [[1, 1.0]]]
    assert data["largest"] == 1.0


def test_a_faithfulness_curve_is_taken_where_the_graph_holds_one(tmp_path):
    graph = circuit()
    graph.graph["curve"] = ((1, {"angle": 0.5}), (4, {"angle": None}))
    assert data_of(written(graph, tmp_path))["curve"] == [[1, {"angle": 0.5}], [4, {"angle": None}]]
    for other in ("steep", [1, 2], None):
        graph.graph["curve"] = other
        assert data_of(written(graph, tmp_path))["curve"] == []


def test_each_picture_is_stored_once_and_ends_take_the_picture_of_their_kind(tmp_path):
    grey, uri = np.full((2, 4), 0.5), "data:image/png;base64,AAAA"
    pictures = {
        "encoder.4[7]": grey,
        "latent.z[3]": grey,
        "factor": uri,
        "readout": uri,
        "no such unit": grey,
        "unit": uri,
    }
    data = data_of(written(circuit(), tmp_path, thumbnails=pictures))
    assert len(data["pictures"]) == 2
    found = {node["name"]: node["picture"] and node["picture"]["index"] for node in data["nodes"]}
    assert found == {"factor:angle": 0, "encoder.4[7]": 1, "latent.z[3]": 1, "decoder.0[1]": None, "readout:angle": 0}
    shapes = [node["picture"]["width"] / node["picture"]["height"] for node in data["nodes"] if node["picture"]]
    assert shapes == pytest.approx([1, 2, 2, 1], rel=1e-2)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros(3), r"has shape \(3,\); expected \[h, w\] or \[h, w, 3\]"),
        (np.zeros((2, 2, 4)), r"has shape \(2, 2, 4\)"),
        (np.zeros((0, 2)), r"has shape \(0, 2\)"),
        (np.full((2, 2), np.nan), r"no finite numbers"),
        (np.array([["a"]]), r"no finite numbers"),
        ("https://example.org/x.png", r"no data URI"),
        ("data:image/svg+xml;base64,AAAA", r"no data URI"),
        ('data:image/png;base64,"onload=', r"no data URI"),
        ("data:image/png;base64,AAAA,https://example.org", r"no data URI"),
        (None, r"has shape \(\)"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_written(tmp_path, picture, message):
    with pytest.raises(CircuitError, match=r"thumbnail of 'latent.z\[3\]'.*" + message):
        written(circuit(), tmp_path, thumbnails={"latent.z[3]": picture})
    assert not list(tmp_path.iterdir())


def test_other_formats_take_no_thumbnails(tmp_path):
    with pytest.raises(CircuitError, match=r"shown by the \.html page only"):
        export(circuit(), tmp_path / "c.json", thumbnails={})


def test_a_page_of_200_units_with_pictures_stays_under_3_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    graph = nx.DiGraph()
    pictures = {}
    for i in range(100):
        for j in range(0, 100, 2):
            graph.add_edge(f"a[{i}]", f"b[{j}]", **dict.fromkeys(["effect", "ci_low", "ci_high", "p"], rng.normal()))
        pictures |= {f"a[{i}]": rng.random((32, 32)), f"b[{i}]": rng.random((32, 32, 3))}  # noise: the worst case
    assert export(graph, tmp_path / "c.html", thumbnails=pictures).stat().st_size < 3_000_000


def test_the_page_has_the_colours_of_every_other_picture():
    style = _asset("page.css")
    light = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", style[: style.index("@media")]))
    assert (light["raises"], light["lowers"]) == (RAISES, LOWERS)
    assert tuple(re.findall(r"--factor-\d: (#[0-9a-f]{6})", style[: style.index("@media")])) == FACTORS
    assert {name: light[name] for name in FILLS} == FILLS


def test_writing_a_page_needs_no_matplotlib(tmp_path):
    program = (
        "import sys, networkx, numpy; from nnsight_vae.circuits.files.export import export;"
        "export(networkx.DiGraph([('a', 'b')]), sys.argv[1], thumbnails={'a': numpy.ones((2, 2))});"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "c.html")], check=True)


@pytest.mark.parametrize(("unit", "shown"), [("factor sd", " factor sd"), (None, ""), (3, "")])
def test_the_key_says_what_effects_are_in(tmp_path, unit, shown):
    graph = circuit()
    graph.graph |= {"unit": unit} if unit else {}
    assert data_of(written(graph, tmp_path))["unit"] == shown
    _, axes = plot_circuit(graph)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sum(label.endswith("factor sd") for label in labels) == (unit == "factor sd")
