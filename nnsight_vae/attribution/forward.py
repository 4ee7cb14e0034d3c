"""A VAE as the function Captum explains: one differentiable module from inputs, or latents, to what is to be explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnsight_vae import inputs
from nnsight_vae.arguments import require, require_readout
from nnsight_vae.attribution.fixed import FixedInterventions
from nnsight_vae.attribution.rules import refuse_method, refuse_silent_rules
from nnsight_vae.errors import DataError, InterventionError, NnsightVaeError, ReadoutError
from nnsight_vae.interventions import Intervention
from nnsight_vae.posterior import Posterior
from nnsight_vae.probe import random_state_kept, zeros_like_input
from nnsight_vae.reading import reads as reads_of
from nnsight_vae.readouts import Readout
from nnsight_vae.runs import Event, replace_event, trace_events
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE

Explained: TypeAlias = Literal["mu", "logvar", "kl", "z", "reconstruction"] | Readout
Origin = Literal["input", "z"]

_READS = {"mu": "latent.mu", "logvar": "latent.logvar", "kl": "latent.mu", "z": "latent.z", "reconstruction": "output"}
_PLAIN = {"latent.mu", "latent.logvar", "latent.z", "output"}  # what is read without a trace


def captum_forward(
    vae: VAE,
    to: Explained = "mu",
    *,
    of: Origin = "input",
    eps: Float[Tensor, "n *latent"] | None = None,
    interventions: Mapping[Key, Intervention] | None = None,
) -> CaptumForward:
    """The forward function to hand to any Captum method: differentiable, deterministic, batched.

    Pass it where Captum asks for `forward_func` or `model`, and `captum_layer(vae, site)` where it asks for a layer. What is
    not needed is not run: the decoder never is for `to="mu"`.

    Args:
        vae: the model.
        to: what is explained: the posterior's `"mu"`, `"logvar"` or `"kl"` (KL_k of each latent to the prior, in nats), the code
            `"z"`, the `"reconstruction"`, or a readout such as `data.readout()`, one column a target.
        of: what it is a function of: `"input"` `[n, *image]`, or `"z"` `[n, *latent]` (the decoder alone).
        eps: reparameterisation noise, one row an example or one row for all; None is the posterior mean. Never drawn inside: an
            attribution of a random function is no attribution.
        interventions: held active in every run, as in `nv.intervene`; what they put in carries no gradient.

    Returns: a module, `forward(x, rows=None)`. Where eps or an intervention differs by example, pass
        `additional_forward_args=torch.arange(n)` to Captum's `attribute`: Captum runs the examples many times in an order of its
        own, and `rows` tells which is which. Our own attribution classes do so themselves.

    Raises:
        AdapterError, ReadoutError, SiteError, InterventionError, DataError: something passed does not fit the model.
        NnsightVaeError: the model gives two answers to one input in eval mode.

    Example:
        >>> import nnsight_vae as nv
        >>> from captum.attr import Saliency
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> Saliency(captum_forward(vae, to="mu")).attribute(torch.rand(4, 1, 8, 8), target=2).shape
        torch.Size([4, 1, 8, 8])
    """
    return CaptumForward(vae, to, of=of, eps=eps, interventions=interventions)


class CaptumForward(nn.Module):
    """What `captum_forward` returns.

    Attributes:
        vae: the model.
        explained, of: what is explained, as a function of what.
        names: one name per target: `latent.mu[3]`, `kl[3]`, a readout's own; channels where the latent has positions; None for
            the reconstruction, whose targets are picked by index.
    """

    def __init__(
        self,
        vae: VAE,
        to: Explained = "mu",
        *,
        of: Origin = "input",
        eps: Float[Tensor, "n *latent"] | None = None,
        interventions: Mapping[Key, Intervention] | None = None,
    ) -> None:
        super().__init__()
        require(vae)
        if of not in ("input", "z"):
            raise DataError(f"of must be 'input' or 'z', got {of!r}.")
        if not isinstance(to, str):
            require_readout(to)
        elif to not in _READS:
            raise ReadoutError(f"to must be one of {', '.join(map(repr, _READS))} or a readout, got {to!r}.")
        self.vae, self.explained, self.of = vae, to, of  # a module's own `to` moves it to a device
        self.reads = _READS[to] if isinstance(to, str) else vae.sites[reads_of(to)].name
        if of == "z" and vae.sites.order(self.reads) <= vae.sites.order("latent.z"):
            raise ReadoutError(f"{self._what} is not a function of z but comes before it; use of='input'.")
        if of == "z" and eps is not None:
            raise DataError("eps belongs to runs from the input; of='z' starts at the code itself.")
        if eps is not None:
            inputs.require_noise(eps, len(eps) if isinstance(eps, Tensor) and eps.ndim else 1, self._latent)
        self.wrapped = vae._module  # registered, so that Captum finds the model's modules
        self.eps = eps
        self.interventions = FixedInterventions(vae, interventions, eps) if interventions else None
        self._require_before_what_is_read()
        self.names = self._names()
        self._require_deterministic()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of what this is a function of."""
        return self._latent if self.of == "z" else self.vae.sites["input"].shape

    @property
    def examples(self) -> int:
        """How many examples eps and interventions are for; 1 where they are the same for all."""
        of_interventions = 1 if self.interventions is None else self.interventions.examples
        return max(of_interventions, 1 if self.eps is None else len(self.eps))

    def checked(self, x: Any) -> Tensor:
        """x on the model's device.

        Raises:
            DataError: x is no finite float batch `[n, *input_shape]` of the model's dtype.
        """
        name, parameter = ("z" if self.of == "z" else "x"), self.vae._parameter
        inputs.require_form(x, name, None if parameter is None else parameter.dtype)
        inputs.require_finite(x, name)
        x = x if parameter is None else x.to(parameter.device)
        x = x.clone() if x.is_inference() else x  # made in inference mode, it could not require grad
        if self.of == "input":
            self.vae.layout(x)
        if tuple(x.shape[1:]) != self.input_shape:
            raise DataError(f"{name} has shape {tuple(x.shape)}, expected {('n', *self.input_shape)}.")
        return x

    def forward(self, x: Tensor, rows: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n ..."]:
        """What is explained, `[n, *latent]`, `[n, *image]` or `[n, len(readout.names)]`.

        Args:
            x: inputs `[n, *image]` or latents `[n, *latent]`.
            rows: which example each row is, where eps or interventions differ by example.
        """
        return self.run(x, rows)

    def run(
        self, x: Tensor, rows: Int[Tensor, " n"] | None = None, events: Sequence[Event] = ()
    ) -> Float[Tensor, "n ..."]:
        """As `forward`, with events of one's own in the run: (when in execution order, what to do), as in `runs.trace_events`."""
        if self.explained == "kl":
            return self.posterior(x, rows, events).kl()
        (value,) = self._read(x, rows, (self.reads,), events)
        return value if isinstance(self.explained, str) else self.explained(value)

    def posterior(self, x: Tensor, rows: Int[Tensor, " n"] | None = None, events: Sequence[Event] = ()) -> Posterior:
        """The posterior of inputs, under the interventions; arguments as in `run`."""
        return self.vae.law(*self._read(x, rows, ("latent.mu", "latent.logvar"), events))

    def apply(self, fn: Callable[[nn.Module], None]) -> CaptumForward:
        """As `nn.Module.apply`, by which Captum's rule-based methods enter a model: refused where they would be silently wrong."""
        refuse_silent_rules(self, fn)
        return super().apply(fn)

    @property
    def rule(self) -> None:
        """Captum's LRP asks every module for its rule before it touches any: refused there, with what to use instead."""
        from captum.attr import LRP

        refuse_method(self, LRP)

    # ------------------------------------------------------------------ running
    def _read(self, x: Tensor, rows: Tensor | None, sites: tuple[str, ...], events: Sequence[Event]) -> list[Tensor]:
        rows = self._rows(x, rows)
        eps = self.eps if rows is None or self.eps is None or len(self.eps) == 1 else self.eps[rows.to(self.eps.device)]
        if eps is not None:
            eps = eps.to(x).expand(len(x), *eps.shape[1:])
        if self.interventions is None and not events and all(site in _PLAIN for site in sites):
            return self._plain(x, eps, sites)
        return self._traced(x, rows, eps, sites, events)

    def _plain(self, x: Tensor, eps: Tensor | None, sites: tuple[str, ...]) -> list[Tensor]:
        if self.of == "z":
            return [self.vae.decode(x)]
        if sites == ("output",):
            return [self.vae(x, eps=eps)]
        posterior = self.vae.encode(x, eps=eps)
        z = posterior.mu if eps is None else posterior.rsample(eps)
        values = {"latent.mu": posterior.mu, "latent.logvar": posterior.logvar, "latent.z": z}
        return [values[site] for site in sites]

    def _traced(
        self,
        x: Tensor,
        rows: Tensor | None,
        eps: Tensor | None,
        sites: tuple[str, ...],
        events: Sequence[Event],
    ) -> list[Tensor]:
        layout = self.vae.layout() if self.of == "z" else self.vae.layout(x)
        writes = {} if self.interventions is None else self.interventions.writes(rows, len(x))
        events = [*events]
        for path, write in writes.items():
            events.append((layout.firings[path].finished, replace_event(self.vae, path, write)))
        kept: dict[str, Tensor] = {}
        for site in sites:  # after the writes: the sort by time is stable
            path = layout.paths[site]
            events.append((layout.firings[path].finished, self._keep(path, site, kept)))
        if self.of == "z":
            trace_events(self.vae, "decode", (x,), events)
        else:
            trace_events(self.vae, "__call__", (x,), events, eps=eps)
        return [kept[site] for site in sites]

    def _keep(self, path: str, site: str, kept: dict[str, Tensor]) -> Callable[[], None]:
        envoy = self.vae.envoy_at(path)
        return lambda: kept.__setitem__(site, envoy.output)

    def _rows(self, x: Tensor, rows: Tensor | None) -> Tensor | None:
        n = self.examples
        if n == 1:
            return None
        if rows is None:
            if len(x) != n:
                raise DataError(
                    f"eps or an intervention has one row for each of {n} examples, and this batch has {len(x)} rows, as when Captum "
                    f"repeats examples; pass additional_forward_args=torch.arange({n}) so that each row can be told."
                )
            return torch.arange(n)
        if not isinstance(rows, Tensor) or rows.dtype != torch.long or tuple(rows.shape) != (len(x),):
            raise DataError(f"rows must be int64 example numbers, one for each of {len(x)} rows; got {rows!r}.")
        if int(rows.min()) < 0 or int(rows.max()) >= n:
            raise DataError(f"rows name examples {int(rows.min())} to {int(rows.max())}; there are {n}.")
        return rows

    # ------------------------------------------------------------------ checks
    @property
    def _latent(self) -> tuple[int, ...]:
        return self.vae.sites["latent.mu"].shape

    @property
    def _what(self) -> str:
        return (
            self.explained
            if isinstance(self.explained, str)
            else f"{type(self.explained).__name__} (it reads {self.reads!r})"
        )

    def _names(self) -> tuple[str, ...] | None:
        if not isinstance(self.explained, str):
            return tuple(self.explained.names)
        if self.explained == "reconstruction":
            return None
        label = "kl" if self.explained == "kl" else f"latent.{self.explained}"
        return tuple(f"{label}[{k}]" for k in range(self._latent[0]))

    def _require_before_what_is_read(self) -> None:
        order = self.vae.sites.order
        read = "latent.logvar" if self.explained == "kl" else self.reads
        for site in () if self.interventions is None else self.interventions.sites:
            if order(site) > order(read):
                raise InterventionError(
                    f"{site!r} comes after {read!r}, which is explained; nothing there can change it."
                )
            if self.of == "z" and order(site) < order("latent.z"):
                raise InterventionError(f"{site!r} is not run when of='z' starts at the code; use of='input'.")

    def _require_deterministic(self) -> None:
        """Run once twice: a model that draws in eval mode (functional dropout, its own sampling) has no attribution."""
        x = zeros_like_input(self.vae.module, self.input_shape).expand(self.examples, *self.input_shape)
        generator = torch.Generator().manual_seed(0)
        x = x + torch.rand(x.shape, generator=generator).to(x)
        with torch.no_grad(), random_state_kept(x.device):
            first, second = self(x), self(x)
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise NnsightVaeError(
                f"this model gives two different {self._what} for one input, in eval mode and without sampling: something in it draws "
                "random numbers (functional dropout, sampling inside encode or decode). Make it follow self.training, or pass the "
                "mean path with nv.adapt."
            )
