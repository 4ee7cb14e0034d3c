"""A ReLU VAE wired by hand, whose circuit is known, and pairs for it."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import nnsight_vae as nv
from nnsight_vae.pairs import Pairs
from nnsight_vae.readouts import Pixels


class WiredVAE(nn.Module):
    """ReLU VAE wired by hand: input 0 reaches output 0 by two routes; everything else is camouflage."""

    image = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.fc_mu, self.fc_logvar = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.dec, self.out = nn.Linear(2, 5), nn.Linear(5, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.enc.weight[0, 0], self.enc.weight[1, 0] = 1.0, 0.5
            self.fc_mu.weight[0, 0], self.fc_mu.weight[0, 1] = 1.0, 0.8
            self.dec.weight[0, 0], self.dec.weight[1, 0] = 1.0, 0.7
            self.out.weight[0, 0], self.out.weight[0, 1] = 1.0, -0.4
            self.enc.weight[2, 0] = 50.0  # a dead end: nothing reads hidden 2
            self.enc.weight[3], self.enc.bias[3], self.fc_mu.weight[0, 3] = 40.0, -1e3, 30.0  # a closed gate
            self.enc.weight[4, 2], self.fc_mu.weight[1, 4] = 9.0, 9.0  # input 2 never changes
            self.enc.weight[5, 1], self.fc_mu.weight[1, 5] = 9.0, 9.0  # input 1 changes, but goes elsewhere
            self.dec.weight[2, 1], self.out.weight[1, 2] = 9.0, 9.0  # ... to output 1, which is not read
            self.dec.weight[3, 0], self.dec.bias[3], self.out.weight[0, 3] = 20.0, -1e3, 60.0  # another closed gate
            self.dec.weight[4, 0], self.out.weight[2, 4] = 30.0, 30.0  # on to output 2, which is not read

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.enc(x))
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.out(torch.relu(self.dec(z)))


TRUE_EDGES = {
    ("factor:f", "input[0]"),
    ("input[0]", "enc[0]"),
    ("input[0]", "enc[1]"),
    ("enc[0]", "latent.z[0]"),
    ("enc[1]", "latent.z[0]"),
    ("latent.z[0]", "dec[0]"),
    ("latent.z[0]", "dec[1]"),
    ("dec[0]", "output[0]"),
    ("dec[1]", "output[0]"),
    ("output[0]", "readout:pixel[0]"),
}
PIXEL = Pixels((4,))["pixel[0]"]


def wired_pairs(n: int = 30) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    base = 0.2 + 0.3 * torch.rand(n, 4, generator=generator)
    source = base.clone()
    source[:, :2] += 0.2 + 0.3 * torch.rand(n, 2, generator=generator)
    return Pairs(base, source, factor="f")


@pytest.fixture
def wired() -> tuple[nv.VAE, Pairs, object]:
    pairs = wired_pairs()
    return nv.VAE(WiredVAE(), example=pairs.base), pairs, PIXEL


@pytest.fixture
def true_circuit() -> nx.DiGraph:
    return nx.DiGraph(list(TRUE_EDGES), schema="nnsight-vae/circuit@1")
