"""`edge_strict`: a bundled VAE that was trained to have a known circuit, edge by edge, with weights as training makes them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from nnsight_vae.circuits.known import edge_strict_world as world
from nnsight_vae.circuits.known.circuit import KnownCircuit
from nnsight_vae.models.architectures import empty
from nnsight_vae.models.files import fit_weights, read_json, read_tensors
from nnsight_vae.vae import VAE

WEIGHTS, RECORD = (Path(__file__).parent / f"edge_strict.{suffix}" for suffix in ("safetensors", "json"))


def edge_strict() -> KnownCircuit:
    """The bundled edge-strict model: factors f0 -> f1 and f2, an MLP of 1,732 edges, 126 to 194 of them true per task.

    It was trained to reconstruct, to let a factor be exchanged between two images at every layer (interchange), and to do
    the same whatever arrives over any set of units or edges outside its circuit (node- and edge-strictness); then its units
    were permuted and rescaled, so that the size of a weight tells little. What is left off the circuit is the model's
    leakage, measured by exact patching and kept under a bound: see `record`.

    Returns: the model. What the network does is known as well as it was trained, not exactly: AUROC and AP of `exact` are
        near 1 and not 1. Edges outside the circuit carry up to 3.5 % of a task's summed effect, a few of them 2-10 % of the total
        effect each: they are found, and rightly, by any test of "carries more than .1 %". `FDR(min_share=.01)` finds none.

    Source: interchange intervention training, Geiger et al. 2022 (arXiv 2112.00826); its node-strict form, Gupta et al. 2024
        (InterpBench, arXiv 2407.14494).

    Example:
        >>> known = edge_strict()
        >>> known.tasks[1], len(known.truth[known.tasks[1]])
        (Task(factor='f0', target='f1'), 194)
    """
    module = empty("MLPVAE", world.ARGUMENTS)
    fit_weights(module, read_tensors(WEIGHTS)[0], str(WEIGHTS))
    return known_of(module.eval(), live_of(record()))


def record() -> dict[str, Any]:
    """How the bundled model was made and what it does: training, leakage per task, and the bound on it."""
    return read_json(RECORD)


def live_of(content: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """The connections of the circuit in a record."""
    sizes = (len(world.CHANNEL_OF), *world.HIDDEN, world.LATENT, *world.HIDDEN[::-1], len(world.CHANNEL_OF))
    live = []
    for n, m, ends in zip(sizes, sizes[1:], content["circuit"], strict=False):
        mask = np.zeros((n, m), dtype=bool)
        mask[tuple(np.array(ends).T)] = True
        live.append(mask)
    return tuple(live)


def known_of(module: nn.Module, live: tuple[np.ndarray, ...]) -> KnownCircuit:
    """A network of the edge-strict world with the circuit that it was trained to have."""
    excluded, wiring = world.undecided(live), world.wiring(live)
    return KnownCircuit(
        VAE(module, example=torch.zeros(1, *world.IMAGE)),
        world.dag(),
        world.readout(),
        MappingProxyType({task: wiring.circuit(task) - excluded.get(task, frozenset()) for task in world.TASKS}),
        "edge-strict MLP of 3 factors, bundled",
        world.pairs,
        excluded=excluded,
    )
