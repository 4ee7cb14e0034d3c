"""Baselines: what an attribution compares an input with. Which one was taken is part of every result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.attribution.forward import CaptumForward
from nnsight_vae.errors import DataError
from nnsight_vae.pairs import Pairs


@dataclass(frozen=True)
class Distribution:
    """A baseline: every one of a set of inputs (or latents) in turn; attributions are averaged over them.

    For integrated gradients this is expected gradients, without its sampling.

    Args:
        values: `[m, *image]`, or `[m, *latent]` for attributions of z.

    Source: Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution priors and expected
        gradients, Nat. Mach. Intell. 3.
    """

    values: Float[Tensor, "m *shape"]


@dataclass(frozen=True)
class Baseline:
    """A baseline resolved against inputs.

    Attributes:
        name: as recorded: `"mean of the inputs"`, `"black"`, `"prior mean"`, ...
        values: `[m, n, *shape]`: m baselines for each of n examples; m is 1 unless a `Distribution` was given.
    """

    name: str
    values: Float[Tensor, "m n *shape"]


def resolve_baseline(
    spec: Any, forward: CaptumForward, x: Float[Tensor, "n *shape"], reference: Tensor | None = None
) -> Baseline:
    """Read what a user passed as `baselines`.

    Args:
        spec: None: `"mean"` for inputs, `"prior"` for latents. `"mean"`: of the reference where there is one, else of x.
            `"black"`: zeros. `"prior"`: the prior mean z = 0, and for inputs the image decoded from it. `Pairs`: the source of each
            base. A number; a tensor `[1, *shape]` or of x's shape; a `Distribution`.
        forward: what is attributed, for the model and the shape.
        x: inputs or latents, checked.
        reference: inputs (or latents) that stand for the data.

    Raises:
        DataError: it does not fit x, or is the mean of a single input, which is that input.
    """
    if spec is None:
        spec = "prior" if forward.of == "z" else "mean"
    if isinstance(spec, Distribution):
        values = _checked(spec.values, forward)
        return Baseline(f"distribution of {len(values)}", values[:, None].expand(len(values), *x.shape))
    name, value = _named(spec, forward, x, reference) if isinstance(spec, str) else _given(spec, forward, x)
    return Baseline(name, value.expand(1, *x.shape))


def _named(spec: str, forward: CaptumForward, x: Tensor, reference: Tensor | None) -> tuple[str, Tensor]:
    if spec == "black":
        return "black", torch.zeros_like(x)
    if spec == "prior":
        if forward.of == "z":
            return "prior mean", torch.zeros_like(x)
        with torch.no_grad():
            shape = forward.vae.sites["latent.z"].shape
            return "prior mean, decoded", forward.vae.decode(x.new_zeros(1, *shape))
    if spec == "mean":
        if reference is not None:
            return "mean of the reference", _checked(reference, forward).mean(0, keepdim=True)
        if len(x) == 1:
            raise DataError(
                "the mean of one input is that input, from which nothing differs; pass reference=images (what stands for the data) to "
                "the constructor, or baselines='prior', 'black' or a tensor."
            )
        return "mean of the inputs", x.mean(0, keepdim=True)
    hint = (
        "pass the pairs themselves: baselines=pairs"
        if spec == "source"
        else "or a tensor, a number, Pairs or a Distribution"
    )
    raise DataError(f"baselines={spec!r} is not known; use 'mean', 'prior' or 'black', {hint}.")


def _given(spec: Any, forward: CaptumForward, x: Tensor) -> tuple[str, Tensor]:
    if isinstance(spec, bool) or not isinstance(spec, int | float | Tensor | Pairs):
        raise DataError(
            f"baselines must be a name, a number, a tensor, Pairs or a Distribution; got {type(spec).__name__}."
        )
    if isinstance(spec, int | float):
        if spec != spec or spec in (float("inf"), -float("inf")):
            raise DataError(f"baselines={spec!r} is not finite.")
        return f"constant {spec:g}", torch.full_like(x, spec)
    if isinstance(spec, Pairs):
        return "source of each pair", _source(spec, forward, x)
    value = _checked(spec, forward)
    if len(value) not in (1, len(x)):
        raise DataError(
            f"baselines has {len(value)} rows for {len(x)} examples; give one row, one an example, or Distribution(values) to average "
            "over them all."
        )
    return "given", value


def _source(pairs: Pairs, forward: CaptumForward, x: Tensor) -> Tensor:
    if len(pairs) != len(x):
        raise DataError(f"baselines holds {len(pairs)} pairs for {len(x)} examples; pass pairs.base as inputs.")
    if forward.of == "input":
        return _checked(pairs.source, forward)
    with torch.no_grad():
        posterior = forward.vae.encode(forward.vae.checked(pairs.source))
        return posterior.mu if pairs.eps is None else posterior.rsample(pairs.eps.to(posterior.mu))


def _checked(value: Tensor, forward: CaptumForward) -> Tensor:
    shape = forward.input_shape
    if isinstance(value, Tensor):
        value = value.detach()[None] if tuple(value.shape) == shape else value.detach()
        # A convolutional VAE would run images of another size, and take that for its own.
        if tuple(value.shape[1:]) != shape:
            raise DataError(f"baselines: shape {tuple(value.shape)} does not fit inputs of shape {('n', *shape)}.")
    try:
        return forward.checked(value)
    except DataError as error:
        raise DataError(f"baselines: {error}") from error
