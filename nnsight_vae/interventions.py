"""Interventions as data: what to do to the units a key names. The engine gives them their effect."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnsight_vae.errors import InterventionError

Number = int | float


class Intervention:
    """Base of the vocabulary: prints as it is written, compares by value, survives a JSON round trip.

    Example:
        >>> Set(2.0)
        Set(2.0)
        >>> Intervention.from_json(Set(2.0).to_json()) == Set(2.0)
        True
    """

    def to_json(self) -> str:
        """This intervention as JSON text; tensors are written as nested lists with their dtype."""
        payload = {f.name: _encode(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return json.dumps({"intervention": type(self).__name__, **payload})

    @staticmethod
    def from_json(text: str) -> Intervention:
        """Rebuild an intervention from `to_json`.

        Raises:
            InterventionError: the text is not JSON, or names no known intervention.
        """
        try:
            payload = json.loads(text)
            name = payload.pop("intervention")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InterventionError(f"not an intervention in JSON: {text[:80]!r}; write one with .to_json().") from None
        kinds = {kind.__name__: kind for kind in Intervention.__subclasses__()}
        if not isinstance(name, str) or name not in kinds:
            raise InterventionError(f"unknown intervention {name!r}; known: {', '.join(sorted(kinds))}.")
        try:
            return kinds[name](**{key: _decode(value) for key, value in payload.items()})
        except (TypeError, ValueError) as error:
            raise InterventionError(f"{name} in JSON does not fit: {error}.") from None

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    def __hash__(self) -> int:
        # Of what equality compares, so that equal ones (1 and 1.0, 0.0 and -0.0) agree; of a tensor, its shape will do.
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return hash((type(self).__name__, *(tuple(v.shape) if isinstance(v, Tensor) else v for v in values)))

    def __repr__(self) -> str:
        parts = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.default is not MISSING:
                if not _same(value, f.default):
                    parts.append(f"{f.name}={_show(value)}")
            else:
                parts.append(_show(value))
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class Set(Intervention):
    """`a <- value`: clamp to a number, or to a tensor that broadcasts against the units' activation `[n, units, ...]`."""

    value: Number | Tensor

    def __post_init__(self) -> None:
        _finite(self, "value", self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Intervention):
    """`a <- a + delta`, in the units of the activation."""

    delta: Number | Tensor

    def __post_init__(self) -> None:
        _finite(self, "delta", self.delta)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Intervention):
    """`a <- factor * a`."""

    factor: Number

    def __post_init__(self) -> None:
        _finite(self, "factor", self.factor, number=True)


@dataclass(frozen=True, eq=False, repr=False)
class Zero(Intervention):
    """`a <- 0`."""


@dataclass(frozen=True, eq=False, repr=False)
class Mean(Intervention):
    """`a <- mean of a over a reference batch`, position by position. `reference` holds inputs `[m, *image]`, not activations.

    The reference runs as the examples do: at the posterior mean, or, where they carry noise, row i with the noise of example
    i modulo n. So `Mean(x)` is the mean of a over the very runs it is put into.
    """

    reference: Tensor

    def __post_init__(self) -> None:
        _batch(self, "reference", self.reference)


@dataclass(frozen=True, eq=False, repr=False)
class Resample(Intervention):
    """`a <- a of a random reference example` (one donor an example, the same for every unit). `reference`: inputs `[m, *image]`.

    The donor runs with the noise of the example that receives.
    """

    reference: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        _batch(self, "reference", self.reference)
        _whole(self, "seed", self.seed)


@dataclass(frozen=True, eq=False, repr=False)
class Noise(Intervention):
    """`a <- a + sd * e`, `e ~ N(0, 1)` independent over examples, units and positions; a seed gives each unit the same noise."""

    sd: Number
    seed: int = 0

    def __post_init__(self) -> None:
        _finite(self, "sd", self.sd, number=True)
        if self.sd < 0:
            raise InterventionError(f"Noise needs sd >= 0, got {self.sd}.")
        _whole(self, "seed", self.seed)


@dataclass(frozen=True, eq=False, repr=False)
class Swap(Intervention):
    """`a <- a computed from source`: `source` holds inputs, one an example `[n, *image]` or one for all `[1, *image]`."""

    source: Tensor

    def __post_init__(self) -> None:
        _batch(self, "source", self.source)


@dataclass(frozen=True, eq=False, repr=False)
class Quantize(Intervention):
    """`z <- codebook[code]` at `latent.z` of a VAE with discrete latents: the intervention that is meaningful there."""

    code: int

    def __post_init__(self) -> None:
        _whole(self, "code", self.code)
        if self.code < 0:
            raise InterventionError(f"Quantize needs a code >= 0, got {self.code}.")


def _finite(owner: Intervention, name: str, value: Any, *, number: bool = False) -> None:
    kind = type(owner).__name__
    if isinstance(value, Tensor) and not number:
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise InterventionError(
                f"{kind} needs finite floating-point {name}, got {_show(value)}; check for NaN or use .float()."
            )
        return
    if isinstance(value, np.number):  # compares, prints and serialises as the number it is
        value = value.item()
        object.__setattr__(owner, name, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InterventionError(
            f"{kind} needs a finite number for {name}{'' if number else ' (or a tensor)'}, got {value!r}."
        )


def _batch(owner: Intervention, name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or len(value) == 0:
        raise InterventionError(
            f"{type(owner).__name__} needs {name} as a batch of inputs (float tensor [n, ...]), got {_show(value)}."
        )
    if not bool(torch.isfinite(value).all()):
        raise InterventionError(f"{type(owner).__name__} got NaN or infinite values in {name}; clean the inputs first.")


def _whole(owner: Intervention, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InterventionError(f"{type(owner).__name__} needs a 64-bit integer {name}, got {value!r}.")


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<tensor {'x'.join(map(str, value.shape)) or 'scalar'}>"
    return repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("tensor"), Sequence | int | float):
        dtype = getattr(torch, str(value.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            raise InterventionError(f"unknown tensor dtype {value.get('dtype')!r} in JSON.")
        return torch.tensor(value["tensor"], dtype=dtype)
    return value
