"""How well every method finds circuits that are known: AUROC and AP of its scores, and of what is selected FDR and recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from nnsight_vae.circuits.known.circuit import KnownCircuit, Task
from nnsight_vae.circuits.known.edge_strict import edge_strict
from nnsight_vae.circuits.known.glass import glass_box
from nnsight_vae.circuits.known.masked import masked
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.scoring.methods import BASELINES, Method
from nnsight_vae.circuits.scoring.scores import score_edges
from nnsight_vae.circuits.selection.rules import FDR
from nnsight_vae.circuits.selection.search import circuit_from
from nnsight_vae.errors import CircuitError

if TYPE_CHECKING:
    import pandas as pd

MODELS: Mapping[str, Callable[[int], KnownCircuit]] = {
    "glass-box": glass_box,
    "masked": masked,
    "edge-strict": lambda seed: edge_strict(),  # one model: seeds only make other pairs
}
METHODS: tuple[Method, ...] = get_args(Method)
ALL = "all"  # in place of a cut: over all edges

_RULE = FDR()
_PAIR_SEED = 10_000  # pairs are not those that a model was made with


class Row(NamedTuple):
    """One method on one task of one model, over all edges (cut `"all"`) or over those of one cut.

    Attributes:
        model, seed, factor, target, method, cut: what was scored.
        n_edges, n_true: edges that are judged, and those of them that are true.
        auroc: chance that a true edge scores higher in size than a false one; None where there are none of either.
        ap: average precision of the ranking by size; `n_true / n_edges` for one that knows nothing; None likewise.
        fdr: share of false edges among those that `FDR` selects, 0 where it selects none; only for cut `"all"` and, as for
            recall and shd, None for a baseline, which has nothing to test.
        recall: share of the true edges that are selected.
        shd: false edges that are selected and true ones that are not.
        cut_error: worst error of a cut in summing to the total effect; None where that is undefined, and for a baseline.
        seconds: of scoring all tasks of the factor.
    """

    model: str
    seed: int
    factor: str
    target: str
    method: str
    cut: str
    n_edges: int
    n_true: int
    auroc: float | None
    ap: float | None
    fdr: float | None = None
    recall: float | None = None
    shd: int | None = None
    cut_error: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, repr=False)
class Benchmark:
    """Results of `benchmark`; prints as its summary.

    Attributes:
        rows: one for every model, seed, task, method and cut.
    """

    rows: tuple[Row, ...]

    def to_frame(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=Row._fields)

    def summary(self) -> pd.DataFrame:
        """A row for every model and method.

        Returns: columns auroc and ap (mean over tasks and seeds, all edges), auroc_min and ap_min (the worst task), auroc_cut
            and ap_cut (mean over cuts), fdr, recall, shd (means), cut_error (worst), seconds (a factor, mean).
        """
        import pandas as pd

        frame = self.to_frame()
        keys = ["model", "method"]
        numbers = [name for name in Row._fields if name not in (*keys, "factor", "target", "cut")]
        frame[numbers] = frame[numbers].apply(pd.to_numeric)
        whole, cuts = (frame[same].groupby(keys, sort=False) for same in (frame.cut == ALL, frame.cut != ALL))
        return whole.agg(
            auroc=("auroc", "mean"), auroc_min=("auroc", "min"), ap=("ap", "mean"), ap_min=("ap", "min")
        ).join(
            [
                cuts.agg(auroc_cut=("auroc", "mean"), ap_cut=("ap", "mean")),
                whole.agg(fdr=("fdr", "mean"), recall=("recall", "mean"), shd=("shd", "mean")),
                whole.agg(cut_error=("cut_error", "max"), seconds=("seconds", "mean")),
            ]
        )

    def __repr__(self) -> str:
        return self.summary().round(3).to_string(na_rep="-")


def benchmark(
    methods: Sequence[Method] = METHODS,
    models: Sequence[str] = tuple(MODELS),
    seeds: Sequence[int] = (0,),
    *,
    pairs: int = 64,
    q: float = 0.05,
    min_share: float = 0.001,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Score every edge of models with a known circuit by every method, and compare with the truth.

    An edge's score is the size of its mean over pairs; `exact` is the mean of noising and denoising. Excluded edges are not
    judged. What a method would select is `circuit_from(scores, FDR(q, min_share))`.

    The column `fdr` counts every selected edge outside the circuit as false. In `glass-box` and `masked` models these carry exactly
    nothing. In `edge-strict` they carry what training left, so `FDR`, which is right to select whatever carries more than
    `min_share`, has an `fdr` of about .16 at .001; at .01, and so at the model's leakage, it is 0.

    Args:
        methods: of `score_edges`.
        models: of `MODELS`: glass-box, masked, edge-strict.
        seeds: of the models, and of the pairs.
        pairs: number of pairs a factor.
        q: nominal false discovery rate.
        min_share: the share of the total effect that an edge must exceed to be selected.
        progress: called with (done, total) after each method on each factor.

    Raises:
        CircuitError: a method or model is unknown.

    Example:
        >>> table = benchmark(("eap", "weight"), ("glass-box",), pairs=16).summary()
        >>> table["ap"].round(1).tolist()
        [1.0, 0.0]
    """
    for kind, given, names in (("method", methods, METHODS), ("model", models, tuple(MODELS))):
        unknown = [name for name in given if name not in names]
        if unknown or not given:
            raise CircuitError(f"{kind}s {unknown or 'none'}: expected some of {', '.join(names)}.")
    made = [(name, seed, MODELS[name](seed)) for name in models for seed in seeds]
    total = sum(len(known.factors) for _, _, known in made) * len(methods)
    rows: list[Row] = []
    done = 0
    for name, seed, known in made:
        for factor in known.factors:
            shown = known.pairs(factor, pairs, _PAIR_SEED + seed)
            for method in methods:
                start = time.perf_counter()
                scores = score_edges(
                    known.vae, shown, known.readout, method=method, direction="both", seed=seed, progress=_silent
                )
                seconds = time.perf_counter() - start
                for row in judged(known, scores, factor, FDR(q, min_share)):
                    rows.append(row._replace(model=name, seed=seed, seconds=seconds if row.cut == ALL else None))
                done += 1
                if progress is not None:
                    progress(done, total)
    return Benchmark(tuple(rows))


def _silent(done: int, total: int) -> None:
    """No bar of its own for each scoring."""


def judged(known: KnownCircuit, scores: EdgeScores, factor: str, rule: FDR = _RULE) -> Iterator[Row]:
    """Rows of one method's scores on every task of a factor, as `benchmark` has them: over all edges, then cut by cut."""
    edges = list(zip(scores.sources, scores.targets, strict=True))
    size = np.abs(scores.mean())
    circuit = None if scores.method in BASELINES else circuit_from(scores, rule, resamples=0)
    errors = {row.readout: row.error for row in sorted(scores.completeness, key=lambda row: row.error or 0.0)}
    for task in (task for task in known.tasks if task.factor == factor):
        t = scores.readouts.index(task.target)
        true = np.array([edge in known.truth[task] for edge in edges])
        counts = scores.applies[:, t] & np.array([edge not in known.excluded.get(task, ()) for edge in edges])
        whole = _row(task, scores.method, ALL, true[counts], size[counts, t])
        if circuit is not None:
            found = np.array([task.target in circuit.edges.get(edge, {"effects": ()})["effects"] for edge in edges])
            whole = _selected(whole, found[counts], true[counts])._replace(cut_error=errors[task.target])
        yield whole
        for c, cut in enumerate(scores.cuts):
            here = counts & (scores.cut_of == c)
            yield _row(task, scores.method, cut, true[here], size[here, t])


def _row(task: Task, method: str, cut: str, true: Bool[np.ndarray, " edge"], size: Float[np.ndarray, " edge"]) -> Row:
    from sklearn.metrics import average_precision_score, roc_auc_score

    both = bool(true.any()) and not bool(true.all())
    auroc, ap = (float(f(true, size)) if both else None for f in (roc_auc_score, average_precision_score))
    return Row("", 0, *task, method, cut, len(true), int(true.sum()), auroc, ap)


def _selected(row: Row, found: Bool[np.ndarray, " edge"], true: Bool[np.ndarray, " edge"]) -> Row:
    false, missed = int((found & ~true).sum()), int((true & ~found).sum())
    return row._replace(fdr=false / max(int(found.sum()), 1), recall=1 - missed / int(true.sum()), shd=false + missed)
