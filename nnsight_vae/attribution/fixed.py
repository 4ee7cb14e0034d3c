"""Interventions held fixed while a model is attributed: replacement activations computed once, handed out row by row."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor

from nnsight_vae.donors import Donors, Replacement
from nnsight_vae.engine import joint_of
from nnsight_vae.errors import DataError, InterventionError
from nnsight_vae.interventions import Add, Intervention, Noise, Resample, Set, Swap
from nnsight_vae.probe import zeros_like_input
from nnsight_vae.runs import Write
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE
from nnsight_vae.writes import Rows, writes_of


class FixedInterventions:
    """One joint intervention, the same function of a row however often and in whatever order that row is run.

    Attribution methods run an example many times, along a path or with features removed. What is swapped in must not change
    meanwhile, so the activations of other inputs (`Swap`, `Mean`) are computed here, once, and carry no gradient.

    Args:
        vae: the model.
        interventions: key -> intervention, as in `nv.intervene`.
        eps: noise `[n, *latent]` or `[1, *latent]` of the runs that activations are swapped from; None: the posterior mean.

    Attributes:
        examples: n where an intervention differs by example, else 1.

    Raises:
        SiteError, InterventionError: a key or an intervention does not fit; `Resample` and `Noise`, which draw anew for every
            batch, are refused.
    """

    def __init__(self, vae: VAE, interventions: Mapping[Key, Intervention], eps: Tensor | None) -> None:
        self._vae, self._joint = vae, joint_of(vae, interventions)
        for selection, intervention in self._joint.items():
            if isinstance(intervention, Resample | Noise):
                fixed = "Swap(reference[chosen])" if isinstance(intervention, Resample) else "Add(noise)"
                raise InterventionError(
                    f"{selection}: {type(intervention).__name__} draws anew for every batch, and an attribution runs many; fix the "
                    f"draw with nv.{fixed}."
                )
        self.examples = self._count(eps)
        shape = vae.sites["input"].shape
        rows = zeros_like_input(vae.module, shape).expand(self.examples, *shape)
        if eps is not None:
            eps = eps.to(rows).expand(self.examples, *eps.shape[1:])
        donors = Donors(vae, [self._joint], rows, eps)
        resolve = donors.rows(slice(0, self.examples))
        self._replacements = {s: resolve(s, intervention) for s, intervention in self._joint.items()}

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites written to."""
        return tuple({selection.site: None for selection in self._joint})

    def writes(self, rows: Int[Tensor, " r"] | None, count: int) -> dict[str, Write]:
        """The writes for `count` rows, of which `rows` says which example each is (None: no matter which)."""
        replacements = {s: self._of_rows(s, replacement, rows) for s, replacement in self._replacements.items()}

        def resolved(selection: Selection, _: Intervention) -> Replacement:
            return replacements[selection]

        return writes_of(self._vae.layout(), [self._joint], resolved, Rows.every(count))

    def _of_rows(self, selection: Selection, replacement: Replacement, rows: Tensor | None) -> Replacement:
        shift = replacement.shift
        if rows is None or not isinstance(shift, Tensor) or not self._by_example(selection, shift):
            return replacement
        return Replacement(replacement.scale, shift[rows.to(shift.device)])

    def _by_example(self, selection: Selection, value: Tensor) -> bool:
        axes = 2 if selection.position is not None else len(self._vae.sites[selection.site].shape) + 1
        return value.ndim == axes and len(value) > 1

    def _count(self, eps: Tensor | None) -> int:
        counts = {len(eps)} if eps is not None and len(eps) > 1 else set()
        counts |= {n for s, intervention in self._joint.items() if (n := self._examples_of(s, intervention)) > 1}
        if len(counts) > 1:
            raise DataError(
                f"eps and interventions are for different numbers of examples: {sorted(counts)}; give one row an example, or one "
                "row for all."
            )
        return counts.pop() if counts else 1

    def _examples_of(self, selection: Selection, intervention: Intervention) -> int:
        if isinstance(intervention, Swap):
            return len(intervention.source)
        value = intervention.value if isinstance(intervention, Set) else getattr(intervention, "delta", None)
        if isinstance(intervention, Set | Add) and isinstance(value, Tensor) and self._by_example(selection, value):
            return len(value)
        return 1
