"""Infidelity: how badly attributions predict what perturbing the input does, under the perturbation that matches them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from captum.attr import Attribution, PerturbationAttribution
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.attribution.checks import ratio_score, rows_at_a_time
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.attribution.question import Question, ask
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.scores import Score

Perturbation = Literal["removal", "noise"]


@dataclass(frozen=True, eq=False)
class Infidelity:
    """How badly attributions predict what perturbing the input does.

    Attributes:
        score: mean squared error of the prediction, over the mean squared change of f: 0 is perfect, 1 no better than predicting
            no change.
        shuffled: the same for the same attributions with their elements in random order: what to beat.
        perturbation: `"removal"` or `"noise"`.
        values: mean squared error of each example.
        changes: mean squared change of f of each example.
    """

    score: Score
    shuffled: Score
    perturbation: Perturbation
    values: Float[Tensor, " n"]
    changes: Float[Tensor, " n"]

    def __str__(self) -> str:
        return f"{self.score}\n{self.shuffled}"

    __repr__ = __str__


def infidelity(
    method: Attribution,
    inputs: Float[Tensor, "n *shape"],
    *,
    target: Any,
    baselines: Any = None,
    perturbation: Perturbation | None = None,
    scale: float | None = None,
    n_perturbations: int = 50,
    seed: int = 0,
    **settings: Any,
) -> Infidelity:
    """How badly attributions predict what perturbing the input does to f: Captum's `infidelity`, with the matching perturbation.

    E (I . A - (f(x) - f(x perturbed)))^2. Attributions that were multiplied by x - baseline (integrated gradients, Shapley
    values, ablation) predict removal: a random rectangle of the image, or a random subset of the elements of a vector, is set to
    the baseline, and I marks it.
    Plain gradients predict noise: I is small and Gaussian. The other way round the number says nothing (random maps do as well),
    so that is refused.

    Args:
        method: one whose attributions have the shape of the inputs.
        inputs: what to attribute to.
        target: one target.
        baselines: as for our methods; 0 for a method that multiplies by the input but takes no baseline.
        perturbation: None: the one that matches.
        scale: standard deviation of the noise; None: 2 % of the range of the inputs.
        n_perturbations: perturbations of each input.
        seed: of the perturbations.
        settings: of the method's `attribute`; `abs=False` for Captum's `Saliency`, whose default throws the signs away.

    Raises:
        DataError: the perturbation does not match the method, or attributions are not shaped like the inputs.

    Source: Yeh et al. 2019, arXiv 1901.09392, section 2; the score over the mean squared change is ours.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, images = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(4).images
        >>> ig = nv.attribution.LatentIntegratedGradients(vae)
        >>> found = infidelity(ig, images, target="latent.mu[0]", n_perturbations=20)
        >>> found.perturbation, found.score.value < 0.5 * found.shuffled.value
        ('removal', True)
    """
    matching: Perturbation = "removal" if _against_baseline(method) else "noise"
    if perturbation not in (None, matching):
        kind = (
            "are differences from a baseline" if matching == "removal" else "are gradients, not multiplied by the input"
        )
        raise DataError(
            f"attributions of {type(method).__name__} {kind}: their infidelity is that under perturbation={matching!r}; under "
            f"{perturbation!r} random maps would do as well."
        )
    asked = ask(method, inputs, target, baselines)
    attributions = asked.attributions(**settings)
    if attributions.shape != asked.x.shape:
        raise DataError(
            f"attributions have shape {tuple(attributions.shape)}, inputs {tuple(asked.x.shape)}; infidelity perturbs the inputs, so it is "
            "defined for attributions to them alone."
        )
    if scale is None:
        scale = 0.02 * float(asked.x.max() - asked.x.min())
    if not scale > 0 or n_perturbations < 1:
        raise DataError(
            f"scale={scale}, n_perturbations={n_perturbations}: expected a positive standard deviation and at least one perturbation."
        )
    baseline = torch.zeros_like(asked.x) if asked.baseline is None else asked.baseline
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(attributions.flatten(1).shape, generator=generator).argsort(1).to(asked.x.device)
    shuffled = attributions.flatten(1).gather(1, order).view_as(attributions)
    errors, other, changes = (
        _squared_errors(asked, each, baseline if matching == "removal" else None, scale, n_perturbations, seed)
        for each in (attributions, shuffled, torch.zeros_like(attributions))
    )
    form, against = f"{asked.form}, {matching}", changes.double().cpu().numpy()
    score, reference = (
        ratio_score(name, form, each.double().cpu().numpy(), against, 0.0)
        for name, each in (("infidelity", errors), ("infidelity, shuffled", other))
    )
    return Infidelity(score, reference, matching, errors, changes)


def _against_baseline(method: Attribution) -> bool:
    """Whether attributions are shares of a difference from a baseline, rather than slopes."""
    return method.multiplies_by_inputs or isinstance(method, PerturbationAttribution)


def _squared_errors(
    asked: Question, attributions: Tensor, baseline: Tensor | None, scale: float, n_perturbations: int, seed: int
) -> Float[Tensor, " n"]:
    """Mean squared error of each example; the perturbations depend on the seed alone."""
    from captum.metrics import infidelity as captums

    generator = torch.Generator().manual_seed(seed)

    def removed(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        mask = _removed(x.shape, generator).to(x).expand_as(x)
        return mask, x - mask * (x - b)

    def noisy(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = scale * torch.randn(x.shape, generator=generator).to(x)
        return noise, x - noise

    with guarded(asked.method.forward_func.vae):
        return captums(
            asked.function,
            noisy if baseline is None else removed,
            asked.x,
            attributions,
            baselines=baseline,
            additional_forward_args=asked.places,
            n_perturb_samples=n_perturbations,
            max_examples_per_batch=rows_at_a_time(len(asked.x), n_perturbations),
        )


def _removed(shape: torch.Size, generator: torch.Generator) -> Bool[Tensor, "r ..."]:
    """What to remove from each row: a rectangle through all channels, or, without positions, a subset of random size."""
    rows = shape[0]
    if len(shape) == 2:
        return torch.rand(shape, generator=generator) < torch.rand((rows, 1), generator=generator)
    mask = torch.ones(rows, *[1] * (len(shape) - 1), dtype=torch.bool)
    for axis in range(2, len(shape)):
        edges = torch.randint(shape[axis], (rows, 2), generator=generator).sort(1).values
        places = torch.arange(shape[axis])
        inside = (places >= edges[:, :1]) & (places <= edges[:, 1:])
        mask = mask & inside.view(rows, *[-1 if i == axis else 1 for i in range(1, len(shape))])
    return mask
