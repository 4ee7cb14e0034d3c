"""Screen, then verify: attribution says which edges are worth a run of their own, a random sample what that may have missed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nnsight_vae.circuits.checks import check_count, check_share
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.selection.rules import FDR, Rule, check_rule
from nnsight_vae.errors import CircuitError

_BY_SIZE = 3  # edges chosen by size for each that is chosen within its cut


@dataclass(frozen=True)
class Screen:
    """Edges whose scores stand out are patched one by one, and a rule selects among them by these exact effects.

    The sample is patched too: of the edges not screened it is drawn at random, so it bounds, whatever the errors of attribution,
    how many of those never patched exceed the weakest screened edge in the circuit (`missed_at_most`), and how many the largest
    effect in the sample. No sample can bound the single largest effect that was missed. Of what screens, `method="eap-act"` is
    nearest to patching: at the base to `noising`, at the source to `denoising`, their average to `both`.

    Attributes:
        share: in (0, 1]; of all edges, those verified.
        then: selects among the verified edges and the sample; edges that were never patched count as tested without success.
        sample: number of other edges patched; more of them bound more tightly, and in models of a few thousand edges are much of the time.
        confidence: of each bound.

    Raises:
        CircuitError: a value out of range, or a rule that needs every edge.

    Source: the sample is the diagnostic of AtP*, Kramar et al. 2024 (arXiv 2403.00745), with an exact bound in place of its
        t-test.

    Example:
        >>> Screen(0.1).sample
        200
    """

    share: float = 0.07
    then: Rule = field(default=FDR())
    sample: int = 200
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_share("share", self.share, "a share of the edges")
        check_rule("then", self.then)
        check_count("sample", self.sample)
        check_share("confidence", self.confidence, "a confidence", below=1)
        test = self.then if isinstance(self.then, FDR) else self.then.among
        if test.control == "max-t":
            raise CircuitError(
                "control='max-t' needs the effects of all edges, and a screen looks at some; use 'bh' or 'by'."
            )

    def chosen(self, scores: EdgeScores, seed: int) -> tuple[Int[np.ndarray, " screened"], Int[np.ndarray, " sampled"]]:
        """The edges to verify: those that stand first by |mean score| as a share of the total effect, or relative to their cut.

        The first order holds what is largest, the second what paths need where a layer is wide: three of four edges are chosen by
        the first. With several targets an edge stands where it stands best.

        Args:
            scores: of all edges.
            seed: of the sample.

        Returns: positions of the edges to verify, and of the sample of the others.
        """
        mean, total = np.abs(scores.mean()), np.abs(scores.total.mean(axis=1))
        share = mean / np.where(total > scores.resolution, total, np.inf)
        largest = np.zeros((len(scores.cuts), share.shape[1]))
        np.maximum.at(largest, scores.cut_of, share)
        within = np.divide(share, largest[scores.cut_of], out=np.zeros_like(share), where=share > 0)
        places = [np.argsort(np.argsort(-size.max(axis=1), kind="stable")) for size in (share, within)]
        order = np.argsort(np.minimum(places[0], _BY_SIZE * places[1]), kind="stable")
        n_screened = int(np.ceil(self.share * len(order)))
        rest = np.sort(order[n_screened:])
        sampled = np.random.default_rng(seed).choice(rest, min(self.sample, len(rest)), replace=False)
        return np.sort(order[:n_screened]), np.sort(sampled)

    def bounds(
        self,
        screened: Float[np.ndarray, " screened"],
        sampled: Float[np.ndarray, " sampled"],
        selected: np.ndarray,
        n_edges: int,
    ) -> dict[str, Any]:
        """What may have been missed for one target, as JSON data.

        Args:
            screened: |mean exact effect| of the screened edges.
            sampled: of the sample.
            selected: which of the screened edges the rule selects by themselves: the sample must not choose what it is asked.
            n_edges: edges of the model.

        Returns: n_screened, n_sampled, n_never_patched, confidence; weakest (|effect| of the weakest selected, None where there is none),
            sampled_above (it), missed_above (upper bound on edges never patched above it); largest_sampled, and
            missed_above_largest (the same for that).
        """
        from nnsight_vae.circuits.selection.missed import missed_at_most

        unseen, n = n_edges - len(screened), len(sampled)
        weakest = float(screened[selected].min()) if selected.any() else None
        above = None if weakest is None else int((sampled > weakest).sum())
        return {
            "n_screened": len(screened),
            "n_sampled": n,
            "n_never_patched": unseen - n,
            "confidence": self.confidence,
            "weakest": weakest,
            "sampled_above": above,
            "missed_above": None if above is None else missed_at_most(unseen, n, above, self.confidence),
            "largest_sampled": float(sampled.max()) if n else None,
            "missed_above_largest": missed_at_most(unseen, n, 0, self.confidence),
        }
