"""`VAE`: any torch VAE as an nnsight-traceable model, with named sites, and the user's module untouched inside."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nnsight import NNsight
from nnsight.intervention.eproperty import eproperty
from torch import Tensor, nn

from nnsight_vae import inputs, probe
from nnsight_vae._nnsight import VAEBatcher, VAEEnvoy, VAEInterleaver, VAETracer
from nnsight_vae.errors import AdapterError, DataError, NnsightVaeError, NnsightVaeWarning
from nnsight_vae.hold import Hold
from nnsight_vae.layout import Layout, read_layout
from nnsight_vae.posterior import Posterior
from nnsight_vae.self_check import SelfCheck
from nnsight_vae.sites import Sites
from nnsight_vae.snapshot import eval_mode, submodules_run
from nnsight_vae.wrapped import Wrapped
from nnsight_vae.wrapped_ladder import wrapped

if TYPE_CHECKING:
    from nnsight_vae.adapters import Adapter
    from nnsight_vae.kernels import Kernels
    from nnsight_vae.routes import Route


class VAE(NNsight):
    """A VAE that nnsight can trace. The user's module is kept as it is; `unwrap()`, or dropping the VAE, gives it back.

    Args:
        module: any module an adapter can read as a VAE (see `nv.adapt` for the rest).
        adapter: how to read it; found from the module's type or shape where not given.
        example: one batch of inputs `[n, *image]`, needed only where the input shape cannot be inferred from the module.
        given: conditions of a conditional VAE, one row `[1, ...]` each, in the order in which encode and decode take them after x
            and z. Every run that is passed no conditions of its own has these, so that analyses are about one condition, held
            fixed; `vae(x, y)`, `vae.trace(x, y)`, `vae.encode(x, y)` and `vae.decode(z, y)` take others, a row an example.

    Raises:
        AdapterError: the module cannot be read as a VAE, or encode/decode fail on an input of the expected shape.

    Example:
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> x = torch.rand(4, 1, 8, 8)
        >>> with torch.no_grad(), vae.trace(x):
        ...     vae.latent.z.output[:, 1] = 2.0
        ...     moved = vae.output.save()
        >>> tuple(moved.shape)
        (4, 1, 8, 8)
    """

    _batcher_class = VAEBatcher

    def __init__(
        self,
        module: nn.Module | VAE,
        adapter: Adapter | None = None,
        *,
        example: Tensor | None = None,
        given: Tensor | Sequence[Tensor] = (),
    ) -> None:
        given = inputs.conditions(given)
        if isinstance(module, VAE):
            older: VAE = module
            module, adapter, given = older.module, adapter or older.adapter, given or older.given
        if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
            raise AdapterError(
                f"nv.VAE wraps a torch.nn.Module with a Python forward, got {type(module).__name__}; pass the model itself."
            )
        if adapter is None:
            from nnsight_vae.adapters import find_adapter

            adapter = find_adapter(module)
        elif isinstance(adapter, type) or not all(callable(getattr(adapter, n, None)) for n in ("encode", "decode")):
            raise AdapterError(
                f"adapter must be an instance with encode(model, x) and decode(model, z), got {adapter!r}; see nv.adapters.Adapter."
            )
        # Underscored names go past Envoy.__setattr__, which would register modules in the user's tree.
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._shape: tuple[int, ...] | None = None
        self._parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
        self._growable: dict[tuple[tuple[int, ...], str], bool] = {}  # filled by runs.start_for
        self._routes: dict[tuple[tuple[int, ...], str, bool], Route] = {}  # filled by routes.route_for
        self._kernels: dict[tuple[int, ...], Kernels] = {}  # filled by kernels.kernels
        self._wirings: dict[tuple[tuple[int, ...], bool, str], Any] = {}  # filled by circuits.wiring
        self._hold = Hold(self, module)
        try:
            self._wrap(module, adapter, example, given)
        except BaseException:
            self._hold.release()
            raise

    def _wrap(self, module: nn.Module, adapter: Adapter, example: Tensor | None, given: tuple[Tensor, ...]) -> None:
        if self._parameter is not None:
            given = tuple(one.to(self._parameter.device) for one in given)
        super().__init__(wrapped(module, adapter, given), path="vae", interleaver=VAEInterleaver(), envoys=VAEEnvoy)
        self._hold.disable_inplace()
        for name, child in self.model._named_children():
            if not hasattr(type(self), name) and name not in self.__dict__ and not hasattr(Wrapped, name):
                object.__setattr__(self, name, child)
        _warn_of_batch_statistics(module)
        if example is not None:
            self.checked(example)
        else:
            self._infer_shape(module)
        if self._shape is not None:
            self._watch_posterior(self._shape)

    # ------------------------------------------------------------------ the user's module
    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return self._module.model

    @property
    def adapter(self) -> Adapter:
        """The adapter that reads the module as a VAE."""
        return self._module.adapter

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The conditions of every run that is passed none, one row each; `()` where the VAE is not conditional."""
        return self._module.given

    @property
    def law(self) -> type[Posterior]:
        """The family of the posterior: `Posterior` is the Gaussian; `nv.posterior.Laplace` where the encoder states one."""
        return self._module.law

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of names and bytes of the module's parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            if isinstance(tensor, Tensor):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def unwrap(self) -> nn.Module:
        """Give the user's module back as it was: compile, export, script and pickle work again. This wrapper is retired.

        While wrapped, `torch.jit.script` and `torch.export` refuse the module, and a pickle or deepcopy of it (not of the VAE)
        carries nnsight's instrumentation along.

        Returns: the module passed to `VAE`, itself.

        Raises:
            NnsightVaeError: called inside this VAE's own trace.
        """
        if self.interleaver.interleaving:
            raise NnsightVaeError("a VAE cannot be unwrapped inside its own trace; call unwrap() after the block.")
        self._hold.release()
        return self.module

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model for one run: one thread at a time, eval mode, outside any trace that is open, flags restored."""
        with self._hold.lock:
            self._hold.require_live()
            with eval_mode(self._module), submodules_run(), self.interleaver.stood_down():
                yield

    # ------------------------------------------------------------------ running
    def trace(self, *inputs: Any, fn: Any = None, trace: bool = True, **kwargs: Any) -> Any:
        """Open an nnsight trace of this VAE.

        A saved activation is what its site computed, whatever the model does afterwards. A write into it, `output[:, 3] = 2.0`,
        is a write into what was saved too: `.clone().save()` keeps the value from before. The input is copied. Put
        `torch.no_grad()` on the `with` line, before the trace: inside the block it would leak into the model.

        Args:
            inputs: one batch `[n, *image]` (or `[n, *latent]` for `fn="decode"`), and conditions `[n, ...]` after it where the VAE
                takes some; none when `tracer.invoke(x)` gives them.
            fn: `None` for the whole forward, `"encode"`, `"decode"`, or any callable over the module's parts.
            trace: False runs `fn` without a block and returns what it returns.
            kwargs: `eps=` (explicit noise `[n, *latent]`), `sample=True`, and nnsight's own.

        Returns: the tracer, a context manager; values are served inside the block at `vae.<site>.output`.

        Raises:
            NnsightVaeError: a trace of this VAE is open already, or `fn` is no function of it.
            AdapterError: this VAE was unwrapped.
        """
        if self.interleaver.interleaving:
            raise NnsightVaeError(
                "this VAE is being traced already: a trace cannot open inside another trace's block. Call nv functions and "
                "vae.trace(...) outside the block, or save the values you need and use them after it."
            )
        self._hold.require_live()
        if isinstance(fn, str) and not callable(getattr(self._module, fn, None)):
            raise NnsightVaeError(f"fn={fn!r} is no function of a VAE; use 'encode', 'decode' or a callable.")
        if not trace:
            with self.held():
                return super().trace(*inputs, fn=fn, trace=False, **kwargs)
        return super().trace(*inputs, fn=fn, **{"tracer_cls": VAETracer, **kwargs})

    # What a trace serves as input and output is the tensor at the taps, so that encode and decode traces serve it too.
    @eproperty(key="tap_input.output")
    def input(self, value: Any) -> Any:
        """The batch of inputs, inside a trace."""
        return value

    @eproperty(key="tap_output.output")
    def output(self, value: Any) -> Any:
        """The reconstruction, inside a trace."""
        return value

    def __call__(
        self, x: Tensor, *given: Tensor, eps: Tensor | None = None, sample: bool = False
    ) -> Float[Tensor, "n *image"]:
        """The reconstruction of `x` `[n, *image]`, untraced; at the posterior mean unless `eps` or `sample=True` is given.

        Raises:
            DataError: x is not a finite float batch that this model can run, or eps does not fit it.
        """
        x = self._on_device(x, "x")
        self._require_noise(x, eps)
        given = self._checked_conditions(given, len(x))
        model = self._module
        with self.held():
            posterior, z = model.at(x, *given, eps=eps, draw=sample)
            # A pass over x before every forward would cost 4 % of a small model's; x is looked at when it shows in the posterior.
            if not inputs.finite(posterior.mu):
                inputs.require_finite(x, "x")
            return model.decode(z, *given)

    def encode(self, x: Float[Tensor, "n *image"], *given: Tensor, eps: Tensor | None = None) -> Posterior:
        """The posterior q(z|x), untraced.

        Args:
            x: inputs `[n, *image]`, float, finite.
            given: conditions `[n, ...]` in place of those the VAE is wrapped with.
            eps: noise `[n, *latent]` of a VAE with several latents, whose lower ones are inferred from draws of the higher ones;
                None takes these at their means. It changes no posterior of one latent.

        Returns: `Posterior(mu, logvar)`, each `[n, *latent]`; `encode(x, eps=eps).rsample(eps)` is the z of `vae(x, eps=eps)`.

        Raises:
            DataError: x is not a finite float batch that this model can run.
        """
        x = self.checked(x)
        self._require_noise(x, eps)
        given = self._checked_conditions(given, len(x))
        with self.held():
            return self._module.encode(x, *given, eps=eps)

    def decode(self, z: Float[Tensor, "n *latent"], *given: Tensor) -> Float[Tensor, "n *image"]:
        """The reconstruction of latents `z` `[n, *latent]`, untraced.

        Raises:
            DataError: z is not a finite float batch of this VAE's latent.
        """
        z = self._checked_latent(z)
        given = self._checked_conditions(given, len(z))
        with self.held():
            return self._module.decode(z, *given)

    def verify(self, x: Float[Tensor, "n *image"], *given: Tensor) -> float:
        """Largest difference between this wrapper and the model's own deterministic path (`adapter.reference` names it).

        Args:
            x: inputs `[n, *image]`.
            given: conditions `[n, ...]` in place of those the VAE is wrapped with.

        Returns: max |wrapped - reference|, in output units; 0.0 where the operations are the same.

        Raises:
            AdapterError: the difference is above the adapter's tolerance times the largest value of the reference, or the shapes differ.
        """
        x = self.checked(x)
        given = self._module.conditions(self._checked_conditions(given, len(x)), len(x))
        with self.held(), torch.no_grad(), probe.random_state_kept(x.device):
            wrapped = self._module(x, *given)
            reference, path = self.adapter.reference(self.module, x, *given)
        if wrapped.shape != reference.shape:
            raise AdapterError(
                f"the wrapper reconstructs shape {tuple(wrapped.shape)} but the model's {path} gives {tuple(reference.shape)}; "
                "the adapter reads the wrong output."
            )
        difference = float((wrapped - reference).abs().max())
        if not difference <= self.adapter.tolerance * float(reference.abs().max()):
            raise AdapterError(
                f"the wrapper differs from the model's {path} by {difference:.3g} (tolerance {self.adapter.tolerance:g} of the "
                f"largest value, {float(reference.abs().max()):.3g}); the adapter does not follow the model's own reconstruction."
            )
        return difference

    # ------------------------------------------------------------------ sites
    @property
    def sites(self) -> Sites:
        """The addressable tensors of this VAE in execution order: name -> `Site`."""
        return self.layout().sites

    @property
    def self_check(self) -> SelfCheck:
        """The modules that are no sites, because they never run or run several times a forward; print it for what that means."""
        return self.layout().check

    @property
    def probed(self) -> bool:
        """Whether the sites are known yet (an input shape has been seen or inferred)."""
        return self._shape is not None

    def layout(self, x: Tensor | None = None) -> Layout:
        """Sites and module paths for inputs of x's shape (default: the shape seen last).

        Raises:
            DataError: no input shape is known yet, or the VAE cannot run x's.
        """
        if x is not None:
            return self._probe(x)
        if self._shape is None:
            raise DataError(
                "the sites of this VAE are not known yet: its input shape could not be inferred. Run it once (vae.encode(x)), "
                "or wrap with nv.VAE(module, example=x)."
            )
        return self._layouts[self._shape]

    def envoy(self, site: str) -> VAEEnvoy:
        """The envoy that serves a site: `vae.envoy("encoder.4").output` inside a trace."""
        return self.envoy_at(self.layout().paths[self.sites[site].name])

    def envoy_at(self, path: str) -> VAEEnvoy:
        """The envoy of a module path inside the wrapper module."""
        return self.interleaver.envoys[id(self._module.get_submodule(path))]

    def __repr__(self) -> str:
        head = f"VAE({type(self.module).__name__}, {type(self.adapter).__name__})"
        if not self._hold.live:
            return f"{head}, unwrapped"
        if not self.probed:
            return f"{head}, sites unknown until an input is seen"
        return f"{head}\n{self.sites!r}" + (f"\n{self.self_check}" if self.self_check else "")

    # ------------------------------------------------------------------ checks
    def checked(self, x: Any) -> Tensor:
        """x on the model's device.

        Raises:
            DataError: x is not a finite float batch that this model can run; says what it is and what to do.
        """
        x = self._on_device(x, "x")
        inputs.require_finite(x, "x")
        return x

    def _checked_latent(self, z: Any) -> Tensor:
        z = self._on_device(z, "z")
        inputs.require_finite(z, "z")
        return z

    def _checked_conditions(self, given: Sequence[Any], n: int) -> tuple[Tensor, ...]:
        inputs.require_conditions(given, n, self.given)
        return tuple(one.to(own.device) for one, own in zip(given, self.given, strict=False))

    def _require_noise(self, x: Tensor, eps: Any) -> None:
        if eps is not None:
            inputs.require_noise(eps, len(x), self.layout(x).sites["latent.mu"].shape)

    def _on_device(self, value: Any, name: str) -> Tensor:
        """x or z on the model's device, of a form and shape that it runs."""
        parameter = self._parameter
        inputs.require_form(value, name, None if parameter is None else parameter.dtype)
        value = value if parameter is None else value.to(parameter.device)
        if name == "x":
            self._probe(value)
        else:
            inputs.require_latent(value, [layout.sites["latent.z"].shape for layout in self._layouts.values()])
        return value

    def _probe(self, x: Tensor) -> Layout:
        """Probe once for inputs of x's shape."""
        shape = tuple(x.shape[1:])
        if shape not in self._layouts:
            with self.held():
                layout = read_layout(self._module, x, known=self._layouts)
            self._layouts[shape] = layout
            self.interleaver.overwritten |= {f"vae.{f.path}.output" for f in layout.firings.values() if f.overwritten}
        self._shape = shape
        return self._layouts[shape]

    def _infer_shape(self, module: nn.Module) -> None:
        """Try likely input shapes; an autoencoder is recognised by giving its input's shape back."""
        for x in probe.candidate_inputs(module, self.adapter.input_shape(module)):
            returned = self._returned(x)
            # A model that flattens its input itself runs on flat vectors too; it gives back the shape it is meant for.
            if returned is not None and returned != x.shape[1:] and x[0].numel() == torch.Size(returned).numel():
                x = x.reshape(len(x), *returned)
                returned = self._returned(x)
            if returned == x.shape[1:]:
                self._layouts = {tuple(x.shape[1:]): self._probe(x)}
                return
        self._layouts.clear()
        self._shape = None

    def _watch_posterior(self, shape: tuple[int, ...]) -> None:
        """Encode once where autograd watches: how the posterior was made tells a scale from a log variance, and is warned of."""
        x = probe.zeros_like_input(self.module, shape).requires_grad_()
        # A model that cannot be differentiated (weights made in inference mode) can still be read.
        with (
            self.held(),
            torch.inference_mode(False),
            torch.enable_grad(),
            probe.random_state_kept(x.device),
            suppress(RuntimeError),
        ):
            self._module.encode(x.clone())

    def _returned(self, x: Tensor) -> tuple[int, ...] | None:
        """The shape of one reconstruction of `x`; None where the model cannot run it."""
        try:
            return self._probe(x).sites["output"].shape
        except DataError:
            return None

    # ------------------------------------------------------------------ nnsight's batching
    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        # Never 0 where there is an input: nnsight would take an empty batch for "the invokes will bring the inputs".
        return (
            max(1, len(inputs[0])) if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim else int(bool(inputs))
        )

    def _batch(self, invokes: list[tuple[tuple[Any, ...], dict[str, Any]]], fn: Any) -> tuple[Any, dict[str, Any]]:
        for args, kwargs in invokes:
            if fn in ("__call__", "encode") and args:
                self._require_noise(self.checked(args[0]), kwargs.get("eps"))
                self._checked_conditions(args[1:], len(args[0]))
            elif fn == "decode" and args:
                self._checked_latent(args[0])
                self._checked_conditions(args[1:], len(args[0]))
        if not invokes:
            return (), {}
        if len({len(args) for args, _ in invokes}) != 1 or len({frozenset(kw) for _, kw in invokes}) != 1:
            raise DataError(
                "every invoke of one trace must pass the same arguments; give eps= to all of them or to none."
            )
        columns = list(zip(*(args for args, _ in invokes), strict=True))
        names = invokes[0][1]
        return tuple(map(inputs.join, columns)), {name: inputs.join([kw[name] for _, kw in invokes]) for name in names}

    # ------------------------------------------------------------------ copying
    def _shallow_copy(self) -> VAE:
        # nnsight's edit() makes a twin of this VAE; it must keep alive what holds the module wrapped.
        twin = super()._shallow_copy()
        twin._twin_of = self
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and not name.startswith("_") and hasattr(self, name):
            raise AdapterError(
                f"assigning a module to vae.{name} would not change the model; change vae.unwrap().{name}, then wrap it again."
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), *self._hold.clean_copy((self.module, self.adapter), {}), self._shape, self.given)

    def __deepcopy__(self, memo: dict[int, Any]) -> VAE:
        model, adapter = self._hold.clean_copy((self.module, self.adapter), memo)
        twin = _rebuilt(type(self), model, adapter, self._shape, self.given)
        if twin.probed and set(twin.sites) != set(self.sites):
            raise AdapterError(
                "this VAE cannot be copied: its adapter's callables (a lambda, a closure) keep running the original module. Copy the "
                "module and wrap the copy with nv.adapt."
            )
        return twin


def _rebuilt(
    kind: type[VAE], model: nn.Module, adapter: Adapter, shape: tuple[int, ...] | None, given: tuple[Tensor, ...]
) -> VAE:
    example = None if shape is None else probe.zeros_like_input(model, shape)
    return kind(model, adapter, example=example, given=given)


def _warn_of_batch_statistics(module: nn.Module) -> None:
    batch_norms = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if names := [name for name, part in batch_norms if part.running_mean is None]:
        warnings.warn(
            f"{', '.join(names)}: normalises over the batch even in eval mode (track_running_stats=False), so examples change one "
            "another, and so do interventions that share a run. Effects are then those of this batch, not of an example.",
            NnsightVaeWarning,
            stacklevel=5,
        )
