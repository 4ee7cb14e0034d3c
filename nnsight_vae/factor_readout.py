"""`Factors`: the readout that says, in standard deviations, which value of each factor an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ._factor_file import read_parts, write_readout
from ._factor_fit import fit_factors
from ._factor_heads import Heads
from ._regressor import Progress, predict, r_squared, restore_regressor
from .errors import DataError, ReadoutError
from .factor_classes import Classes
from .reading import check_shape, check_targets


class Factors:
    """What value of each factor an image shows, in standard deviations of the factor: a small learned regressor.

    Column f is `(estimate of factor f - mean_f) / sd_f`, with mean and sd taken over the images it was fitted on, so a
    change of 1 is one standard deviation of the factor. The regressor is differentiable and frozen. Make one with
    `Factors.fit`, `Factors.load` or a dataset's `readout()`; `readout["angle"]` keeps one target.

    An effect on a discrete factor is the change of the expected value under the class probabilities, in standard deviations too.
    That is all there is to say of two values; of three or more kinds, whose order means nothing, ask for the probability of each:
    `readout.classes("shape")` has a target a class.

    A readout of a factor that it cannot read is worse than none, so a target whose held-out R2 is below
    `min_reliability` is refused. Blurred reconstructions can still defeat a good readout: `reliability_on` tells.

    Attributes:
        names: the factors, one per column.
        mean: mean of each factor over the fitted images, in the factor's units, shape (f,).
        sd: standard deviation of the same.
        reliability: name -> R2 on images held out of the fit, in (-inf, 1]. Of a discrete factor (accuracy - chance) / (1 - chance),
            chance being the share of its most frequent value.
        calibration: name -> (slope, intercept) of the readout on the truth over the same images: near (1, 0), since the regression
            to the mean of continuous factors is corrected on other images; a slope of .9 would make effects a tenth too small.
        accuracy: discrete name -> (accuracy, chance) over the same images.
        image_shape: shape of one image, without the batch axis.
        record: how it was made, as plain JSON values.

    Raises:
        ReadoutError: if a target is not reliable, or a call's images have another shape.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> brightness = torch.rand(400, 1, generator=generator)
        >>> images = brightness.reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        >>> readout = Factors.fit(images, brightness, ["brightness"], steps=200)
        >>> readout(images[:5]).shape, readout.reliability["brightness"] > 0.9
        (torch.Size([5, 1]), True)
    """

    reads = "output"
    unit = "factor sd"

    def __init__(
        self,
        network: nn.Sequential,
        names: Sequence[str],
        *,
        mean: Float[Tensor, " f"],
        sd: Float[Tensor, " f"],
        reliability: Mapping[str, float],
        image_shape: Sequence[int],
        heads: Heads | None = None,
        calibration: Mapping[str, Sequence[float]] | None = None,
        accuracy: Mapping[str, Sequence[float]] | None = None,
        record: Mapping[str, object] | None = None,
        min_reliability: float = 0.8,
        allow_unreliable: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.mean, self.sd = mean, sd
        self.reliability = {name: float(reliability[name]) for name in self.names}
        self.calibration = {name: _pair(line) for name, line in (calibration or {}).items() if name in self.names}
        self.accuracy = {name: _pair(told) for name, told in (accuracy or {}).items() if name in self.names}
        self.image_shape = tuple(image_shape)
        self.heads = heads or Heads((None,) * len(self.names))
        self.record = dict(record or {})
        self.min_reliability = min_reliability
        self.network = network.eval().requires_grad_(False)
        if self.unreliable and not allow_unreliable:
            scores = ", ".join(f"{name} {self.reliability[name]:.2f}" for name in self.unreliable)
            raise ReadoutError(
                f"Factors: held-out reliability below {min_reliability:g} for {scores}. An effect on a factor that cannot be "
                "read means nothing: leave it out, fit on more images, or pass allow_unreliable=True."
            )

    @classmethod
    def fit(
        cls,
        images: Shaped[Tensor, "n ..."],
        factors: Float[Tensor, "n f"],
        names: Sequence[str],
        *,
        seed: int = 0,
        steps: int = 3000,
        augment: bool = True,
        held_out: float = 0.2,
        discrete: Sequence[str] | None = None,
        min_reliability: float = 0.8,
        allow_unreliable: bool = False,
        record: Mapping[str, object] | None = None,
        progress: Progress | None = None,
    ) -> Factors:
        """Train a network on most of the images, calibrate it on half of the rest and score it on the other half.

        Args:
            images: float in [0, 1], or uint8.
            factors: one row per image, one column per name, in the factors' own units.
            names: names of the columns.
            seed: fixes the split, the weights and the training; the same call gives the same readout.
            steps: optimiser steps, of 64 images each.
            augment: blur and noise half of each batch, so that reconstructions can be read too.
            held_out: share of the images kept for calibration and scoring; fewer than 60 images are all for scoring.
            discrete: the factors that are kinds and not amounts, learned by cross-entropy as a class a value; None: none, with a
                warning where the numbers look like kinds.
            min_reliability: lowest held-out R2 accepted.
            allow_unreliable: accept lower ones.
            record: plain JSON values to keep with the readout.
            progress: called with (steps done, steps in all), now and then.

        Returns:
            The fitted readout, with `reliability` measured on the held-out images as they are.

        Raises:
            ReadoutError: if the data do not fit each other, a factor is constant, a discrete factor has too many values, or a target
                is not reliable.

        Warns:
            NnsightVaeWarning: `discrete` is None, and a factor takes three to ten whole numbers from 0.
        """
        found = fit_factors(
            images,
            factors,
            names,
            discrete=discrete,
            seed=seed,
            steps=steps,
            augment=augment,
            held_out=held_out,
            progress=progress,
        )
        return cls(
            found.network,
            names,
            mean=found.mean,
            sd=found.sd,
            reliability=found.reliability,
            image_shape=images.shape[1:],
            heads=found.heads,
            calibration=found.calibration,
            accuracy=found.accuracy,
            record={**found.record, **(record or {})},
            min_reliability=min_reliability,
            allow_unreliable=allow_unreliable,
        )

    def __call__(self, reconstruction: Float[Tensor, "n ..."]) -> Float[Tensor, "n f"]:
        """The factors each image shows, z-scored; follows the device and dtype of the images."""
        return self.heads.read(self.outputs(reconstruction), self.mean, self.sd)

    def outputs(self, reconstruction: Float[Tensor, "n ..."]) -> Float[Tensor, "n out"]:
        """What the network says before it is read as factors: z-scores, and of a discrete factor a logit a value."""
        check_shape("Factors", reconstruction, self.image_shape)
        device, dtype = reconstruction.device, reconstruction.dtype
        weights = {
            name: weight.to(device, dtype) for name, weight in self.network.named_parameters()
        }  # usually no copy
        return torch.func.functional_call(self.network, weights, (reconstruction,))

    def __getitem__(self, names: str | Sequence[str]) -> Factors:
        """A readout of the named targets only, in the order asked for."""
        return self._select(check_targets(names, self.names))

    def _select(self, names: tuple[str, ...]) -> Factors:
        chosen = [self.names.index(name) for name in names]
        heads, rows = self.heads.select(chosen)
        weights = dict(self.network.state_dict())
        *_, head_weight, head_bias = weights  # the last layer has one row per output
        weights |= {head_weight: weights[head_weight][rows], head_bias: weights[head_bias][rows]}
        return Factors(
            restore_regressor(self.image_shape, heads.n_outputs, weights),
            names,
            mean=self.mean[chosen],
            sd=self.sd[chosen],
            reliability=self.reliability,
            image_shape=self.image_shape,
            heads=heads,
            calibration=self.calibration,
            accuracy=self.accuracy,
            record=self.record,
            min_reliability=self.min_reliability,
            allow_unreliable=True,  # what was allowed in the whole is allowed in the part
        )

    def classes(self, name: str) -> Classes:
        """The readout of the probability of every value of a discrete factor: targets `shape=0`, `shape=1`, ...

        Raises:
            ReadoutError: an unknown factor, or one that is not discrete.
        """
        check_targets(name, self.names)
        levels = self.heads.values[self.names.index(name)]
        if levels is None:
            raise ReadoutError(f"Factors.classes: {name!r} was fitted as a continuous amount and has no classes.")
        return Classes(self[name], tuple(f"{name}={level:g}" for level in levels))

    @property
    def unreliable(self) -> tuple[str, ...]:
        """The targets whose reliability is below `min_reliability` (empty unless they were allowed)."""
        return tuple(name for name in self.names if not self.reliability[name] >= self.min_reliability)

    def predict(self, images: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n f"]:
        """The estimated factors in their own units, computed in chunks without gradients."""
        check_shape("Factors", images, self.image_shape)
        return self.heads.read(predict(self.network, images), self.mean, self.sd) * self.sd + self.mean

    def reliability_on(self, images: Shaped[Tensor, "n ..."], factors: Float[Tensor, "n f"]) -> dict[str, float | None]:
        """R2 on other images, e.g. a VAE's reconstructions: the check that it can be used on them.

        Args:
            images: images or reconstructions, float in [0, 1] or uint8.
            factors: their true factors in the factors' own units, columns in the order of `names`.

        Returns:
            name -> R2, of discrete factors too (of their expected values); None where the true factor does not vary over these images.

        Raises:
            ReadoutError: if the shapes do not fit.
        """
        check_shape("Factors.reliability_on, factors:", factors, (len(self.names),))
        scores = r_squared(self.predict(images), factors)
        return dict(zip(self.names, scores, strict=True))

    def save(self, path: str | Path) -> None:
        """Write weights (safetensors) and everything else (its JSON header) to one file, whole or not at all.

        Raises:
            DataError: if the folder does not exist or cannot be written to.
        """
        write_readout(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, allow_unreliable: bool = False) -> Factors:
        """Read a readout written by `save`; nothing is unpickled.

        Raises:
            DataError: if the file is missing, unreadable, or not a readout.
            ReadoutError: if a target is not reliable.
        """
        from safetensors import SafetensorError

        try:
            return cls(**read_parts(Path(path)), allow_unreliable=allow_unreliable)
        except (OSError, SafetensorError) as error:
            raise DataError(f"Factors.load: cannot read {path}: {error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"Factors.load: {path} is not a readout written by Factors.save: {error}") from error

    def __repr__(self) -> str:
        caution = dict.fromkeys(self.unreliable, ", unreliable")
        shown = (f"{name} ({self._scored(name)}{caution.get(name, '')})" for name in self.names)
        return f"Factors({', '.join(shown)})"

    def _scored(self, name: str) -> str:
        if name in self.accuracy:
            accuracy, chance = self.accuracy[name]
            return f"accuracy {accuracy:.3f}, chance {chance:.3f}"
        return f"R2 {self.reliability[name]:.3f}"


def _pair(values: Sequence[float]) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)
