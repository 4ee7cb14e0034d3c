"""The page of a report: every finding with its figures, links that lead somewhere, and nothing fetched from elsewhere."""

import re
from pathlib import Path

import pytest

from nnsight_vae.report.page import page
from nnsight_vae.report.summary import Summary

TEXT = """my-vae on blobs
  KL per latent, nats: 3.00

Latents: 1 monosemantic
  x <size>           latent.z[0] moves it by 2.97 sd

Units that carry x <size>: 2 of 9 (FDR 0.05)
  latent.z[0]       +1.30 sd

Circuit of x <size>: 4 nodes, 5 edges
  faithfulness 0.8

Read with care
  - few pairs"""
FILES = [
    "factor_map.csv", "figures/latents.png", "figures/effects_x <size>.png", "figures/circuit.png", "circuit.html",
    "index.html", "summary.json",
]  # fmt: skip


@pytest.fixture
def html(monkeypatch):
    monkeypatch.setattr(Summary, "text", lambda self: TEXT)
    return page(Summary(Path("out"), files=FILES))


def test_every_section_is_there_under_its_heading_with_names_escaped(html):
    assert re.findall("<h[12]>(.*?)</h[12]>", html) == [
        "my-vae on blobs",
        "Latents: 1 monosemantic",
        "Units that carry x &lt;size&gt;: 2 of 9 (FDR 0.05)",
        "Circuit of x &lt;size&gt;: 4 nodes, 5 edges",
        "Read with care",
        "Files",
    ]
    assert "<size>" not in html
    assert "<pre>latent.z[0]       +1.30 sd</pre>" in html


def test_figures_that_were_drawn_stand_in_their_section_and_others_nowhere(html):
    latents, units, circuit = html.split("<h2>")[1:4]
    assert re.findall('src="(.*?)"', latents) == ["figures/latents.png"]  # no traversals were drawn
    assert re.findall('src="(.*?)"', units) == ["figures/effects_x &lt;size&gt;.png"]
    assert re.findall('src="(.*?)"', circuit) == ["figures/circuit.png"]
    assert '<a href="circuit.html">explore it</a>' in circuit
    assert html.count("<img") == 3


def test_every_file_is_linked_and_nothing_is_fetched_from_elsewhere(html):
    files = html.split("<h2>Files</h2>")[1]
    assert re.findall('href="(.*?)"', files) == [name.replace("<", "&lt;").replace(">", "&gt;") for name in FILES]
    assert "://" not in html
    assert "<script" not in html


def test_a_printed_summary_says_where_the_page_is(monkeypatch):
    monkeypatch.setattr(Summary, "text", lambda self: TEXT)
    assert str(Summary(Path("out"), files=FILES)).splitlines()[-1].startswith("Open out/index.html: ")
