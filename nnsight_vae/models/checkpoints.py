"""A training run on disk: everything the next step depends on, in one safetensors file."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_atomically
from ..errors import DataError
from .files import fit_weights, read_tensors, write_json, write_tensors
from .networks import GaussianVAE

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LOSSES = "losses.csv"
LOSS_NAMES = ("loss", "reconstruction", "kl", "labels")


@dataclass
class Run:
    """The state of a training: what changes from step to step, and nothing else.

    Attributes:
        module: being trained.
        optimizer: Adam over its parameters.
        generator: source of minibatches and noise, on the CPU.
        step: optimiser steps done.
        history: one row per logged step: the step, and the mean of each loss since the row before.
        sums: each loss summed over the steps since the last row.
    """

    module: GaussianVAE
    optimizer: torch.optim.Adam
    generator: torch.Generator
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(LOSS_NAMES), dtype=torch.float64))

    def count(self, losses: Tensor) -> None:
        """Note one finished step and its losses, in the order of `LOSS_NAMES`."""
        self.step += 1
        self.sums += losses.detach().cpu()

    def log(self) -> None:
        """Close a row of the history."""
        since = self.step - (int(self.history[-1]["step"]) if self.history else 0)
        means = (self.sums / since).tolist()
        self.history.append({"step": self.step, **dict(zip(LOSS_NAMES, means, strict=True))})
        self.sums.zero_()


def save_run(folder: Path, run: Run, settings: dict[str, Any]) -> None:
    """Write the state of `run` and its settings, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in run.module.state_dict().items()}
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": tensor for name, tensor in state.items()}
    tensors |= {"generator": run.generator.get_state(), "sums": run.sums}
    text = {"settings": json.dumps(settings), "step": str(run.step), "history": json.dumps(run.history)}
    write_tensors(folder / CHECKPOINT, tensors, text)


def load_run(folder: Path, run: Run, settings: dict[str, Any]) -> None:
    """Bring `run` to the checkpoint in `folder`, if there is one.

    Raises:
        DataError: if the checkpoint cannot be read or belongs to other settings; `run` may then be half loaded.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return
    tensors, text = read_tensors(path)
    try:
        saved, step, history = json.loads(text["settings"]), int(text["step"]), json.loads(text["history"])
        generator, sums = tensors.pop("generator"), tensors.pop("sums")
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is not a training checkpoint ({error!r}). Delete it to start over.") from error
    differences = _differences(saved, settings)
    if differences:
        raise DataError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. "
            f"Choose another folder, or delete {path} to start over."
        )
    fit_weights(run.module, _under("model.", tensors), str(path))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("adam.", tensors).items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
    run.generator.set_state(generator)
    run.step, run.history, run.sums = step, history, sums


def save_results(folder: Path, module: nn.Module, config: dict[str, Any]) -> None:
    """Write the finished model: weights, record, and the losses as a table."""
    text = io.StringIO()
    table = csv.DictWriter(text, ("step", *LOSS_NAMES), lineterminator="\n")
    table.writeheader()
    table.writerows(config["history"])
    write_atomically(folder / LOSSES, text.getvalue().encode())
    write_tensors(folder / WEIGHTS, module.state_dict())
    write_json(folder / CONFIG, config)  # last: its presence says that the rest is there


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _differences(saved: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(asked, dict):
        keys = sorted(saved.keys() | asked.keys())
        return [d for key in keys for d in _differences(saved.get(key), asked.get(key), f"{name}.{key}".lstrip("."))]
    return [] if saved == asked else [f"{name} was {saved}, now {asked}"]
