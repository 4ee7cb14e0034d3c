"""Circuits and factor graphs to files that other tools open, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx

from nnsight_vae._files import write_atomically
from nnsight_vae.circuits import exchange, graphml
from nnsight_vae.circuits.attributes import decode
from nnsight_vae.circuits.records import CIRCUIT_SCHEMA, PLAIN_SCHEMA, SCHEMAS, Records
from nnsight_vae.errors import CircuitError, NnsightVaeError


def export(graph: nx.DiGraph, path: str | os.PathLike[str]) -> Path:
    """Write a circuit, or any directed graph such as a factor graph, in the format of the path's suffix.

    `.json` (node-link, `networkx.node_link_graph(data, edges="edges")` reads it) and `.graphml` (Gephi, yEd,
    Cytoscape, igraph) keep everything and are read back by `read_circuit`. The others are views: `.gexf` (Gephi),
    `.dot` (Graphviz), `.cyjs` (Cytoscape), `.csv` (edge list; nodes without edges are not in it), `.html` (one
    interactive page, works offline), `.svg`, `.png`, `.pdf` (the picture of `plots.plot_circuit`).

    Args:
        graph: node ids are strings. Attributes may be numbers, text, None, tuples, lists, dicts and arrays.
        path: where to write; an existing file is replaced once the new one is complete.

    Returns: the path written.

    Raises:
        CircuitError: an unknown suffix, a graph that no file can hold (see the message), a cyclic circuit, or a folder
            that cannot be written to.

    Example:
        >>> import tempfile
        >>> circuit = nx.DiGraph(schema="nnsight-vae/circuit@1")
        >>> circuit.add_edge("latent.z[3]", "readout:angle", effect=0.8, ci=(0.7, 0.9))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = read_circuit(export(circuit, folder + "/angle.graphml"))
        >>> again.edges["latent.z[3]", "readout:angle"]
        {'effect': 0.8, 'ci': (0.7, 0.9)}
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise CircuitError(f"{path.name!r} has no known suffix; graphs are written to {', '.join(_WRITERS)}.")
    write_atomically(path, write(Records.of(graph), graph), CircuitError)
    return path


def read_circuit(path: str | os.PathLike[str]) -> nx.DiGraph:
    """Read a graph that `export` wrote to `.json` or `.graphml`; every attribute comes back equal and of its kind.

    NumPy and torch scalars come back as Python numbers of the same value, tensors as arrays.

    Raises:
        CircuitError: a missing, unreadable or damaged file, one that this package did not write, an unknown schema
            version, or a circuit with a cycle.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise CircuitError(f"{path.name!r}: circuits are read from {' and '.join(_READERS)} files only.")
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CircuitError(f"Cannot read {path}: {error}.") from error
    try:
        graph = read(text)
    except NnsightVaeError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError) as error:
        # ElementTree's ParseError is a SyntaxError; the others are data of a shape that export never writes
        raise CircuitError(
            f"{path} is not a graph written by nnsight_vae ({type(error).__name__}: {error}); it is damaged or comes "
            "from elsewhere. Other files can be read with networkx itself."
        ) from error
    _check_schema(graph, path)
    return graph


def _check_schema(graph: nx.DiGraph, path: Path) -> None:
    schema = graph.graph.get("schema")
    if schema not in SCHEMAS:
        got = "no schema" if schema is None else f"schema {schema!r}"
        raise CircuitError(f"{path} has {got}; this version reads {', '.join(SCHEMAS)}. Other files: use networkx.")
    if schema == CIRCUIT_SCHEMA and not nx.is_directed_acyclic_graph(graph):
        raise CircuitError(f"{path} holds a circuit with the cycle {nx.find_cycle(graph)}; circuits are acyclic.")
    if schema == PLAIN_SCHEMA:  # a mark of the file, not an attribute the graph had
        del graph.graph["schema"]


def _write_json(records: Records, graph: nx.DiGraph) -> bytes:
    data = {
        "directed": True,
        "multigraph": False,
        "graph": records.graph,
        "nodes": [{"id": node, **attributes} for node, attributes in records.nodes],
        "edges": [{"source": a, "target": b, **attributes} for a, b, attributes in records.edges],
    }
    # ASCII escapes: a lone surrogate in a name survives, and every tool reads the file
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def _read_json(text: str) -> nx.DiGraph:
    data = json.loads(text)
    if data["directed"] is not True or data["multigraph"] is not False:
        raise ValueError("it is not a simple directed graph")
    return Records(
        graph=dict(data["graph"]),
        nodes=[(node.pop("id"), node) for node in data["nodes"]],
        edges=[(edge.pop("source"), edge.pop("target"), edge) for edge in data["edges"]],
    ).to_graph(decode)


def _write_html(records: Records, graph: nx.DiGraph) -> bytes:
    from nnsight_vae.circuits.html import page

    return page(records, graph).encode("utf-8", "backslashreplace")


def _picture(file_format: str) -> Callable[[Records, nx.DiGraph], bytes]:
    def write(records: Records, graph: nx.DiGraph) -> bytes:
        from nnsight_vae._canvas import figure_bytes
        from nnsight_vae.circuits.draw import plot_circuit

        figure, _ = plot_circuit(graph)
        return figure_bytes(figure, file_format)

    return write


_WRITERS: dict[str, Callable[[Records, Any], bytes]] = {
    ".json": _write_json,
    ".graphml": lambda records, graph: graphml.write(records),
    ".gexf": exchange.gexf,
    ".dot": exchange.dot,
    ".csv": exchange.csv,
    ".cyjs": exchange.cyjs,
    ".html": _write_html,
    ".svg": _picture("svg"),
    ".png": _picture("png"),
    ".pdf": _picture("pdf"),
}
_READERS: dict[str, Callable[[str], nx.DiGraph]] = {
    ".json": _read_json,
    ".graphml": lambda text: graphml.read(text).to_graph(decode),
}
