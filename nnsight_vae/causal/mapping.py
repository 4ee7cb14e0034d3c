"""Which latents carry which factor: effects of every latent on every factor and back, a matching, and a verdict per latent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.causal.categories import warn_of_categories
from nnsight_vae.causal.factor_answers import factor_answers
from nnsight_vae.causal.factor_map import FactorMap as FactorMap, carried_by
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.engine import activations
from nnsight_vae.errors import DataError, PriorError
from nnsight_vae.levels.codes import drawn_codes
from nnsight_vae.levels.latents import perturb_latents
from nnsight_vae.metrics.polysemanticity_rules import Verdict, verdict_from_bounds
from nnsight_vae.readouts import Readout
from nnsight_vae.results.effects import Effects
from nnsight_vae.stats.significance import benjamini_hochberg
from nnsight_vae.stats.skewness import one_sided_pvalues, simultaneous_interval
from nnsight_vae.vae import VAE


def map_factors(
    vae: VAE,
    data: Dataset,
    *,
    n: int = 256,
    seed: int = 0,
    readout: Readout | None = None,
    min_effect: float = 0.3,
    min_answer: float = 0.1,
    level: float = 0.95,
    progress: bool | None = None,
) -> FactorMap:
    """Which latents carry which factor, and whether each is monosemantic, with error control.

    Args:
        vae: the model.
        data: a dataset with factors; its images are encoded, its readout judges the decoded images.
        n: number of images, and of pairs per factor.
        seed: of the images.
        readout: a readout of the factors; `data.readout()` by default.
        min_effect: the smallest size that counts, in factor standard deviations. Moving a latent that carries a factor
            perfectly from its 5 % to its 95 % quantile moves the factor by about 3.3.
        min_answer: the smallest change of a latent under do(factor) alone that counts, in sd of its aggregate posterior. A latent
            that is one Gaussian factor changes by 1.1.
        level: simultaneous coverage of the intervals of both sides, half of the rest for each.
        progress: show a bar; by default on an interactive terminal.

    Returns: `FactorMap`; print it for a table.

    Raises:
        DataError: fewer than 20 images, or images this model cannot run.
        ReadoutError: no factor can be read reliably.

    Warns:
        NnsightVaeWarning: a categorical factor is read as a number; matched pairs differ in more than their factor.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> found = map_factors(vae, data, n=32)
        >>> sorted(found.assignment) == sorted(data.factors)
        True
    """
    require(vae, data=data)
    if n < 20:
        raise DataError(
            f"map_factors got n={n}; at least 20 images are needed for intervals that mean anything (default 256)."
        )
    if not min_effect > 0 or not min_answer > 0 or not 0 < level < 1:
        raise DataError(
            f"map_factors needs min_effect > 0, min_answer > 0 and 0 < level < 1, got {min_effect}, {min_answer} and {level}."
        )
    readout = data.readout() if readout is None else readout
    warn_of_categories(data, readout)
    x = data.sample(n, seed=seed).images
    coded = vae.adapter.codebook is not None
    effects = perturb_latents(vae, x, "codes" if coded else "posterior", readout=readout, progress=progress)
    magnitude = _over_codes(vae, x, effects) if coded else np.abs(effects.values)
    each_side = (1 + level) / 2
    answers = factor_answers(vae, data, effects.targets, n, seed, min_answer, each_side)
    size = magnitude.mean(axis=2)
    low, high = simultaneous_interval(magnitude, each_side)
    return FactorMap(
        effects=effects,
        size=size,
        low=low,
        high=high,
        q=benjamini_hochberg(one_sided_pvalues(magnitude, min_effect)[0]),
        verdicts=tuple(_verdict(low[k], high[k], min_effect, answers.silent(k)) for k in range(len(size))),
        assignment=_assign(size, carried_by(low, effects.targets, min_effect, answers), effects.targets),
        magnitude=magnitude,
        kl=_kl(vae, x, len(magnitude)),
        min_effect=min_effect,
        level=level,
        data=data.name,
        answers=answers,
    )


def _over_codes(vae: VAE, x: Tensor, effects: Effects) -> Float[np.ndarray, "position factor example"]:
    """|effect| of each code, averaged over the codes as they are used; signed effects of different codes would cancel."""
    codes, shares = drawn_codes(vae, x)
    return np.tensordot(shares, np.abs([effects.parts[f"code {code}"].values for code in codes]), axes=1)


def _kl(vae: VAE, x: Tensor, n_latents: int) -> Float[np.ndarray, " latent"] | None:
    if vae.adapter.codebook is not None:  # of one code against a uniform draw (van den Oord et al. 2017, section 3.1)
        return np.full(n_latents, np.log(len(vae.adapter.codebook)))
    acts = activations(vae, x, ["latent.mu", "latent.logvar"])
    try:
        nats = vae.law(acts["latent.mu"], acts["latent.logvar"]).kl()
    except PriorError:
        return None
    return nats.transpose(0, 1).flatten(1).mean(1).double().cpu().numpy()


def _verdict(
    low: Float[np.ndarray, " factor"], high: Float[np.ndarray, " factor"], least: float, silent: bool | None
) -> Verdict:
    """By what the latent moves, if it answers to a factor; one that does not is dead whatever it moves."""
    moves = verdict_from_bounds(low, high, least)
    if silent:
        return "dead"
    return "undetermined" if silent is None and moves != "dead" else moves


def _assign(
    size: Float[np.ndarray, "latent factor"], carried: Bool[np.ndarray, "latent factor"], factors: tuple[str, ...]
) -> dict[str, int | None]:
    """One-to-one matching that maximises the summed sizes of what is carried (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    # What is not carried must not tip the balance between effects that are.
    rows, columns = linear_sum_assignment(np.where(carried, size, 0.0), maximize=True)
    found = {factors[j]: int(k) for k, j in zip(rows, columns, strict=True) if carried[k, j]}
    return {factor: found.get(factor) for factor in factors}
