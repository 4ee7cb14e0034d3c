"""Is the circuit what a circuit should be? Hypothesis tests on runs of the model, with the error they control stated.

With s the readout, C the circuit, M the model and M - C the model without C's edges between units (ends stay):

- `equivalence`: is s(C) above s(M) as often as below it? Over pairs; exact binomial.
- `independence`: does the effect through M - C tell the effect of M? Over pairs; HSIC by permutation.
- `sufficiency`: is C closer to M than a share `quantile` of random circuits of its shape? Over random circuits; exact binomial.
- `necessity`: does M - C fall further from M than a share `quantile` of M without such random circuits?
- `minimality`, edge by edge: does knocking the edge out of C change more than knocking a random new edge out of C with a random
  path more, in a share `quantile` of draws? An edge for which that is rejected is superfluous.

Distances between runs are means over pairs of |difference of the readout|.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, get_args

import networkx as nx
import numpy as np
from jaxtyping import Float
from torch import Tensor

from nnsight_vae.circuits.evaluation.edge_sets import (
    Ablation,
    EdgeSet,
    EdgeSets,
    Progress,
    Readings,
    checked_circuit,
    found_on,
)
from nnsight_vae.circuits.evaluation.hypotheses import equivalence, hsic_pvalue, independent, wins_pvalue
from nnsight_vae.circuits.evaluation.random_circuits import Inflater, random_like
from nnsight_vae.circuits.evaluation.verdicts import CircuitTests, Outcome, Test
from nnsight_vae.errors import CircuitError
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Readout
from nnsight_vae.stats.significance import holm
from nnsight_vae.vae import VAE

Runs = Float[np.ndarray, "*sets target pair"]

_NOTHING = "not tested: the model does not change this target by more than rounding"
_NO_PATH = "not tested: no path lies outside the circuit"


def hypothesis_tests(
    vae: VAE,
    circuit: nx.DiGraph,
    pairs: Pairs,
    readout: Readout,
    *,
    tests: Sequence[Test] = get_args(Test),
    ablation: Ablation = "base",
    reference: Float[Tensor, "r *image"] | None = None,
    alpha: float = 0.05,
    epsilon: float = 0.1,
    quantile: float = 0.9,
    n_random: int = 100,
    n_edges: int | None = 100,
    n_perm: int = 999,
    seed: int = 0,
    progress: Progress | None = None,
) -> CircuitTests:
    """Test a circuit against the model and against random rivals; the module says what each test asks.

    Runs of the model: 2 for equivalence and independence, 2 `n_random` for sufficiency and necessity, and 2 `n_random` plus one
    an edge for minimality. Tests over pairs generalise to other pairs; those over random rivals to other rivals, on these pairs.

    Args:
        vae: the model.
        circuit: from `extract_circuit`.
        pairs: others than those the circuit was found on. Pairs that share images count once, by their mean.
        readout: with the targets of the circuit.
        tests: which tests.
        ablation: what edges outside carry; see `faithfulness`.
        reference: as in `faithfulness`.
        alpha: family-wise error of each test, over all its targets and edges (Holm).
        epsilon: how far from 1/2 the chance of being above may be for `equivalence`.
        quantile: share of random rivals to beat.
        n_random: random rivals; with 28 or fewer no circuit can be shown to beat a share of .9 of them at .05.
        n_edges: edges tested for minimality, drawn at random; None: all.
        n_perm: permutations for `independence`.
        seed: of everything random.
        progress: called with (done, total), counted in sets of edges x pairs.

    Returns: the outcomes; a target whose effect is rounding has none that could reject.

    Raises:
        CircuitError: no circuit, a foreign or an empty one, or an option out of range.
        DataError: as in `faithfulness`.

    Source: Shi et al. 2024 (arXiv 2410.13032). Deviations: effects (m - m(nothing)) instead of raw scores for independence, or
        the base image would tie both; equal shape per cut and connected rivals; Holm over edges; ties count for no one.

    Example:
        >>> import torch
        >>> from nnsight_vae.models import MLPVAE
        >>> from nnsight_vae.readouts import Latents
        >>> _ = torch.manual_seed(0)
        >>> vae = VAE(MLPVAE(image_shape=(1, 4, 4), latent=2, hidden=(4,)))
        >>> pairs = Pairs(torch.zeros(12, 1, 4, 4), torch.rand(12, 1, 4, 4), factor="light")
        >>> whole = nx.DiGraph(EdgeSets.of(vae, pairs, Latents(2)).edges)
        >>> found = hypothesis_tests(vae, whole, pairs, Latents(2), tests=("equivalence",))
        >>> found.outcomes[0].verdict
        'equivalent: equal to the model in every pair'
    """
    _check(tests, alpha, quantile, n_random, n_edges, n_perm)
    checked_circuit(circuit)
    sets = EdgeSets.of(vae, pairs, readout, ablation, reference)
    own = sets.set_of(circuit.edges)
    if not own.any():
        raise CircuitError("the circuit has no edges, so there is nothing to test.")
    rng = np.random.default_rng(seed)
    against = bool({"sufficiency", "necessity"} & set(tests))
    rivals = [random_like(sets, own, rng) for _ in range(n_random)] if against else []
    drawn = [Inflater(sets, own).draw(rng) for _ in range(n_random)] if "minimality" in tests else []
    inflated = [pair for pair in drawn if pair is not None]
    edges = np.flatnonzero(own) if "minimality" in tests else np.zeros(0, dtype=np.intp)
    if n_edges is not None and len(edges) > n_edges:
        edges = np.sort(rng.choice(edges, n_edges, replace=False))
    families: dict[str, list[EdgeSet]] = {
        "circuit": [own, sets.rest_of(own)],
        "rivals": rivals,
        "rests": [sets.rest_of(rival) for rival in rivals],
        "inflated": [whole for whole, _ in inflated],
        "without": [rest for _, rest in inflated],
        "knocked": [_without(own, edge) for edge in edges.tolist()],
    }
    readings = sets.read([edges for family in families.values() for edges in family], progress)
    stops = np.cumsum([len(family) for family in families.values()])[:-1]
    runs = dict(zip(families, np.split(readings.sets, stops), strict=True))
    outcomes: list[Outcome] = []
    for test in dict.fromkeys(tests):
        if test in ("equivalence", "independence"):
            found = _over_pairs(test, readings, pairs, epsilon, n_perm, seed)
        elif test == "minimality":
            found = _minimality(readings, runs, [" -> ".join(sets.edges[e]) for e in edges], quantile)
        else:
            found = _against_rivals(test, readings, runs, quantile)
        outcomes += _adjusted(test, found, readout.names, alpha)
    n = independent(readings.total, *pairs.cluster_ids).shape[-1]
    seen = found_on(circuit, readings, readout)
    return CircuitTests(tuple(outcomes), alpha, epsilon, quantile, n, n_random, ablation, seen)


def _without(edges: EdgeSet, edge: int) -> EdgeSet:
    rest = edges.copy()
    rest[edge] = False
    return rest


class _Found(NamedTuple):
    """One test before adjustment, and what to say of it."""

    target: int
    subject: str
    statistic: float | None
    p: float | None
    if_rejected: str
    if_not: str


def _over_pairs(
    test: Test, readings: Readings, pairs: Pairs, epsilon: float, n_perm: int, seed: int
) -> Iterator[_Found]:
    ids = pairs.cluster_ids
    above = independent(readings.clear(readings.sets[0] - readings.whole), *ids)
    rest, total = independent(readings.effects[1], *ids), independent(readings.total, *ids)
    for t in range(len(total)):
        if not total[t].any():
            yield _Found(t, "circuit", None, None, "", _NOTHING)
        elif test == "independence":
            hsic, p = hsic_pvalue(rest[t], total[t], n_perm=n_perm, seed=seed)
            yield _Found(
                t, "circuit", hsic, p, "what is left out still tells the effect", "what is left out tells nothing"
            )
        else:
            sign = equivalence(above[t], epsilon)
            if sign.share is None:
                yield _Found(t, "circuit", None, sign.p, "", "equivalent: equal to the model in every pair")
                continue
            where = f"above the model in {sign.share:.0%} [{sign.low:.0%}, {sign.high:.0%}] of {sign.n} pairs"
            inside = 0.5 - epsilon < sign.low and sign.high < 0.5 + epsilon
            yield _Found(
                t,
                "circuit",
                sign.share,
                sign.p,
                f"not equivalent: {where}",
                f"{'equivalent' if inside else 'undecided'}: {where}",
            )


def _against_rivals(test: Test, readings: Readings, runs: dict[str, Runs], quantile: float) -> Iterator[_Found]:
    own, rivals = (0, "rivals") if test == "sufficiency" else (1, "rests")
    mine = _distance(readings, runs["circuit"][own], readings.whole)
    theirs = _distance(readings, runs[rivals], readings.whole)
    beaten = theirs > mine if test == "sufficiency" else theirs < mine
    for t, wins in enumerate(beaten.sum(axis=0).tolist()):
        if not readings.total[t].any():
            yield _Found(t, "circuit", None, None, "", _NOTHING)
            continue
        p = wins_pvalue(wins, len(beaten), quantile, more=True)
        what = {
            "sufficiency": "closer to the model than random circuits of its shape",
            "necessity": "missed more than random circuits of its shape",
        }[test]
        share = wins / len(beaten)
        yield _Found(
            t,
            "circuit",
            share,
            p,
            f"{what}: than {share:.0%} of them",
            f"not shown to be {what}: than {share:.0%} of them",
        )


def _minimality(readings: Readings, runs: dict[str, Runs], edges: Sequence[str], quantile: float) -> Iterator[_Found]:
    random = _distance(readings, runs["inflated"], runs["without"])
    knocked = _distance(readings, runs["knocked"], runs["circuit"][0])
    for t in range(len(readings.total)):
        if not len(random) or not readings.total[t].any():
            yield _Found(t, "circuit", None, None, "", _NO_PATH if not len(random) else _NOTHING)
            continue
        for edge, effect in zip(edges, knocked[:, t], strict=True):
            wins = int((effect > random[:, t]).sum())
            p = wins_pvalue(wins, len(random), quantile, more=False)
            yield _Found(t, edge, wins / len(random), p, "superfluous", "not shown to be superfluous")


def _distance(readings: Readings, a: Runs, b: Runs) -> Float[np.ndarray, "*sets target"]:
    return np.abs(readings.clear(a - b)).mean(axis=-1)


def _adjusted(test: Test, found: Iterable[_Found], readouts: Sequence[str], alpha: float) -> list[Outcome]:
    found = list(found)
    tested = [one.p for one in found if one.p is not None]
    adjusted = iter(holm(np.array(tested)).tolist())
    outcomes = []
    for one in found:
        q = None if one.p is None else next(adjusted)
        rejected = q is not None and q <= alpha
        verdict = one.if_rejected if rejected else one.if_not
        outcomes.append(Outcome(test, readouts[one.target], one.subject, one.statistic, one.p, q, rejected, verdict))
    return outcomes


def _check(
    tests: Sequence[str], alpha: float, quantile: float, n_random: int, n_edges: int | None, n_perm: int
) -> None:
    unknown = [test for test in tests if test not in get_args(Test)]
    if unknown or not tests:
        raise CircuitError(f"tests={tests!r}: expected some of {', '.join(map(repr, get_args(Test)))}.")
    if not (0 < alpha < 1 and 0 < quantile < 1):
        raise CircuitError(f"alpha={alpha}, quantile={quantile}: expected both in (0, 1).")
    counts = {"n_random": n_random, "n_perm": n_perm} | ({} if n_edges is None else {"n_edges": n_edges})
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise CircuitError(f"{name}={count!r}: expected a positive number.")
