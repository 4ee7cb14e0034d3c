"""Make the bundled edge-strict model again: ``OMP_NUM_THREADS=1 python -m nnsight_vae.circuits.known.build_edge_strict``.

Seeded; about two minutes on one core. Same machine, same library versions and one thread give the same weights to the bit.
A model that leaks more than the bound is not written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnsight_vae.circuits.known import edge_strict_world as world
from nnsight_vae.circuits.known.circuit import KnownCircuit
from nnsight_vae.circuits.known.edge_strict import RECORD, WEIGHTS, known_of
from nnsight_vae.circuits.known.edge_strict_training import STEPS, declare, train
from nnsight_vae.circuits.known.hiding import Disguise, hide
from nnsight_vae.circuits.scoring.scores import score_edges
from nnsight_vae.errors import CircuitError
from nnsight_vae.models.files import write_json, write_tensors
from nnsight_vae.progress import progress_bar

LEAKAGE_BOUND = 0.05  # of a task's summed |exact effect|, the largest share that edges outside the circuit may have

_COMMAND = "OMP_NUM_THREADS=1 python -m nnsight_vae.circuits.known.build_edge_strict"
_HELD_OUT_SEED, _PAIRS = 1_000, 64


def leakage(known: KnownCircuit) -> dict[str, float]:
    """For each task, the share of the summed |exact effect| (mean over held-out pairs) that is outside the circuit."""
    shares = {}
    for factor in known.factors:
        pairs = known.pairs(factor, _PAIRS, _HELD_OUT_SEED)
        scores = score_edges(known.vae, pairs, known.readout, method="exact", direction="both")
        size, edges = np.abs(scores.mean()), list(zip(scores.sources, scores.targets, strict=True))
        for task in (task for task in known.tasks if task.factor == factor):
            t = scores.readouts.index(task.target)
            judged = scores.applies[:, t] & np.array([edge not in known.excluded.get(task, ()) for edge in edges])
            true = np.array([edge in known.truth[task] for edge in edges])
            shares[" -> ".join(task)] = float(size[judged & ~true, t].sum() / size[judged, t].sum())
    return shares


def build(weights: Path = WEIGHTS, record: Path = RECORD, *, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Train, disguise and measure the model; write it if it leaks little enough.

    Args:
        weights: where the weights go.
        record: where the record goes: circuit, leakage, seed and command.
        seed: of the training and of the disguise.
        steps: of the optimiser.

    Returns: the record.

    Raises:
        CircuitError: the model leaks more than `LEAKAGE_BOUND`; nothing is written.
    """
    with progress_bar("training", steps) as advance:
        trained = train(seed, steps, advance)
    live = tuple(mask.T.numpy() for mask in declare(torch.tensor(world.CHANNEL_OF)).circuit)
    images = world.pairs("f0", _PAIRS, seed).source
    module, live = hide(trained, live, Disguise(), images, torch.Generator().manual_seed(seed))
    measured = leakage(known_of(module, live))
    if max(measured.values()) > LEAKAGE_BOUND:
        raise CircuitError(
            f"the model leaks {max(measured.values()):.3f} of an effect over edges outside its circuit, more than the bound "
            f"{LEAKAGE_BOUND}; nothing was written. Train with more steps or another seed."
        )
    content = {
        "description": "MLP VAE trained so that its circuit is the declared one, edge by edge",
        "command": f"{_COMMAND} --seed {seed} --steps {steps}",
        "torch": torch.__version__,
        "seed": seed,
        "steps": steps,
        "leakage": {task: round(share, 5) for task, share in measured.items()},
        "leakage_bound": LEAKAGE_BOUND,
        "leakage_pairs": {"seed": _HELD_OUT_SEED, "pairs": _PAIRS},
        "circuit": [np.argwhere(mask).tolist() for mask in live],
    }
    write_tensors(weights, module.state_dict())
    write_json(record, content)
    return content


def main() -> None:
    """Command line: build the bundled model."""
    parser = argparse.ArgumentParser(description="Train the edge-strict model again.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    build(seed=arguments.seed, steps=arguments.steps)


if __name__ == "__main__":
    main()
