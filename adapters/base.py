"""What an adapter is, and how the one for a module is found."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import entry_points

from jaxtyping import Float
from nnsight_vae.adapters.reference import own_reconstruction
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError, NnsightVaeWarning
from nnsight_vae.posterior import Posterior

_LIBRARIES = ("pythae", "disent", "diffusers", "scvi")  # each has a module here of its name, with adapter_for(model)
_SHOWN = 24  # modules listed where no adapter fits


class Adapter:
    """How to use one kind of module as a VAE. Subclass it, override `encode` and `decode`, and pass it to `nv.VAE`.

    Of a conditional VAE, encode, decode and reference take the conditions after x and z, one argument each, with a row an
    example: `decode(self, model, z, y)`.

    Example:
        >>> from torch import nn
        >>> class Mine(Adapter):
        ...     def encode(self, model, x):
        ...         h = model.body(x)
        ...         return Posterior(model.mu(h), model.logvar(h))
        ...     def decode(self, model, z):
        ...         return model.out(z)
        >>> Mine().matches(nn.Linear(2, 2))
        False
    """

    #: how many latents the model has; see `nv.adapters.Ladder` where there are several
    levels: int = 1
    #: rows of the codebook `[codes, channels]` where the latent is discrete
    codebook: Float[Tensor, "codes channels"] | None = None
    #: tolerance of `verify`, relative to the largest value. The operations are the model's own, so the difference is 0, or one
    #: of rounding where the model multiplies a mean that is a slice of a larger tensor, and the wrapper a copy of it
    tolerance: float = 1e-6

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter should serve `model` when none is named. Must not import the library it is about."""
        return False

    def input_shape(self, model: nn.Module) -> tuple[int, ...] | None:
        """Shape of one input `[*image]` where the model says it in a way of its own; None where its layers tell."""
        return None

    def encode(self, model: nn.Module, x: Float[Tensor, "n *image"]) -> Posterior:
        """The posterior of `x`, deterministically."""
        raise NotImplementedError

    def decode(self, model: nn.Module, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "rows *image"]:
        """The reconstruction of `z`, as the activated tensor the model means by it.

        `rows` is n, unless an intervention lets the batch grow on the way.
        """
        raise NotImplementedError

    def reference(self, model: nn.Module, x: Float[Tensor, "n *image"]) -> tuple[Float[Tensor, "n *image"], str]:
        """The model's own deterministic reconstruction of `x`, computed without the wrapper, and what that path is called.

        The module's forward where it can be compared (see `own_reconstruction`), else `decode(encode(x).mu)` as this adapter
        reads them, which cannot tell a wrong reading.
        """
        expected = self.decode(model, Posterior(*self.encode(model, x)).mu)
        return own_reconstruction(model, x, expected) or (expected, "decode(encode(x).mu)")


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter for `model`: a registered third party's, its library's, or a generic one from its encode/decode shape.

    No library is imported to find out: one whose model is here is loaded already.

    Raises:
        AdapterError: nothing fits; shows the modules, and how an adapter is written.
    """
    from nnsight_vae.adapters.generic import EncodeDecode, own_codebook

    for adapter in _registered():
        if adapter.matches(model):
            return adapter
    for library in _LIBRARIES:
        if library_classes(model, library):
            found: Adapter | None = import_module(f"nnsight_vae.adapters.{library}").adapter_for(model)
            if found is not None:
                return found
    generic = EncodeDecode(codebook=own_codebook(model))
    if generic.matches(model):
        return generic
    raise AdapterError(_no_adapter(model))


def library_classes(model: nn.Module, library: str) -> tuple[str, ...]:
    """Names of the classes of a library (by its top-level package) that `model` is an instance of, nearest first.

    Example:
        >>> from torch import nn
        >>> library_classes(nn.Conv2d(1, 1, 1), "torch")
        ('Conv2d', '_ConvNd', 'Module')
    """
    return tuple(c.__name__ for c in type(model).__mro__ if c.__module__.split(".")[0] == library)


def _no_adapter(model: nn.Module) -> str:
    name = type(model).__name__
    parts = [f"  {path}: {type(part).__name__}" for path, part in model.named_modules() if path and path.count(".") < 2]
    shown = "\n".join([*parts[:_SHOWN], *(["  ..."] if len(parts) > _SHOWN else [])]) or "  none"
    return (
        f"{name} does not look like a VAE: expected methods encode(x) and decode(z), or submodules encoder and decoder. "
        f"Its modules:\n{shown}\n"
        "Say how it encodes and decodes; of a forward that does both, these are its lines up to mu and logvar, and those after z:\n"
        f"  class My{name}(nv.adapters.Adapter):\n"
        "      def encode(self, model, x):\n"
        "          return nv.Posterior(model.mu(x), model.logvar(x))  # mean and log variance, by modules of the model\n"
        "      def decode(self, model, z):\n"
        "          return model.out(z)                                # the reconstruction\n"
        f"  vae = nv.VAE(model, My{name}())                            # then nnsight_vae.testing.check_adapter(vae, x)"
    )


def _registered() -> list[Adapter]:
    """The adapters that other packages registered; one that cannot be loaded is named, not fatal."""
    adapters = []
    for entry in entry_points(group="nnsight_vae.adapters"):
        try:
            adapters.append(entry.load()())
        except Exception as error:
            warnings.warn(f"the adapter {entry.value!r} cannot be loaded: {error!r}.", NnsightVaeWarning, stacklevel=3)
    return adapters
