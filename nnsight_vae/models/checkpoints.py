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
from ..errors import DataError, NnsightVaeError
from .adversary import Adversary
from .files import fit_weights, read_tensors, write_json, write_tensors

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LOSSES = "losses.csv"


@dataclass
class Run:
    """The state of a training: what changes from step to step, and nothing else.

    Attributes:
        module: being trained.
        optimizer: Adam over its parameters.
        generator: source of minibatches and noise, on the CPU.
        columns: names of what is logged.
        adversary: what is trained beside the module, if anything.
        step: optimiser steps done.
        history: one row per logged step: the step, and the mean of each loss since the row before.
        sums: each loss summed over the steps since the last row.
    """

    module: Any  # a GaussianVAE or a VQVAE, as the objective trains
    optimizer: torch.optim.Adam
    generator: torch.Generator
    columns: tuple[str, ...]
    adversary: Adversary | None = None
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(len(self.columns), dtype=torch.float64)

    def require_finite(self, values: Tensor) -> None:
        """Stop a training that has diverged.

        Raises:
            NnsightVaeError: a value is NaN or infinite.
        """
        if not torch.isfinite(values).all():
            raise NnsightVaeError(
                f"Training diverged: not finite any more at step {self.step}. Lower lr. If an output folder was given, "
                "its checkpoint is from before."
            )

    def count(self, losses: dict[str, Tensor]) -> None:
        """Note one finished step and its losses by column."""
        self.step += 1
        self.sums += torch.stack([losses[name].detach() for name in self.columns]).cpu()

    def log(self) -> dict[str, float]:
        """Close a row of the history; returns the mean of each loss in it."""
        since = self.step - (int(self.history[-1]["step"]) if self.history else 0)
        losses = dict(zip(self.columns, (self.sums / since).tolist(), strict=True))
        self.history.append({"step": self.step, **losses})
        self.sums.zero_()
        return losses


def save_run(folder: Path, run: Run, settings: dict[str, Any]) -> None:
    """Write the state of `run` and its settings, atomically."""
    tensors = _state("model.", "adam.", run.module, run.optimizer)
    if run.adversary is not None:
        tensors |= _state("adversary.", "adversary_adam.", run.adversary.module, run.adversary.optimizer)
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
    _fit_adam(run.optimizer, _under("adam.", tensors))
    if run.adversary is not None:
        fit_weights(run.adversary.module, _under("adversary.", tensors), str(path))
        _fit_adam(run.adversary.optimizer, _under("adversary_adam.", tensors))
    run.generator.set_state(generator)
    run.step, run.history, run.sums = step, history, sums


def save_results(folder: Path, module: nn.Module, config: dict[str, Any]) -> None:
    """Write the finished model: weights, record, and the losses as a table."""
    text = io.StringIO()
    table = csv.DictWriter(text, tuple(config["history"][0]), lineterminator="\n")
    table.writeheader()
    table.writerows(config["history"])
    write_atomically(folder / LOSSES, text.getvalue().encode())
    write_tensors(folder / WEIGHTS, module.state_dict())
    write_json(folder / CONFIG, config)  # last: its presence says that the rest is there


def _state(weights: str, adam: str, module: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Weights and moments of a module under two prefixes."""
    tensors = {f"{weights}{name}": tensor for name, tensor in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{adam}{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _fit_adam(optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _differences(saved: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(asked, dict):
        keys = sorted(saved.keys() | asked.keys())
        return [d for key in keys for d in _differences(saved.get(key), asked.get(key), f"{name}.{key}".lstrip("."))]
    return [] if saved == asked else [f"{name} was {saved}, now {asked}"]
