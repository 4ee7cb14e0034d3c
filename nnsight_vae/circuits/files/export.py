"""Circuits and factor graphs to files that other tools open, and back."""

from __future__ import annotations

import csv as csv_module
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from nnsight_vae._files import write_atomically
from nnsight_vae.circuits.files import dot, exchange, gexf, graphml
from nnsight_vae.circuits.graph.records import CIRCUIT_SCHEMA, SCHEMAS, Records, require_circuit
from nnsight_vae.errors import CircuitError


def export(
    graph: nx.DiGraph,
    path: str | os.PathLike[str],
    *,
    thumbnails: Mapping[str, Any] | None = None,
) -> Path:
    """Write a circuit, or any directed graph such as a factor graph, in the format of the path's suffix.

    `read_circuit` reads these back, every attribute equal and of its kind, provenance among them:

    - `.json`: node-link, `networkx.node_link_graph(data, edges="edges")` reads it too. The reference: see `FORMAT.md` beside this module.
    - `.graphml` (Gephi, yEd, Cytoscape, igraph), `.gexf` (Gephi, drawn), `.cyjs` (Cytoscape), `.dot` (Graphviz).
    - `.csv`: the edge list for spreadsheets and data frames; nodes and graph go to `.nodes.json` beside it.

    These are pictures: `.html` (one interactive page that works offline), `.svg`, `.png`, `.pdf` (as `plots.plot_circuit`).

    Args:
        graph: node ids are strings. Attributes may be numbers, text, None, tuples, lists, dicts and arrays.
        path: where to write; an existing file is replaced once the new one is complete.
        thumbnails: pictures for nodes of the `.html` page, id -> image `[h, w]` or `[h, w, 3]` in [0, 1] or a `data:image/`
            URI; `circuits.thumbnails(vae, x)` makes them. Ids that are not in the graph are left out.

    Returns: the path written.

    Raises:
        CircuitError: an unknown suffix, a graph that no file can hold (see the message), a cyclic circuit, thumbnails that
            are no images or with another suffix, or a folder that cannot be written to.

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
    suffix = path.suffix.lower()
    write = _WRITERS.get(suffix)
    if write is None:
        raise CircuitError(f"{path.name!r} has no known suffix; graphs are written to {', '.join(_WRITERS)}.")
    if thumbnails is not None and suffix != ".html":
        raise CircuitError(
            f"thumbnails are shown by the .html page only, and {path.name!r} is another format; leave them out."
        )
    records = Records.of(graph)
    data = write(records, graph) if thumbnails is None else _write_html(records, graph, thumbnails)
    if suffix == ".csv":
        beside = {**Records(records.graph, records.nodes, []).to_node_link(), "n_edges": len(records.edges)}
        write_atomically(_nodes_of(path), _json(beside), CircuitError)
    write_atomically(path, data, CircuitError)
    return path


def read_circuit(path: str | os.PathLike[str]) -> nx.DiGraph:
    """Read a graph that `export` wrote to .json, .graphml, .gexf, .cyjs, .dot or .csv; every attribute comes back equal.

    NumPy and torch scalars come back as Python numbers of the same value, tensors as arrays. `.csv` needs its `.nodes.json`
    beside it, and does not keep the order of an edge's attributes.

    Raises:
        CircuitError: a missing, unreadable or damaged file (the message says where), one that this package did not write, an
            unknown schema version, a circuit with a cycle, or an attribute of a circuit of another type than it must have.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS and suffix != ".csv":
        raise CircuitError(
            f"{path.name!r}: circuits are read from {', '.join([*_READERS, '.csv'])} files only; export to one of them."
        )
    graph = _read_csv(path) if suffix == ".csv" else _parsed(path, lambda text: _READERS[suffix](text).to_graph())
    _check_schema(graph, path)
    return graph


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CircuitError(f"Cannot read {path}: {error}.") from error
    try:
        return parse(text)
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, csv_module.Error) as error:
        # ElementTree's ParseError is a SyntaxError; TypeError to RecursionError are data of a shape that export never writes
        raise CircuitError(
            f"{path} is not a graph written by nnsight_vae: {error or type(error).__name__}. It is damaged or comes from "
            "elsewhere: export the circuit again, or read the file with networkx itself."
        ) from error


def _read_csv(path: Path) -> nx.DiGraph:
    beside = _nodes_of(path)
    if path.exists() and not beside.exists():
        raise CircuitError(f"{path} is an edge list whose nodes were written to {beside.name}, which is not beside it.")
    data = _parsed(beside, json.loads)
    nodes = _parsed(beside, _read_json)

    def parse(text: str) -> nx.DiGraph:
        edges = exchange.read_csv(text)
        if len(edges) != data.get("n_edges"):
            raise ValueError(f"it holds {len(edges)} edges and {beside.name} says {data.get('n_edges')}")
        return Records(nodes.graph, nodes.nodes, edges).to_graph()

    return _parsed(path, parse)


def _nodes_of(path: Path) -> Path:
    return path.with_suffix(".nodes.json")


def _check_schema(graph: nx.DiGraph, path: Path) -> None:
    schema = graph.graph.get("schema")
    if schema not in SCHEMAS:
        got = "no schema" if schema is None else f"schema {schema!r}"
        raise CircuitError(
            f"{path} has {got}; this version reads {', '.join(SCHEMAS)}. Other files: read them with networkx; files of a later "
            "version: update nnsight-vae."
        )
    if schema == CIRCUIT_SCHEMA:
        require_circuit(graph, str(path))
    else:  # a mark of the file, not an attribute the graph had
        del graph.graph["schema"]


def _json(data: dict[str, Any]) -> bytes:
    # ASCII escapes: a lone surrogate in a name survives, and every tool reads the file
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def _read_json(text: str) -> Records:
    return Records.of_node_link(json.loads(text))


def _write_html(records: Records, graph: nx.DiGraph, thumbnails: Mapping[str, Any] | None = None) -> bytes:
    from nnsight_vae.circuits.drawing.html import page

    return page(records, graph, thumbnails or {}).encode("utf-8", "backslashreplace")


def _picture(file_format: str) -> Callable[[Records, nx.DiGraph], bytes]:
    def write(records: Records, graph: nx.DiGraph) -> bytes:
        from nnsight_vae._canvas import figure_bytes
        from nnsight_vae.circuits.drawing.draw import plot_circuit

        figure, _ = plot_circuit(graph)
        return figure_bytes(figure, file_format)

    return write


_WRITERS: dict[str, Callable[[Records, Any], bytes]] = {
    ".json": lambda records, graph: _json(records.to_node_link()),
    ".graphml": lambda records, graph: graphml.write(records),
    ".gexf": gexf.write,
    ".dot": dot.write,
    ".csv": lambda records, graph: exchange.csv(records),
    ".cyjs": exchange.cyjs,
    ".html": _write_html,
    ".svg": _picture("svg"),
    ".png": _picture("png"),
    ".pdf": _picture("pdf"),
}
_READERS: dict[str, Callable[[str], Records]] = {
    ".json": _read_json,
    ".graphml": graphml.read,
    ".gexf": gexf.read,
    ".cyjs": exchange.read_cyjs,
    ".dot": dot.read,
}
