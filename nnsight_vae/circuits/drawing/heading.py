"""What a picture of a graph is called, from what the graph says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx


def heading(graph: nx.DiGraph) -> tuple[str, str]:
    """A title, which effect is drawn, and a line on where it comes from; either may be empty.

    Example:
        >>> graph = nx.DiGraph(model="ConvVAE", method="ig", pairs={"factor": "angle", "n": 64}, total_effect={"angle": {}})
        >>> heading(graph)
        ('angle → angle', 'ConvVAE · ig · 64 pairs')
    """
    about = graph.graph
    factors = about.get("factors")
    of_each = about.get("circuits")
    if isinstance(factors, (list, tuple)) and factors:
        first: Mapping[str, Any] = next(iter(of_each.values()), {}) if isinstance(of_each, Mapping) else {}
        return f"Circuits of {', '.join(map(str, factors))}", _source({**first, **about, "pairs": None})
    pairs = about.get("pairs")
    factor = pairs.get("factor") if isinstance(pairs, Mapping) else None
    total = about.get("total_effect")
    drawn = [str(node).removeprefix("readout:") for node, kind in graph.nodes(data="kind") if kind == "readout"]
    targets = drawn or (list(total) if isinstance(total, Mapping) else [])
    title = f"{factor} → {', '.join(map(str, targets))}" if factor and targets else ""
    return title, _source(about)


def unit(graph: nx.DiGraph) -> str:
    """What effects are in, to stand behind a number; empty where the graph does not say.

    Example:
        >>> unit(nx.DiGraph(unit="sd"))
        ' sd'
    """
    found = graph.graph.get("unit")
    return f" {found}" if isinstance(found, str) else ""


def _source(about: Mapping[str, Any]) -> str:
    parts = [about.get("model"), about.get("estimand"), about.get("method")]
    pairs = about.get("pairs")
    if isinstance(pairs, Mapping) and pairs.get("n"):
        parts.append(f"{pairs['n']} pairs")
    return " · ".join(part for part in parts if isinstance(part, str) and part)
