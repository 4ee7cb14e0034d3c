"""What a readout is, and what can be asked of any: its targets, what it reads, its unit, and to be narrowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nnsight_vae.errors import ReadoutError
from nnsight_vae.wording import some


@runtime_checkable
class Readout(Protocol):
    """What the engine needs of a readout: named targets and a differentiable call.

    `__call__` takes what the readout reads, `[n, ...]`, and returns `[n, len(names)]`. The optional attribute `reads`
    says what that is: `"output"` (the reconstruction, also assumed where the attribute is absent) or `"latent.mu"`.
    The optional attribute `unit` says what a target's numbers are in; tables and figures name it.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """One name per column of the result."""

    def __call__(self, reconstruction: Tensor, /) -> Tensor:
        """The targets of each reconstruction, `[n, len(names)]`."""


@dataclass(frozen=True)
class Selected:
    """Some targets of another readout, in the order asked for; made by `readout["name"]` or `select`."""

    readout: Readout
    names: tuple[str, ...]

    @property
    def reads(self) -> str:
        """What the inner readout reads."""
        return reads(self.readout)

    @property
    def unit(self) -> str | None:
        """What the numbers of the inner readout are in."""
        return unit_of(self.readout)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        """The chosen columns of the inner readout."""
        values = self.readout(reconstruction)
        columns = [self.readout.names.index(name) for name in self.names]
        return values[:, torch.tensor(columns, device=values.device)]

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        return select(self, names)

    def __repr__(self) -> str:
        return f"{described(self.readout)}[{some(self.names)}]"


def described(readout: object) -> str:
    """What a readout is, for results: its repr where it has one of its own, else the name of its class.

    Example:
        >>> from nnsight_vae.readouts import Pixels
        >>> described(Pixels((1, 2, 2))["pixel[0,1,1]"])
        'Pixels((1, 2, 2))[pixel[0,1,1]]'
    """
    says_nothing = type(readout).__repr__ in (object.__repr__, torch.nn.Module.__repr__)  # an address, or every layer
    return type(readout).__name__ if says_nothing else repr(readout)


def select(readout: Readout, names: str | Sequence[str]) -> Readout:
    """The targets `names` of any readout, one column each, in the order asked for.

    Args:
        readout: the readout to narrow.
        names: one target name or a sequence of them.

    Raises:
        ReadoutError: if a name is not a target of this readout, is repeated, or none is given.

    Example:
        >>> from nnsight_vae.readouts import Pixels
        >>> corners = select(Pixels((1, 2, 2)), ["pixel[0,1,1]", "pixel[0,0,0]"])
        >>> corners(torch.arange(4.0).reshape(1, 1, 2, 2)).tolist()
        [[3.0, 0.0]]
    """
    wanted = check_targets(names, readout.names)
    own = getattr(readout, "_select", None)  # can narrow itself: Factors drops the other outputs' weights
    return own(wanted) if own is not None else Selected(readout, wanted)


def reads(readout: Readout) -> str:
    """What a readout reads: `"output"` unless it says otherwise in an attribute `reads`."""
    return getattr(readout, "reads", "output")


def unit_of(readout: object) -> str | None:
    """What the numbers of a readout are in; None where it does not say.

    Example:
        >>> from nnsight_vae.readouts import Latents
        >>> unit_of(Latents(2)["latent.mu[1]"])
        'latent units'
    """
    return getattr(readout, "unit", None)


def check_targets(names: str | Sequence[str], available: tuple[str, ...]) -> tuple[str, ...]:
    """`names` as a tuple, each one of `available` and none twice.

    Raises:
        ReadoutError: if that does not hold.
    """
    wanted = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        missing = some([repr(name) for name in unknown]) or "(none asked for)"
        raise ReadoutError(f"Readout has no target {missing}. It has: {some(available)}.")
    if len(set(wanted)) != len(wanted):
        raise ReadoutError(f"Readout targets {wanted} repeat a name; ask for each target once.")
    return wanted


def check_shape(who: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a batch whose items are not of `shape`.

    Raises:
        ReadoutError: naming the reader, the shape it got and the shape it expected.
    """
    if tuple(values.shape[1:]) != shape:
        raise ReadoutError(
            f"{who} reads a batch of shape (n, {', '.join(map(str, shape))}); got {tuple(values.shape)}. "
            "Build the readout for this model's output, or reshape the output before reading it."
        )
