"""The whole analysis of one VAE on one dataset, step by step, into a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from nnsight_vae.arguments import require
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import NnsightVaeWarning
from nnsight_vae.report.effect_steps import change_inputs, patch_units, split_effects
from nnsight_vae.report.folder import Folder
from nnsight_vae.report.graph_steps import extract_all, extract_one, relate_factors
from nnsight_vae.report.latent_steps import describe, map_latents, measure
from nnsight_vae.report.page import page
from nnsight_vae.report.run import Run, Settings
from nnsight_vae.report.summary import Summary
from nnsight_vae.vae import VAE

# In this order: later steps need what earlier ones found. Each is told to the user by its first sentence.
STEPS: tuple[Callable[[Run], None], ...] = (
    describe,
    map_latents,
    measure,
    change_inputs,
    patch_units,
    split_effects,
    relate_factors,
    extract_one,
    extract_all,
)


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
    index.html, which shows all of it, and summary.json. A run that was interrupted keeps what it finished; the same call again reuses the patching it had done.

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
        for step in STEPS:
            say((step.__doc__ or "").split(".")[0])
            step(run)
    run.summary.cautions += list(
        dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, NnsightVaeWarning))
    )
    run.summary.files = [*folder.written, "index.html", "summary.json"]
    folder.text("index.html", page(run.summary))
    folder.record("summary.json", run.summary.to_dict())
    return run.summary
