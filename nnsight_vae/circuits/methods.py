"""The methods that score edges, as functions of the two clean runs of some pairs: all cuts, the readout's first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.edges import Cut
from nnsight_vae.circuits.exact import patched
from nnsight_vae.circuits.flat import FlatPairs
from nnsight_vae.circuits.gradients import ByTarget, along_column, along_inputs, contracted
from nnsight_vae.circuits.pair_run import PairRun, read
from nnsight_vae.circuits.quadrature import Rule, gauss_legendre
from nnsight_vae.errors import CircuitError
from nnsight_vae.readouts import Readout

Method = Literal["exact", "eap", "eap-ig", "ig", "weight", "correlation", "random"]
Direction = Literal["noising", "denoising", "both"]
At = Literal["base", "source", "average"]
BASELINES = ("weight", "correlation", "random")

_ROUNDING = 16  # units in the last place that a forward pass may be off by
_ESTIMANDS = {
    "noising": "PNIE (noising)",
    "denoising": "TNIE (denoising)",
    "both": "mean of PNIE and TNIE",
    "base": "PNIE (first order)",
    "source": "TNIE (first order)",
    "average": "mean of PNIE and TNIE (first order)",
    "eap-ig": "TE share (path integral over inputs)",
    "ig": "TE share (layer path integral)",
}
_HALVES = {"both": ("noising", "denoising"), "average": ("base", "source")}
_RULES: dict[str, Rule] = {"base": ((0.0, 1.0),), "source": ((1.0, 1.0),)}


class CutScores(NamedTuple):
    """Scores of the wanted edges of one cut.

    Attributes:
        values: [edge, target, pair].
        gap: what plain quadrature is off by in the total effect of each pair; 0 for other methods than `ig`.
    """

    values: Float[Tensor, "edge target pair"]
    gap: Float[Tensor, "target pair"]


Advance = Callable[[int], None]  # told the number of (edge, pair) rows just finished
Wanted = Int[np.ndarray, " some"]  # positions of edges in a cut


@dataclass(frozen=True)
class Scoring:
    """How edges are scored.

    Raises:
        CircuitError: an option that does not exist.
    """

    method: str
    nodes: int = 4
    direction: str = "noising"
    at: str = "base"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", Method), ("direction", Direction), ("at", At)):
            value, choices = getattr(self, name), get_args(known)
            if value not in choices:
                raise CircuitError(f"{name}={value!r} is unknown; expected {', '.join(map(repr, choices))}.")
        if isinstance(self.nodes, bool) or not isinstance(self.nodes, int) or self.nodes < 1:
            raise CircuitError(f"nodes={self.nodes!r}: expected a positive number of quadrature nodes.")

    @property
    def variant(self) -> str:
        """What tells this method's estimand: the direction of `exact`, where `eap` looks, or the method itself."""
        return {"exact": self.direction, "eap": self.at}.get(self.method, self.method)

    @property
    def parts(self) -> tuple[str, ...]:
        """The variants whose mean the scores are; the variant itself where it is no mean."""
        return _HALVES.get(self.variant, (self.variant,))

    @property
    def options(self) -> dict[str, object]:
        """Of the options, those that the method goes by."""
        options: dict[str, dict[str, object]] = {
            "exact": {"direction": self.direction},
            "eap": {"at": self.at},
            "eap-ig": {"nodes": self.nodes, "quadrature": "Gauss-Legendre"},
            "ig": {"nodes": self.nodes, "quadrature": "Gauss-Legendre, calibrated to the total effect"},
            "random": {"seed": self.seed},
        }
        return options.get(self.method, {})

    @property
    def by_gradient(self) -> bool:
        """Whether the method looks at gradients of the readout."""
        return self.method in ("eap", "eap-ig", "ig")

    def scores(
        self,
        part: str,
        run: PairRun,
        readout: Readout,
        cuts: Sequence[Cut],
        wanted: Sequence[Wanted],
        flat: FlatPairs | None,
        advance: Advance,
    ) -> Iterator[CutScores]:
        """Scores of the wanted edges on some pairs, cut by cut, the readout's first.

        Args:
            part: one of `parts`.
            run: the pairs.
            readout: what is measured.
            cuts: all edges.
            wanted: which of each cut.
            flat: told the gradients of the readout, where the method looks at any.
            advance: told of rows that are finished.
        """
        if self.method == "exact":
            yield from _patched(run, readout, cuts, wanted, part == "denoising", advance)
            return
        rule = _RULES.get(part) or gauss_legendre(self.nodes)
        gradients = (_layerwise if self.method == "ig" else _in_one_pass)(run, readout, rule)
        for i, (there, gap) in zip(reversed(range(len(cuts))), gradients, strict=True):
            if flat is not None and i == len(cuts) - 1:
                flat.add(run, [of_target[0] for of_target in there])
            some = torch.as_tensor(wanted[i], device=gap.device)
            yield CutScores(contracted(run, cuts[i], i, there)[some], gap)
            advance(len(some) * len(run))


def estimand_of(variant: str) -> str:
    """What a method, direction or place of the gradient estimates."""
    return _ESTIMANDS.get(variant, "none (baseline)")


def _patched(
    run: PairRun, readout: Readout, cuts: Sequence[Cut], wanted: Sequence[Wanted], denoise: bool, advance: Advance
) -> Iterator[CutScores]:
    """A run for every edge: into the base run, or, for minus the effect, into the source run."""
    sign, receiver = (-1, run.reversed()) if denoise else (1, run)
    for i in reversed(range(len(cuts))):
        values = sign * patched(receiver, cuts[i], i, readout, wanted[i], advance)
        yield CutScores(values, values.new_zeros(values.shape[1:]))


_Gradients = Iterator[tuple[ByTarget, Float[Tensor, "target pair"]]]  # at each cut, with the error of plain quadrature


def _layerwise(run: PairRun, readout: Readout, rule: Rule) -> _Gradients:
    total = total_effect(run, readout)
    for column in reversed(range(len(run.chain.columns) + 1)):
        yield along_column(run, column, readout, rule, total)


def _in_one_pass(run: PairRun, readout: Readout, rule: Rule) -> _Gradients:
    no_gap = torch.zeros_like(total_effect(run, readout))
    for gradients in reversed(along_inputs(run, readout, rule)):
        yield gradients, no_gap


def total_effect(run: PairRun, readout: Readout) -> Float[Tensor, "target pair"]:
    """readout(source) - readout(base)."""
    with torch.no_grad():
        return (read(readout, run.source_inputs[-1]) - read(readout, run.base_inputs[-1])).T


def resolution_of(run: PairRun, readout: Readout) -> Float[np.ndarray, " target"]:
    """The size below which a change of each target may be rounding, from the readout's own size and precision."""
    with torch.no_grad():
        values = read(readout, run.base_inputs[-1])
    return (_ROUNDING * torch.finfo(values.dtype).eps * values.abs().amax(0)).double().cpu().numpy()
