"""A verdict for each unit of any layer: does it stand for one factor, for several, or for none?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from nnsight_vae.arguments import require
from nnsight_vae.causal.categories import warn_of_categories
from nnsight_vae.causal.conditional_randomization import (
    Conditional,
    conditional_pvalues,
    draws_needed,
    linear_conditional,
    partial_correlations,
)
from nnsight_vae.causal.single_factor_pairs import single_factor_pairs
from nnsight_vae.causal.unit_effects import answers_of_units, effects_of_units
from nnsight_vae.datasets.base import Dataset
from nnsight_vae.errors import DataError
from nnsight_vae.levels.answers import unit_blocks, unit_means
from nnsight_vae.levels.units import default_sites
from nnsight_vae.metrics.polysemanticity_rules import judge
from nnsight_vae.metrics.polysemanticity_verdicts import UnitVerdicts, as_verdicts, check_options, verdicts_from_effects
from nnsight_vae.readouts import Readout
from nnsight_vae.sites import Key
from nnsight_vae.stats.discovery import DiscoveryMethod
from nnsight_vae.vae import VAE

Side = Literal["encoder", "decoder", "observed"]

_FEWEST_RANDOM = 16  # directions
_REFERENCE = 256  # images that a unit's sd is over at least
_MIN_EFFECT: dict[Side, float] = {"encoder": 0.2, "decoder": 0.1, "observed": 0.0}


def unit_verdicts(
    vae: VAE,
    data: Dataset,
    sites: Sequence[Key] | None = None,
    *,
    side: Side = "encoder",
    factors: Sequence[str] | None = None,
    n: int = 256,
    min_effect: float | None = None,
    rate: float = 0.05,
    method: DiscoveryMethod = "bh",
    readout: Readout | None = None,
    n_random: int = 64,
    conditional: Conditional | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> UnitVerdicts:
    """Dead, monosemantic, polysemantic or undetermined: a verdict for each unit, at a controlled rate of false ones.

    side="encoder"    What changes the unit. Images that differ in factor f alone (all others held, whatever causes what in the
                      world), and |change of the unit| in its own observational sd. A unit that is one Gaussian factor has size
                      1.1; one of whose variance f makes 3 % has .2, the default minimum.
    side="decoder"    What the unit changes: it is moved from one sd below its value to one above, and what is read of the decoded
                      image changes by |effect| in factor sd (minimum .1). Random directions of its layer, as long, set what
                      chance does: a polysemantic unit moves two factors more, a monosemantic one is more of one factor.
    side="observed"   Observed images only: is the unit independent of f given all other factors (conditional randomisation)? Two
                      dependences make a unit polysemantic; without interventions no unit can be shown *not* to depend on a
                      factor, so none is dead or monosemantic.

    A random mixture of pixels changes with every factor, so on the encoder side most units of an untrained network are polysemantic
    in truth; on the decoder side they are random directions, and so are the latents of a model that is right but rotated: nothing
    is declared of them, the result says why (`reasons`), and `learn_rotation` finds the directions that the factors do have. A unit that moves one factor alone is monosemantic although other units of its layer move it too.

    Args:
        vae: the model.
        data: a data set with factors. Without a causal model its pairs are matched images, whose other factors agree only nearly.
        sites: which units, by key; by default those of every linear and convolutional layer of that side, and `latent.z`.
        side: as above.
        factors: which factors; by default all of the data (encoder, observed) or of the readout (decoder).
        n: pairs per factor, or images.
        min_effect: the smallest size of interest; of `"observed"` there is none.
        rate: expected share of wrong verdicts, at most, among units called mono- or polysemantic and among those called dead.
        method: `"by"` holds it under any dependence between units.
        readout: for the decoder side; `data.readout()` by default.
        n_random: random directions of each layer.
        conditional: for the observed side, draws a factor given the others; known of `SCM.linear`.
        seed: of everything random.
        progress: show a bar; by default on an interactive terminal.

    Returns: `UnitVerdicts`; print it.

    Raises:
        SiteError, ReadoutError: unknown sites; nothing can be read.
        InterventionError: the spread of a code on the decoder side.
        DataError: options that do not fit; no factor that varies; a conditional that is not known.

    Warns:
        NnsightVaeWarning: on the decoder side a categorical factor is read as a number, and judged by it.

    Source: do(factor) with all else held is a controlled direct effect (Pearl 2001); minimum effects and equivalence after
        Schuirmann 1987; conditional randomisation, Candes et al. 2018.

    Example:
        >>> import nnsight_vae as nv
        >>> vae, data = nv.load("pendulum-labelled-vae"), nv.datasets.load("pendulum")
        >>> found = unit_verdicts(vae, data, ["latent.mu"], n=32)
        >>> len(found.verdicts) == len(found.units), found.factors == data.factors
        (True, True)
    """
    require(vae, data=data)
    if side not in get_args(Side):
        raise DataError(f"side={side!r}; expected 'encoder', 'decoder' or 'observed'.")
    least = _MIN_EFFECT[side] if min_effect is None else min_effect
    check_options(least if side != "observed" else 1.0, rate, method)
    if n < 20:
        raise DataError(f"n={n}: a verdict needs at least 20 pairs or images (default 256).")
    if n_random < _FEWEST_RANDOM:
        raise DataError(
            f"n_random={n_random}: what chance does is taken over at least {_FEWEST_RANDOM} random directions."
        )
    if side != "decoder" and (unknown := [f for f in factors or () if f not in data.factors]):
        raise DataError(f"{data.name} has no factors {', '.join(unknown)}; its factors are {', '.join(data.factors)}.")
    where = list(sites) if sites is not None else _sites_of(vae, side)
    if side == "decoder":
        read = data.readout(factors) if readout is None else readout
        warn_of_categories(data, read)
        found = effects_of_units(
            vae, data.sample(n, seed).images, where, read, n_random=n_random, seed=seed, progress=progress
        )
        notes = [f"moved by 2 sd of the unit, read in factor sd of {data.name}"]
        estimand = "mean |change of the factor| under do(unit), factor sd"
    elif side == "encoder":
        pairs, missing = single_factor_pairs(data, factors or data.factors, n, seed)
        if not pairs:
            raise DataError(f"{data.name} has no pairs that differ in one factor: {'; '.join(missing.values())}")
        found = answers_of_units(vae, pairs, where, _reference(data, n, seed), progress)
        notes = [f"{factor} is left out: {why}" for factor, why in missing.items()]
        estimand = "mean |change of the unit| under do(factor) alone, sd of the unit"
    else:
        return _observed(vae, data, where, tuple(factors or data.factors), n, conditional, rate, method, seed)
    return verdicts_from_effects(
        found.values,
        min_effect=least,
        rate=rate,
        method=method,
        units=found.units,
        factors=found.factors,
        random=found.random,
        n_random=n_random,
        estimand=estimand,
        notes=notes,
    )


def _sites_of(vae: VAE, side: Side) -> list[str]:
    """Default sites of the encoder and the latent, or of the latent and the decoder; codes cannot be moved by a spread."""
    stages = ("latent", "decoder") if side == "decoder" else ("encoder", "latent")
    coded = side == "decoder" and vae.adapter.codebook is not None
    return [
        site for site in default_sites(vae) if vae.sites[site].stage in stages and not (coded and site == "latent.z")
    ]


def _reference(data: Dataset, n: int, seed: int) -> Tensor:
    return data.sample(min(max(n, _REFERENCE), data.n_images or n + _REFERENCE), seed).images


def _conditional(data: Dataset, conditional: Conditional | None) -> Conditional:
    if conditional is not None:
        return conditional
    scm = getattr(data, "scm", None)
    if scm is None:
        raise DataError(
            f"{data.name} has no causal model that would say how a factor is distributed given the others; pass conditional=."
        )
    return linear_conditional(scm)


def _observed(
    vae: VAE,
    data: Dataset,
    sites: Sequence[Key],
    factors: tuple[str, ...],
    n: int,
    conditional: Conditional | None,
    rate: float,
    method: DiscoveryMethod,
    seed: int,
) -> UnitVerdicts:
    draw, batch = _conditional(data, conditional), data.sample(n, seed)
    names, blocks = unit_blocks(vae, sites)
    means = unit_means(vae, vae.checked(batch.images), None, blocks).values
    table = batch.factors.double().numpy()
    n_draws = draws_needed(len(names), len(factors), rate)
    columns = [data.factors.index(factor) for factor in factors]
    p = conditional_pvalues(means, table, draw, columns=columns, n_draws=n_draws, seed=seed)
    note = f"{n_draws} draws: no p-value of a unit and factor is below {1 / (n_draws + 1):.1g}"
    return as_verdicts(
        judge(p, np.ones_like(p), q=rate, method=method),
        names,
        factors,
        size=partial_correlations(means, table, columns),
        low=None,
        high=None,
        random=None,
        min_effect=0.0,
        rate=rate,
        method=method,
        estimand="|partial correlation of unit and factor| given the other factors",
        undecided="not two dependences are shown, and observation cannot show that there is no second one",
        notes=(note,),
    )
