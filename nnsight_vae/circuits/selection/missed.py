"""What a random sample of unseen things says about the rest of them, whatever they are like."""

from __future__ import annotations

from scipy.stats import hypergeom


def missed_at_most(n_unseen: int, n_sampled: int, n_hits: int, confidence: float = 0.95) -> int:
    """Upper confidence bound on the hits among what was not sampled.

    The largest H - n_hits for which as few hits as these in a sample without replacement are not too unlikely,
    P(X <= n_hits | H hits in all) > 1 - confidence: the Clopper-Pearson bound of a finite population.

    Args:
        n_unseen: things in all.
        n_sampled: those looked at, drawn at random.
        n_hits: hits among these.
        confidence: of the bound.

    Source: Buonaccorsi 1987, A note on confidence intervals for proportions in finite populations, Am. Stat. 41, 215-218.

    Example:
        >>> missed_at_most(1000, 200, 0)
        13
        >>> missed_at_most(1000, 1000, 3)
        0
    """
    possible, too_many = n_hits, n_unseen - (n_sampled - n_hits) + 1  # the chance falls as H grows, so bisect
    while too_many - possible > 1:
        middle = (possible + too_many) // 2
        if hypergeom.cdf(n_hits, n_unseen, middle, n_sampled) > 1 - confidence:
            possible = middle
        else:
            too_many = middle
    return possible - n_hits
