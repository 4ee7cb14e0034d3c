"""`VAE`: any torch VAE as an nnsight-traceable model, with named sites, and the user's module untouched inside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnsight_vae import inputs
from nnsight_vae._nnsight import VAEEnvoy
from nnsight_vae.errors import AdapterError, NnsightVaeError
from nnsight_vae.hold import Hold
from nnsight_vae.layout import Layout
from nnsight_vae.posterior import Posterior
from nnsight_vae.probe import zeros_like_input
from nnsight_vae.self_check import SelfCheck
from nnsight_vae.sites import Sites
from nnsight_vae.traced import Traced
from nnsight_vae.verification import largest_difference
from nnsight_vae.wrapped import Wrapped
from nnsight_vae.wrapped_ladder import wrapped
from nnsight_vae.wrapping import adapter_for, require_module, warn_of_batch_statistics, watch_posterior

if TYPE_CHECKING:
    from nnsight_vae.adapters import Adapter
    from nnsight_vae.kernels import Kernels
    from nnsight_vae.routes import Route


class VAE(Traced):
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
        require_module(module)
        adapter = adapter_for(module, adapter)
        # Underscored names go past Envoy.__setattr__, which would register modules in the user's tree.
        self._parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
        self._growable: dict[tuple[tuple[int, ...], str], bool] = {}  # filled by runs.start_for
        self._routes: dict[tuple[tuple[int, ...], str, bool], Route] = {}  # filled by routes.route_for
        self._kernels: dict[tuple[int, ...], Kernels] = {}  # filled by kernels.kernels
        self._wirings: dict[tuple[tuple[int, ...], bool, str], Any] = {}  # filled by circuits.wiring
        hold = Hold(self, module)
        try:
            self._wrap(hold, module, adapter, example, given)
        except BaseException:
            hold.release()
            raise

    def _wrap(
        self, hold: Hold, module: nn.Module, adapter: Adapter, example: Tensor | None, given: tuple[Tensor, ...]
    ) -> None:
        if self._parameter is not None:
            given = tuple(one.to(self._parameter.device) for one in given)
        super().__init__(wrapped(module, adapter, given), hold, self._parameter)
        hold.disable_inplace()
        for name, child in self.model._named_children():
            if not hasattr(type(self), name) and name not in self.__dict__ and not hasattr(Wrapped, name):
                object.__setattr__(self, name, child)
        warn_of_batch_statistics(module, stacklevel=5)
        if example is not None:
            self.checked(example)
        else:
            self._layouts.guess()
        if self._layouts.shape is not None:
            with self.held():
                watch_posterior(self._module, self._layouts.shape)

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

    # ------------------------------------------------------------------ running
    def __call__(
        self, x: Tensor, *given: Tensor, eps: Tensor | None = None, sample: bool = False
    ) -> Float[Tensor, "n *image"]:
        """The reconstruction of `x` `[n, *image]`, untraced; at the posterior mean unless `eps` or `sample=True` is given.

        Raises:
            DataError: x is not a finite float batch that this model can run, or eps does not fit it.
        """
        # A pass over x before every forward would cost 4 % of a small model's; x is looked at when it shows in the posterior.
        x = self._intake.x(x, finite=False)
        self._intake.noise(x, eps)
        given = self._intake.given(given, len(x))
        model = self._module
        with self.held():
            posterior, z = model.at(x, *given, eps=eps, draw=sample)
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
        self._intake.noise(x, eps)
        given = self._intake.given(given, len(x))
        with self.held():
            return self._module.encode(x, *given, eps=eps)

    def decode(self, z: Float[Tensor, "n *latent"], *given: Tensor) -> Float[Tensor, "n *image"]:
        """The reconstruction of latents `z` `[n, *latent]`, untraced.

        Raises:
            DataError: z is not a finite float batch of this VAE's latent.
        """
        z = self._intake.z(z)
        given = self._intake.given(given, len(z))
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
        given = self._module.conditions(self._intake.given(given, len(x)), len(x))
        with self.held():
            return largest_difference(self._module, x, given)

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
        return self._layouts.shape is not None

    def layout(self, x: Tensor | None = None) -> Layout:
        """Sites and module paths for inputs of x's shape (default: the shape seen last).

        Raises:
            DataError: no input shape is known yet, or the VAE cannot run x's.
        """
        return self._layouts.last if x is None else self._layouts.of(x)

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

    def checked(self, x: Any) -> Tensor:
        """x on the model's device.

        Raises:
            DataError: x is not a finite float batch that this model can run; says what it is and what to do.
        """
        return self._intake.x(x)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (
            type(self),
            *self._hold.clean_copy((self.module, self.adapter), {}),
            self._layouts.shape,
            self.given,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> VAE:
        model, adapter = self._hold.clean_copy((self.module, self.adapter), memo)
        twin = _rebuilt(type(self), model, adapter, self._layouts.shape, self.given)
        if twin.probed and set(twin.sites) != set(self.sites):
            raise AdapterError(
                "this VAE cannot be copied: its adapter's callables (a lambda, a closure) keep running the original module. Copy the "
                "module and wrap the copy with nv.adapt."
            )
        return twin


def _rebuilt(
    kind: type[VAE], model: nn.Module, adapter: Adapter, shape: tuple[int, ...] | None, given: tuple[Tensor, ...]
) -> VAE:
    example = None if shape is None else zeros_like_input(model, shape)
    return kind(model, adapter, example=example, given=given)
