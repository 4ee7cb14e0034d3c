"""One training loop: seeded, resumable to the bit, on any device."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .architectures import ARCHITECTURES, build, complete
from .checkpoints import Run, load_run, save_results, save_run
from .images import check_images, fingerprint
from .interrupt import deferred_interrupt
from .labels import Labels, label_loss, standardise
from .networks import GaussianVAE
from .objectives import Objective
from .vq import VQVAE

FORMAT = "nnsight-vae/model@1"
_LOG_EVERY = 50
_LAST_RATE = 0.02  # the cosine ends at this share of the first learning rate


@dataclass(frozen=True)
class Trained:
    """A finished training: the module in eval mode, and the record that is saved as config.json."""

    module: GaussianVAE | VQVAE
    config: dict[str, Any]


def train(
    images: Tensor,
    *,
    objective: Objective | None = None,
    architecture: str = "ConvVAE",
    arguments: Mapping[str, Any] | None = None,
    labels: Labels | None = None,
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    data: str = "",
    out: str | Path | None = None,
    checkpoint_every: int = 250,
    device: str | torch.device = "cpu",
    progress: bool = True,
    log: Callable[[int, dict[str, float]], object] | None = None,
) -> Trained:
    """Train a VAE with Adam on uniformly drawn minibatches, the learning rate falling along a cosine.

    Weights, minibatches and reparameterisation noise come from one generator seeded with `seed`; torch's global random
    state is neither read nor changed. With `out`, the run is saved every `checkpoint_every` steps and on Ctrl-C (which
    lets the current step finish; a second Ctrl-C does not). The same call then continues where it stopped and ends, on
    the same machine with the same number of threads, with the bits of an uninterrupted run; on a finished folder it
    returns the finished model. `out` receives `model.safetensors`, `config.json` (what `load_module` reads),
    `losses.csv` (means over 50 steps of what the objective logs, losses in nats per image) and `checkpoint.safetensors`.

    Args:
        images: `[n, c, h, w]`, uint8 in 0-255 (kept so, converted by the batch) or floats in [0, 1].
        objective: one of `families.OBJECTIVES`, or made from its class; default: that of a VAE.
        architecture: "ConvVAE", "ResidualVAE", "MLPVAE", or "VQVAE" with the objective of one.
        arguments: of its constructor, such as `latent`; `image_shape` is taken from `images`.
        labels: needed exactly when the objective has a label weight.
        steps: optimiser steps.
        batch_size: images per step.
        lr: Adam's first learning rate.
        seed: of everything random.
        data: name of the data, for the record.
        out: output folder, made if need be.
        checkpoint_every: steps between checkpoints.
        device: where to train; random numbers are drawn on the CPU, so they do not depend on it.
        progress: show a progress bar on stderr.
        log: called as `log(step, losses)` with each row of losses.csv when it is ready. A run that continues calls it with the
            rows after its checkpoint, so one written after that and lost comes again, with the same numbers. It can stop the
            training by raising; the last checkpoint stays.

    Raises:
        DataError: before any training, if the images, labels or numbers are unfit, `out` cannot be written to, or it
            holds a run with other settings.
        NnsightVaeError: if the loss stops being finite; the last checkpoint stays.
        KeyboardInterrupt: on Ctrl-C, after the checkpoint is written.

    Example:
        >>> digits = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> trained = train(digits, architecture="MLPVAE", arguments={"latent": 2}, steps=2, progress=False)
        >>> trained.module.decode(torch.zeros(1, 2)).shape
        torch.Size([1, 1, 8, 8])

        Losses in TensorBoard (`pip install tensorboard`), or in anything else that takes numbers by name::

            writer = torch.utils.tensorboard.SummaryWriter("runs/mine")
            train(images, log=lambda step, losses: [writer.add_scalar(f"train/{k}", v, step) for k, v in losses.items()])
            writer.close()
    """
    _check_counts(steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every)
    if not (math.isfinite(lr) and lr > 0):
        raise DataError(f"lr={lr}, expected a finite number > 0.")
    check_images("images", images)
    arguments = complete(architecture, {**(arguments or {}), "image_shape": tuple(images.shape[1:])})
    task = _Task(images, objective or Objective(), labels, steps, batch_size, lr, torch.device(device))
    _check_trains(task.objective, architecture)
    task.check_labels(arguments["latent"])

    settings: dict[str, Any] = {
        "format": FORMAT,
        "architecture": architecture,
        "arguments": arguments,
        "objective": {"name": task.objective.name, **asdict(task.objective)},
        "data": {"name": data, "images": len(images), "sha256": fingerprint(images)},
        "labels": None if labels is None else labels.record(),
        "training": {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "optimiser": "Adam"},
    }
    settings = json.loads(json.dumps(settings))  # as it will be read back, so that a resumed run can compare

    generator = torch.Generator().manual_seed(seed)
    module = build(architecture, arguments, generator).to(task.device)
    module.to(memory_format=task.memory_format)  # type: ignore[call-overload]  # torch documents this form
    adversary = task.objective.adversary(arguments["latent"], generator)
    if adversary is not None:
        adversary.module.to(task.device)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, foreach=True)
    run = Run(module, optimizer, generator, task.objective.columns, adversary)
    folder = None if out is None else _writable(Path(out))
    if folder is not None:
        load_run(folder, run, settings)

    with deferred_interrupt() as interrupted, _progress_bar(progress, run, steps) as advance:
        while run.step < steps:
            task.update(run)
            if run.step % _LOG_EVERY == 0 or run.step == steps:
                row = run.log()
                if log is not None:
                    log(run.step, row)
            stop = interrupted.is_set()
            if folder is not None and (stop or run.step % checkpoint_every == 0 or run.step == steps):
                save_run(folder, run, settings)
            advance()
            if stop and run.step < steps:
                raise KeyboardInterrupt
    config = {**settings, "history": run.history}
    if folder is not None:
        save_results(folder, module, config)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Trained(module.eval(), config)


@dataclass(frozen=True)
class _Task:
    """What is to be learned and how: everything a step needs that no step changes."""

    images: Tensor
    objective: Objective
    labels: Labels | None
    steps: int
    batch_size: int
    lr: float
    device: torch.device

    @property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory: with channels last convolutions on a CPU train a sixth faster."""
        return torch.channels_last if self.device.type == "cpu" else torch.contiguous_format

    def check_labels(self, latent: int) -> None:
        if (self.labels is not None) != (self.objective.label_weight > 0):
            raise DataError("labels and an Objective with label_weight > 0 go together: got one without the other.")
        if self.labels is not None:
            self.labels.check(self.images.shape[1:], latent)

    def update(self, run: Run) -> None:
        """One optimiser step; draws from `run.generator` only."""
        for group in run.optimizer.param_groups:
            group["lr"] = self.lr * (
                _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * run.step / self.steps)) / 2
            )
        x = self._draw(run)
        losses, latents = self.objective.minibatch(run, x, len(self.images))
        losses["labels"] = x.new_zeros(())
        if self.labels is not None:
            rows = self._rows(self.labels.images, run)
            labelled_mu, _ = run.module.encode(self._batch(self.labels.images, rows))
            losses["labels"] = label_loss(labelled_mu, standardise(self.labels.factors)[0][rows].to(labelled_mu))
            losses["loss"] = losses["loss"] + self.objective.label_weight * losses["labels"]
        run.require_finite(losses["loss"])
        run.optimizer.zero_grad()
        losses["loss"].backward()
        run.optimizer.step()
        run.count(losses | self.objective.after_step(run, latents, lambda: self._draw(run)))

    def _draw(self, run: Run) -> Tensor:
        return self._batch(self.images, self._rows(self.images, run))

    def _rows(self, images: Tensor, run: Run) -> Tensor:
        return torch.randint(len(images), (self.batch_size,), generator=run.generator)

    def _batch(self, images: Tensor, rows: Tensor) -> Tensor:
        x = images.index_select(0, rows.to(images.device)).to(self.device, memory_format=self.memory_format)
        return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


def _check_trains(objective: Objective, architecture: str) -> None:
    if not issubclass(ARCHITECTURES[architecture], objective.trains):
        fit = [name for name, network in ARCHITECTURES.items() if issubclass(network, objective.trains)]
        raise DataError(f"The objective {objective.name} does not train {architecture}, expected {' or '.join(fit)}.")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise DataError(f"{name}={count}, expected a whole number >= 1.")


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise DataError(f"Cannot write to the output folder {folder}: {error}. Choose another one.") from error


@contextmanager
def _progress_bar(shown: bool, run: Run, steps: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=steps, completed=run.step)

        def advance() -> None:
            loss = ", ".join(f"{name} {run.history[-1][name]:.1f}" for name in run.columns[:3]) if run.history else ""
            bar.update(task, completed=run.step, description=loss)

        yield advance
