"""The methods that score edges, as functions of the two clean runs of some pairs: all cuts, the readout's first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.circuits.scoring.activations import at_activations
from nnsight_vae.circuits.scoring.exact import patched
from nnsight_vae.circuits.scoring.flat import FlatPairs
from nnsight_vae.circuits.scoring.gradients import along_inputs, along_levels
from nnsight_vae.circuits.wiring.contraction import ByTarget, contracted
from nnsight_vae.circuits.wiring.cuts import Cut
from nnsight_vae.circuits.wiring.pair_run import PairRun, read
from nnsight_vae.circuits.wiring.quadrature import Rule, gauss_legendre, gauss_lobatto
from nnsight_vae.errors import CircuitError
from nnsight_vae.readouts import Readout
from nnsight_vae.rounding import resolution

Method = Literal["exact", "eap", "eap-act", "eap-ig", "ig", "weight", "correlation", "random"]
Direction = Literal["noising", "denoising", "both"]
At = Literal["base", "source", "average"]
BASELINES = ("weight", "correlation", "random")

_ESTIMANDS = {
    "noising": "PNIE (noising)",
    "denoising": "TNIE (denoising)",
    "both": "mean of PNIE and TNIE",
    "base": "PNIE (first order)",
    "source": "TNIE (first order)",
    "average": "mean of PNIE and TNIE (first order)",
    "act at base": "PNIE (first order after the target's activation)",
    "act at source": "TNIE (first order after the target's activation)",
    "act at average": "mean of PNIE and TNIE (first order after the target's activation)",
    "eap-ig": "TE share (path integral over inputs)",
    "ig": "TE share (layer path integral)",
}
_HALVES = {
    "both": ("noising", "denoising"),
    "average": ("base", "source"),
    "act at average": ("act at base", "act at source"),
}
# `eap-act` patches the edges of a cut of at most FEW, or of one in SHARE of all edges: each carries much, too far from linear
FEW = 4
SHARE = 250
_RULES: dict[str, Rule] = {"base": ((0.0, 1.0),), "source": ((1.0, 1.0),)}


class CutScores(NamedTuple):
    """Scores of the wanted edges of one cut.

    Attributes:
        values: [edge, target, pair].
        gap: what plain quadrature is off by in the total effect of each pair; 0 for other methods than `ig`.
        bypass: the effect that goes past the level; 0 for other methods than `ig`.
    """

    values: Float[Tensor, "edge target pair"]
    gap: Float[Tensor, "target pair"]
    bypass: Float[Tensor, "target pair"]


Advance = Callable[[int], None]  # told the number of (edge, pair) rows just finished
Wanted = Int[np.ndarray, " _"]  # positions of edges in a cut


@dataclass(frozen=True)
class Scoring:
    """How edges are scored.

    Raises:
        CircuitError: an option that does not exist.
    """

    method: str
    nodes: int = 3
    direction: str = "noising"
    at: str = "base"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", Method), ("direction", Direction), ("at", At)):
            value, choices = getattr(self, name), get_args(known)
            if value not in choices:
                raise CircuitError(f"{name}={value!r} is unknown; expected {', '.join(map(repr, choices))}.")
        least = 2 if self.method == "ig" else 1
        if isinstance(self.nodes, bool) or not isinstance(self.nodes, int) or self.nodes < least:
            raise CircuitError(f"nodes={self.nodes!r}: expected {least} or more quadrature nodes, in whole numbers.")

    @property
    def variant(self) -> str:
        """What tells this method's estimand: the direction of `exact`, where `eap` looks, or the method itself."""
        variants = {"exact": self.direction, "eap": self.at, "eap-act": f"act at {self.at}"}
        return variants.get(self.method, self.method)

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
            "eap-act": {"at": self.at},
            "eap-ig": {"nodes": self.nodes, "quadrature": "Gauss-Legendre"},
            "ig": {"nodes": self.nodes, "quadrature": "Gauss-Lobatto, calibrated to the total effect"},
            "random": {"seed": self.seed},
        }
        return options.get(self.method, {})

    @property
    def by_gradient(self) -> bool:
        """Whether the method looks at gradients of the readout."""
        return self.method in ("eap", "eap-act", "eap-ig", "ig")

    @property
    def gradient_at(self) -> str:
        """Where on the path the method takes gradients: `base`, `source`, `average`, or several points."""
        return self.at if self.method in ("eap", "eap-act") else "path"

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
        if self.method == "eap-act":
            yield from _activated(run, readout, cuts, wanted, part == "act at source", flat, advance)
            return
        gradients = (
            _layerwise(run, readout, gauss_lobatto(self.nodes))
            if self.method == "ig"
            else _in_one_pass(run, readout, _RULES.get(part) or gauss_legendre(self.nodes))
        )
        for i, (there, gap, bypass) in zip(reversed(range(len(cuts))), gradients, strict=True):
            if flat is not None and i == len(cuts) - 1:
                flat.add(part, run, [of_target[0] for of_target in there])
            some = torch.as_tensor(wanted[i], device=gap.device)
            yield CutScores(contracted(run, cuts[i], there)[some], gap, bypass)
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
        values = sign * patched(receiver, cuts[i], readout, wanted[i], advance)
        none = values.new_zeros(values.shape[1:])
        yield CutScores(values, none, none)


def _activated(
    run: PairRun,
    readout: Readout,
    cuts: Sequence[Cut],
    wanted: Sequence[Wanted],
    denoise: bool,
    flat: FlatPairs | None,
    advance: Advance,
) -> Iterator[CutScores]:
    """First order after each target's activation, in the base run, or, for minus the effect, in the source run.

    Where that is no trouble edges are patched: those of cuts that have few, and those into the readout, which run nothing.
    """
    sign, receiver = (-1, run.reversed()) if denoise else (1, run)
    last, few = len(cuts) - 1, max(FEW, sum(map(len, cuts)) // SHARE)
    estimated = [i < last and len(cut) > few for i, cut in enumerate(cuts)]
    found = at_activations(receiver, readout, cuts, estimated)
    for i, (values, there) in zip(reversed(range(len(cuts))), found, strict=True):
        if flat is not None and i == last:
            flat.add("act at source" if denoise else "act at base", run, [of_target[0] for of_target in there])
        if values is None:
            values = patched(receiver, cuts[i], readout, wanted[i], advance)
        else:
            values = values[torch.as_tensor(wanted[i], device=values.device)]
            advance(len(wanted[i]) * len(run))
        none = values.new_zeros(values.shape[1:])
        yield CutScores(sign * values, none, none)


class _Level(NamedTuple):
    """What an effect through one level is made of.

    Attributes:
        gradients: of each target in the columns of the level.
        gap: error of plain quadrature.
        bypass: what goes past the level.
    """

    gradients: ByTarget
    gap: Float[Tensor, "target pair"]
    bypass: Float[Tensor, "target pair"]


def _layerwise(run: PairRun, readout: Readout, rule: Rule) -> Iterator[_Level]:
    total = total_effect(run, readout)
    levels = reversed(range(len(run.wiring.levels) + 1))
    for level, found in zip(levels, along_levels(run, readout, rule, total), strict=True):
        alive = run.wiring.alive(level)
        of_level = [of_target[: len(of_target) - len(alive)] for of_target in found.means]
        bypass = torch.zeros_like(total)
        for i, column in enumerate(reversed(alive), start=1):
            change = run.given(column)
            bypass += torch.stack([(of_target[-i] * change).flatten(1).sum(1) for of_target in found.means])
        yield _Level(of_level, found.gap, bypass)


def _in_one_pass(run: PairRun, readout: Readout, rule: Rule) -> Iterator[_Level]:
    none = torch.zeros_like(total_effect(run, readout))
    for gradients in reversed(along_inputs(run, readout, rule)):
        yield _Level(gradients, none, none)


def total_effect(run: PairRun, readout: Readout) -> Float[Tensor, "target pair"]:
    """readout(source) - readout(base)."""
    with torch.no_grad():
        return (read(readout, run.source_inputs[-1]) - read(readout, run.base_inputs[-1])).T


def resolution_of(run: PairRun, readout: Readout) -> Float[np.ndarray, " target"]:
    """The size below which a change of each target may be rounding, from the readout's own size and precision."""
    with torch.no_grad():
        return resolution(read(readout, run.base_inputs[-1]))
