"""The page of a report: what was found and the figures in one place, with links to every file; it opens offline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from nnsight_vae.report.summary import Summary

_FIGURES = {  # how a section of the text begins -> its figures and their captions
    "Latents:": {
        "latents": "What each latent does to each factor",
        "traversals": "Each latent moved across the data, the most informative on top",
    },
    "The model's graph over factors, moving latents": {"factor_graph": "The model's graph over the true one"},
    "The model's graph over factors, moving the world": {"factor_graph_inputs": "The model's graph over the true one"},
    "Circuit of": {"circuit": "The circuit, its most prominent edges"},
    "The units of each factor": {"factor_circuits": "The circuits of all factors in the graph of the factors"},
}
_UNITS_OF = re.compile(r"Units that carry (?P<factor>.+): ")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 1rem 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
pre { font: .85rem/1.5 ui-monospace, monospace; background: #f5f6f8; border-radius: 6px; padding: .8rem; white-space: pre-wrap; }
figure { margin: 1.5rem 0; } img { max-width: 100%; max-height: 60rem; } figcaption, .files { color: #57606a; font-size: .9rem; }
a { color: #0b6cb8; } li { overflow-wrap: anywhere; }
"""


def page(summary: Summary) -> str:
    """An HTML page beside the files that it shows and links to.

    Args:
        summary: of a finished report.
    """
    first, *sections = summary.text().split("\n\n")
    title, _, about = first.partition("\n")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{_STYLE}</style>',
        f"<h1>{escape(title)}</h1>",
        f"<pre>{escape(_unindented(about))}</pre>",
        *(part for section in sections for part in _section(section, summary.files)),
        "<h2>Files</h2><ul class=files>",
        *(f"<li>{_link(name, name)}</li>" for name in summary.files),
        "</ul></html>",
    ]
    return "\n".join(parts)


def _section(text: str, files: Sequence[str]) -> Iterator[str]:
    """A heading, the text below it, and the figures that belong there."""
    heading, _, body = text.partition("\n")
    yield f"<h2>{escape(heading)}</h2>"
    if body:
        yield f"<pre>{escape(_unindented(body))}</pre>"
    for stem, caption in _figures(heading).items():
        source = f"figures/{stem}.png"
        if source in files:
            more = f" ({_link(f'{stem}.html', 'explore it')})" if f"{stem}.html" in files else ""
            image = f'<img src="{escape(source)}" alt="{escape(caption)}" loading=lazy>'
            yield f"<figure>{image}<figcaption>{escape(caption)}{more}</figcaption></figure>"


def _figures(heading: str) -> dict[str, str]:
    for start, figures in _FIGURES.items():
        if heading.startswith(start):
            return figures
    found = _UNITS_OF.match(heading)
    return {f"effects_{found['factor']}": "Mean effects of patching each unit"} if found else {}


def _link(target: str, text: str) -> str:
    return f'<a href="{escape(target)}">{escape(text)}</a>'


def _unindented(text: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in text.splitlines())
