"""How units answer to inputs: their activations, a chunk of examples at a time, and the scale they are reported on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.diagnosis import refuse_not_finite
from nnsight_vae.engine import checked_batch, example_chunks
from nnsight_vae.errors import DataError, NnsightVaeWarning, SiteError
from nnsight_vae.levels.units import default_sites, experiments
from nnsight_vae.progress import Advance
from nnsight_vae.runs import clean_run
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

_FEW_INPUTS = 10  # a standard deviation over fewer is known to a quarter of itself at best
_ROUNDING = 4.0  # units of least precision that the activation of a unit that never varies may still spread over


class Block(NamedTuple):
    """Units of one site that are read together."""

    site: str
    position: tuple[int, ...] | None
    indices: list[int]


class Answer(NamedTuple):
    """What the units of a block answer to a chunk of examples.

    Attributes:
        values: their activations; a unit read at one position, or without any, has one.
        size: root mean square activation of the whole site, which is what rounding errors are in proportion to.
    """

    values: Float[Tensor, "n unit position"]
    size: float


def unit_blocks(vae: VAE, sites: Sequence[Key] | None) -> tuple[tuple[str, ...], list[Block]]:
    """The units to read, by name and as blocks, in the order of `sites`; by default those of `default_sites`.

    Raises:
        SiteError: a key names no unit of this VAE, or several keys are one joint set.
    """
    named = experiments(vae, sites if sites is not None else default_sites(vae))
    units: list[Selection] = []
    for name, (unit, *others) in named.items():
        if others:
            raise SiteError(
                f"{name!r} is a joint set; how units answer is read unit by unit: give its keys one by one."
            )
        units.append(unit)
    runs = groupby(units, key=lambda unit: (unit.site, unit.position))
    return tuple(named), [Block(*where, [i for u in block for i in u.indices or ()]) for where, block in runs]


def answers(
    vae: VAE, x: Tensor, eps: Tensor | None, blocks: Sequence[Block], advance: Advance = None
) -> Iterator[tuple[slice, list[Answer]]]:
    """The answers of all blocks to successive chunks of x; activations of other chunks are not kept.

    `advance` is told the number of examples just run.

    Raises:
        DataError: an activation is NaN or infinite; names the first unit.
    """
    for rows in example_chunks(vae, x):
        found = _chunk(vae, x[rows], None if eps is None else eps[rows], blocks)
        if advance is not None:
            advance(len(x[rows]))
        yield rows, found


def _chunk(vae: VAE, x: Tensor, eps: Tensor | None, blocks: Sequence[Block]) -> list[Answer]:
    layout = vae.layout(x)
    with torch.no_grad():
        clean = clean_run(vae, x, eps, paths={layout.paths[block.site] for block in blocks})
        found = [_answer(clean.at(block.site).movedim(layout.sites[block.site].axis, 1), block) for block in blocks]
        # NaN would be taken for a unit that never varies.
        if not all(math.isfinite(answer.size) for answer in found):
            refuse_not_finite(vae, x, eps, [slice(0, len(x))])
    return found


def _answer(activation: Tensor, block: Block) -> Answer:
    activation = activation.to(torch.promote_types(activation.dtype, torch.float32))  # squares overflow half precision
    size = float(activation.square().mean().sqrt())
    if block.position is not None:
        there: tuple[slice | int, ...] = (slice(None), slice(None), *block.position)
        return Answer(activation[there][:, block.indices, None], size)
    return Answer(activation[:, block.indices].reshape(len(activation), len(block.indices), -1), size)


class UnitMeans(NamedTuple):
    """Each unit's activation, averaged over positions, example by example.

    Attributes:
        values: the means, in float64.
        size: the largest root mean square activation of the unit's site over chunks of examples.
    """

    values: Float[np.ndarray, "unit n"]
    size: Float[np.ndarray, " unit"]

    @classmethod
    def empty(cls, blocks: Sequence[Block], n: int) -> UnitMeans:
        """Nothing read yet."""
        n_units = sum(len(block.indices) for block in blocks)
        return cls(np.empty((n_units, n)), np.zeros(n_units))

    def put(self, rows: slice, found: Sequence[Answer]) -> None:
        """Write what a chunk of examples was answered."""
        self.values[:, rows] = joined([answer.values.mean(-1) for answer in found])
        sizes = [np.full(answer.values.shape[1], answer.size) for answer in found]
        np.maximum(self.size, np.concatenate(sizes), out=self.size)


def joined(blocks: Sequence[Float[Tensor, "n _"]]) -> Float[np.ndarray, "unit n"]:
    """Numbers of every block as one array in float64, units first."""
    return torch.cat(list(blocks), dim=1).cpu().double().numpy().T


def unit_means(vae: VAE, x: Tensor, eps: Tensor | None, blocks: Sequence[Block], advance: Advance = None) -> UnitMeans:
    """Each unit's activation, averaged over positions, for every example of x."""
    means = UnitMeans.empty(blocks, len(x))
    for rows, found in answers(vae, x, eps, blocks, advance):
        means.put(rows, found)
    return means


def reference_means(
    vae: VAE, reference: Tensor | None, eps: Tensor | None, blocks: Sequence[Block], advance: Advance = None
) -> UnitMeans | None:
    """`unit_means` of a reference sample, with noise of its own (seed 0) where the experiment runs on noise `eps`.

    Raises:
        DataError: the model cannot run the reference, or it is a single example, which has no spread.
    """
    if reference is None:
        return None
    reference, _ = checked_batch(vae, reference, None)
    if len(reference) < 2:
        raise DataError("the reference is 1 example; a standard deviation needs at least 2, better hundreds.")
    noise = None
    if eps is not None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(reference), *eps.shape[1:], generator=generator, dtype=torch.float32)
    return unit_means(vae, *checked_batch(vae, reference, noise), blocks, advance)


class Scale(NamedTuple):
    """One standard deviation of each unit, and how much of it rounding alone can make.

    Attributes:
        sd: 0 for a unit that never varies.
        floor: differences up to here, in the unit's own units, may be rounding alone.
        record: what the standard deviation is over, for provenance.
    """

    sd: Float[np.ndarray, " unit"]
    floor: Float[np.ndarray, " unit"]
    record: str

    @classmethod
    def of(
        cls, shown: Sequence[UnitMeans], reference: UnitMeans | None, names: Sequence[str], dtype: torch.dtype
    ) -> Scale:
        """The standard deviation over a reference sample; without one, over all inputs of the experiment together.

        Args:
            shown: what the units answered to the inputs of the experiment.
            reference: what they answered to a reference sample.
            names: of the units.
            dtype: what the model computes in.

        Warns:
            NnsightVaeWarning: a unit varies in the experiment and not over the reference; the former is used for it. Or: without
                a reference, the experiment has fewer than 10 inputs.
        """
        precision = _ROUNDING * torch.finfo(dtype).eps
        sd, floor = _spread(shown, precision)
        n_inputs = sum(means.values.shape[1] for means in shown)
        record = f"sd over the {n_inputs} inputs of the experiment"
        if reference is None and n_inputs < _FEW_INPUTS:
            warnings.warn(
                f"the standard deviation of each unit is over the {n_inputs} inputs of this experiment, too few to know it; "
                "give a reference, an observational sample of inputs (hundreds, e.g. data.sample(256).images).",
                NnsightVaeWarning,
                stacklevel=3,
            )
        if reference is not None:
            usual, _ = _spread([reference], precision)
            silent = (usual == 0) & (sd > 0)
            if silent.any():
                first = names[int(silent.argmax())]
                warnings.warn(
                    f"{silent.sum()} units never vary over the reference and do here (first {first}): their changes are "
                    "in standard deviations over the inputs of this experiment. Use a larger reference.",
                    NnsightVaeWarning,
                    stacklevel=3,
                )
            sd = np.where(silent, sd, usual)
            record = f"sd over {reference.values.shape[1]} reference inputs"
        return cls(sd, floor, record)

    @property
    def rounding(self) -> Float[np.ndarray, " unit"]:
        """The floor in standard deviations of the unit."""
        return np.divide(self.floor, self.sd, out=np.zeros_like(self.sd), where=self.sd > 0)

    def standardised(self, change: Float[np.ndarray, "unit *rest"]) -> Float[np.ndarray, "unit *rest"]:
        """Changes in standard deviations of their unit; 0 where rounding alone could make them.

        Tests over pairs do not see the size of what they test, and rounding can have one sign in all pairs.
        """
        sd, floor = (each.reshape(-1, *[1] * (change.ndim - 1)) for each in (self.sd, self.floor))
        return np.divide(change, sd, out=np.zeros_like(change), where=(sd > 0) & (np.abs(change) > floor))


def _spread(parts: Sequence[UnitMeans], precision: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation over all examples of all parts, 0 where rounding alone could make it, and that bound."""
    n = sum(part.values.shape[1] for part in parts)
    mean = np.sum([part.values.sum(axis=1) for part in parts], axis=0) / n
    squares = np.sum([np.square(part.values - mean[:, None]).sum(axis=1) for part in parts], axis=0)
    sd = np.sqrt(squares / n)
    floor = precision * (np.abs(mean) + np.max([part.size for part in parts], axis=0))
    return np.where(sd > floor, sd, 0.0), floor
