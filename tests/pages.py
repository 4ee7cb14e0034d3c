"""The interactive page opened in a browser, and what can be read off it: shared by the tests that use one.

Needs Chromium (Debian: `apt-get install chromium`; or CHROMIUM=/path/to/it) and the package playwright. Without them these tests are
skipped, except in CI, where they fail.
"""

import itertools
import os
import shutil

import networkx as nx
import numpy as np
import pytest

from nnsight_vae.circuits.files.export import export

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def layered_circuit(width=4, depth=5, seed=0):
    """A dense circuit with skip edges, every edge on a path from the factor to the readout."""
    rng = np.random.default_rng(seed)
    graph = nx.DiGraph(schema="nnsight-vae/circuit@1", model="ConvVAE", method="ig", pairs={"factor": "angle", "n": 64})
    columns = [
        ["factor:angle"],
        *([f"encoder.{d}[{i}]" for i in range(width)] for d in range(depth)),
        ["readout:angle"],
    ]
    for layer, names in enumerate(columns):
        for name in names:
            kind = name.split(":")[0] if ":" in name else "conv"
            site = None if ":" in name else name.split("[")[0]
            graph.add_node(name, kind=kind, stage="encoder", layer=layer, site=site, effect=float(rng.normal()))
    for here, there in itertools.pairwise(columns):
        for a, b in itertools.product(here, there):
            effect = float(rng.normal())
            graph.add_edge(a, b, effect=effect, ci_low=effect - 0.5, ci_high=effect + 0.5, share=effect)
    for here, there in zip(columns[1:], columns[3:], strict=False):
        graph.add_edge(here[0], there[-1], effect=1.0, share=1.0)
    return graph


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    missing = None if path else "no Chromium is installed"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "the package playwright is not installed"
    if missing and os.environ.get("CI"):
        pytest.fail(f"{missing}, and in CI the page must be tried in a browser")
    if missing:
        pytest.skip(missing)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a graph's page; whatever it asks for beyond its own file, says on the console or pops up fails the test."""
    contexts, complaints = [], []

    def opened(graph, *, size=(1300, 850), scheme="light", thumbnails=None):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        path = export(graph, tmp_path / f"{len(contexts)}.html", thumbnails=thumbnails)
        page.on(
            "request",
            lambda r: r.url in (path.as_uri(),) or r.url.startswith("data:image/") or complaints.append(r.url),
        )
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(path.as_uri())
        page.complaints = complaints
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def node(page, name):
    return page.locator(f'.node[data-node="{name}"]')


def shown_nodes(page, only=""):
    return set(page.evaluate(f"marks.filter(m => m.style.display !== 'none' {only}).map(m => m.dataset.node)"))


def shown_edges(page, only=""):
    return {
        tuple(pair)
        for pair in page.evaluate(
            "[...find('edges').children]"
            f".filter(p => true {only})"
            ".map(p => edges[p.dataset.edge]).map(e => [nodes[e.source].name, nodes[e.target].name])"
        )
    }


LIT = "&& !{}.classList.contains('away')"


def lit_nodes(page):
    return shown_nodes(page, LIT.format("m"))


def lit_edges(page):
    return shown_edges(page, LIT.format("p"))


def slide(page, key, times=1):
    page.locator("#count").focus()
    for _ in range(times):
        page.keyboard.press(key)


def status(page):
    return page.locator("#status").inner_text()


def through(graph, name):
    """Nodes and edges on paths through a node, by networkx."""
    up, down = nx.ancestors(graph, name) | {name}, nx.descendants(graph, name) | {name}
    on = {(a, b) for a, b in graph.edges if (a in up and b in up) or (a in down and b in down)}
    return up | down, on
