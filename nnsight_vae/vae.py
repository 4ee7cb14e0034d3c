"""`VAE`: any torch VAE as an nnsight-traceable model, with named sites, and the user's module untouched inside."""

from __future__ import annotations

import copy
import hashlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nnsight import NNsight
from torch import Tensor, nn

from nnsight_vae import probe
from nnsight_vae._nnsight import Snapshot, Tap, VAEBatcher, VAEEnvoy, VAETracer, eval_mode, strip
from nnsight_vae.errors import AdapterError, DataError, NnsightVaeError
from nnsight_vae.layout import Layout
from nnsight_vae.posterior import Posterior
from nnsight_vae.sites import Sites

if TYPE_CHECKING:
    from nnsight_vae.adapters import Adapter

# Which VAE holds a module now: wrapping it again (a notebook cell run twice) retires the older wrapper.
_WRAPPED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[VAE]] = weakref.WeakKeyDictionary()


class Latent(nn.Module):
    """Container of the latent taps `mu`, `logvar`, `eps` and `z`."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.logvar, self.eps, self.z = Tap(), Tap(), Tap(), Tap()


class Wrapped(nn.Module):
    """The module nnsight sees: the user's model, unchanged, beside the latent taps."""

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.tap_input = Tap()
        self.model = model
        self.latent = Latent()
        self.tap_output = Tap()
        self.adapter = adapter

    def encode(self, x: Float[Tensor, "n *image"]) -> Posterior:
        """The posterior of `x`, through the taps."""
        mu, logvar = self.adapter.encode(self.model, self.tap_input(x))
        return Posterior(self.latent.mu(mu), self.latent.logvar(logvar))

    def sample(self, posterior: Posterior, eps: Tensor | None, *, draw: bool = False) -> Float[Tensor, "n *latent"]:
        """z = mu + sd * eps; eps is zero unless given, or drawn if asked for."""
        if eps is None:
            eps = torch.randn_like(posterior.mu) if draw else torch.zeros_like(posterior.mu)
        return posterior.rsample(self.latent.eps(eps))

    def decode(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *image"]:
        """The reconstruction of `z`, through the taps."""
        return self.tap_output(self.adapter.decode(self.model, self.latent.z(z)))

    def decode_posterior(self, mu: Tensor, logvar: Tensor, eps: Tensor) -> Float[Tensor, "n *image"]:
        """Everything from the posterior on: all latent taps fire, the encoder does not run."""
        posterior = Posterior(self.latent.mu(mu), self.latent.logvar(logvar))
        return self.decode(self.sample(posterior, eps))

    def forward(self, x: Tensor, *, eps: Tensor | None = None, sample: bool = False) -> Float[Tensor, "n *image"]:
        """The reconstruction of `x`: at the posterior mean, at `mu + sd * eps`, or at a fresh draw (`sample=True`)."""
        return self.decode(self.sample(self.encode(x), eps, draw=sample))


class VAE(NNsight):
    """A VAE that nnsight can trace. The user's module is kept as it is; `unwrap()` gives it back.

    Args:
        module: any module an adapter can read as a VAE (see `nv.adapt` for the rest).
        adapter: how to read it; found from the module's type or shape where not given.
        example: one batch of inputs `[n, *image]`, needed only where the input shape cannot be inferred from the module.

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

    def __init__(self, module: nn.Module, adapter: Adapter | None = None, *, example: Tensor | None = None) -> None:
        if isinstance(module, VAE):
            module, adapter = module.module, adapter or module.adapter
        if not isinstance(module, nn.Module):
            raise AdapterError(f"nv.VAE wraps a torch.nn.Module, got {type(module).__name__}; pass the model itself.")
        if adapter is None:
            from nnsight_vae.adapters import find_adapter

            adapter = find_adapter(module)
        if (previous := _WRAPPED.get(module)) and (older := previous()) is not None:
            older.unwrap()
        # Underscored names go past Envoy.__setattr__, which would register modules in the user's tree.
        self._lock = threading.RLock()
        self._retired = False
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._shape: tuple[int, ...] | None = None
        self._growable: dict[tuple[tuple[int, ...], str], bool] = {}  # filled by runs.start_for
        self._snapshot = Snapshot(module)
        try:
            self._wrap(module, adapter, example)
        except BaseException:
            self._snapshot.restore()
            raise
        _WRAPPED[module] = weakref.ref(self)

    def _wrap(self, module: nn.Module, adapter: Adapter, example: Tensor | None) -> None:
        super().__init__(Wrapped(module, adapter), path="vae", envoys=VAEEnvoy)
        self._snapshot.disable_inplace()
        for name, child in self.model._named_children():
            if not hasattr(type(self), name) and name not in self.__dict__ and not hasattr(Wrapped, name):
                object.__setattr__(self, name, child)
        if example is not None:
            self._probe(self.checked(example))
        else:
            self._infer_shape(module)

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
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of names and bytes of the module's parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def unwrap(self) -> nn.Module:
        """Give the user's module back as it was: compile, export, script and pickle work again. This wrapper is retired.

        Returns: the module passed to `VAE`, itself.
        """
        with self._lock:
            if not self._retired:
                self._snapshot.restore()
                self._retired = True
                _WRAPPED.pop(self.module, None)
            return self.module

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the model for one run: one thread at a time, eval mode, flags restored afterwards."""
        if self._retired:
            raise AdapterError(
                "this VAE was unwrapped (or its module was wrapped again, which retires the older wrapper); use the new wrapper, "
                "or wrap the module again with nv.VAE(module)."
            )
        with self._lock, eval_mode(self._module):
            yield

    # ------------------------------------------------------------------ running
    def trace(self, *inputs: Any, fn: Any = None, **kwargs: Any) -> VAETracer:
        """Open an nnsight trace of this VAE.

        Args:
            inputs: one batch `[n, *image]` (or `[n, *latent]` for `fn="decode"`); none when `tracer.invoke(x)` gives them.
            fn: `None` for the whole forward, `"encode"`, `"decode"`, or any callable over the module's parts.
            kwargs: `eps=` (explicit noise `[n, *latent]`), `sample=True`, and nnsight's own.

        Returns: the tracer, a context manager; values are served inside the block at `vae.<site>.output`.
        """
        if self.interleaver.interleaving:
            raise NnsightVaeError(
                "this VAE is being traced already: a trace cannot open inside another trace's block. Call nv functions and "
                "vae.trace(...) outside the block, or save the values you need and use them after it."
            )
        if self._retired:
            with self.held():  # raises, saying what happened
                pass
        return super().trace(*inputs, fn=fn, tracer_cls=VAETracer, **kwargs)  # type: ignore[return-value]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The reconstruction of `x` `[n, *image]`, untraced; at the posterior mean unless `eps` or `sample=True` is given."""
        if self.interleaver.interleaving:
            return super().__call__(*args, **kwargs)
        if args:
            self._check_form(args[0], "x")
        with self.held():
            return self._module(*args, **kwargs)

    def encode(self, x: Float[Tensor, "n *image"]) -> Posterior:
        """The posterior q(z|x), untraced.

        Args:
            x: inputs `[n, *image]`, float, finite.

        Returns: `Posterior(mu, logvar)`, each `[n, *latent]`.

        Raises:
            DataError: x is not a finite float batch that this model can run.
        """
        x = self.checked(x)
        with self.held():
            return self._module.encode(x)

    def decode(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *image"]:
        """The reconstruction of latents `z` `[n, *latent]`, untraced.

        Raises:
            DataError: z is not a finite float batch.
        """
        self._check_form(z, "z")
        self._check_finite(z, "z")
        with self.held():
            return self._module.decode(z.to(self.device or z.device))

    def verify(self, x: Float[Tensor, "n *image"]) -> float:
        """Largest difference between this wrapper and the model's own deterministic path (`adapter.reference` names it).

        Args:
            x: inputs `[n, *image]`.

        Returns: max |wrapped - reference|, in output units; 0.0 where the operations are the same.

        Raises:
            AdapterError: the difference is above the adapter's tolerance, or the shapes differ.
        """
        x = self.checked(x)
        with self.held(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            wrapped = self._module(x)
            reference, path = self.adapter.reference(self.module, x)
        if wrapped.shape != reference.shape:
            raise AdapterError(
                f"the wrapper reconstructs shape {tuple(wrapped.shape)} but the model's {path} gives {tuple(reference.shape)}; "
                "the adapter reads the wrong output."
            )
        difference = float((wrapped - reference).abs().max())
        if not difference <= self.adapter.tolerance:
            raise AdapterError(
                f"the wrapper differs from the model's {path} by {difference:.3g} (tolerance {self.adapter.tolerance:g}); "
                "the adapter does not follow the model's own reconstruction."
            )
        return difference

    # ------------------------------------------------------------------ sites
    @property
    def sites(self) -> Sites:
        """The addressable tensors of this VAE in execution order: name -> `Site`."""
        return self.layout().sites

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
        if self._retired:
            return f"{head}, unwrapped"
        return f"{head}\n{self.sites!r}" if self.probed else f"{head}, sites unknown until an input is seen"

    # ------------------------------------------------------------------ checks
    def _check_form(self, x: Any, name: str) -> None:
        if not isinstance(x, Tensor):
            raise DataError(f"{name} must be a torch tensor, got {type(x).__name__}; use torch.as_tensor.")
        if x.dtype == torch.uint8:
            raise DataError(
                f"{name} holds uint8 images {tuple(x.shape)}; this model computes in floats: pass {name}.float() / 255."
            )
        if x.ndim < 2 or len(x) == 0:
            raise DataError(f"{name} must be a non-empty batch [n, ...], got shape {tuple(x.shape)}.")
        parameter = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        if not x.is_floating_point() or (parameter is not None and x.dtype != parameter.dtype):
            wanted = parameter.dtype if parameter is not None else torch.float32
            raise DataError(f"{name} has dtype {x.dtype}, this model computes in {wanted}; pass {name}.to({wanted}).")

    @staticmethod
    def _check_finite(x: Tensor, name: str) -> None:
        if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
            bad = (~torch.isfinite(x.flatten(1))).any(1).nonzero().flatten().tolist()
            raise DataError(
                f"{name} has NaN or infinite values in {len(bad)} of {len(x)} examples (first: {bad[:5]}); clean them first."
            )

    def checked(self, x: Any) -> Tensor:
        """x on the model's device.

        Raises:
            DataError: x is not a finite float batch that this model can run; says what it is and what to do.
        """
        self._check_form(x, "x")
        self._check_finite(x, "x")
        x = x.to(self.device or x.device)
        self._probe(x)
        return x

    def _probe(self, x: Tensor) -> Layout:
        """Probe once for inputs of x's shape."""
        shape = tuple(x.shape[1:])
        if shape not in self._layouts:
            rows = x[:1].expand(probe.ROWS, *shape).clone()
            try:
                with self.held():
                    self._layouts[shape] = Layout.of(probe.probe(self._module, rows))
            except (RuntimeError, ValueError, AssertionError) as error:
                known = (
                    f" It runs inputs of shape {', '.join(str(('n', *s)) for s in self._layouts)}."
                    if self._layouts
                    else ""
                )
                raise DataError(f"this VAE cannot run x of shape {tuple(x.shape)}: {error}.{known}") from error
        self._shape = shape
        return self._layouts[shape]

    def _infer_shape(self, module: nn.Module) -> None:
        """Try likely input shapes; an autoencoder is recognised by giving its input's shape back."""
        reference = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        for shape in probe.candidate_shapes(module):
            x = torch.zeros(probe.ROWS, *shape, dtype=reference.dtype, device=reference.device)
            try:
                layout = self._probe(x)
            except (DataError, AdapterError):
                continue
            if layout.firings["tap_output"].shape == tuple(x.shape):
                return
            del self._layouts[shape]
            self._shape = None

    # ------------------------------------------------------------------ nnsight's batching, copying
    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim else int(bool(inputs))

    def _batch(self, invokes: list[tuple[tuple[Any, ...], dict[str, Any]]], fn: Any) -> tuple[Any, dict[str, Any]]:
        for inputs, _ in invokes:
            if fn in ("__call__", "encode") and inputs:
                self.checked(inputs[0])
            elif fn == "decode" and inputs:
                self._check_form(inputs[0], "z")
                self._check_finite(inputs[0], "z")
        if len(invokes) <= 1:
            return invokes[0] if invokes else ((), {})
        if len({len(inputs) for inputs, _ in invokes}) != 1 or len({frozenset(kw) for _, kw in invokes}) != 1:
            raise DataError(
                "every invoke of one trace must pass the same arguments; give eps= to all of them or to none."
            )
        shapes = {tuple(inputs[0].shape[1:]) for inputs, _ in invokes}
        if len(shapes) != 1:
            raise DataError(
                f"invokes of one trace must have inputs of one shape, got {sorted(shapes)}; use one trace a shape."
            )
        columns = list(zip(*(inputs for inputs, _ in invokes), strict=True))
        names = invokes[0][1]
        return (
            tuple(_join(column) for column in columns),
            {name: _join([kw[name] for _, kw in invokes]) for name in names},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return VAE, (self._clean_copy({}), self.adapter)

    def __deepcopy__(self, memo: dict[int, Any]) -> VAE:
        model = self._clean_copy(memo)
        return VAE(model, copy.deepcopy(self.adapter, memo))

    def _clean_copy(self, memo: dict[int, Any]) -> nn.Module:
        with self._lock:
            model = copy.deepcopy(self.module, memo)
        if not self._retired:
            strip(model, self._snapshot)
        return model


def _join(values: Any) -> Any:
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else values[0]


def adapt(
    module: nn.Module | None = None,
    *,
    encoder: Any = None,
    decoder: Any = None,
    packed: bool = False,
    codebook: Float[Tensor, "codes channels"] | None = None,
    example: Tensor | None = None,
) -> VAE:
    """Wrap anything as a VAE by saying how to encode and decode it.

    Args:
        module: the module whose submodules become sites; may be left out if `encoder` and `decoder` are modules themselves.
        encoder: callable (or module) `x -> (mu, logvar)`, a dict, a Normal distribution, or one packed tensor.
        decoder: callable (or module) `z -> reconstruction`.
        packed: the encoder returns one tensor with mu and logvar side by side along axis 1.
        codebook: rows `[codes, channels]` of a discrete latent, for `Quantize`.
        example: one batch of inputs, where the input shape cannot be inferred.

    Returns: a `VAE`.

    Raises:
        AdapterError: there is no module to hold, or only one of encoder and decoder is given.

    Example:
        >>> body, out = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> vae = adapt(encoder=body, decoder=out, packed=True)
        >>> vae.encode(torch.zeros(3, 6)).mu.shape
        torch.Size([3, 2])
    """
    from nnsight_vae.adapters import CallableAdapter, EncodeDecode

    if (encoder is None) != (decoder is None):
        raise AdapterError(
            "nv.adapt needs both encoder= and decoder=, or neither (then the module's own encode/decode are used)."
        )
    if module is None:
        if not isinstance(encoder, nn.Module) or not isinstance(decoder, nn.Module):
            raise AdapterError(
                "nv.adapt needs module= (the model whose submodules become sites) unless encoder and decoder are modules."
            )
        module = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    if encoder is None:
        return VAE(module, EncodeDecode(packed=packed), example=example)
    return VAE(module, CallableAdapter(encoder, decoder, packed=packed, codebook=codebook), example=example)
