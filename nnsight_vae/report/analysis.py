"""The whole analysis of one VAE on one dataset, step by step, into a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from nnsight_vae.arguments import require
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import NnsightVaeWarning
from nnsight_vae.report.folder import Folder
from nnsight_vae.report.steps import Run
from nnsight_vae.report.summary import Summary
from nnsight_vae.vae import VAE


@dataclass(frozen=True)
class Settings:
    """How much to run, and what counts.

    Attributes:
        factors: the factors whose units and circuit are sought; None: every factor the dataset's readout can read. Latents and
            graphs are always about all of them.
        pairs: pairs per factor.
        images: images for latent-level results.
        q: false discovery rate of the units that carry a factor.
        min_effect: smallest effect of a unit that counts, in factor standard deviations.
        seed: of everything random.
    """

    factors: tuple[str, ...] | None = None
    pairs: int = 64
    images: int = 256
    q: float = 0.05
    min_effect: float = 0.05
    seed: int = 0


def analyze(
    vae: VAE,
    data: Dataset,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    name: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Run every analysis of a VAE on a dataset and write the results to a folder.

    Written as they are finished: factor_map.csv, metrics.csv, effects_latents.csv, effects_inputs.csv, effects_patching.csv,
    mediation.csv, factor_graph.graphml, interchange.csv, circuit.json / .graphml / .html (of the factor that latents move most),
    factor_circuits.json / .graphml / .html / .csv (of all factors, in the graph of the factors), figures/, effects/ (every effect pair by pair), and last
    summary.json. A run that was interrupted keeps what it finished; the same call again reuses the patching it had done.

    Args:
        vae: the model.
        data: the dataset, with factors and a readout of them.
        out: folder, made if need be.
        settings: how much to run; `Settings()` by default.
        name: what the model is called in the report.
        say: told what is being done, step by step.

    Returns: `Summary`; print it for the findings.

    Raises:
        AdapterError, DataError: before any work: no model or no data set, a folder that cannot be written to, unknown factors, images
            the model cannot run.
        ReadoutError: no factor of the dataset can be read reliably.
    """
    require(vae, data=data)
    settings = settings or Settings()
    folder = Folder(out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NnsightVaeWarning)
        run = Run(vae, data, folder, settings, name or type(vae.module).__name__)
        for step in (
            run.describe,
            run.map,
            run.metrics,
            run.inputs,
            run.patching,
            run.mediation,
            run.graphs,
            run.circuit,
            run.circuits,
        ):
            say((step.__doc__ or "").split(".")[0])
            step()
    run.summary.cautions += list(
        dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, NnsightVaeWarning))
    )
    run.summary.files = [*folder.written, "summary.json"]
    folder.record("summary.json", run.summary.to_dict())
    return run.summary
