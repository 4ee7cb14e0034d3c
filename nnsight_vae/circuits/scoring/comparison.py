"""How much of a ranking of edges is told by scores that intervene on nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from nnsight_vae.circuits.scoring.edges import EdgeScores

_FEWEST = 3  # edges with a rank correlation


class Comparison(NamedTuple):
    """Scores beside one baseline, on the edges of one cut.

    Attributes:
        cut: name of the cut, or "all".
        readout: the target.
        baseline: `weight`, `correlation` or `random`; of the last what is expected.
        spearman: rank correlation of |mean score| with the baseline; None where undefined.
        top: how many edges count as the strongest.
        found: share of the strongest edges that are among the baseline's strongest; where edges tie, the expected share.
        reason: why the rank correlation is undefined, or "".
    """

    cut: str
    readout: str
    baseline: str
    spearman: float | None
    top: int
    found: float
    reason: str


def compared(scores: EdgeScores, share: float) -> tuple[Comparison, ...]:
    """Scores beside each baseline, cut by cut and over all edges, on every target."""
    strength, rows = np.abs(scores.mean()), []
    for t, readout in enumerate(scores.readouts):
        groups = [("all", scores.applies[:, t])]
        groups += [(cut, (scores.cut_of == c) & scores.applies[:, t]) for c, cut in enumerate(scores.cuts)]
        for cut, of in groups:
            own = strength[of, t]
            if not len(own):
                continue
            top = max(1, round(share * len(own)))
            for name, values in scores.beside.items():
                other = np.abs(values[of, t])
                spearman, reason = _spearman(own, other)
                found = float((_top(own, top) * _top(other, top)).sum() / top)
                rows.append(Comparison(cut, readout, name, spearman, top, found, reason))
            rows.append(Comparison(cut, readout, "random", 0.0, top, top / len(own), ""))
    return tuple(rows)


def _spearman(one: Float[np.ndarray, " edge"], other: Float[np.ndarray, " edge"]) -> tuple[float | None, str]:
    from scipy.stats import rankdata

    if len(one) < _FEWEST:
        return None, f"{len(one)} edges only"
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None, f"{'the scores' if np.ptp(one) == 0 else 'the baseline'} are the same for all edges"
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1]), ""


def _top(values: Float[np.ndarray, " edge"], k: int) -> Float[np.ndarray, " edge"]:
    """Each edge's chance of being among the k largest when ties are broken at random."""
    least = np.sort(values)[-k]
    above, tied = values > least, values == least
    return above + tied * (k - above.sum()) / tied.sum()
