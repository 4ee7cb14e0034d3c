"""`Factors`: the readout that says, in standard deviations, which value of each factor an image shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ._files import write_atomically
from ._regressor import Progress, predict, r_squared, restore_regressor, train_regressor
from .errors import DataError, ReadoutError
from .readouts import check_shape, check_targets

_SCHEMA = "nnsight-vae/factors@1"
_FEWEST_IMAGES = 50  # fewer leave too few held out to say whether a target can be read


class Factors:
    """What value of each factor an image shows, in standard deviations of the factor: a small learned regressor.

    Column f is `(estimate of factor f - mean_f) / sd_f`, with mean and sd taken over the images it was fitted on, so a
    change of 1 is one standard deviation of the factor. The regressor is differentiable and frozen. Make one with
    `Factors.fit`, `Factors.load` or a dataset's `readout()`; `readout["angle"]` keeps one target.

    A readout of a factor that it cannot read is worse than none, so a target whose held-out R2 is below
    `min_reliability` is refused. Blurred reconstructions can still defeat a good readout: `reliability_on` tells.

    Attributes:
        names: the factors, one per column.
        mean: mean of each factor over the fitted images, in the factor's units, shape (f,).
        sd: standard deviation of the same.
        reliability: name -> R2 on images held out of the fit, in (-inf, 1].
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

    def __init__(
        self,
        network: nn.Sequential,
        names: Sequence[str],
        *,
        mean: Float[Tensor, " f"],
        sd: Float[Tensor, " f"],
        reliability: Mapping[str, float],
        image_shape: Sequence[int],
        record: Mapping[str, object] | None = None,
        min_reliability: float = 0.8,
        allow_unreliable: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.mean, self.sd = mean, sd
        self.reliability = {name: float(reliability[name]) for name in self.names}
        self.image_shape = tuple(image_shape)
        self.record = dict(record or {})
        self.min_reliability = min_reliability
        self.network = network.eval().requires_grad_(False)
        if self.unreliable and not allow_unreliable:
            scores = ", ".join(f"{name} {self.reliability[name]:.2f}" for name in self.unreliable)
            raise ReadoutError(
                f"Factors: held-out R2 below {min_reliability:g} for {scores}. An effect on a factor that cannot be "
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
        min_reliability: float = 0.8,
        allow_unreliable: bool = False,
        record: Mapping[str, object] | None = None,
        progress: Progress | None = None,
    ) -> Factors:
        """Train a regressor on most of the images and score it on the rest.

        Args:
            images: float in [0, 1], or uint8.
            factors: one row per image, one column per name, in the factors' own units.
            names: names of the columns.
            seed: fixes the split, the weights and the training; the same call gives the same readout.
            steps: optimiser steps, of 64 images each.
            augment: blur and noise half of each batch, so that reconstructions can be read too.
            held_out: share of the images kept for scoring.
            min_reliability: lowest held-out R2 accepted.
            allow_unreliable: accept lower ones.
            record: plain JSON values to keep with the readout.
            progress: called with (steps done, steps in all), now and then.

        Returns:
            The fitted readout, with `reliability` measured on the held-out images as they are.

        Raises:
            ReadoutError: if the data do not fit each other, a factor is constant, or a target is not reliable.
        """
        _check_training_data(images, factors, names)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        test, train = order.split([round(held_out * len(order)), len(order) - round(held_out * len(order))])
        factors = factors.float()
        mean, sd = factors[train].mean(0), factors[train].std(0)
        constant = [name for name, spread in zip(names, sd.tolist(), strict=True) if not spread > 0]
        if constant:
            raise ReadoutError(f"Factors: {', '.join(constant)} never varies in these images, so it cannot be learned.")
        network = train_regressor(
            images[train], (factors[train] - mean) / sd, seed=seed, steps=steps, augment=augment, progress=progress
        )
        scores = r_squared(predict(network, images[test]), (factors[test] - mean) / sd)
        reliability = {name: -math.inf if score is None else score for name, score in zip(names, scores, strict=True)}
        made = {"seed": seed, "steps": steps, "augment": augment, "n_train": len(train), "n_held_out": len(test)}
        return cls(
            network,
            names,
            mean=mean,
            sd=sd,
            reliability=reliability,
            image_shape=images.shape[1:],
            record={**made, **(record or {})},
            min_reliability=min_reliability,
            allow_unreliable=allow_unreliable,
        )

    def __call__(self, reconstruction: Float[Tensor, "n ..."]) -> Float[Tensor, "n f"]:
        """The factors each image shows, z-scored; follows the device and dtype of the images."""
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
        rows = torch.tensor([self.names.index(name) for name in names])
        weights = dict(self.network.state_dict())
        *_, head_weight, head_bias = weights  # the last layer has one row per target
        weights |= {head_weight: weights[head_weight][rows], head_bias: weights[head_bias][rows]}
        return Factors(
            restore_regressor(self.image_shape, len(names), weights),
            names,
            mean=self.mean[rows],
            sd=self.sd[rows],
            reliability=self.reliability,
            image_shape=self.image_shape,
            record=self.record,
            min_reliability=self.min_reliability,
            allow_unreliable=True,  # what was allowed in the whole is allowed in the part
        )

    @property
    def unreliable(self) -> tuple[str, ...]:
        """The targets whose held-out R2 is below `min_reliability` (empty unless they were allowed)."""
        return tuple(name for name in self.names if not self.reliability[name] >= self.min_reliability)

    def predict(self, images: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n f"]:
        """The estimated factors in their own units, computed in chunks without gradients."""
        check_shape("Factors", images, self.image_shape)
        return predict(self.network, images) * self.sd + self.mean

    def reliability_on(self, images: Shaped[Tensor, "n ..."], factors: Float[Tensor, "n f"]) -> dict[str, float | None]:
        """R2 of the readout on other images, e.g. a VAE's reconstructions: the check that it can be used on them.

        Args:
            images: images or reconstructions, float in [0, 1] or uint8.
            factors: their true factors in the factors' own units, columns in the order of `names`.

        Returns:
            name -> R2; None where the true factor does not vary over these images.

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
        from safetensors.torch import save

        header = {
            "schema": _SCHEMA,
            "names": self.names,
            "reliability": self.reliability,
            "image_shape": self.image_shape,
            "record": self.record,
            "min_reliability": self.min_reliability,
        }
        tensors = {f"network.{name}": weight.contiguous() for name, weight in self.network.state_dict().items()}
        tensors |= {"mean": self.mean.contiguous(), "sd": self.sd.contiguous()}
        write_atomically(Path(path), save(tensors, metadata={"readout": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path, *, allow_unreliable: bool = False) -> Factors:
        """Read a readout written by `save`; nothing is unpickled.

        Raises:
            DataError: if the file is missing, unreadable, or not a readout.
            ReadoutError: if a target is not reliable.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["readout"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if header["schema"] != _SCHEMA:
                raise DataError(f"Factors.load: {path} has schema {header['schema']!r}, expected {_SCHEMA!r}.")
            weights = {name.removeprefix("network."): value for name, value in tensors.items() if "." in name}
            return cls(
                restore_regressor(tuple(header["image_shape"]), len(header["names"]), weights),
                header["names"],
                mean=tensors["mean"],
                sd=tensors["sd"],
                reliability=header["reliability"],
                image_shape=header["image_shape"],
                record=header["record"],
                min_reliability=header["min_reliability"],
                allow_unreliable=allow_unreliable,
            )
        except (OSError, SafetensorError) as error:
            raise DataError(f"Factors.load: cannot read {path}: {error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"Factors.load: {path} is not a readout written by Factors.save: {error}") from error

    def __repr__(self) -> str:
        caution = dict.fromkeys(self.unreliable, ", unreliable")
        shown = (f"{name} (R2 {self.reliability[name]:.3f}{caution.get(name, '')})" for name in self.names)
        return f"Factors({', '.join(shown)})"


def _check_training_data(images: Tensor, factors: Tensor, names: Sequence[str]) -> None:
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
