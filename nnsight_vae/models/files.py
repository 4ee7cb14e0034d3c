"""Model files: safetensors and JSON, never pickle, never half written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._files import write_atomically
from ..errors import DataError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, atomically; NaN is refused since JSON has none."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: if the file is missing, unreadable, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (and text beside them) as one safetensors file, atomically."""
    from safetensors.torch import save

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(on_cpu, dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the text of a safetensors file.

    Raises:
        DataError: if the file is missing, unreadable or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"Cannot read {path} as safetensors: {error}. Pickled weights (.pt, .pth) are never opened: "
            "convert them once with safetensors.torch.save_file."
        ) from error


def load_weights(module: nn.Module, path: str | Path) -> nn.Module:
    """Load a safetensors file into a module, after checking that every tensor fits.

    Args:
        module: any module; changed in place, and only when everything fits.
        path: a .safetensors file of its `state_dict()`.

    Returns: the module.

    Raises:
        DataError: if the file cannot be read, or names or shapes differ (lists which).
    """
    tensors, _ = read_tensors(Path(path))
    fit_weights(module, tensors, str(path))
    return module


def fit_weights(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Put `tensors` into `module`, replacing its parameters (those of a module on the meta device too).

    Raises:
        DataError: if names or shapes differ; the module is then unchanged.
    """
    expected = module.state_dict()
    problems = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in tensors]
    problems += [f"unexpected {name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise DataError(
            f"The weights of {origin} do not fit {type(module).__name__}: {shown}. "
            "Build the module with the arguments it was trained with."
        )
    module.load_state_dict(tensors, assign=any(tensor.is_meta for tensor in expected.values()))
