"""Metrics of what a decoder makes of moved latents: does a factor follow its own latents, and nothing but those?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from nnsight_vae.errors import DataError
from nnsight_vae.metrics.resampling import checked
from nnsight_vae.metrics.tables import FactorScore, require_count

_READ_SIGNED = "the value is blind to which latents carry a factor: read signed beside signed of unrelated latents"


def counterfactual_generativeness(
    alone: Float[np.ndarray, "latent factor example"],
    others: Float[np.ndarray, "latent factor example"],
    latent_of: Int[np.ndarray, " factor"],
    *,
    reach: Float[np.ndarray, " factor"] | None = None,
    n_null: int = 20,
    seed: int = 0,
) -> FactorScore:
    """Counterfactual generativeness: does the decoded factor follow its own latent, and not all the others?

    With k the latent of factor i, ``CG = mean_i E_n | |alone_kin| - |others_kin| | / reach_i``. As published it is blind to the sign:
    a factor that all the other latents carry scores as high as one that its own carries, so that the published value cannot tell a
    perfect model from latents chosen at random (1 for both where every factor has a latent of its own; .82 against .83 was measured
    on a trained one). Do not read it alone. The part `signed` leaves the outer bars out, and is negative where others carry the
    factor: read `signed` beside `signed of unrelated latents`, which is what chance gets of it.

    Args:
        alone: change of the readout of every factor when one latent is moved as far from its value as the data go. Published with
            the probability that a classifier gives to the factor's true value; any readout of the factor will do.
        others: the same when all latents but that one are moved so.
        latent_of: the latent of each factor, such as `irs(codes, factors).matrix.argmax(axis=0)`.
        reach: the largest change that counts as whole, such as how far the factor itself can go; 1 for probabilities.
        n_null: random choices of the latents, for the value of unrelated ones.
        seed: of these.

    Returns: the score, 1 where each factor goes all its way with its own latent and stays put otherwise; `matrix` the signed score
        of each latent as that of each factor.

    Raises:
        DataError: arrays that do not fit each other.

    Source: Reddy et al. 2022 (arXiv 2112.05746), definition 4.2, with one latent a factor.

    Example:
        >>> alone = np.eye(2)[:, :, None] * np.ones(5)
        >>> found = counterfactual_generativeness(alone, 1 - alone, np.array([0, 1]))
        >>> found.value, found.null, found.parts["signed"], found.parts["signed of unrelated latents"] < 0.5
        (1.0, 1.0, 1.0, True)
    """
    require_count("n_null", n_null, least=0)
    axes = ("latent", "factor", "example")
    alone, others = checked(alone, "alone", axes), checked(others, "others", axes)
    n_latents, n_factors = alone.shape[:2]
    chosen, whole = np.asarray(latent_of), np.ones(n_factors) if reach is None else np.asarray(reach, dtype=np.float64)
    if others.shape != alone.shape or chosen.shape != (n_factors,) or whole.shape != (n_factors,):
        raise DataError(
            f"alone {alone.shape}, others {others.shape}, latent_of {chosen.shape} and reach {whole.shape} do not fit: expected the "
            "first two alike, and one entry a factor in the others."
        )
    if chosen.dtype.kind not in "iu" or not ((chosen >= 0) & (chosen < n_latents)).all() or not (whole > 0).all():
        raise DataError(
            f"expected latent_of in 0 ... {n_latents - 1} and reach above 0; got {latent_of!r} and {reach!r}."
        )
    gap = (np.abs(alone) - np.abs(others)) / whole[:, None]
    sizes, signed = np.abs(gap).mean(axis=2), gap.mean(axis=2)
    factors = np.arange(n_factors)
    rng = np.random.default_rng(seed)
    draws = [rng.integers(n_latents, size=n_factors) for _ in range(n_null)]
    nulls = [float(sizes[draw, factors].mean()) for draw in draws]
    null, high = (float(np.mean(nulls)), max(nulls)) if nulls else (None, None)
    parts = {"signed": float(signed[chosen, factors].mean())}
    if draws:
        parts["signed of unrelated latents"] = float(np.mean([signed[draw, factors].mean() for draw in draws]))
    value = float(sizes[chosen, factors].mean())
    return FactorScore("counterfactual generativeness", value, null, high, parts, signed, _READ_SIGNED)


def causal_disentanglement(
    effects: Float[np.ndarray, "latent factor"],
    descends: Bool[np.ndarray, "cause effect"],
    *,
    n_null: int = 20,
    seed: int = 0,
) -> FactorScore:
    """CDM: does moving a latent change the factor that it carries and that factor's effects, and nothing else?

    A latent carries the factor that it moves most; one that moves nothing carries none and is left out. The value is the mean effect
    on what should move (the factor and its descendants), the part `robustness` 1 - the mean effect on what should not. A decoder
    whose latents do not act on each other leaves a factor's descendants where they were, and so cannot have the whole value.

    What is the authors' and what is not. Checked against their program (repository an-seunghwan/CDG-VAE, `metric.py`): the table of
    effects, latents at the two ends of their posterior means over the data and the absolute value taken of the mean ("lower" there;
    "upper" takes the mean of absolute values). They read factors as probabilities of a classifier, know by supervision which latent
    is whose, let the descendants of a moved latent follow the model's own causal layer, and report the table. Not checked: the
    assignment by the largest effect and the two means, which are those of a re-implementation; of the paper the abstract alone was
    read.

    Args:
        effects: | E[factor under do(z_k = largest)] - E[factor under do(z_k = smallest)] |, as a share of the factor's range;
            cut at 1.
        descends: whether a factor (down) is a cause, direct or not, of another (across).
        n_null: permutations of the factors in `descends`, for the value of an unrelated graph.
        seed: of these.

    Returns: the mean effect on what should move, in [0, 1], None where nothing moves; without the part `robustness` where everything
        should move; `matrix` the effects.

    Raises:
        DataError: arrays that do not fit, effects that are negative, a graph with a cycle, or one of direct causes only.

    Source: An et al. 2023 (arXiv 2302.11737), causal disentanglement metric.

    Example:
        >>> chain = np.array([[False, True], [False, False]])  # 0 -> 1
        >>> print(causal_disentanglement(np.array([[0.9, 0.8], [0.0, 1.0]]), chain, n_null=0))
        CDM: 0.9; robustness: 1
    """
    require_count("n_null", n_null, least=0)
    effects = checked(effects, "effects", ("latent", "factor"))
    k = effects.shape[1]
    below = np.asarray(descends)
    if below.dtype != bool or below.shape != (k, k) or (effects < 0).any():
        raise DataError(
            f"effects {effects.shape} with least {effects.min():.3g}, and descends {below.dtype} {below.shape}: expected effects of "
            f"at least 0, and a truth value for every pair of the {k} factors."
        )
    if (below & below.T).any():
        raise DataError("descends has factors that cause themselves or each other: the graph has a cycle.")
    if ((below.astype(int) @ below > 0) & ~below).any():
        raise DataError(
            "descends holds causes of causes that are not causes: expected direct and indirect ones, as nx.transitive_closure."
        )
    share = effects.clip(max=1)
    moving = effects.any(axis=1)
    if not moving.any():
        return FactorScore("CDM", None, matrix=share, note="undefined: no latent moves any factor")
    used, carried = share[moving], effects[moving].argmax(axis=1)

    def score(below: Bool[np.ndarray, "cause effect"]) -> tuple[float, float | None]:
        moves = (below | np.eye(k, dtype=bool))[carried]
        return float(used[moves].mean()), None if moves.all() else 1 - float(used[~moves].mean())

    value, robustness = score(below)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(k) for _ in range(n_null)]
    nulls = [score(below[np.ix_(order, order)])[0] for order in orders]
    null, high = (float(np.mean(nulls)), max(nulls)) if nulls else (None, None)
    parts = {} if robustness is None else {"robustness": robustness}
    notes = ["unrelated: the same graph over permuted factors"] if orders else []
    if not moving.all():
        notes.append(f"latents {np.flatnonzero(~moving).tolist()} move nothing and are left out")
    return FactorScore("CDM", value, null, high, parts, share, "; ".join(notes))
