"""What an adapter is, and how the one for a module is found."""

from __future__ import annotations

import warnings
from importlib.metadata import entry_points

from jaxtyping import Float
from nnsight_vae.adapters.reference import own_reconstruction
from torch import Tensor, nn

from nnsight_vae.errors import AdapterError, NnsightVaeWarning
from nnsight_vae.posterior import Posterior


class Adapter:
    """How to use one kind of module as a VAE. Subclass it, override `encode` and `decode`, and pass it to `nv.VAE`.

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

    #: rows of the codebook `[codes, channels]` where the latent is discrete
    codebook: Float[Tensor, "codes channels"] | None = None
    #: tolerance of `verify`: same operations in the same order, so exact unless an adapter says otherwise
    tolerance: float = 0.0

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter should serve `model` when none is named. Must not import the library it is about."""
        return False

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
    """The adapter for `model`: a registered third party's, or a generic one from its encode/decode shape.

    Raises:
        AdapterError: nothing fits; says what was looked for and how to wrap by hand.
    """
    from nnsight_vae.adapters.generic import EncodeDecode, own_codebook

    for adapter in [*_registered(), EncodeDecode(codebook=own_codebook(model))]:
        if adapter.matches(model):
            return adapter
    children = ", ".join(name for name, _ in model.named_children()) or "none"
    raise AdapterError(
        f"{type(model).__name__} does not look like a VAE: expected methods encode(x) and decode(z), or submodules encoder and "
        f"decoder; its submodules are: {children}. Say how with nv.adapt(module, encoder=lambda x: (mu, logvar), "
        "decoder=lambda z: reconstruction), or pass adapter=."
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
