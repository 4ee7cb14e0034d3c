"""Where numbers stop being finite: looked for only once a result is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from nnsight_vae.errors import DataError
from nnsight_vae.runs import Write, replace_event, trace_events
from nnsight_vae.vae import VAE


@dataclass(frozen=True)
class NotFinite:
    """The first unit, in execution order, whose activation is NaN or infinite.

    Example:
        >>> print(NotFinite("encoder.2", 3, True, 4, 64))
        encoder.2[3] is NaN for 4 of 64 inputs
    """

    site: str
    unit: int
    nan: bool
    examples: int
    of: int

    def __str__(self) -> str:
        what = "NaN" if self.nan else "infinite"
        return f"{self.site}[{self.unit}] is {what} for {self.examples} of {self.of} inputs"


def first_not_finite(
    vae: VAE,
    x: Tensor,
    eps: Tensor | None,
    chunks: Sequence[slice],
    writes: Callable[[slice], dict[str, Write]] | None = None,
) -> NotFinite | None:
    """Run again and look at every site.

    Args:
        vae: the model.
        x: inputs `[n, *image]`.
        eps: noise, or None for the posterior mean.
        chunks: slices of x that run at once.
        writes: module path -> write, for the examples of a chunk; none in a run without interventions.

    Returns: the first unit that is not finite, and in how many examples; None where every activation is finite.
    """
    parts = [
        _not_finite(vae, x[rows], None if eps is None else eps[rows], writes(rows) if writes else {}) for rows in chunks
    ]
    for site in parts[0]:
        bad, nan = (torch.cat([part[site][i] for part in parts]) for i in (0, 1))
        if bool(bad.any()):
            unit = int(bad.any(0).nonzero()[0])
            return NotFinite(site, unit, bool(nan[:, unit].any()), int(bad[:, unit].sum()), len(x))
    return None


def refuse_not_finite(vae: VAE, x: Tensor, eps: Tensor | None, chunks: Sequence[slice]) -> None:
    """Run again and refuse a model some unit of which is NaN or infinite without any intervention; nothing where all are finite.

    Raises:
        DataError: names the first such unit.
    """
    first = first_not_finite(vae, x, eps, chunks)
    if first is not None:
        raise DataError(
            f"{first}, without any intervention: nothing can be said about this model. Check its weights, and that inputs "
            "are scaled as it was trained on."
        )


Flags = tuple[Bool[Tensor, "n unit"], Bool[Tensor, "n unit"]]  # not finite; NaN


def _not_finite(vae: VAE, x: Tensor, eps: Tensor | None, writes: dict[str, Write]) -> dict[str, Flags]:
    layout = vae.layout(x)
    found: dict[str, Flags] = {}

    def look(site: str) -> Callable[[], None]:
        envoy, axis = vae.envoy(site), layout.sites[site].axis

        def event() -> None:
            values = envoy.output.movedim(axis, 1).unsqueeze(2).flatten(2)
            found[site] = (~torch.isfinite(values)).any(2), torch.isnan(values).any(2)

        return event

    events = [(layout.firings[path].finished, replace_event(vae, path, write)) for path, write in writes.items()]
    # A stable sort: each site is looked at after it was written to.
    events += [(layout.firings[path].finished, look(site)) for site, path in layout.paths.items()]
    trace_events(vae, "__call__", (x,), events, eps=eps)
    return {site: found[site] for site in layout.sites}
