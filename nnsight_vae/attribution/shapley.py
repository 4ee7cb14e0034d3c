"""`LatentShapley`: how much each latent contributes to what the decoder makes, exactly, or from sampled orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from captum.log import log_usage
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnsight_vae.attribution.base import Call, VAEAttribution
from nnsight_vae.attribution.forward import Explained
from nnsight_vae.attribution.guards import guarded
from nnsight_vae.attribution.passes import rows_per_pass
from nnsight_vae.attribution.path import require_batch_size
from nnsight_vae.errors import DataError
from nnsight_vae.games import Game, exact_shapley, sampled_shapley
from nnsight_vae.interventions import Intervention
from nnsight_vae.sites import Key
from nnsight_vae.vae import VAE

Method = Literal["auto", "exact", "sampled"]

MOST_EXACT = 12  # players: 4,096 coalitions
_WORTHS = 2**24  # numbers kept at a time (128 MB as float64)


class LatentShapley(VAEAttribution):
    """Shapley values of the latents: z against a baseline, latent by latent, averaged over all orders of exchanging them.

    phi_k = sum over sets S of latents without k of |S|! (K - |S| - 1)! / K! * (f(z_S+k) - f(z_S)), where z_S has the latents in S
    from z and the others from the baseline. They add up to f(z) - f(baseline), exactly.

    Captum's `ShapleyValues` gives the same numbers from K! orders, and its `ShapleyValueSampling` estimates of them; this asks
    for each of the 2^K sets once, for all targets together.

    Args:
        vae: the model.
        readout: what is explained, e.g. `data.readout()`; `"reconstruction"` for pixels, picked by `target=(channel, row, column)`.
        interventions: held active in every run, as in `nv.intervene`.
        reference: latents `[m, *latent]` that stand for the data, for `baselines="mean"`.

    Source: Shapley 1953; Lundberg and Lee 2017, arXiv 1705.07874; baseline replacement: Sundararajan and Najmi 2020,
        arXiv 1908.08474.

    Example:
        >>> import nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> halves = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8)), "bottom": (slice(4, 8), slice(0, 8))})
        >>> z = torch.randn(5, 3)
        >>> values = LatentShapley(vae, halves).attribute(z)
        >>> values.shape
        torch.Size([5, 2, 3])
        >>> moved = halves(vae.decode(z)) - halves(vae.decode(0 * z))
        >>> torch.allclose(values.sum(2), moved, atol=1e-6)
        True
    """

    _takes_gradients = False

    def __init__(
        self,
        vae: VAE,
        readout: Explained,
        *,
        interventions: Mapping[Key, Intervention] | None = None,
        reference: Tensor | None = None,
    ) -> None:
        super().__init__(vae, readout, of="z", interventions=interventions, reference=reference)

    @log_usage()
    def attribute(
        self,
        inputs: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Int[Tensor, "..."] | None = None,
        *,
        method: Method = "auto",
        n_samples: int = 100,
        seed: int = 0,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        return_standard_errors: bool = False,
    ) -> Any:
        """Shapley value of every latent, for one target or for all.

        Args:
            inputs: latents z `[n, *latent]`.
            baselines: what a latent outside the set is replaced by; the prior mean 0 where not given (see `resolve_baseline`).
            target: a target's name or number; None: all of them.
            additional_forward_args: which example each row is; only where interventions differ by example.
            feature_mask: group of each element of z, `[*latent]` or `[1, *latent]`: a group is exchanged as a whole, and each of its
                elements is given the group's value. None: every element alone. For the channels of a spatial latent:
                `torch.arange(c).view(c, 1, 1).expand(c, h, w)`.
            method: `"exact"`, from all 2^K sets; `"sampled"`, from random orders; `"auto"`: exact for up to 12 latents or groups.
            n_samples: orders that are sampled, half of them the reverses of the others; even, at least 4.
            seed: of the sampling; all examples share the orders.
            internal_batch_size: rows decoded at a time; by default as many as keep activations small.
            return_convergence_delta: also return sum(attributions) - (f(z) - f(baseline)): rounding, for groups of one element.
            return_standard_errors: also return the standard error of each value, last; 0 where it is exact.

        Returns: `[n, *latent]`, or `[n, targets, *latent]` for `target=None`.

        Raises:
            DataError: something does not fit, or `"exact"` was asked for with more than 12 latents or groups.
        """
        require_batch_size(internal_batch_size)
        call = self.start(inputs, baselines, target, additional_forward_args)
        players = _players(feature_mask, call.x)
        n_players = int(players.max()) + 1
        orders = _orders(method, n_players, n_samples)
        grouped = n_players < players.numel()
        if grouped and return_convergence_delta:
            raise DataError(
                "each element of a group is given the whole group's value, so the sum over elements is no f(z) - f(baseline); leave out "
                "return_convergence_delta, or feature_mask."
            )
        with guarded(self.vae):
            rows = internal_batch_size or rows_per_pass(self.vae)
            values, errors = self._values(call, players, rows, orders, seed)
        settings = {"exact": True} if orders is None else {"exact": False, "n_samples": orders, "seed": seed}
        result = self.finish(
            call,
            values,
            of="latent.z",
            complete=not grouped,
            return_convergence_delta=return_convergence_delta,
            **settings,
        )
        if not return_standard_errors:
            return result
        errors = errors if call.targets.all else errors[:, 0]
        return (*result, errors) if return_convergence_delta else (result, errors)

    def has_convergence_delta(self) -> bool:
        """True: values sum to f(z) - f(baseline)."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: values are shares of a difference from the baseline."""
        return True

    def _values(
        self, call: Call, players: Int[Tensor, "*latent"], rows: int, orders: int | None, seed: int
    ) -> tuple[Float[Tensor, "n target *latent"], Float[Tensor, "n target *latent"]]:
        """Values and standard errors, some examples at a time; every example sees the same orders."""
        n_players, n_targets = int(players.max()) + 1, len(call.targets.names)
        step = max(1, _WORTHS // (n_targets * max(n_players, 2) * 2))
        parts = []
        for places in call.places.split(step):
            game = self._game(call, players, places, rows)
            if orders is None:
                block = max(1, _WORTHS // (len(places) * n_targets))
                values = exact_shapley(game, n_players, block)
                parts.append((values, torch.zeros_like(values)))
            else:
                parts.append(sampled_shapley(game, n_players, orders, seed))
        values, errors = (torch.cat(part, dim=1)[players].to(call.x) for part in zip(*parts, strict=True))
        return _elements_last(values, players.ndim), _elements_last(errors, players.ndim)

    def _game(self, call: Call, players: Int[Tensor, "*latent"], places: Int[Tensor, " e"], rows: int) -> Game:
        """Worth of a set of latents: the targets with those from z and the others from the baseline, mean over baselines."""
        read, baseline = self.function(call), call.baseline
        if baseline is None:
            raise DataError("Shapley values need a baseline.")
        z = call.x[places]

        @torch.no_grad()
        def worth(members: Bool[Tensor, "coalition player"]) -> Float[Tensor, "coalition e target"]:
            inside = members[:, players].to(z.device)[:, None]
            worths = []
            for other in baseline.values:
                mixed = torch.where(inside, z, other[places]).flatten(0, 1)
                who = places.repeat(len(members))
                parts = zip(mixed.split(rows), who.split(rows), strict=True)
                worths.append(torch.cat([read(part, call.rows[at], at).double() for part, at in parts]))
            return torch.stack(worths).mean(0).unflatten(0, (len(members), len(places)))

        return worth


def _players(feature_mask: Tensor | None, z: Float[Tensor, "n *latent"]) -> Int[Tensor, "*latent"]:
    """The player that each element of a latent belongs to, numbered from 0."""
    shape = z.shape[1:]
    if feature_mask is None:
        return torch.arange(shape.numel()).view(shape)
    if not isinstance(feature_mask, Tensor) or feature_mask.dtype.is_floating_point or feature_mask.dtype == torch.bool:
        raise DataError("feature_mask must be an integer tensor: the group of each element of z.")
    if tuple(feature_mask.shape) not in (tuple(shape), (1, *shape)):
        raise DataError(
            f"feature_mask has shape {tuple(feature_mask.shape)}, expected {tuple(shape)} or {(1, *shape)}: the same groups for all "
            "examples."
        )
    return torch.unique(feature_mask.cpu().view(shape), return_inverse=True)[1]


def _orders(method: Method, n_players: int, n_samples: int) -> int | None:
    """How many orders to sample; None: exact."""
    if method not in get_args(Method):
        raise DataError(f"method must be 'auto', 'exact' or 'sampled', got {method!r}.")
    if method == "exact" and n_players > MOST_EXACT:
        raise DataError(
            f"exact Shapley values of {n_players} latents need 2^{n_players} = {2**n_players:,} decodings of every example; up to "
            f"{MOST_EXACT} are exact. Use method='sampled' (with return_standard_errors=True), or feature_mask= to exchange groups of "
            "latents as one."
        )
    if method == "exact" or n_players == 1 or (method == "auto" and n_players <= MOST_EXACT):
        return None
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 4 or n_samples % 2:
        raise DataError(
            f"n_samples must be an even number of orders (each comes with its reverse), at least 4, got {n_samples!r}."
        )
    return n_samples


def _elements_last(values: Float[Tensor, "*latent n target"], axes: int) -> Float[Tensor, "n target *latent"]:
    return values.permute(axes, axes + 1, *range(axes))
