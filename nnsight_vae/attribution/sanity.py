"""Does an attribution depend on the model, and on nothing but what it computes? Randomised weights, and other code for the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnsight_vae.arguments import require
from nnsight_vae.attribution.agreements import spearman
from nnsight_vae.attribution.checks import mean_score
from nnsight_vae.errors import DataError
from nnsight_vae.metrics.scores import Score
from nnsight_vae.vae import VAE

Attribute = Callable[[VAE], Float[Tensor, "n ..."]]
Stage = Literal["encoder", "decoder"]


@dataclass(frozen=True, repr=False)
class Randomisation:
    """How much of an attribution is left as the model's weights are randomised, layer after layer.

    Attributes:
        layers: in the order in which they were randomised; each row has all layers up to it randomised.
        signed: rank correlation of the attributions' elements with those of the model as it is, mean over examples.
        absolute: the same for their absolute values: whether at least the places stay.
    """

    layers: tuple[str, ...]
    signed: tuple[Score, ...]
    absolute: tuple[Score, ...]

    def __str__(self) -> str:
        width = max(map(len, self.layers))
        rows = zip(self.layers, self.signed, self.absolute, strict=True)
        lines = [f"down to {layer:<{width}}  {_short(a)}  absolute {_short(b)}" for layer, a, b in rows]
        return "\n".join(["Rank correlation with the attributions of the trained model, weights randomised", *lines])

    __repr__ = __str__


@dataclass(frozen=True)
class Invariance:
    """How far the attributions of two models are apart that compute the same.

    Attributes:
        difference: largest |difference| of an attribution, over the largest |attribution|; 0 for an invariant method.
        outputs: largest |difference| of what the two models compute.
    """

    difference: float
    outputs: float


def model_randomisation(vae: VAE, attribute: Attribute, *, stage: Stage = "encoder", seed: int = 0) -> Randomisation:
    """Cascading randomisation: the entries of each layer's parameters are shuffled, from the last layer of a stage to its first.

    An attribution that hardly changes shows the input, or the architecture, and not what the model has learned. Works on copies;
    the model is not touched.

    Args:
        vae: the model.
        attribute: from a model to attributions `[n, ...]`; the same inputs and baselines in every call. With random weights a latent
            may count as collapsed, and our own methods then give zeros: use Captum's on `captum_forward(vae)`, as below.
        stage: `"encoder"`, for attributions of latents; `"decoder"`, for attributions of what is made of them.
        seed: of the shuffling.

    Returns: one similarity per layer, with intervals over examples; None where attributions are constant.

    Raises:
        DataError: `attribute` does not return attributions, or the stage has no layer with parameters.

    Source: Adebayo et al. 2018, Sanity checks for saliency maps, arXiv 1810.03292, section 4.1 (with shuffled weights in place of
        new ones, which keeps each layer's scale).

    Example:
        >>> import nnsight_vae as nv
        >>> from captum.attr import IntegratedGradients
        >>> vae, images = nv.load("pendulum-beta-vae"), nv.datasets.load("pendulum").sample(4).images
        >>> grey = images.mean(0, keepdim=True)
        >>> def attribute(vae):
        ...     return IntegratedGradients(nv.attribution.captum_forward(vae)).attribute(images, grey, target=0, n_steps=5)
        >>> found = model_randomisation(vae, attribute)
        >>> found.layers[0], found.layers[-1]
        ('fc_logvar', 'encoder.0')
        >>> abs(found.signed[-1].value) < 0.5
        True
    """
    require(vae)
    if stage not in get_args(Stage):
        raise DataError(f"stage must be 'encoder' or 'decoder', got {stage!r}.")
    original = _checked(attribute(vae))
    twin = copy.deepcopy(vae)
    layers = _layers(twin, stage)
    if not layers:
        raise DataError(f"the {stage} has no layer with parameters, so there is nothing to randomise.")
    generator = torch.Generator().manual_seed(seed)
    signed, absolute = [], []
    for name, module in layers.items():
        _shuffle(module, generator)
        now = _checked(attribute(twin))
        if now.shape != original.shape:
            raise DataError(f"attribute returned shapes {tuple(original.shape)} and {tuple(now.shape)} for two models.")
        signed.append(_similarity(f"down to {name}", original, now))
        absolute.append(_similarity(f"down to {name}, absolute", original.abs(), now.abs()))
    return Randomisation(tuple(layers), tuple(signed), tuple(absolute))


def implementation_invariance(
    vae: VAE, other: VAE, attribute: Attribute, x: Float[Tensor, "n *image"], *, tolerance: float = 1e-5
) -> Invariance:
    """Whether two models that compute the same get the same attributions, however they are written.

    Args:
        vae: a model.
        other: one that computes the same: `F.relu` in place of `nn.ReLU`, layers split or fused.
        attribute: from a model to attributions `[n, ...]`.
        x: inputs on which the two are held against each other.
        tolerance: by which they may differ, absolutely.

    Raises:
        DataError: the models do not compute the same.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, section 2.2.

    Example:
        >>> import copy, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae, x = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3)), torch.rand(4, 1, 8, 8)
        >>> attribute = lambda vae: nv.attribution.LatentIntegratedGradients(vae).attribute(x, target=0)
        >>> implementation_invariance(vae, copy.deepcopy(vae), attribute, x).difference
        0.0
    """
    require(vae)
    require(other)
    with torch.no_grad():
        pairs = zip((*vae.encode(x), vae(x)), (*other.encode(x), other(x)), strict=True)
        apart = max(float((a - b).abs().max()) for a, b in pairs)
    if not apart <= tolerance:
        raise DataError(
            f"the two models differ by {apart:.3g} in mu, logvar or reconstruction (tolerance {tolerance:g}); implementation invariance "
            "is a property of models that compute the same."
        )
    first, second = _checked(attribute(vae)), _checked(attribute(other))
    size = float(first.abs().max()) or 1.0
    return Invariance(float((first - second).abs().max()) / size, apart)


def _layers(vae: VAE, stage: Stage) -> dict[str, nn.Module]:
    """Modules of a stage with parameters of their own, the last first."""
    firings = vae.layout().firings
    middle = firings["latent.mu"].finished
    found = {
        path.removeprefix("model."): firing.module
        for path, firing in sorted(firings.items(), key=lambda item: -item[1].finished)
        if next(firing.module.parameters(recurse=False), None) is not None
    }
    encodes = {site: firings[path].finished < middle for path in firings for site in [path.removeprefix("model.")]}
    return {name: module for name, module in found.items() if encodes[name] == (stage == "encoder")}


def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _checked(attributions: Tensor) -> Tensor:
    if not isinstance(attributions, Tensor) or attributions.ndim < 2 or not bool(torch.isfinite(attributions).all()):
        got = f"shape {tuple(attributions.shape)}" if isinstance(attributions, Tensor) else type(attributions).__name__
        raise DataError(f"attribute must return finite attributions [n, ...] of a model, got {got}.")
    return attributions.detach()


def _similarity(form: str, one: Tensor, two: Tensor) -> Score:
    """Rank correlation over elements, mean over the examples in which neither side is constant."""
    a, b = (each.flatten(1).double().cpu() for each in (one, two))
    defined = (a != a[:, :1]).any(1) & (b != b[:, :1]).any(1)
    if not bool(defined.any()):
        return Score("similarity", form, None, note="the same everywhere")
    return mean_score("similarity", form, torch.from_numpy(spearman(a[defined].numpy(), b[defined].numpy())))


def _short(score: Score) -> str:
    if score.value is None:
        return f"none ({score.note})"
    return f"{score.value:+.2f}" + (f" [{score.ci[0]:+.2f}, {score.ci[1]:+.2f}]" if score.ci else "")
