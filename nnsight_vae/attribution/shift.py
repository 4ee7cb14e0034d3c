"""Latent shift: the counterfactual along a readout's gradient in latent space, as frames and as one map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from captum.log import log_usage
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.attribution.base import VAEAttribution
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.errors import DataError, ReadoutError
from nnsight_vae.readouts import Readout
from nnsight_vae.vae import VAE

Summary = Literal["max", "range", "signed"]

_GRID = 32  # distances looked at before bisection, so that the first crossing is found and not a later one
_BISECTIONS = 20  # of one interval of the grid: to a millionth of it


@dataclass(frozen=True, eq=False)
class Shift:
    """Codes on a straight line from z along the gradient of a readout target, and what the model makes of them.

    Attributes:
        latents: the codes; the first is z itself.
        frames: their reconstructions.
        readout: the target's value at each.
        target: its name.
        amount: how far it was to move, in units of the readout.
        distance: length of each path, in latent units.
        reached: whether the last code moved the target by the amount; where not, the path ends where it had moved most.
    """

    latents: Float[Tensor, "n step *latent"]
    frames: Float[Tensor, "n step *image"]
    readout: Float[Tensor, "n step"]
    target: str
    amount: float
    distance: Float[Tensor, " n"]
    reached: Bool[Tensor, " n"]

    def map(self, summary: Summary = "max") -> Float[Tensor, "n *image"]:
        """Where the frames change, per pixel.

        Args:
            summary: `"max"`: largest |frame - first frame|; `"range"`: largest less smallest value over the frames; `"signed"`:
                last frame less the first.
        """
        if summary not in get_args(Summary):
            raise DataError(f"summary must be 'max', 'range' or 'signed', got {summary!r}.")
        if summary == "range":
            return self.frames.amax(1) - self.frames.amin(1)
        change = self.frames - self.frames[:, :1]
        return change[:, -1] if summary == "signed" else change.abs().amax(1)

    def __repr__(self) -> str:
        return (
            f"Shift({self.target} by {self.amount:+g}: {self.frames.shape[1]} frames of {len(self.frames)} examples, "
            f"reached in {int(self.reached.sum())}; distance {float(self.distance.mean()):.2f} on average)"
        )


class LatentShift(VAEAttribution):
    """Counterfactuals of a readout target: z moved along the target's gradient until the target has changed by an amount.

    z' = z + lambda * d f(decode(z)) / d z, the first lambda at which f has moved far enough; the images on the way are the
    explanation, and where they change is the attribution.

    Args:
        vae: the model.
        readout: whose targets are moved, e.g. `data.readout()`.

    Source: Cohen et al. 2021, Gifsplanation via Latent Shift, arXiv 2102.09475.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> _ = torch.manual_seed(0)
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> halves = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8)), "bottom": (slice(4, 8), slice(0, 8))})
        >>> shift = LatentShift(vae, halves).path(torch.randn(5, 3), target="top", amount=0.001)
        >>> shift.frames.shape
        torch.Size([5, 9, 1, 8, 8])
        >>> bool(torch.isclose(shift.readout[:, -1] - shift.readout[:, 0], torch.tensor(0.001), atol=1e-5).all())
        True
    """

    def __init__(self, vae: VAE, readout: Readout) -> None:
        super().__init__(vae, readout, of="z")

    @log_usage()
    def attribute(
        self,
        inputs: Float[Tensor, "n *latent"],
        target: Any = None,
        amount: float = 1.0,
        *,
        n_steps: int = 8,
        farthest: float = 4.0,
        summary: Summary = "max",
    ) -> Float[Tensor, "n *image"]:
        """Where the image changes as the target does: `path(...).map(summary)`, one map per example.

        Args:
            inputs: latents z.
            target: as in `path`.
            amount: as in `path`.
            n_steps: as in `path`.
            farthest: as in `path`.
            summary: `"max"`, `"range"` or `"signed"`, see `Shift.map`.
        """
        return self.path(inputs, target, amount, n_steps=n_steps, farthest=farthest).map(summary)

    def path(
        self,
        inputs: Float[Tensor, "n *latent"],
        target: Any,
        amount: float = 1.0,
        *,
        n_steps: int = 8,
        farthest: float = 4.0,
    ) -> Shift:
        """The path itself: codes, reconstructions and readout from z to where the target has moved by the amount.

        Args:
            inputs: latents z, e.g. `vae.encode(x).mu`.
            target: one target: a name, a number, a `Direction` or a callable.
            amount: how far to move it, in units of the readout (factor standard deviations for `data.readout()`); negative: down.
            n_steps: frames after the first, evenly spaced along the line.
            farthest: how far from z to look, in latent units (prior standard deviations).

        Raises:
            DataError: an argument does not fit.
            ReadoutError: no target, or more than one.
        """
        if not math.isfinite(amount) or amount == 0 or not 0 < farthest < math.inf or n_steps < 1:
            raise DataError(
                f"amount={amount}, farthest={farthest}, n_steps={n_steps}: expected a finite amount other than 0, a finite distance "
                "above 0 and at least one step."
            )
        if target is None:
            raise ReadoutError(f"a shift is of one target; name it: {', '.join(self.forward_func.names or ())}.")
        call = self.start(inputs, None, target, None, with_baseline=False)
        read = self.function(call)

        def value(z: Tensor) -> Float[Tensor, " n"]:
            return read(z, call.rows, call.places)[:, 0]

        with guarded(self.vae):
            found = find_shift(value, call.x, amount, farthest)
            fractions = torch.linspace(0, 1, n_steps + 1).to(call.x)
            stops = [call.x + _per_row(t * found.distance, call.x) * found.direction for t in fractions]
            with torch.no_grad():
                frames = torch.stack([self.vae.decode(z) for z in stops], dim=1)
                readout = torch.stack([value(z) for z in stops], dim=1)
        return Shift(
            torch.stack(stops, dim=1), frames, readout, call.targets.names[0], amount, found.distance, found.reached
        )


class Found(NamedTuple):
    """How far to go along a direction.

    Attributes:
        direction: unit length; 0 where the value does not depend on z.
        distance: along it.
        reached: whether the value has moved by the amount there; where not, it is where it has moved most.
    """

    direction: Float[Tensor, "n *latent"]
    distance: Float[Tensor, " n"]
    reached: Bool[Tensor, " n"]


def find_shift(
    value: Callable[[Tensor], Float[Tensor, " n"]], z: Float[Tensor, "n *latent"], amount: float, farthest: float
) -> Found:
    """The step along the gradient of a value, up or down, that moves the value by an amount.

    The first of 32 evenly spaced distances at which the value has moved far enough is found, and refined by bisection. Where
    there is none, the path ends where the value has moved most, which is at z itself where it only moves the other way.

    Args:
        value: of codes `[n, *latent]`, one number each; differentiable.
        z: where to start.
        amount: change asked for; the gradient is followed upwards where it is positive, downwards where it is negative.
        farthest: the search ends at this distance.

    Example:
        >>> found = find_shift(lambda z: z.square().sum(1), torch.tensor([[1.0, 0.0]]), amount=3.0, farthest=5.0)
        >>> found.direction.tolist(), round(found.distance.item(), 4)
        ([[1.0, 0.0]], 1.0)
    """
    with torch.enable_grad():
        start = z.detach().requires_grad_()
        before = value(start)
        (gradient,) = torch.autograd.grad(before.sum(), start, allow_unused=True) if before.requires_grad else (None,)
    before = before.detach()
    gradient = torch.zeros_like(z) if gradient is None else gradient.detach()
    slope = gradient.flatten(1).norm(dim=1)
    sign = 1.0 if amount > 0 else -1.0
    direction = sign * gradient / _per_row(torch.where(slope > 0, slope, 1.0), z)

    @torch.no_grad()
    def moved(distance: Tensor) -> Float[Tensor, " n"]:
        return sign * (value(z + _per_row(distance, z) * direction) - before)

    width = farthest / _GRID
    grid = torch.arange(1, _GRID + 1).to(slope) * width
    movement = torch.stack([moved(distance.expand(len(z))) for distance in grid])
    enough = movement >= abs(amount)
    reached = enough.any(0)
    most = torch.where(movement.amax(0) > 0, grid[movement.argmax(0)], 0.0)
    far = grid[enough.int().argmax(0)]  # the first
    near = far - width
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        over = moved(middle) >= abs(amount)
        near, far = torch.where(over, near, middle), torch.where(over, middle, far)
    return Found(direction, torch.where(reached, far, most), reached)


def _per_row(values: Float[Tensor, " n"], like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
