"""How a readout of factors is fitted, calibrated and scored, each on images of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ._factor_heads import Heads, levels_of, looks_discrete
from ._regressor import Progress, line_of, predict, r_squared, train_regressor
from .errors import NnsightVaeWarning, ReadoutError

_FEWEST_IMAGES = 50  # fewer leave too few held out to say whether a target can be read
_FEWEST_CALIBRATED = 30  # held-out images that a slope needs: it is then known to a few per cent where R2 is .9
_LEAST_SLOPE = 0.5  # below it a correction would more than double what is mostly noise


@dataclass(frozen=True)
class Fitted:
    """A fitted network, and how good it is.

    Attributes:
        network: from images to outputs.
        heads: what the outputs stand for.
        mean: of each factor over the fitted images, in its units.
        sd: standard deviation of the same.
        reliability: factor -> R2, or what accuracy is above chance (0) of what it could be (1), on held-out images.
        calibration: factor -> (slope, intercept) of the readout on the truth, on the same images, in standard deviations.
        accuracy: discrete factor -> (accuracy, that of always telling the most frequent value), on the same images.
        record: how it was made.
    """

    network: nn.Sequential
    heads: Heads
    mean: Float[Tensor, " f"]
    sd: Float[Tensor, " f"]
    reliability: dict[str, float]
    calibration: dict[str, tuple[float, float]]
    accuracy: dict[str, tuple[float, float]]
    record: dict[str, Any]


def fit_factors(
    images: Shaped[Tensor, "n ..."],
    factors: Float[Tensor, "n f"],
    names: Sequence[str],
    *,
    discrete: Sequence[str] | None,
    seed: int,
    steps: int,
    augment: bool,
    held_out: float,
    progress: Progress | None,
) -> Fitted:
    """See `Factors.fit`."""
    check_training_data(images, factors, names)
    factors = factors.float()
    heads = _heads(factors, names, discrete)
    split = _Split.of(len(images), held_out, seed)
    mean, sd = factors[split.train].mean(0), factors[split.train].std(0)
    constant = [name for name, spread in zip(names, sd.tolist(), strict=True) if not spread > 0]
    if constant:
        raise ReadoutError(f"Factors: {', '.join(constant)} never varies in these images, so it cannot be learned.")
    network = train_regressor(
        images[split.train],
        heads.targets(factors[split.train], mean, sd),
        n_outputs=heads.n_outputs,
        loss=heads.loss,
        seed=seed,
        steps=steps,
        augment=augment,
        progress=progress,
    )
    if len(split.calibrated):
        raw = predict(network, images[split.calibrated])
        _calibrate(network, heads, raw, (factors[split.calibrated] - mean) / sd)
    raw = predict(network, images[split.scored])
    record = {"seed": seed, "steps": steps, "augment": augment} | split.record
    return Fitted(network, heads, mean, sd, *_scores(heads, raw, factors[split.scored], names, mean, sd), record)


class _Split(NamedTuple):
    """Which images train the network, calibrate it and score it."""

    train: Int[Tensor, " _"]
    calibrated: Int[Tensor, " _"]
    scored: Int[Tensor, " _"]

    @classmethod
    def of(cls, n: int, held_out: float, seed: int) -> _Split:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        test, train = order.split([round(held_out * n), n - round(held_out * n)])
        n_calibrated = len(test) // 2 if len(test) >= 2 * _FEWEST_CALIBRATED else 0
        return cls(train, *test.split([n_calibrated, len(test) - n_calibrated]))

    @property
    def record(self) -> dict[str, int]:
        return {"n_train": len(self.train), "n_calibrated": len(self.calibrated), "n_held_out": len(self.scored)}


def _scores(
    heads: Heads,
    raw: Float[Tensor, "n out"],
    factors: Float[Tensor, "n f"],
    names: Sequence[str],
    mean: Float[Tensor, " f"],
    sd: Float[Tensor, " f"],
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Reliability, calibration and accuracy of every factor that has one, as in `Fitted`."""
    read, truth = heads.read(raw, mean, sd), (factors - mean) / sd
    accuracies = heads.accuracies(raw, heads.targets(factors, mean, sd))
    scores = [r2 if told is None else skill(*told) for r2, told in zip(r_squared(read, truth), accuracies, strict=True)]
    return (
        {name: -math.inf if score is None else score for name, score in zip(names, scores, strict=True)},
        {name: line for name, line in zip(names, line_of(read, truth), strict=True) if line is not None},
        {name: told for name, told in zip(names, accuracies, strict=True) if told is not None},
    )


def skill(accuracy: float, chance: float) -> float | None:
    """How much of the way from chance to certainty; None where there is none to go, as one value is all there is."""
    return (accuracy - chance) / (1 - chance) if chance < 1 else None


def _calibrate(network: nn.Sequential, heads: Heads, raw: Float[Tensor, "n out"], truth: Float[Tensor, "n f"]) -> None:
    """Undo the regression to the mean of continuous factors, in the last layer.

    A network that minimises the squared error answers too little: its answers rise with the truth by a slope below 1, of about its
    R2, and every effect read with it is that much too small. Divided by that slope, an answer is right on average given the truth.
    """
    *_, weight, bias = network.parameters()  # of the last layer
    for j, levels in enumerate(heads.values):
        if levels is not None:
            continue
        row = heads.outputs_of(j)
        (line,) = line_of(raw[:, row], truth[:, [j]])
        if line is not None and line[0] >= _LEAST_SLOPE:
            with torch.no_grad():
                weight[row] /= line[0]
                bias[row] = (bias[row] - line[1]) / line[0]


def _heads(factors: Float[Tensor, "n f"], names: Sequence[str], discrete: Sequence[str] | None) -> Heads:
    if discrete is None:
        kinds = looks_discrete(factors, names)
        if kinds:
            warnings.warn(
                f"Factors.fit: {', '.join(kinds)} takes a few whole numbers and is read as a continuous amount. If they are kinds, say "
                f"so: discrete={kinds}; if amounts, discrete=().",
                NnsightVaeWarning,
                stacklevel=4,
            )
    found = levels_of(factors, names, discrete or ())
    if isinstance(found, str):
        raise ReadoutError(f"Factors.fit: {found}.")
    return found


def check_training_data(images: Tensor, factors: Tensor, names: Sequence[str]) -> None:
    """Refuse images and factors that nothing can be fitted to.

    Raises:
        ReadoutError: saying what was got.
    """
    if images.dtype != torch.uint8 and images.dtype != torch.float32:
        raise ReadoutError(f"Factors.fit: images are {images.dtype}, expected float32 in [0, 1] or uint8.")
    if factors.ndim != 2 or factors.shape != (len(images), len(names)):
        raise ReadoutError(
            f"Factors.fit: factors have shape {tuple(factors.shape)}, expected {(len(images), len(names))}: "
            f"one row per image and one column per name in {tuple(names)}."
        )
    if len(images) < _FEWEST_IMAGES:
        raise ReadoutError(f"Factors.fit: got {len(images)} images, expected at least {_FEWEST_IMAGES}.")
    for what, values in (("images", images), ("factors", factors)):
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise ReadoutError(f"Factors.fit: {what} hold NaN or infinite values.")
