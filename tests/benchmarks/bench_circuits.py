"""Scoring every edge of a VAE: exact patching against the ways people write it by hand, gradients against exact patching, screening, memory.

    python tests/benchmarks/bench_circuits.py                # everything, or some of: speed agreement screening growth
    python tests/benchmarks/bench_circuits.py 2500 64        # exact patching of that many edges on that many pairs, for its memory

Ratios are of times measured in one process. What is written by hand is measured on a few edges a cut, spread evenly, and scaled to
all of them; ours is measured whole. The VAE is trained first, which takes a minute or two.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from measuring import resident, seconds
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import nnsight_vae as nv
from nnsight_vae.circuits import score_edges
from nnsight_vae.circuits.scoring.edges import EdgeScores
from nnsight_vae.circuits.selection.screening import Screen
from nnsight_vae.circuits.wiring.contributions import apply
from nnsight_vae.circuits.wiring.cuts import Block, Cut, cuts_of
from nnsight_vae.circuits.wiring.pair_run import PairRun, pair_runs
from nnsight_vae.circuits.wiring.wiring import Wiring
from nnsight_vae.engine import CHUNK_BYTES
from nnsight_vae.models import ConvVAE, train
from nnsight_vae.models.labels import Labels
from nnsight_vae.models.objectives import Objective
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Region

ROUNDS = 3
PAIRS = 64
SAMPLED = 4  # edges a cut that the others are measured on
SHAPE = (1, 32, 32)
QUANTILES = {"a small move": (0.45, 0.55), "a third of the range": (0.35, 0.65), "most of the range": (0.2, 0.8)}
METHODS: dict[str, dict] = {
    "ig, 3 nodes": {"nodes": 3},
    "ig, 4 nodes": {"nodes": 4},
    "eap-ig, 4 nodes": {"method": "eap-ig", "nodes": 4},
    "eap, base": {"method": "eap"},
    "eap, average": {"method": "eap", "at": "average"},
    "eap-act, average": {"method": "eap-act", "at": "average"},
    "weight": {"method": "weight"},
    "correlation": {"method": "correlation"},
}


SCREENERS = ("eap, average", "ig, 3 nodes", "eap-act, average")


class Centroid:
    """Where the light is from left to right: a signed readout of the factor x."""

    names = ("x",)

    def __call__(self, images: Tensor) -> Tensor:
        return (images.mean(1) * torch.linspace(-1, 1, images.shape[-1])).mean((1, 2))[:, None]


READ = Centroid()


def trained() -> nn.Module:
    data = nv.datasets.load("independent_sprites")
    batch = data.sample_independent(4000, 1)
    images = avg_pool2d(batch.images, 2)
    labels = Labels(images[:2000], batch.factors[:2000], data.factors)
    objective = Objective(label_weight=30.0, likelihood="gaussian", sd=0.1)
    arguments = {"latent": 6, "channels": (8, 16, 16), "hidden": 24}
    return train(images, arguments=arguments, objective=objective, labels=labels, steps=2500, progress=False).module


def moved(low: float, high: float, n: int = PAIRS) -> Pairs:
    """Sprites moved from one quantile of x to another."""
    data = nv.datasets.load("independent_sprites")
    x = data.sample(1024).factors[:, data.factors.index("x")].numpy()
    doses = data.doses("x", n=n, values=[float(v) for v in np.quantile(x, [low, high])], propagate=False)
    base, source = (avg_pool2d(images, 2) for images in doses.images)
    return Pairs(base, source, factor="x")


# ---------------------------------------------------------------------- what people write
def chain_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules from image to reconstruction at the posterior mean, in order."""
    encoder = [(f"encoder.{name}", part) for name, part in model.encoder.named_children()]
    decoder = [(f"decoder.{name}", part) for name, part in model.decoder.named_children()]
    return [("input", nn.Identity()), *encoder, ("fc_mu", model.fc_mu), *decoder]


def run(parts: list[tuple[str, nn.Module]], x: Tensor) -> Tensor:
    for _, part in parts:
        x = part(x)
    return x


class ByHand:
    """Noising of single edges on the plain modules."""

    def __init__(self, model: nn.Module, pair_run: PairRun) -> None:
        self.parts, self.pairs, self.wiring = chain_of(model), pair_run, pair_run.wiring

    def after(self, block: Block, source: int, target: int) -> Tensor:
        """The target column's pre-activations once the edge carries the change."""
        column = self.wiring.columns[block.reader]
        added = self.pairs.moved_alone(block.reader, block.route, source)
        added = added if block.layer is None else apply(block.layer, added)
        result = self.pairs.base.outputs[column.path].clone()
        units = (column.owners == target).nonzero().flatten()
        result[:, units] += added[:, units]
        return result

    def name_of(self, block: Block) -> str:
        name = self.wiring.columns[block.reader].path.removeprefix("model.")
        return "input" if name == "tap_input" else name

    def hooks(self, edges: list[tuple[Block, int, int]]) -> list[Tensor]:
        """One hooked forward an edge."""
        out = []
        for block, source, target in edges:
            value = self.after(block, source, target)
            module = dict(self.parts)[self.name_of(block)]
            handle = module.register_forward_hook(lambda module, args, output, value=value: value)
            out.append(READ(run(self.parts, self.pairs.base.x)))
            handle.remove()
        return out

    def suffix(self, edges: list[tuple[Block, int, int]]) -> list[Tensor]:
        """What follows the edge's target only, several edges in a batch of the size that the engine's constant allows."""
        at = [name for name, _ in self.parts].index(self.name_of(edges[0][0])) + 1
        values = [self.after(*edge) for edge in edges]
        return list(READ(run(self.parts[at:], torch.cat(values))).split(len(self.pairs)))


def sampled(cut: Cut, k: int) -> list[tuple[int, tuple[Block, int, int]]]:
    """Positions in the cut of some edges, spread evenly, with where they are."""
    chosen = sorted({int((i + 0.5) * len(cut) / k) for i in range(min(k, len(cut)))})
    where = {
        int(e): (b, *divmod(i, b.edges.shape[1])) for b in cut.blocks for i, e in enumerate(b.edges.flatten().tolist())
    }
    return [(e, where[e]) for e in chosen]


# ---------------------------------------------------------------------- speed
def bench_speed(model: nn.Module) -> None:
    pairs, vae = moved(*QUANTILES["a small move"]), nv.VAE(model, example=torch.zeros(1, *SHAPE))
    wiring = Wiring.of(vae, pairs.base)
    cuts = cuts_of(wiring, "x", READ.names)[:-1]
    ((_, pair_run),) = pair_runs(vae, pairs, wiring)
    hand = ByHand(model, pair_run)
    exact: list[EdgeScores] = []
    with torch.no_grad():
        clean = READ(run(hand.parts, pairs.base))
        ours = {"exact, noising": {"method": "exact"}, "exact, both": {"method": "exact", "direction": "both"}}
        timed: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            hooked = suffixed = 0.0
            for cut in cuts:
                edges = sampled(cut, SAMPLED)
                hooked += seconds(lambda edges=edges: hand.hooks([e for _, e in edges])) * len(cut) / len(edges)
                batch = max(1, CHUNK_BYTES // (4 * 8 * 16 * 16 * len(pairs)))
                many = [e for _, e in sampled(cut, batch)]
                suffixed += seconds(lambda many=many: hand.suffix(many)) * len(cut) / len(many)
            timed.setdefault("hooks an edge", []).append(hooked)
            timed.setdefault("suffix by hand", []).append(suffixed)
            for name, options in {**ours, **METHODS}.items():
                timed.setdefault(name, []).append(
                    seconds(lambda options=options: exact.append(score_edges(vae, pairs, READ, **options)))
                )
    noising = next(scores for scores in exact if scores.estimand.startswith("PNIE (n"))
    by_edge = dict(zip(zip(noising.sources, noising.targets, strict=True), noising.values[:, 0], strict=True))
    for cut in cuts:
        for e, edge in sampled(cut, SAMPLED):
            ends = cut.sources[cut.ends[e, 0]].id, cut.targets[cut.ends[e, 1]].id
            expected = (hand.hooks([edge])[0] - clean).flatten().detach().numpy()
            np.testing.assert_allclose(by_edge[ends], expected, atol=1e-5)
    print(f"\n{len(noising):,} edges, {len(pairs)} pairs; load {os.getloadavg()[0]:.1f}")
    for name, of in (("exact, noising", "hooks an edge"), ("exact, noising", "suffix by hand")):
        ratio = statistics.median(b / a for a, b in zip(timed[name], timed[of], strict=True))
        print(f"  {name:<16}{statistics.median(timed[name]):>7.2f} s {ratio:>8.1f}x faster than {of}")
    for name in METHODS:
        ratio = statistics.median(b / a for a, b in zip(timed[name], timed["exact, both"], strict=True))
        print(f"  {name:<16}{statistics.median(timed[name]):>7.3f} s {ratio:>8.0f}x faster than exact, both")


# ---------------------------------------------------------------------- agreement
def bench_agreement(model: nn.Module) -> None:
    vae = nv.VAE(model, example=torch.zeros(1, *SHAPE))
    for name, quantiles in QUANTILES.items():
        pairs = moved(*quantiles)
        exact = score_edges(vae, pairs, READ, method="exact", direction="both")
        print(f"\nx moved by {name}; against the mean of noising and denoising ({len(exact):,} edges):")
        noising, denoising = exact.parts.values()
        print(f"  {'noising':<16}{agreement(noising, exact)}\n  {'denoising':<16}{agreement(denoising, exact)}")
        for method, options in METHODS.items():
            scores = score_edges(vae, pairs, READ, **options)
            cut = max(row.error for row in scores.completeness) if method.startswith("ig") else None
            print(
                f"  {method:<16}{agreement(scores, exact)}" + ("" if cut is None else f"  cut error {cut:.0e}"),
                flush=True,
            )


def agreement(scores: EdgeScores, exact: EdgeScores, k: int = 100) -> str:
    a, b = scores.mean()[:, 0], exact.mean()[:, 0]
    found = len(set(np.argsort(-np.abs(b))[:k]) & set(np.argsort(-np.abs(a))[: 2 * k])) / k
    return (
        f"Pearson {np.corrcoef(a, b)[0, 1]:6.3f}  Spearman {spearmanr(a, b)[0]:6.3f}  of sizes {spearmanr(np.abs(a), np.abs(b))[0]:6.3f}  "
        f"top {k} in top {2 * k} {found:.2f}"
    )


# ---------------------------------------------------------------------- screening
def bench_screening(model: nn.Module, k: int = 100) -> None:
    """Screen, then verify by patching both ways: seconds against those of patching every edge both ways, and what of its top k is verified."""
    vae = nv.VAE(model, example=torch.zeros(1, *SHAPE))
    patching: dict = {"method": "exact", "direction": "both"}
    for name, quantiles in QUANTILES.items():
        pairs, scored = moved(*quantiles), list[EdgeScores]()
        whole = [
            seconds(lambda pairs=pairs: scored.append(score_edges(vae, pairs, READ, **patching))) for _ in range(ROUNDS)
        ]
        exact, took = scored[0], statistics.median(whole)
        top = set(np.argsort(-np.abs(exact.mean()[:, 0]))[:k].tolist())
        print(
            f"\nx moved by {name}: patching {len(exact):,} edges both ways {took:.2f} s; load {os.getloadavg()[0]:.1f}"
        )
        for method in SCREENERS:
            for screen in (Screen(0.065, sample=20), Screen(0.1, sample=60), Screen()):
                chosen: list[np.ndarray] = []

                def screened(method=method, screen=screen, chosen=chosen, pairs=pairs) -> None:
                    scores = score_edges(vae, pairs, READ, **METHODS[method])
                    chosen[:] = screen.chosen(scores, seed=0)
                    edges = [(scores.sources[i], scores.targets[i]) for i in np.concatenate(chosen)]
                    score_edges(vae, pairs, READ, **patching, edges=edges)

                spent = statistics.median(seconds(screened) for _ in range(ROUNDS))
                recall = len(top & set(chosen[0].tolist())) / k
                print(
                    f"  {method:<18}share {screen.share:.3f} and {len(chosen[1]):>3} at random {spent:>6.2f} s "
                    f"{took / spent:>5.1f}x  of the top {k} {recall:.2f}",
                    flush=True,
                )


# ---------------------------------------------------------------------- memory and time
def grow(n_edges: int, pairs: int) -> None:
    """Print seconds of exact patching of some edges, and the MiB by which it raises the peak; each in a process of its own."""
    torch.manual_seed(0)
    vae = nv.VAE(ConvVAE((3, 32, 32), latent=10, channels=(16, 32, 64), hidden=64), example=torch.rand(2, 3, 32, 32))
    data, read = (
        Pairs(torch.rand(pairs, 3, 32, 32), torch.rand(pairs, 3, 32, 32), factor="f"),
        Region({"all": (slice(0, 32), slice(0, 16))}),
    )
    cuts = cuts_of(Wiring.of(vae, data.base), "f", read.names)
    ends = [(cut.sources[s].id, cut.targets[t].id) for cut in cuts for s, t in cut.ends.tolist()]
    chosen = [ends[i] for i in np.random.default_rng(0).permutation(len(ends))[:n_edges]]
    score_edges(vae, data[:4], read, method="exact", edges=chosen[:50])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = resident("VmRSS"), time.thread_time()
    score_edges(vae, data, read, method="exact", direction="both", edges=chosen)
    print(time.thread_time() - start, resident("VmHWM") - before, resident("VmHWM"), len(ends))


def bench_growth() -> None:
    for n_edges in (1250, 2500, 5000, 10000):
        command = [sys.executable, __file__, str(n_edges), str(PAIRS)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        took, extra, peak, of = map(float, out)
        print(
            f"exact of {n_edges:,} of {of:,.0f} edges, both ways: {took:.1f} s, {took / n_edges * 1e3:.2f} ms an edge, "
            f"{extra:.0f} MiB more, {peak:.0f} MiB in all",
            flush=True,
        )


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    if wanted and wanted[0].isdigit():
        grow(int(wanted[0]), int(wanted[1]))
        return
    if not wanted or {"speed", "agreement", "screening"} & set(wanted):
        model = trained()
        if not wanted or "speed" in wanted:
            bench_speed(model)
        if not wanted or "agreement" in wanted:
            bench_agreement(model)
        if not wanted or "screening" in wanted:
            bench_screening(model)
    if not wanted or "growth" in wanted:
        bench_growth()


if __name__ == "__main__":
    main(sys.argv[1:])
