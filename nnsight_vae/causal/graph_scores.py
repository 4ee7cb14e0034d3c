"""What comes of comparing two graphs over the same factors: their scores, those of guesses, and a table of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["total", "direct", "discovery"]
_LABELS = {
    "shd": "SHD (0 is best)",
    "sid": "SID (0 is best)",
    "parent_aid": "parent AID",
    "ancestor_aid": "ancestor AID",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "skeleton_precision": "skeleton prec.",
    "skeleton_recall": "skeleton recall",
    "skeleton_f1": "skeleton F1",
    "orientation": "orientation",
}


@dataclass(frozen=True)
class GraphScores:
    """Scores of one graph (or their mean over many graphs) against a true graph; `None` where a score is undefined.

    Attributes:
        shd: structural Hamming distance: edges to insert, delete or flip.
        sid: structural intervention distance: ordered pairs (x, y), of n(n-1), whose effect the graph gets wrong. DAGs only.
        parent_aid: parent adjustment distance; on DAGs the same number as `sid`, on CPDAGs its extension.
        ancestor_aid: the same count when the graph's ancestors of x, not its parents, are adjusted for.
        precision: share of the graph's edges that are true.
        recall: share of the true edges that the graph has.
        f1: 2 TP / (2 TP + FP + FN) over directed edges; 0 for an empty graph against a non-empty one.
        skeleton_precision, skeleton_recall, skeleton_f1: the same over adjacencies, directions ignored.
        orientation: share of the adjacencies of both graphs that both direct (or leave undirected) alike.

    An undirected edge of a CPDAG is two arcs, and counts as two in precision, recall and F1.
    """

    shd: int | float
    sid: int | float | None
    parent_aid: int | float | None
    ancestor_aid: int | float | None
    precision: float | None
    recall: float | None
    f1: float | None
    skeleton_precision: float | None
    skeleton_recall: float | None
    skeleton_f1: float | None
    orientation: float | None


@dataclass(frozen=True, repr=False)
class GraphComparison(GraphScores):
    """An estimated graph against the true one, beside three guesses: no edges, random edges, shuffled names.

    A distance alone says little on few nodes: read it against `empty`, `random` and `permuted`. SHD favours the empty
    graph; SID and AID favour dense graphs that respect the causal order.

    Attributes:
        kind: what the estimated edges mean ("total" or "direct" effects, "discovery" from observation), which decides the graph
            compared with.
        compared_with: that graph, in words.
        n_nodes: nodes of both graphs.
        n_true: arcs of the graph compared with (two for an undirected edge, as in all that follow).
        n_estimated: arcs of the estimate.
        missed: true arcs the estimate does not have, but for those it has reversed.
        extra: estimated arcs that are not true, but for reversed ones.
        reversed: estimated edges that are true the other way round.
        reversal_cost: what a reversed edge costs in every SHD here, the one of p included.
        auroc: chance that a true edge is given a larger size than a pair without one, over all ordered pairs; needs no threshold.
            `None` where the estimate has no `graph["sizes"]`.
        auprc: average precision of the same ranking; guessing scores `base_rate`.
        base_rate: true share of the ordered pairs.
        reasons: for every score that is `None`, why.
        empty: scores of the graph without edges.
        random: mean scores of 1,000 random DAGs (of their CPDAGs, for a discovered graph) with as many edges as the estimate;
            `None` if no DAG has that many.
        permuted: mean scores of the estimate with its node names permuted (beyond 6 nodes, over 1,000 draws).
        ceiling: scores of what the same algorithm finds on the true factors, from `estimated.graph["ceiling"]`, a list of
            arcs; `None` where there is none.
        p_value: share of the n! relabellings whose SHD is no larger than the estimate's.
        p_exact: all relabellings were enumerated (8 nodes or fewer); otherwise (1 + hits) / (1 + draws), 10,000 draws.
        p_floor: no estimate can reach a smaller p: automorphisms of the true graph / n!, or 1 / (1 + draws).
    """

    kind: Kind
    compared_with: str
    n_nodes: int
    n_true: int
    n_estimated: int
    missed: tuple[tuple[Any, Any], ...]
    extra: tuple[tuple[Any, Any], ...]
    reversed: tuple[tuple[Any, Any], ...]
    reversal_cost: int
    auroc: float | None
    auprc: float | None
    base_rate: float | None
    empty: GraphScores
    random: GraphScores | None
    permuted: GraphScores
    ceiling: GraphScores | None
    p_value: float
    p_exact: bool
    p_floor: float
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for `json.dumps`."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per score: score, estimate, empty, random, permuted, ceiling where there is one, reason (why it is missing)."""
        import pandas as pd

        rows = {
            name: {
                column: None if scores is None else getattr(scores, name) for column, scores in self._columns.items()
            }
            for name in _LABELS
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", dtype="Float64").rename_axis("score").reset_index()
        return frame.assign(reason=[self.reasons.get(name, "") for name in rows])

    @property
    def _columns(self) -> dict[str, GraphScores | None]:
        """The estimate and what it stands beside."""
        columns = {"estimate": self, "empty": self.empty, "random": self.random, "permuted": self.permuted}
        return columns | ({} if self.ceiling is None else {"ceiling": self.ceiling})

    def __repr__(self) -> str:
        f1 = "undefined" if self.f1 is None else f"{self.f1:.2g}"
        edges = f"{self.n_estimated} estimated and {self.n_true} true edges on {self.n_nodes} nodes"
        return f"GraphComparison({edges}: SHD {self.shd}, empty graph {self.empty.shd}; F1 {f1}; p {self.p_value:.2g})"

    def __str__(self) -> str:
        """A table: one score a row, the estimate beside its baselines; then p, the wrong edges and the reasons."""
        columns = self._columns
        lines = [
            f"Estimated graph against {self.compared_with}",
            f"{self.n_nodes} nodes, {self.n_true} true edges, {self.n_estimated} estimated",
            "",
            " " * 16 + "".join(f"{name:>10}" for name in columns),
        ]
        for name, label in _LABELS.items():
            row = [None if column is None else getattr(column, name) for column in columns.values()]
            lines.append(f"{label:<16}" + "".join(f"{_number(value):>10}" for value in row))
        if self.auroc is not None:
            lines += [
                "",
                f"AUROC {self.auroc:.2f} (guessing .50), AUPRC {self.auprc:.2f} (guessing {self.base_rate:.2f})",
            ]
        how = "all relabellings" if self.p_exact else "sampled relabellings"
        lines += ["", f"permutation p = {self.p_value:.3g} ({how}; it cannot be below {self.p_floor:.3g} here)"]
        for name in ("missed", "extra", "reversed"):
            edges = getattr(self, name)
            lines.append(f"{name}: " + (", ".join(f"{a} -> {b}" for a, b in edges) or "none"))
        lines += [f"{name} is undefined: {reason}" for name, reason in self.reasons.items()]
        lines.append("random: mean of DAGs with as many edges; permuted: mean over shuffled node names.")
        if self.ceiling is not None:
            lines.append("ceiling: the same algorithm on the true factors.")
        return "\n".join(lines)


def _number(value: int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value == round(value) and value >= 2 else f"{value:.2f}".rstrip("0").rstrip(".")
