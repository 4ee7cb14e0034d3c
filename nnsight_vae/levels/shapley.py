"""How an indirect effect is shared out among several mediators: in their order, or averaged over all orders (Shapley)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.directions import ESTIMANDS, Way
from nnsight_vae.engine import baseline, run_interventions
from nnsight_vae.errors import InterventionError
from nnsight_vae.games import Game, exact_shapley, sampled_shapley
from nnsight_vae.interventions import Swap
from nnsight_vae.levels.mediators import MediatorSets, mediator_sets
from nnsight_vae.pairs import Pairs
from nnsight_vae.progress import progress_bar
from nnsight_vae.provenance import provenance
from nnsight_vae.readouts import Readout
from nnsight_vae.results.effects import Effects
from nnsight_vae.sites import Selection
from nnsight_vae.vae import VAE

MOST_EXACT = 10  # mediators: 1,023 joint swaps in one plan
_ORDERS = 200  # sampled beyond


def shapley_mediators(
    vae: VAE,
    pairs: Pairs,
    mediators: MediatorSets,
    *,
    readout: Readout,
    direction: Way = "noising",
    n_permutations: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Effects:
    """The joint indirect effect of several mediators, shared out by their Shapley values.

    With v(S) the indirect effect through the mediators S together, v(S) = Y(b, M_S from s) - Y(b) for noising and
    Y(s) - Y(s, M_S from b) for denoising,

        phi_i = sum over S without i of |S|! (k - |S| - 1)! / k! * (v(S + i) - v(S))

    which is what M_i adds to the mediators before it, averaged over all orders. The shares add up to v(all), exactly; alike
    mediators get alike shares, and one that adds nothing gets 0.

    Args:
        vae: the model.
        pairs: base (b) and source (s) inputs.
        mediators: one entry a mediator: a key, or a list of keys that are one set.
        readout: what is measured.
        direction: `"noising"` shares out PNIE, `"denoising"` TNIE.
        n_permutations: None: exact up to 10 mediators, 200 sampled orders beyond; a number: that many orders, even, at least 4.
        seed: of the sampling.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [mediator, target, pair]. Sampled shares carry their Monte-Carlo standard error in
        `.parts["standard error"]`, pair by pair; that of a mean over pairs is at most the mean of it.

    Raises:
        SiteError, DataError, ReadoutError: before any work.
        InterventionError: before any work: no mediators, one unit in two of them, one that comes after what is read, an odd
            or too small number of permutations.

    Source: Shapley 1953; Castro, Gomez & Tejada 2009 (sampling). See `nnsight_vae.games`.

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> shares = shapley_mediators(vae, pairs, ["latent.z[0]", "latent.z[1]", "latent.z[2]"], readout=top)
        >>> whole = nv.mediate(vae, pairs, ["latent.z"], readout=top).pnie
        >>> bool(abs(shares.values.sum(0) - whole.values[0]).max() < 1e-6)
        True
    """
    if n_permutations is not None and (not isinstance(n_permutations, int) or n_permutations < 4 or n_permutations % 2):
        raise InterventionError(f"n_permutations must be a whole number, even and at least 4, got {n_permutations!r}.")
    sets = _checked(vae, pairs, mediators, readout, direction)
    k = len(sets)
    orders = n_permutations or (None if k <= MOST_EXACT else _ORDERS)
    n_coalitions = 2**k - 1 if orders is None else orders * (k - 1) + 1
    errors: Tensor | None = None
    with _game(vae, pairs, sets, readout, direction, n_coalitions, progress) as game:
        if orders is None:
            shares = exact_shapley(game, k)
        else:
            shares, errors = sampled_shapley(game, k, orders, seed)
    details = {"mediators": list(sets), "direction": direction, "n_permutations": orders, "seed": seed}
    record = provenance(vae, pairs, readout, **details)
    parts = {} if errors is None else {"standard error": _effects(errors, "standard error", pairs, readout, record)}
    return _effects(shares, f"Shapley share of {ESTIMANDS[direction]}", pairs, readout, record, parts)


def sequential_mediators(
    vae: VAE,
    pairs: Pairs,
    mediators: MediatorSets,
    *,
    readout: Readout,
    direction: Way = "noising",
    progress: bool | None = None,
) -> Effects:
    """The joint indirect effect of several mediators, shared out in the order given: what each adds to those before it.

    share_i = v({1 ... i}) - v({1 ... i - 1}), with v as in `shapley_mediators`; the shares telescope to v(all), exactly. They
    depend on the order unless the mediators do not interact.

    Args:
        vae: the model.
        pairs: base (b) and source (s) inputs.
        mediators: one entry a mediator, in the order in which they join: a key, or a list of keys that are one set.
        readout: what is measured.
        direction: `"noising"` shares out PNIE, `"denoising"` TNIE.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Effects` [mediator, target, pair].

    Raises:
        SiteError, DataError, ReadoutError, InterventionError: before any work, as `shapley_mediators`.

    Source: VanderWeele & Vansteelandt 2014, Epidemiologic Methods 2(1), 95-115 (mediators added one by one).

    Example:
        >>> import torch, nnsight_vae as nv
        >>> from nnsight_vae.models import MLPVAE
        >>> vae = nv.VAE(MLPVAE(image_shape=(1, 8, 8), latent=3))
        >>> pairs = nv.Pairs(torch.rand(12, 1, 8, 8), torch.rand(12, 1, 8, 8))
        >>> top = nv.readouts.Region({"top": (slice(0, 4), slice(0, 8))})
        >>> sequential_mediators(vae, pairs, ["latent.mu", "latent.z"], readout=top).units
        ('latent.mu', 'latent.z')
    """
    sets = _checked(vae, pairs, mediators, readout, direction)
    k = len(sets)
    with _game(vae, pairs, sets, readout, direction, k, progress) as game:
        shares = game(torch.ones(k + 1, k).tril(-1).bool()).double().diff(dim=0)
    record = provenance(vae, pairs, readout, mediators=list(sets), direction=direction)
    return _effects(shares, f"sequential share of {ESTIMANDS[direction]}", pairs, readout, record)


def _checked(
    vae: VAE, pairs: Pairs, mediators: MediatorSets, readout: Readout, direction: Way
) -> dict[str, tuple[Selection, ...]]:
    if direction not in get_args(Way):
        raise InterventionError(f"direction must be 'noising' or 'denoising', got {direction!r}.")
    require(vae, pairs, readout)
    vae.checked(pairs.base)
    return mediator_sets(vae, mediators, readout)


@contextmanager
def _game(
    vae: VAE,
    pairs: Pairs,
    sets: dict[str, tuple[Selection, ...]],
    readout: Readout,
    direction: Way,
    n_coalitions: int,
    progress: bool | None,
) -> Iterator[Game]:
    """The worth of coalitions of mediators, `[coalition, n, target]`, behind a bar over all that will be asked for.

    It is Y with their swap, or -Y for denoising: v(S) but for a constant, which no share depends on.
    """
    receiver, donor, sign = pairs.base, pairs.source, 1.0
    if direction == "denoising":
        receiver, donor, sign = pairs.source, pairs.base, -1.0
    swap = Swap(donor)
    untouched = baseline(vae, receiver, readout, eps=pairs.eps)
    with progress_bar("sharing out", n_coalitions * len(pairs), progress) as advance:

        def worth(members: Bool[Tensor, "coalition player"]) -> Float[Tensor, "coalition n target"]:
            plan = [
                {part: swap for parts, joins in zip(sets.values(), row, strict=True) if joins for part in parts}
                for row in members.tolist()
            ]
            found = untouched.expand(len(plan), *untouched.shape).clone()
            joint = [i for i, entry in enumerate(plan) if entry]
            found[joint] = run_interventions(
                vae, receiver, [plan[i] for i in joint], readout, eps=pairs.eps, progress=advance
            )
            return sign * found

        yield worth


def _effects(
    values: Float[Tensor, "player n target"],
    estimand: str,
    pairs: Pairs,
    readout: Readout,
    record: dict[str, Any],
    parts: dict[str, Effects] | None = None,
) -> Effects:
    groups, source_groups = pairs.cluster_ids
    found = values.cpu().numpy().transpose(0, 2, 1)
    names, targets = tuple(record["mediators"]), tuple(readout.names)
    return Effects(found, names, targets, estimand, groups, record, parts or {}, source_groups=source_groups)
