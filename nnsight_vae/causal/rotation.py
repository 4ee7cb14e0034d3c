"""Distributed alignment search: orthogonal subspaces of a site, one a factor, learned so that swapping them swaps the factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.arguments import require, require_readout
from nnsight_vae.causal.carriers import random_frame
from nnsight_vae.causal.interchange_pairs import InterchangePairs
from nnsight_vae.causal.rotation_result import Rotation
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import DataError, ReadoutError
from nnsight_vae.progress import progress_bar
from nnsight_vae.reading import Readout, reads
from nnsight_vae.vae import VAE

_RATE = 0.03  # of Adam, on a frame whose entries are about 1 / sqrt(units)
_BATCH = 64
_CHECK_EVERY = 20  # steps between looks at the validation pairs
_PATIENCE = 5  # looks without an improvement
_LEAST = 1e-4  # what counts as one, in units of the score


def learn_rotation(
    vae: VAE,
    data: Dataset,
    *,
    site: str = "latent.z",
    dims: int | Mapping[str, int] = 1,
    factors: Sequence[str] | None = None,
    propagate: bool = False,
    shuffle: bool = False,
    n: int = 1024,
    steps: int = 1000,
    seed: int = 0,
    readout: Readout | None = None,
    progress: bool | None = None,
) -> Rotation:
    """Find the subspaces of a site that carry the factors where no single unit does: distributed alignment search.

    Directions Q_f, orthonormal within and between factors, are trained to do what the world does. For pairs of base and source,

        loss = mean_f E|Y(a <- a + Q_f^T Q_f (a' - a)) - Y(a) - true change_f|^2 / E|true change_f|^2

    which is 1 - the score of `interchange_accuracy`, of the pairs that are trained on. The map is linear, so that it cannot make up
    what the site does not carry: a non-linear one can align anything with anything (Sutter et al. 2025). How much a linear one
    makes up is seen in `interchange_accuracy(vae, data, rotation)`, whose pairs are others and which has random subspaces beside
    it, and in the same with `shuffle=True` and on an untrained model.

    Args:
        vae: the model; neither its weights nor its gradients are touched.
        data: a dataset with an SCM.
        site: whose units are rotated; channels where it has positions, alike at all of them.
        dims: directions of each factor, or factor -> directions.
        factors: those to find subspaces for; None: all of the dataset's.
        propagate: learn the change with the factor's descendants instead of that of the factor alone.
        shuffle: control: teach each pair the change of another one.
        n: training pairs, shared out among the factors; a quarter more are drawn to tell when to stop.
        steps: optimiser steps at most; it stops when the validation pairs have not improved for 100.
        seed: of the pairs, of the start and of their order; the same call gives the same rotation on one machine.
        readout: a differentiable readout of the factors; `data.readout()` by default.
        progress: show a bar; by default on an interactive terminal.

    Returns: `Rotation`, which `interchange_accuracy` takes in place of a mapping. How much is gained over single latents, with an
        interval over the same pairs, say `rotated.minus(single)` of the two accuracies.

    Raises:
        DataError: no counterfactuals, unknown factors, more directions than units, fewer than 20 pairs a factor, a VAE with a
            codebook, or the readout sees no factor change.
        SiteError: there is no such site.
        ReadoutError: the readout has no gradient in the site.

    Source: Geiger et al. 2024, Finding alignments between interpretable causal variables and distributed neural representations,
        arXiv 2303.02536 (DAS). Sutter et al. 2025, arXiv 2507.08802, on non-linear maps.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> rotation = learn_rotation(vae, data, factors=["angle"], n=64, steps=20)
        >>> rotation.bases["angle"].shape
        (1, 8)
        >>> rotated, single = (nv.causal.interchange_accuracy(vae, data, each, n=32) for each in (rotation, {"angle": 0}))
        >>> gained = rotated.minus(single).rows[0]
        >>> gained.low <= gained.difference <= gained.high
        True
    """
    require(vae, data=data)
    names = tuple(data.factors if factors is None else factors)
    sizes = _sizes(data, names, dims)
    if vae.adapter.codebook is not None:
        raise DataError(
            "a code is one of a list and cannot be rotated; give interchange_accuracy units of a code instead."
        )
    if n < 20 * len(names) or steps < 1:
        raise DataError(f"learn_rotation got n={n}, steps={steps}; at least 20 pairs a factor and one step are needed.")
    readout = data.readout() if readout is None else readout
    require_readout(readout)
    if vae.sites.order(site) > vae.sites.order(reads(readout)):
        raise ReadoutError(
            f"the readout reads {reads(readout)!r}, which comes before {site!r}; nothing there can change it."
        )
    units, extra = vae.sites[site].n_units, max(n // 4, 20 * len(names))
    if sum(sizes.values()) > units:
        raise DataError(f"{site} has {units} units, too few for {sum(sizes.values())} orthogonal directions.")
    pairs = InterchangePairs.draw(vae, data, names, site, n + extra, seed, readout, propagate)
    seen = (pairs.scale > 0).tolist()
    if not any(seen):
        raise DataError(f"the readout sees no change of {', '.join(names)}, so there is nothing to learn.")
    pairs = pairs.rows(torch.tensor(seen, device=pairs.factor.device)[pairs.factor])
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    pairs = pairs.shuffled(seed) if shuffle else pairs
    held_out = len(pairs) * extra // (n + extra)
    known = {name: size for (name, size), one in zip(sizes.items(), seen, strict=True) if one}
    frame = _Frame(known, [place for place, one in enumerate(seen) if one], units, seed)
    with progress_bar("rotation", steps, progress) as advance:
        taken = _train(frame, pairs.rows(order[held_out:]), pairs.rows(order[:held_out]), steps, seed, advance)
    return Rotation(
        site=vae.sites[site].name,
        bases=frame.bases(),
        validation=frame.scores(pairs.rows(order[:held_out])),
        left_out={name: "the readout sees no change of it" for name in names if name not in known},
        steps=taken,
        propagate=propagate,
        shuffled=shuffle,
        seed=seed,
        data=data.name,
    )


class _Frame:
    """Orthonormal rows, those of each factor in a block; free parameters w, of which they are the Q of a QR decomposition."""

    def __init__(self, sizes: Mapping[str, int], places: Sequence[int], units: int, seed: int) -> None:
        start = random_frame(sum(sizes.values()), units, torch.Generator().manual_seed(seed))
        self.sizes, self.places = sizes, places
        self.w = start.requires_grad_()
        owner = torch.tensor(places).repeat_interleave(torch.tensor(list(sizes.values())))
        self._owned = owner == torch.arange(max(places) + 1)[:, None]  # [place of a factor, row]

    def rows(self) -> Float[Tensor, "dims units"]:
        """The orthonormal rows, differentiable in w."""
        return torch.linalg.qr(self.w.T).Q.T

    def errors(self, pairs: InterchangePairs) -> Float[Tensor, " n"]:
        """Error of each pair where the subspace of its factor is swapped."""
        rows = self.rows().to(pairs.difference)
        inside = torch.einsum("ku,nu...->nk...", rows, pairs.difference)
        own = self._owned.to(inside)[pairs.factor]
        inside = inside * own.view(*own.shape, *[1] * (inside.ndim - 2))
        return pairs.errors(torch.einsum("ku,nk...->nu...", rows, inside))

    def scores(self, pairs: InterchangePairs) -> dict[str, float]:
        """Factor -> 1 - mean squared error / mean squared true change, both of these pairs."""
        errors = _errors(self, pairs) * pairs.scale[pairs.factor]
        size = pairs.truth.square().sum(1)
        members = {name: pairs.factor == place for name, place in zip(self.sizes, self.places, strict=True)}
        return {name: 1 - float(errors[own].sum() / size[own].sum()) for name, own in members.items()}

    def bases(self) -> dict[str, np.ndarray]:
        """Factor -> its rows."""
        blocks = self.rows().detach().split(list(self.sizes.values()))
        return {name: block.numpy().copy() for name, block in zip(self.sizes, blocks, strict=True)}


def _train(
    frame: _Frame,
    training: InterchangePairs,
    validation: InterchangePairs,
    steps: int,
    seed: int,
    advance: Callable[[int], None] | None,
) -> int:
    """Adam on the mean error, until the validation pairs no longer gain; leaves the best frame and returns its step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([frame.w], lr=_RATE)
    least, kept, taken = float(_errors(frame, validation).mean()), frame.w.detach().clone(), 0
    batches: Iterator[Tensor] = iter(())
    for step in range(1, steps + 1):
        rows = next(batches, None)
        if rows is None:
            batches = iter(torch.randperm(len(training), generator=generator).split(_BATCH))
            rows = next(batches)
        with torch.enable_grad():  # for callers who have switched gradients off
            loss = frame.errors(training.rows(rows)).mean()
        if not loss.requires_grad:
            raise ReadoutError(
                "the readout has no gradient in the site (a threshold, an argmax, a detached tensor, or a model that rounds on "
                "the way), so no rotation can be learned."
            )
        (frame.w.grad,) = torch.autograd.grad(loss, [frame.w])
        optimizer.step()
        if advance is not None:
            advance(1)
        if step % _CHECK_EVERY == 0 or step == steps:
            error = float(_errors(frame, validation).mean())
            if error < least - _LEAST:
                least, kept, taken = error, frame.w.detach().clone(), step
            elif step - taken >= _PATIENCE * _CHECK_EVERY:
                break
    with torch.no_grad():
        frame.w.copy_(kept)
    return taken


def _errors(frame: _Frame, pairs: InterchangePairs) -> Float[Tensor, " n"]:
    with torch.no_grad():
        return torch.cat(
            [frame.errors(pairs.rows(slice(i, i + _BATCH))).detach() for i in range(0, len(pairs), _BATCH)]
        )


def _sizes(data: Dataset, factors: Sequence[str], dims: int | Mapping[str, int]) -> dict[str, int]:
    """Directions of each factor."""
    if not factors or len(set(factors)) < len(factors) or not set(factors) <= set(data.factors):
        raise DataError(
            f"learn_rotation got factors={factors!r}; {data.name} has {', '.join(data.factors)}, each once."
        )
    sizes = dict.fromkeys(factors, dims) if isinstance(dims, int) else dict(dims)
    if set(sizes) != set(factors) or not all(isinstance(size, int) and size >= 1 for size in sizes.values()):
        raise DataError(f"dims={dims!r}: expected a positive whole number, or one for each of {', '.join(factors)}.")
    return {factor: sizes[factor] for factor in factors}
