"""From tests of every unit on every factor to one verdict a unit, with the error controlled over all units."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from nnsight_vae.stats.discovery import DiscoveryMethod
from nnsight_vae.stats.significance import benjamini_hochberg, benjamini_yekutieli

Verdict = Literal["dead", "monosemantic", "polysemantic", "undetermined"]
VERDICTS: tuple[Verdict, ...] = ("dead", "monosemantic", "polysemantic")  # those that say something
_WAYS = 2  # in which a unit can be said to move factors


class Chance(NamedTuple):
    """What a random direction of a unit's layer would do, as p-values.

    Attributes:
        standing: of "a random direction of the same length moves this factor as much".
        selective: of "a random direction is as much of one factor".
    """

    standing: Float[np.ndarray, "unit factor"]
    selective: Float[np.ndarray, " unit"]


class Judged(NamedTuple):
    """Verdicts of units.

    Attributes:
        verdicts: one a unit.
        factors: for each unit, the numbers of the factors that its verdict names: one of a monosemantic unit, two or more of a
            polysemantic one.
        p: for each unit, the p-value of what it is nearest to being called, dead or alive, being wrong.
        q: the same, adjusted over units.
        by_chance: for each unit, whether it is undetermined because random directions do as much: its effects alone would have made
            it mono- or polysemantic.
    """

    verdicts: tuple[Verdict, ...]
    factors: tuple[tuple[int, ...], ...]
    p: Float[np.ndarray, " unit"]
    q: Float[np.ndarray, " unit"]
    by_chance: tuple[bool, ...]


def verdict_pvalues(
    above: Float[np.ndarray, "unit factor"], below: Float[np.ndarray, "unit factor"]
) -> Float[np.ndarray, "verdict unit"]:
    """For each of dead, monosemantic and polysemantic, the p-value of "this is not so".

    With `above` p-values of "the effect on f is at most the minimum" and `below` of "it is at least the minimum", K factors, (i)
    the i-th smallest over factors:

        dead            max_f below                              intersection-union: one effect that counts makes it wrong
        monosemantic    max(K above_(1), 2 below_(K-1))          wrong if none is above, if two are not below, or if it is
                                                                 another factor than that of above_(1)
        polysemantic    K above_(2)                              wrong if fewer than two are above, or not the two named

    Each is valid whatever the dependence between factors. Where no effect is above, K above_(1) is Bonferroni's. Where two or
    more, m of them, are not below, below_(K-1) <= x makes m - 1 of m valid p-values <= x, which by Markov's inequality has a chance
    of at most x m / (m - 1) <= 2x. Where only f is not below, naming another factor g needs above_g <= x / K.

    Args:
        above: small where a factor is moved.
        below: small where it is not.

    Source: Berger 1982, Technometrics 24, 295-300 (intersection-union); Benjamini & Heller 2008, Biometrics 64, 1215-1222
        (partial conjunction).

    Example:
        >>> above, below = np.array([[0.001, 0.99, 0.99]]), np.array([[0.999, 0.01, 0.01]])
        >>> verdict_pvalues(above, below)[:, 0].tolist()
        [0.999, 0.02, 1.0]
    """
    k = above.shape[1]
    rising, falling = np.sort(above, axis=1), -np.sort(-below, axis=1)
    others = 2 * falling[:, 1] if k > 1 else np.zeros(len(above))
    second = k * rising[:, 1] if k > 1 else np.ones(len(above))
    return np.minimum([falling[:, 0], np.maximum(k * rising[:, 0], others), second], 1.0)


def judge(
    above: Float[np.ndarray, "unit factor"],
    below: Float[np.ndarray, "unit factor"],
    chance: Chance | None = None,
    *,
    q: float = 0.05,
    method: DiscoveryMethod = "bh",
) -> Judged:
    """A verdict for each unit; of those called mono- or polysemantic, and of those called dead, a share of at most q is wrong.

    The rates are expected ones. A unit can be wrongly called one of two things that say that it moves factors, so there its p-value
    is twice the lesser of the two of `verdict_pvalues`, and the chance that it is wrongly called either at level a is at most a.
    Benjamini-Hochberg over units then holds the rate for independent units; "by" whatever their dependence. The dead are a family
    of their own: however many they are, they do not vouch for the others. A verdict that names a wrong factor is wrong.

    Args:
        above: small where a factor is moved by more than the minimum.
        below: small where it is moved by less.
        chance: p-values of "a random direction of the layer does as much", where they are known. They are part of what makes a unit
            polysemantic, for a random direction moves a bit of everything, and of what makes it monosemantic.
        q: false verdict rate.
        method: `"bh"` or `"by"`.

    Example:
        >>> above = np.array([[1e-6, 0.9999], [1e-6, 1e-6], [0.9999, 0.9999], [0.3, 0.9999]])
        >>> judge(above, 1 - above).verdicts
        ('monosemantic', 'polysemantic', 'dead', 'undetermined')
    """
    adjust = benjamini_hochberg if method == "bh" else benjamini_yekutieli
    moves, (dead, mono, poly) = above, verdict_pvalues(above, below)
    if chance is not None:
        moves = np.maximum(above, chance.standing)
        mono, poly = np.maximum(mono, chance.selective), verdict_pvalues(moves, below)[2]
    alive = np.minimum(_WAYS * np.minimum(mono, poly), 1.0)
    adjusted_dead, adjusted_alive = adjust(dead), adjust(alive)
    given = adjusted_alive <= q
    cut = alive[given].max(initial=0.0) / (_WAYS * above.shape[1])  # what the procedure came down to, a factor
    verdicts, factors = [], []
    for u in range(len(above)):
        verdict: Verdict = "dead" if adjusted_dead[u] <= q else "undetermined"
        named: tuple[int, ...] = ()
        if given[u] and mono[u] <= poly[u]:
            verdict, named = "monosemantic", (int(above[u].argmin()),)
        elif given[u]:
            two = np.sort(moves[u])[1]  # those of its p-value are named, whatever rounding makes of the cut
            verdict, named = "polysemantic", tuple(np.flatnonzero(moves[u] <= max(cut, two)).tolist())
        verdicts.append(verdict)
        factors.append(named)
    closer = dead < alive
    alone = verdicts if chance is None else judge(above, below, q=q, method=method).verdicts
    by_chance = [own == "undetermined" and other != own for own, other in zip(verdicts, alone, strict=True)]
    return Judged(
        tuple(verdicts),
        tuple(factors),
        np.where(closer, dead, alive),
        np.where(closer, adjusted_dead, adjusted_alive),
        tuple(by_chance),
    )


def verdict_from_bounds(low: Float[np.ndarray, " factor"], high: Float[np.ndarray, " factor"], least: float) -> Verdict:
    """The verdict that follows where each factor's size is known to lie between two bounds.

    Example:
        >>> verdict_from_bounds(np.array([0.4, 0.0]), np.array([0.6, 0.1]), 0.3)
        'monosemantic'
    """
    above, below = low > least, high < least
    if below.all():
        return "dead"
    if above.sum() >= 2:
        return "polysemantic"
    if above.sum() == 1 and below.sum() == len(low) - 1:
        return "monosemantic"
    return "undetermined"
