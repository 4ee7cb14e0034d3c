"""Which latents a VAE uses: what its encoder writes into each, in nats, and how far the posterior mean moves over data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.dead import COLLAPSED
from nnsight_vae.metrics.resampling import checked, estimate
from nnsight_vae.metrics.scores import LatentScores, Score

if TYPE_CHECKING:
    import pandas as pd

ACTIVE = 0.01  # variance of the posterior mean above which Burda et al. call a unit active


class Activity(NamedTuple):
    """How much a VAE uses each latent.

    Attributes:
        kl: KL(q(z_k|x) || N(0, 1)) of each latent in nats, mean over examples.
        variance: variance of each latent's posterior mean over examples.
        active_units: how many latents have a variance above 0.01 (Burda et al. 2016).
        informed_units: how many latents have a KL above 0.01 nats.
    """

    kl: LatentScores
    variance: LatentScores
    active_units: Score
    informed_units: Score

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return str(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per latent: latent, unit, then kl and variance, each with its interval `_low` and `_high`."""
        tables = {"kl": self.kl.to_frame(), "variance": self.variance.to_frame()}
        frame = tables["kl"][["latent", "unit"]].copy()
        for name, table in tables.items():
            frame[[name, f"{name}_low", f"{name}_high"]] = table[["value", "ci_low", "ci_high"]]
        return frame


def activity(
    mu: Float[np.ndarray, "example latent *position"],
    logvar: Float[np.ndarray, "example latent *position"],
    *,
    kl: Float[np.ndarray, "example latent *position"] | None = None,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> Activity:
    """KL and posterior-mean variance of each latent, and how many latents are active by either.

        KL_k = E_x (mu_k^2 + exp(logvar_k) - 1 - logvar_k) / 2,   A_k = Var_x(mu_k)         of a Gaussian posterior

    Of a latent with positions, KL_k is the sum over positions (nats add up), A_k the mean over positions of the variances.

    Args:
        mu: posterior means.
        logvar: posterior log variances.
        kl: KL of each example's posterior from its prior in nats, where it is no Gaussian.
        level: coverage of the intervals.
        n_boot: resamples of the examples.
        seed: of the resampling.

    Returns: `Activity(kl, variance, active_units, informed_units)`. A count's interval is the percentile interval of the count.

    Raises:
        DataError: arrays that are empty, not finite, or of two shapes.

    Source: Burda et al. 2016, arXiv 1509.00519, section 5 (active units); Kingma and Welling 2014, arXiv 1312.6114 (KL).

    Example:
        >>> mu = np.array([[2.0, 0.0], [-2.0, 0.0]])
        >>> found = activity(mu, np.zeros((2, 2)))
        >>> found.kl.values, found.variance.values, found.active_units.value
        ((2.0, 0.0), (4.0, 0.0), 1.0)
    """
    axes = ("example", "latent", "*position")
    mu = checked(mu, "mu", axes)
    logvar = checked(logvar, "logvar", axes)
    if logvar.shape != mu.shape:
        raise DataError(f"mu has shape {mu.shape} and logvar {logvar.shape}; expected one of each for every latent.")
    given = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar) if kl is None else checked(kl, "kl", axes)
    if given.shape != mu.shape:
        raise DataError(f"mu has shape {mu.shape} and kl {given.shape}; expected one of each for every latent.")
    n, n_latents = mu.shape[:2]
    nats = given.reshape(n, n_latents, -1).sum(axis=2)
    # The centre is held in every resample; see `squared_deviations`.
    variances = ((mu - mu.mean(axis=0)) ** 2).reshape(n, n_latents, -1).mean(axis=2)

    def count(scores: Float[np.ndarray, "resample latent"], above: float) -> Float[np.ndarray, "resample 1"]:
        return (scores > above).sum(axis=1, keepdims=True).astype(float)

    options = (level, n_boot, seed)
    per_latent = {
        "KL (nats)": estimate(nats, lambda means: means, *options),
        "variance of the posterior mean": estimate(variances, lambda means: means, *options),
    }
    active, (active_ci,) = estimate(variances, lambda means: count(means, ACTIVE), *options)
    informed, (informed_ci,) = estimate(nats, lambda means: count(means, COLLAPSED), *options)
    of = f"of {n_latents} latents"
    scores = [
        LatentScores(name, "per latent", tuple(values.tolist()), tuple(ci), ("",) * n_latents)
        for name, (values, ci) in per_latent.items()
    ]
    return Activity(
        scores[0],
        scores[1],
        Score("active units", f"variance > {ACTIVE:g}", float(active[0]), active_ci, of),
        Score("informed units", f"KL > {COLLAPSED:g} nats", float(informed[0]), informed_ci, of),
    )
