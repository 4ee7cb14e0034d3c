"""What a batch must be before a VAE runs it: refused early, saying what it is and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnsight_vae.errors import DataError


def require_form(x: Any, name: str, dtype: torch.dtype | None) -> None:
    """Refuse what is not a non-empty float batch `[n, ...]` of the model's dtype.

    Args:
        x: what was passed.
        name: what to call it in the message.
        dtype: what the model computes in; None where it has no floating-point parameter.

    Raises:
        DataError: says what x is and what to do.
    """
    if not isinstance(x, Tensor):
        raise DataError(f"{name} must be a torch tensor, got {type(x).__name__}; use torch.as_tensor.")
    if x.dtype == torch.uint8:
        raise DataError(
            f"{name} holds uint8 images {tuple(x.shape)}; this model computes in floats: pass {name}.float() / 255."
        )
    if x.ndim < 2 or len(x) == 0:
        raise DataError(f"{name} must be a non-empty batch [n, ...], got shape {tuple(x.shape)}.")
    if not x.is_floating_point() or (dtype is not None and x.dtype != dtype):
        wanted = dtype or torch.float32
        raise DataError(f"{name} has dtype {x.dtype}, this model computes in {wanted}; pass {name}.to({wanted}).")


def finite(x: Tensor) -> bool:
    """Whether x has no NaN and no infinite value. A finite sum, one fast pass, needs no second look."""
    return math.isfinite(x.detach().sum().item()) or bool(torch.isfinite(x).all())


def require_finite(x: Tensor, name: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        DataError: names the first examples that hold them.
    """
    if not finite(x):
        bad = (~torch.isfinite(x.flatten(1))).any(1).nonzero().flatten().tolist()
        raise DataError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(x)} examples (first: {bad[:5]}); clean them first."
        )


def require_noise(eps: Any, n: int, latent: tuple[int, ...]) -> None:
    """Refuse reparameterisation noise that is not one finite draw an example and latent, `[n, *latent]`.

    Raises:
        DataError: says what eps is.
    """
    if not isinstance(eps, Tensor) or tuple(eps.shape) != (n, *latent):
        got = tuple(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
        raise DataError(f"eps must be noise of shape {(n, *latent)} (one draw an example and latent), got {got}.")
    if not eps.is_floating_point():
        raise DataError(f"eps must be floating point, got {eps.dtype}; draw it with torch.randn.")
    require_finite(eps, "eps")


def require_latent(z: Tensor, known: list[tuple[int, ...]]) -> None:
    """Refuse latents with another number of axes or channels than any latent this VAE is known to have.

    Raises:
        DataError: says which shapes are known.
    """
    if known and not any(z.ndim == len(shape) + 1 and z.shape[1] == shape[0] for shape in known):
        raise DataError(
            f"z has shape {tuple(z.shape)}, this VAE's latent is {', '.join(str(('n', *shape)) for shape in known)}."
        )


def conditions(given: Any) -> tuple[Tensor, ...]:
    """The conditions that a VAE is wrapped with, each a tensor of one row.

    Raises:
        DataError: one is not.
    """
    given = tuple(given) if isinstance(given, list | tuple) else (given,)
    for one in given:
        if not isinstance(one, Tensor) or one.ndim == 0 or len(one) != 1:
            got = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise DataError(
                f"given= takes conditions of one row each, [1, ...], which every example then has; got {got}. Conditions that differ by "
                "example are passed to the run: vae.trace(x, y)."
            )
    return given


def require_conditions(given: Sequence[Any], n: int, wrapped: Sequence[Tensor]) -> None:
    """Refuse conditions of a run that are not, for each that the VAE is wrapped with, one of its shape and dtype for every row.

    Raises:
        DataError: says what was passed and what the VAE takes.
    """
    wanted = [(n, *one.shape[1:]) for one in wrapped]
    got = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in given]
    if given and got != wanted:
        takes = (
            f"conditions of shapes {wanted}"
            if wanted
            else "no conditions; wrap it with given= if it is a conditional VAE"
        )
        raise DataError(f"conditions of shapes {got} were passed beside the input, this VAE takes {takes}.")
    if wrong := [(one.dtype, own.dtype) for one, own in zip(given, wrapped, strict=False) if one.dtype != own.dtype]:
        raise DataError(f"a condition has dtype {wrong[0][0]}, this VAE is wrapped with one of {wrong[0][1]}.")


def combined(invokes: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of all invokes of a trace as those of one call, rows after one another.

    Raises:
        DataError: the invokes pass different arguments, or tensors that differ in shape beyond the batch axis.
    """
    if not invokes:
        return (), {}
    if len({len(args) for args, _ in invokes}) != 1 or len({frozenset(named) for _, named in invokes}) != 1:
        raise DataError("every invoke of one trace must pass the same arguments; give eps= to all of them or to none.")
    columns = zip(*(args for args, _ in invokes), strict=True)
    return tuple(map(_joined, columns)), {
        name: _joined([named[name] for _, named in invokes]) for name in invokes[0][1]
    }


def _joined(values: Sequence[Any]) -> Any:
    """One argument of all invokes as one; a tensor is new, so that writes in a block never reach the caller's own."""
    if not isinstance(values[0], Tensor):
        return values[0]
    if len({tuple(value.shape[1:]) for value in values}) != 1:
        raise DataError(
            f"invokes of one trace must have inputs of one shape, got {[tuple(v.shape) for v in values]}; use one trace a shape."
        )
    return torch.cat(list(values)) if len(values) > 1 else values[0].clone()
