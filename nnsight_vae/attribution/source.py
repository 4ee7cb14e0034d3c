"""Attribution at operations that are no modules, `F.relu(h)` inside a forward: through nnsight's `.source`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae._nnsight import SourceNotAvailable
from nnsight_vae.attribution.base import Call
from nnsight_vae.attribution.forward import Explained
from nnsight_vae.attribution.gradients import MeanGradients
from nnsight_vae.attribution.path import PathAttribution
from nnsight_vae.errors import SiteError
from nnsight_vae.probe import Firing
from nnsight_vae.runs import trace_events
from nnsight_vae.vae import VAE


class SourceIntegratedGradients(PathAttribution):
    """Integrated gradients of the output of any operation in a module's forward, to a latent or a readout.

    Captum's layer methods reach modules only. With h the operation's output, from the baseline's to the input's:
    A_u = (h_u(x) - h_u(b)) * integral over a in [0, 1] of d f / d h_u at h(b) + a (h(x) - h(b)), all else as in the run of x.
    Where everything flows through the operation, A sums to f(x) - f(b).

    Args:
        vae: the model.
        module: path of the module in whose `forward` the operation is written, as in `named_modules()`; it must run once.
        operation: its label; `print(vae.<module>.source)` shows them beside the code, and a wrong one is answered with a list.
            Labels number the operations of the source text: they change when it does.
        to: what is explained; see `captum_forward`.
        reference: images whose mean is the default baseline; see `LatentIntegratedGradients`.

    Raises:
        SiteError: the module does not run once, its source cannot be read, or has no such operation; from `attribute`, the
            operation does not return one float tensor with a row per example.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, on a hidden layer (Captum's `LayerIntegratedGradients`).

    Example:
        >>> import nnsight_vae as nv
        >>> from torch import nn
        >>> class Encoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        ...     def forward(self, x):
        ...         return self.second(torch.relu(self.first(x))).chunk(2, 1)
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encode, self.decode = Encoder(), nn.Linear(2, 4)
        >>> vae = nv.VAE(Model(), example=torch.rand(1, 4))
        >>> SourceIntegratedGradients(vae, "encode", "torch_relu_0").attribute(torch.rand(3, 4), target=None).shape
        torch.Size([3, 2, 6])
    """

    def __init__(
        self, vae: VAE, module: str, operation: str, to: Explained = "mu", *, reference: Tensor | None = None
    ) -> None:
        super().__init__(vae, to, reference=reference)
        self._of = f"{module}.source.{operation}"
        self._firing = _firing(vae, module)
        self._operation = _operation(vae, self._firing, module, operation)

    def _along_paths(
        self, call: Call, n_steps: int, method: str, batch: int | None
    ) -> Float[Tensor, "n target *output"]:
        end = self._of_operation(call.x)
        total = end.new_zeros(len(end), len(call.targets.names), *end.shape[1:])
        for baseline in call.baselines:
            start = self._of_operation(baseline)
            gradients = MeanGradients(self._from_operation(call)).attribute(
                end,
                baselines=start,
                additional_forward_args=(call.x, call.places),
                n_steps=n_steps,
                method=method,
                internal_batch_size=batch,
            )
            total += gradients * (end - start)[:, None]
        return total / len(call.baselines)

    def _of_operation(self, x: Tensor) -> Tensor:
        """What the operation returns in the run of x."""
        kept: list[Any] = []
        with torch.no_grad():
            trace_events(
                self.vae, "__call__", (x,), [(self._firing.finished, lambda: kept.append(self._operation.output))]
            )
        (output,) = kept
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != x.shape[:1]:
            what = f"a {output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise SiteError(
                f"{self._of!r} returns {what} for {len(x)} examples; only one float tensor with a row per example can be attributed to."
            )
        return output.clone()

    def _from_operation(self, call: Call) -> Callable[..., Float[Tensor, "r target"]]:
        def function(output: Tensor, x: Tensor, places: Tensor) -> Tensor:
            value = self.forward_func.run(x, events=[(self._firing.finished, lambda: self._replace(output))])
            return call.targets.read(value, places)

        return function

    def _replace(self, output: Tensor) -> None:
        self._operation.output = output


def _firing(vae: VAE, module: str) -> Firing:
    layout = vae.layout()
    firing = layout.firings.get(layout.paths.get(module, f"model.{module}"))
    if firing is None or firing.calls != 1:
        how = "does not run when this VAE encodes and decodes" if firing is None else f"runs {firing.calls} times"
        raise SiteError(
            f"{module!r} {how}; name a module whose forward runs once and holds the operation. Operations written in encode() or "
            "decode(), which are no forward, are out of reach."
        )
    return firing


def _operation(vae: VAE, firing: Firing, module: str, operation: str) -> Any:
    try:
        source = vae.envoy_at(firing.path).source
    except SourceNotAvailable as error:
        raise SiteError(
            f"the source of {module!r} ({type(firing.module).__name__}) cannot be read: {error}."
        ) from error
    if operation not in source.names:
        raise SiteError(f"{module!r} has no operation {operation!r}; it has: {', '.join(source.names)}.")
    return getattr(source, operation)
