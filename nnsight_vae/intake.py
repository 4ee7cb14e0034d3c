"""What goes into a VAE: inputs, latents, noise and conditions, checked against the model and brought to its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnsight_vae import inputs
from nnsight_vae.layouts import Layouts


class Intake:
    """The checks of one VAE; every one refuses with a `DataError` that says what was got and what to do.

    Args:
        parameter: one of the model, in whose dtype and on whose device it computes; None where it has none.
        given: the conditions that the VAE is wrapped with.
        layouts: of the VAE.
    """

    def __init__(self, parameter: nn.Parameter | None, given: tuple[Tensor, ...], layouts: Layouts) -> None:
        self._parameter, self._given, self._layouts = parameter, given, layouts

    def x(self, x: Any, *, finite: bool = True) -> Tensor:
        """Inputs `[n, *image]` that the model can run; whether they are finite is looked at unless that is left to the caller."""
        x = self._on_device(x, "x")
        self._layouts.of(x)
        if finite:
            inputs.require_finite(x, "x")
        return x

    def z(self, z: Any) -> Tensor:
        """Latents `[n, *latent]`."""
        z = self._on_device(z, "z")
        inputs.require_latent(z, self._layouts.latents)
        inputs.require_finite(z, "z")
        return z

    def noise(self, x: Tensor, eps: Any) -> None:
        """Noise `[n, *latent]` for inputs x, or none."""
        if eps is not None:
            inputs.require_noise(eps, len(x), self._layouts.of(x).sites["latent.mu"].shape)

    def given(self, given: Sequence[Any], n: int) -> tuple[Tensor, ...]:
        """Conditions `[n, ...]` of a run, or none."""
        inputs.require_conditions(given, n, self._given)
        return tuple(one.to(own.device) for one, own in zip(given, self._given, strict=False))

    def call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What one invoke of a trace passes; nothing is known of functions other than the VAE's own."""
        if not args:
            return
        if fn in ("__call__", "encode"):
            self.noise(self.x(args[0]), kwargs.get("eps"))
        elif fn == "decode":
            self.z(args[0])
        else:
            return
        self.given(args[1:], len(args[0]))

    def _on_device(self, value: Any, name: str) -> Tensor:
        parameter = self._parameter
        inputs.require_form(value, name, None if parameter is None else parameter.dtype)
        return value if parameter is None else value.to(parameter.device)
