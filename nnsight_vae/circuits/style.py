"""The one look of circuits in every format: orange lowers, blue raises, grey is neither; no red against green."""

from __future__ import annotations

RAISES, LOWERS, NEUTRAL = "#0b6cb8", "#d8600a", "#8a8f98"
INK, FAINT = "#1b1f24", "#6b7280"
_FILLS = {
    "factor": "#fbf0d3",
    "readout": "#fbf0d3",
    "latent": "#e4e7f7",
    "encoder": "#eef2f6",
    "decoder": "#eef2f6",
    "input": "#f5f5f4",
    "output": "#f5f5f4",
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


def node_fill(data: dict[str, object]) -> str:
    """A pale fill by what the node is: factor or readout, latent, other unit."""
    return _FILLS.get(str(data.get("kind")), _FILLS.get(str(data.get("stage")), "#f5f5f4"))
