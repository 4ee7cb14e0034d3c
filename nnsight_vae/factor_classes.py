"""The probability of every value of a discrete factor, as a readout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from .reading import Readout, select

if TYPE_CHECKING:
    from .factor_readout import Factors


class Classes:
    """The probability of every value of a discrete factor; made by `Factors.classes`. An effect is a change of probability.

    Attributes:
        names: `factor=value`, one a value.
    """

    reads = "output"

    def __init__(self, readout: Factors, names: tuple[str, ...]) -> None:
        self.readout, self.names = readout, names

    def __call__(self, reconstruction: Float[Tensor, "n ..."]) -> Float[Tensor, "n value"]:
        """Probabilities, which sum to 1 in each row."""
        return self.readout.outputs(reconstruction).softmax(dim=1)

    def __getitem__(self, names: str | Sequence[str]) -> Readout:
        """A readout of some values."""
        return select(self, names)

    def __repr__(self) -> str:
        return f"Classes of {self.readout!r}"
