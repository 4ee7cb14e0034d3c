"""The steps of an analysis: each runs one kind of result, writes its files, and adds its section to the summary."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnsight_vae.causal.abstraction import interchange_accuracy
from nnsight_vae.causal.factor_circuits import factor_circuits
from nnsight_vae.causal.graphs import compare
from nnsight_vae.causal.mapping import FactorMap, map_factors
from nnsight_vae.causal.model_graph import factor_graph
from nnsight_vae.circuits import extract_circuit, faithfulness
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import activations
from nnsight_vae.errors import CircuitError, DataError
from nnsight_vae.levels.inputs import manipulate_inputs
from nnsight_vae.levels.latent_metrics import LatentRuns
from nnsight_vae.levels.latent_values import posterior_quantiles
from nnsight_vae.levels.mediation import mediate
from nnsight_vae.levels.patching import patch_activations
from nnsight_vae.metrics.resampling import Form
from nnsight_vae.pairs import Pairs
from nnsight_vae.plots import plot_traversals
from nnsight_vae.provenance import provenance
from nnsight_vae.report.folder import Folder
from nnsight_vae.report.summary import Summary
from nnsight_vae.results.effects import Effects
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

    from nnsight_vae.report.analysis import Settings

PAIRS = 32  # of each factor in the circuits of all of them: enough for their strong edges, and the report stays short
TOP = 5  # units shown per factor in the summary; the tables hold all
STEPS = 9  # images of a traversal
FORMS: tuple[Form, Form] = ("normalised", "raw")


class Run:
    """One analysis under way: what later steps need from earlier ones."""

    mapping: FactorMap
    model_graph: nx.DiGraph

    def __init__(self, vae: VAE, data: Dataset, folder: Folder, settings: Settings, name: str) -> None:
        self.vae, self.data, self.folder, self.settings, self.name = vae, data, folder, settings, name
        if unknown := [f for f in settings.factors or () if f not in data.factors]:
            raise DataError(f"{data.name} has no factors {', '.join(unknown)}; it has {', '.join(data.factors)}.")
        images = min(settings.images, data.n_images or settings.images)
        self.batch = data.sample(images, seed=settings.seed)
        vae.checked(self.batch.images[:1])
        self.readout = data.readout()
        if settings.factors is not None:
            data.readout(settings.factors)  # refuses a factor that cannot be read
        self.factors = settings.factors or self.readout.names
        self.complete = set(self.readout.names) == set(data.factors)
        self.summary = Summary(folder.path)
        self.sections = self.summary.sections
        self.intervenes = type(data).do is not Dataset.do
        self._pairs: dict[str, Pairs] = {}

    def pairs(self, factor: str) -> Pairs:
        """Pairs of one factor, made once."""
        if factor not in self._pairs:
            self._pairs[factor] = self.data.pairs(factor, self.settings.pairs, seed=self.settings.seed)
        return self._pairs[factor]

    def describe(self) -> None:
        """Checking the model and the readout."""
        x = self.batch.images
        with torch.no_grad():
            reconstruction = activations(self.vae, x, ["output"])["output"]
        columns = [self.data.factors.index(name) for name in self.readout.names]
        r2 = self.readout.reliability_on(reconstruction.clamp(0, 1), self.batch.factors[:, columns])
        weak = [name for name, value in r2.items() if value is None or value < 0.8]
        if weak:
            self.summary.cautions.append(
                f"the readout of {', '.join(weak)} reads this model's reconstructions poorly (R2 below 0.8): the model does not "
                "reconstruct these factors well, and effects on them are effects on a weak signal."
            )
        self.sections["data"] = {
            "name": self.data.name,
            "factors": list(self.readout.names),
            "images": len(x),
            "readout_r2_on_reconstructions": r2,
            "mse": float((reconstruction - x).square().mean()),
        }
        self.sections["settings"] = asdict(self.settings)
        self.sections["provenance"] = provenance(self.vae, None, self.readout)
        self._verified = self.vae.verify(x[:16])

    def map(self) -> None:
        """Mapping latents to factors."""
        found = map_factors(self.vae, self.data, n=len(self.batch), seed=self.settings.seed, readout=self.readout)
        self.mapping = found
        self.folder.table("factor_map.csv", found.to_frame())
        self.folder.table("effects_latents.csv", found.effects.to_frame())
        self.folder.figure("latents.png", found.effects.plot()[0])
        self.folder.effects("latents", found.effects)
        self.sections["model"] = {
            "name": self.name,
            "fingerprint": self.vae.fingerprint,
            "latents": len(found.verdicts),
            "kl": found.kl.round(4).tolist(),
            "verify": self._verified,
        }
        self.sections["factor_map"] = {
            "verdicts": list(found.verdicts),
            "level": found.level,
            "min_effect": found.min_effect,
            "assignment": {factor: _match(found, factor) for factor in found.factors},
        }
        if (
            self.data.image_shape[0] in (1, 3) and self.vae.adapter.codebook is None
        ):  # codes lie on no scale to move along
            self.folder.figure("traversals.png", _traversals(self.vae, self.batch.images, found))

    def metrics(self) -> None:
        """Measuring effect strength, specificity and modularity."""
        import pandas as pd

        runs = LatentRuns(self.vae, self.batch.images[:200])
        best, raw = (runs.metrics(form, self.settings.seed) for form in FORMS)
        frames = [scores.to_frame() for found in (best, raw) for scores in (found.effect_strength, found.specificity)]
        self.folder.table("metrics.csv", pd.concat(frames, ignore_index=True))
        self.sections["metrics"] = {
            "effect_strength": list(best.effect_strength.values),
            "specificity": list(best.specificity.values),
            "modularity": "undefined" if best.modularity.value is None else f"{best.modularity.value:.2g}",
            "modularity_ci": best.modularity.ci,
        }

    def inputs(self) -> None:
        """Changing factors in the data."""
        self._table("effects_inputs.csv", {f: manipulate_inputs(self.vae, self.pairs(f)) for f in self.factors})

    def patching(self) -> None:
        """Patching every unit."""
        effects = {factor: self._patched(factor) for factor in self.factors}
        tested = {
            factor: found.significant(self.settings.q, min_effect=self.settings.min_effect)
            for factor, found in effects.items()
        }
        self.sections["patching"] = {f: self._top(tested[f], len(effects[f].units)) for f in self.factors}
        self._table("effects_patching.csv", effects)
        for factor, found in effects.items():
            self.folder.figure(f"effects_{factor}.png", found.plot()[0])

    def mediation(self) -> None:
        """Splitting total effects by mediator."""
        import pandas as pd

        self.sections["mediation"], frames = {}, []
        for factor in self.factors:
            unit = self.mapping.unit(factor) if factor in self.mapping.assignment else None
            if unit is None:
                continue
            m = mediate(self.vae, self.pairs(factor), [unit], readout=self.readout)
            frames.append(m.to_frame().assign(factor=factor))
            share = m.proportion[factor]
            if share.value is None:
                text = f"share of the effect on {factor} undefined: {share.reason}"
            else:
                text = f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of its effect on the decoded {factor}"
            self.sections["mediation"][factor] = {
                "mediator": m.mediator,
                "share": share.value,
                "low": share.low,
                "high": share.high,
                "text": text,
            }
        if frames:
            self.folder.table("mediation.csv", pd.concat(frames, ignore_index=True))

    def graphs(self) -> None:
        """Drawing the model's graph over the factors."""
        from nnsight_vae.circuits.drawing.draw import plot_factor_graph

        n, seed, truth = len(self.batch), self.settings.seed, self.data.graph
        built = {"latents": factor_graph(self.vae, self.data, self.mapping, n=n, seed=seed)}
        if self.intervenes and self.complete:
            built["inputs"] = factor_graph(self.vae, self.data, through="inputs", n=min(n, 128), seed=seed)
        self.sections["factor_graph"] = {}
        for through, graph in built.items():
            suffix = "" if through == "latents" else f"_{through}"
            self.folder.graph(f"factor_graph{suffix}.graphml", graph)
            section: dict[str, Any] = {"edges": [_edge(*edge) for edge in graph.edges(data=True)]}
            if truth is not None and self.complete:
                section["comparison"] = compare(graph, truth).to_dict()
                self.folder.figure(f"factor_graph{suffix}.png", plot_factor_graph(graph, truth)[0])
            self.sections["factor_graph"][through] = section
        self.model_graph = built.get("inputs", built["latents"])
        if self.intervenes and self.complete:
            accuracy = interchange_accuracy(self.vae, self.data, self.mapping, n=n, seed=seed, readout=self.readout)
            self.folder.table("interchange.csv", accuracy.to_frame())
            self.sections["interchange"] = [asdict(row) for row in accuracy.rows]

    def circuit(self) -> None:
        """Extracting a circuit."""
        from nnsight_vae.circuits.drawing.draw import plot_circuit

        # One circuit, of the factor the latents move most: a factor the model does not carry has none to show.
        reach = dict(zip(self.mapping.factors, self.mapping.size.max(axis=0), strict=True))
        factor = max(self.factors, key=lambda name: reach[name])
        target = self.data.readout([factor])
        try:
            circuit = extract_circuit(self.vae, self.pairs(factor), target)
            scores = faithfulness(self.vae, circuit, self.pairs(factor), target)
        except CircuitError as error:
            self.summary.cautions.append(f"no circuit was drawn: {error}")
            return
        for suffix in ("json", "graphml", "html"):
            self.folder.graph(f"circuit.{suffix}", circuit)
        if circuit.number_of_edges():
            self.folder.figure("circuit.png", plot_circuit(circuit)[0])
        self.sections["circuit"] = {
            "factor": factor,
            "nodes": circuit.number_of_nodes(),
            "edges": circuit.number_of_edges(),
            "faithfulness": str(scores),
        }

    def circuits(self) -> None:
        """Hanging the circuit of every factor into the graph of the factors."""
        from nnsight_vae.circuits.drawing.draw import plot_circuit

        try:
            found = factor_circuits(
                self.vae,
                self.data,
                self.mapping,
                factors=self.factors,
                model=self.model_graph,
                n=min(PAIRS, self.settings.pairs),
                seed=self.settings.seed,
                readout=self.readout,
            )
        except CircuitError:  # as the step before said
            return
        graph = found.graph
        for suffix in ("json", "graphml", "html"):
            self.folder.graph(f"factor_circuits.{suffix}", graph)
        self.folder.table("factor_circuits.csv", found.to_frame())
        self.folder.figure("factor_circuits.png", plot_circuit(graph)[0])
        self.sections["factor_circuits"] = str(found).splitlines()

    def _patched(self, factor: str) -> Effects:
        pairs = self.pairs(factor)
        request = {"factor": factor, "pairs": _digest(pairs), "data": self.data.name, "model": self.vae.fingerprint}
        name = f"patching_{factor}"
        if (done := self.folder.finished(name, request)) is not None:
            return done
        found = patch_activations(self.vae, pairs, readout=self.data.readout([factor]))
        found = replace(found, provenance=found.provenance | {"request": request})
        self.folder.effects(name, found)
        return found

    def _top(self, tested: Effects, n_units: int) -> dict[str, Any]:
        low, high = tested.ci() if tested.units else (np.zeros((0, 1)), np.zeros((0, 1)))
        mean = tested.mean()
        return {
            "units": n_units,
            "significant": len(tested.units),
            "pairs": self.settings.pairs,
            "q": self.settings.q,
            "min_effect": self.settings.min_effect,
            "top": [
                {"unit": unit, "effect": float(mean[i, 0]), "low": float(low[i, 0]), "high": float(high[i, 0])}
                for i, unit in enumerate(tested.units[:TOP])
            ],
        }

    def _table(self, name: str, effects: dict[str, Effects]) -> None:
        import pandas as pd

        frames = [found.to_frame().assign(factor=factor) for factor, found in effects.items()]
        self.folder.table(name, pd.concat(frames, ignore_index=True))


def _edge(cause: str, effect: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"cause": cause, "effect": effect, "size": data["size"], "low": data["ci_low"], "high": data["ci_high"]}


def _digest(pairs: Pairs) -> str:
    """Which images these pairs show: a name, a number and a seed would not tell that the data changed."""
    digest = hashlib.sha256()
    for images in (pairs.base, pairs.source):
        digest.update(str(tuple(images.shape)).encode())
        digest.update(images.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _match(found: FactorMap, factor: str) -> dict[str, Any] | None:
    latent, j = found.assignment[factor], found.factors.index(factor)
    if latent is None:
        return None
    others = [f for i, f in enumerate(found.factors) if i != j and found.low[latent, i] > found.min_effect]
    return {
        "latent": latent,
        "unit": found.effects.units[latent],
        "size": float(found.size[latent, j]),
        "low": float(found.low[latent, j]),
        "high": float(found.high[latent, j]),
        "verdict": found.verdicts[latent],
        "also": others,
    }


def _traversals(vae: VAE, x: torch.Tensor, found: FactorMap) -> Figure:
    """Each latent of the first image moved across its aggregate posterior."""
    low, high = posterior_quantiles(vae, x, (0.02, 0.98))
    z = vae.encode(x[:1]).mu.detach()
    rows = []
    for k in range(len(low)):
        steps = z.repeat(STEPS, *([1] * (z.ndim - 1)))
        ramp = torch.linspace(float(low[k]), float(high[k]), STEPS, device=z.device, dtype=z.dtype)
        steps[:, k] = ramp.view(-1, *([1] * (z.ndim - 2)))
        rows.append(vae.decode(steps).detach())
    figure, _ = plot_traversals(torch.stack(rows).cpu().clamp(0, 1), [f"z[{k}]" for k in range(len(low))], found.kl)
    return figure
