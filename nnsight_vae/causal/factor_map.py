"""`FactorMap`: which latents carry which factor, and what a map of them says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from nnsight_vae.causal.factor_answers import FactorAnswers
from nnsight_vae.metrics.polysemanticity_rules import Verdict
from nnsight_vae.results.effects import Effects

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class FactorMap:
    """Effects of every latent on every factor and of every factor on every latent, with simultaneous intervals and verdicts.

    Decoder side: a latent is moved across its own aggregate posterior (5 % to 95 % quantile). m_kf = E |effect of latent k on factor
    f|, in factor standard deviations. Of a VAE with a codebook the latents are its positions, each given the codes that the images
    use, and the effect's absolute value is averaged over codes, weighted by use, before it is over images.

    Encoder side: factor f is changed alone in the data, all others held. r_kf = E |change of latent k|, in standard deviations of
    its aggregate posterior (`answers`).

    A latent *carries* a factor when both are above their minimum; where a factor cannot be changed alone, when m_kf is. By what a
    latent moves, its verdict is

    dead            every m_kf is below `min_effect`, or the latent answers to no factor: every r_kf is below its minimum
    monosemantic    it answers to a factor, one m_kf is above (its lower bound is), every other below
    polysemantic    it answers to a factor, two or more m_kf are above
    undetermined    anything else: the data do not decide

    The bounds of all sizes hold at once with probability `level`, so that is the chance that every verdict, every assignment and
    every factor said to be carried is right. The probability is that of t intervals with their skewness removed, .90 to .97 at
    90 % in simulation (`nnsight_vae.stats.skewness`); it does not cover effects so rare that the images at hand may not show any.

    Attributes:
        effects: signed effects [latent, factor, example]; `Effects` with all its methods.
        size: m_kf, [latent, factor].
        low: lower simultaneous bounds of `size`.
        high: upper simultaneous bounds of `size`.
        q: Benjamini-Hochberg-adjusted p-values of "m_kf is at most `min_effect`", over latents x factors.
        verdicts: one per latent.
        assignment: factor -> its latent under the one-to-one matching that maximises the summed sizes of the factors that latents
            carry; None where no latent is left that carries the factor.
        magnitude: |effect|, [latent, factor, example]; of codes, its mean over codes as used.
        kl: mean KL(q(z_k|x) || prior) per latent, nats; of a code against codes drawn alike, log K. None where the prior of a latent
            is not known (a flow, a ladder) or its posterior has no KL of its own.
        min_effect: the smallest size of interest, in factor standard deviations.
        level: simultaneous coverage of all bounds, those of `answers` included.
        data: name of the dataset.
        answers: the encoder side.
    """

    effects: Effects
    size: Float[np.ndarray, "latent factor"]
    low: Float[np.ndarray, "latent factor"]
    high: Float[np.ndarray, "latent factor"]
    q: Float[np.ndarray, "latent factor"]
    verdicts: tuple[Verdict, ...]
    assignment: dict[str, int | None]
    magnitude: Float[np.ndarray, "latent factor example"]
    kl: Float[np.ndarray, " latent"] | None
    min_effect: float
    level: float
    data: str
    answers: FactorAnswers

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors, in column order."""
        return self.effects.targets

    def unit(self, factor: str) -> str | None:
        """Key of the latent that a factor is assigned to: `"latent.z[2]"`, or `"latent.z@1,0"` of a code."""
        k = self.assignment[factor]
        return None if k is None else self.effects.units[k]

    @property
    def carried(self) -> Bool[np.ndarray, "latent factor"]:
        """Which latents carry which factors: many to many."""
        return carried_by(self.low, self.factors, self.min_effect, self.answers)

    def latents_of(self, factor: str) -> tuple[int, ...]:
        """All latents that carry a factor, the one that moves it most first."""
        j = self.factors.index(factor)
        return tuple(int(k) for k in np.argsort(-self.size[:, j], kind="stable") if self.carried[k, j])

    def factors_of(self, latent: int) -> tuple[str, ...]:
        """All factors that a latent carries, the one that it moves most first."""
        order = np.argsort(-self.size[latent], kind="stable")
        return tuple(self.factors[j] for j in order if self.carried[latent, j])

    @property
    def unmatched(self) -> tuple[int, ...]:
        """Latents that no factor is assigned to."""
        taken = set(self.assignment.values())
        return tuple(k for k in range(len(self.verdicts)) if k not in taken)

    @property
    def unmatched_factors(self) -> tuple[str, ...]:
        """Factors that are assigned to no latent."""
        return tuple(factor for factor, k in self.assignment.items() if k is None)

    @property
    def order(self) -> Int[np.ndarray, " latent"]:
        """Latents by falling KL, as tables and pictures show them; by their largest effect where KL is not known."""
        return np.argsort(-(self.size.max(axis=1) if self.kl is None else self.kl), kind="stable")

    @property
    def dead(self) -> tuple[int, ...]:
        """Latents whose verdict is dead."""
        return tuple(k for k, verdict in enumerate(self.verdicts) if verdict == "dead")

    def to_frame(self) -> pd.DataFrame:
        """One row per latent and factor.

        Decoder side: latent, factor, effect, size, ci_low, ci_high, q. Encoder side, missing where the factor could not be changed
        alone: answer, answer_low, answer_high, answer_q. Of both: carried, assigned, verdict, kl.
        """
        import pandas as pd

        mean, carried = self.effects.mean(), self.carried
        answers = [f"answer{end}" for end in ("", "_low", "_high", "_q")]
        frame = pd.DataFrame(
            {
                "latent": self.effects.units[k],
                "factor": factor,
                "effect": mean[k, j],
                "size": self.size[k, j],
                "ci_low": self.low[k, j],
                "ci_high": self.high[k, j],
                "q": self.q[k, j],
                **dict(zip(answers, self._answer(k, factor), strict=True)),
                "carried": carried[k, j],
                "assigned": self.assignment[factor] == k,
                "verdict": self.verdicts[k],
                "kl": None if self.kl is None else self.kl[k],
            }
            for k in range(len(self.verdicts))
            for j, factor in enumerate(self.factors)
        )
        return frame.astype(dict.fromkeys(answers, "Float64"))

    def plot(self) -> tuple[Figure, Axes]:
        """Latents and factors with sizes, intervals and verdicts; see `nv.plots.plot_factor_map`."""
        from nnsight_vae.map_plot import plot_factor_map

        return plot_factor_map(self)

    def _answer(self, k: int, factor: str) -> tuple[float | None, ...]:
        found = self.answers
        if factor not in found.factors:
            return (None,) * 4
        j = found.factors.index(factor)
        return tuple(float(table[k, j]) for table in (found.size, found.low, found.high, found.q))

    def __repr__(self) -> str:
        counts = Counter(self.verdicts)
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        return f"FactorMap({len(self.verdicts)} latents x {len(self.factors)} factors of {self.data}: {verdicts})"

    def __str__(self) -> str:
        """A table: for each latent its verdict, the strongest factor and all that are above the minimum, and what it answers to."""
        coded = "code" in self.effects.estimand
        moved = "giving a position the codes in use" if coded else "moving a latent across its aggregate posterior"
        lines = [
            f"Latents of this model against the factors of {self.data}: size of the effect of {moved},",
            f"in factor sd, with simultaneous {self.level:.0%} intervals (minimum effect {self.min_effect:g}); in brackets, change of the",
            f"latent under do(factor) alone, in sd of its aggregate posterior (minimum {self.answers.min_effect:g})",
            "",
            f"{'latent':<14}{'KL':>6}  {'verdict':<14}factors",
        ]
        for k in self.order:
            order = np.argsort(-self.size[k])
            shown = [j for j in order if self.low[k, j] > self.min_effect] or [int(order[0])]
            cells = [self._cell(int(k), int(j)) for j in shown]
            nats = "-" if self.kl is None else f"{self.kl[k]:.2f}"
            lines.append(f"{self.effects.units[k]:<14}{nats:>6}  {self.verdicts[k]:<14}{', '.join(cells)}")
        matched = [f"{f} -> {self.unit(f) or 'none'}" for f in self.assignment]
        lines += ["", "one-to-one matching: " + ", ".join(matched)]
        several = {f: ", ".join(self.effects.units[k] for k in self.latents_of(f)) for f in self.factors}
        lines.append("carried by: " + "; ".join(f"{f} by {units or 'no latent'}" for f, units in several.items()))
        lines += [f"{f} was not changed alone: {why}" for f, why in self.answers.missing.items()]
        return "\n".join(lines)

    def _cell(self, k: int, j: int) -> str:
        answer = self._answer(k, self.factors[j])[0]
        heard = "" if answer is None else f" ({answer:.2f})"
        return f"{self.factors[j]} {self.size[k, j]:.2f} [{self.low[k, j]:.2f}, {self.high[k, j]:.2f}]{heard}"


def carried_by(
    low: Float[np.ndarray, "latent factor"], factors: tuple[str, ...], min_effect: float, answers: FactorAnswers
) -> Bool[np.ndarray, "latent factor"]:
    """Effects above their minimum whose factor the latent answers to, as far as that is known."""
    heard = [[answers.heard(k, factor) is not False for factor in factors] for k in range(len(low))]
    return (low > min_effect) & np.array(heard)
