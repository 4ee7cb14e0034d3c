"""A question to an attribution method: which function of which inputs, against which baseline, for which one target."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import Attribution
from jaxtyping import Float, Int
from torch import Tensor

from nnsight_vae.attribution.base import VAEAttribution
from nnsight_vae.attribution.baselines import resolve_baseline
from nnsight_vae.attribution.forward import CaptumForward
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.attribution.targets import resolve_targets
from nnsight_vae.errors import DataError


@dataclass(frozen=True, eq=False)
class Question:
    """A method, its inputs, and one target.

    Attributes:
        method: the method.
        x: inputs.
        baseline: what they are compared with; None where the method takes none.
        function: what is attributed, of rows and of the example that each belongs to.
        extra: the other arguments of `attribute`.
        form: method and target in words.
    """

    method: Attribution
    x: Float[Tensor, "n *shape"]
    baseline: Float[Tensor, "n *shape"] | None
    function: Callable[[Tensor, Int[Tensor, " r"]], Float[Tensor, " r"]]
    extra: dict[str, Any]
    form: str

    @property
    def places(self) -> Int[Tensor, " n"]:
        """The examples, each once."""
        return torch.arange(len(self.x))

    def attributions(self, **settings: Any) -> Tensor:
        """What the method answers."""
        with guarded(self.method.forward_func.vae):
            return self.method.attribute(self.x, **self.extra, **settings).detach()

    def change(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The function at the inputs, and at the baseline."""
        if self.baseline is None:
            raise DataError(
                f"{type(self.method).__name__} has no baseline, so there is nothing its attributions add up to."
            )
        with torch.no_grad():
            return self.function(self.x, self.places), self.function(self.baseline, self.places)


def ask(method: Any, inputs: Any, target: Any, baselines: Any) -> Question:
    """Read the arguments of a check.

    Raises:
        DataError: not an attribution method on a VAE, no target, or a baseline that is a distribution.
    """
    forward = getattr(method, "forward_func", None)
    if not isinstance(method, Attribution) or not isinstance(forward, CaptumForward):
        raise DataError(
            "expected an attribution method on a VAE, such as LatentIntegratedGradients(vae) or Saliency(captum_forward(vae)); got "
            f"{method!r}."
        )
    if target is None:
        raise DataError(f"a check is of one target; name it or give its number: {', '.join(forward.names or ())}.")
    x = forward.checked(inputs).detach()
    rows = torch.arange(len(x)) if forward.examples > 1 else None
    with torch.no_grad():
        targets = resolve_targets(target, tuple(forward(x, rows).shape[1:]), forward.names, len(x))
    # Captum knows no names.
    given = targets.channels[0] if isinstance(target, str) and not isinstance(method, VAEAttribution) else target
    extra: dict[str, Any] = {"target": given}
    baseline = None
    if "baselines" in inspect.signature(method.attribute).parameters:
        reference = method.reference if isinstance(method, VAEAttribution) else None
        resolved = resolve_baseline(baselines, forward, x, reference).values
        if len(resolved) > 1:
            raise DataError("a check needs one baseline an example, not a Distribution.")
        extra["baselines"] = baseline = resolved[0].contiguous()
    if rows is not None:
        extra["additional_forward_args"] = rows

    def function(points: Tensor, places: Tensor) -> Tensor:
        return targets.read(forward(points, None if rows is None else places), places)[:, 0]

    return Question(method, x, baseline, function, extra, f"{type(method).__name__}, {targets.names[0]}")
