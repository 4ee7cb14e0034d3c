"""The bundled checkpoints, and loading any model this package has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import DataError
from .architectures import empty
from .checkpoints import CHECKPOINT, CONFIG, WEIGHTS
from .files import fit_weights, read_json, read_tensors

ZOO = Path(__file__).parent / "zoo"


class Zoo(dict[str, str]):
    """Names of the bundled models, each with its one-line description; prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {description}" for name, description in self.items())

    __repr__ = __str__


def zoo() -> Zoo:
    """The bundled models: name -> description.

    Example:
        >>> [name for name in zoo() if name.startswith("pendulum")]
        ['pendulum-beta-vae', 'pendulum-labelled-vae']
    """
    return Zoo({path.stem: str(read_json(path).get("description", "")) for path in sorted(ZOO.glob("*.json"))})


def read_record(name_or_folder: str | Path) -> dict[str, Any]:
    """How a model was made: architecture and arguments, objective, data, labels, seeds, losses.

    Args:
        name_or_folder: a bundled name, or the output folder of `train`.

    Raises:
        DataError: if there is no such model, its training is unfinished, or its record cannot be read.

    Example:
        >>> read_record("pendulum-beta-vae")["architecture"]
        'ConvVAE'
    """
    return read_json(_locate(name_or_folder)[1])


def load_module(name_or_folder: str | Path) -> nn.Module:
    """Load a bundled model or the output folder of `train` as a plain module, in eval mode, on the CPU.

    Args:
        name_or_folder: a bundled name (see `zoo`), or a folder with model.safetensors and config.json. A bundled name
            wins over a folder of that name; write "./name" for the folder.

    Raises:
        DataError: if there is no such model (lists the bundled ones), its training is unfinished, a file is missing or
            unreadable, or the weights do not fit the recorded architecture (lists the tensors).

    Example:
        >>> import torch
        >>> load_module("pendulum-beta-vae").decode(torch.zeros(1, 8)).shape
        torch.Size([1, 3, 64, 64])
    """
    weights, record_path = _locate(name_or_folder)
    record = read_json(record_path)
    if not {"architecture", "arguments"} <= record.keys():
        raise DataError(f"{record_path} is not the record of a model: it lacks 'architecture' or 'arguments'.")
    module = empty(record["architecture"], record["arguments"])
    fit_weights(module, read_tensors(weights)[0], str(weights))
    return module.eval()


def _locate(name_or_folder: str | Path) -> tuple[Path, Path]:
    """Weights and record of a model."""
    if str(name_or_folder) in zoo():
        return ZOO / f"{name_or_folder}.safetensors", ZOO / f"{name_or_folder}.json"
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise DataError(
            f"{str(name_or_folder)!r} is neither a bundled model nor a folder. Bundled: {', '.join(zoo())}. "
            "A folder is what training wrote: model.safetensors and config.json. Of weights of your own: build your model, load "
            "them into it, and wrap it: nv.VAE(model)."
        )
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing and (folder / CHECKPOINT).is_file():
        raise DataError(f"The training in {folder} is unfinished: run the same training command again to finish it.")
    if missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}. Expected the output folder of a training.")
    return folder / WEIGHTS, folder / CONFIG
