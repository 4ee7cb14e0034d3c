"""The decoder's Jacobian: what an infinitesimal step of each latent does to the reconstruction, or to a readout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.log import log_usage
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from nnsight_vae.attribution.base import VAEAttribution
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.attribution.passes import rows_per_pass
from nnsight_vae.errors import NnsightVaeError
from nnsight_vae.guards import require_gradients
from nnsight_vae.interventions import Intervention
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key, Selection
from nnsight_vae.vae import VAE

DEAD_NORM = 0.05  # of the largest column: a latent below moves next to nothing


class SingularSteps(NamedTuple):
    """Singular value decomposition of the Jacobian at each code, largest first.

    Attributes:
        values: how far the output moves per unit step along each direction.
        steps: those directions in latent space, unit length, orthogonal.
        outputs: what the output then does, unit length, orthogonal.
    """

    values: Float[Tensor, "n rank"]
    steps: Float[Tensor, "n rank latent"]
    outputs: Float[Tensor, "n rank *out"]


@dataclass(frozen=True, eq=False)
class Jacobian:
    """d output / d z at some codes, one column per latent.

    Attributes:
        columns: per latent (every element of z, positions included), in units of the output per latent unit.
        names: of the latents.
        targets: of the output, where it is a readout; None for the reconstruction.
    """

    columns: Float[Tensor, "n latent *out"]
    names: tuple[str, ...]
    targets: tuple[str, ...] | None = None

    @cached_property
    def norms(self) -> Float[Tensor, "n latent"]:
        """Euclidean length of each column."""
        return self._flat.norm(dim=2)

    @cached_property
    def dead(self) -> Bool[Tensor, " latent"]:
        """Latents whose columns, root mean square over the codes, are below 5 % of the largest latent's."""
        size = self.norms.square().mean(0).sqrt()
        return size <= DEAD_NORM * size.max()

    def cosines(self) -> np.ma.MaskedArray:
        """Cosine between the columns of every two latents, `[n, latent, latent]`; masked where one is 0, or its latent dead.

        A decoder that a diagonal posterior has disentangled locally has orthogonal columns.

        Source: Rolinek, Zietlow and Martius 2019, arXiv 1812.06775; Allen 2024, arXiv 2410.22559.
        """
        usable = (self.norms > 0) & ~self.dead
        unit = self._flat / torch.where(usable, self.norms, 1.0)[:, :, None]
        cosines = (unit @ unit.transpose(1, 2)).clamp(-1.0, 1.0).cpu().numpy()
        defined = (usable[:, :, None] & usable[:, None, :]).cpu().numpy()
        return np.ma.MaskedArray(np.where(defined, cosines, 0.0), mask=~defined)

    def singular(self) -> SingularSteps:
        """The directions in latent space that move the output most, and what they do to it.

        The sign of each pair of directions is chosen so that the largest component of the step is positive.
        """
        u, s, v = torch.linalg.svd(self._flat.transpose(1, 2), full_matrices=False)
        largest = v.gather(2, v.abs().argmax(2, keepdim=True))
        sign = torch.where(largest < 0, -1.0, 1.0).to(v)
        outputs = (u.transpose(1, 2) * sign).unflatten(2, self.columns.shape[2:])
        return SingularSteps(s, v * sign, outputs)

    @property
    def _flat(self) -> Float[Tensor, "n latent value"]:
        return self.columns.flatten(2)

    def __repr__(self) -> str:
        of = "the reconstruction" if self.targets is None else f"{len(self.targets)} readout targets"
        dead = [name for name, flag in zip(self.names, self.dead.tolist(), strict=True) if flag]
        note = f"; dead: {', '.join(dead)}" if dead else ""
        return f"Jacobian(of {of} in {len(self.names)} latents at {len(self.columns)} codes{note})"


class DecoderJacobian(VAEAttribution):
    """The derivative of the reconstruction, or of a readout, in every latent, by forward-mode differentiation.

    One pass per latent gives a whole column; the reverse mode would need one per pixel.

    Args:
        vae: the model.
        readout: of whose targets; None: of the reconstruction.
        interventions: held active in every run, as in `nv.intervene`.

    Source: columns and disentanglement, Rolinek, Zietlow and Martius 2019, arXiv 1812.06775; Allen 2024, arXiv 2410.22559.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> z = torch.randn(5, 3)
        >>> DecoderJacobian(vae).attribute(z).shape
        torch.Size([5, 3, 1, 8, 8])
        >>> DecoderJacobian(vae).at(z)
        Jacobian(of the reconstruction in 3 latents at 5 codes)
    """

    def __init__(
        self, vae: VAE, readout: Readout | None = None, *, interventions: Mapping[Key, Intervention] | None = None
    ) -> None:
        super().__init__(vae, "reconstruction" if readout is None else readout, of="z", interventions=interventions)

    @log_usage()
    def attribute(
        self, inputs: Float[Tensor, "n *latent"], target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        """The derivatives at some codes, unweighted: what a small step of each latent does.

        Args:
            inputs: latents z.
            target: a target's name or number, or `(channel, row, column)` of the reconstruction; None: everything at once.
            additional_forward_args: which example each row is; only where interventions differ by example.

        Returns: for one target `[n, *latent]`; for None, of a readout `[n, targets, *latent]`, and of the reconstruction its
            columns, one image per latent, `[n, latents, *image]`.
        """
        if target is None and self.forward_func.names is None:
            return self.at(inputs, additional_forward_args).columns
        call = self.start(inputs, None, target, additional_forward_args, with_baseline=False)
        columns = self._columns(call.x, call.rows, call.targets.read)
        return self.finish(call, columns.transpose(1, 2).unflatten(2, call.x.shape[1:]), of="latent.z")

    def at(self, inputs: Float[Tensor, "n *latent"], additional_forward_args: Any = None) -> Jacobian:
        """The Jacobian at some codes, with its norms, cosines and singular directions.

        Args:
            inputs: latents z.
            additional_forward_args: which example each row is; only where interventions differ by example.
        """
        require_gradients()
        x = self.forward_func.checked(inputs).detach()
        rows = self._rows(additional_forward_args, len(x))
        return Jacobian(self._columns(x, rows, lambda output, places: output), self._latents(), self.forward_func.names)

    def _columns(
        self, x: Tensor, rows: Tensor, read: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "n latent *out"]:
        def function(points: Tensor, places: Tensor) -> Tensor:
            return read(self.forward_func(points, rows[places]), places)

        with guarded(self.vae):
            return forward_columns(function, x, rows_per_pass(self.vae))

    def _latents(self) -> tuple[str, ...]:
        site = self.vae.sites["latent.z"]
        chosen = (Selection(site.name, (k,), at or None) for k in range(site.n_units) for at in site.positions)
        return tuple(map(str, chosen))


def forward_columns(
    function: Callable[[Tensor, Int[Tensor, " r"]], Tensor], z: Float[Tensor, "n *latent"], rows: int
) -> Float[Tensor, "n latent *out"]:
    """The derivative of a function in every element of z: each example runs once per element, `rows` of them a pass.

    Args:
        function: of points `[r, *latent]` and of which row of z each belongs to, row by row.
        z: where.
        rows: that fit in memory at a time.

    Raises:
        NnsightVaeError: an operation has no forward-mode derivative.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> forward_columns(lambda z, places: z @ weight.T, torch.zeros(1, 2), rows=1)[0].tolist()
        [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    """
    n, size = len(z), z[0].numel()
    steps = torch.eye(size, dtype=z.dtype, device=z.device).repeat_interleave(n, dim=0).view(-1, *z.shape[1:])
    points, places = z.detach().repeat(size, *[1] * (z.ndim - 1)), torch.arange(n).repeat(size)
    parts = []
    for point, step, place in zip(points.split(rows), steps.split(rows), places.split(rows), strict=True):
        with torch.no_grad(), forward_ad.dual_level():
            try:
                value, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(point, step), place))
            except NotImplementedError as error:
                raise NnsightVaeError(
                    f"something on the way from z has no forward-mode derivative: {error}. Use Captum's Saliency on "
                    "captum_forward(vae, readout, of='z'), which differentiates backwards, one target at a time."
                ) from error
        parts.append(torch.zeros_like(value) if slope is None else slope)
    return torch.cat(parts).unflatten(0, (size, n)).transpose(0, 1)
