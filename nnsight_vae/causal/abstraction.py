"""Causal abstraction: do swapped latents do what the world's SCM says swapped factors would?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nnsight_vae.causal.mapping import FactorMap
from nnsight_vae.datasets.base import Batch, Dataset
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import DataError
from nnsight_vae.interventions import Swap
from nnsight_vae.readouts import Readout
from nnsight_vae.stats.intervals import bootstrap_ratio_interval
from nnsight_vae.vae import VAE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class InterchangeRow:
    """One factor's score against one of the two counterfactuals.

    Attributes:
        factor: the factor that is swapped.
        latent: its latent.
        propagate: the counterfactual lets descendants follow the SCM.
        score: 1 - E|predicted change - true change|^2 / E|true change|^2; 1 is perfect, 0 is what changing nothing scores.
        low, high: 95 % bootstrap interval over pairs.
        control: the same score, mean over all other latents swapped in its place; None where there is no other.
    """

    factor: str
    latent: int
    propagate: bool
    score: float
    low: float
    high: float
    control: float | None


@dataclass(frozen=True)
class InterchangeAccuracy:
    """How well swapped latents reproduce the world's counterfactuals; see `interchange_accuracy`.

    Attributes:
        rows: one per matched factor and kind of counterfactual.
        unmatched: factors without a latent, which have no score.
        data: name of the dataset.
    """

    rows: tuple[InterchangeRow, ...]
    unmatched: tuple[str, ...]
    data: str

    def to_frame(self) -> pd.DataFrame:
        """One row per factor and counterfactual."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self.rows], columns=list(InterchangeRow.__dataclass_fields__))

    def __str__(self) -> str:
        """A table, propagated and unpropagated scores side by side."""
        lines = [
            f"Interchange accuracy on {self.data}: 1 = the swap does what the SCM says, 0 = no better than changing nothing",
            "",
            f"{'factor':<18}{'latent':<14}{'only this factor':<24}{'with its descendants':<24}control",
        ]
        by_factor: dict[str, list[InterchangeRow]] = {}
        for row in self.rows:
            by_factor.setdefault(row.factor, []).append(row)
        for factor, (alone, propagated) in by_factor.items():
            cells = [f"{r.score:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in (alone, propagated)]
            control = "none" if alone.control is None else f"{alone.control:.2f}"
            lines.append(f"{factor:<18}{f'latent.z[{alone.latent}]':<14}{cells[0]:<24}{cells[1]:<24}{control}")
        if self.unmatched:
            lines.append(f"without a latent of their own: {', '.join(self.unmatched)}")
        return "\n".join(lines)


def interchange_accuracy(
    vae: VAE,
    data: Dataset,
    mapping: FactorMap | Mapping[str, int | None],
    *,
    n: int = 256,
    seed: int = 0,
    readout: Readout | None = None,
) -> InterchangeAccuracy:
    """Swap the latent of a factor between two images and compare with the world's own counterfactual.

    Base image with factors g, source with g'. Predicted change: readout(decode(z with z_k <- z'_k)) - readout(decode(z)). True
    change: readout of the image rendered with g_i := g'_i, minus readout of the base image; once with nothing else changed, once
    with the descendants of i following the SCM. High on the first and low on the second: the model has independent knobs. The
    other way round: it has learned the mechanism (or the correlation).

    Args:
        vae: the model.
        data: a dataset with an SCM.
        mapping: `map_factors(vae, data)`, or factor -> latent index.
        n: number of pairs of images.
        seed: of the images.
        readout: a readout of the factors; `data.readout()` by default.

    Returns: `InterchangeAccuracy`; print it for a table.

    Raises:
        DataError: the dataset has no counterfactuals, fewer than 20 pairs are asked for, the mapping names a factor or latent
            that does not exist, or the readout sees no change of a factor.

    Source: interchange interventions, Geiger et al. 2021, arXiv 2106.02997, with a continuous score.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> result = interchange_accuracy(vae, data, {"angle": 0}, n=32)
        >>> [(row.factor, row.propagate) for row in result.rows]
        [('angle', False), ('angle', True)]
    """
    if n < 20:
        raise DataError(f"interchange_accuracy got n={n}; at least 20 pairs of images are needed for intervals.")
    assignment = mapping.assignment if isinstance(mapping, FactorMap) else dict(mapping)
    if unknown := [factor for factor in assignment if factor not in data.factors]:
        raise DataError(f"{data.name} has no factors {unknown}; it has {', '.join(data.factors)}.")
    base, source = data.sample(n, seed=seed), data.sample(n, seed=seed + 1)
    latent = vae.layout(vae.checked(base.images)).sites["latent.z"]
    units = mapping.effects.units if isinstance(mapping, FactorMap) else tuple(map(str, latent.units))
    n_latents = len(units)
    if beyond := {factor: k for factor, k in assignment.items() if k is not None and not 0 <= k < n_latents}:
        raise DataError(f"this VAE has latents 0-{n_latents - 1}; the mapping asks for {beyond}.")
    readout = data.readout() if readout is None else readout
    swap = Swap(source.images)
    swapped = run_interventions(vae, base.images, [{unit: swap} for unit in units], readout)
    predicted = _array(swapped - baseline(vae, base.images, readout))
    rows = []
    for factor, chosen in assignment.items():
        if chosen is None:
            continue
        for propagate in (False, True):
            truth = _array(readout(_counterfactual(data, base, source, factor, propagate)) - readout(base.images))
            rows.append(_row(factor, chosen, propagate, predicted, truth, seed))
    return InterchangeAccuracy(tuple(rows), tuple(f for f, k in assignment.items() if k is None), data.name)


def _counterfactual(data: Dataset, base: Batch, source: Batch, factor: str, propagate: bool) -> Tensor:
    """The base images had this factor been the source's."""
    held = {} if propagate else {name: base.factors[:, j] for j, name in enumerate(data.factors)}
    changed = source.factors[:, data.factors.index(factor)]
    return data.counterfactual(base, **(held | {factor: changed})).images


def _row(
    factor: str, latent: int, propagate: bool, predicted: np.ndarray, truth: np.ndarray, seed: int
) -> InterchangeRow:
    error = np.square(predicted - truth).sum(axis=-1)  # [latent, pair]
    change = np.square(truth).sum(axis=-1)
    if not change.any():
        raise DataError(
            f"nothing that the readout reads changes when {factor} is swapped, so its score is undefined; leave it out of the "
            "mapping, or use a readout that reads it."
        )
    scores = 1 - error.mean(axis=1) / change.mean()
    least, most = bootstrap_ratio_interval(error[latent], change, seed=seed)
    control = float(np.delete(scores, latent).mean()) if len(scores) > 1 else None
    return InterchangeRow(factor, latent, propagate, float(scores[latent]), 1 - float(most), 1 - float(least), control)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
