"""Label-free attribution: which inputs matter to a representation as a whole, with any attribution method."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from captum.attr import Attribution, NoiseTunnel
from captum.log import log_usage
from torch import Tensor, nn

from nnsight_vae.attribution.base import VAEAttribution, record_of
from nnsight_vae.attribution.targets import Direction
from nnsight_vae.errors import DataError


class LabelFree(Attribution):
    """Any attribution method on g(x') = <f(x), f(x')>, the code of an input held against itself: no latent has to be chosen.

    Where a method explains one output, this explains the whole representation f, latents weighted by their value at x. f(x) is
    a constant there: no gradient flows through it.

    Args:
        method: an instance: one of ours (`LatentIntegratedGradients(vae)`), or one of Captum's on `captum_forward(vae)`
            (`DeepLift(nv.attribution.captum_forward(vae))`). For smoothing, wrap the other way round:
            `NoiseTunnel(LabelFree(method))`.

    Raises:
        DataError: method is no attribution method, or not one that this can be put into.

    Source: Crabbe and van der Schaar 2022, Label-free explainability for unsupervised models, arXiv 2203.01928, eq. 2. (Beta
        does not buy distinct saliency maps of single latents, as a reproduction study of theirs found; compare before you choose.)

    Example:
        >>> import nnsight_vae as nv
        >>> from captum.attr import Saliency
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> x = torch.rand(4, 1, 8, 8)
        >>> LabelFree(Saliency(nv.attribution.captum_forward(vae))).attribute(x).shape
        torch.Size([4, 1, 8, 8])
        >>> LabelFree(nv.attribution.LatentIntegratedGradients(vae)).attribute(x, baselines="black").shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(self, method: Attribution) -> None:
        if isinstance(method, NoiseTunnel):
            raise DataError("wrap the other way round: NoiseTunnel(LabelFree(method)).")
        if not isinstance(method, Attribution) or not hasattr(method, "forward_func"):
            raise DataError(
                f"method must be an instance of an attribution method, such as LatentIntegratedGradients(vae); got {method!r}."
            )
        super().__init__(method.forward_func)
        self.method = method

    @log_usage()  # Captum's NoiseTunnel calls attribute.__wrapped__
    def attribute(
        self, inputs: Any, baselines: Any = None, additional_forward_args: Any = None, **settings: Any
    ) -> Any:
        """Attributions of <f(x), f(x')> at x' = x.

        Args:
            inputs: `[n, *shape]`.
            baselines: of the method; left out where None, so that methods without baselines work too.
            additional_forward_args: of the function, as in the method's own `attribute`.
            settings: all else that the method's `attribute` takes (`n_steps`, ...); not `target`.

        Returns: what the method returns.

        Raises:
            DataError: a target was given.
        """
        if settings.pop("target", None) is not None:
            raise DataError("a label-free attribution has no target: it explains all latents together.")
        if baselines is not None:
            settings["baselines"] = baselines
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        args = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
        args = tuple(arg for arg in args if arg is not None)
        if isinstance(self.method, VAEAttribution):
            return self._ours(self.method, x, inputs, args, settings)
        with torch.no_grad():
            code = self.forward_func(x, *args)
        method = copy.copy(self.method)
        method.forward_func = _Against(self.forward_func)
        if hasattr(method, "model"):  # DeepLift and its kin hook the modules of this
            method.model = method.forward_func
        return method.attribute(inputs, additional_forward_args=(code, *args), **settings)

    def _ours(
        self, method: VAEAttribution, x: Any, inputs: Any, args: tuple[Any, ...], settings: dict[str, Any]
    ) -> Any:
        x = method.forward_func.checked(x)
        with torch.no_grad():
            code = method.forward_func(x, *args)
        if args:
            settings["additional_forward_args"] = args
        result = method.attribute(inputs, target=Direction(code), **settings)
        attributions = result[0] if isinstance(result, tuple) else result
        if (record := record_of(attributions)) is not None:
            renamed = replace(record, method=f"LabelFree({record.method})", targets=("<f(x), f(x')>",))
            attributions.record = method.record = renamed
        return result

    def has_convergence_delta(self) -> bool:
        """Whether the method has one."""
        return self.method.has_convergence_delta()

    @property
    def multiplies_by_inputs(self) -> bool:
        """As the method."""
        return self.method.multiplies_by_inputs


class _Against(nn.Module):
    """<code, f(x)>, one number a row."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, code: Tensor, *args: Any) -> Tensor:
        """The inner product; code is passed in, and so repeated by Captum along with x."""
        return (self.function(x, *args) * code).flatten(1).sum(1)
