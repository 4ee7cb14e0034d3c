"""What every attribution class of this package is: a Captum `Attribution` of a VAE that keeps a record of what it did."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from captum.attr import Attribution
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.attribution.baselines import Baseline, resolve_baseline
from nnsight_vae.attribution.forward import CaptumForward, Explained, Origin, captum_forward
from nnsight_vae.attribution.targets import Targets, resolve_targets
from nnsight_vae.errors import DataError, NnsightVaeWarning, PriorError
from nnsight_vae.guards import require_gradients
from nnsight_vae.interventions import Intervention
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE

COLLAPSED = 0.01  # nats: a latent whose KL to the prior is below this carries nothing
LOOSE = 0.05  # relative convergence delta above which a warning is given


@dataclass(frozen=True)
class Record:
    """What an attribution was about.

    Attributes:
        method: name of the class.
        of: the site whose elements got the attributions: `"input"`, `"latent.z"`, `"encoder.4"`.
        targets: names of what was explained, in order.
        target_axis: whether attributions have an axis of targets after the batch (`target=None`).
        baseline: what inputs were compared with; None where the method has no baseline.
        settings: of the method: n_steps, ...
        flags: target -> why its attribution is to be read with caution (`"collapsed: ..."`, `"incomplete: ..."`).
        delta: convergence delta `[n]`, or `[n, targets]`; None where the method has none.
    """

    method: str
    of: str
    targets: tuple[str, ...]
    target_axis: bool
    baseline: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    delta: Float[Tensor, "n *targets"] | None = None


def record_of(attributions: Tensor) -> Record | None:
    """The record that travels with the tensor an `attribute` call returned; None on anything computed from it, or from elsewhere."""
    return getattr(attributions, "record", None)


@dataclass(frozen=True)
class Call:
    """One `attribute` call, its arguments read and checked.

    Attributes:
        x: inputs `[n, *shape]`, detached, on the model's device: the caller's tensor is never touched.
        rows: which example each row of x is, `[n]`.
        targets: what is explained.
        baseline: `[m, n, *shape]` and its name; None for methods without one.
        was_tuple: whether inputs came as a tuple of one, as from Captum's metrics, and the result must go back so.
    """

    x: Float[Tensor, "n *shape"]
    rows: Int[Tensor, " n"]
    targets: Targets
    baseline: Baseline | None
    was_tuple: bool

    @property
    def places(self) -> Int[Tensor, " n"]:
        """The place of each input in the call, which per-example targets go by."""
        return torch.arange(len(self.x))

    @property
    def baselines(self) -> Float[Tensor, "m n *shape"]:
        """The baselines, each for all inputs: m is 1 unless a `Distribution` was given."""
        if self.baseline is None:
            raise DataError("this call has no baseline.")
        return self.baseline.values


class VAEAttribution(Attribution):
    """Base of the attribution classes: reads arguments, finishes results, keeps the record.

    `attribute(...)` has Captum's signature and returns a plain tensor, attributions `[n, *shape]`, or `[n, targets, *shape]` for
    `target=None`. What it was about is in `self.record`, and as an attribute `record` on the returned tensor itself, where
    `agreement` finds it (`record_of(tensor)`); a tensor computed from it no longer has one. Keep subclasses to this shape:

        @log_usage()                                                # NoiseTunnel calls attribute.__wrapped__
        def attribute(self, inputs, baselines=None, target=None, additional_forward_args=None, ...):
            call = self.start(inputs, baselines, target, additional_forward_args)
            with guarded(self.vae):
                attributions = ...                                  # [n, targets, *shape], always with the axis of targets
            return self.finish(call, attributions, of="latent.z", n_steps=n_steps)

    Args:
        vae: the model.
        to, of, eps, interventions: of the function that is explained; see `captum_forward`.
        reference: inputs (latents, for `of="z"`) that stand for the data; the baseline `"mean"` is theirs. Without one it is the
            mean of the inputs of each call, which depends on what they are called with.

    Attributes:
        vae: the model.
        forward_func: the function that is explained.
        record: of the last `attribute` call.
    """

    forward_func: CaptumForward
    _takes_gradients = True

    def __init__(
        self,
        vae: VAE,
        to: Explained = "mu",
        *,
        of: Origin = "input",
        eps: Tensor | None = None,
        interventions: Mapping[Key, Intervention] | None = None,
        reference: Tensor | None = None,
    ) -> None:
        super().__init__(captum_forward(vae, to, of=of, eps=eps, interventions=interventions))
        self.vae = vae
        self.reference = reference
        self.record: Record | None = None

    @property
    def flags(self) -> Mapping[str, str]:
        """Of the last call: target -> why its attribution is to be read with caution."""
        return {} if self.record is None else self.record.flags

    # ------------------------------------------------------------------ for subclasses
    def start(
        self, inputs: Any, baselines: Any, target: Any, additional_forward_args: Any, *, with_baseline: bool = True
    ) -> Call:
        """Read and check the arguments of an `attribute` call.

        Args:
            inputs: `[n, *shape]`, or a tuple of that alone.
            baselines: see `resolve_baseline`.
            target: see `resolve_targets`.
            additional_forward_args: which example each row is, `[n]`, where eps or interventions differ by example and inputs are
                not those examples in order (Captum's NoiseTunnel repeats them).
            with_baseline: False for methods without one.

        Raises:
            DataError, ReadoutError: an argument does not fit; before any work.
        """
        if self._takes_gradients:
            require_gradients()
        was_tuple = isinstance(inputs, tuple)
        x = self.forward_func.checked(_only(inputs, "inputs")).detach()
        rows = self._rows(_only(additional_forward_args, "additional_forward_args"), len(x))
        targets = resolve_targets(target, self._output_shape(x[:1], rows[:1]), self.forward_func.names, len(x))
        baseline = None
        if with_baseline:
            baseline = resolve_baseline(_only(baselines, "baselines"), self.forward_func, x, self.reference)
        return Call(x, rows, targets, baseline, was_tuple)

    def function(self, call: Call) -> Callable[[Tensor, Tensor, Tensor], Float[Tensor, "r target"]]:
        """What is explained, as a function of rows, of which example each is, and of its place in the call: `[r, targets]`."""

        def read(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
            return call.targets.read(self._output(x, rows), places)

        return read

    def change(self, call: Call) -> Float[Tensor, "n target"]:
        """f(x) - f(baseline), the mean over baselines where there are several."""
        read, places = self.function(call), call.places
        with torch.no_grad():
            at_baselines = torch.stack([read(b, call.rows, places) for b in call.baselines])
            return read(call.x, call.rows, places) - at_baselines.mean(0)

    def finish(
        self,
        call: Call,
        attributions: Float[Tensor, "n target *shape"],
        *,
        of: str,
        complete: bool = False,
        return_convergence_delta: bool = False,
        **settings: Any,
    ) -> Any:
        """Zero and flag what is collapsed, check completeness, write the record, and give back what Captum's contract asks for.

        Args:
            call: what `start` returned.
            attributions: with the axis of targets, whatever was asked for.
            of: the site whose elements were attributed to.
            complete: whether attributions are to sum to f(x) - f(baseline), so that the convergence delta says how far off they are.
            return_convergence_delta: Captum's.
            settings: for the record.
        """
        targets = call.targets
        flags = dict(self._collapsed(call))
        for t, name in enumerate(targets.names):
            if name in flags:
                attributions[:, t] = 0
        delta = None
        if complete:
            change = self.change(call)
            delta = attributions.flatten(2).sum(2) - change
            flags |= self._incomplete(targets.names, delta, change, skip=flags)
        if not targets.all:
            attributions, delta = attributions[:, 0], None if delta is None else delta[:, 0]
        baseline = None if call.baseline is None else call.baseline.name
        self.record = Record(type(self).__name__, of, targets.names, targets.all, baseline, settings, flags, delta)
        attributions.record = self.record  # type: ignore[attr-defined]
        result = (attributions,) if call.was_tuple else attributions
        return (result, delta) if return_convergence_delta else result

    # ------------------------------------------------------------------ Captum's contract
    def compute_convergence_delta(
        self,
        attributions: Any,
        start_point: Any,
        end_point: Any,
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Float[Tensor, "n *targets"]:
        """sum(attributions) - (f(end) - f(start)), per example (and per target for `target=None`)."""
        call = self.start(end_point, start_point, target, additional_forward_args)
        attributions = _only(attributions, "attributions")
        attributions = attributions if call.targets.all else attributions[:, None]
        delta = attributions.flatten(2).sum(2) - self.change(call)
        return delta if call.targets.all else delta[:, 0]

    # ------------------------------------------------------------------ parts
    def _rows(self, rows: Any, n: int) -> Tensor:
        examples = self.forward_func.examples
        if rows is None:
            if examples not in (1, n):
                raise DataError(
                    f"eps or an intervention is for {examples} examples, inputs hold {n}; pass the same examples, or say which they "
                    "are with additional_forward_args=rows (int64)."
                )
            return torch.arange(n)
        if not isinstance(rows, Tensor) or rows.dtype != torch.long or tuple(rows.shape) != (n,):
            raise DataError(
                f"additional_forward_args says which example each of {n} rows is: int64 numbers, shape ({n},). The function takes nothing "
                "else; give eps and interventions to the constructor."
            )
        return rows

    def _output(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.forward_func(x, rows) if self.forward_func.examples > 1 else self.forward_func(x)

    def _output_shape(self, x: Tensor, rows: Tensor) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(self._output(x, rows).shape[1:])

    def _collapsed(self, call: Call) -> dict[str, str]:
        """Targets that read a collapsed latent: the posterior of the latent is the prior, whatever the input."""
        forward = self.forward_func
        if forward.of != "input" or forward.explained not in ("mu", "logvar", "kl", "z"):
            return {}
        with torch.no_grad():
            posterior = forward.posterior(call.x, call.rows if forward.examples > 1 else None)
            try:
                kl = posterior.kl()
            except PriorError:
                return {}
        nats = kl.flatten(2).sum(2).mean(0) if kl.ndim > 2 else kl.mean(0)
        return {
            name: f"collapsed: KL to the prior is {float(nats[k]):.2g} nats on these inputs; attributions are set to 0"
            for name, k in zip(call.targets.names, call.targets.channels, strict=True)
            if k is not None and float(nats[k]) < COLLAPSED
        }

    def _incomplete(
        self, names: tuple[str, ...], delta: Tensor, change: Tensor, skip: Mapping[str, str]
    ) -> dict[str, str]:
        """Targets whose attributions do not add up to the change they explain; warned about, once a call."""
        size = change.abs().sum(0)
        relative = torch.where(size > 0, delta.abs().sum(0) / size, delta.abs().sum(0))
        loose = {
            name: f"incomplete: attributions are off by {float(r):.1%} of f(x) - f(baseline)"
            for name, r in zip(names, relative, strict=True)
            if name not in skip and float(r) > LOOSE
        }
        if loose:
            warnings.warn(
                f"{type(self).__name__}: attributions of {', '.join(loose)} are off by up to {float(relative.max()):.1%} of what they "
                "explain, f(x) - f(baseline). Raise n_steps, or take a baseline nearer to the inputs (attributions to a layer that others by-pass "
                "never add up); record.delta has the numbers.",
                NnsightVaeWarning,
                stacklevel=5,  # past Captum's decorator of attribute
            )
        return loose


def _only(value: Any, name: str) -> Any:
    """The one member of a tuple of one: Captum's metrics wrap even a single tensor."""
    if isinstance(value, tuple) and len(value) != 1:
        raise DataError(f"{name} is a tuple of {len(value)}; a VAE has one input, pass the tensor.")
    return value[0] if isinstance(value, tuple) else value
