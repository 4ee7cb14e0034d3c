"""Whether a wrapped model still is the model: its reconstruction beside the model's own path."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from nnsight_vae.errors import AdapterError, NnsightVaeWarning
from nnsight_vae.posterior import Posterior
from nnsight_vae.probe import random_state_kept
from nnsight_vae.wrapped import Wrapped

_ROUNDING = 1e-3  # of the change that noise makes


def largest_difference(root: Wrapped, x: Tensor, given: tuple[Tensor, ...]) -> float:
    """Largest difference between a wrapper and the model's own deterministic path, in output units.

    Args:
        root: the wrapper module, in eval mode.
        x: inputs `[n, *image]`.
        given: conditions `[n, ...]`.

    Raises:
        AdapterError: it is above the adapter's tolerance times the largest value of the reference, the shapes differ, or the model's
            forward draws z by another convention of the spread (a standard deviation, say) than it is read by.

    Warns:
        NnsightVaeWarning: the model's forward draws z in some other way.
    """
    adapter = root.adapter
    with torch.no_grad(), random_state_kept(x.device):
        wrapped = root(x, *given)
        reference, path = adapter.reference(root.model, x, *given)
    if wrapped.shape != reference.shape:
        raise AdapterError(
            f"the wrapper reconstructs shape {tuple(wrapped.shape)} but the model's {path} gives {tuple(reference.shape)}; "
            "the adapter reads the wrong output."
        )
    difference, size = float((wrapped - reference).abs().max()), float(reference.abs().max())
    if not difference <= adapter.tolerance * size:
        raise AdapterError(
            f"the wrapper differs from the model's {path} by {difference:.3g} (tolerance {adapter.tolerance:g} of the "
            f"largest value, {size:.3g}); the adapter does not follow the model's own reconstruction."
        )
    with torch.no_grad(), random_state_kept(x.device):
        _require_spread(root, x, given, wrapped)
    return difference


def _require_spread(root: Wrapped, x: Tensor, given: tuple[Tensor, ...], at_mean: Tensor) -> None:
    """Refuse a spread read by another convention than the model draws by, which reconstructions at the mean cannot show."""
    from nnsight_vae.adapters.reference import own_sample  # adapters import this package

    if root.adapter.levels != 1 or root.law.rsample is not Posterior.rsample:
        return
    mu, logvar = root.encode(x, *given)

    def reconstructed(read: Tensor) -> Tensor:
        return root.decode(mu + torch.exp(0.5 * read), *given)

    def agrees(read: Tensor) -> bool:
        # relative to what the noise does: mu and the noise may be added in another order
        moved = reconstructed(read)
        within = _ROUNDING * float((moved - at_mean).abs().max()) + root.adapter.tolerance * float(moved.abs().max())
        own = own_sample(root.model, x, moved, mu.shape, *given)
        return own is None or float((own - moved).abs().max()) <= within

    if agrees(logvar):
        return
    name = type(root.model).__name__
    for what, read, instead in (
        ("a standard deviation", 2 * logvar.log(), '{"mu": mu, "scale": s}'),
        ("a variance", logvar.log(), '{"mu": mu, "variance": s}'),
        ("the log of a standard deviation", 2 * logvar, "(mu, 2 * s)"),
    ):
        if agrees(read):
            raise AdapterError(
                f"encode gives (mu, s) with s read as the log variance, but {name}'s own forward draws with s as {what}: let encode "
                f"return {instead}, as in nv.adapt(module, encoder=..., decoder=...)."
            )
    warnings.warn(
        f"{name}'s own forward makes z of mu and one standard normal draw otherwise than mu + exp(logvar / 2) * eps, as sampling here "
        "does (eps=, sample=True); reconstructions at the mean are the same.",
        NnsightVaeWarning,
        stacklevel=4,
    )
