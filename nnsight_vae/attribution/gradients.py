"""Integrated gradients of a VAE: from pixels to latents, and from latents to pixels, regions and factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from captum.attr import IntegratedGradients
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.attribution.base import Call
from nnsight_vae.attribution.entry import Entry
from nnsight_vae.attribution.forward import Explained
from nnsight_vae.attribution.path import CHUNK_BYTES, PathAttribution
from nnsight_vae.interventions import Intervention
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE


class _IntegratedGradients(PathAttribution):
    """Integrated gradients of every target from one forward; the quadrature and the batching along the path are Captum's.

    Where the model begins with an affine layer (nearly all do), the path is taken at that layer's output: see `Entry`.
    """

    def _along_paths(
        self, call: Call, n_steps: int, method: str, batch: int | None
    ) -> Float[Tensor, "n target *shape"]:
        options = {"n_steps": n_steps, "method": method, "internal_batch_size": batch}
        total: Tensor | float = 0.0
        for baseline in call.baselines:
            total = total + self._mean_gradients(call, baseline, options) * (call.x - baseline)[:, None]
        return total / len(call.baselines)  # type: ignore[return-value]

    def _mean_gradients(
        self, call: Call, baseline: Tensor, options: dict[str, Any]
    ) -> Float[Tensor, "n target *shape"]:
        entry = Entry.find(self.forward_func, call.x, baseline, call.rows)
        read, start, end = self.function(call), baseline, call.x
        if entry is not None:
            with torch.no_grad():
                start, end = entry.output(baseline), entry.output(call.x)

            def read(hidden: Tensor, rows: Tensor, places: Tensor) -> Tensor:
                any_input = call.x[:1].expand(len(hidden), *call.x.shape[1:])
                return call.targets.read(entry.after(hidden, any_input, rows), places)

        if options["internal_batch_size"] is None:
            row = len(call.targets.names) * end[0].numel() * end.element_size()
            options = options | {"internal_batch_size": max(len(end), CHUNK_BYTES // row)}
        mean = MeanGradients(read).attribute(
            end, baselines=start, additional_forward_args=(call.rows, call.places), **options
        )
        return mean if entry is None else entry.pull_back(call.x, mean)


class MeanGradients(IntegratedGradients):
    """Captum's path integral of gradients, for a function with a column per target: `[n, targets, *shape]`.

    Captum explains one target a run. Its sums along the path do not look at the shape of a gradient, so replacing the gradient by
    one with an axis of targets is all it takes to share the forward pass.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__(function, multiply_by_inputs=False)
        self.gradient_func = _jacobian


def _jacobian(
    forward_fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], target_ind: None, additional_forward_args: Any
) -> tuple[Float[Tensor, "r target *shape"]]:
    (x,) = inputs
    with torch.enable_grad():  # NoiseTunnel runs its method under no_grad
        columns = forward_fn(x, *additional_forward_args).unbind(1)
    return (torch.stack(gradients_of(columns, x), 1),)


def gradients_of(columns: Sequence[Float[Tensor, " r"]], at: Tensor) -> list[Tensor]:
    """The gradient of each column with respect to `at`, row by row; zeros where it does not depend on it. Frees the graph."""
    gradients = []
    for i, column in enumerate(columns):
        gradient = None
        if column.requires_grad:
            ones = torch.ones_like(column)
            (gradient,) = torch.autograd.grad(column, at, ones, retain_graph=i + 1 < len(columns), allow_unused=True)
        gradients.append(torch.zeros_like(at) if gradient is None else gradient)
    return gradients


class LatentIntegratedGradients(_IntegratedGradients):
    """Which pixels make each latent what it is: integrated gradients from the input to mu_k (or logvar_k, KL_k).

    Captum's `IntegratedGradients` on `captum_forward(vae, to)` gives the same numbers one latent at a time. What is new here:
    `target=None` explains all latents from one shared forward, baselines that are images the model knows, and a record of them;
    collapsed latents get zeros and a flag instead of noise.

    Args:
        vae: the model.
        to: `"mu"`, `"logvar"`, `"kl"`, `"z"`, `"reconstruction"` or a readout.
        eps: noise, one row an example or one for all; see `captum_forward`.
        interventions: held active in every run.
        reference: images `[m, *image]` that stand for the data: their mean is the default baseline. Without them it is the mean of
            the images of each call, and attributions of an image depend on its company.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, eq. 1.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> method = LatentIntegratedGradients(vae)
        >>> maps = method.attribute(torch.rand(4, 1, 8, 8), baselines="black", target=None)
        >>> maps.shape, method.record.baseline
        (torch.Size([4, 3, 1, 8, 8]), 'black')
    """

    _of = "input"

    def __init__(
        self,
        vae: VAE,
        to: Explained = "mu",
        *,
        eps: Tensor | None = None,
        interventions: Mapping[Key, Intervention] | None = None,
        reference: Tensor | None = None,
    ) -> None:
        super().__init__(vae, to, of="input", eps=eps, interventions=interventions, reference=reference)


class DecoderIntegratedGradients(_IntegratedGradients):
    """What each latent contributes to a pixel, a region or a factor of the reconstruction: integrated gradients from z.

    Captum's `IntegratedGradients` on `captum_forward(vae, to, of="z")` gives the same numbers one target at a time.

    Args:
        vae: the model.
        readout: what is measured on the reconstruction: `data.readout()`, `Region`, any readout; None is the reconstruction itself,
            with `target=(channel, row, column)`.
        interventions: at decoder sites, held active in every run.
        reference: latents `[m, *latent]` whose mean is the baseline `"mean"`; the default baseline is the prior mean, z = 0.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, eq. 1.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> DecoderIntegratedGradients(vae, top).attribute(torch.randn(4, 3), target="top").shape
        torch.Size([4, 3])
    """

    _of = "latent.z"

    def __init__(
        self,
        vae: VAE,
        readout: Readout | None = None,
        *,
        interventions: Mapping[Key, Intervention] | None = None,
        reference: Tensor | None = None,
    ) -> None:
        to: Explained = "reconstruction" if readout is None else readout
        super().__init__(vae, to, of="z", interventions=interventions, reference=reference)
