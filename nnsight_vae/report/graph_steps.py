"""Steps of an analysis that draw graphs: the model's own over the factors, and the circuits of units that carry them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nnsight_vae.causal.abstraction import interchange_accuracy
from nnsight_vae.causal.factor_circuits import factor_circuits
from nnsight_vae.causal.graphs import compare
from nnsight_vae.causal.model_graph import factor_graph
from nnsight_vae.circuits import extract_circuit, faithfulness
from nnsight_vae.circuits.drawing.draw import plot_circuit, plot_factor_graph
from nnsight_vae.errors import CircuitError
from nnsight_vae.report.run import Run

_PAIRS = 32  # of each factor in the circuits of all of them: enough for their strong edges, and the report stays short
_INPUTS = 128  # most images of the graph through the inputs, each of which is rendered anew for every factor
_FORMATS = ("json", "graphml", "html")


def relate_factors(run: Run) -> None:
    """Drawing the model's graph over the factors."""
    n, seed, truth = len(run.batch), run.settings.seed, run.data.graph
    built = {"latents": factor_graph(run.vae, run.data, run.mapping, n=n, seed=seed)}
    if run.intervenes and run.complete:
        built["inputs"] = factor_graph(run.vae, run.data, through="inputs", n=min(n, _INPUTS), seed=seed)
    run.sections["factor_graph"] = {}
    for through, graph in built.items():
        suffix = "" if through == "latents" else f"_{through}"
        run.folder.graph(f"factor_graph{suffix}.graphml", graph)
        section: dict[str, Any] = {"edges": [_edge(*edge) for edge in graph.edges(data=True)]}
        if truth is not None and run.complete:
            section["comparison"] = compare(graph, truth).to_dict()
            run.folder.figure(f"factor_graph{suffix}.png", plot_factor_graph(graph, truth)[0])
        run.sections["factor_graph"][through] = section
    run.model_graph = built.get("inputs", built["latents"])
    if run.intervenes and run.complete:
        accuracy = interchange_accuracy(run.vae, run.data, run.mapping, n=n, seed=seed, readout=run.readout)
        run.folder.table("interchange.csv", accuracy.to_frame())
        run.sections["interchange"] = [asdict(row) for row in accuracy.rows]


def extract_one(run: Run) -> None:
    """Extracting a circuit."""
    # One circuit, of the factor the latents move most: a factor the model does not carry has none to show.
    reach = dict(zip(run.mapping.factors, run.mapping.size.max(axis=0), strict=True))
    factor = max(run.factors, key=lambda name: reach[name])
    target = run.data.readout([factor])
    try:
        circuit = extract_circuit(run.vae, run.pairs(factor), target)
        others = run.data.pairs(factor, run.settings.pairs, seed=run.settings.seed + 1)  # not those it was found on
        scores = faithfulness(run.vae, circuit, others, target)
    except CircuitError as error:
        run.summary.cautions.append(f"no circuit was drawn: {error}")
        return
    for suffix in _FORMATS:
        run.folder.graph(f"circuit.{suffix}", circuit)
    if circuit.number_of_edges():
        run.folder.figure("circuit.png", plot_circuit(circuit)[0])
    run.sections["circuit"] = {
        "factor": factor,
        "nodes": circuit.number_of_nodes(),
        "edges": circuit.number_of_edges(),
        "faithfulness": str(scores),
    }


def extract_all(run: Run) -> None:
    """Hanging the circuit of every factor into the graph of the factors."""
    try:
        found = factor_circuits(
            run.vae,
            run.data,
            run.mapping,
            factors=run.factors,
            model=run.model_graph,
            n=min(_PAIRS, run.settings.pairs),
            seed=run.settings.seed,
            readout=run.readout,
        )
    except CircuitError:  # as the step before said
        return
    for suffix in _FORMATS:
        run.folder.graph(f"factor_circuits.{suffix}", found.graph)
    run.folder.table("factor_circuits.csv", found.to_frame())
    if found.graph.number_of_edges():
        run.folder.figure("factor_circuits.png", plot_circuit(found.graph)[0])
    run.sections["factor_circuits"] = str(found).splitlines()


def _edge(cause: str, effect: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"cause": cause, "effect": effect, "size": data["size"], "low": data["ci_low"], "high": data["ci_high"]}
