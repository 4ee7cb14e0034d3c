"""Scores made to measure, and what selections make of them: shared by the tests of searches for circuits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vaes import seeded
from wired import WiredVAE, wired_pairs

import nnsight_vae as nv
from nnsight_vae.circuits import FDR, EdgeScores, Mass, TopK, circuit_from, score_edges
from nnsight_vae.circuits.scoring.edges import Node
from nnsight_vae.circuits.selection.evidence import Evidence
from nnsight_vae.circuits.selection.paths import Paths
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels, Readout

Edge = tuple[str, str]


@pytest.fixture(scope="module")
def wired() -> tuple[nv.VAE, Pairs, object]:
    pairs = wired_pairs()
    return nv.VAE(WiredVAE(), example=pairs.base), pairs, Pixels((4,))["pixel[0]"]


@pytest.fixture(scope="module")
def wired_scores(wired) -> EdgeScores:
    return score_edges(*wired)


def chosen(scores: EdgeScores, select: FDR | Mass | TopK) -> set[Edge]:
    return set(circuit_from(scores, select, resamples=0).edges)


def with_values(scores: EdgeScores, edge: Edge, values: np.ndarray | float) -> EdgeScores:
    changed = scores.values.copy()
    changed[list(zip(scores.sources, scores.targets, strict=True)).index(edge), 0] = values
    return replace(scores, values=changed)


def evidence_of(scores: EdgeScores, seed: int = 0) -> Evidence:
    return Evidence(scores, Paths.of(scores), len(scores), seed)


def side_by_side(
    effects: np.ndarray, total: np.ndarray, groups: np.ndarray | None = None, sources: np.ndarray | None = None
) -> EdgeScores:
    """Scores of edges a[i] -> b[i], each between edges that carry everything: any of them is on a path by itself."""
    m, n = effects.shape
    nodes = (
        Node("factor:f", "factor", None, None, "factor", 0),
        *(Node(f"a[{i}]", "linear", "a", i, "encoder", 1) for i in range(m)),
        *(Node(f"b[{i}]", "linear", "b", i, "encoder", 2) for i in range(m)),
        Node("readout:r", "readout", None, None, "readout", 3),
    )
    ends = [
        *(("factor:f", f"a[{i}]") for i in range(m)),
        *((f"a[{i}]", f"b[{i}]") for i in range(m)),
        *((f"b[{i}]", "readout:r") for i in range(m)),
    ]
    sure = np.tile(total, (m, 1))
    return EdgeScores(
        np.concatenate([sure, effects, sure])[:, None],
        tuple(a for a, _ in ends), tuple(b for _, b in ends), nodes, ("r",),
        np.repeat([0, 1, 2], m), ("factor -> a", "a -> b", "b -> readout"),
        total[None], np.zeros(1), np.zeros((3, 1, n)), "ig", "test", groups, sources,
    )  # fmt: skip


def middle(scores: EdgeScores) -> Evidence:
    """Of these, a[i] -> b[i] by themselves."""
    m = len(scores) // 3
    some = slice(m, 2 * m)
    return evidence_of(
        replace(
            scores,
            values=scores.values[some],
            sources=scores.sources[some],
            targets=scores.targets[some],
            cut_of=scores.cut_of[some],
        )
    )


class TinyVAE(nn.Module):
    image = (3,)

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.enc, self.fc_mu, self.fc_logvar = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.dec, self.out = nn.Linear(2, 4), nn.Linear(4, 3)
        self.act = nn.Identity() if linear else nn.Tanh()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.act(self.enc(x))
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(self.act(self.dec(z)))


class MeanOutput:
    names = ("mean",)

    def __call__(self, reconstruction: Tensor) -> Tensor:
        return reconstruction.mean(1, keepdim=True)


def tiny(linear: bool = False, n: int = 6) -> tuple[nv.VAE, Pairs, Readout]:
    model = seeded(TinyVAE(linear), 7).double()
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(n, 3, generator=generator).double()
    pairs = Pairs(base, base + 1 + torch.rand(n, 3, generator=generator).double(), factor="f")
    return nv.VAE(model, example=base), pairs, MeanOutput()
