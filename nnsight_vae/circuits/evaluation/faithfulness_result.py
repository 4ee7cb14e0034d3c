"""`Faithfulness`: how much of a model's effect a circuit reproduces on its own, pair by pair."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from nnsight_vae.circuits.evaluation.curves import AREAS, Areas, area_gains, curve_areas
from nnsight_vae.circuits.evaluation.edge_sets import CARRIES, Ablation
from nnsight_vae.circuits.evaluation.generative import Generative
from nnsight_vae.results.effects import Effects
from nnsight_vae.results.effects_checks import plain
from nnsight_vae.results.proportion import Proportion, proportions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVEL = 0.95


@dataclass(frozen=True, repr=False, eq=False)
class Faithfulness:
    """How much of the model's effect a circuit reproduces on its own, pair by pair.

    f = (m(C) - m(nothing)) / (m(M) - m(nothing)): m(M) is the source run, m(C) the run on the source in which every edge outside
    the circuit carries what the ablation says, m(nothing) the run in which every edge does. 1: the circuit does what the model
    does; 0: nothing; it can exceed 1 where what was left out works against it. All effects are in units of the readout.

    Attributes:
        circuit: m(C) - m(nothing).
        nodes: the same of the circuit's nodes with all the model's edges between them, a more lenient and more common score.
        complement: the same of the model without the circuit's edges between units (`EdgeSets.rest_of`).
        total: m(M) - m(nothing).
        sizes: numbers of edges of the curve.
        curve_effects: the same of the strongest edges alone, for each size.
        readouts: names of the targets.
        n_edges, n_candidates: edges of the circuit, and of the model.
        ablation: what edges outside carry: `base`, `mean` or `zero` (see `edge_sets`).
        groups, source_groups: ids of the pairs' base and source images, where they are reused.
        generative: how far the circuit's images and posteriors are from the source run's.
        provenance: where the numbers come from, as plain JSON data.
        baselines: name -> the same as `curve_effects`, where edges are ranked by that baseline.
        seen: the circuit was found on these very pairs, so it looks better than on others; found out where the ablation is `base`.
    """

    circuit: Float[np.ndarray, "target pair"]
    nodes: Float[np.ndarray, "target pair"]
    complement: Float[np.ndarray, "target pair"]
    total: Float[np.ndarray, "target pair"]
    sizes: tuple[int, ...]
    curve_effects: Float[np.ndarray, "size target pair"]
    readouts: tuple[str, ...]
    n_edges: int
    n_candidates: int
    ablation: Ablation
    groups: Shaped[np.ndarray, " pair"] | None = None
    source_groups: Shaped[np.ndarray, " pair"] | None = None
    generative: Generative | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Float[np.ndarray, "size target pair"]] = field(default_factory=dict)
    seen: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", plain(self.provenance))

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.total.shape[1]

    @cached_property
    def score(self) -> dict[str, Proportion]:
        """Target -> f of the circuit's edges with its 95 % interval, or why there is none (the total effect is not clear of 0)."""
        return self._shares(self.circuit)

    @cached_property
    def node_score(self) -> dict[str, Proportion]:
        """Target -> f of the circuit's nodes with all edges between them."""
        return self._shares(self.nodes)

    @cached_property
    def completeness(self) -> dict[str, Proportion]:
        """Target -> f of the model without the circuit's edges: 0 where the circuit holds all there is."""
        return self._shares(self.complement)

    @property
    def circuit_effect(self) -> dict[str, float]:
        """Target -> mean of m(C) - m(nothing)."""
        return dict(zip(self.readouts, self.circuit.mean(axis=1).tolist(), strict=True))

    @property
    def total_effect(self) -> dict[str, float]:
        """Target -> mean of m(M) - m(nothing)."""
        return dict(zip(self.readouts, self.total.mean(axis=1).tolist(), strict=True))

    @cached_property
    def curve(self) -> tuple[tuple[int, dict[str, float | None]], ...]:
        """(number of edges, target -> f) for the strongest edges alone."""
        means, total = self.curve_effects.mean(axis=2), self.total.mean(axis=1)
        return tuple(
            (
                size,
                {
                    name: None if self.score[name].value is None else float(means[k, t] / total[t])
                    for t, name in enumerate(self.readouts)
                },
            )
            for k, size in enumerate(self.sizes)
        )

    @cached_property
    def areas(self) -> dict[str, dict[str, Proportion]]:
        """`cpr`, `cmd`, `log_cpr`, `log_cmd` -> target -> area with its 95 % interval (`curves.curve_areas`).

        None unless the curve goes up to the whole model, for which `faithfulness` needs `scores`.
        """
        return self._areas(curve_areas, self.curve_effects)

    @cached_property
    def baseline_areas(self) -> dict[str, dict[str, dict[str, Proportion]]]:
        """Baseline -> what `areas` is of its curve."""
        return {name: self._areas(curve_areas, effects) for name, effects in self.baselines.items()}

    @cached_property
    def gains(self) -> dict[str, dict[str, dict[str, Proportion]]]:
        """Baseline -> area -> target -> area of the circuit's curve less the baseline's, with its 95 % interval.

        Both are of the same pairs, so this interval, and not whether those of the areas overlap, says which ranking is better.
        """
        return {name: self._areas(area_gains, self.curve_effects, rival) for name, rival in self.baselines.items()}

    def _areas(self, measure: Callable[..., dict[str, Areas]], *curves: np.ndarray) -> dict[str, dict[str, Proportion]]:
        if not self.sizes or self.sizes[-1] != self.n_candidates:
            reason = "the curve does not go up to the whole model (pass scores= to rank the other edges)"
            return {area: dict.fromkeys(self.readouts, Proportion(None, None, None, reason)) for area in AREAS}
        undefined = {name: score for name, score in self.score.items() if score.value is None}
        if len(undefined) == len(self.readouts):
            return {area: dict(undefined) for area in AREAS}
        found = measure(*curves, self.total, self.sizes, self.groups, self.source_groups, level=_LEVEL)
        return {
            area: {name: undefined.get(name) or found[area].proportion(t) for t, name in enumerate(self.readouts)}
            for area in AREAS
        }

    @property
    def cpr(self) -> dict[str, Proportion]:
        """Target -> circuit performance ratio: area under the curve over the share of edges, from 0 to 1."""
        return self.areas["cpr"]

    @property
    def cmd(self) -> dict[str, Proportion]:
        """Target -> circuit-model distance: area between the curve and 1; 0 is best."""
        return self.areas["cmd"]

    def to_frame(self) -> pd.DataFrame:
        """One row per target and measure: readout, measure, value, ci_low, ci_high, reason (missing where there is none), ranking.

        ranking: `circuit`; or the baseline, of its areas and of what the circuit's are above them (`cpr_gain`, ...).
        """
        import pandas as pd

        measures = {"faithfulness": self.score, "node_faithfulness": self.node_score, "completeness": self.completeness}
        tables = {"circuit": measures | self.areas}
        for name, areas in self.baseline_areas.items():
            tables[name] = areas | {f"{area}_gain": gain for area, gain in self.gains[name].items()}
        rows = [
            (name, measure, score.value, score.low, score.high, score.reason, ranking)
            for ranking, table in tables.items()
            for measure, scores in table.items()
            for name, score in scores.items()
        ]
        columns = ["readout", "measure", "value", "ci_low", "ci_high", "reason", "ranking"]
        return pd.DataFrame(rows, columns=columns).astype({"value": float, "ci_low": float, "ci_high": float})

    def curve_frame(self) -> pd.DataFrame:
        """One row per ranking, size and target: n_edges, share of all edges, readout, f, ci_low, ci_high (missing where undefined).

        ranking: `circuit`, then each baseline.
        """
        import pandas as pd

        rows = []
        for ranking, curve in ({"circuit": self.curve_effects} | self.baselines).items():
            for size, effects in zip(self.sizes, curve, strict=True):
                for name, score in self._shares(effects).items():
                    rows.append((size, size / self.n_candidates, name, score.value, score.low, score.high, ranking))
        frame = pd.DataFrame(rows, columns=["n_edges", "share", "readout", "f", "ci_low", "ci_high", "ranking"])
        return frame.astype({"f": float, "ci_low": float, "ci_high": float})

    def plot(self) -> tuple[Figure, Axes]:
        """The curve of every target with its intervals, and those of the baselines.

        Raises:
            DataError: there is no curve, or none of its targets is defined.
        """
        from nnsight_vae.circuits.evaluation.curve_plot import plot_curve

        return plot_curve(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file (plain arrays and a JSON header, nothing pickled), whole or not at all.

        Raises:
            DataError: the folder does not exist or cannot be written to.
        """
        from nnsight_vae.circuits.evaluation import faithfulness_file

        faithfulness_file.write(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Faithfulness:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, unreadable, or no faithfulness of a known version.
        """
        from nnsight_vae.circuits.evaluation import faithfulness_file

        return faithfulness_file.read(Path(path))

    def _shares(self, effects: Float[np.ndarray, "target pair"]) -> dict[str, Proportion]:
        part, whole = (
            Effects(values[None], ("circuit",), self.readouts, what, self.groups, source_groups=self.source_groups)
            for values, what in ((effects, "effect of the circuit"), (self.total, "the total effect"))
        )
        return proportions(part, whole, level=_LEVEL)

    def __str__(self) -> str:
        lines = [
            f"Faithfulness of a circuit of {self.n_edges:,} of {self.n_candidates:,} edges, {self.n_pairs} pairs",
            f"an edge outside it carries {CARRIES[self.ablation]}",
        ]
        if self.seen:
            lines.append("the circuit was found on these pairs, and looks better on them than on others")
        for name in self.readouts:
            lines += [f"  {name}", *(f"    {line}" for line in self._lines(name))]
        if self.generative is not None:
            lines += ["  generated", *(f"    {line}" for line in str(self.generative).splitlines())]
        return "\n".join(lines)

    def _lines(self, name: str) -> list[str]:
        if self.score[name].value is None:
            return [f"faithfulness  {self.score[name]}"]
        effects = f"(effect {self.circuit_effect[name]:+.3g} of {self.total_effect[name]:+.3g})"
        lines = [
            f"faithfulness  {self.score[name]}  {effects}",
            f"of its nodes  {self.node_score[name]}",
            f"of the rest   {self.completeness[name]}",
        ]
        if self.cpr[name].value is not None:
            lines += [f"CPR           {self.cpr[name]}", f"CMD           {self.cmd[name]}"]
            for baseline, gains in self.gains.items():
                own = self.baseline_areas[baseline]["cpr"][name]
                lines.append(f"  of {baseline:<11} {own.value:.3g}; above it {gains['cpr'][name]}")
        points = ", ".join(f"{size:,}: {values[name]:.2f}" for size, values in self.curve)
        return [*lines, f"by size       {points}"] if len(self.curve) > 1 else lines

    def __repr__(self) -> str:
        scores = ", ".join(
            f"{name}={score.value if score.value is None else round(score.value, 3)}"
            for name, score in self.score.items()
        )
        return f"Faithfulness({scores}; {self.n_edges} of {self.n_candidates} edges, {self.n_pairs} pairs)"
