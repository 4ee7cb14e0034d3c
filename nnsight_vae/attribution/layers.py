"""Attribution of a latent to the units of any layer: conductance, and Grad-CAM attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from captum.attr._utils.approximation_methods import approximation_parameters
from captum.log import log_usage
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nnsight_vae.attribution.base import Call, VAEAttribution
from nnsight_vae.attribution.forward import Explained, Origin
from nnsight_vae.attribution.gradients import gradients_of
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.attribution.path import CHUNK_BYTES, PathAttribution
from nnsight_vae.attribution.raw_layer import Layer, captum_layer, layer_name
from nnsight_vae.errors import DataError, SiteError
from nnsight_vae.interventions import Intervention
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE


class _LayerAttribution(VAEAttribution):
    """Attribution to one layer: all targets from one forward and one gradient each, which Captum's layer methods repeat per target.

    Attributes:
        site: the layer's site.
        layer: its module, the user's own.
    """

    def __init__(
        self,
        vae: VAE,
        layer: Layer,
        to: Explained = "mu",
        *,
        of: Origin = "input",
        eps: Tensor | None = None,
        interventions: Mapping[Key, Intervention] | None = None,
        reference: Tensor | None = None,
    ) -> None:
        super().__init__(vae, to, of=of, eps=eps, interventions=interventions, reference=reference)
        self.layer = captum_layer(vae, layer)
        self.site = vae.sites[layer_name(vae, layer)]
        order, last = vae.sites.order, "latent.logvar" if to == "kl" else self.forward_func.reads
        if order(self.site.name) > order(last):
            raise SiteError(
                f"{self.site.name!r} comes after {last!r}, which is explained; nothing there can change it."
            )
        if of == "z" and order(self.site.name) < order("latent.z"):
            raise SiteError(f"{self.site.name!r} is not run when of='z' starts at the code; use of='input'.")

    def _run(self, call: Call, x: Tensor, copies: int) -> tuple[Tensor, Float[Tensor, "r target *layer"]]:
        """The layer's activation in a run of x, `copies` times the call's examples, and each target's gradient there."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not output.requires_grad:
                output.requires_grad_()
            seen.append(output)
            return output.clone()  # what follows may write into it

        handle = self.layer.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                values = self.function(call)(x.requires_grad_(), call.rows.repeat(copies), call.places.repeat(copies))
                columns = values.unbind(1)
        finally:
            handle.remove()
        return seen[0].detach(), torch.stack(gradients_of(columns, seen[0]), 1)


class LatentConductance(_LayerAttribution, PathAttribution):
    """How much of each latent flows through each unit of a layer: conductance, a path integral that adds up over the layer.

    C_u = integral over a in [0, 1] of (d f / d h_u) (d h_u / d a) at x(a) = b + a (x - b), h_u the unit's activation. Over a
    layer that everything flows through, C sums to f(x) - f(b).

    Captum's `LayerConductance` has the same limit. The code is our own because Captum's is slow and coarse: it explains one target
    a run, takes the gradient at the start of each step, and leaves the ends of the path out. Here all targets share the forward, and
    the gradient of a step is the mean of those at its two ends: at the first ReLU of the bundled beta-VAE, 50 steps, the convergence
    delta falls from 5.1 % of f(x) - f(b) to 1.4 %, and it is 0 where what follows the layer is linear.

    Args:
        vae: the model.
        layer: a site name, `Site`, envoy or module; see `captum_layer`.
        to: what is explained, `"mu"` unless a readout or another quantity is named; see `captum_forward`.
        of: `"input"`, or `"z"` for layers of the decoder.
        eps, interventions, reference: see `LatentIntegratedGradients`.

    Source: Dhamdhere, Sundararajan and Yan 2018, arXiv 1805.12233, eq. 3.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> method = LatentConductance(vae, "encoder.1")
        >>> maps = method.attribute(torch.rand(4, 1, 8, 8), baselines="black", target=None, n_steps=200)
        >>> maps.shape == (4, 3, *vae.sites["encoder.1"].shape)
        True
    """

    @property
    def _of(self) -> str:  # type: ignore[override]
        return self.site.name

    def _along_paths(
        self, call: Call, n_steps: int, method: str, batch: int | None
    ) -> Float[Tensor, "n target *layer"]:
        n = len(call.x)
        if batch is None:
            row = len(call.targets.names) * torch.Size(self.site.shape).numel() * call.x.element_size()
            batch = CHUNK_BYTES // row
        step = max(1, batch // n - 1)  # differences a run: one less than its points
        positions = [0.0, *approximation_parameters(method)[1](n_steps + 1)[1:-1], 1.0]
        total = call.x.new_zeros(n, len(call.targets.names), *self.site.shape)
        for baseline in call.baselines:
            for first in range(0, n_steps, step):
                points = positions[first : first + step + 1]
                x = torch.cat([baseline + a * (call.x - baseline) for a in points])
                activation, gradients = self._run(call, x, len(points))
                change = activation[n:] - activation[:-n]
                gradients = (gradients[:-n] + gradients[n:]) / 2
                total += (gradients * change[:, None]).unflatten(0, (-1, n)).sum(0)
        return total / len(call.baselines)


class LatentGradCam(_LayerAttribution):
    """Where a layer looks to set each latent: Grad-CAM attention maps, one per latent.

    M_k = sum over channels c of w_kc h_c, with w_kc the mean over positions of d mu_k / d h_c; upsampled to the image. With
    `relu_attributions=True` only what raises the latent is kept, as in the source.

    Same numbers as Captum's `LayerGradCam` and `LayerAttribution.interpolate`; own code for all latents from one forward.

    Args:
        vae: the model.
        layer: a site with positions (a convolution, its activation); see `captum_layer`.
        to, of, eps, interventions: see `captum_forward`.

    Source: Liu et al. 2020, Towards visually explaining variational autoencoders, arXiv 1911.07389, eq. 3-4; Selvaraju et al.
        2017, Grad-CAM, arXiv 1610.02391.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import ConvVAE
        >>> vae = nv.VAE(ConvVAE(image_shape=(1, 16, 16), latent=3))
        >>> LatentGradCam(vae, "encoder.1").attribute(torch.rand(4, 1, 16, 16), target=None).shape
        torch.Size([4, 3, 1, 16, 16])
    """

    @log_usage()  # Captum's NoiseTunnel calls attribute.__wrapped__
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        relu_attributions: bool = False,
        upsample: str | None = "bilinear",
    ) -> Any:
        """Attention maps of the target.

        Args:
            inputs: `[n, *shape]`, float.
            target: None for all targets at once; else as in `LatentIntegratedGradients.attribute`.
            additional_forward_args: example numbers `[n]`, needed only where eps or interventions differ by example and inputs
                are repeated.
            relu_attributions: keep what raises the target, set the rest to 0.
            upsample: how maps are brought to the size of the image, a mode of `torch.nn.functional.interpolate`; None leaves them
                at the layer's.

        Returns: `[n, 1, *grid]`, or `[n, targets, 1, *grid]` for `target=None`; grid is that of the image, or of the layer.

        Raises:
            DataError: the layer has no positions, or not those of an image that maps could be brought to.
        """
        grid = self.vae.sites["input"].shape[1:]
        if not self.site.grid or self.site.axis != 1:
            raise DataError(
                f"Grad-CAM pools over the positions of a layer, and {self.site.name!r} has none (shape {self.site.shape}); take a "
                "convolution or its activation, or LatentConductance."
            )
        if upsample is not None and len(self.site.grid) != len(grid):
            raise DataError(
                f"maps of {self.site.name!r} have positions {self.site.grid}, which cannot be brought to an image's {grid}; use "
                "upsample=None."
            )
        call = self.start(inputs, None, target, additional_forward_args, with_baseline=False)
        with guarded(self.vae):
            activation, gradients = self._run(call, call.x.clone(), 1)
            positions = tuple(range(3, gradients.ndim))
            weights = gradients.mean(positions, keepdim=True)
            maps = (weights * activation[:, None]).sum(2, keepdim=True)
            maps = F.relu(maps) if relu_attributions else maps
            if upsample is not None:
                maps = F.interpolate(maps.flatten(0, 1), grid, mode=upsample).unflatten(0, maps.shape[:2])
            return self.finish(call, maps, of=self.site.name, relu_attributions=relu_attributions, upsample=upsample)
