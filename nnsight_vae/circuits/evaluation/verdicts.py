"""`CircuitTests`: what hypothesis tests say of a circuit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nnsight_vae.circuits.evaluation.edge_sets import Ablation

if TYPE_CHECKING:
    import pandas as pd

Test = Literal["equivalence", "independence", "sufficiency", "necessity", "minimality"]


@dataclass(frozen=True)
class Outcome:
    """One test of one target, or of one edge of it.

    Attributes:
        test: its name.
        readout: the target.
        subject: the edge for `minimality`, else `"circuit"`.
        statistic: share of independent pairs with the circuit above the model (equivalence), HSIC (independence), or share of
            random rivals beaten.
        p: p-value; None where the test has no data.
        adjusted: Holm-adjusted over all targets of the test (and all edges tested for minimality).
        rejected: adjusted p <= alpha.
        verdict: what that means.
    """

    test: Test
    readout: str
    subject: str
    statistic: float | None
    p: float | None
    adjusted: float | None
    rejected: bool
    verdict: str


@dataclass(frozen=True, repr=False)
class CircuitTests:
    """Outcomes of `hypothesis_tests`.

    Attributes:
        outcomes: one per test and target; for minimality one per edge and target.
        alpha: for each test, the chance that any null hypothesis of it that holds is rejected is at most this.
        epsilon: of equivalence.
        quantile: of the tests against random rivals.
        n_pairs: independent clusters of pairs that equivalence and independence rest on.
        n_random: random rivals.
        ablation: what edges outside carry.
        seen: the circuit was found on these very pairs, so the tests favour it; found out where the ablation is `base`.
    """

    outcomes: tuple[Outcome, ...]
    alpha: float
    epsilon: float
    quantile: float
    n_pairs: int
    n_random: int
    ablation: Ablation
    seen: bool = False

    def to_frame(self) -> pd.DataFrame:
        """One row per outcome, with its attributes as columns."""
        import pandas as pd

        frame = pd.DataFrame([vars(outcome) for outcome in self.outcomes], columns=list(Outcome.__annotations__))
        return frame.astype({"statistic": float, "p": float, "adjusted": float})

    def superfluous(self, readout: str) -> tuple[str, ...]:
        """The edges, as `"a -> b"`, that minimality rejects for a target."""
        return tuple(o.subject for o in self.outcomes if (o.test, o.readout) == ("minimality", readout) and o.rejected)

    def __str__(self) -> str:
        lines = [
            f"Tests of a circuit on {self.n_pairs} independent pairs and {self.n_random} random rivals, ablation {self.ablation!r}; "
            f"each test rejects what is true of any target with a chance of at most {self.alpha:g}"
        ]
        if self.seen:
            lines.append("the circuit was found on these pairs, which favours it: others test it")
        for readout in dict.fromkeys(o.readout for o in self.outcomes):
            lines.append(f"  {readout}")
            own = [o for o in self.outcomes if o.readout == readout]
            for o in (o for o in own if o.test != "minimality"):
                lines.append(f"    {o.test:<13} {o.verdict}" + ("" if o.adjusted is None else f" (p {o.adjusted:.2g})"))
            edges = [o for o in own if o.test == "minimality"]
            if edges:
                tested = [o for o in edges if o.p is not None]
                rejected = len(self.superfluous(readout))
                text = f"{rejected} of {len(tested)} edges tested are superfluous" if tested else edges[0].verdict
                lines.append(f"    {'minimality':<13} {text}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        rejected = sum(o.rejected for o in self.outcomes)
        return f"CircuitTests({len(self.outcomes)} outcomes, {rejected} rejected at family-wise {self.alpha:g} a test)"
