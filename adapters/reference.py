"""A module's own reconstruction, to hold the wrapped one against: its forward, with its noise where we want it where it samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWS = (torch.ops.aten.randn, torch.ops.aten.randn_like)
_STANDARD = (("mean", 0.0), ("std", 1.0))  # of normal_, where its call leaves them out


class Noise(TorchDispatchMode):
    """Every normal draw inside is `at` standard deviations from its mean, so that a forward that samples is deterministic.

    Attributes:
        shapes: of the draws made.

    Example:
        >>> with Noise() as noise:
        ...     torch.randn(3)
        tensor([0., 0., 0.])
        >>> with Noise(at=1.0):
        ...     torch.normal(torch.tensor([5.0]), torch.tensor([2.0]))
        tensor([7.])
    """

    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.at = at
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation; of a normal draw, give the value asked for."""
        kwargs, operation = kwargs or {}, func.overloadpacket
        if operation is torch.ops.aten.normal_:
            mean, sd = ([*args[1:], *(kwargs.get(name, default) for name, default in _STANDARD[len(args) - 1 :])])[:2]
            self.shapes.append(tuple(args[0].shape))
            return args[0].fill_(mean + self.at * sd)
        result = func(*args, **kwargs)
        if operation in _DRAWS:
            self.shapes.append(tuple(result.shape))
            return result.fill_(self.at)
        if operation is torch.ops.aten.normal:
            self.shapes.append(tuple(result.shape))
            sd = args[1] if len(args) > 1 else kwargs.get("std", 1.0)
            return torch.zeros_like(result) + args[0] + self.at * sd
        return result


def own_reconstruction(
    model: nn.Module, x: Float[Tensor, "n *image"], expected: Float[Tensor, "n *image"], *given: Tensor
) -> tuple[Float[Tensor, "n *image"], str] | None:
    """The output of the module's forward that is meant as the reconstruction, and what that path is called.

    Args:
        model: the module itself, not its wrapper.
        x: inputs `[n, *image]`.
        expected: what the wrapper reconstructs. Among several outputs of its shape (many forwards also return their input)
            the nearest one is meant; with none of its shape, one of the input's shape.
        given: conditions that the forward takes after x.

    Returns: the reconstruction and the name of the path; None where the module has no forward of x that is deterministic, with
        normal draws at their means if need be, and gives something of either shape.
    """
    try:
        first, second = (_reconstructions(model(x, *given), x, expected) for _ in range(2))
        path = "forward(x)"
        if not _equal(first, second):
            with Noise():
                first, second = (_reconstructions(model(x, *given), x, expected) for _ in range(2))
            path = "forward(x) with its noise at zero"
    except Exception:  # a forward of x is a convention, not a duty: it may want labels, or not exist
        return None
    if not first or not _equal(first, second):
        return None
    return _nearest(first, expected), path


def own_sample(
    model: nn.Module,
    x: Float[Tensor, "n *image"],
    expected: Float[Tensor, "n *image"],
    latent: Sequence[int],
    *given: Tensor,
) -> Float[Tensor, "n *image"] | None:
    """What the module's forward reconstructs with all its noise at one standard deviation, where that noise is the latent's.

    Args:
        model: the module itself, not its wrapper.
        x: inputs `[n, *image]`.
        expected: what the wrapper reconstructs from the same noise; tells which of several outputs is meant.
        latent: shape `[n, *latent]` of the one draw that a VAE makes.
        given: conditions that the forward takes after x.

    Returns: the reconstruction; None where forward draws nothing, draws other or more noise, or cannot be compared.
    """
    found = []
    for _ in range(2):
        try:
            with Noise(at=1.0) as noise:
                found.append(_reconstructions(model(x, *given), x, expected))
        except Exception:  # as above: a forward of x is a convention
            return None
        if noise.shapes != [tuple(latent)]:
            return None
    return _nearest(found[0], expected) if found[0] and _equal(*found) else None


def _nearest(outputs: list[Tensor], expected: Tensor) -> Tensor:
    alike = [output for output in outputs if output.shape == expected.shape]
    return min(alike or outputs[:1], key=lambda output: _distance(output, expected))


def _reconstructions(value: Any, x: Tensor, expected: Tensor) -> list[Tensor]:
    return [t for t in _tensors(value) if t.is_floating_point() and t.shape in (x.shape, expected.shape)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.distributions.Distribution):
        yield value.mean
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _distance(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).detach().abs().max()) if output.shape == expected.shape else 0.0
