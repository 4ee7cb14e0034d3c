"""What a metric returns: a number, how sure it is, and why it is missing when it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Score:
    """One number for a whole model.

    Attributes:
        metric: its name.
        form: which form of the metric, e.g. `"raw"` or `"normalised"`.
        value: the score; None where it is undefined.
        ci: percentile bootstrap interval over examples; None where there is none.
        note: what to know when reading it: why it is undefined or has no interval, what was left out.

    Example:
        >>> print(Score("circuit modularity", "normalised", 0.81, (0.78, 0.84)))
        circuit modularity (normalised): 0.81 [0.78, 0.84]
    """

    metric: str
    form: str
    value: float | None
    ci: tuple[float, float] | None = None
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.metric} ({self.form}): {_with_interval(self.value, self.ci)}{note}"


@dataclass(frozen=True)
class LatentScores:
    """One number per latent.

    Attributes:
        metric: its name.
        form: which form of the metric.
        values: one score per latent; None where it is undefined (its flag says why).
        ci: percentile bootstrap interval of each value over examples; None where there is none.
        flags: what to know about each latent, e.g. `"dead: ..."`; empty when there is nothing.

    Example:
        >>> scores = LatentScores("specificity", "normalised", (0.4, None), ((0.3, 0.5), None), ("", "dead: no effect"))
        >>> scores.alive
        (0,)
        >>> print(scores)
        specificity (normalised)
        latent.z[0]  0.4 [0.3, 0.5]
        latent.z[1]  none  dead: no effect
    """

    metric: str
    form: str
    values: tuple[float | None, ...]
    ci: tuple[tuple[float, float] | None, ...]
    flags: tuple[str, ...]

    @property
    def alive(self) -> tuple[int, ...]:
        """Indices of the latents that are not flagged as dead."""
        return tuple(k for k, flag in enumerate(self.flags) if not flag.startswith("dead"))

    def to_frame(self) -> pd.DataFrame:
        """One row per latent: latent, value, ci_low, ci_high, flag."""
        import pandas as pd

        bounds = [interval or (None, None) for interval in self.ci]
        return pd.DataFrame(
            {
                "latent": range(len(self.values)),
                "value": pd.array(self.values, dtype="Float64"),
                "ci_low": pd.array([low for low, _ in bounds], dtype="Float64"),
                "ci_high": pd.array([high for _, high in bounds], dtype="Float64"),
                "flag": self.flags,
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.metric} ({self.form})"]
        for k, (value, interval, flag) in enumerate(zip(self.values, self.ci, self.flags, strict=True)):
            lines.append(f"latent.z[{k}]  {_with_interval(value, interval)}  {flag}".rstrip())
        return "\n".join(lines)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")
