"""The one look of pictures in every format: orange lowers, blue raises, grey is neither; no red against green."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RAISES, LOWERS, NEUTRAL = "#0b6cb8", "#d8600a", "#8a8f98"
INK, FAINT = "#1b1f24", "#6b7280"
# Of factors, where edges are coloured by factor: told apart with every common colour blindness, and none that means a sign
FACTORS = ("#44998f", "#b58900", "#2d004b", "#6a51a3", "#7a4a14", "#c2185b")
FILLS = {"end": "#fbf0d3", "latent": "#e4e7f7", "unit": "#eef2f6", "image": "#f5f5f4"}
_LOOKS = {
    "factor": "end",
    "readout": "end",
    "latent": "latent",
    "encoder": "unit",
    "decoder": "unit",
    "input": "image",
    "output": "image",
}


def edge_colour(strength: float | None) -> str:
    """Blue for a positive effect, orange for a negative one, grey where there is none.

    Example:
        >>> edge_colour(0.3) == RAISES, edge_colour(None) == NEUTRAL
        (True, True)
    """
    if not strength:
        return NEUTRAL
    return RAISES if strength > 0 else LOWERS


def interval_colour(low: float, high: float) -> str:
    """Of an effect with this interval: clear of 0 on one side, or neither.

    Example:
        >>> interval_colour(-0.2, -0.1) == LOWERS, interval_colour(-0.2, 0.1) == NEUTRAL
        (True, True)
    """
    return RAISES if low > 0 else LOWERS if high < 0 else NEUTRAL


def node_look(data: Mapping[str, Any]) -> str:
    """What a node looks like, by its kind and stage: `end` (factor or readout), `latent`, `unit` or `image`."""
    return _LOOKS.get(str(data.get("kind")), _LOOKS.get(str(data.get("stage")), "image"))


def node_fill(data: Mapping[str, Any]) -> str:
    """The pale fill of its look."""
    return FILLS[node_look(data)]


def factor_colours(graph_attributes: Mapping[str, Any]) -> dict[str, str]:
    """Factor -> colour, for a graph that holds the circuits of several; empty for any other.

    Example:
        >>> factor_colours({"factors": ["angle", "light"]})
        {'angle': '#44998f', 'light': '#b58900'}
    """
    factors = graph_attributes.get("factors")
    if not isinstance(factors, (list, tuple)) or len(factors) < 2:
        return {}
    return {str(factor): FACTORS[i % len(FACTORS)] for i, factor in enumerate(factors)}
