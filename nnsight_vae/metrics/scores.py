"""What a metric returns: a number, how sure it is, and why it is missing when it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = ("value", "ci_low", "ci_high")


@dataclass(frozen=True, repr=False)
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

    __repr__ = __str__

    def to_frame(self) -> pd.DataFrame:
        """One row: metric, form, value, ci_low, ci_high, note."""
        import pandas as pd

        low, high = self.ci or (None, None)
        row = (self.metric, self.form, self.value, low, high, self.note)
        frame = pd.DataFrame([row], columns=["metric", "form", *_NUMBERS, "note"])
        return frame.astype(dict.fromkeys(_NUMBERS, "Float64"))


@dataclass(frozen=True, repr=False)
class LatentScores:
    """One number per latent.

    Attributes:
        metric: its name.
        form: which form of the metric.
        values: one score per latent; None where it is undefined (its flag says why).
        ci: percentile bootstrap interval of each value over examples; None where there is none.
        flags: what to know about each latent, e.g. `"dead: ..."`; empty when there is nothing.
        units: a name per score; `latent.z[0]`, `latent.z[1]`, ... where none are given.

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
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", tuple(f"latent.z[{k}]" for k in range(len(self.values))))

    @property
    def alive(self) -> tuple[int, ...]:
        """Indices of the latents that are not flagged as dead."""
        return tuple(k for k, flag in enumerate(self.flags) if not flag.startswith("dead"))

    @property
    def ranked(self) -> tuple[int, ...]:
        """Indices of the latents by falling score; dead ones and undefined scores have no rank.

        Example:
            >>> LatentScores("effect", "raw", (0.0, 2.0, 3.0), (None,) * 3, ("dead: no effect", "", "")).ranked
            (2, 1)
        """
        scores = {k: score for k in self.alive if (score := self.values[k]) is not None}
        return tuple(sorted(scores, key=lambda k: -scores[k]))

    def without_dead(self) -> LatentScores:
        """The same, with the scores of dead latents None."""
        alive = set(self.alive)
        return replace(
            self,
            values=tuple(value if k in alive else None for k, value in enumerate(self.values)),
            ci=tuple(interval if k in alive else None for k, interval in enumerate(self.ci)),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per latent: latent (its index), unit (its name), value, ci_low, ci_high, flag."""
        import pandas as pd

        bounds = [interval or (None, None) for interval in self.ci]
        return pd.DataFrame(
            {
                "latent": range(len(self.values)),
                "unit": self.units,
                "value": pd.array(self.values, dtype="Float64"),
                "ci_low": pd.array([low for low, _ in bounds], dtype="Float64"),
                "ci_high": pd.array([high for _, high in bounds], dtype="Float64"),
                "flag": self.flags,
            }
        )

    def __str__(self) -> str:
        lines = [f"{self.metric} ({self.form})"]
        for unit, value, interval, flag in zip(self.units, self.values, self.ci, self.flags, strict=True):
            lines.append(f"{unit}  {_with_interval(value, interval)}  {flag}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class LatentMatrix:
    """One number per latent and response.

    Attributes:
        metric: its name.
        form: which form of the metric.
        values: latents down, responses across; None where it is undefined (the response's flag says why).
        ci: percentile bootstrap interval of each value over examples; None where there is none.
        flags: what to know about each response; empty when there is nothing.

    Example:
        >>> print(LatentMatrix("latent response", "raw", ((1.0, 0.0),), ((None, None),), ("", "")))
        latent response (raw)
                     mu[0]  mu[1]
        latent.z[0]      1      0
    """

    metric: str
    form: str
    values: tuple[tuple[float | None, ...], ...]
    ci: tuple[tuple[tuple[float, float] | None, ...], ...]
    flags: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per latent and response: latent, response, value, ci_low, ci_high, flag."""
        import pandas as pd

        rows = []
        for j, (values, intervals) in enumerate(zip(self.values, self.ci, strict=True)):
            for k, (value, interval, flag) in enumerate(zip(values, intervals, self.flags, strict=True)):
                rows.append((j, k, value, *(interval or (None, None)), flag))
        frame = pd.DataFrame(rows, columns=["latent", "response", "value", "ci_low", "ci_high", "flag"])
        return frame.astype(dict.fromkeys(_NUMBERS, "Float64"))

    def __str__(self) -> str:
        header = [f"mu[{k}]" for k in range(len(self.flags))]
        cells = [["none" if value is None else f"{value:.3g}" for value in row] for row in self.values]
        width = max(len(cell) for row in [header, *cells] for cell in row) + 2
        names = [f"latent.z[{j}]" for j in range(len(cells))]
        left = max(map(len, names))
        lines = [
            f"{name:<{left}}" + "".join(f"{cell:>{width}}" for cell in row)
            for name, row in zip(["", *names], [header, *cells], strict=True)
        ]
        flagged = [f"mu[{k}]: {flag}" for k, flag in enumerate(self.flags) if flag]
        return "\n".join([f"{self.metric} ({self.form})", *lines, *flagged])

    __repr__ = __str__


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "")
