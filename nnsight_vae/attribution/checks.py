"""Does an attribution do what it promises? Completeness and sensitivity of any Captum method on a VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.attribution.guards import guarded
from nnsight_vae.attribution.question import ask
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.scores import Score
from nnsight_vae.stats.intervals import bootstrap_ratio_interval, mean_interval

_ROWS = 64  # at a time
_ROUNDING = 1e-6  # of the function's own size: a change below is none


@dataclass(frozen=True, eq=False, repr=False)
class Completeness:
    """How well attributions add up to what they explain.

    Attributes:
        score: sum |delta| / sum |change| over the examples; 0 where they add up.
        delta: sum of attributions less f(x) - f(baseline).
        change: f(x) - f(baseline).
    """

    score: Score
    delta: Float[Tensor, " n"]
    change: Float[Tensor, " n"]

    def __str__(self) -> str:
        return str(self.score)

    __repr__ = __str__


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """How far an attribution moves when its input hardly does.

    Attributes:
        score: mean over the examples.
        values: largest |attribution(x') - attribution(x)| / |attribution(x)| (Euclidean) over inputs x' within the radius.
        radius: largest change of an input element.
    """

    score: Score
    values: Float[Tensor, " n"]
    radius: float

    def __str__(self) -> str:
        return str(self.score)

    __repr__ = __str__


def completeness(
    method: Attribution, inputs: Float[Tensor, "n *shape"], *, target: Any, baselines: Any = None, **settings: Any
) -> Completeness:
    """Whether attributions sum to f(x) - f(baseline).

    Args:
        method: one of ours, or one of Captum's on `captum_forward(vae, ...)`; it must take baselines.
        inputs: what to attribute to.
        target: one target, as for the method.
        baselines: as for our methods (`resolve_baseline`), for Captum's too.
        settings: of the method's `attribute`, e.g. `n_steps=50`.

    Raises:
        DataError: the method has no baseline, or is on a function of its own.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, section 3.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, images = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(4).images
        >>> ig = nv.attribution.LatentIntegratedGradients(vae)
        >>> completeness(ig, images, target="latent.mu[0]", n_steps=50).score.value < 0.01
        True
    """
    asked = ask(method, inputs, target, baselines)
    at_x, at_baseline = asked.change()
    change = at_x - at_baseline
    delta = asked.attributions(**settings).flatten(1).sum(1) - change
    top, bottom = (each.abs().double().cpu().numpy() for each in (delta, change))
    score = ratio_score("relative completeness error", asked.form, top, bottom, float(at_x.abs().mean()) * _ROUNDING)
    return Completeness(score, delta, change)


def sensitivity(
    method: Attribution,
    inputs: Float[Tensor, "n *shape"],
    *,
    target: Any,
    baselines: Any = None,
    radius: float | None = None,
    n_perturbations: int = 10,
    seed: int = 0,
    **settings: Any,
) -> Sensitivity:
    """How far attributions move under small uniform noise: Captum's `sensitivity_max`, seeded, against one fixed baseline.

    Args:
        method: as in `completeness`; it need not take baselines.
        inputs: what to attribute to.
        target: one target.
        baselines: as for our methods.
        radius: of the noise, elementwise; None: 2 % of the range of the inputs.
        n_perturbations: noisy inputs for each input.
        seed: of the noise.
        settings: of the method's `attribute`.

    Source: Yeh et al. 2019, On the (in)fidelity and sensitivity of explanations, arXiv 1901.09392.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, images = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(4).images
        >>> ig = nv.attribution.LatentIntegratedGradients(vae)
        >>> 0 < sensitivity(ig, images, target="latent.mu[0]", n_perturbations=2, n_steps=10).score.value < 1
        True
    """
    from captum.metrics import sensitivity_max

    asked = ask(method, inputs, target, baselines)
    if radius is None:
        radius = 0.02 * float(asked.x.max() - asked.x.min())
    if not radius > 0 or n_perturbations < 1:
        raise DataError(
            f"radius={radius}, n_perturbations={n_perturbations}: expected a positive radius and at least one perturbation."
        )
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        return x + radius * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)

    with guarded(method.forward_func.vae):
        values = sensitivity_max(
            lambda x, **extra: method.attribute(x, **extra, **settings),
            asked.x,
            perturb_func=noisy,
            n_perturb_samples=n_perturbations,
            max_examples_per_batch=rows_at_a_time(len(asked.x), n_perturbations),
            **asked.extra,
        )
    return Sensitivity(mean_score("sensitivity", f"{asked.form}, radius {radius:.3g}", values), values, radius)


def rows_at_a_time(n: int, n_perturbations: int) -> int:
    """Captum's `max_examples_per_batch`: whole batches, and no more than there are rows."""
    return min(max(n, _ROWS), n * n_perturbations)


def mean_score(metric: str, form: str, values: Float[Tensor, " n"]) -> Score:
    """Mean over examples with its interval."""
    array = values.double().cpu().numpy()
    if len(array) < 2:
        return Score(metric, form, float(array.mean()), note="no interval: one example")
    low, high = mean_interval(array)
    return Score(metric, form, float(array.mean()), (float(low), float(high)))


def ratio_score(metric: str, form: str, top: np.ndarray, bottom: np.ndarray, least: float) -> Score:
    """sum(top) / sum(bottom) with its interval over examples; undefined where the denominator is rounding."""
    if bottom.mean() <= least:
        return Score(metric, form, None, note="f is the same at the inputs and at what they are compared with")
    value = float(top.mean() / bottom.mean())
    if len(top) < 2:
        return Score(metric, form, value, note="no interval: one example")
    low, high = bootstrap_ratio_interval(top, bottom)
    if not np.isfinite([low, high]).all():
        return Score(metric, form, value, note="no interval: f does not change for most examples")
    return Score(metric, form, value, (float(low), float(high)))
