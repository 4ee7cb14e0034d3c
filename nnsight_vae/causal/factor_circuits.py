"""Factor to factor, unit by unit: the circuit of every factor, hung into the graph of the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx

from nnsight_vae.arguments import require
from nnsight_vae.causal.mapping import FactorMap, map_factors
from nnsight_vae.causal.model_graph import Through, factor_graph
from nnsight_vae.circuits.selection.several import extract_circuits, union
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import DataError
from nnsight_vae.readouts import Readout, select
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd

NAMED = 0.01  # share of a factor's effect from which a latent is named in its story
STAGES = ("input", "encoder", "latent", "decoder", "output")


@dataclass(frozen=True, repr=False)
class FactorCircuits:
    """Which units carry each factor, from the image that shows it through the latents to the image that is decoded.

    Attributes:
        circuits: factor -> its circuit, from `factor:name` to `readout:name`.
        mapping: which latent carries which factor, with verdicts.
        model: the model's graph over the factors, from interventions.
        world: the true graph over the factors; None where it is not known.
    """

    circuits: Mapping[str, nx.DiGraph]
    mapping: FactorMap
    model: nx.DiGraph
    world: nx.DiGraph | None

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors that have a circuit."""
        return tuple(self.circuits)

    @property
    def graph(self) -> nx.DiGraph:
        """All of it as one acyclic graph of the schema of circuits, which every export takes and `read_circuit` gives back.

        Every edge says what it is in `relation`:

        - "world": `factor:i -> factor:j`, where i causes j in the world. `found`: whether the model's graph has an edge i -> j;
          `effect` (signed mean), `size` (mean absolute effect) and its bounds `size_low`, `size_high`: of that edge.
        - "circuit": `factor:i -> unit -> ... -> latent -> ... -> readout:i`, as in `circuits.union`.
        - "model": `factor:i -> readout:j`, where the model's graph has an edge i -> j. `true`: whether i is an ancestor of j in
          the world, a cause at any distance (None: not known); `effect`, `size`, `size_low`, `size_high`.

        Factors stand in the order of causes (`layer` 0 is the last of them). Latents say in `verdict` whether they are
        monosemantic, and in `assigned` which factor the one-to-one matching gives them; factors say which `latent` that is.
        """
        graph = union(self.circuits)
        nx.set_edge_attributes(graph, "circuit", "relation")
        graph.graph["model_graph"] = {k: v for k, v in self.model.graph.items() if k != "schema"}
        self._add_world(graph)
        self._add_model(graph)
        self._add_verdicts(graph)
        return graph

    def _add_world(self, graph: nx.DiGraph) -> None:
        if self.world is None:
            return
        generations = list(nx.topological_generations(self.world))
        for generation, names in enumerate(generations):
            for name in names:
                layer = generation - len(generations) + 1
                if _source(name) in graph:
                    graph.nodes[_source(name)]["layer"] = layer
                else:  # without a circuit of its own it is part of the world all the same
                    graph.add_node(_source(name), kind="factor", site=None, index=None, stage="factor", layer=layer)
        for i, j in self.world.edges:
            found = self.model.edges.get((i, j))
            attributes: dict[str, Any] = {"relation": "world", "found": found is not None, **_effect(found)}
            graph.add_edge(_source(i), _source(j), **attributes)

    def _add_model(self, graph: nx.DiGraph) -> None:
        causes = None if self.world is None else nx.transitive_closure_dag(self.world)
        for i, j, data in self.model.edges(data=True):
            if _source(i) in graph and _sink(j) in graph:
                true = None if causes is None else bool(causes.has_edge(i, j))
                graph.add_edge(_source(i), _sink(j), relation="model", true=true, **_effect(data))

    def _add_verdicts(self, graph: nx.DiGraph) -> None:
        matched = {unit: name for name in self.mapping.factors if (unit := self.mapping.unit(name)) is not None}
        for unit, verdict in zip(self.mapping.effects.units, self.mapping.verdicts, strict=True):
            if unit in graph:
                graph.nodes[unit].update(verdict=verdict, assigned=matched.get(unit))
        for unit, name in matched.items():
            if _source(name) in graph:
                graph.nodes[_source(name)]["latent"] = unit

    def to_frame(self) -> pd.DataFrame:
        """One row per factor and unit of its circuit: factor, stage, site, unit, effect, share, factors (all it is in), verdict.

        `share` is the part of the factor's total effect that the edges into the unit carry.
        """
        import pandas as pd

        return pd.DataFrame([row for factor in self.circuits for row in self._rows(factor)])

    def _rows(self, factor: str) -> list[dict[str, Any]]:
        circuit = self.circuits[factor]
        verdicts = dict(zip(self.mapping.effects.units, self.mapping.verdicts, strict=True))
        total = {name: each["mean"] for name, each in circuit.graph["total_effect"].items()}
        return [
            {
                "factor": factor,
                "stage": data["stage"],
                "site": data["site"],
                "unit": node,
                "effect": data["effect"],
                "share": data["effect"] / total[data["readout"]] if total.get(data["readout"]) else None,
                "factors": ", ".join(name for name, other in self.circuits.items() if node in other),
                "verdict": verdicts.get(node),
            }
            for node, data in circuit.nodes(data=True)
            if data["stage"] in STAGES
        ]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(circuit)} nodes" for name, circuit in self.circuits.items())
        return f"FactorCircuits({sizes}; {self.mapping!r})"

    def __str__(self) -> str:
        """A paragraph a factor: how many units carry it on the way in and out, and through which latents (1 % of its effect or more)."""
        return "\n".join(line for factor in self.circuits for line in self._story(factor))

    def _story(self, factor: str) -> list[str]:
        rows = self._rows(factor)
        if not rows:
            reason = next(iter(self.circuits[factor].graph.get("left_out", {}).values()), "no edge passed its test")
            return [f"{factor}: no circuit ({reason})"]
        latents = [row for row in rows if row["stage"] == "latent" and abs(row["share"] or 0.0) >= NAMED]
        named = [
            f"{row['unit']} {row['share']:.0%}" + (f" ({row['verdict']})" if row["verdict"] else "")
            for row in sorted(latents, key=lambda row: -abs(row["share"]))
        ]
        alone = [row for row in rows if row["stage"] in ("encoder", "decoder") and row["factors"] == factor]
        counts = {stage: sum(row["stage"] == stage for row in rows) for stage in ("encoder", "decoder")}
        return [
            f"{factor}: {counts['encoder']} units of the encoder -> {', '.join(named) or 'no one latent'} -> "
            f"{counts['decoder']} units of the decoder; {len(alone)} of them are in no other factor's circuit"
        ]


def factor_circuits(
    vae: VAE,
    data: Dataset,
    mapping: FactorMap | None = None,
    *,
    factors: Sequence[str] | None = None,
    model: nx.DiGraph | None = None,
    n: int = 64,
    seed: int = 0,
    readout: Readout | None = None,
    **options: Any,
) -> FactorCircuits:
    """The circuit of every factor from image to image, and what the factors do to each other in the world and in the model.

    Each circuit is found on pairs in which one factor moves and all others keep their values, so that what carries a factor is
    told apart from what carries its effects.

    Args:
        vae: the model.
        data: a dataset with factors.
        mapping: from `map_factors`; found where not given.
        factors: those to find circuits of; None: all that the readout reads.
        model: the model's graph over the factors; by default `factor_graph` through the inputs where the data can be
            intervened on, else through the latents.
        n: pairs per factor.
        seed: of the pairs.
        readout: of the factors; `data.readout()` by default.
        options: of `extract_circuit`, such as `select` and `method`.

    Returns: `FactorCircuits`: print it, `nv.export(found.graph, "factors.html")` it, or take its table.

    Raises:
        DataError: no data set, an unknown factor, a mapping or graph of other factors, or as `data.pairs`.
        AdapterError: what is given is no `VAE`.
        CircuitError: as `extract_circuit`.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> mapping = nv.causal.map_factors(vae, data, n=32)
        >>> model = nv.causal.factor_graph(vae, data, mapping)
        >>> found = factor_circuits(vae, data, mapping, factors=["angle"], model=model, n=10, select=nv.circuits.TopK(200))
        >>> found.graph.edges["factor:angle", "factor:shadow_length"]["relation"]
        'world'
    """
    require(vae)
    if not isinstance(data, Dataset):
        raise DataError(f"got a {type(data).__name__} where a data set belongs, such as nv.datasets.load('pendulum').")
    readout = data.readout() if readout is None else readout
    names = tuple(readout.names if factors is None else factors)
    if unknown := [name for name in names if name not in readout.names]:
        raise DataError(f"no readout of {', '.join(unknown)}; it reads {', '.join(readout.names)}.")
    if not names:
        raise DataError(f"factors={factors!r}: expected at least one of {', '.join(readout.names)}.")
    pairs = {name: data.pairs(name, n, seed, propagate=False) for name in names}
    mapping = map_factors(vae, data, seed=seed, readout=readout) if mapping is None else mapping
    if model is None:
        through: Through = "latents" if type(data).counterfactual is Dataset.counterfactual else "inputs"
        model = factor_graph(vae, data, mapping, through=through, seed=seed)
    for what, own in (("mapping is", mapping.factors), ("model graph is", tuple(model))):
        if strangers := [name for name in names if name not in own]:
            raise DataError(
                f"the {what} of the factors {', '.join(own)}; there is nothing in it about {', '.join(strangers)}."
            )
    circuits = extract_circuits(vae, pairs, {name: select(readout, name) for name in names}, **options)
    return FactorCircuits(circuits, mapping, model, data.graph)


def _source(factor: str) -> str:
    return f"factor:{factor}"


def _sink(factor: str) -> str:
    return f"readout:{factor}"


def _effect(data: Mapping[str, Any] | None) -> dict[str, float | None]:
    names = {"effect": "effect", "size": "size", "size_low": "ci_low", "size_high": "ci_high"}
    return {name: None if data is None else data.get(own) for name, own in names.items()}
